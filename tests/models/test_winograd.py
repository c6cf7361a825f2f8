"""Winograd's convolutions are the plain ones, up to rounding."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from motionanim.models import winograd
from motionanim.models.winograd import WinogradConv, convolve, winograd_filters

# Width, points, and the bound of the rounding errors: so many times the plain convolution's with random weights.
WAYS = [(3, (1.0,), 1.5), (3, (0.75, 1.5), 2), (5, (0.5, 1.0, 2.0), 4)]


def plainly(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (F.conv2d if x.ndim == 4 else F.conv3d)(x, weight, bias, padding=weight.shape[-1] // 2)


def off(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=3), st.integers(1, 3), st.integers(1, 40), st.integers(0, 99),
    st.sampled_from(WAYS),
)  # fmt: skip
def test_they_are_the_plain_convolution(size: list[int], count: int, channels: int, seed: int, way: tuple) -> None:
    width, points, _ = way
    generator = torch.Generator().manual_seed(seed)
    x, bias = torch.randn(count, channels, *size, generator=generator), torch.randn(7, generator=generator)
    weight = torch.randn(7, channels, *[width] * len(size), generator=generator)
    found = convolve(x, winograd_filters(weight, points), bias, points)
    exact = plainly(x.double(), weight.double(), bias.double())
    assert found.shape == exact.shape
    assert off(found, exact) < 3e-6


@pytest.mark.parametrize("dimensions", [2, 3])
@pytest.mark.parametrize(("width", "points", "times"), WAYS)
def test_rounding_errors_with_random_weights(width: int, points: tuple, times: float, dimensions: int) -> None:
    generator = torch.Generator().manual_seed(0)
    layout = torch.channels_last if dimensions == 2 else torch.channels_last_3d
    x = torch.randn(2, 64, *[12] * dimensions, generator=generator).relu().contiguous(memory_format=layout)
    weight = torch.randn(32, 64, *[width] * dimensions, generator=generator)
    bias = torch.zeros(32)
    exact = plainly(x.double(), weight.double(), bias.double())
    found = convolve(x, winograd_filters(weight, points), bias, points)
    assert off(found, exact) < times * off(plainly(x, weight, bias), exact)
    assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(
    ("plain", "size", "points"),
    [
        (nn.Conv2d(4, 6, 3, padding=1), (4, 6), (0.75, 1.5)),  # 6 products; (1,) takes 8
        (nn.Conv2d(4, 6, 3, padding=1), (6, 6), (1.0,)),  # 12, as the other
        (nn.Conv3d(4, 6, 3, padding=1), (2, 5, 6), (1.0,)),  # 4; the other takes 6
        (nn.Conv2d(4, 6, 5, padding=2), (5, 6), (0.5, 1.0, 2.0)),
    ],
)
def test_only_float32_takes_the_fewest_products_and_the_state_is_the_convolutions(
    plain: nn.Module, size: tuple, points: tuple, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def watched(x: Tensor, filters: list[Tensor], bias: Tensor, points: tuple) -> Tensor:
        taken.append((x.dtype, points))
        return convolve(x, filters, bias, points)

    monkeypatch.setattr(winograd, "convolve", watched)
    layer, x = WinogradConv(plain), torch.randn(2, 4, *size)
    assert layer.state_dict().keys() == plain.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), plain(x))
        assert torch.equal(layer.double()(x.double()), plain.double()(x.double()))
    assert taken == [(torch.float32, points)]


def test_gradients_are_those_of_the_plain_convolution() -> None:
    plain, x = nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 6, requires_grad=True)
    WinogradConv(plain)(x).square().sum().backward()
    found, found_weight = x.grad.clone(), plain.weight.grad.clone()
    x.grad = plain.weight.grad = None
    plain(x).square().sum().backward()
    assert torch.equal(found, x.grad)
    assert torch.equal(found_weight, plain.weight.grad)
    plain.weight.requires_grad_(False)
    plain.bias.grad = None
    WinogradConv(plain)(x.detach()).sum().backward()
    assert torch.equal(plain.bias.grad, torch.full((6,), 60.0))


def test_under_autocast_it_is_the_plain_convolution() -> None:
    plain, x = nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(WinogradConv(plain)(x), plain(x))


def test_loaded_and_rounded_weights_act() -> None:
    layer, other, x = (
        WinogradConv(nn.Conv2d(4, 6, 3, padding=1)),
        nn.Conv2d(4, 6, 3, padding=1),
        torch.randn(2, 4, 5, 6),
    )
    with torch.no_grad():
        layer(x)
        layer.load_state_dict(other.state_dict())
        torch.testing.assert_close(layer(x), other(x))
        torch.testing.assert_close(layer.half().float()(x), other.half().float()(x))


def test_other_layers_do_not_fit() -> None:
    assert WinogradConv.fits(nn.Conv2d(192, 2, 3, padding=1))
    assert WinogradConv.fits(nn.Conv2d(64, 2, 5, padding=2))
    assert WinogradConv.fits(nn.Conv3d(1, 2, 3, padding=1))
    for layer in (
        nn.ReLU(), nn.Conv1d(192, 2, 3, padding=1), nn.Conv2d(192, 2, 3, padding=1, bias=False), nn.Conv2d(192, 2, 3),
        nn.Conv2d(64, 2, 3, padding=1), nn.Conv3d(1, 2, 7, padding=3), nn.Conv2d(192, 2, 3, padding=2),
        nn.Conv2d(192, 2, 1, padding=1), nn.Conv2d(192, 2, (3, 1), padding=1), nn.Conv2d(192, 2, 3, 3, 1),
        nn.Conv2d(192, 2, 3, 1, 3), nn.Conv2d(192, 2, 3, padding=1, groups=2),
        nn.Conv2d(192, 2, 3, padding=1, dilation=2), nn.Conv2d(192, 2, 3, padding=1, padding_mode="reflect"),
    ):  # fmt: skip
        assert not WinogradConv.fits(layer), layer
