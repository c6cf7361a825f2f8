"""Intervals of means, and rank correlation."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, SupportsFloat

import numpy as np
from scipy import stats

LEAST_LEVELS = 5  # levels of strength that a rank correlation needs


class Interval(NamedTuple):
    """A mean and its 95 % interval; NaN where there is none."""

    mean: float
    low: float
    high: float
    n: int  # number of values


def mean_interval(values: Iterable[SupportsFloat]) -> Interval:
    """Mean of independent values, such as one a clip, and its 95 % interval by Student's t.

    Args:
        values: Numbers or 0-dimensional tensors. NaN stands for a missing value and does not count.

    Returns:
        The interval. Low and high are NaN with fewer than 2 values or an infinite one; the mean of no values is NaN.

    Example:
        >>> mean_interval([1.0, 2.0, 3.0, float("nan")])  # t of 2 degrees of freedom is 4.303
        Interval(mean=2.0, low=-0.4841377117..., high=4.4841377117..., n=3)
    """
    known = np.array([float(value) for value in values])
    known = known[~np.isnan(known)]
    n, nan = len(known), float("nan")
    mean = float(known.mean()) if n else nan
    if n < 2 or not np.isfinite(known).all():
        return Interval(mean, nan, nan, n)
    reach = float(stats.t.ppf(0.975, n - 1) * known.std(ddof=1) / np.sqrt(n))
    return Interval(mean, mean - reach, mean + reach, n)


def spearman(x: Iterable[SupportsFloat], y: Iterable[SupportsFloat]) -> float:
    """Spearman's rank correlation in [-1, 1], ties by their mean rank; NaN below 2 pairs or if a side is constant.

    Pairs with a NaN do not count.

    Raises:
        ValueError: If one side is longer.
    """
    pairs = np.array([(float(a), float(b)) for a, b in zip(x, y, strict=True)]).reshape(-1, 2)
    pairs = pairs[~np.isnan(pairs).any(1)]
    if len(pairs) < 2 or (pairs == pairs[0]).all(0).any():
        return float("nan")
    return float(stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic)


def strength_spearman(requested: Sequence[float], realised: Sequence[float]) -> float:
    """Spearman's rank correlation of requested and realised strength over runs of one image (Fig. 7).

    Args:
        requested: `requested_strength` of each run, at least `LEAST_LEVELS` different values.
        realised: `realised_strength` of the same runs.

    Returns:
        In [-1, 1]; NaN if all runs have the same realised strength.

    Raises:
        ValueError: If there are too few levels, or the two are not finite numbers of the same length.
    """
    if len(requested) != len(realised) or not np.isfinite([*requested, *realised]).all():
        raise ValueError(f"requested={list(requested)}, realised={list(realised)}: must be finite, one of each a run")
    levels = len(set(requested))
    if levels < LEAST_LEVELS:
        raise ValueError(f"{levels} levels of strength: a rank correlation needs at least {LEAST_LEVELS}; run more")
    return spearman(requested, realised)
