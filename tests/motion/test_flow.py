import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from motion_fields import smooth

from motionanim.motion.flow import integrate_flow, motion_strength, pixel_grid, resize_flow, trace_back, warp


def uniform(x: float, y: float, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.tensor([x, y]).view(2, 1, 1).expand(*shape[:-3], 2, *shape[-2:]).clone()


def test_pixel_grid_has_x_first_and_y_down():
    grid = pixel_grid(3, 5)
    assert grid.shape == (2, 3, 5)
    assert grid[:, 2, 4].tolist() == [4, 2]
    assert grid[:, 0, 0].tolist() == [0, 0]


def test_warp_by_nothing_is_the_identity():
    image = torch.randn(2, 3, 7, 11, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(warp(image, torch.zeros(2, 2, 7, 11)), image, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dx", "dy"), [(2, 0), (0, 1), (-1, 2)])
def test_warp_by_whole_pixels_samples_the_shifted_pixel_and_repeats_the_border(dx, dy):
    image = torch.randn(1, 3, 8, 9, generator=torch.Generator().manual_seed(1))
    rows = (np.arange(8) + dy).clip(0, 7)
    columns = (np.arange(9) + dx).clip(0, 8)
    expected = image[:, :, rows][:, :, :, columns]
    torch.testing.assert_close(warp(image, uniform(dx, dy, (1, 2, 8, 9))), expected, atol=1e-5, rtol=0)


def test_warp_interpolates_a_linear_image_exactly():
    image = (3 * pixel_grid(9, 9)[:1] + pixel_grid(9, 9)[1:])[None]
    moved = warp(image, uniform(0.25, 0.5, (1, 2, 9, 9)))
    torch.testing.assert_close(moved[..., :8, :8], image[..., :8, :8] + 0.75 + 0.5, atol=1e-4, rtol=0)


def test_warp_keeps_the_type_and_its_arguments():
    image, displacement = torch.rand(1, 3, 4, 4).bfloat16(), torch.ones(1, 2, 4, 4)
    before = image.clone(), displacement.clone()
    assert warp(image, displacement).dtype == torch.bfloat16
    assert warp(torch.ones(1, 1, 1, 5), torch.zeros(1, 2, 1, 5)).eq(1).all(), "a single row"
    assert torch.equal(image, before[0])
    assert torch.equal(displacement, before[1])


@settings(max_examples=25, deadline=None)
@given(x=st.floats(-3, 3, width=32), y=st.floats(-3, 3, width=32), steps=st.integers(1, 6))
def test_integrating_a_uniform_flow_multiplies_it_by_the_time(x, y, steps):
    offsets = integrate_flow(uniform(x, y, (1, steps, 2, 6, 8)))
    assert offsets.shape == (1, steps + 1, 2, 6, 8)
    expected = torch.stack([uniform(-t * x, -t * y, (1, 2, 6, 8)) for t in range(steps + 1)], dim=1)
    torch.testing.assert_close(offsets, expected, atol=1e-4, rtol=1e-5)


def wheel(size: int, angle: float, radius: float) -> tuple[torch.Tensor, torch.Tensor]:
    """The step (2, size, size) that turns what is within `radius` of the centre, and each pixel's place from there."""
    grid = pixel_grid(size, size) - (size - 1) / 2
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    return torch.einsum("ij,jhw->ihw", turn - torch.eye(2), grid) * (grid.norm(dim=0) < radius), grid


@pytest.mark.parametrize("angle", [0.1, -0.1])
def test_what_turns_keeps_its_radius_and_its_angle(angle):
    steps = 31  # half a turn
    step, grid = wheel(65, angle, 28)
    offsets = integrate_flow(step.expand(1, steps, -1, -1, -1))
    inner = grid.norm(dim=0) < 16
    for t in (1, 8, steps):
        came_from = (grid + offsets[0, t])[:, inner]
        torch.testing.assert_close(came_from.norm(dim=0), grid[:, inner].norm(dim=0), atol=0.5, rtol=0)
        back = torch.tensor([[math.cos(t * angle), math.sin(t * angle)], [-math.sin(t * angle), math.cos(t * angle)]])
        torch.testing.assert_close(came_from, back @ grid[:, inner], atol=0.6, rtol=0)


def test_a_steady_field_s_offsets_differ_per_frame_and_move_frame_0():
    image, flow = smooth(3, 24, 24)[None], uniform(1.5, -0.5, (1, 3, 2, 24, 24))
    offsets = integrate_flow(flow)
    torch.testing.assert_close(warp(image, offsets[:, 1]), warp(image, -flow[:, 0]), atol=1e-5, rtol=0)
    assert not torch.allclose(offsets[:, 1], offsets[:, 2])


def test_integrate_flow_follows_a_flow_that_changes_in_time():
    # Right, then down: one step back is up, two steps back is up and left.
    flow = torch.stack([uniform(2.0, 0.0, (1, 2, 5, 5)), uniform(0.0, 3.0, (1, 2, 5, 5))], dim=1)
    assert integrate_flow(flow)[0, :, :, 2, 2].tolist() == [[0, 0], [-2, 0], [-2, -3]]


@pytest.mark.parametrize(("x", "y"), [(1.0, 0.0), (-2.0, 0.0), (0.0, 1.0), (0.0, -2.0)])
def test_what_enters_over_the_border_is_mirrored_along_the_stream(x, y):
    steps, height, width = 4, 16, 20
    source = pixel_grid(height, width) + trace_back(uniform(x, y, (1, steps, 2, height, width)))[0]
    moved = pixel_grid(height, width) - torch.arange(steps + 1.0).view(-1, 1, 1, 1) * torch.tensor([x, y]).view(2, 1, 1)
    far = torch.tensor([width - 1.0, height - 1.0]).view(2, 1, 1)
    mirrored = far - (far - moved.abs()).abs()
    torch.testing.assert_close(source, mirrored, atol=1e-5, rtol=0)


def test_a_wheel_turns_many_times_and_does_not_become_a_spiral():
    step, grid = wheel(65, 0.1, 28)
    flow, inner = step.expand(1, 63, -1, -1, -1), grid.norm(dim=0) < 16  # once round
    for trace in (trace_back, integrate_flow):
        assert trace(flow)[0, -1][:, inner].norm(dim=0).mean() < 1.0


def test_a_stream_goes_back_and_forth_between_where_it_comes_from_and_where_it_ends():
    flow = torch.zeros(1, 60, 2, 8, 24)
    flow[:, :, 0, 2:6, 5:18] = 1.0
    source = pixel_grid(8, 24)[0] + trace_back(flow)[0, :, 0]
    assert torch.equal(source[:, [0, 7]], pixel_grid(8, 24)[0, [0, 7]].expand(61, -1, -1)), "still parts stay"
    inside = source[:, 4, 6:17]
    assert inside.min() >= 4.5, "never what stands still before it"
    assert inside.max() <= 17.5, "nor behind it"
    # Everything moves on by one pixel a frame, but at the place where the picture was folded.
    moved = (inside[1:-1, 1:] - inside[:-2, :-1]).abs()  # the last step knows no stream of its own
    assert (moved < 0.01).float().mean() > 0.95


def test_a_stream_out_of_a_still_part_is_filled_and_a_body_that_moves_on_is_not():
    rows = slice(2, 6)
    stream = torch.zeros(1, 4, 2, 8, 24)
    stream[:, :, 0, rows, 5:] = 1.0  # out of a still part at column 5
    body = torch.zeros(1, 4, 2, 8, 24)
    for k in range(4):
        body[:, k, 0, rows, slice(5 + k, 11 + k)] = 1.0  # its trailing edge leaves column 5
    for flow, filled in ((stream, True), (body, False)):
        source = pixel_grid(8, 24)[0] + trace_back(flow)[0, 4, 0]
        assert (source[4, 5:9].max() > 5.1) == filled, "from the stream itself, or from what lies behind"
    # Mirrored at the middle of the step that left the still part.
    source = pixel_grid(8, 24)[0] + trace_back(stream)[0, 4, 0]
    torch.testing.assert_close(source[4, 5:9], torch.tensor([8.0, 7.0, 6.0, 5.0]))


def test_motion_strength_is_the_mean_length():
    flow = np.random.default_rng(0).normal(size=(3, 4, 2, 5, 6)).astype(np.float32)
    expected = np.sqrt(flow[:, :, 0] ** 2 + flow[:, :, 1] ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(motion_strength(torch.from_numpy(flow)), expected, rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    x=st.floats(-4, 4, width=32),
    y=st.floats(-4, 4, width=32),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
)
def test_resizing_a_uniform_flow_scales_each_axis_by_its_own_factor(x, y, height, width):
    flow = uniform(x, y, (2, 3, 2, 12, 20))
    assert resize_flow(flow, 12, 20) is flow
    resized = resize_flow(flow, height, width)
    expected = uniform(x * width / 20, y * height / 12, (2, 3, 2, height, width))
    torch.testing.assert_close(resized, expected, atol=1e-4, rtol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), factor=st.integers(2, 4))
def test_growing_and_shrinking_back_returns_a_smooth_flow(seed, factor):
    flow = smooth(2, 24, 32, seed)[None]
    there = resize_flow(flow, 24 * factor, 32 * factor)
    back = resize_flow(there, 24, 32)
    assert (back - flow).abs().max() < 0.1 * flow.abs().max()
    torch.testing.assert_close(motion_strength(there[None]), factor * motion_strength(flow[None]), rtol=0.02, atol=0)


def test_a_resized_flow_moves_a_resized_image_as_the_flow_moves_the_image():
    image, flow = smooth(3, 64, 64, 1)[None], 2 * smooth(2, 64, 64, 2)[None]

    def shrink(picture: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(picture, 2)

    difference = (warp(shrink(image), resize_flow(flow, 32, 32)) - shrink(warp(image, flow))).abs()
    unscaled = (warp(shrink(image), 2 * resize_flow(flow, 32, 32)) - shrink(warp(image, flow))).abs()
    assert difference[..., 4:-4, 4:-4].mean() < 0.1 * unscaled[..., 4:-4, 4:-4].mean()


@pytest.mark.parametrize("size", [(0, 4), (-1, 4)])
def test_resize_flow_rejects_an_empty_target(size):
    with pytest.raises(ValueError, match="at least 1"):
        resize_flow(torch.zeros(2, 4, 4), *size)
