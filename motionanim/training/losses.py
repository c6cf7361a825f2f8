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
    sigma_data: float | Tensor = 1.0,
) -> Tensor:
    """Eq. 2 under EDM's weighting.

    Args:
        denoise: `Denoiser`, or another function of noisy latents, sigma and condition.
        latents: (B, T, C, h, w), clean.
        sigma: (B,) noise levels > 0.
        noise: As `latents`, unit normal.
        sigma_data: As in `to_denoised`.

    Returns:
        (B,): one loss a clip, so that losses can be averaged by noise level.
    """
    level = per_clip(sigma, latents)
    denoised = denoise(latents + level * noise, sigma, condition)
    weighted = loss_weight(level, sigma_data=sigma_data) * (denoised.float() - latents).square()
    return weighted.flatten(1).mean(1)
