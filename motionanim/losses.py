"""Training objectives."""

from collections.abc import Callable

from torch import Tensor

from motionanim.schedule import loss_weight, per_clip
from motionanim.types import Condition


def denoising_loss(
    denoise: Callable[[Tensor, Tensor, Condition], Tensor],
    latents: Tensor,
    condition: Condition,
    sigma: Tensor,
    noise: Tensor,
    *,
    data_std: float = 1.0,
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
    denoised = denoise(latents + per_clip(sigma, latents) * noise, sigma, condition)
    return loss_weight(sigma, data_std=data_std) * (denoised.float() - latents).square().flatten(1).mean(1)
