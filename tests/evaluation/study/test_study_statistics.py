"""Shares, strengths and agreement of votes, against other computations and by how often their intervals hold."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import binomtest

from motionanim.evaluation.study.tally import agreement, clustered_variance, share, shares, strengths, win_rates
from motionanim.evaluation.study.votes import Vote


def vote(participant, clip, shown, chosen):
    return Vote(f"p{participant}", f"c{clip}", f"{clip} {shown}", "q", tuple(shown), chosen)


def test_best_of_all_strengths_are_logarithms_of_the_shares():
    choices = ["a"] * 5 + ["b"] * 3 + ["c"] * 1 + [None] * 3
    votes = [vote(k % 4, k % 3, "abc", chosen) for k, chosen in enumerate(choices)]
    parts = {method: part.value for method, part in shares(votes, ["a", "b", "c"]).items()}
    assert parts == pytest.approx({"a": 6 / 12, "b": 4 / 12, "c": 2 / 12})
    logs = np.log([6, 4, 2])
    assert [s.value for s in strengths(votes, ["a", "b", "c"]).values()] == pytest.approx(list(logs - logs.mean()))
    assert win_rates(votes, ["a", "b", "c"]) == {}


def test_bradley_terry_agrees_with_a_general_optimiser():
    rng = np.random.default_rng(0)
    methods, true = list("abcd"), np.array([1.5, 0.3, -0.2, -1.6])
    votes = []
    for k in range(400):
        x, y = rng.choice(4, 2, replace=False)
        chance = 1 / (1 + np.exp(true[y] - true[x]))
        chosen = None if rng.random() < 0.1 else methods[x if rng.random() < chance else y]
        votes.append(vote(k % 20, k % 7, methods[x] + methods[y], chosen))

    def loss(free):
        theta = dict(zip(methods, [*free, -sum(free)]))
        total = 0.0
        for v in votes:
            x, y = v.shown
            won = 0.5 if v.chosen is None else float(v.chosen == x)
            total += won * np.logaddexp(0, theta[y] - theta[x]) + (1 - won) * np.logaddexp(0, theta[x] - theta[y])
        return total

    best = minimize(loss, np.zeros(3), method="BFGS", options={"gtol": 1e-8}).x
    fitted = strengths(votes, methods)
    assert [fitted[m].value for m in methods] == pytest.approx([*best, -best.sum()], abs=1e-5)
    assert all(fitted[m].low < fitted[m].value < fitted[m].high for m in methods)


@pytest.mark.parametrize("chosen", [["a", "a", "b", "b"], ["a", "a", "c", "d"]])
def test_strengths_that_would_be_infinite_are_refused(chosen):
    votes = [vote(k, k, pair, c) for k, (pair, c) in enumerate(zip(["ab", "ac", "bd", "cd"], chosen))]
    with pytest.raises(ValueError, match="no finite strengths"):
        strengths(votes, list("abcd"))


def test_alpha_of_the_published_example():
    """Four observers, twelve units, gaps: Krippendorff, "Computing Alpha-Reliability" (2011) gives 0.743."""
    rows = ["123321412...", "1233224125.3", ".3332342251.", "12332441251."]
    units = [[row[k] for row in rows if row[k] != "."] for k in range(12)]
    answers = [(unit, answer) for unit, given in enumerate(units) for answer in given]
    votes = [Vote(f"p{k}", "c", str(unit), "q", tuple("12345"), answer) for k, (unit, answer) in enumerate(answers)]
    assert agreement(votes) == pytest.approx(0.743, abs=5e-4)


def test_alpha_is_1_in_agreement_0_by_chance_and_absent_without_pairs():
    rng = np.random.default_rng(0)
    agreed = [vote(p, c, "ab" if c % 2 else "ba", "a") for p in range(5) for c in range(10)]
    assert agreement(agreed) == 1
    random = [vote(p, c, "ab", "ab"[rng.integers(2)]) for p in range(30) for c in range(60)]
    assert abs(agreement(random)) < 0.02
    assert math.isnan(agreement([vote(0, 0, "ab", "a"), vote(0, 1, "ab", "b")]))
    assert math.isnan(agreement([vote(p, c, "ab", "a") for p in range(2) for c in range(2)]))
    assert math.isnan(agreement([]))


def test_clustered_variance_is_the_sum_over_pairs_of_votes_that_share_a_group():
    rng = np.random.default_rng(0)
    count, error = 60, rng.standard_normal((60, 2))
    people, scenes = rng.integers(0, 7, count), rng.integers(0, 5, count)
    parts = []
    for groups in (people, scenes, people * 100 + scenes):
        same = groups[:, None] == groups[None]
        number = len(set(groups))
        parts.append(np.einsum("id,jd,ij->d", error, error, same) * number / (number - 1))
    expected = np.maximum(np.maximum(parts[0], parts[1]), parts[0] + parts[1] - parts[2])
    variance, freedom = clustered_variance(error, [f"p{k}" for k in people], [f"c{k}" for k in scenes])
    assert variance == pytest.approx(expected)
    assert freedom == pytest.approx((parts[0] + parts[1]) ** 2 / (parts[0] ** 2 / 6 + parts[1] ** 2 / 4))
    assert np.isnan(clustered_variance(error, ["p"] * count, [f"c{k}" for k in scenes])[0]).all()


def test_the_interval_is_wilsons_without_clusters_and_has_a_width_where_all_agree():
    credit = (np.arange(800) % 4 == 0).astype(float)
    own = [str(k) for k in range(800)]
    reference = binomtest(200, 800).proportion_ci(0.95, method="wilson")
    assert share(credit, own, own)[:3] == pytest.approx((0.25, reference.low, reference.high), abs=5e-4)
    people, clips = [f"p{k % 6}" for k in range(24)], [f"c{k // 6}" for k in range(24)]
    part = share(np.ones(24), people, clips)
    assert part.value == part.high == 1
    assert 0.2 < part.low < 0.6  # four clips that agree, not 24 votes
    tied = share(np.full(24, 0.5), people, clips)
    assert tied.low < 0.2
    assert tied.high > 0.8
    alone = share(np.array([1.0, 0.0]), ["p", "p"], ["c", "d"])
    assert (alone.value, alone.votes) == (0.5, 2)
    assert math.isnan(alone.low)


def covers(rng, *, people, clips, spread, level, studies):
    """How often the interval, and Wilson's of independent votes, hold the true share; the intervals' mean width."""
    deviation = math.hypot(*spread)
    points, weights = np.polynomial.hermite_e.hermegauss(60)
    true = float((1 / (1 + np.exp(-(level + deviation * points))) * weights).sum() / weights.sum())
    who, where = np.repeat(np.arange(people), clips), np.tile(np.arange(clips), people)
    names = [f"p{k}" for k in who], [f"c{k}" for k in where]
    ours, naive = 0, 0
    for _ in range(studies):
        taste, scene = rng.standard_normal(people) * spread[0], rng.standard_normal(clips) * spread[1]
        credit = (rng.random(len(who)) < 1 / (1 + np.exp(-(level + taste[who] + scene[where])))).astype(float)
        part = share(credit, *names)
        plain = binomtest(int(credit.sum()), len(credit)).proportion_ci(0.95, method="wilson")
        ours += part.low <= true <= part.high
        naive += plain.low <= true <= plain.high
    return ours / studies, naive / studies


def test_intervals_cover_the_truth_where_those_of_independent_votes_do_not():
    rng = np.random.default_rng(0)
    ours, naive = covers(rng, people=20, clips=12, spread=(0.8, 0.8), level=0.5, studies=300)
    assert 0.9 < ours < 0.99
    assert naive < 0.75


@pytest.mark.slow
@pytest.mark.parametrize("level", [0.0, 1.5])
@pytest.mark.parametrize("spread", [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.7, 0.7)])
@pytest.mark.parametrize(("people", "clips"), [(10, 3), (20, 12), (30, 30)])
def test_intervals_cover_in_many_designs(people, clips, spread, level):
    rng = np.random.default_rng(people)
    ours, _ = covers(rng, people=people, clips=clips, spread=spread, level=level, studies=600)
    assert ours > 0.9


@pytest.mark.slow
def test_intervals_of_strengths_cover_the_truth():
    rng = np.random.default_rng(0)
    methods, true = list("abc"), np.array([0.8, 0.0, -0.8])
    held, studies = 0, 200
    for _ in range(studies):
        votes = []
        for clip in range(10):
            for person in range(12):
                for x, y in combinations(range(3), 2):
                    won = rng.random() < 1 / (1 + np.exp(true[y] - true[x]))
                    votes.append(vote(person, clip, methods[x] + methods[y], methods[x if won else y]))
        held += sum(s.low < t < s.high for s, t in zip(strengths(votes, methods).values(), true))
    assert 0.93 < held / (3 * studies) < 0.995
