"""Stable Video Diffusion's own architecture with few channels: 64 x 64 px, 8 x 8 latents."""

from pathlib import Path
from typing import Any

import torch
import yaml
from configs import ROOT

from motionanim.models.svd.tiny import build_pipeline, save_pipeline

FEW = {
    "vae": {"block_out_channels": [32] * 4, "layers_per_block": 1, "sample_size": 64},
    "unet": {
        "sample_size": 8, "num_frames": 4, "block_out_channels": [32, 32, 64, 64], "layers_per_block": 1,
        "num_attention_heads": [1, 2, 2, 2], "cross_attention_dim": 16, "addition_time_embed_dim": 16,
        "projection_class_embeddings_input_dim": 48,
    },
    "image_encoder": {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 56,
        "projection_dim": 16,
    },
}  # fmt: skip


def small_svd() -> dict[str, Any]:
    """The configurations of the parts: benchmarks/svd.yaml with other numbers."""
    real = yaml.safe_load((ROOT / "benchmarks" / "svd.yaml").read_text())
    return {part: real[part] | FEW[part] for part in real}


def save_small_svd(folder: Path) -> None:
    """Write a pipeline folder with random weights in the files that are published: variant fp16."""
    pipeline = build_pipeline(seed=0, **small_svd())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        pipeline.unet.conv_out.reset_parameters()  # zero in a new base, which would hide the rest of the network
    save_pipeline(folder, pipeline=pipeline, published_names=True)
