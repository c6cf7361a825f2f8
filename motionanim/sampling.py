"""Sampling: one loop for every method."""

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from motionanim.schedule import euler_step, per_clip
from motionanim.types import Condition

Denoise = Callable[[Tensor, Tensor, Condition], Tensor]


def guided(denoise: Denoise, scale: Tensor) -> Denoise:
    """Classifier-free guidance: the pair runs as one batch of 2B.

    Args:
        scale: (T,) guidance scale of each frame; SVD ramps it from 1 at the first frame to 3 at the last.

    Returns:
        A denoiser. Unconditional means zero CLIP embedding *and* zero image latents, as in SVD's training; motion and
        time ids stay.
    """

    def run(z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        without = condition._replace(
            image_latents=torch.zeros_like(condition.image_latents),
            image_embed=torch.zeros_like(condition.image_embed),
        )
        pair = Condition(*map(torch.cat, zip(without, condition, strict=True)))
        base, conditional = denoise(torch.cat([z, z]), torch.cat([sigma, sigma]), pair).chunk(2)
        return base + scale.to(z).view(-1, 1, 1, 1) * (conditional - base)

    return run


@torch.no_grad()
def denoise_from(
    denoise: Denoise, z: Tensor, sigmas: Tensor, condition: Condition, *, progress: str | None = None
) -> Tensor:
    """Euler steps from sigmas[0] to sigmas[-1] (Karras et al. 2022, Algorithm 2 without churn).

    Args:
        z: (B, T, C, h, w) latents at noise level sigmas[0]; a pure-noise start is noise * sqrt(sigmas[0]^2 + 1).
        sigmas: (S + 1,), falling; to start in the middle of a run pass its tail.
        progress: Text before a progress bar; None shows none.

    Returns:
        (B, T, C, h, w) latents at sigmas[-1]. `z` is left as it was.
    """
    sigmas = sigmas.to(z.device)
    for i in tqdm(range(len(sigmas) - 1), desc=progress, disable=progress is None, leave=False):
        sigma = sigmas[i].expand(len(z))
        z = euler_step(z, denoise(z, sigma, condition), sigma, sigmas[i + 1].expand(len(z)))
    return z


def initial_latents(noise: Tensor, sigmas: Tensor) -> Tensor:
    """Unit noise (B, T, C, h, w) to the start of a run, as SVD scales it: times sqrt(sigma_max^2 + 1)."""
    return noise * per_clip((sigmas[:1].to(noise) ** 2 + 1) ** 0.5, noise)
