"""Classifier-free guidance."""

from collections.abc import Callable

import torch
from torch import Tensor

from motionanim.models.svd.denoiser import Denoiser
from motionanim.types import Condition

# (z, sigma, scale) to denoised latents; `scale` is the guidance of each frame, (T,) or (B, T), or None.
Estimate = Callable[[Tensor, Tensor, Tensor | None], Tensor]


def unguided(denoiser: Denoiser, condition: Condition, *, most: int | None = None) -> Estimate:
    """The denoiser under a condition, whose context is computed once, here.

    Args:
        most: Clips of one call of the network, at least 1: more are computed in several calls of nearly equal size.
            None takes all at once.
    """
    count = len(condition.fps)
    calls = 1 if most is None else -(-count // most)
    if calls == 1:
        context = denoiser.context(condition)
        return lambda z, sigma, scale=None: denoiser(z, sigma, context)
    contexts = [denoiser.context(Condition(*part)) for part in zip(*(field.chunk(calls) for field in condition))]

    def run(z: Tensor, sigma: Tensor, scale: Tensor | None = None) -> Tensor:
        parts = zip(z.chunk(calls), sigma.chunk(calls), contexts, strict=True)
        return torch.cat([denoiser(*part) for part in parts])

    return run


def guided(
    denoiser: Denoiser, condition: Condition, *, first: float, last: float, motion: float | None,
    most: int | None = None,
) -> Estimate:  # fmt: skip
    """Classifier-free guidance: the pair of evaluations, or the three, runs as one batch.

    Unconditional means without the image, all of it, as in SVD's training.

    Args:
        first: Image guidance at the first frame of a call, however many frames it has; SVD ramps from 1 there ...
        last: ... to 3 at the last frame. `scale` takes the place of this ramp, because windows of a long video must go
            on where the one before ended.
        motion: None guides towards image and motion together, as SVD: D(-, m) + s (D(i, m) - D(-, m)). A number gives
            the motion field and strength a scale of their own, on three evaluations, in the manner of InstructPix2Pix
            (Brooks et al. 2023): D(-, -) + s (D(i, -) - D(-, -)) + motion (D(i, m) - D(i, -)).
        most: As in `unguided`.

    Returns:
        The guided denoiser under `condition`; `unguided` where image guidance is 1 throughout, which changes nothing.
    """
    if first == last == 1 and motion is None:
        return unguided(denoiser, condition, most=most)
    off = torch.zeros_like(condition.fps)
    still = condition if motion is None else condition._replace(use_flow=off, use_strength=off)
    without = still._replace(use_image=off)
    batch = [without, condition] if motion is None else [without, still, condition]
    count, estimate = len(batch), unguided(denoiser, Condition.cat(batch), most=most)

    def run(z: Tensor, sigma: Tensor, scale: Tensor | None = None) -> Tensor:
        scale = torch.linspace(first, last, z.shape[1], device=z.device) if scale is None else scale
        copies = z.repeat(count, *[1] * (z.ndim - 1)), sigma.repeat(count, *[1] * (sigma.ndim - 1))
        base, image, *both = estimate(*copies, None).chunk(count)
        out = base + scale[..., None, None, None] * (image - base)
        return out + motion * (both[0] - image) if both else out

    return run
