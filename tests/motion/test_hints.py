import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motionanim.media.visualize import flow_to_rgb
from motionanim.motion.sparse_to_dense import along_path, arrow_vectors, dense_flow

PAPER = {"sigma": 170 / 512, "threshold": 0.05, "threshold_on": "weight", "normalized": False}


def reference(points, vectors, mask, *, sigma, threshold, threshold_on, normalized):
    """Eq. 6 and 7 pixel by pixel."""
    height, width = mask.shape
    flow = np.zeros((2, height, width))
    for y in range(height):
        for x in range(width):
            weights = [math.exp(-(((x - px) ** 2 + (y - py) ** 2) / (sigma * height) ** 2)) for px, py in points]
            value = sum((w * np.asarray(v) for w, v in zip(weights, vectors)), np.zeros(2))
            if normalized:
                value = value / max(sum(weights), 1e-300)
            size = sum(weights) if threshold_on == "weight" else math.hypot(*value)
            if size > threshold and mask[y, x]:
                flow[:, y, x] = value
    return flow


@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("threshold_on", ["weight", "magnitude"])
@pytest.mark.parametrize("count", [0, 1, 4])
def test_dense_flow_equals_the_equations_pixel_by_pixel(count, threshold_on, normalized):
    rng = np.random.default_rng(count)
    points, vectors = rng.uniform(0, 12, (count, 2)), rng.normal(0, 1, (count, 2))
    mask = rng.random((10, 14)) > 0.3
    options = {"sigma": 0.2, "threshold": 0.3, "threshold_on": threshold_on, "normalized": normalized}
    flow = dense_flow(
        torch.from_numpy(points), torch.from_numpy(vectors), torch.from_numpy(mask)[None].double(), **options
    )
    assert flow.shape == (2, 10, 14)
    np.testing.assert_allclose(flow, reference(points, vectors, mask, **options), atol=1e-12)


def test_one_arrow_is_exact_at_its_point_and_falls_to_1_over_e_at_sigma():
    flow = dense_flow(torch.tensor([[20.0, 15.0]]), torch.tensor([[-2.0, 1.0]]), torch.ones(1, 60, 60), **PAPER)
    torch.testing.assert_close(flow[:, 15, 20], torch.tensor([-2.0, 1.0]))
    reach = dense_flow(
        torch.tensor([[20.0, 15.0]]), torch.tensor([[1.0, 0.0]]), torch.ones(1, 60, 60), **{**PAPER, "sigma": 0.25}
    )
    torch.testing.assert_close(reach[0, 15, 35], torch.tensor(math.exp(-1)))


def test_leftward_and_upward_arrows_survive_the_threshold():
    for vector in ([-1.0, 0.0], [0.0, -1.0], [-1.0, -1.0]):
        for threshold_on in ("weight", "magnitude"):
            flow = dense_flow(
                torch.tensor([[8.0, 8.0]]),
                torch.tensor([vector]),
                torch.ones(1, 16, 16),
                **{**PAPER, "threshold_on": threshold_on},
            )
            torch.testing.assert_close(flow[:, 8, 8], torch.tensor(vector))


def test_the_reach_of_a_weight_threshold_is_independent_of_the_speed_and_the_magnitude_s_is_not():
    def moving(speed: float, threshold_on: str) -> int:
        flow = dense_flow(
            torch.tensor([[32.0, 32.0]]),
            torch.tensor([[speed, 0.0]]),
            torch.ones(1, 64, 64),
            sigma=0.2,
            threshold=0.05,
            threshold_on=threshold_on,
            normalized=False,
        )
        return int((flow != 0).any(0).sum())

    assert moving(0.1, "weight") == moving(5.0, "weight")
    assert moving(0.1, "magnitude") < moving(5.0, "magnitude")


def test_arrows_add_up_in_print_and_average_when_normalized():
    points, vectors = torch.tensor([[5.0, 5.0], [5.0, 5.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    mask = torch.ones(1, 10, 10)
    assert dense_flow(points, vectors, mask, **PAPER)[0, 5, 5] == 2
    assert dense_flow(points, vectors, mask, **{**PAPER, "normalized": True})[0, 5, 5] == 1


def test_far_from_all_points_a_normalized_flow_is_finite():
    options = {"sigma": 0.01, "threshold": 0.0, "threshold_on": "weight", "normalized": True}
    flow = dense_flow(torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]]), torch.ones(1, 100, 100), **options)
    assert flow.isfinite().all()
    assert flow[:, 99, 99].eq(0).all()


def test_a_hint_looks_alike_at_twice_the_resolution():
    points, vectors = torch.tensor([[10.0, 12.0], [20.0, 4.0]]), torch.tensor([[1.0, 0.5], [-1.0, 0.0]])
    small = dense_flow(points, vectors, torch.ones(1, 32, 32), **PAPER)
    large = dense_flow(2 * points, 2 * vectors, torch.ones(1, 64, 64), **PAPER)
    torch.testing.assert_close(large[:, ::2, ::2], 2 * small)


@pytest.mark.parametrize("threshold_on", ["weight", "magnitude"])
def test_the_exact_average_equals_its_formula_pixel_by_pixel(threshold_on):
    rng = np.random.default_rng(3)
    points, vectors = rng.uniform(0, 12, (4, 2)), rng.normal(0, 1, (4, 2))
    vectors[3] = 0  # a pin
    options = {"sigma": 0.2, "threshold": 0.3, "threshold_on": threshold_on, "normalized": "exact"}
    flow = dense_flow(torch.from_numpy(points), torch.from_numpy(vectors), torch.ones(1, 10, 14).double(), **options)
    expected = np.zeros((2, 10, 14))
    for y in range(10):
        for x in range(14):
            near = np.array([math.exp(-(((x - px) ** 2 + (y - py) ** 2) / (0.2 * 10) ** 2)) for px, py in points])
            value = (near / (1 - near)) @ vectors / (near / (1 - near)).sum()
            size = near[:3].sum() if threshold_on == "weight" else math.hypot(*value)
            expected[:, y, x] = value * (size > 0.3)
    np.testing.assert_allclose(flow, expected, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 8), sigma=st.floats(0.02, 2))
def test_the_exact_average_meets_every_point_and_never_exceeds_them(seed, count, sigma):
    rng = np.random.default_rng(seed)
    places = rng.choice(16 * 24, count, replace=False)
    x, y = places % 24, places // 24
    vectors = torch.from_numpy(rng.normal(0, 1, (count, 2)) * (rng.random((count, 1)) > 0.3)).float()
    options = {"sigma": sigma, "threshold": 0.0, "threshold_on": "weight", "normalized": "exact"}
    flow = dense_flow(torch.from_numpy(np.stack([x, y], 1)).float(), vectors, torch.ones(1, 16, 24), **options)
    assert flow.isfinite().all()
    torch.testing.assert_close(flow[:, y, x].T, vectors, atol=1e-6, rtol=0)
    low, high = vectors.amin(0).clamp(max=0), vectors.amax(0).clamp(min=0)
    assert (flow >= low.view(2, 1, 1) - 1e-5).all()
    assert (flow <= high.view(2, 1, 1) + 1e-5).all()


def test_one_arrow_is_the_same_averaged_and_exact_and_two_at_one_place_average():
    options, mask = {**PAPER, "normalized": True}, torch.ones(1, 20, 20)
    point, vector = torch.tensor([[4.0, 5.0]]), torch.tensor([[1.0, -2.0]])
    exact = dense_flow(point, vector, mask, **{**options, "normalized": "exact"})
    torch.testing.assert_close(exact, dense_flow(point, vector, mask, **options))
    both = dense_flow(
        point.repeat(2, 1), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), mask, **{**options, "normalized": "exact"}
    )
    torch.testing.assert_close(both[:, 5, 4], torch.tensor([0.5, 0.5]))


def test_a_pin_does_not_make_motion_reach_farther():
    options = {**PAPER, "sigma": 0.1, "normalized": "exact"}
    alone = dense_flow(torch.tensor([[20.0, 30.0]]), torch.tensor([[1.0, 0.0]]), torch.ones(1, 60, 60), **options)
    pinned = dense_flow(
        torch.tensor([[20.0, 30.0], [31.0, 30.0]]),
        torch.tensor([[1.0, 0.0], [0.0, 0.0]]),
        torch.ones(1, 60, 60),
        **options,
    )
    assert not (pinned.ne(0) & alone.eq(0)).any()
    assert alone[0, 30, 29] > 0.9
    assert pinned[0, 30, 29] < 0.1


def test_a_point_goes_along_its_path_at_one_speed():
    path = torch.tensor([[0.0, 0.0], [3.0, 4.0], [3.0, 9.0]], dtype=torch.float64)
    share = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.5], dtype=torch.float64)
    expected = [[0, 0], [1.5, 2], [3, 4], [3, 6.5], [3, 9], [3, 14]]
    np.testing.assert_allclose(along_path(path, share), expected, atol=1e-12)


@pytest.mark.parametrize(
    "bad",
    [{"sigma": 0.0}, {"sigma": -1.0}, {"threshold": -0.1}, {"threshold_on": "component"}, {"normalized": "mean"}],
)
def test_dense_flow_names_a_bad_option(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        dense_flow(torch.zeros(1, 2), torch.zeros(1, 2), torch.ones(1, 4, 4), **{**PAPER, **bad})


def test_an_arrow_spans_the_whole_clip():
    vectors = arrow_vectors(torch.tensor([[10.0, 20.0]]), torch.tensor([[34.0, 8.0]]), num_frames=25)
    assert vectors.tolist() == [[1.0, -0.5]]
    with pytest.raises(ValueError, match="num_frames=1"):
        arrow_vectors(torch.zeros(1, 2), torch.zeros(1, 2), num_frames=1)


def test_colours_follow_the_direction_and_zero_is_white():
    right, down, left, up = (
        flow_to_rgb(torch.tensor(vector, dtype=torch.float32).view(2, 1, 1))[:, 0, 0]
        for vector in ([1, 0], [0, 1], [-1, 0], [0, -1])
    )
    torch.testing.assert_close(right, torch.tensor([1.0, -1.0, -1.0]))  # red
    assert down[0] > 0.5  # yellow: red and green without blue
    assert down[1] > 0
    assert down[2] == -1
    assert left[0] == -1  # cyan to blue: no red
    assert left[2] > 0.9
    assert up[2] > 0.5  # violet: blue above red, no green
    assert up[1] == -1
    assert flow_to_rgb(torch.zeros(3, 2, 4, 4)).eq(1).all()


def test_the_length_is_the_saturation_on_a_stated_scale():
    flow = torch.tensor([1.0, 0.0]).view(2, 1, 1)
    half, full, beyond = (flow_to_rgb(flow * factor, largest=2.0)[:, 0, 0] for factor in (1, 2, 4))
    torch.testing.assert_close(half, torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(full, torch.tensor([1.0, -1.0, -1.0]))
    assert torch.equal(full, beyond)
    with pytest.raises(ValueError, match="largest=0"):
        flow_to_rgb(flow, largest=0)


def test_the_colour_wheel_is_continuous_and_in_range():
    angles = torch.linspace(0, 2 * math.pi, 721)
    picture = flow_to_rgb(torch.stack([angles.cos(), angles.sin()])[:, None], largest=1.0)
    assert picture.min() >= -1
    assert picture.max() <= 1
    assert picture.diff(dim=-1).abs().max() < 0.1
