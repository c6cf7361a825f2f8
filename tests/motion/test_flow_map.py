import math
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from motion_fields import constant, smooth
from motion_fields import picture as noise

from motionanim.motion import flow_map
from motionanim.motion.flow import pixel_grid


def frames(image, flow, *, num_frames=12, loop=False, mask=None, reach=0.1, seed=0):
    mask = torch.ones(1, *image.shape[-2:]) if mask is None else mask
    return flow_map.frames(image, flow, num_frames=num_frames, loop=loop, mask=mask, reach=reach, seed=seed)


def render(image, flow, **options):
    return torch.stack(list(frames(image, flow, **options)))


def sharpness(frame):
    return torch.hypot(frame.diff(dim=1)[..., 1:], frame.diff(dim=2)[:, 1:]).mean()


@pytest.mark.parametrize(("count", "speed"), [(24, 0.7), (60, 0.05), (7, 3.0)])
def test_a_loop_closes(count, speed):
    image = smooth(3, 64, 64, seed=5, cells=16).clamp(-1, 1)
    flow = speed * constant(1, 0.5, 64, 64)
    made = render(image, flow, num_frames=count, loop=True)
    steps = (made.roll(-1, 0) - made).square().mean((1, 2, 3)).sqrt()
    assert steps[-1] <= 1.2 * steps[:-1].max()
    field = flow.permute(1, 2, 0).numpy()
    (pace,) = flow_map._paces(
        flow.norm(dim=0).numpy(), flow_map._nodes(field, 1), 1, num_frames=count, loop=True, reach=0.1
    )
    offset = flow_map._offset((66, 66), 64, seed=0)
    assert offset.max() - offset.min() > 0.3
    for turns, weight in flow_map._layers(count, pace.turn, count, offset):
        assert ((weight == 0) | (abs(turns) < 1e-5)).all(), "frame N shows the picture at its own time, as frame 0 does"


def test_within_its_first_turn_a_translation_is_the_shifted_picture():
    image = noise(40, 48)
    made = render(image, constant(2, -1, 40, 48), num_frames=4, reach=2.0)  # a turn of 36 frames
    for t in range(4):
        expected = image.roll((-t, 2 * t), (1, 2))
        torch.testing.assert_close(made[t, :, 8:-8, 8:-8], expected[:, 8:-8, 8:-8], atol=1e-4, rtol=0)


def test_a_wheel_keeps_its_radius():
    x, y = pixel_grid(81, 81) - 40
    flow = torch.stack([-y, x]) * 0.05
    nodes = flow_map._nodes(flow.permute(1, 2, 0).numpy(), 1)
    turn = 40.0  # 2 rad, and 3 rad at the ends of a path
    paths = torch.from_numpy(flow_map._paths(nodes * turn, 1, 80.0))
    rim = (torch.hypot(x, y) - 25).abs() < 1
    for paths_at in paths[:, 1:-1, 1:-1]:
        radius = torch.hypot(x + paths_at[..., 0], y + paths_at[..., 1])
        torch.testing.assert_close(radius[rim], torch.hypot(x, y)[rim], atol=0.05, rtol=0)
    angle = torch.atan2(y + paths[-1, 1:-1, 1:-1, 1], x + paths[-1, 1:-1, 1:-1, 0]) - torch.atan2(y, x)
    turned = torch.remainder(angle[rim] + 3 + math.pi, 2 * math.pi) - math.pi  # upstream, so the other way round
    assert turned.abs().max() < 0.01


@given(
    seed=st.integers(0, 10**6), speed=st.sampled_from([1e-6, 0.1, 3.0, 100.0, 1e6, 1e30]), loop=st.booleans(),
    count=st.integers(2, 9), size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
)  # fmt: skip
@settings(max_examples=20, deadline=None)
def test_no_field_makes_holes(seed, speed, loop, count, size):
    image = noise(*size, seed) * 0.3 + 0.4
    mask = (smooth(1, *size, seed + 1) > -0.5).float()
    made = render(image, speed * smooth(2, *size, seed), num_frames=count, loop=loop, mask=mask)
    assert made.shape == (count, 3, *size)
    assert made.isfinite().all()
    assert made.abs().max() <= 1
    assert torch.equal(made[0], image)


@pytest.mark.parametrize("sign", [1, -1])
def test_sources_and_sinks_keep_their_texture(sign):
    image = noise(96, 96)
    flow = sign * (pixel_grid(96, 96) - 47.5) * 0.1
    made = render(image, flow, num_frames=40)[10:, :, 30:66, 30:66]
    assert (made.std((2, 3)) > 0.25).all()


@pytest.mark.slow
def test_blending_keeps_the_contrast_of_fine_noise():
    # Pixels of 2 x 2, which a look-up between them does not blur away.
    image = 0.5 * noise(120, 120).repeat_interleave(2, 1).repeat_interleave(2, 2)
    image = F.avg_pool2d(image[None], 3, 1, 1)[0]
    made = render(image, constant(2, 2, 240, 240), num_frames=30)
    kept = torch.stack([sharpness(frame[:, 20:-20, 20:-20]) for frame in made])
    kept = kept / sharpness(image[:, 20:-20, 20:-20])
    assert kept.min() > 0.93
    assert kept.max() < 1.1


def test_slow_and_fast_motion_start_again_at_their_own_pace():
    flow = torch.zeros(2, 50, 200)
    flow[0, :, :25], flow[0, :, 175:] = 1.0, 1 / 20
    nodes = flow_map._nodes(flow.permute(1, 2, 0).numpy(), 1)
    paces = flow_map._paces(flow.norm(dim=0).numpy(), nodes, 1, num_frames=240, loop=True, reach=0.2)
    assert [pace.turn for pace in paces] == pytest.approx([240 / 24, 240 / 12, 240 / 6, 240 / 3, 240 / 2])
    total = sum(pace.share for pace in paces)
    assert abs(total - 1).max() < 1e-6
    assert (paces[0].share[:, :25] == 1).all()
    assert sum(pace.share for pace in paces[3:])[:, 190:].min() > 0.9


def test_the_whole_picture_does_not_start_again_at_once():
    image = smooth(3, 128, 128, seed=2, cells=20)
    made = render(image.clamp(-1, 1), constant(1, 0, 128, 128), num_frames=60)
    alike = (made[20:] - made[0]).abs().amax((1, 2, 3))
    assert alike.min() > 0.1, "no later frame is the photo again"


def test_frames_come_one_at_a_time_and_are_not_held():
    alive = []
    for frame in frames(noise(16, 16), constant(1, 0, 16, 16), num_frames=30):
        alive.append(weakref.ref(frame))
        del frame
        assert sum(ref() is not None for ref in alive) <= 1


def test_the_same_seed_gives_the_same_frames_and_another_does_not():
    image, flow = noise(64, 64), constant(1, 0, 64, 64)
    first, again, other = (render(image, flow, num_frames=15, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.05)


@pytest.mark.parametrize("shape", [(32, 43), (1, 40), (9, 80), (5, 2)])
def test_the_lowest_octave_near_each_cell_is_found(shape):
    """Against every pair of cells."""
    rng = np.random.default_rng(0)
    octave = np.where(rng.random(shape) < 0.1, rng.uniform(0, 8, shape), np.inf)
    octave.flat[0] = 0
    y, x = np.mgrid[: shape[0], : shape[1]]
    away = 0.125 * np.hypot(y[..., None] - y.ravel(), x[..., None] - x.ravel())
    wanted = (away + octave.ravel()).min(-1).clip(0, flow_map.OCTAVES)
    np.testing.assert_allclose(flow_map._lowest_near(octave, 0.125), wanted)


def test_the_octaves_of_a_strip_take_no_square_of_its_cells():
    """50 000 cells, each of which has at most 2 400 others near it: all pairs would take 20 GB."""
    assert (flow_map._lowest_near(np.ones((25, 2000)), 0.125) == 1).all()
