"""Eq. 5-7 against loops over pixels and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motionanim.motion.paths import path_flow
from motionanim.motion.sparse_to_dense import along_path, arrow_vectors, bounded_flow, dense_flow

PAPER = {"sigma": 170 / 512, "threshold": 0.05, "threshold_on": "weight", "normalized": False}


def dense(points, vectors, mask=None, size=(60, 60), **changes):
    mask = torch.ones(1, *size) if mask is None else mask
    return dense_flow(torch.as_tensor(points), torch.as_tensor(vectors), mask, **PAPER | changes)


def reference(points, vectors, mask, *, sigma, threshold, threshold_on, normalized):
    """Eq. 6 and 7 pixel by pixel; points with a zero vector are pins, whose weight does not count for R."""
    height, width = mask.shape
    flow = np.zeros((2, height, width))
    for y in range(height):
        for x in range(width):
            near = np.array([math.exp(-(((x - px) ** 2 + (y - py) ** 2) / (sigma * height) ** 2)) for px, py in points])
            weights = near / (1 - near) if normalized == "exact" else near
            value = weights @ vectors if len(points) else np.zeros(2)
            if normalized:
                value = value / max(weights.sum(), 1e-300)
            moving = near[np.any(vectors != 0, axis=1)] if normalized == "exact" else near
            size = moving.sum() if threshold_on == "weight" else math.hypot(*value)
            if size > threshold and mask[y, x]:
                flow[:, y, x] = value
    return flow


@pytest.mark.parametrize("normalized", [False, True, "exact"])
@pytest.mark.parametrize("threshold_on", ["weight", "magnitude"])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_dense_flow_equals_the_equations_pixel_by_pixel(count, threshold_on, normalized):
    rng = np.random.default_rng(count)
    points, vectors = rng.uniform(0, 12, (count, 2)), rng.normal(0, 1, (count, 2))
    vectors[3:] = 0  # a pin
    mask = rng.random((10, 14)) > 0.3
    options = {"sigma": 0.2, "threshold": 0.3, "threshold_on": threshold_on, "normalized": normalized}
    flow = dense(points, vectors, torch.from_numpy(mask)[None].double(), **options)
    np.testing.assert_allclose(flow, reference(points, vectors, mask, **options), atol=1e-9)


def test_one_arrow_is_met_at_its_point_and_falls_to_1_over_e_at_sigma():
    for vector in ([-2.0, 1.0], [-1.0, 0.0], [0.0, -1.0]):
        for threshold_on in ("weight", "magnitude"):
            flow = dense([[20.0, 15.0]], [vector], threshold_on=threshold_on)
            torch.testing.assert_close(flow[:, 15, 20], torch.tensor(vector))
    flow = dense([[20.0, 15.0]], [[1.0, 0.0]], sigma=0.25)
    torch.testing.assert_close(flow[0, 15, 35], torch.tensor(math.exp(-1)))


def test_the_reach_depends_on_the_speed_only_with_a_threshold_on_the_magnitude():
    def moving(speed: float, threshold_on: str) -> int:
        return int(dense([[32.0, 32.0]], [[speed, 0.0]], sigma=0.2, threshold_on=threshold_on).ne(0).any(0).sum())

    assert moving(0.1, "weight") == moving(5.0, "weight")
    assert moving(0.1, "magnitude") < moving(5.0, "magnitude")


def test_arrows_at_one_place_add_up_in_print_and_average_when_normalized():
    points = [[5.0, 5.0], [5.0, 5.0]]
    for normalized, wanted in ((False, [1.0, 1.0]), (True, [0.5, 0.5]), ("exact", [0.5, 0.5])):
        flow = dense(points, [[1.0, 0.0], [0.0, 1.0]], normalized=normalized)
        torch.testing.assert_close(flow[:, 5, 5], torch.tensor(wanted))
    one = [dense(points[:1], [[1.0, -2.0]], normalized=each) for each in (True, "exact")]
    torch.testing.assert_close(*one)


def test_far_from_all_points_a_normalized_flow_is_finite():
    flow = dense([[0.0, 0.0]], [[1.0, 1.0]], size=(100, 100), sigma=0.01, threshold=0.0, normalized=True)
    assert flow.isfinite().all()
    assert flow[:, 99, 99].eq(0).all()


def test_a_flow_looks_alike_at_twice_the_resolution():
    points, vectors = torch.tensor([[10.0, 12.0], [20.0, 4.0]]), torch.tensor([[1.0, 0.5], [-1.0, 0.0]])
    large = dense(2 * points, 2 * vectors, size=(64, 64))
    torch.testing.assert_close(large[:, ::2, ::2], 2 * dense(points, vectors, size=(32, 32)))


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 8), sigma=st.floats(0.02, 2))
def test_the_exact_average_meets_every_point_and_never_exceeds_them(seed, count, sigma):
    rng = np.random.default_rng(seed)
    places = rng.choice(16 * 24, count, replace=False)
    x, y = places % 24, places // 24
    vectors = torch.from_numpy(rng.normal(0, 1, (count, 2)) * (rng.random((count, 1)) > 0.3)).float()
    points = torch.from_numpy(np.stack([x, y], 1)).float()
    flow = dense(points, vectors, size=(16, 24), sigma=sigma, threshold=0.0, normalized="exact")
    assert flow.isfinite().all()
    torch.testing.assert_close(flow[:, y, x].T, vectors, atol=1e-6, rtol=0)
    low, high = vectors.amin(0).clamp(max=0), vectors.amax(0).clamp(min=0)
    assert (flow >= low.view(2, 1, 1) - 1e-5).all()
    assert (flow <= high.view(2, 1, 1) + 1e-5).all()


def test_a_pin_does_not_make_motion_reach_farther():
    options = {"sigma": 0.1, "normalized": "exact"}
    alone = dense([[20.0, 30.0]], [[1.0, 0.0]], **options)
    pinned = dense([[20.0, 30.0], [31.0, 30.0]], [[1.0, 0.0], [0.0, 0.0]], **options)
    assert not (pinned.ne(0) & alone.eq(0)).any()
    assert alone[0, 30, 29] > 0.9
    assert pinned[0, 30, 29] < 0.1


def test_a_point_follows_its_path_at_constant_speed():
    path = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 9.0]], dtype=torch.float64)
    share = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.5], dtype=torch.float64)
    expected = [[0, 0], [1.5, 2], [3, 4], [3, 6.5], [3, 9], [3, 14]]
    np.testing.assert_allclose(along_path(path, share), expected, atol=1e-12)


@pytest.mark.parametrize(
    "bad",
    [{"sigma": 0.0}, {"threshold": -0.1}, {"threshold_on": "component"}, {"normalized": "mean"}, {"edge": "hard"}],
)
def test_a_bad_option_is_named(bad):
    options, mask, point = {"edge": "cut"} | PAPER | bad, torch.ones(1, 4, 4), torch.zeros(1, 2)
    with pytest.raises(ValueError, match=next(iter(bad))):
        bounded_flow(point, point, mask, **options)
    with pytest.raises(ValueError, match=next(iter(bad))):
        path_flow([torch.eye(2)], [1.0], point, mask, **options)


def test_an_arrow_spans_the_whole_clip():
    vectors = arrow_vectors(torch.tensor([[10.0, 20.0]]), torch.tensor([[34.0, 8.0]]), num_frames=25)
    assert vectors.tolist() == [[1.0, -0.5]]
    with pytest.raises(ValueError, match="num_frames=1"):
        arrow_vectors(torch.zeros(1, 2), torch.zeros(1, 2), num_frames=1)
