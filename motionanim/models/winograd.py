"""Convolutions of width 3 and 5 with fewer products, for frozen networks on a CPU.

Winograd's minimal filtering (Lavin and Gray, CVPR 2016) along the first axis only: a polynomial of the rows (or frames)
is evaluated at a few points, convolved there along the other axes, and interpolated. F(4, 3) takes 6 products for 4
rows in place of 12, F(4, 5) 8 in place of 20. With random weights, rounding errors are up to twice the plain
convolution's for width 3 and up to four times for width 5.
"""

from collections.abc import Sequence
from math import prod
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Points p, by the width: the polynomial is evaluated at 0, p, -p and infinity. These have the smallest rounding errors
# of those that are exact in binary. More points save more products and lose more digits. Of two ways with equally many
# products, the first is taken.
_POINTS = {3: ((1.0,), (0.75, 1.5)), 5: ((0.5, 1.0, 2.0),)}
# Input channels times width of a 2D convolution. On two cores of an EPYC, 128 x 3 take .85 of the plain time, 64 x 5
# take .7 and 64 x 3 are slower.
_LEAST_TAPS = 320


def winograd_filters(weight: Tensor, points: Sequence[float]) -> list[Tensor]:
    """The filters of `convolve` at 0, p and -p for each point p, and infinity.

    Args:
        weight: (O, C, K, K) of a 2D convolution or (O, C, K, K, K) of a 3D one, K odd.
        points: Greater than 0 and all different.

    Returns:
        2 * len(points) + 2 filters (O, C, 1, K) or (O, C, K, K).
    """
    taps = [tap.unsqueeze(2) if weight.ndim == 4 else tap for tap in weight.detach().double().unbind(2)]
    filters = [taps[0] / prod(-p * p for p in points)]
    for p in points:
        scale = 2 * p * p * prod(p * p - q * q for q in points if q != p)
        filters += [sum(tap * z**k for k, tap in enumerate(taps)) / scale for z in (p, -p)]
    filters.append(taps[-1])
    return [each.float().contiguous(memory_format=torch.channels_last) for each in filters]


def convolve(x: Tensor, filters: list[Tensor], bias: Tensor, points: Sequence[float]) -> Tensor:
    """A convolution of odd width K on every axis with stride 1 and padding K // 2, by groups along the first axis.

    Args:
        x: (B, C, H, W), or (B, C, T, H, W); float32.
        filters: From `winograd_filters`.
        bias: (O,).
        points: Those of the filters, at least (K - 1) / 2.

    Returns:
        (B, O, H, W) or (B, O, T, H, W), with the channels last in memory.
    """
    width = filters[0].shape[-1]
    count, length, pad, still = len(filters), x.shape[2], width // 2, x.ndim == 4
    group = count - width + 1  # results that are found together
    groups = -(-length // group)
    padded = F.pad(x, [0, 0] * (x.ndim - 3) + [pad, group * groups - length + pad]).movedim(1, -1)
    rows = [padded[:, k : k + group * (groups - 1) + 1 : group] for k in range(count)]

    def product(part: Tensor, weight: Tensor, added: Tensor | None = None) -> Tensor:
        pictures = part if still else part.flatten(0, 1)
        found = F.conv2d(pictures.movedim(-1, 1), weight, added, padding=(0, pad) if still else pad).movedim(1, -1)
        return found if still else found.unflatten(0, (-1, groups))

    every = _from_squares(points)
    added = [
        product(_weighted(rows[0::2], every), filters[0], bias),
        *[bias] * (group - 2),
        product(_weighted(rows[1::2], every), filters[-1], bias),
    ]
    found = x.new_empty(len(x), groups, group, *x.shape[3:], len(bias))
    results = found.unbind(2)
    for number, p in enumerate(points):
        others = _from_squares([q for q in points if q != p])
        even, odd = _weighted(rows[2::2], others), _weighted(rows[1:-1:2], others) * p
        plus, minus = (product(part, filters[2 * number + k]) for k, part in ((1, even + odd), (2, even - odd)))
        halves = plus + minus, plus.sub_(minus)
        for k, result in enumerate(results):
            torch.add(result if number else added[k], halves[k % 2], alpha=p**k, out=result)
    return found.flatten(1, 2)[:, :length].movedim(-1, 1)


def _from_squares(points: Sequence[float]) -> list[float]:
    """Coefficients of the product of (z - p²) over the points, the constant first; the last is 1."""
    coefficients = [1.0]
    for p in points:
        coefficients = [up - p * p * now for up, now in zip([0.0, *coefficients], [*coefficients, 0.0])]
    return coefficients


def _weighted(parts: Sequence[Tensor], coefficients: Sequence[float]) -> Tensor:
    """The sum of parts times coefficients, the last of which is 1. It may be the last part itself."""
    total = parts[-1]
    for part, coefficient in zip(parts[:-1], coefficients[:-1], strict=True):
        total = torch.add(total, part, alpha=coefficient)
    return total


class WinogradConv(nn.Module):
    """A convolution with bias, width 3 or 5, stride 1 and the same size, by `convolve` where this is faster.

    That is in float32 on a CPU, without gradients. Elsewhere it is the plain convolution. The state dict is that of the
    convolution.

    Args:
        plain: `nn.Conv2d` or `nn.Conv3d`, which `fits`. Its weights are shared, and change by `load_state_dict` of this
            layer or of one that holds it, or by a move to another type or device.
    """

    def __init__(self, plain: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias, self.out_channels = plain.weight, plain.bias, plain.out_channels
        self._filters: tuple[tuple[float, ...], list[Tensor]] | None = None  # of the last call: points and filters
        self.register_load_state_dict_post_hook(_forget)

    def _apply(self, *given: Any, **options: Any) -> Self:
        self._filters = None
        return super()._apply(*given, **options)

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Whether a layer is such a convolution, and gains: in two dimensions only with many channels."""
        if not isinstance(layer, nn.Conv2d | nn.Conv3d) or layer.bias is None or layer.padding_mode != "zeros":
            return False
        width = layer.kernel_size[0]
        cube = {*layer.kernel_size} == {width} and {*layer.padding} == {width // 2}
        ones = {*layer.stride, *layer.dilation, layer.groups} == {1}
        gains = isinstance(layer, nn.Conv3d) or layer.in_channels * width >= _LEAST_TAPS
        return width in _POINTS and cube and ones and gains

    def forward(self, x: Tensor) -> Tensor:
        learns = torch.is_grad_enabled() and any(each.requires_grad for each in (x, self.weight, self.bias))
        plain = (x.device.type, x.dtype, self.weight.dtype) != ("cpu", torch.float32, torch.float32)
        plain |= torch.is_autocast_enabled("cpu")
        width = self.weight.shape[-1]
        if learns or plain or x.ndim != self.weight.ndim:
            convolve_plainly = F.conv2d if self.weight.ndim == 4 else F.conv3d
            return convolve_plainly(x, self.weight, self.bias, padding=width // 2)
        points = min(_POINTS[width], key=lambda points: _products(x.shape[2], width, points))
        if self._filters is None or self._filters[0] != points:
            self._filters = points, winograd_filters(self.weight, points)
        return convolve(x, self._filters[1], self.bias, points)


def _forget(layer: WinogradConv, _: object) -> None:
    layer._filters = None


def _products(length: int, width: int, points: Sequence[float]) -> int:
    """Products for so many rows."""
    count = 2 * len(points) + 2
    return count * -(-length // (count - width + 1))
