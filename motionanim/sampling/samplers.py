"""Solvers of the probability-flow ODE by name: `sampling.sampler`.

Each takes (denoise, z, sigmas, watch) and integrates from sigmas[0] to sigmas[-1]:

    denoise: A function of noisy latents (B, T, C, h, w) and noise levels (B,) that returns the denoised latents.
    z: (B, T, C, h, w) at noise level sigmas[0]. It is left as it was.
    sigmas: (S + 1,), falling; to start in the middle of a run pass its tail.
    watch: Is called at each step with its number, z, and the estimate there; or None.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from motionanim.models.schedule import euler_step, per_clip

Denoise = Callable[[Tensor, Tensor], Tensor]
Watch = Callable[[int, Tensor, Tensor], None]


@torch.no_grad()
def euler(denoise: Denoise, z: Tensor, sigmas: Tensor, watch: Watch | None = None) -> Tensor:
    """First order (Karras et al. 2022, Algorithm 2 without churn and correction), as SVD."""
    for step, sigma, below in _levels(z, sigmas):
        denoised = denoise(z, sigma)
        if watch is not None:
            watch(step, z, denoised)
        z = euler_step(z, denoised, sigma, below)
    return z


@torch.no_grad()
def heun(denoise: Denoise, z: Tensor, sigmas: Tensor, watch: Watch | None = None) -> Tensor:
    """Second order by a second call at the end of each step (Karras et al. 2022, Algorithm 2 without churn)."""
    for step, sigma, below in _levels(z, sigmas):
        denoised = denoise(z, sigma)
        if watch is not None:
            watch(step, z, denoised)
        ahead = euler_step(z, denoised, sigma, below)
        if sigmas[step + 1] > 0:
            slope = (z - denoised) / per_clip(sigma, z)
            slope_ahead = (ahead - denoise(ahead, below)) / per_clip(below, z)
            ahead = z + (slope + slope_ahead) / 2 * per_clip(below - sigma, z)
        z = ahead
    return z


@torch.no_grad()
def dpmpp_2m(denoise: Denoise, z: Tensor, sigmas: Tensor, watch: Watch | None = None) -> Tensor:
    """DPM-Solver++(2M) (Lu et al. 2022, Algorithm 2): second order at one call a step, from the last step's estimate.

    The first step and the one to sigma 0 are of first order, as in diffusers.
    """
    before = width = None
    for step, sigma, below in _levels(z, sigmas):
        denoised = denoise(z, sigma)
        if watch is not None:
            watch(step, z, denoised)
        if sigmas[step + 1] == 0:
            return denoised
        last, width = width, per_clip((sigma / below).log(), z)
        slope = 0 if before is None else (denoised - before) * (width / (2 * last))
        z = per_clip(below / sigma, z) * z - torch.expm1(-width) * (denoised + slope)
        before = denoised
    return z


SAMPLERS = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m}


def sampler_calls(name: str, steps: int) -> int:
    """Calls of the denoiser that a run of `steps` steps to sigma 0 takes."""
    return max(0, 2 * steps - 1) if name == "heun" else steps


def initial_latents(noise: Tensor, sigmas: Tensor) -> Tensor:
    """Unit noise (B, T, C, h, w) to the start of a run, as SVD scales it: times sqrt(sigma_max^2 + 1)."""
    return noise * per_clip((sigmas[:1].to(noise) ** 2 + 1) ** 0.5, noise)


def holding(denoise: Callable[..., Tensor], known: Tensor, where: Tensor) -> Callable[..., Tensor]:
    """Inpainting: replaces the estimate by `known` where `where` is true, so that those latents end exactly at `known`.

    Args:
        denoise: A function of latents (k * B, T, C, h, w), noise levels and more.
        known: (B, 1 or T, C, h, w), for each of the k segments or windows.
        where: Booleans that broadcast to `known`, with the same number of axes.
    """

    def run(z: Tensor, *others: Tensor | None) -> Tensor:
        times = (len(z) // len(known), 1, 1, 1, 1)
        return torch.where(where.repeat(times), known.repeat(times), denoise(z, *others))

    return run


def _levels(z: Tensor, sigmas: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Number, noise level (B,) and next noise level (B,) of each step."""
    sigmas = sigmas.to(z.device)
    for step in range(len(sigmas) - 1):
        yield step, sigmas[step].expand(len(z)), sigmas[step + 1].expand(len(z))
