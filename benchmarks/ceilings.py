"""The two ceilings of a device: what it multiplies and what it copies in a second, measured."""

from collections.abc import Callable
from typing import Any

import torch

from motionanim.long_video.common import now

ROUNDS = 8


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product of random values, the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    precision = torch.get_float32_matmul_precision()
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        torch.set_float32_matmul_precision("high")  # convolutions use TF32: a floor without it would be too high
    best = min(_seconds(lambda: a @ b) for _ in range(ROUNDS))
    torch.set_float32_matmul_precision(precision)
    return 2 * size**3 / best


def copy_rate(device: torch.device) -> float:
    """Bytes read and written a second by a large copy within the device's memory, the best of several."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**26, device=device).normal_()
    target = torch.empty_like(source)
    best = min(_seconds(lambda: target.copy_(source)) for _ in range(ROUNDS))
    return 2 * source.numel() * source.element_size() / best


def _seconds(run: Callable[[], Any]) -> float:
    start = now()
    run()
    return now() - start
