"""Short hashes that tell one set of weights from another."""

import hashlib

import torch
from torch import Tensor, nn


def fingerprint(model: nn.Module) -> str:
    """What a LoRA remembers of its UNet: a hash of the first and last convolution."""
    return weights_fingerprint(model.conv_in.weight, model.conv_out.weight)


def weights_fingerprint(*weights: Tensor) -> str:
    """Rounded to bf16 first, so that weights loaded in fp32, fp16 or bf16 give the same."""
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.detach().cpu().to(torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:16]
