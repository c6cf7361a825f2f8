"""LoRAs with random values in both matrices, so that they act."""

import torch
from torch import nn

from motionanim.models.svd.lora import add_lora


@torch.no_grad()
def randomise_lora(unet: nn.Module, seed: int = 2) -> None:
    """Change the values of the LoRA in the network, from any package."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in unet.named_parameters():
        if ".lora_" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def add_random_lora(unet: nn.Module, rank: int = 4, alpha: float = 8.0) -> None:
    add_lora(unet, rank=rank, alpha=alpha)
    randomise_lora(unet)
