"""Noise levels and the algebra between noisy latents, denoised latents, v and noise (EDM, Karras et al. 2022).

z = z_0 + sigma * noise (Eq. 1 in the variance-exploding form that Stable Video Diffusion uses).
"""

import numpy as np
import torch
from torch import Tensor


def karras_sigmas(num_steps: int, *, sigma_min: float, sigma_max: float, rho: float) -> Tensor:
    """The sigmas of a full run, largest first: (num_steps + 1,) float32; the last one is 0.

    Raises:
        ValueError: If num_steps < 1 or not 0 < sigma_min < sigma_max.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps={num_steps}: a run needs at least 1 denoising step")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(f"sigma_min={sigma_min}, sigma_max={sigma_max}: need 0 < sigma_min < sigma_max")
    ramp = np.linspace(0, 1, num_steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    sigmas = (high + ramp * (low - high)) ** rho
    return torch.from_numpy(np.append(sigmas, 0.0).astype(np.float32))


def per_clip(value: Tensor, like: Tensor) -> Tensor:
    """Reshape (B,), or (B, T), to broadcast over the trailing axes of `like` (B, ...), or (B, T, ...)."""
    return value.view(*value.shape, *[1] * (like.ndim - value.ndim))


def to_denoised(v: Tensor, z: Tensor, sigma: Tensor, *, sigma_data: float | Tensor = 1.0) -> Tensor:
    """Denoised latents from the network's v-prediction: c_out * v + c_skip * z (Karras et al. 2022, Table 1).

    Args:
        sigma_data: Standard deviation of clean latents, 1 for SVD's. A tensor that broadcasts to `z` gives parts of
            the latents their own.
    """
    s = per_clip(sigma, z)
    variance = s**2 + sigma_data**2
    return v * (-s * sigma_data / variance**0.5) + z / (variance / sigma_data**2)


def to_noise(z: Tensor, denoised: Tensor, sigma: Tensor) -> Tensor:
    """The noise in z, given its estimate `denoised`: unit variance, the n(t) of Eq. 10; sigma (B,) > 0."""
    return (z - denoised) / per_clip(sigma, z)


def euler_step(z: Tensor, denoised: Tensor, sigma: Tensor, sigma_next: Tensor) -> Tensor:
    """One Euler step of the probability-flow ODE; all (B, T, ...), sigmas (B,) or (B, T).

    It keeps no state, unlike diffusers' scheduler, which counts its own steps and would use the wrong sigma when a run
    starts in the middle.
    """
    sigma, sigma_next = per_clip(sigma, z), per_clip(sigma_next, z)
    return z + (z - denoised) / sigma * (sigma_next - sigma)


def loss_weight(sigma: Tensor, *, sigma_data: float | Tensor = 1.0) -> Tensor:
    """EDM's weight 1 / c_out^2, under which the loss on v is the same at every noise level.

    Args:
        sigma: Noise levels, in a shape that broadcasts with `sigma_data`.
        sigma_data: As in `to_denoised`.
    """
    return (sigma_data**2 + sigma**2) / (sigma * sigma_data) ** 2
