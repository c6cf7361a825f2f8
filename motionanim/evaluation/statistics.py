"""How sure a mean over clips is, and how well two orders agree."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, SupportsFloat

import numpy as np
from scipy import stats

LEAST_LEVELS = 5  # of strength, for a rank correlation


class Interval(NamedTuple):
    """A mean and its 95 % interval; NaN where there is none."""

    mean: float
    low: float
    high: float
    n: int  # values that counted


def mean_interval(values: Iterable[SupportsFloat]) -> Interval:
    """Mean and 95 % interval by Student's t over independent values, such as one a clip.

    Args:
        values: One axis, numbers or 0-dimensional tensors. NaN says that a clip has no value: it does not count.

    Returns:
        The interval; low and high are NaN below 2 values or where a value is infinite, the mean is NaN of none.

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
    """Rank correlation in [-1, 1] of pairs, ties by their mean rank. NaN below 2 pairs or where one side is constant.

    Raises:
        ValueError: If one side is longer.
    """
    pairs = np.array([(float(a), float(b)) for a, b in zip(x, y, strict=True)]).reshape(-1, 2)
    pairs = pairs[~np.isnan(pairs).any(1)]
    if len(pairs) < 2 or (pairs == pairs[0]).all(0).any():
        return float("nan")
    return float(stats.spearmanr(pairs[:, 0], pairs[:, 1]).statistic)


def strength_spearman(requested: Sequence[float], realised: Sequence[float]) -> float:
    """Does more strength make more motion? Spearman's rank correlation over runs of one image (Fig. 7).

    Args:
        requested: `requested_strength` of each run, at least `LEAST_LEVELS` different ones.
        realised: `realised_strength` of the same runs.

    Returns:
        In [-1, 1], ties by their mean rank; NaN if all runs move alike.

    Raises:
        ValueError: If there are too few levels, or the two do not pair finite numbers.
    """
    if len(requested) != len(realised) or not np.isfinite([*requested, *realised]).all():
        raise ValueError(f"requested={list(requested)}, realised={list(realised)}: must be finite, one of each a run")
    levels = len(set(requested))
    if levels < LEAST_LEVELS:
        raise ValueError(f"{levels} levels of strength: a rank correlation needs at least {LEAST_LEVELS}; run more")
    return spearman(requested, realised)
