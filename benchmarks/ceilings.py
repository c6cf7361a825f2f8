"""Measures the two ceilings of a device: its rate of multiplications and its rate of copying memory."""

from collections.abc import Callable
from typing import Any

import torch

from motionanim.cli.progress import now

ROUNDS = 8
LONG = 1.0  # s; a slow device is not measured for longer than this


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product of random values, the best of several."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    precision = torch.get_float32_matmul_precision()
    if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
        torch.set_float32_matmul_precision("high")  # as convolutions use TF32, a floor without it would be too high
    best = _best(lambda: a @ b)
    torch.set_float32_matmul_precision(precision)
    return 2 * size**3 / best


def copy_rate(device: torch.device) -> float:
    """Bytes per second read and written by a large copy within the device's memory, the best of several."""
    source = torch.empty(2**30 if device.type == "cuda" else 2**26, device=device).normal_()
    target = torch.empty_like(source)
    best = _best(lambda: target.copy_(source))
    return 2 * source.numel() * source.element_size() / best


def _best(run: Callable[[], Any]) -> float:
    """Seconds of the fastest of a few runs."""
    run()  # the first call loads libraries
    times: list[float] = []
    while len(times) < ROUNDS and sum(times) < LONG:
        start = now()
        run()
        times.append(now() - start)
    return min(times)
