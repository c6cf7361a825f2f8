import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from motion_fields import constant, picture, smooth

from motionanim.motion import eulerian, flow_map
from motionanim.motion.flow import pixel_grid


def render(image, flow, *, num_frames=6, loop=False, mask=None, min_density=0.5):
    mask = torch.ones(1, *image.shape[-2:]) if mask is None else mask
    stream = eulerian.frames(image, flow, num_frames=num_frames, loop=loop, mask=mask, min_density=min_density)
    return torch.stack(list(stream))


def vortex(height, width, peak):
    """Turns about the centre, px per frame, and vanishes towards the borders."""
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2]).view(2, 1, 1)
    x, y = pixel_grid(height, width) - centre
    reach = min(height, width) / 6
    field = torch.stack([-y, x]) * torch.exp(-(x**2 + y**2) / (2 * reach**2))
    return field * peak / torch.linalg.vector_norm(field, dim=0).max()


def at(array, x, y):
    """Bilinear look-up in (C, H, W), borders repeated, written out."""
    height, width = array.shape[1:]
    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    left, top = min(int(x), width - 2), min(int(y), height - 2)
    a, b = x - left, y - top
    return (1 - b) * ((1 - a) * array[:, top, left] + a * array[:, top, left + 1]) + b * (
        (1 - a) * array[:, top + 1, left] + a * array[:, top + 1, left + 1]
    )


def slow_frame(image, flow, mask, t, num_frames, loop, min_density):
    """One frame pixel by pixel in float64, with the weights as products of who is laid over whom."""
    image, mask = image.double().numpy(), mask.double().numpy()
    field = flow.double().numpy() * mask
    height, width = image.shape[1:]

    def trace(sign, steps):
        where = np.zeros((height, width, 2))
        for row in range(height):
            for column in range(width):
                place = np.array([column, row], dtype=float)
                for _ in range(steps):
                    place = place + sign * at(field, *place)
                where[row, column] = place
        slopes = [np.gradient(where[..., k]) for k in (0, 1)]
        density = slopes[0][1] * slopes[1][0] - slopes[0][0] * slopes[1][1]
        cover = np.zeros((height, width))
        for row in range(height):
            for column in range(width):
                x, y = where[row, column]
                beyond = max(-x, x - (width - 1), -y, y - (height - 1), 0)
                enough = min(max(density[row, column] / min_density, 0), 1)
                cover[row, column] = enough * at(mask, x, y)[0] * max(1 - beyond, 0)
        return where, cover

    (past, past_cover), (future, future_cover) = trace(-1, t), trace(1, num_frames - t)
    alpha = 1 - t / num_frames if loop else 1.0
    result = image.copy()
    for row in range(height):
        for column in range(width):
            if (field[:, row, column] == 0).all():
                continue
            was, will = (
                at(image * mask, *place) / max(at(mask, *place)[0], 1e-30)
                for place in (past[row, column], future[row, column])
            )
            a, b = past_cover[row, column], future_cover[row, column]
            past_on_top = a * was + (1 - a) * (b * will + (1 - b) * image[:, row, column])
            future_on_top = b * will + (1 - b) * (a * was + (1 - a) * image[:, row, column])
            result[:, row, column] = alpha * past_on_top + (1 - alpha) * future_on_top
    return result


@pytest.mark.parametrize("loop", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_every_frame_is_what_slow_loops_over_pixels_give(loop, seed):
    image, flow = picture(8, 9, seed), 0.8 * smooth(2, 8, 9, seed)
    mask = (smooth(1, 8, 9, seed + 9) > -0.7).float()
    made = render(image, flow, num_frames=5, loop=loop, mask=mask)
    for t in range(1, 5):
        expected = slow_frame(image, flow, mask, t, 5, loop, 0.5)
        np.testing.assert_allclose(made[t], expected, atol=2e-5)


@pytest.mark.parametrize("velocity", [(1, 0), (0, 1), (-2, 1)])
def test_a_flow_of_whole_pixels_shifts_the_picture(velocity):
    image = picture(20, 24)
    made = render(image, constant(*velocity, 20, 24), num_frames=5)
    for t in range(5):
        expected = torch.roll(image, (velocity[1] * t, velocity[0] * t), (1, 2))
        torch.testing.assert_close(made[t, :, 8:-8, 8:-8], expected[:, 8:-8, 8:-8], atol=1e-5, rtol=0)


RENDERERS = [partial(eulerian.frames, min_density=0.5), partial(flow_map.frames, reach=0.1, seed=0)]


@pytest.mark.parametrize("frames", RENDERERS, ids=["eulerian", "flow map"])
@pytest.mark.parametrize("loop", [False, True])
def test_frame_0_and_what_does_not_move_stay_bit_for_bit(loop, frames):
    image, mask, flow = picture(33, 47), (smooth(1, 33, 47, seed=3) > 0).float(), constant(2.3, -1.1, 33, 47).clone()
    kept = [x.clone() for x in (image, flow, mask)]
    still = list(frames(image, torch.zeros(2, 33, 47), num_frames=6, loop=loop, mask=torch.ones(1, 33, 47)))
    assert torch.equal(torch.stack(still), image.expand(6, 3, 33, 47))
    made = torch.stack(list(frames(image, flow, num_frames=6, loop=loop, mask=mask)))
    outside = mask[0] == 0
    assert torch.equal(made[0], image)
    assert torch.equal(made[:, :, outside], image[:, outside].expand(6, -1, -1))
    assert (made[3, :, ~outside] - image[:, ~outside]).abs().mean() > 0.05
    assert all(torch.equal(a, b) for a, b in zip((image, flow, mask), kept)), "nothing given is changed"


def test_a_loop_closes_as_smoothly_as_it_runs():
    image = smooth(3, 64, 64, seed=5, cells=12).clamp(-1, 1)
    made = render(image, vortex(64, 64, 1.0), num_frames=12, loop=True)
    steps = (made.roll(-1, 0) - made).square().mean((1, 2, 3)).sqrt()
    assert steps[-1] <= 1.2 * steps[:-1].max()
    assert steps[-1] >= 0.5 * steps[:-1].median()
    once = render(image, vortex(64, 64, 1.0), num_frames=12, loop=False)
    assert (once[-1] - image).square().mean().sqrt() > 2 * steps[-1]


def test_a_loop_run_backwards_is_the_loop_of_the_reversed_flow():
    image, flow = picture(24, 24), 0.5 * smooth(2, 24, 24, seed=2)
    made, backwards = (render(image, sign * flow, num_frames=7, loop=True) for sign in (1, -1))
    torch.testing.assert_close(made[1:], backwards[1:].flip(0), atol=1e-5, rtol=0)


@given(seed=st.integers(0, 10**6), speed=st.floats(0, 20), loop=st.booleans(), count=st.integers(2, 9))
@settings(max_examples=30, deadline=None)
def test_no_field_makes_holes_or_new_values(seed, speed, loop, count):
    image = picture(14, 18, seed) * 0.3 + 0.4
    mask = (smooth(1, 14, 18, seed + 1) > -0.5).float()
    made = render(image, speed * smooth(2, 14, 18, seed), num_frames=count, loop=loop, mask=mask)
    assert made.shape == (count, 3, 14, 18)
    assert made.isfinite().all()
    low, high = image.amin((1, 2)).view(3, 1, 1), image.amax((1, 2)).view(3, 1, 1)
    assert ((made >= low - 1e-5) & (made <= high + 1e-5)).all()


def test_a_source_is_filled_with_texture_instead_of_one_stretched_pixel():
    image = picture(48, 48)
    flow = (pixel_grid(48, 48) - 23.5) * 0.15  # all of it flows out of the centre
    variation = render(image, flow, num_frames=20)[12:, :, 20:28, 20:28].std((2, 3)).mean(1)
    stretched = render(image, flow, num_frames=20, min_density=1e-6)[12:, :, 20:28, 20:28].std((2, 3)).mean(1)
    assert (variation > 0.25).all()
    assert stretched[-1] < 0.1


def test_what_flows_in_is_not_taken_from_behind_the_mask_or_the_border():
    # White rock at the left, black water flowing right away from it; white must not be dragged into the water.
    image, mask = torch.full((3, 16, 32), -1.0), torch.ones(1, 16, 32)
    image[..., :8], mask[..., :8] = 1.0, 0.0
    made = render(image, constant(1.5, 0, 16, 32), num_frames=8)
    guarded = render(image, constant(1.5, 0, 16, 32), num_frames=8, mask=mask)
    assert made[-1, ..., 10:14].max() > 0
    torch.testing.assert_close(guarded, image.expand(8, 3, 16, 32), atol=1e-5, rtol=0)


@pytest.mark.parametrize("steps", [1, 2, 5, 9, 10])
def test_traces_come_in_reverse_whatever_their_number(steps):
    field = 0.5 * smooth(2, 10, 12, seed=steps)
    forward = [torch.zeros_like(field)]
    for _ in range(steps):
        forward.append(eulerian._step(forward[-1], field))
    backwards = list(eulerian._traces_reversed(field, steps))
    assert len(backwards) == steps
    assert all(torch.equal(a, b) for a, b in zip(backwards, forward[:0:-1]))


GOOD = {
    "image": torch.zeros(3, 8, 8), "flow": torch.zeros(2, 8, 8), "num_frames": 2, "loop": True,
    "mask": torch.ones(1, 8, 8),
}  # fmt: skip


@pytest.mark.parametrize("frames", RENDERERS, ids=["eulerian", "flow map"])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 1}, "num_frames=1: must be at least 2"),
        ({"image": torch.zeros(1, 8, 8)}, r"image of shape \(1, 8, 8\)"),
        ({"flow": torch.zeros(2, 8, 7)}, r"flow of shape \(2, 8, 7\).*must be \(2, 8, 8\)"),
        ({"mask": torch.ones(8, 8)}, r"mask of shape \(8, 8\).*\(1, 8, 8\)"),
        ({"mask": torch.full((1, 8, 8), 0.5)}, "mask has values other than 0 and 1"),
        ({"flow": torch.full((2, 8, 8), math.nan)}, "flow is not finite"),
        ({"image": torch.full((3, 8, 8), math.inf)}, "image is not finite"),
    ],
)
def test_bad_input_is_named_before_the_first_frame(changes, message, frames):
    with pytest.raises(ValueError, match=message):
        frames(**GOOD | changes)


@pytest.mark.parametrize(("frames", "option"), zip(RENDERERS, ["min_density", "reach"]))
def test_a_renderers_own_option_is_above_0(frames, option):
    with pytest.raises(ValueError, match=rf"{option}=0\.0: must be above 0"):
        frames(**GOOD | {option: 0.0})
