"""Sampling: one loop for every method."""

from collections.abc import Callable

import torch
from torch import Tensor

from motionanim.models.schedule import euler_step, per_clip
from motionanim.types import Condition, Kept

# (z, sigma, condition) to denoised latents; of one that is guided also (..., scale), the guidance of each frame.
Denoise = Callable[..., Tensor]


def guided(denoise: Denoise, *, first: float, last: float, motion: float | None) -> Denoise:
    """Classifier-free guidance: the pair, or the three, run as one batch.

    Unconditional means zero CLIP embedding *and* zero image latents, as in SVD's training.

    Args:
        first: Image guidance at the first frame of a call, however many frames it has; SVD ramps from 1 there ...
        last: ... to 3 at the last frame. A call with `scale`, (T,) or (B, T), has that instead: windows of a long video
            must go on where the one before ended.
        motion: None guides towards image and motion together, as SVD: D(-, m) + s (D(i, m) - D(-, m)). A number gives
            the motion field and strength a scale of their own, on three evaluations, in the manner of InstructPix2Pix
            (Brooks et al. 2023): D(-, -) + s (D(i, -) - D(-, -)) + motion (D(i, m) - D(i, -)).

    Returns:
        A denoiser; `denoise` itself where image guidance is 1 throughout, as that changes nothing.
    """
    if first == last == 1 and motion is None:
        return denoise

    def all_of(condition: Condition) -> Condition:
        still = condition
        if motion is not None:
            off = torch.zeros_like(condition.use_flow)
            still = condition._replace(use_flow=off, use_strength=off)
        without = still._replace(
            image_latents=torch.zeros_like(condition.image_latents),
            image_embed=torch.zeros_like(condition.image_embed),
            predicted=torch.zeros_like(condition.predicted),
        )
        wanted = [without, condition] if motion is None else [without, still, condition]
        return Condition(*map(torch.cat, zip(*wanted, strict=True)))

    count, batches = 2 if motion is None else 3, Kept(all_of)

    def run(z: Tensor, sigma: Tensor, condition: Condition, scale: Tensor | None = None) -> Tensor:
        scale = torch.linspace(first, last, z.shape[1], device=z.device) if scale is None else scale
        copies = z.repeat(count, *[1] * (z.ndim - 1)), sigma.repeat(count, *[1] * (sigma.ndim - 1))
        base, image, *both = denoise(*copies, batches(condition)).chunk(count)
        out = base + scale[..., None, None, None] * (image - base)
        return out + motion * (both[0] - image) if both else out

    return run


@torch.no_grad()
def denoise_from(denoise: Denoise, z: Tensor, sigmas: Tensor, condition: Condition) -> Tensor:
    """Euler steps from sigmas[0] to sigmas[-1] (Karras et al. 2022, Algorithm 2 without churn).

    Args:
        z: (B, T, C, h, w) latents at noise level sigmas[0]; a pure-noise start is noise * sqrt(sigmas[0]^2 + 1).
        sigmas: (S + 1,), falling; to start in the middle of a run pass its tail.

    Returns:
        (B, T, C, h, w) latents at sigmas[-1]. `z` is left as it was.
    """
    sigmas = sigmas.to(z.device)
    for i in range(len(sigmas) - 1):
        sigma = sigmas[i].expand(len(z))
        z = euler_step(z, denoise(z, sigma, condition), sigma, sigmas[i + 1].expand(len(z)))
    return z


def initial_latents(noise: Tensor, sigmas: Tensor) -> Tensor:
    """Unit noise (B, T, C, h, w) to the start of a run, as SVD scales it: times sqrt(sigma_max^2 + 1)."""
    return noise * per_clip((sigmas[:1].to(noise) ** 2 + 1) ** 0.5, noise)
