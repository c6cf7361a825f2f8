"""Temporal attention in windows, for videos longer than the training's (FreeNoise, Qiu et al. 2024)."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from torch import Tensor, nn

from motionanim.models.svd.denoiser import Denoiser


@contextmanager
def temporal_windows(denoiser: Denoiser, size: int, stride: int) -> Iterator[None]:
    """Within the context every temporal self-attention looks at windows of `size` frames, averaged where they overlap.

    A window's frames weigh the more, the nearer they are to its centre (`centred_weights`), as in the authors' code.
    Frame numbers are squeezed into 0 ... size-1, since the position embedding was trained on no others. A clip of
    `size` frames is denoised as without the context.

    Args:
        size: L, frames of a window.
        stride: Frames from one window to the next, in [1, size].
    """
    positions, attentions = [], []
    for name, module in denoiser.unet.named_modules():
        if isinstance(module, TransformerSpatioTemporalModel):
            positions.append(module.time_proj.register_forward_pre_hook(_squeezed(size)))
        elif name.endswith(".attn1") and ".temporal_transformer_blocks." in name:
            attentions.append(module)
            module.forward = _windowed(denoiser, module, size, stride)
    try:
        yield
    finally:
        for hook in positions:
            hook.remove()
        for module in attentions:
            del module.forward  # the class's own shows again
        denoiser.motion.frames = slice(None)


def centred_weights(count: int) -> Tensor:
    """FreeNoise's weights of a window's frames: 1, 2, ... up to the middle and down to 1 again, (count,) float32."""
    place = torch.arange(count, dtype=torch.float32)
    return torch.minimum(place, count - 1 - place) + 1


def _squeezed(size: int):
    def hook(_: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        (frames,) = inputs
        return (frames * ((size - 1) / frames.max().clamp(min=size - 1)),)

    return hook


def _windowed(denoiser: Denoiser, attention: Attention, size: int, stride: int):
    whole = attention.forward

    def forward(hidden_states: Tensor, *args: Tensor | None, **options: Tensor | None) -> Tensor:
        total = hidden_states.shape[1]
        if total <= size:
            return whole(hidden_states, *args, **options)
        starts = [*range(0, total - size, stride), total - size]
        share = centred_weights(size).to(hidden_states)[:, None]
        summed, weights = torch.zeros_like(hidden_states), hidden_states.new_zeros(total, 1)
        for start in starts:
            window = slice(start, start + size)
            denoiser.motion.frames = window
            summed[:, window] += share * whole(hidden_states[:, window], *args, **options)
            weights[window] += share
        denoiser.motion.frames = slice(None)
        return summed / weights

    return forward
