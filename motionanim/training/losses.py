"""Training objectives."""

from collections.abc import Callable

from torch import Tensor

from motionanim.models.schedule import loss_weight, per_clip
from motionanim.types import Condition


def denoising_loss(
    denoise: Callable[[Tensor, Tensor, Condition], Tensor],
    latents: Tensor,
    condition: Condition,
    sigma: Tensor,
    noise: Tensor,
    *,
    data_std: float | Tensor = 1.0,
) -> Tensor:
    """Eq. 2 under EDM's weighting.

    Args:
        denoise: Denoiser: (noisy latents, sigma, condition) to denoised latents.
        latents: (B, T, C, h, w), scaled.
        sigma: (B,) noise levels > 0.
        noise: As `latents`, unit normal.
        data_std: As in `to_denoised`.

    Returns:
        (B,): one loss a clip, so that it can be binned by sigma.
    """
    level = per_clip(sigma, latents)
    denoised = denoise(latents + level * noise, sigma, condition)
    weighted = loss_weight(level, data_std=data_std) * (denoised.float() - latents).square()
    return weighted.flatten(1).mean(1)
