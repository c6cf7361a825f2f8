"""Skips multiplications by zero, so that a linear code stored in a large network costs only its own work."""

from functools import partial

import torch.nn.functional as F
from diffusers.models.autoencoders.autoencoder_kl_hunyuanimage import (
    HunyuanImageAttentionBlock,
    HunyuanImageResnetBlock,
)
from torch import Tensor, nn


def skip_zeros(network: nn.Module) -> None:
    """Replace layers of `network` whose weights are zero by cheaper ones, in place; outputs stay equal to rounding.

    A residual block whose last layer is all zeros becomes the identity. A 3x3 convolution of which only the centre is
    not zero becomes a 1x1 convolution, a ninth of the work. Parameters and their names stay, and with them
    fingerprints and saved files. The weights must not change afterwards.

    Args:
        network: Any network; blocks of AutoencoderKLHunyuanImage (the embedded base's) and convolutions are replaced.
    """
    for module in network.modules():
        if isinstance(module, HunyuanImageResnetBlock | HunyuanImageAttentionBlock):
            last = module.conv2 if isinstance(module, HunyuanImageResnetBlock) else module.proj
            # A shortcut convolution would be applied to the block's sum: such a block is no identity.
            if getattr(module, "conv_shortcut", None) is None and not last.weight.any() and not last.bias.any():
                module.forward = _identity
        elif isinstance(module, nn.Conv2d) and _only_centre(module):
            module.forward = partial(_pointwise, module)


def _only_centre(conv: nn.Conv2d) -> bool:
    plain = conv.kernel_size == (3, 3) and conv.padding == (1, 1) and conv.stride == conv.dilation == (1, 1)
    if not plain or conv.groups != 1 or conv.padding_mode != "zeros":
        return False
    outer = conv.weight.detach().clone()
    outer[:, :, 1, 1] = 0
    return not outer.any()


# Functions of this module rather than lambdas, so that the network can be sent to other processes.
def _identity(x: Tensor) -> Tensor:
    return x


def _pointwise(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight[:, :, 1:2, 1:2], conv.bias)
