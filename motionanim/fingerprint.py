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
