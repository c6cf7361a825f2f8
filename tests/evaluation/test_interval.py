import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from motionanim.evaluation.statistics import mean_interval, spearman


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
