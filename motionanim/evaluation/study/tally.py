"""Turns votes into shares, win rates, strengths and agreement, without randomness.

Votes of one participant resemble each other, and so do votes on one clip, and a result should hold for other
participants and other clips. The variance is therefore clustered two ways (Cameron, Gelbach & Miller, "Robust Inference
With Multiway Clustering", 2011): between participants plus between clips minus between their cells. A bootstrap over
both would count chance three times where neither matters (Owen, "The pigeonhole bootstrap", 2007).

An interval of estimate +- error would have no width where all votes agree. A share therefore gets Wilson's interval at
the number of independent votes with the same variance, and Student's t with Satterthwaite's degrees of freedom, which
are few with 3 clips. In simulated studies these 95 % intervals covered the truth in 90 to 99 % of cases (10 to 30
participants, 3 to 30 clips, with and without clusters).

Libraries do less: choix fits no ties and gives no intervals, and statsmodels clusters regressions only.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import krippendorff
import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.stats import t as student

from motionanim.evaluation.study.votes import Vote

_LEVEL = 0.95


class Estimate(NamedTuple):
    """A number with its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float
    votes: int


def credits(votes: Sequence[Vote], methods: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Which methods each vote shows, and how they share it.

    Returns:
        (N, K) bool: vote n showed method k. (N, K) float64: the share of vote n that method k gets, 1 if it was chosen
        and 1/m in a tie of m methods; each row sums to 1.
    """
    place = {method: index for index, method in enumerate(methods)}
    shown = np.zeros((len(votes), len(methods)), dtype=bool)
    credit = np.zeros(shown.shape)
    for row, vote in enumerate(votes):
        shown[row, [place[method] for method in vote.shown]] = True
        credit[row] = shown[row] / len(vote.shown) if vote.chosen is None else 0
        if vote.chosen is not None:
            credit[row, place[vote.chosen]] = 1
    return shown, credit


def clustered_variance(
    influence: np.ndarray, participants: Sequence[str], clips: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Two-way clustered variance of estimates whose error is the sum of `influence` over votes.

    Args:
        influence: (N, D).
        participants, clips: N names each.

    Returns:
        (D,) variance, at least that between participants or between clips alone, and (D,) degrees of freedom. NaN with
        fewer than two participants or clips.
    """
    people, scenes = _numbers(participants), _numbers(clips)
    if min(len(set(people)), len(set(scenes))) < 2:
        return np.full(influence.shape[1], np.nan), np.full(influence.shape[1], np.nan)
    (one, more), (two, others) = _between(influence, people), _between(influence, scenes)
    cells, _ = _between(influence, people * (scenes.max() + 1) + scenes)
    variance = np.maximum.reduce([one + two - cells, one, two])
    with np.errstate(invalid="ignore"):
        freedom = (one + two) ** 2 / (one**2 / (more - 1) + two**2 / (others - 1))
    return variance, freedom


def share(credit: np.ndarray, participants: Sequence[str], clips: Sequence[str]) -> Estimate:
    """Mean credit, with Wilson's interval at the number of independent votes of the same clustered variance.

    That number is at most the number of votes. If all credits are equal, it is the number of participants or of clips,
    whichever is smaller, because the votes do not tell how much participants or clips agree by themselves.

    Args:
        credit: (N,) in [0, 1].
    """
    if len(credit) == 0:
        return Estimate(math.nan, math.nan, math.nan, 0)
    value, count = float(credit.mean()), len(credit)
    variance, freedom = (
        float(x[0]) for x in clustered_variance((credit - value)[:, None] / count, participants, clips)
    )
    if math.isnan(variance):
        return Estimate(value, math.nan, math.nan, count)
    least = min(len(set(participants)), len(set(clips)))
    spread = value * (1 - value)
    alike = float(np.ptp(credit)) == 0
    independent = least if alike else min(count, spread / variance) if variance > 0 else count
    z = float(student.ppf((1 + _LEVEL) / 2, least - 1 if alike else freedom if variance > 0 else least - 1))
    scale = 1 + z * z / independent
    centre = (value + z * z / (2 * independent)) / scale
    half = z / scale * math.sqrt(spread / independent + (z / (2 * independent)) ** 2)
    return Estimate(value, max(0.0, centre - half), min(1.0, centre + half), count)


def shares(votes: Sequence[Vote], methods: Sequence[str]) -> dict[str, Estimate]:
    """Mean credit of each method over the votes that showed it."""
    shown, credit = credits(votes, methods)
    return {m: _share(votes, shown[:, k], credit[:, k]) for k, m in enumerate(methods)}


def win_rates(votes: Sequence[Vote], methods: Sequence[str]) -> dict[tuple[str, str], Estimate]:
    """(method, against) -> share of wins in votes that showed only these two, a tie as half; only pairs that met."""
    shown, credit = credits(votes, methods)
    rates = {}
    for a, method in enumerate(methods):
        for b, against in enumerate(methods):
            met = shown[:, a] & shown[:, b] & (shown.sum(1) == 2)
            if a != b and met.any():
                rates[method, against] = _share(votes, met, credit[:, a])
    return rates


def strengths(votes: Sequence[Vote], methods: Sequence[str]) -> dict[str, Estimate]:
    """Strengths in Luce's choice model, which is Bradley-Terry's for two methods.

    Maximum likelihood by Newton's method; a tie counts as its shares of a vote. Unlike shares, strengths do not depend
    on which methods met. They are logarithmic with mean 0: a method d stronger is chosen e^d times as often.

    Raises:
        ValueError: If no finite strengths exist: some split of the methods in two has no votes between its sides, or
            only wins of one side (Ford, "Solution of a ranking problem from binary comparisons", 1957).
    """
    shown, credit = credits(votes, methods)
    beats = (credit[:, :, None] > 0) & shown[:, None, :]
    count, group = connected_components(beats.any(0), connection="strong")
    if count > 1:
        apart = [", ".join(m for m, g in zip(methods, group) if g == number) for number in range(count)]
        raise ValueError(
            f"no finite strengths: of {' | '.join(apart)}, one side never lost to another, or they never met"
        )

    def choice(theta: np.ndarray) -> tuple[np.ndarray, float]:
        logits = np.where(shown, theta, -np.inf)
        logs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
        return np.exp(logs), float((credit * np.where(shown, logs, 0)).sum())

    def solve(chance: np.ndarray, right: np.ndarray) -> np.ndarray:
        # The likelihood does not depend on the mean, so the information matrix is singular. Adding 1 makes it regular
        # and does not change solutions of mean 0.
        return np.linalg.solve(np.diag(chance.sum(0)) - chance.T @ chance + 1, right)

    theta = np.zeros(len(methods))
    chance, likelihood = choice(theta)
    for _ in range(100):
        step = solve(chance, (credit - chance).sum(0))
        # A step of Newton's method can overshoot.
        while (tried := choice(theta + step))[1] < likelihood - 1e-9:
            step = step / 2
        theta, (chance, likelihood) = theta + step, tried
        if np.abs(step).max() < 1e-10:
            break
    theta -= theta.mean()
    influence = solve(chance, (credit - chance).T).T
    variance, freedom = clustered_variance(influence, [v.participant for v in votes], [v.clip for v in votes])
    half = student.ppf((1 + _LEVEL) / 2, freedom) * np.sqrt(variance)
    numbers = shown.sum(0)
    return {
        m: Estimate(float(theta[k]), float(theta[k] - half[k]), float(theta[k] + half[k]), int(numbers[k]))
        for k, m in enumerate(methods)
    }


def agreement(votes: Sequence[Vote]) -> float:
    """Krippendorff's alpha (nominal) of the votes on the same comparison: 1 is agreement, 0 is chance.

    An answer is a tie or a place in the order of the videos' random names. With methods' names as answers, alpha would
    be too high, because nobody can answer "C" to "A or B".

    Returns:
        At most 1; NaN if no comparison has two votes, or all answers are equal.
    """
    answers = 1 + max((len(vote.shown) for vote in votes), default=0)
    counts: dict[str, np.ndarray] = defaultdict(lambda: np.zeros(answers, dtype=int))
    for vote in votes:
        counts[vote.trial][0 if vote.chosen is None else 1 + vote.shown.index(vote.chosen)] += 1
    pairable = np.array([row for row in counts.values() if row.sum() > 1], dtype=int).reshape(-1, answers)
    if pairable.any(0).sum() < 2:
        return math.nan
    return float(krippendorff.alpha(value_counts=pairable, level_of_measurement="nominal"))


def _share(votes: Sequence[Vote], rows: np.ndarray, credit: np.ndarray) -> Estimate:
    chosen = [vote for vote, used in zip(votes, rows) if used]
    return share(credit[rows], [vote.participant for vote in chosen], [vote.clip for vote in chosen])


def _numbers(names: Sequence[str]) -> np.ndarray:
    return np.unique(np.asarray(names), return_inverse=True)[1]


def _between(influence: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, int]:
    """Variance (D,) of a sum over independent groups, and their number."""
    _, index = np.unique(groups, return_inverse=True)
    count = int(index.max()) + 1
    sums = np.zeros((count, influence.shape[1]))
    np.add.at(sums, index, influence)
    return (sums**2).sum(0) * count / max(count - 1, 1), count
