"""Convolutions by pairs are the plain ones, up to rounding."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from motionanim.models import pair_convolution
from motionanim.models.pair_convolution import PairConv, convolve_pairs, pair_filters


def off(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=2, max_size=3), st.integers(1, 3), st.integers(1, 40), st.integers(0, 99)
)  # fmt: skip
def test_pairs_are_the_plain_convolution(size: list[int], count: int, channels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, bias = torch.randn(count, channels, *size, generator=generator), torch.randn(7, generator=generator)
    weight = torch.randn(7, channels, *[3] * len(size), generator=generator)
    found = convolve_pairs(x, pair_filters(weight), bias)
    exact = (F.conv2d if len(size) == 2 else F.conv3d)(x.double(), weight.double(), bias.double(), padding=1)
    assert found.shape == exact.shape
    assert off(found, exact) < 1e-6


@pytest.mark.parametrize("dimensions", [2, 3])
def test_errors_with_random_weights_are_less_than_twice_the_plain_convolutions(dimensions: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 64, *[12] * dimensions, generator=generator).relu()
    weight = torch.randn(32, 64, *[3] * dimensions, generator=generator)
    bias, plain = torch.zeros(32), F.conv2d if dimensions == 2 else F.conv3d
    exact = plain(x.double(), weight.double(), padding=1)
    found = convolve_pairs(x, pair_filters(weight), bias)
    assert off(found, exact) < 2 * off(plain(x, weight, padding=1), exact)
    layout = torch.channels_last if dimensions == 2 else torch.channels_last_3d
    assert found.is_contiguous(memory_format=layout)


def test_only_float32_takes_pairs_and_the_state_is_the_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def watched(x: Tensor, *rest: Tensor) -> Tensor:
        taken.append(x.dtype)
        return convolve_pairs(x, *rest)

    monkeypatch.setattr(pair_convolution, "convolve_pairs", watched)
    for plain, size in ((nn.Conv2d(4, 6, 3, padding=1), (5, 6)), (nn.Conv3d(4, 6, 3, padding=1), (3, 5, 6))):
        layer, x = PairConv(plain), torch.randn(2, 4, *size)
        assert layer.state_dict().keys() == plain.state_dict().keys()
        with torch.no_grad():
            torch.testing.assert_close(layer(x), plain(x))
            assert torch.equal(layer.double()(x.double()), plain.double()(x.double()))
    assert taken == [torch.float32] * 2


def test_gradients_are_those_of_the_plain_convolution() -> None:
    plain, x = nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 6, requires_grad=True)
    PairConv(plain)(x).square().sum().backward()
    found, found_weight = x.grad.clone(), plain.weight.grad.clone()
    x.grad = plain.weight.grad = None
    plain(x).square().sum().backward()
    assert torch.equal(found, x.grad)
    assert torch.equal(found_weight, plain.weight.grad)


def test_loaded_weights_act() -> None:
    layer, other, x = PairConv(nn.Conv2d(4, 6, 3, padding=1)), nn.Conv2d(4, 6, 3, padding=1), torch.randn(2, 4, 5, 6)
    layer.load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(layer(x), other(x))


def test_other_layers_do_not_fit() -> None:
    assert PairConv.fits(nn.Conv2d(192, 2, 3, padding=1))
    assert PairConv.fits(nn.Conv3d(1, 2, 3, padding=1))
    for layer in (
        nn.ReLU(), nn.Conv1d(192, 2, 3, padding=1), nn.Conv2d(192, 2, 3, padding=1, bias=False), nn.Conv2d(192, 2, 3),
        nn.Conv2d(64, 2, 3, padding=1), nn.Conv2d(192, 2, 1, padding=1), nn.Conv2d(192, 2, (3, 1), padding=1),
        nn.Conv2d(192, 2, 3, 3, 1), nn.Conv2d(192, 2, 3, 1, 3), nn.Conv2d(192, 2, 3, padding=1, groups=2),
        nn.Conv2d(192, 2, 3, padding=1, dilation=2), nn.Conv2d(192, 2, 3, padding=1, padding_mode="reflect"),
    ):  # fmt: skip
        assert not PairConv.fits(layer), layer
