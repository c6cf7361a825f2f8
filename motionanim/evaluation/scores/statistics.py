"""Intervals of means, differences between methods and their verdicts, and rank correlation."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, SupportsFloat

import numpy as np
import torch
from scipy import stats

from motionanim.metrics.base import Range
from motionanim.metrics.frechet import jackknife

LEAST_LEVELS = 5  # levels of strength that a rank correlation needs
LEVEL = 0.01  # a verdict's chance of a false alarm among all comparisons of one table


class Interval(NamedTuple):
    """A mean and its 95 % interval; NaN where there is none."""

    mean: float
    low: float
    high: float
    n: int  # number of values


class Difference(NamedTuple):
    """The difference of a method to another one on the same clips, with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int  # common clips
    p: float  # two-sided probability of a difference as large where there is none
    effect: float  # Cohen's d of the paired differences; of FVD, the difference as a share of the baseline's value


def mean_interval(values: Iterable[SupportsFloat], bounds: Range | None = None) -> Interval:
    """Mean of independent values, such as one a clip, and its 95 % interval by Student's t.

    Args:
        values: Numbers or 0-dimensional tensors. NaN stands for a missing value and does not count.
        bounds: The least and the greatest legal value. The interval is cut there, because no mean lies beyond. Shares,
            from 0 to 1, that are all equal have Wilson's interval of a proportion (JASA 1927), because t has no width:
            no values in that range vary more than those of a proportion.

    Returns:
        The interval. Low and high are NaN with fewer than 2 values or an infinite one; the mean of no values is NaN.

    Example:
        >>> mean_interval([1.0, 2.0, 3.0, float("nan")])  # t of 2 degrees of freedom is 4.303
        Interval(mean=2.0, low=-0.4841377117..., high=4.4841377117..., n=3)
        >>> mean_interval([1.0] * 48, bounds=(0.0, 1.0))
        Interval(mean=1.0, low=0.925899..., high=1.0, n=48)
    """
    known = _known(values)
    n, nan = len(known), float("nan")
    mean = float(known.mean()) if n else nan
    if n < 2 or not np.isfinite(known).all():
        return Interval(mean, nan, nan, n)
    low, high = bounds if bounds is not None else (-np.inf, np.inf)
    if (low, high) == (0, 1) and np.ptp(known) == 0 and 0 <= mean <= 1:
        z2 = stats.norm.ppf(0.975) ** 2
        middle = (mean + z2 / (2 * n)) / (1 + z2 / n)
        reach = np.sqrt(z2 * (mean * (1 - mean) / n + z2 / (4 * n * n))) / (1 + z2 / n)
        return Interval(mean, *(float(np.clip(middle + side * reach, 0, 1)) for side in (-1, 1)), n)
    reach = float(stats.t.ppf(0.975, n - 1) * known.std(ddof=1) / np.sqrt(n))
    return Interval(mean, max(mean - reach, min(low, mean)), min(mean + reach, max(high, mean)), n)


def paired_difference(differences: Iterable[SupportsFloat]) -> Difference:
    """Mean of a method's scores minus another's on the same clips, by Student's paired t-test.

    Args:
        differences: One a clip; NaN does not count.

    Returns:
        The difference; all but the mean and n are NaN with fewer than 2 clips or an infinite value. p is at least
        2 * 0.5^n, the chance that n differences have one sign: few clips that happen to differ alike decide nothing.
    """
    known, nan = _known(differences), float("nan")
    mean, low, high, n = mean_interval(known)
    if not np.isfinite(low):
        return Difference(mean, nan, nan, n, nan, nan)
    if not known.any():
        return Difference(mean, low, high, n, 1.0, 0.0)
    spread = max(float(known.std(ddof=1)), abs(mean) * np.finfo(float).eps)
    p = 2 * float(stats.t.sf(abs(mean) * np.sqrt(n) / spread, n - 1))
    return Difference(mean, low, high, n, max(p, _least_p(n)), mean / spread)


def fvd_difference(
    value: float, left_out: Sequence[float], other: float, other_left_out: Sequence[float], share: Sequence[float],
    n: int, *, corrected: bool,
) -> Difference:  # fmt: skip
    """FVD of a method minus that of another one on the same clips, by the delete-a-group jackknife of the difference.

    Groups of clips that are hard for both methods move both FVDs alike, so the difference is known far better than
    either. With fewer clips than dimensions the bias of an FVD depends on the method: less varied videos have less of
    it. The difference of uncorrected FVDs then says nothing about the methods, however sure it is.

    Args:
        value, other: The uncorrected FVDs.
        left_out, other_left_out: (G,) the FVDs without each group; NaN for a group without clips.
        share: (G,) the groups' shares of the clips.
        n: Number of clips.
        corrected: Removes the bias in 1/n from the difference; for more clips than dimensions.

    Returns:
        The difference; all but the mean and n are NaN with fewer than 3 groups.
    """
    parts = torch.tensor([left_out, other_left_out, share], dtype=torch.float64)
    parts = parts[:, parts.isfinite().all(0) & (parts[2] > 0)]
    mean, nan, groups = value - other, float("nan"), parts.shape[1]
    if groups < 3:
        return Difference(mean, nan, nan, n, nan, nan)
    without_bias, low, high = jackknife(torch.tensor(mean, dtype=torch.float64), parts[0] - parts[1], parts[2])
    reach, mean = float(high - low) / 2, float(without_bias) if corrected else mean
    effect = mean / other if other else nan
    if reach == 0:
        return Difference(mean, mean, mean, n, 1.0 if mean == 0 else _least_p(groups), effect)
    p = 2 * float(stats.t.sf(abs(mean) / reach * stats.t.ppf(0.975, groups - 1), groups - 1))
    return Difference(mean, mean - reach, mean + reach, n, max(p, _least_p(groups)), effect)


def _least_p(n: int) -> float:
    return min(1.0, 2 * 0.5**n)


def holm(p: Sequence[float]) -> list[float]:
    """Adjusted p-values of several comparisons (Holm, Scand. J. Statistics 1979); NaN stays and does not count.

    With verdicts where the adjusted value is below a level, the chance of any false alarm is at most that level.
    """
    order = [index for index in np.argsort(p) if not np.isnan(p[index])]
    adjusted, most = [float("nan")] * len(p), 0.0
    for position, index in enumerate(order):
        most = max(most, min(1.0, (len(order) - position) * p[index]))
        adjusted[index] = most
    return adjusted


def _known(values: Iterable[SupportsFloat]) -> np.ndarray:
    found = np.array([float(value) for value in values])
    return found[~np.isnan(found)]


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
