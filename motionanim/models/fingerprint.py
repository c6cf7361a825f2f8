"""Short hashes that tell one set of weights from another."""

import hashlib

import torch
from torch import nn


def fingerprint(model: nn.Module) -> str:
    """What a LoRA remembers of its UNet, and latents of their VAE encoder: a hash of the first and last convolution.

    Rounded to bf16 first, so that weights loaded in fp32, fp16 or bf16 give the same.
    """
    digest = hashlib.sha256()
    for weight in (model.conv_in.weight, model.conv_out.weight):
        digest.update(weight.detach().cpu().to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
