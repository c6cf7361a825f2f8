"""Devices, tolerances and the comparison of the tests marked `gpu`.

Such a test takes the fixture `device`, "cpu" or "cuda", and compares results of that device with the CPU's in float32.
On the CPU it compares float32 with itself, which checks the test, and lower precisions with float32.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest
import torch
from conftest import MOTION, make_condition
from torch import Tensor, nn

from motionanim.models.svd.denoiser import Denoiser
from motionanim.types import Condition

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)

# Relative error of float32 arithmetic in another order: 2^-24 per rounding, times the depth of a network. Measured on a
# CPU without oneDNN, which sums in another order: 5e-7 for one pass, 5e-6 with guidance, 3e-6 for gradients.
FLOAT32 = 1e-4
# The same for many passes in a row; measured: 3e-6 to 1e-5.
SAMPLED = 1e-3
# Three times the errors measured on a CPU: 0.006 (denoiser) and 0.011 (decoder) in bfloat16, whose spacing is
# 2^-8 = 0.004, and 0.0007 in float16, with 2^-11 = 0.0005. A layer rounds by half a spacing at most; the roundings of
# all layers add up like a random walk.
ROUNDED = {torch.float32: FLOAT32, torch.bfloat16: 3e-2, torch.float16: 2e-3}

Fields = TypeVar("Fields", bound=tuple)
Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def on(name: str) -> Iterator[str]:
    """A device without TF32, the 10-bit default of a GPU's convolutions. Skips the test if there is no such device."""
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield name
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


def check_close(
    record_property: Callable[[str, object], None], got: Tensor | Iterable[Tensor], expected: Tensor | Iterable[Tensor],
    tolerance: float,
) -> None:  # fmt: skip
    """Assert ||got - expected|| <= tolerance ||expected||, several tensors being one vector; record both numbers."""
    got, expected = _vector(got), _vector(expected)
    assert got.shape == expected.shape
    assert got.isfinite().all(), "NaN or infinite"
    assert expected.any(), "nothing is expected, so there is nothing to compare"
    error = (torch.linalg.vector_norm(got - expected) / torch.linalg.vector_norm(expected)).item()
    record_property("error", error)
    record_property("tolerance", tolerance)
    assert error <= tolerance, f"relative error {error:.3g}, tolerance {tolerance:.3g}"


def _vector(values: Tensor | Iterable[Tensor]) -> Tensor:
    values = [values] if isinstance(values, Tensor) else values
    return torch.cat([value.detach().to("cpu", torch.float64).flatten() for value in values])


def moved(module: Module, device: str, dtype: torch.dtype = torch.float32) -> Module:
    """A copy on a device, with the same weights."""
    return copy.deepcopy(module).to(device, dtype)


def sent(batch: Fields, device: str) -> Fields:
    return type(batch)(*(field.to(device) for field in batch))


def awake(module: Module, *, std: float = 0.1) -> Module:
    """Replace weights that are zero before training by random ones, in place: zeros hide the layers before them."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * std)
    return module


def trained_denoiser(base, **motion) -> Denoiser:
    """A denoiser of the tiny base whose motion conditioning does something."""
    torch.manual_seed(0)
    denoiser = Denoiser.from_pretrained(base, downscale=2, motion=MOTION | motion).eval()
    awake(denoiser.motion)
    return denoiser


def noisy(per_frame: bool = False) -> tuple[Tensor, Tensor, Condition]:
    """Inputs of a denoiser: latents, noise levels of clips or of frames, condition."""
    sigma = torch.tensor([0.7, 20.0])
    if per_frame:
        sigma = sigma[:, None] * torch.tensor([0.1, 0.3, 1.0, 3.0, 10.0])
    levels = sigma.view(*sigma.shape, *[1] * (5 - sigma.ndim))
    noise = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return noise * (levels**2 + 1) ** 0.5, sigma, make_condition()
