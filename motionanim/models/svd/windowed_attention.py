"""Temporal attention for videos longer than in training: FreeNoise's windows (Qiu et al. 2024), and what others share.

SVD embeds the number of each frame, 0 ... L-1 in training, by a sinusoid and two learned layers, and adds it before the
temporal block. Frame numbers of a longer video are scaled into that range, because the layers have seen no others.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn

from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.motion_adapter import MotionAttention

Forward = Callable[..., Tensor]


@contextmanager
def temporal_attention(denoiser: Denoiser, length: int, replaced: Callable[[Attention], Forward]) -> Iterator[None]:
    """Within, every temporal self-attention has another forward, and frame numbers are scaled into 0 ... length-1.

    Args:
        length: L, frames of training.
        replaced: The new forward of an attention. It takes (B * pixels, T, channels).
    """
    hooks, attentions = [], []
    for transformer in denoiser.unet.modules():
        if isinstance(transformer, TransformerSpatioTemporalModel):
            hooks.append(transformer.time_proj.register_forward_pre_hook(_squeezed(length)))
            for block in transformer.temporal_transformer_blocks:
                block.attn1.forward = replaced(block.attn1)
                attentions.append(block.attn1)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for attention in attentions:
            del attention.forward  # uncovers the class's own


@contextmanager
def temporal_windows(denoiser: Denoiser, length: int, stride: int) -> Iterator[None]:
    """Within, every temporal self-attention looks at windows of `length` frames, averaged where they overlap.

    The nearer a frame is to the centre of a window, the more it weighs there (`centred_weights`), as in the authors'
    code. They average before the output projection, which gives the same, because it is linear and the weights add up
    to 1. Their version for AnimateDiff numbers the frames of each window anew, which takes the whole temporal block
    into the windows; on the embedded base the video is no better. A clip of `length` frames is denoised as without
    windows.

    Args:
        length: Frames of a window, the L of training.
        stride: Frames from one window to the next, in [1, length].
    """
    with temporal_attention(denoiser, length, lambda attention: _windowed(attention, length, stride)):
        yield


def centred_weights(count: int) -> Tensor:
    """FreeNoise's weights of a window's frames: 1, 2, ... up to the middle and down to 1 again, (count,) float32."""
    place = torch.arange(count, dtype=torch.float32)
    return torch.minimum(place, count - 1 - place) + 1


def _squeezed(length: int) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    def hook(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (frames,) = inputs
        return (frames * ((length - 1) / frames.max().clamp(min=length - 1)),)

    return hook


def _windowed(attention: Attention, length: int, stride: int) -> Forward:
    whole = attention.forward

    def forward(hidden_states: Tensor, *args: Tensor | None, **options: Tensor | None) -> Tensor:
        total = hidden_states.shape[1]
        if total <= length:
            return whole(hidden_states, *args, **options)
        starts = [*range(0, total - length, stride), total - length]
        share = centred_weights(length).to(hidden_states)[:, None]
        summed, weights = torch.zeros_like(hidden_states), hidden_states.new_zeros(total, 1)
        for start in starts:
            window = slice(start, start + length)
            place = {"frames": window} if isinstance(attention.processor, MotionAttention) else {}
            summed[:, window] += share * whole(hidden_states[:, window], *args, **options, **place)
            weights[window] += share
        return summed / weights

    return forward
