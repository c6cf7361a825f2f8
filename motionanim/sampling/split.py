"""Where the segments of a long video part from one another within a run."""

import math

import torch
from torch import Tensor


def phase_split(num_steps: int, gamma: float) -> int:
    """Denoising steps M that later segments inherit from segment 1 (Sec. 3.4).

    The paper prints floor brackets and says "upward rounding": rounded up, after rounding the product to 9 decimals,
    because 0.28 * 25 is 7.000000000000001 in binary.

    Args:
        num_steps: T.
        gamma: Share of the T steps inherited, in [0, 1]; 1 copies segment 1.

    Returns:
        M, in [0, T].

    Raises:
        ValueError: If gamma is outside [0, 1].

    Example:
        >>> phase_split(num_steps=25, gamma=0.8)
        20
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma={gamma}: must be in [0, 1], the share of the denoising steps that segments inherit")
    return math.ceil(round(gamma * num_steps, 9))


def split_at(sigmas: Tensor, *, gamma: float | None, sigma: float | None) -> tuple[Tensor, int]:
    """Noise levels of a run that is split at a share of its steps or at a noise level; exactly one is given.

    Args:
        sigmas: (T + 1,), falling to 0.
        gamma: As in `phase_split`.
        sigma: The noise level. Between two levels of the grid it becomes a level of its own, one step more, because
            grids are coarse: that of 8 steps goes from 2.33 to 0.66.

    Returns:
        The noise levels of the run, `sigmas` or one more, and M, the steps before the split. Their M-th level is the
        split; it is `sigma`, or the largest of `sigmas` where that is lower.

    Raises:
        ValueError: If both or none are given, or one is out of range.
    """
    if (gamma is None) == (sigma is None):
        raise ValueError(f"gamma={gamma}, sigma={sigma}: give one of the two, the other is then null by itself")
    if gamma is not None:
        return sigmas, phase_split(len(sigmas) - 1, gamma)
    if not sigma >= 0:
        raise ValueError(f"sigma={sigma}: must be at least 0, the noise level at which segments part")
    level = sigmas.new_tensor([sigma])
    split = int((sigmas > level).sum())
    if split == 0 or sigmas[split] == level:
        return sigmas, split
    return torch.cat([sigmas[:split], level, sigmas[split:]]), split
