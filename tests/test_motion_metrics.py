"""Controllability figures on flows whose answer is known."""

import math

import pytest
import torch

from motionanim.metrics.motion import direction_error, region_flow, speed_gain, static_drift


def test_only_the_region_counts() -> None:
    flow, region = torch.zeros(3, 2, 8, 8), torch.zeros(1, 8, 8)
    flow[:, 0, :, :4], flow[:, 1, :, 4:] = 2.0, 7.0
    region[:, :, :4] = 1
    torch.testing.assert_close(region_flow(flow, region), torch.tensor([2.0, 0.0]))
    with pytest.raises(ValueError, match="empty"):
        region_flow(flow, torch.zeros(1, 8, 8))


@pytest.mark.parametrize("degrees", [0, 30, 90, 135, 180])
def test_angles(degrees: float) -> None:
    turned = torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]) * 3
    assert direction_error(turned, torch.tensor([0.5, 0.0])) == pytest.approx(degrees, abs=0.05)
    assert speed_gain(turned, torch.tensor([0.5, 0.0])) == pytest.approx(6 * math.cos(math.radians(degrees)), abs=1e-5)


def test_nothing_moved_is_the_worst_direction() -> None:
    assert direction_error(torch.zeros(2), torch.tensor([1.0, 0.0])) == 180
    assert speed_gain(torch.zeros(2), torch.tensor([1.0, 0.0])) == 0


def test_drift_is_measured_outside_the_mask_only() -> None:
    flow, movable = torch.zeros(2, 2, 4, 4), torch.zeros(1, 4, 4)
    flow[:, :, :2], movable[:, :2] = 5.0, 1
    assert static_drift(flow, movable) == 0
    flow[:, 0, 3] = 2.0
    assert static_drift(flow, movable) == pytest.approx(1.0)
    assert math.isnan(static_drift(flow, torch.ones(1, 4, 4)))
