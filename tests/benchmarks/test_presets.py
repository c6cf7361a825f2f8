"""The counted memory of the presets is what PyTorch's own record of a real run at a small size says."""

from functools import partial
from typing import Any

import presets
import pytest
import torch
from accounting import profiled_peak
from torch import nn

from motionanim.models.svd.faster_layers import _convolve_time

NETWORKS: dict[str, Any] = {
    "unet": presets.counted.SVD["unet"] | {
        "block_out_channels": (64, 128), "num_attention_heads": (2, 4), "cross_attention_dim": 32,
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    },
    "vae": presets.counted.SVD["vae"] | {
        "block_out_channels": (32, 64), "down_block_types": ("DownEncoderBlock2D",) * 2,
    },
    "image_encoder": {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
        "patch_size": 14, "image_size": 224, "projection_dim": 32,
    },
}  # fmt: skip
COUNTED = ("none", "16")  # they differ in types, batch and passes of a step; the other presets have values between
SMALL = [
    *("scale.num_frames=4", "scale.height=64", "scale.width=64"),
    *("scale.base=none", "scale.motion_channels=16", "scale.batch_size=2"),
]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("preset", COUNTED)
def test_a_training_step_takes_what_is_counted(preset: str) -> None:
    overrides = ["experiment=diffusion", "model.trainable=temporal", "model.moments=float32", *SMALL]
    cfg = presets.settings("train", preset, *overrides)
    denoiser = presets.trainable(cfg, NETWORKS["unet"]).to_empty(device="cpu")
    for parameter in denoiser.parameters():
        nn.init.normal_(parameter, std=0.02)
    denoiser.checkpoint_blocks(1280)
    taken = profiled_peak(
        lambda: presets.train(denoiser, cfg, cfg["data"]["batch_size"], cfg["trainer"]["accumulate_grad_batches"])
    )
    found = taken + presets.weights(denoiser)
    idle = 0 if cfg["model"]["codec_offload"] else presets.codec_weights(NETWORKS)
    assert presets.training_peak(cfg, NETWORKS, as_cuda=False) - idle == pytest.approx(found, rel=0.15)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("preset", [*COUNTED, "48"])  # 48 moves the codec between calls
def test_each_stage_of_a_video_takes_what_is_counted(preset: str) -> None:
    tiles = ["sampling.decode_tile=128"] * (preset == "16")
    cfg = presets.settings("animate", preset, "image=none", "long_video=phased", *tiles, *SMALL)
    size, frames = (32, 192), 10
    counted, _ = presets.stage_peaks(cfg, NETWORKS, frames, size)
    with torch.no_grad():
        for name, network, run in presets.stages(cfg, NETWORKS, frames, size):
            if name == "denoising":
                network.to_empty(device="cpu")
                for parameter in network.parameters():
                    nn.init.normal_(parameter, std=0.02)
            for layer in network.modules():
                if isinstance(layer, nn.Conv3d):  # a CPU's own kernel copies its input three times, a GPU's does not
                    layer.forward = partial(_convolve_time, layer)
            assert counted[name] == pytest.approx(profiled_peak(run), rel=0.15), name
