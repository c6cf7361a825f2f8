"""Temporal attention of FreeLong (Lu et al., NeurIPS 2024): coarse structure from all frames, detail from near ones."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.motion_adapter import MotionAttention
from motionanim.models.svd.windowed_attention import Forward, temporal_attention


@contextmanager
def spectral_blend(denoiser: Denoiser, length: int, *, d_s: float, d_t: float) -> Iterator[None]:
    """Within, every temporal self-attention is FreeLong's SpectralBlend temporal attention.

    It attends twice with the same weights: over all frames (global) and over `local_frames` (local). Its output has the
    low frequencies of the global result and the high frequencies of the local one, in the 3D Fourier transform over
    time, height and width (`low_pass`). At the UNet's largest resolution it is the local result alone, as in the
    authors' code. A clip of `length` frames is denoised as without.

    Args:
        length: L, frames of training and of the local window.
        d_s, d_t: As in `low_pass`.
    """

    def blended(attention: Attention) -> Forward:
        whole = attention.forward

        def forward(hidden_states: Tensor, **options: Tensor | None) -> Tensor:
            total = hidden_states.shape[1]
            if total <= length:
                return whole(hidden_states, **options)
            mask = local_frames(total, length).to(hidden_states.device)
            if not isinstance(attention.processor, MotionAttention):
                # diffusers' own processor repeats a smaller mask in memory.
                mask = mask.expand(len(hidden_states) * attention.heads, -1, -1)
            local = whole(hidden_states, **options | {"attention_mask": mask})
            clips, _, height, width = denoiser.motion.now.image_latents.shape
            if len(hidden_states) == clips * height * width:
                return local
            while len(hidden_states) < clips * height * width:  # a stage has half the sides of the one before
                height, width = -(-height // 2), -(-width // 2)
            everywhere = whole(hidden_states, **options)
            low = low_pass((height, width, total), d_s=d_s, d_t=d_t).to(local.device)
            maps = (part.unflatten(0, (clips, height, width)).float() for part in (everywhere, local))
            return blend(*maps, low).flatten(0, 2).to(local)

        return forward

    with temporal_attention(denoiser, length, blended):
        yield


def local_frames(total: int, length: int) -> Tensor:
    """(total, total) booleans, what each frame sees: frames at most length // 2 away, and `length` at either end."""
    place, reach = torch.arange(total), length // 2
    first = (place - reach).clamp(0, total - length)
    last = (place + reach).clamp(length - 1, total - 1)
    return (place >= first[:, None]) & (place <= last[:, None])


def low_pass(shape: tuple[int, int, int], *, d_s: float, d_t: float) -> Tensor:
    """FreeLong's Gaussian filter exp(-(f_t^2 / d_t^2 + (f_x^2 + f_y^2) / d_s^2) / 2), f in shares of the Nyquist limit.

    Args:
        shape: (h, w, T).
        d_s: Cut-off in space, at least 0; 0 passes nothing, as in the authors' code, and infinity passes all.
        d_t: Cut-off in time, likewise.

    Returns:
        (h, w, T // 2 + 1), the frequencies of `torch.fft.rfftn`. The authors' filter is the same where all sizes are
        even; at an odd size theirs is half a step off centre.
    """
    height, width, total = shape
    if d_s == 0 or d_t == 0:
        return torch.zeros(height, width, total // 2 + 1)
    y, x, t = torch.fft.fftfreq(height), torch.fft.fftfreq(width), torch.fft.rfftfreq(total)
    square = (y[:, None, None] ** 2 + x[:, None] ** 2) / d_s**2 + t**2 / d_t**2
    return torch.exp(-2 * square)  # torch counts cycles per sample: the Nyquist limit is 1/2


def blend(coarse: Tensor, fine: Tensor, low: Tensor) -> Tensor:
    """The frequencies of `coarse` where `low` is 1 and of `fine` where it is 0, all (B, h, w, T, C) float32."""
    axes = (1, 2, 3)
    spectrum = torch.fft.rfftn(coarse - fine, dim=axes) * low[..., None]
    return fine + torch.fft.irfftn(spectrum, s=fine.shape[1:4], dim=axes)
