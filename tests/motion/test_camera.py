import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motionanim.motion.camera import camera_motion, camera_residual
from motionanim.motion.flow import pixel_grid, resize_flow


def still(height=48, width=64, steps=3):
    return torch.zeros(steps, 2, height, width)


@settings(max_examples=20, deadline=None)
@given(x=st.floats(-4, 4), y=st.floats(-4, 4))
def test_a_pan_scores_its_length_over_the_diagonal(x, y):
    assert camera_residual(still(), None) == pytest.approx(0, abs=1e-9)
    flow = still() + torch.tensor([x, y]).view(2, 1, 1)
    assert camera_residual(flow, None) == pytest.approx(math.hypot(x, y) / math.hypot(48, 64), abs=1e-5)


def test_a_zoom_scores_the_mean_corner_displacement():
    centre = torch.tensor([31.5, 23.5]).view(2, 1, 1)
    flow = 0.02 * (pixel_grid(48, 64) - centre)[None]
    corner = 0.02 * math.hypot(31.5, 23.5)
    assert camera_residual(flow, None) == pytest.approx(corner / math.hypot(48, 64), rel=1e-3)


def test_an_object_over_two_fifths_of_the_picture_does_not_count():
    flow = still()
    flow[:, 0, :, :25] = 3.0
    assert camera_residual(flow, None) < 1e-4
    flow = flow + torch.tensor([1.0, 0.0]).view(2, 1, 1)
    assert camera_residual(flow, None) == pytest.approx(1 / 80, rel=0.02)


def test_the_background_mask_overrules_a_large_object():
    flow = still()
    flow[:, 0, :, :50] = 3.0
    assert camera_residual(flow, None) > 0.03
    background = torch.zeros(48, 64, dtype=torch.bool)
    background[:, 50:] = True
    assert camera_residual(flow, background) < 1e-4
    assert camera_residual(flow, background.expand(3, 48, 64)) < 1e-4


def test_frames_are_measured_one_by_one_so_a_shake_does_not_cancel():
    flow = still(steps=2)
    flow[0, 0], flow[1, 0] = 2.0, -2.0
    assert camera_motion(flow, None).tolist() == pytest.approx([2 / 80, 2 / 80], rel=1e-3)


def test_noise_and_resolution_change_little():
    generator = torch.Generator().manual_seed(0)
    flow = still(96, 128) + torch.tensor([1.5, -0.5]).view(2, 1, 1)
    flow += 0.03 * torch.randn(flow.shape, generator=generator)
    exact = math.hypot(1.5, 0.5) / 160
    assert camera_residual(flow, None) == pytest.approx(exact, rel=0.05)
    assert camera_residual(resize_flow(flow, 48, 64), None) == pytest.approx(exact, rel=0.05)


def test_the_arguments_are_left_alone_and_the_score_repeats():
    generator = torch.Generator().manual_seed(1)
    flow = torch.randn(2, 2, 40, 40, generator=generator)
    before = flow.clone()
    assert torch.equal(camera_motion(flow, None), camera_motion(flow, None))
    assert torch.equal(flow, before)


@pytest.mark.parametrize(
    ("flow", "background", "message"),
    [
        (torch.zeros(2, 8, 8), None, "T-1, 2, H, W"),
        (torch.zeros(0, 2, 8, 8), None, "T >= 2"),
        (torch.full((1, 2, 8, 8), float("nan")), None, "not finite"),
        (torch.zeros(1, 2, 8, 8), torch.ones(4, 8, dtype=torch.bool), "background of shape"),
        (torch.zeros(1, 2, 8, 8), torch.zeros(8, 8, dtype=torch.bool), "background has 0 pixels"),
    ],
)
def test_bad_input_is_named(flow, background, message):
    with pytest.raises(ValueError, match=message):
        camera_motion(flow, background)
