"""Temporal attention in windows, for videos longer than the training's (FreeNoise, Qiu et al. 2024)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn

from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.motion_adapter import MotionAttention


@contextmanager
def temporal_windows(denoiser: Denoiser, length: int, stride: int) -> Iterator[None]:
    """Within, every temporal self-attention looks at windows of `length` frames, averaged where they overlap.

    The nearer a frame is to the centre of a window, the more it weighs there (`centred_weights`), as in the authors'
    code. Frame numbers are scaled into 0 ... length-1, because the position embedding was trained on no others. A clip
    of `length` frames is denoised as without windows.

    Args:
        length: Frames of a window, the L of training.
        stride: Frames from one window to the next, in [1, length].
    """
    positions, attentions = [], []
    for name, module in denoiser.unet.named_modules():
        if isinstance(module, TransformerSpatioTemporalModel):
            positions.append(module.time_proj.register_forward_pre_hook(_squeezed(length)))
        elif name.endswith(".attn1") and ".temporal_transformer_blocks." in name:
            attentions.append(module)
            module.forward = _windowed(module, length, stride)
    try:
        yield
    finally:
        for hook in positions:
            hook.remove()
        for module in attentions:
            del module.forward  # uncovers the class's own


def centred_weights(count: int) -> Tensor:
    """FreeNoise's weights of a window's frames: 1, 2, ... up to the middle and down to 1 again, (count,) float32."""
    place = torch.arange(count, dtype=torch.float32)
    return torch.minimum(place, count - 1 - place) + 1


def _squeezed(length: int) -> Callable[[nn.Module, tuple[Tensor]], tuple[Tensor]]:
    def hook(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (frames,) = inputs
        return (frames * ((length - 1) / frames.max().clamp(min=length - 1)),)

    return hook


def _windowed(attention: Attention, length: int, stride: int) -> Callable[..., Tensor]:
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
