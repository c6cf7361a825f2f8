import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from motionanim.evaluation.scores.statistics import fvd_difference, holm, mean_interval, paired_difference, spearman


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30).filter(lambda values: np.std(values) > 1e-3))
def test_it_is_the_interval_of_scipys_t_test(values: list[float]) -> None:
    found = mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-6)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-6)
    assert found.n == len(values)


@pytest.mark.parametrize(
    ("values", "mean", "n"),
    [([], math.nan, 0), ([math.nan], math.nan, 0), ([2.5], 2.5, 1), ([1, math.inf], math.inf, 2)],
)
def test_few_or_infinite_values_have_no_interval(values: list[float], mean: float, n: int) -> None:
    assert mean_interval(values) == pytest.approx((mean, math.nan, math.nan, n), nan_ok=True)


def test_nan_does_not_count_and_tensors_are_taken() -> None:
    assert mean_interval(torch.tensor([1.0, math.nan, 2.0, 3.0])) == mean_interval([1, 2, 3])


def test_spearman_is_of_ranks() -> None:
    x, y = [1.0, 2.0, 3.0, 4.0, 5.0], [2.0, 1.0, 2.0, 5.0, 3.0]
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert spearman(x, y) == pytest.approx(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
    assert spearman([*x, math.nan], [*y, 1.0]) == pytest.approx(spearman(x, y))
    assert math.isnan(spearman(x, [1.0] * 5))
    assert math.isnan(spearman([], []))
    with pytest.raises(ValueError, match="shorter|longer"):
        spearman(x, [1.0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1, width=16), min_size=2, max_size=20))
def test_intervals_stay_in_the_range_and_have_a_width(values: list[float]) -> None:
    found = mean_interval(values, (0.0, 1.0))
    assert 0 <= found.low <= found.mean + 1e-12
    assert found.mean - 1e-12 <= found.high <= 1
    assert found.low < found.high


@pytest.mark.parametrize(("share", "n"), [(1.0, 48), (0.0, 10), (0.5, 6)])
def test_equal_values_have_wilsons_interval(share: float, n: int) -> None:
    found = mean_interval([share] * n, (0.0, 1.0))
    expected = stats.binomtest(round(share * n), n).proportion_ci(0.95, method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    for other in ((-1.0, 1.0), (0.0, math.inf)):
        assert mean_interval([1.0] * n, other)[1:3] == (1.0, 1.0), "no share, but the score of a clip against itself"


def test_paired_differences_are_scipys_t_test() -> None:
    values = np.random.default_rng(0).normal(0.4, 1, 20)
    found, expected = paired_difference([*values, math.nan]), stats.ttest_1samp(values, 0)
    assert (found.p, found.effect, found.n) == pytest.approx((expected.pvalue, values.mean() / values.std(ddof=1), 20))
    few = paired_difference([0.5] * 4)
    assert (few.n, few.p) == (4, 2 * 0.5**4), "four clips that happen to differ alike decide nothing"
    assert paired_difference([0.30000000000000004, 0.3, 0.3]).p == 0.25
    assert paired_difference([1.0] * 20).p == 2 * 0.5**20
    assert paired_difference([0.0] * 4)[3:] == (4, 1.0, 0.0)
    assert math.isnan(paired_difference([1.0]).p)


def test_equal_fvds_do_not_differ_and_groups_without_clips_do_not_count() -> None:
    left_out = [10.0, 12.0, math.nan, 11.0, 9.0]
    share = [0.25, 0.25, 0.0, 0.25, 0.25]
    same = fvd_difference(10.0, left_out, 10.0, left_out, share, 8, corrected=True)
    assert (same.mean, same.p) == (0.0, 1.0)
    shifted = fvd_difference(12.0, [value + 2 for value in left_out], 10.0, left_out, share, 8, corrected=False)
    assert shifted[:4] == (2.0, 2.0, 2.0, 8)
    assert (shifted.p, shifted.effect) == (2 * 0.5**4, 0.2), "four groups"
    assert math.isnan(fvd_difference(1.0, [1.0, 2.0], 2.0, [1.0, 2.0], [0.5, 0.5], 2, corrected=False).p)


def test_the_corrected_difference_is_the_jackknifes() -> None:
    """A bias of 30 / n in one of the two: 3.0 with ten groups of a clip, 30 / 9 without any one of them."""
    found = fvd_difference(5.0 + 3, [5.0 + 30 / 9] * 10, 4.0, [4.0] * 10, [0.1] * 10, 10, corrected=True)
    assert found.mean == pytest.approx(1.0)
    plain = fvd_difference(5.0 + 3, [5.0 + 30 / 9] * 10, 4.0, [4.0] * 10, [0.1] * 10, 10, corrected=False)
    assert plain.mean == pytest.approx(4.0)


def test_holm_leaves_missing_ones_out() -> None:
    assert holm([0.01, math.nan, 0.02, 0.5]) == pytest.approx([0.03, math.nan, 0.04, 0.5], nan_ok=True)
    assert holm([0.04, 0.03]) == pytest.approx([0.06, 0.06]), "never below the one before"
