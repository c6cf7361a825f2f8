"""Memory on the card with each preset of conf/vram, counted on tensors without values: no GPU, no weights.

python benchmarks/presets.py
"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import counted
import torch
from accounting import PeakMemory, norms_in_float32
from diffusers import AutoencoderKLTemporalDecoder
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import motionanim.cli.command
from motionanim.models.svd.codec import Codec
from motionanim.models.svd.denoiser import Denoiser

CONF = str(Path(__file__).resolve().parents[1] / "conf")
PRESETS = ("none", "16", "24", "48", "80")
TRAINED = {
    "motion LoRA": ["experiment=motion_lora"],
    "temporal": ["experiment=diffusion", "model.trainable=temporal"],
    "literal": ["experiment=diffusion", "model.trainable=literal"],
}
SIZES = {"25 x 512 x 512": (25, 512, 512), "25 x 576 x 1024": (25, 576, 1024), "125 x 512 x 512": (125, 512, 512)}


def settings(command: str, preset: str, *overrides: str) -> dict[str, Any]:
    """The composed configuration of `scale=svd` with a preset."""
    with initialize_config_dir(version_base="1.3", config_dir=CONF):
        given = [
            "scale=svd",
            *["logger=none", "name=counted", "run=counted"] * (command == "train"),
            f"vram='{preset}'",
            "paths.run=.",
            *overrides,
        ]
        return OmegaConf.to_container(compose(command, given), resolve=True)


def weights(module: nn.Module) -> int:
    """Bytes."""
    return sum(tensor.nbytes for tensor in [*module.parameters(), *module.buffers()])


def codec_weights(config: dict[str, Any]) -> int:
    """Bytes of VAE and CLIP in float32."""
    with torch.device("meta"):
        parts = (
            AutoencoderKLTemporalDecoder(**config["vae"]),
            CLIPVisionModelWithProjection(CLIPVisionConfig(**config["image_encoder"])),
        )
    return sum(map(weights, parts))


class Moments8bit:
    """Bytes of bitsandbytes' AdamW8bit, which takes no tensors without values: two a parameter, and a scale each 256.

    Parameters of fewer than 4096 values have moments of float32.
    """

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        sizes = [p.numel() for p in parameters]
        self.moments = torch.empty(
            sum(8 * n if n < 4096 else 2 * n + 8 * -(-n // 256) for n in sizes), dtype=torch.uint8
        )

    def step(self) -> None:
        pass  # in place, and what it needs inside itself is small


def train(denoiser: Denoiser, cfg: dict[str, Any], clips: int, passes: int) -> None:
    """Two steps, so that the moments exist, of two passes where a step has several: gradients wait for the last."""
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    optimizer: Any = Moments8bit(trained) if cfg["model"]["moments"] == "8bit" else torch.optim.AdamW(trained)
    for _ in range(2):
        for _ in range(min(2, passes)):
            counted.backward(denoiser, cfg["scale"], clips)
        optimizer.step()
        for parameter in trained:
            parameter.grad = None


def trainable(cfg: dict[str, Any], unet: dict[str, Any]) -> Denoiser:
    """The denoiser as train.py makes it, on the meta device."""
    denoiser = counted.build_denoiser(unet, cfg["model"]["motion"]).train()
    if "rank" in cfg["model"]:
        counted.with_lora(denoiser, rank=cfg["model"]["rank"])
    else:
        denoiser.select_trainable(cfg["model"]["trainable"])
    if cfg["model"]["frozen"] == "bfloat16":
        denoiser.halve_frozen()
    return denoiser


def training_peak(cfg: dict[str, Any], config: dict[str, Any] = counted.SVD, *, as_cuda: bool = True) -> int:
    """Bytes at the peak of a training step on prepared latents.

    Args:
        config: Of the networks.
        as_cuda: Count normalisations as CUDA's autocast computes them, rather than as the CPU's.
    """
    denoiser = trainable(cfg, config["unet"])
    clips, passes = cfg["data"]["batch_size"], cfg["trainer"]["accumulate_grad_batches"]
    with FakeTensorMode(allow_non_fake_inputs=True):
        denoiser.to_empty(device="cpu")
        if cfg["model"]["checkpoint_width"]:
            denoiser.checkpoint_blocks(cfg["model"]["checkpoint_width"])
        with PeakMemory(denoiser) as memory:
            if as_cuda:
                with norms_in_float32():
                    train(denoiser, cfg, clips, passes)
            else:
                train(denoiser, cfg, clips, passes)
    return memory.peak + (0 if cfg["model"]["codec_offload"] else codec_weights(config))


def stages(
    cfg: dict[str, Any], config: dict[str, Any], frames: int, size: tuple[int, int]
) -> Iterator[tuple[str, nn.Module, Callable[[], Any]]]:
    """Name, network and run of each stage of a video; to be run where tensors have no values, or with values."""
    s, scale, (height, width) = cfg["sampling"], cfg["scale"], size
    window = scale["num_frames"]
    codec = Codec(AutoencoderKLTemporalDecoder(**config["vae"]).eval(), nn.Identity(), _Extractor())
    down = codec.downscale
    latents = (height // down, width // down)
    clips = 2 * max(1, -(-frames // window) - 1)  # later segments of a phased video, and their guidance pairs
    denoiser = counted.build_denoiser(config["unet"], cfg["motion"]).eval().to(getattr(torch, s["dtype"]))
    room = None if s["vram"] is None else int(0.9 * (s["vram"] * 2**30 - resident(cfg, config, denoiser)))
    together = min(clips, denoiser.clips_at_once(window, latents, room))
    together = -(-clips // -(-clips // together))
    shape = scale | {"height": height, "width": width}
    yield "encoding", codec, lambda: codec.encode(torch.zeros(1, min(16, frames), 3, height, width))
    yield "denoising", denoiser, lambda: counted.denoise(denoiser, shape, together, downscale=down)
    yield "decoding", codec, partial(
        codec.decode, torch.zeros(1, min(frames, window + 8), config["vae"]["latent_channels"], *latents),
        chunk=s["decode_chunk"], tile=s["decode_tile"], dtype=getattr(torch, s["decode_dtype"]),
    )  # fmt: skip


class _Extractor:
    image_mean = image_std = (0.5, 0.5, 0.5)


def resident(cfg: dict[str, Any], config: dict[str, Any], denoiser: Denoiser) -> int:
    """Bytes of the weights that stay on the card."""
    kept = {
        None: weights(denoiser) + codec_weights(config),
        "codec": weights(denoiser),
        "all": weights(denoiser.motion),
    }
    return kept[cfg["sampling"]["offload"]]


def stage_peaks(
    cfg: dict[str, Any], config: dict[str, Any], frames: int, size: tuple[int, int]
) -> tuple[dict[str, int], int]:
    """Bytes that each stage computes with at its peak, and those of the weights that stay on the card."""
    parts, peaks = list(stages(cfg, config, frames, size)), {}  # made outside of the mode: `Codec` reads its weights
    stay = next(resident(cfg, config, network) for _, network, _ in parts if isinstance(network, Denoiser))
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        for name, network, run in parts:
            if isinstance(network, Denoiser):
                network.to_empty(device="cpu")
            with PeakMemory() as memory:
                run()
            peaks[name] = memory.peak
    return peaks, stay


def sampling_peaks(cfg: dict[str, Any], frames: int, size: tuple[int, int]) -> dict[str, int]:
    """Bytes at the peak of each stage: weights that stay, the video's own tensors, and what the stage computes with.

    The video has its flow, its warped frames and, while it is decoded, its frames.
    """
    peaks, stay = stage_peaks(cfg, counted.SVD, frames, size)
    ahead = frames + cfg["scale"]["num_frames"]
    own = {name: (2 * frames + 3 * ahead + 3 * frames * (name == "decoding")) * 4 * size[0] * size[1] for name in peaks}
    return {name: peak + stay + own[name] for name, peak in peaks.items()}


def gib(size: float) -> str:
    return f"{size / counted.GIBI:.1f}"


def main() -> None:
    motionanim.cli.command.quiet()
    print("| training | " + " | ".join(f"`vram={name}`" for name in PRESETS) + " |")
    print("|---" * (len(PRESETS) + 1) + "|")
    for name, overrides in TRAINED.items():
        peaks = [gib(training_peak(settings("train", preset, *overrides))) for preset in PRESETS]
        print(f"| {name} | " + " | ".join(peaks) + " |", flush=True)
    print("\n| video | " + " | ".join(f"`vram={name}`" for name in PRESETS) + " |")
    print("|---" * (len(PRESETS) + 1) + "|")
    for name, (frames, *size) in SIZES.items():
        rows = [
            sampling_peaks(settings("animate", preset, "image=none", "long_video=phased"), frames, tuple(size))
            for preset in PRESETS
        ]
        for stage in rows[0]:
            print(f"| {name}, {stage} | " + " | ".join(gib(row[stage]) for row in rows) + " |", flush=True)


if __name__ == "__main__":
    main()
