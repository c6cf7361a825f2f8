"""Convolutions of width 3 that take the rows or frames two at a time, for frozen networks on a CPU.

Winograd's minimal filtering F(2, 3) (Lavin and Gray, CVPR 2016) along one axis: two neighbouring results take four
products in place of six. Its rounding errors are somewhat larger than the plain convolution's for random weights (less
than twice in the tests, three times for filters chosen to be bad), and the same for I3D's trained ones.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Input channels of a 2D convolution. On two cores of an EPYC, 256 take .8 of the plain time, 128 the same, 64 longer.
_LEAST_CHANNELS = 192


def pair_filters(weight: Tensor) -> list[Tensor]:
    """The four filters of `convolve_pairs`.

    Args:
        weight: (O, C, 3, 3) of a 2D convolution or (O, C, 3, 3, 3) of a 3D one.

    Returns:
        (O, C, 1, 3) or (O, C, 3, 3) each.
    """
    before, now, after = (
        each.unsqueeze(2) if weight.ndim == 4 else each for each in weight.detach().double().unbind(2)
    )
    filters = before, (before + now + after) / 2, (before - now + after) / 2, after
    return [each.float().contiguous(memory_format=torch.channels_last) for each in filters]


def convolve_pairs(x: Tensor, filters: list[Tensor], bias: Tensor) -> Tensor:
    """A convolution of width 3 on every axis, with stride 1 and padding 1, by pairs along the first axis.

    Args:
        x: (B, C, H, W), or (B, C, T, H, W); float32.
        filters: From `pair_filters`.
        bias: (O,).

    Returns:
        (B, O, H, W) or (B, O, T, H, W), with the channels last in memory.
    """
    length = x.shape[2]
    pairs = (length + 1) // 2
    padded = F.pad(x, [0, 0] * (x.ndim - 3) + [1, 2 * pairs - length + 1]).movedim(1, -1)
    a, b, c, d = (padded[:, k : k + 2 * pairs - 1 : 2] for k in range(4))
    still = x.ndim == 4

    def product(part: Tensor, weight: Tensor, added: Tensor | None = None) -> Tensor:
        pictures = part if still else part.flatten(0, 1)
        found = F.conv2d(pictures.movedim(-1, 1), weight, added, padding=(0, 1) if still else 1).movedim(1, -1)
        return found if still else found.unflatten(0, (-1, pairs))

    found = x.new_empty(len(x), pairs, 2, *x.shape[3:], len(bias))
    first, second = found.unbind(2)
    half, rest = product(b + c, filters[1], bias), product(c - b, filters[2])
    torch.add(half, rest, out=first)
    torch.sub(half, rest, out=second)
    del half, rest
    first += product(a - c, filters[0])
    second -= product(b - d, filters[3])
    return found.flatten(1, 2)[:, :length].movedim(-1, 1)


class PairConv(nn.Module):
    """A convolution with bias, width 3, stride 1 and padding 1 that takes pairs where this is faster.

    That is in float32 on a CPU, without gradients. Elsewhere it is the plain convolution. The state dict is that of the
    convolution.

    Args:
        plain: `nn.Conv2d` or `nn.Conv3d`, which `fits`. Its weights are shared, and change by `load_state_dict` only.
    """

    def __init__(self, plain: nn.Conv2d | nn.Conv3d) -> None:
        super().__init__()
        self.weight, self.bias, self.out_channels = plain.weight, plain.bias, plain.out_channels
        self._filters = pair_filters(plain.weight)
        self.register_load_state_dict_post_hook(_renew)

    @staticmethod
    def fits(layer: nn.Module) -> bool:
        """Whether a layer is such a convolution, and gains: in two dimensions only with many channels."""
        if not isinstance(layer, nn.Conv2d | nn.Conv3d) or layer.bias is None:
            return False
        ones = {*layer.stride, *layer.padding, *layer.dilation, layer.groups}
        gains = isinstance(layer, nn.Conv3d) or layer.in_channels >= _LEAST_CHANNELS
        return {*layer.kernel_size} == {3} and ones == {1} and layer.padding_mode == "zeros" and gains

    def forward(self, x: Tensor) -> Tensor:
        learns = torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad)
        plain = (x.device.type, x.dtype, self.weight.dtype) != ("cpu", torch.float32, torch.float32)
        if learns or plain or x.ndim != self.weight.ndim:
            convolve = F.conv2d if self.weight.ndim == 4 else F.conv3d
            return convolve(x, self.weight, self.bias, padding=1)
        return convolve_pairs(x, self._filters, self.bias)


def _renew(layer: PairConv, _: object) -> None:
    layer._filters = pair_filters(layer.weight)
