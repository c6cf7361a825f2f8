"""Arrows along a known motion: a turning disc, a stream, and the hints that are drawn from them."""

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motionanim.motion.example_arrows import choose_starts, example_arrow, follow, sample_hint, thinned
from motionanim.motion.regions import read_region

OPTIONS = {"max_arrows": 4, "max_frames": 16, "sigma": 0.332, "normalized": "exact"}


def turning(side: int, angle: float) -> torch.Tensor:
    """The flow of a picture that turns about its middle, radians per frame."""
    y, x = torch.meshgrid(torch.arange(side) - (side - 1) / 2, torch.arange(side) - (side - 1) / 2, indexing="ij")
    return angle * torch.stack([-y, x])


def test_a_point_on_a_turning_disc_stays_on_its_circle():
    side, angle = 41, 2 * math.pi / 60
    way = follow(turning(side, angle), (30.0, 20.0), 60, torch.ones(1, side, side))
    radius = torch.linalg.vector_norm(way - 20, dim=1)
    assert len(way) == 61
    torch.testing.assert_close(radius, torch.full_like(radius, 10.0), atol=0.1, rtol=0)
    assert torch.linalg.vector_norm(way[-1] - way[0]) < 0.2


def test_the_way_ends_where_the_region_or_the_picture_ends_but_has_a_first_step():
    flow = torch.tensor([2.0, 0.0]).view(2, 1, 1).expand(2, 8, 20)
    mask = torch.ones(1, 8, 20)
    assert follow(flow, (1.0, 3.0), 50, mask)[:, 0].tolist() == [1, 3, 5, 7, 9, 11, 13, 15, 17, 19]
    mask[..., 10:] = 0
    assert follow(flow, (1.0, 3.0), 50, mask)[:, 0].tolist() == [1, 3, 5, 7, 9]
    assert follow(flow, (9.0, 3.0), 50, mask)[:, 0].tolist() == [9, 11]
    assert follow(flow, (1.0, 3.0), 2, mask)[:, 0].tolist() == [1, 3, 5]


@pytest.mark.parametrize("speed", [0.3, 1.0, 2.0, 4.0, 9.0])
def test_at_the_edge_of_what_moves_the_way_is_as_fast_as_inside(speed):
    """Fields are zero outside their region: what stands still there must not slow an arrow down, nor stop it."""
    mask = torch.zeros(1, 8, 20)
    mask[..., 5:12] = 1
    flow = torch.tensor([speed, 0.0]).view(2, 1, 1) * mask
    for start in range(5, 12):
        way = follow(flow, (float(start), 3.0), 6, mask)
        steps = way.diff(dim=0)
        torch.testing.assert_close(steps, torch.tensor([speed, 0.0], dtype=torch.float64).expand_as(steps))
        assert len(way) == 7 or way[-1, 0] + speed > 11.5 - 1e-9 or len(way) == 2


def test_an_arrow_has_the_speed_of_the_motion_wherever_it_begins():
    mask = torch.zeros(1, 16, 64)
    mask[..., 20:30] = 1
    flow = torch.tensor([3.0, 0.0]).view(2, 1, 1) * mask
    for seed in range(30):
        hint = sample_hint(flow, mask, np.random.default_rng(seed), **OPTIONS | {"max_arrows": 1})
        torch.testing.assert_close(hint.flow, torch.tensor([3.0, 0.0]).view(2, 1, 1).expand(2, 16, 64))


def test_starts_are_pixels_that_may_move_and_do():
    flow, mask = torch.zeros(2, 9, 9), torch.zeros(1, 9, 9)
    assert choose_starts(flow, mask + 1, np.random.default_rng(0), max_arrows=3) == []
    flow[0, 2:5, 3:6] = 1
    mask[0, 4:, :] = 1
    counts = set()
    for seed in range(40):
        starts = choose_starts(flow, mask, np.random.default_rng(seed), max_arrows=3)
        counts.add(len(starts))
        assert set(starts) <= {(3, 4), (4, 4), (5, 4)}
        assert len(set(starts)) == len(starts)
    assert counts == {1, 2, 3}
    assert len(choose_starts(flow, mask, np.random.default_rng(0), max_arrows=1000)) <= 3


def test_a_hint_depends_on_its_generator_only_and_fits_a_partial():
    flow, mask = turning(24, 0.1), torch.ones(1, 24, 24)
    kept = flow.clone()
    hint = functools.partial(sample_hint, **OPTIONS)
    first = hint(flow, mask, np.random.default_rng(7))
    torch.manual_seed(1)
    assert all(map(torch.equal, first, hint(flow, mask, np.random.default_rng(7))))
    assert not torch.equal(first.flow, hint(flow, mask, np.random.default_rng(8)).flow)
    assert torch.equal(flow, kept)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_hint_of_a_uniform_stream_is_the_stream_however_the_arrows_are_drawn(seed):
    flow, mask = torch.tensor([1.5, -0.5]).view(2, 1, 1).expand(2, 16, 16), torch.zeros(1, 16, 16)
    mask[:, 4:12] = 1
    hint = sample_hint(flow, mask, np.random.default_rng(seed), **OPTIONS)
    torch.testing.assert_close(hint.flow, flow, atol=1e-4, rtol=1e-4)
    cover = hint.arrows[2:]
    torch.testing.assert_close(hint.arrows[:2], flow * cover, atol=1e-4, rtol=1e-3)
    assert cover.max() > 0.8
    assert hint.reach.min() >= 0


def test_some_arrows_go_on_where_the_region_ends_and_some_do_not():
    flow, mask = torch.tensor([1.0, 0.0]).view(2, 1, 1).expand(2, 16, 64), torch.zeros(1, 16, 64)
    mask[..., 20:30] = 1
    ends = []
    for seed in range(60):
        cover = sample_hint(flow, mask, np.random.default_rng(seed), **OPTIONS | {"max_arrows": 1}).arrows[2]
        ends.append(int(torch.nonzero(cover.amax(0) > 0.9).max()))
    assert sum(end > 31 for end in ends) > 10
    assert sum(end <= 31 for end in ends) > 20


def test_some_arrows_are_straight_and_some_follow_the_curve():
    flow, mask = turning(64, 0.1), torch.ones(1, 64, 64)
    bent = []
    for seed in range(60):
        cover = sample_hint(flow, mask, np.random.default_rng(seed), **OPTIONS | {"max_arrows": 1}).arrows[2]
        points = torch.nonzero(cover > 0.9).double()
        if len(points) > 20:  # how far the line's pixels are from a straight one, px
            bent.append(float(torch.linalg.svdvals(points - points.mean(0))[1]) / math.sqrt(len(points)))
    assert len(bent) > 10
    assert sum(each < 0.7 for each in bent) >= 3
    assert sum(each > 1.0 for each in bent) >= 3


def test_nothing_that_moves_gives_a_hint_of_zeros():
    flow, mask = torch.ones(2, 16, 16), torch.zeros(1, 16, 16)
    assert not any(each.any() for each in sample_hint(flow, mask, np.random.default_rng(0), **OPTIONS))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"max_arrows": 0}, "max_arrows=0"), ({"max_frames": 1}, "max_frames=1"), ({"sigma": 0.0}, "sigma=0.0")],
)
def test_a_bad_option_is_named(change, message):
    with pytest.raises(ValueError, match=message):
        sample_hint(torch.ones(2, 8, 8), torch.ones(1, 8, 8), np.random.default_rng(0), **OPTIONS | change)


def test_thinning_keeps_both_ends():
    way = torch.arange(40, dtype=torch.float64).view(20, 2)
    short = thinned(way)
    assert len(short) == 6
    assert torch.equal(short[[0, -1]], way[[0, -1]])
    assert torch.equal(thinned(way[:4]), way[:4])


def region(value):
    return read_region("r", value, 40, 60, Path())


RING = region([{"brush": [[10, 10], [50, 10], [50, 30], [10, 30], [10, 10]], "radius": 3}])


@pytest.mark.parametrize(
    ("mask", "arrow"),
    [
        (torch.ones(1, 41, 61), [30, 20, 36, 20]),
        (torch.ones(1, 2, 2), [0, 0, 1, 0]),
        (region([[[54, 10], [59, 10], [59, 14], [54, 14]]]), [56, 12, 50, 12]),
    ],
)
def test_an_example_is_in_the_middle_and_stays_in_the_picture(mask, arrow):
    assert example_arrow(mask) == arrow


def test_an_example_in_a_ring_starts_on_it_and_not_in_its_hole():
    x, y, tip, row = example_arrow(RING)
    assert RING[0, y, x] == 1
    assert RING[0, y - 2 : y + 3, x - 2 : x + 3].all(), "away from its edge"
    assert (abs(tip - x), row) == (6, y)
