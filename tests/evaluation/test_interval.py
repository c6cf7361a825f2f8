import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from motionanim.evaluation.statistics import mean_interval, spearman

numbers = st.floats(-1e6, 1e6)


@settings(max_examples=30, deadline=None)
@given(st.lists(numbers, min_size=2, max_size=30).filter(lambda values: np.std(values) > 1e-3))
def test_it_is_the_interval_of_scipys_t_test(values: list[float]) -> None:
    found = mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert found.mean == pytest.approx(np.mean(values), abs=1e-6)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-6)
    assert found.n == len(values)


def test_it_covers_the_mean_19_times_of_20() -> None:
    samples = np.random.default_rng(0).normal(3, 2, (2000, 5))
    hits = np.mean([low <= 3 <= high for _, low, high, _ in map(mean_interval, samples)])
    assert hits == pytest.approx(0.95, abs=0.015)


def test_nan_does_not_count_and_tensors_are_taken() -> None:
    values = torch.tensor([1.0, math.nan, 2.0, 3.0])
    assert mean_interval(values) == mean_interval([1, 2, 3])
    assert mean_interval(values).n == 3


@pytest.mark.parametrize(("values", "mean", "n"), [([], math.nan, 0), ([math.nan], math.nan, 0), ([2.5], 2.5, 1)])
def test_few_values_have_no_interval(values: list[float], mean: float, n: int) -> None:
    found = mean_interval(values)
    assert found.mean == pytest.approx(mean, nan_ok=True)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.n == n


def test_an_infinite_value_has_a_mean_and_no_interval() -> None:
    found = mean_interval([1.0, math.inf])
    assert found.mean == math.inf
    assert math.isnan(found.low)


def test_spearman_is_of_ranks() -> None:
    x = [1.0, 2.0, 3.0, 4.0, 5.0]
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert spearman(x, [-value for value in x]) == pytest.approx(-1)
    y = [2.0, 1.0, 2.0, 5.0, 3.0]
    assert spearman(x, y) == pytest.approx(np.corrcoef(stats.rankdata(x), stats.rankdata(y))[0, 1])
    assert spearman([*x, math.nan], [*y, 1.0]) == pytest.approx(spearman(x, y))
    assert math.isnan(spearman(x, [1.0] * 5))
    assert math.isnan(spearman([], []))
    with pytest.raises(ValueError, match="shorter|longer"):
        spearman(x, [1.0])
