"""Short hashes that tell one set of weights from another."""

import hashlib

import torch
from torch import Tensor, nn


def weights_fingerprint(module: nn.Module, *more: Tensor) -> str:
    """Sixteen hex digits of a hash of all weights, with their names, and of further tensors."""
    digest = hashlib.sha256()
    named = list(module.state_dict().items()) + [(str(i), tensor) for i, tensor in enumerate(more)]
    for name, value in named:
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def frozen_fingerprint(module: nn.Module) -> str:
    """Sixteen hex digits of a hash of what does not train: of each such tensor its shape and its first 256 numbers."""
    digest = hashlib.sha256()
    for value in module.parameters():  # without their names, which torch.compile changes
        if not value.requires_grad:
            digest.update(f"{tuple(value.shape)}".encode())
            digest.update(value.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
