"""Arithmetic that measures: the same on every machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Neither half precision from whoever measures while training, nor TF32, a GPU's default for convolutions."""
    with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
