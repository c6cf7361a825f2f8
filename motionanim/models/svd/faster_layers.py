"""Faster forms of layers of SVD's UNet and of the embedded base's VAE, with the same results up to rounding."""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from diffusers.models.autoencoders.autoencoder_kl_hunyuanimage import (
    HunyuanImageAttentionBlock,
    HunyuanImageResnetBlock,
)
from torch import Tensor, nn


def speed_up_unet(unet: UNetSpatioTemporalConditionModel) -> None:
    """Replace the layers in place; parameters and their names stay. Outputs change by float rounding only.

    - Cross-attention to one token, SVD's image embedding (`OneTokenAttention`).
    - A 3D convolution along time becomes a 2D convolution over time and pixels. On a CPU, where PyTorch has no fast
      kernel for the former, it takes 0.6 of the time; on a GPU it is not measured.
    """
    for name, module in unet.named_modules():
        if name.endswith(".attn2"):
            module.set_processor(OneTokenAttention())
        elif isinstance(module, nn.Conv3d) and module.kernel_size[1:] == (1, 1):
            module.forward = partial(_convolve_time, module)


class OneTokenAttention(AttnProcessor2_0):
    """Attention to a single token: the softmax of one score is 1, so every query gets that token's value.

    With gradients it attends as usual, so that the query and key weights get their gradient, which is zero:
    DistributedDataParallel refuses parameters without one.
    """

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        if encoder_hidden_states.shape[1] != 1 or torch.is_grad_enabled():
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, **options)
        value = attn.to_out[0](attn.to_v(encoder_hidden_states))
        return value.expand(-1, hidden_states.shape[1], -1)


def _convolve_time(conv: nn.Conv3d, x: Tensor) -> Tensor:
    flat = F.conv2d(x.flatten(3), conv.weight.flatten(3), conv.bias, padding=(conv.padding[0], 0))
    return flat.unflatten(3, x.shape[3:])


def skip_zeros(network: nn.Module) -> None:
    """Replace layers of `network` whose weights are zero by cheaper ones, in place; outputs stay equal to rounding.

    A linear code stored in a large network then costs only its own work.

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
