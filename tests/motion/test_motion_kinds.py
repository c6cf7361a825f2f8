"""Kinds of motion as functions of time, against closed forms; and the velocity field against the displacements."""

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from motion_fields import MASK, drawn, field

from motionanim.motion.drawing import Arrow
from motionanim.motion.flow import pixel_grid
from motionanim.motion.kinds import (
    Move,
    Parts,
    Sway,
    Turn,
    crosses_itself,
    doubts,
    move_offsets,
    peak_velocity,
    shifted,
    sway_wave,
    swept,
    turn_displacement,
    velocity,
)  # fmt: skip

BOX = {"path": [[15, 15], [31, 15]], "kind": "move", "region": [[[10, 10], [20, 10], [20, 20], [10, 20]]]}
WHEEL = {"path": [[45, 22], [47, 22.3]], "kind": "turn", "region": {"brush": [[45, 30]], "radius": 9},
         "center": [45, 30]}  # fmt: skip
LEAF = {"path": [[5, 40], [9, 37]], "kind": "sway", "region": {"brush": [[5, 40]], "radius": 4}, "period": 6}
STREAM = {"path": [[30, 5], [40, 5]], "region": [[[28, 2], [60, 2], [60, 9], [28, 9]]]}


def fields(arrows, pins=(), **changes):
    return field(drawn(arrows, pins=pins), **{"num_frames": 13, "edge": "soft"} | changes)


def test_a_move_rests_goes_along_its_path_and_rests():
    arrow = Arrow(((10, 10), (16, 10), (16, 18)), kind="move", start=2, end=9)
    offsets = move_offsets(arrow, num_frames=12, span=99).numpy()
    expected = [(0, 0)] * 3 + [(2, 0), (4, 0), (6, 0), (6, 2), (6, 4), (6, 6), (6, 8)] + [(6, 8)] * 2
    np.testing.assert_allclose(offsets, expected, atol=1e-12)
    by_speed = move_offsets(Arrow(((0, 0), (8, 0)), 2, "move"), num_frames=9, span=9)
    np.testing.assert_allclose(by_speed[:, 0], [0, 2, 4, 6, 8, 8, 8, 8, 8])
    eased = move_offsets(Arrow(((0, 0), (30, 40)), kind="move", easing="ease"), num_frames=9, span=9)
    share = np.arange(9)[:, None] / 8
    np.testing.assert_allclose(eased, np.array([30, 40]) * (3 * share**2 - 2 * share**3), atol=1e-12)


@settings(max_examples=50, deadline=None)
@given(period=st.floats(2, 200), phase=st.floats(-10, 10), whole=st.integers(1, 5))
@example(period=2.0, phase=3.265625, whole=1)  # torch's sine and Python's differ in the last digit
def test_a_sway_is_the_photo_at_frame_0_and_after_every_period(period, phase, whole):
    sway = Sway(torch.ones(2, 4, 4), period, phase)
    assert sway_wave(sway, torch.tensor(0)) == 0
    assert float(sway_wave(sway, torch.tensor(whole * period, dtype=torch.float64))) == pytest.approx(0, abs=1e-9)
    times = torch.linspace(0, period, 400, dtype=torch.float64)
    expected = [math.sin(2 * math.pi * t / period + phase) - math.sin(phase) for t in times.tolist()]
    np.testing.assert_allclose(sway_wave(sway, times), expected, atol=1e-9)


def test_a_sway_reaches_its_tip_after_a_quarter_of_its_period_and_pins_hold_a_root():
    sway = fields([{**LEAF, "period": 8}]).parts.sways[0]
    region = drawn([LEAF]).arrows[0].region
    torch.testing.assert_close(sway.amplitude, torch.tensor([4.0, -3.0]).view(2, 1, 1) * region)
    assert float(sway_wave(sway, torch.tensor(2))) == pytest.approx(1)
    stem = {"path": [[30, 10], [36, 10]], "kind": "sway", "region": {"brush": [[30, 8], [30, 40]], "radius": 3}}
    along = fields([{**stem, "period": 9}], pins=[[30, 40]]).parts.sways[0].amplitude[0, 10:41, 30]
    assert along[[0, -1]].tolist() == pytest.approx([6, 0], abs=1e-4)
    assert (along.diff() <= 1e-5).all()


def test_a_turn_is_an_exact_rotation():
    """As complex numbers; a wheel neither grows nor shrinks, however long it turns."""
    turn = Turn(torch.ones(1, 20, 30), (11.5, 7.25), 0.3)
    x, y = pixel_grid(20, 30).double().numpy()
    spoke = (x - 11.5) + 1j * (y - 7.25)
    for frames in (-3, 0, 1, 2.5, 200):
        wanted = spoke * np.exp(1j * 0.3 * frames) - spoke
        np.testing.assert_allclose(turn_displacement(turn, frames), [wanted.real, wanted.imag], atol=1e-4)


def test_a_turn_arrow_brings_its_tail_to_its_tip_s_spoke():
    made = fields([WHEEL])
    (turn,) = made.parts.turns
    end = np.array([45, 22]) + turn_displacement(turn, 8)[:, 22, 45].numpy() - np.array([45, 30])
    tip = np.array([47, 22.3]) - np.array([45, 30])
    assert math.atan2(end[1], end[0]) == pytest.approx(math.atan2(tip[1], tip[0]), abs=1e-5)
    assert np.hypot(*end) == pytest.approx(8, rel=1e-5)
    assert fields([{**WHEEL, "speed": 2}]).parts.turns[0].angle == pytest.approx(2 * turn.angle)
    torch.testing.assert_close(made.per_step, turn_displacement(turn, 1).expand(12, -1, -1, -1))
    assert made.per_step[0, :, 30, 45].eq(0).all()


@settings(max_examples=30, deadline=None)
@given(across=st.integers(-80, 80), down=st.integers(-60, 60))
def test_a_shifted_region_is_the_region_elsewhere(across, down):
    region = (torch.rand(1, 48, 64, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    made = shifted(region, (across + 0.4, down - 0.4))
    for y, x in ((0, 0), (10, 20), (47, 63), (47, 0), (25, 33)):
        inside = 0 <= y - down < 48 and 0 <= x - across < 64
        assert made[0, y, x] == (region[0, y - down, x - across] if inside else 0)


def test_a_moved_region_has_one_velocity_wherever_it_is_and_what_it_uncovers_stands_still():
    made = fields([BOX])
    (move,) = made.parts.moves
    for step, vectors in enumerate(made.per_step):
        here = shifted(move.region, move.offsets[step].tolist())[0] > 0
        assert (vectors[:, here] == torch.tensor([2.0 if step < 8 else 0.0, 0.0])[:, None]).all()
        assert vectors[:, ~here].eq(0).all()
    assert here[:, 26:37].any(), "it has gone 16 px"
    reached = swept(move.region, made.parts)
    assert torch.equal(reached[0, 15] > 0, (torch.arange(64) >= 8) & (torch.arange(64) <= 38))


def test_velocities_add_up_to_displacements():
    made = fields([LEAF, WHEEL, STREAM])
    (sway,) = made.parts.sways
    wave = sway_wave(sway, torch.arange(13)).float()[1:]
    wanted = sway.amplitude[:, 40, 5] * wave[:, None]
    torch.testing.assert_close(made.per_step[:, :, 40, 5].cumsum(0), wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(made.per_step[:, :, 5, 30], torch.tensor([1.25, 0.0]).expand(12, 2))
    assert made.per_step[:, :, 20, 20].eq(0).all(), "outside all regions"


def test_regions_know_nothing_of_each_other():
    """Opposite streams side by side, and a free arrow that keeps out of them."""
    up = {"path": [[15, 40], [15, 30]], "region": [[[10, 5], [20, 5], [20, 45], [10, 45]]]}
    down = {"path": [[25, 10], [25, 20]], "region": [[[21, 5], [30, 5], [30, 45], [21, 45]]]}
    made = fields([up, down, [40, 20, 50, 20]]).per_step[0]
    for columns, speed in ((slice(10, 21), -1.25), (slice(21, 31), 1.25)):
        wanted = torch.tensor([0.0, speed]).view(2, 1, 1).expand(2, 41, columns.stop - columns.start)
        torch.testing.assert_close(made[:, 5:46, columns], wanted)
    torch.testing.assert_close(made[:, 20, 40:51], torch.tensor([[1.25], [0.0]]).expand(2, 11))
    assert 0 < made[0, 20, 32] < 1.25


@pytest.mark.parametrize("kind", ["eulerian", "advected"])
def test_flow_is_the_same_beside_other_kinds(kind):
    alone, beside = (fields(arrows, field=kind).per_step for arrows in ([STREAM], [STREAM, WHEEL, BOX]))
    torch.testing.assert_close(beside[:, :, 2:10, 28:61], alone[:, :, 2:10, 28:61])
    assert beside[:, :, 22, 45].ne(0).any()


def test_t_cannot_move_a_wheel():
    class Everything:
        """A refiner that moves all there is."""

        side = 48

        def refine(self, image, hint, mask):
            return hint.flow + 1

    both = drawn([[10, 10, 20, 10], WHEEL])
    made = field(both, image=torch.zeros(3, 48, 64), refiner=Everything())
    wheel = both.arrows[1].region[0] > 0
    torch.testing.assert_close(made.per_step[0][:, wheel], turn_displacement(made.parts.turns[0], 1)[:, wheel])
    assert made.refined[:, 40, 10].ne(0).all()


def test_the_peak_velocity_is_that_of_the_fastest_step():
    made = fields([BOX, WHEEL, LEAF])
    peak, steps = peak_velocity(made.parts), made.per_step
    fastest = torch.linalg.vector_norm(steps, dim=1).amax(0)
    for region in (made.parts.turns[0].region, made.parts.moves[0].region):
        torch.testing.assert_close(torch.hypot(*peak)[region[0] > 0], fastest[region[0] > 0], atol=1e-5, rtol=0)
    leaf = steps[:, 0, 40, 5].abs().max()
    assert leaf <= peak[0, 40, 5].abs() < 1.3 * leaf, "six steps miss the very peak"


def test_velocity_changes_none_of_its_parts():
    region, sway = MASK * (pixel_grid(48, 64)[0] < 9), Sway(torch.ones(2, 48, 64), 5, 1)
    parts = Parts(torch.ones(2, 48, 64), (Move(region, torch.ones(4, 2).cumsum(0)),), (sway,))
    kept, given_flow = parts.flow.clone(), torch.ones(3, 2, 48, 64)
    for flow in (None, given_flow):
        velocity(parts, 4, flow=flow)
    assert torch.equal(parts.flow, kept)
    assert given_flow.eq(1).all()
    steady = velocity(Parts(parts.flow), 4)
    assert steady.data_ptr() == parts.flow.data_ptr()
    assert steady.shape == (3, 2, 48, 64)


BAND = [[[0, 10], [30, 10], [30, 20], [0, 20]]]


@pytest.mark.parametrize(
    ("arrow", "span", "words"),
    [
        ([2, 2, 12, 2], 9, None),
        ([2, 2, 62, 2], 9, r"\[0\] is 60 px long and moves 7.5 px per frame, 16% of the height.*speed at most 0.4"),
        ({"path": [[2, 2], [10, 10], [10, 2], [2, 10]], "speed": 0.2}, 9, r"arrows\[0\] crosses itself"),
        ({"path": [[2, 2], [62, 2]], "kind": "move", "region": [[[0, 0], [4, 0], [4, 4], [0, 4]]]}, 9, None),
        ({"path": [[5, 15], [25, 15]], "region": BAND}, 40, None),
        ({"path": [[5, 15], [32, 15]], "region": BAND}, 40, None),  # drawn by a hand
        ({"path": [[5, 15], [40, 15]], "region": BAND}, 40, r"arrows\[0\] leaves its region at \(33, 15\): nothing"),
        ({"path": [[5, 15], [5, 30], [6, 15]], "region": BAND}, 40, r"leaves its region at \(5, 23\)"),
        ({"path": [[5, 15], [40, 15]], "region": BAND, "kind": "sway", "period": 9}, 40, None),
    ],
)
def test_what_is_likely_to_look_bad_is_said(arrow, span, words):
    """S19."""
    found = doubts(drawn([arrow]), span=span, crossings=True)
    assert len(found) == (words is not None)
    for line in found:
        assert "\n" not in line
        assert re.search(words, line)


def test_a_path_that_leaves_the_mask_is_said():
    mask = MASK * (pixel_grid(48, 64)[0] < 32)
    (line,) = doubts(drawn([[5, 15, 40, 15, 0.2]], mask), span=40, crossings=True)
    assert line.startswith("arrows[0] leaves what may move at (34, 15): nothing moves outside; draw the mask")


def test_a_path_that_crosses_itself():
    assert crosses_itself([(0, 0), (10, 10), (10, 0), (0, 10)])
    assert crosses_itself([(a * math.cos(7 * a), math.sin(9 * a)) for a in np.linspace(0, 6, 60)])
    circle = [(30 * math.cos(a), 30 * math.sin(a)) for a in np.linspace(0, 6, 60)]
    touches, square = [(0, 0), (10, 10), (10, 0), (9, 0)], [(0, 0), (10, 0), (10, 10), (0, 10)]
    assert not any(map(crosses_itself, (touches, square, [(0, 0), (10, 0), (5, 0)], circle)))
