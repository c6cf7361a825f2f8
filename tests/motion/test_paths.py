"""Fields of whole paths, against sampled distances and closed forms."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from motionanim.motion.paths import nearest_on_path, path_flow
from motionanim.motion.sparse_to_dense import dense_flow

OPTIONS = {"edge": "soft", "sigma": 0.2, "threshold": 0.05, "threshold_on": "weight", "normalized": "exact"}
NO_PINS = torch.empty(0, 2, dtype=torch.float64)


def path(*points):
    return torch.tensor(points, dtype=torch.float64)


@pytest.mark.slow
def test_the_distance_to_a_path_is_that_to_its_nearest_point():
    corners = np.array([[5.5, 4], [30, 12.25], [22, 30], [22, 31]])
    samples = np.concatenate([np.linspace(a, b, 2000) for a, b in pairwise(corners)])
    y, x = np.mgrid[:36, :48]
    expected = np.min((x[..., None] - samples[:, 0]) ** 2 + (y[..., None] - samples[:, 1]) ** 2, axis=-1)
    squared, direction = nearest_on_path(torch.from_numpy(corners), 36, 48)
    np.testing.assert_allclose(squared, expected, atol=0.02)
    assert (direction.norm(dim=0) <= 1 + 1e-5).all()
    dot, none = nearest_on_path(path([7, 9]), 36, 48)
    assert (dot[9, 7], dot[9, 10], dot[13, 10]) == (0, 9, 25)
    assert none.eq(0).all()


def test_on_a_part_of_a_path_its_direction_is_that_of_the_part():
    _, direction = nearest_on_path(path([5, 5], [25, 5], [25, 30], [10, 30]), 36, 40)
    for spots, wanted in (((5, slice(5, 25)), (1, 0)), ((slice(6, 30), 25), (0, 1)), ((30, slice(10, 25)), (-1, 0))):
        found = direction[(slice(None), *spots)]
        np.testing.assert_allclose(found, np.array(wanted)[:, None] * np.ones(found.shape[1]), atol=1e-4)


def test_one_straight_path_is_its_speed_times_the_weight_of_its_distance():
    flow = path_flow([path([20, 15], [40, 15])], [2.5], NO_PINS, torch.ones(1, 50, 60), **OPTIONS)
    y, x = np.mgrid[:50, :60]
    distance = np.hypot(x - np.clip(x, 20, 40), y - 15)
    weight = np.exp(-((distance / 10) ** 2))
    np.testing.assert_allclose(flow[0], 2.5 * weight * (weight > 0.05), atol=1e-4)
    assert flow[1].eq(0).all()


@pytest.mark.parametrize("normalized", [False, True])
def test_far_shorter_than_a_pixel_a_path_is_a_point(normalized):
    starts, vectors = torch.tensor([[12.0, 20.0], [30.0, 8.0]]), torch.tensor([[3.0, 4.0], [0.0, -2.0]])
    mask = (torch.rand(1, 40, 44, generator=torch.Generator().manual_seed(0)) > 0.3).float()
    options = {**OPTIONS, "edge": "cut", "normalized": normalized}
    short = [torch.stack([start, start + 1e-4 * vector]) for start, vector in zip(starts.double(), vectors.double())]
    made = path_flow(short, [5.0, 2.0], NO_PINS, mask, **options)
    expected = dense_flow(starts, vectors, mask, **{k: v for k, v in options.items() if k != "edge"})
    torch.testing.assert_close(made, expected, atol=1e-3, rtol=1e-3)


def test_a_mask_is_filled_however_far_it_goes():
    mask = torch.ones(1, 20, 400)
    mask[:, :2] = 0
    flow = path_flow([path([5, 10], [12, 10])], [1.0], NO_PINS, mask, **OPTIONS)
    torch.testing.assert_close(flow[0], mask[0])
    both = path_flow([path([5, 10], [12, 10]), path([12, 14], [5, 14])], [1.0, 1.0], NO_PINS, mask, **OPTIONS)
    assert both.isfinite().all()
    assert both[0, 10, 5:13].sub(1).abs().max() < 1e-4
    assert both[0, 14, 5:13].add(1).abs().max() < 1e-4


def test_pins_stand_still_and_slow_no_path():
    pins = torch.tensor([[30.0, 17.0], [10.0, 30.0]], dtype=torch.float64)
    flow = path_flow([path([20, 15], [40, 15])], [2.0], pins, torch.ones(1, 50, 60), **OPTIONS)
    assert flow[:, 17, 30].abs().max() < 1e-6
    assert flow[:, 30, 10].abs().max() < 1e-6
    torch.testing.assert_close(flow[0, 15, 20:41], torch.full((21,), 2.0), atol=1e-4, rtol=0)


def test_where_a_path_crosses_itself_it_has_the_mean_of_both_directions():
    crossing = path([10, 20], [30, 20], [30, 10], [20, 10], [20, 40])
    flow = path_flow([crossing], [1.0], NO_PINS, torch.ones(1, 50, 50), **OPTIONS)
    across, down = flow[:, 20, 20].tolist()
    assert across == pytest.approx(20 / 50, abs=0.02), "by the lengths of the two parts"
    assert down == pytest.approx(30 / 50, abs=0.02)


def test_a_circle_of_many_parts_turns_about_its_centre():
    ring = path(*[[32 + 15 * math.cos(a), 32 + 15 * math.sin(a)] for a in np.linspace(0, 2 * math.pi, 65)])
    flow = path_flow([ring], [1.0], NO_PINS, torch.ones(1, 64, 64), **OPTIONS)
    assert flow[:, 32, 32].norm() < 0.02
    for angle in (0.3, 2.0, 4.5):
        x, y = 32 + 15 * math.cos(angle), 32 + 15 * math.sin(angle)
        np.testing.assert_allclose(flow[:, round(y), round(x)], [-math.sin(angle), math.cos(angle)], atol=0.08)
