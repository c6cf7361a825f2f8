"""Motion scores of flows whose scores are known."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch import Tensor

from motionanim.metrics.motion import (
    direction_error,
    field_direction_error,
    field_gain,
    flow_epe,
    moved_precision_recall,
    region_flow,
    region_strength,
    requested_region,
    speed_gain,
    static_change,
    static_drift,
    still_region,
)
from motionanim.motion.flow import motion_strength, pixel_grid


def turned(flow: Tensor, degrees: float, factor: float = 1.0) -> Tensor:
    """Every vector of (..., 2, H, W) turned and scaled."""
    x, y = flow.unbind(-3)
    cos, sin = factor * math.cos(math.radians(degrees)), factor * math.sin(math.radians(degrees))
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-3)


def translation() -> Tensor:
    return torch.tensor([1.2, -0.7]).view(1, 2, 1, 1).expand(3, 2, 32, 40).clone()


def wheel() -> Tensor:
    """A disc of radius 12 that turns by 0.1 a frame in a still picture."""
    away = pixel_grid(32, 40) - torch.tensor([19.5, 15.5]).view(2, 1, 1)
    spin = 0.1 * torch.stack([-away[1], away[0]]) * (torch.hypot(*away) <= 12)
    return spin.expand(3, 2, 32, 40).clone()


def swirl() -> Tensor:
    """Turning and running into the middle, each frame slower."""
    away = pixel_grid(32, 40) - torch.tensor([19.5, 15.5]).view(2, 1, 1)
    flow = 0.05 * torch.stack([-away[1], away[0]]) - 0.03 * away
    return torch.stack([flow, 0.9 * flow, 0.8 * flow])


FIELDS = [translation, wheel, swirl]


def test_only_the_region_counts() -> None:
    flow, region = torch.zeros(3, 2, 8, 8), torch.zeros(1, 8, 8)
    flow[:, 0, :, :4], flow[:, 1, :, 4:] = 2.0, 7.0
    region[:, :, :4] = 1
    torch.testing.assert_close(region_flow(flow, region), torch.tensor([2.0, 0.0]))
    with pytest.raises(ValueError, match="empty"):
        region_flow(flow, 0 * region)


@pytest.mark.parametrize("degrees", [0, 30, 90, 135, 180])
def test_angles_of_arrows(degrees: float) -> None:
    realised = torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]) * 3
    assert direction_error(realised, torch.tensor([0.5, 0.0])) == pytest.approx(degrees, abs=0.05)
    assert speed_gain(realised, torch.tensor([0.5, 0.0])) == pytest.approx(
        6 * math.cos(math.radians(degrees)), abs=1e-5
    )
    assert (direction_error(0 * realised, realised), speed_gain(0 * realised, realised)) == (90, 0)


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(FIELDS), st.floats(-180, 180), st.floats(0.05, 5))
def test_a_field_turned_and_scaled(field, degrees, factor) -> None:
    requested = field()
    realised = turned(requested, degrees, factor)
    assert field_direction_error(realised, requested) == pytest.approx(abs(degrees), abs=0.02)
    assert field_gain(realised, requested) == pytest.approx(factor * math.cos(math.radians(degrees)), abs=1e-4)


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_made_exactly_backwards_not_at_all_and_at_random(field) -> None:
    requested = field()
    assert flow_epe(requested, requested) == 0
    assert field_direction_error(-requested, requested) == pytest.approx(180, abs=0.02)
    assert field_gain(-requested, requested) == pytest.approx(-1)
    speed = torch.linalg.vector_norm(requested, dim=1)[requested_region(requested)].mean().item()
    still = torch.zeros_like(requested)
    assert field_direction_error(still, requested) == 90
    assert field_gain(still, requested) == 0
    assert flow_epe(still, requested) == pytest.approx(speed)
    assert flow_epe(1.5 * requested, requested) == pytest.approx(0.5 * speed, rel=1e-5)
    noise = torch.randn(requested.shape, generator=torch.Generator().manual_seed(0))
    assert field_direction_error(noise, requested) == pytest.approx(90, abs=5)
    assert field_gain(noise, requested) == pytest.approx(0, abs=0.1)


def test_a_wheel_has_a_direction_though_its_mean_has_none() -> None:
    requested = wheel()
    assert region_flow(requested, requested_region(requested)[:1].float()).abs().max() < 1e-5
    assert field_direction_error(requested, requested) < 0.05
    opposite = requested.clone()
    opposite[..., 20:] *= -1  # one half turns the wrong way: the mean angle says so
    assert field_direction_error(opposite, requested) == pytest.approx(90, abs=0.1)


def test_still_parts_wild_vectors_and_frames_in_disorder() -> None:
    requested = translation()
    half, wild = requested.clone(), requested.clone()
    half[..., 20:] = 0
    assert field_gain(half, requested) == pytest.approx(0.5)
    assert field_direction_error(half, requested) < 0.05, "a still pixel has no direction"
    wild[:, :, 0, 0] *= -1000
    assert field_direction_error(wild, requested) == pytest.approx(180 / (32 * 40), abs=0.05), "weighs as requested"
    disorder = requested * torch.tensor([5.0, -4.0, 2.0]).view(3, 1, 1, 1)
    assert field_gain(disorder, requested) == pytest.approx(1), "right on average"
    assert field_direction_error(disorder, requested) == pytest.approx(60, abs=0.01)


def test_the_requested_region_follows_the_motion() -> None:
    field = wheel()
    away = torch.hypot(*(pixel_grid(32, 40) - torch.tensor([19.5, 15.5]).view(2, 1, 1)))
    # Typical speed of a disc is 3/4 of its rim's.
    assert torch.equal(requested_region(field)[0], (away <= 12) & (away >= 0.5 * 0.75 * 12 - 0.02))
    swing = translation() * torch.tensor([1.0, 0.1, -1.0]).view(3, 1, 1, 1)
    assert requested_region(swing).flatten(1).float().mean(1).tolist() == [1, 0, 1]
    wild = translation()
    wild[0, :, 3, 3] = 50.0
    assert requested_region(wild).float().mean() > 0.99
    assert not requested_region(torch.zeros(2, 2, 8, 8)).any()


def test_no_request_has_no_score() -> None:
    zero, moving = torch.zeros(3, 2, 32, 40), translation()
    assert all(math.isnan(score(moving, zero)) for score in (flow_epe, field_direction_error, field_gain))
    precision, recall = moved_precision_recall(moving, zero)
    assert precision == 0
    assert math.isnan(recall)


def test_strength_is_equation_8_inside_the_mask() -> None:
    flow, movable = swirl(), torch.zeros(1, 32, 40)
    assert region_strength(flow, torch.ones_like(movable)) == pytest.approx(motion_strength(flow[None]).item())
    movable[..., :10] = 1
    assert region_strength(flow, movable) == pytest.approx(motion_strength(flow[None, ..., :10]).item())
    assert math.isnan(region_strength(flow, torch.zeros_like(movable)))


def bands(size: int, first: float, last: float, speed: float) -> Tensor:
    """Columns from `first` to `last`, shares of the width, move down at `speed`, a share of the width per frame."""
    flow = torch.zeros(2, 2, size, size)
    flow[:, 1, :, round(first * size) : round(last * size)] = speed * size
    return flow


@pytest.mark.parametrize("size", [100, 200])
def test_moved_pixels_are_counted_alike_at_any_resolution(size: int) -> None:
    asked = bands(size, 0.2, 0.6, 0.01)
    # Within 3 % of the width of the 20 to 60 columns lie 30 to 63 of the 30 to 90 that moved.
    assert moved_precision_recall(bands(size, 0.3, 0.9, 0.01), asked) == pytest.approx((33 / 60, 30 / 40))
    assert moved_precision_recall(asked, asked) == (1, 1)
    assert moved_precision_recall(bands(size, 0.57, 0.63, -0.003), asked) == pytest.approx((1, 3 / 40))
    precision, recall = moved_precision_recall(bands(size, 0, 1, 0.0019), asked)
    assert math.isnan(precision)
    assert recall == 0
    precision, recall = moved_precision_recall(asked, bands(size, 0, 1, 0.0019))
    assert precision == 0
    assert math.isnan(recall)


def test_the_still_region_keeps_clear_of_the_mask_and_of_what_is_asked_to_move() -> None:
    movable, requested = torch.zeros(1, 100, 100), torch.zeros(2, 2, 100, 100)
    movable[0, 20:40, 30:50] = 1
    requested[1, 0, 70:75, 90:] = 0.1
    union = (movable[0] > 0).numpy()
    union[70:75, 90:] = True
    expected = ~ndimage.binary_dilation(union, structure=np.ones((7, 7)))
    assert np.array_equal(still_region(requested, movable)[0].numpy(), expected)
    assert not still_region(requested + 0.2, movable).any()


def test_drift_is_measured_outside_the_mask_only() -> None:
    flow, movable = torch.zeros(2, 2, 4, 4), torch.zeros(1, 4, 4)
    flow[:, :, :2], movable[:, :2] = 5.0, 1
    assert static_drift(flow, movable) == 0
    flow[:, 0, 3] = 2.0
    assert static_drift(flow, movable) == pytest.approx(1.0)
    assert math.isnan(static_drift(flow, torch.ones(1, 4, 4)))


def test_change_is_measured_outside_the_mask_only_and_from_frame_0() -> None:
    frames, movable = torch.zeros(5, 3, 4, 4), torch.zeros(1, 4, 4)
    frames[1:, :, :2], movable[:, :2] = 1.0, 1
    assert static_change(frames, movable) == 0
    frames[:, :, 2:] = torch.linspace(0, 0.4, 5).view(5, 1, 1, 1)  # a slow fade
    assert static_change(frames, movable) == pytest.approx(math.sqrt((0.1**2 + 0.2**2 + 0.3**2 + 0.4**2) / 4) / 2)
    assert math.isnan(static_change(frames, torch.ones(1, 4, 4)))
