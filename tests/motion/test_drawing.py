"""Drawings: which are read, which are refused, and that every way to give one is equal."""

import json
import math
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from PIL import Image

from motionanim.media.image_io import fit
from motionanim.motion.controls import crop_controls, fit_controls
from motionanim.motion.drawing import Arrow, Controls, parse_controls, turn_angle

MASK = torch.ones(1, 48, 64)
LEFT, RIGHT = ([[[x, 4], [x + 16, 4], [x + 16, 40], [x, 40]]] for x in (4, 40))
WHEEL = {"brush": [[30, 24]], "radius": 10}
ALL = {
    "arrows": [
        {"path": [[6, 6], [6, 30]], "speed": 2, "region": "river"},
        {"path": [[10, 6], [10, 30]], "region": "river"},
        {"path": [[44, 10], [50, 10], [52, 30]], "kind": "move", "region": RIGHT, "easing": "ease",
         "start": 3, "end": 9},
        {"path": [[30, 15], [33, 15.5]], "kind": "turn", "region": WHEEL, "speed": 3},
        {"path": [[26, 44], [28, 44]], "kind": "sway", "period": 12, "phase": 1.5},
    ],
    "pins": [[1, 1]],
    "regions": {"river": LEFT},
}  # fmt: skip

points = st.tuples(st.integers(0, 63), st.floats(0, 47)).map(list)
speeds = st.floats(0.01, 100)
straight = st.tuples(points, points, st.none() | speeds).filter(lambda a: a[0] != a[1])
paths = st.lists(points, min_size=2, max_size=5).filter(lambda p: all(a != b for a, b in pairwise(p)))
arrow_values = st.one_of(
    straight.map(lambda a: a[0] + a[1] + ([] if a[2] is None else [a[2]])),
    st.fixed_dictionaries({"path": paths}, optional={"speed": speeds}),
)


def path_and_speed(value):
    if isinstance(value, dict):
        return [tuple(point) for point in value["path"]], value.get("speed", 1)
    return [tuple(value[:2]), tuple(value[2:4])], (value[4:] or [1])[0]


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(arrows=st.lists(arrow_values, max_size=6), pins=st.lists(points, max_size=4))
def test_valid_flow_arrows_survive_and_every_way_to_give_them_is_equal(tmp_path_factory, arrows, pins):
    both = {"arrows": arrows, "pins": pins}
    parsed = parse_controls(both, MASK)
    assert [(list(arrow.path), arrow.speed) for arrow in parsed.arrows] == [path_and_speed(a) for a in arrows]
    assert parsed.pins == tuple(map(tuple, pins))
    assert parsed.mask is MASK
    file = tmp_path_factory.getbasetemp() / "arrows.json"
    file.write_text("\ufeff" + json.dumps(both), encoding="utf-8")  # as some Windows editors write it
    for same in (json.dumps(both), file, str(file), OmegaConf.create(both)):
        assert parse_controls(same, MASK) == parsed
    for same in (arrows, json.dumps(arrows), OmegaConf.create(arrows), tuple(arrows)):
        assert parse_controls(same, MASK) == parsed._replace(pins=())


def test_no_arrows_are_none_or_an_empty_list():
    for nothing in (None, [], "[]", {}, '{"arrows": null}'):
        assert parse_controls(nothing, MASK) == Controls((), (), MASK)


def plain(controls):
    """Values that can be compared with ==."""
    arrows = [a._replace(region=None if a.region is None else a.region.numpy().tobytes()) for a in controls.arrows]
    return arrows, controls.pins, controls.mask.numpy().tobytes()


def test_every_kind_is_read_and_every_way_to_give_it_is_equal(tmp_path):
    parsed = parse_controls(ALL, MASK)
    river, beside, box, wheel, leaf = parsed.arrows
    assert river[:3] == (((6, 6), (6, 30)), 2, "flow")
    assert beside.region is river.region
    assert (box.kind, box.easing, box.start, box.end, box.speed) == ("move", "ease", 3, 9, 1)
    assert (wheel.kind, wheel.speed) == ("turn", 3)
    assert wheel.center == pytest.approx((30, 24))
    assert (leaf.kind, leaf.period, leaf.phase, leaf.region) == ("sway", 12, 1.5, None)
    assert parsed.mask is MASK
    file = tmp_path / "arrows.json"
    file.write_text(json.dumps(ALL), encoding="utf-8")
    for same in (json.dumps(ALL), file, OmegaConf.create(ALL)):
        assert plain(parse_controls(same, MASK)) == plain(parsed)


def test_what_was_read_can_be_written_and_read_again(tmp_path):
    """Regions as mask files beside the drawing."""
    parsed, arrows = parse_controls(ALL, MASK), []
    keys = {
        "flow": ["speed"], "turn": ["speed", "center"], "move": ["easing", "start", "end"], "sway": ["period", "phase"],
    }  # fmt: skip
    for i, arrow in enumerate(parsed.arrows):
        item = {"path": arrow.path, "kind": arrow.kind} | {key: getattr(arrow, key) for key in keys[arrow.kind]}
        if arrow.region is not None:
            Image.fromarray((arrow.region[0] * 255).byte().numpy()).save(tmp_path / f"{i}.png")
            item["region"] = f"{i}.png"
        arrows.append(item)
    (tmp_path / "again.json").write_text(json.dumps({"arrows": arrows, "pins": parsed.pins}), encoding="utf-8")
    again = parse_controls(tmp_path / "again.json", MASK)
    assert plain(again) == plain(parsed)
    assert again.arrows[0].region is again.arrows[1].region


def test_the_drawing_in_the_documents_is_read(tmp_path):
    text = (Path(__file__).resolve().parents[2] / "docs" / "animate.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```json\n(.*?)^```", text, flags=re.M | re.S)
    boat = np.zeros((400, 600), dtype=np.uint8)
    boat[60:100, 280:320] = 255
    Image.fromarray(boat).save(tmp_path / "boat.png")
    (tmp_path / "arrows.json").write_text(block, encoding="utf-8")
    drawn = parse_controls(tmp_path / "arrows.json", torch.ones(1, 400, 600))
    assert [arrow.kind for arrow in drawn.arrows] == ["flow", "move", "sway", "turn"]


def test_only_regions_move_where_every_arrow_has_one_and_no_mask_is_given():
    arrows = [{"path": [[6, 6], [6, 30]], "region": LEFT}, {"path": [[44, 6], [44, 30]], "region": RIGHT}]
    parsed = parse_controls(arrows, MASK)
    assert torch.equal(parsed.mask, parsed.arrows[0].region + parsed.arrows[1].region)
    assert parsed.mask.sum() == 2 * 17 * 37
    top = MASK.clone()
    top[:, 20:] = 0
    cut = parse_controls(arrows, top)
    assert cut.mask is top
    assert torch.equal(cut.arrows[0].region, parsed.arrows[0].region * top)


def test_the_region_of_a_later_arrow_lies_on_top():
    wide = {"path": [[6, 6], [6, 30]], "region": [[[4, 4], [40, 4], [40, 40], [4, 40]]]}
    under, over = parse_controls([wide, TURN], MASK).arrows
    assert over.region[0, 24, 30] == 1
    assert torch.equal(under.region, parse_controls([wide], MASK).arrows[0].region * (1 - over.region))


@pytest.mark.parametrize("start", [(6, 4), (3, 6), (20.9, 41.6), (6.37, 7.11)])
def test_an_arrow_that_starts_just_outside_its_region_starts_at_its_nearest_pixel(start):
    drawn = parse_controls([{"path": [start, [12, 30]], "region": LEFT}], MASK).arrows[0]
    near = (min(max(start[0], 4), 20), min(max(start[1], 4), 40))  # one inside keeps its place to the last digit
    assert drawn.path == (near, (12, 30))


TURN = {"path": [[30, 15], [33, 15.5]], "kind": "turn", "region": WHEEL}
MOVE = {"path": [[44, 10], [50, 10]], "kind": "move", "region": RIGHT}
SWAY = {"path": [[44, 10], [50, 10]], "kind": "sway", "period": 8}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('[[1, 2, 3, 4], [5, "a]', r"no valid JSON at line 1 column 20"),
        ("[" * 100_000, "no usable JSON"),
        ("[[1, 2, 3, " + "9" * 5000 + "]]", "no usable JSON"),
        ("nowhere.json", r"'nowhere.json' cannot be read \(No such file"),
        ("nowhere\0.json", "cannot be read"),
        ("", "cannot be read"),
        (3, "arrows=3: must be a list"),
        ({"arrows": "abc"}, "must be a list"),
        ({"arrow": []}, "has arrow: its keys may be arrows, pins, regions"),
        ({"regions": [LEFT]}, "regions=.*: must be a mapping of names to regions"),
        ({"regions": {"river": 3}}, "regions.river=3: a region is a mask file, or a list"),
        ({"pins": [[1, 2], [3, 48]]}, r"pins\[1\]: the point \(3, 48\) is outside"),
        ({"pins": [1, 2]}, r"pins\[0\]=1: must be a point"),
        ([[1, 2, 3]], r"arrows\[0\]=\[1, 2, 3\]: an arrow is"),
        ([1, 2, 3, 4], r"arrows\[0\]=1: an arrow is"),
        (["abcd"], r"arrows\[0\]=abcd: an arrow is"),
        ([[1, 2, 3, 4], [1, 2, "3", 4]], r"arrows\[1\]: 3 must be a finite number"),
        ([[1, 2, 3, True]], "True must be a finite number"),
        ("[[1, 2, 3, NaN]]", "nan must be a finite number"),
        ([[1, 2, 3, 10**400]], "must be a finite number"),
        ([[1, 2, 1, 2]], r"arrows\[0\] has no length at \(1, 2\): use a pin"),
        ([{"path": [[1, 2], [3, 4], [3, 4]]}], r"no length at \(3, 4\)"),
        ([[1, 2, 64, 4]], r"arrows\[0\]: the point \(64, 4\) is outside the image: x.* 0 to 63, y from 0 to 47"),
        ([[1, -1, 3, 4]], r"\(1, -1\) is outside"),
        ([[1, 2, 3, 4, 0]], r"arrows\[0\]: speed=0 must be above 0"),
        ([{"path": [[1, 2]]}], r"from 2 to 1000 points \[x, y\], not 1"),
        ([{"path": [[1, 1], [2, 2]] * 501}], "a path needs from 2 to 1000 points"),
        ([{"path": [[1, 2], [3]]}], r"arrows\[0\]=\[3\]: must be a point"),
        ([{"points": [[1, 2], [3, 4]]}], "has points: its keys may be kind, path, region, speed"),
        ([{**TURN, "kind": ["turn"]}], r"kind=\['turn'\]: must be flow, move, sway, turn"),
        ([{**TURN, "period": 3}], r"arrows\[0\]: kind=turn has period: its keys may be center, kind, path"),
        ([{**SWAY, "period": None}], "kind=sway needs period, the frames of one swing to and fro, at least 2"),
        ([{**SWAY, "period": "8"}], r"arrows\[0\]: period: 8 must be a finite number"),
        ([{**SWAY, "path": [[4, 4], [5, 5], [6, 6]]}], "a path of 2 points, rest and farthest reach, not 3"),
        ([{**MOVE, "easing": "bounce"}], "easing=bounce: must be linear or ease"),
        ([{**MOVE, "end": 2.5}], "end=2.5 must be a frame number"),
        ([{**MOVE, "start": 5, "end": 5}], "end=5 must be after start=5"),
        ([{**MOVE, "speed": 2, "end": 5}], "has speed and end: give one"),
        ([{**MOVE, "region": None}], r"arrows\[0\]: kind=move needs a region: draw what moves, or give a mask"),
        ([{**TURN, "center": [30, 15]}], r"does not go round its center \(30, 15\): draw it along the rim"),
        ([{**TURN, "path": [[30, 15], [30, 20]]}], "does not go round its center"),
        ([{**MOVE, "path": [[30, 10], [50, 10]]}], r"10 px outside its region: start it inside, such as at \(40, 10\)"),
        ([{**MOVE, "region": "gone.png"}], r"arrows\[0\]: region: gone.png cannot be opened"),
        ([MOVE, {**SWAY, "region": RIGHT}], r"arrows\[1\]: kind=sway and arrows\[0\]: kind=move share"),
        ([TURN, {**TURN, "speed": 2}], r"arrows\[1\]: kind=turn and arrows\[0\]: kind=turn share a region"),
        ([[1, 2, 3, 4], SWAY], r"arrows\[1\]: kind=sway and arrows\[0\]: kind=flow share a region"),
        ([TURN, {**MOVE, "region": [[[10, 4], [50, 4], [50, 44], [10, 44]]]}], "region: the regions of later arrows"),
        ([[30, 24, 5, 5], TURN], r"arrows\[0\] starts at \(30, 24\), 10 px outside what may move"),
        ([[1, 1, 5, 5], {**MOVE, "region": [[[0, 0], [63, 0], [63, 47], [0, 47]]]}], "leave nothing for it"),
    ],
    ids=lambda value: "" if isinstance(value, str) else None,
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_it(value, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_controls(value, MASK)
    assert "\n" not in str(caught.value)


def test_a_json_file_that_is_no_text(tmp_path):
    (tmp_path / "arrows.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"arrows.json' cannot be read \(it is no text\)"):
        parse_controls(tmp_path / "arrows.json", MASK)


def test_a_region_outside_the_mask_is_named_and_without_one_the_mask_moves():
    mask = MASK.clone()
    mask[:, :, 30:] = 0
    with pytest.raises(ValueError, match=r"arrows\[0\]: region: the mask leaves no pixel of it"):
        parse_controls([MOVE], mask)
    own = parse_controls([{"path": [[8, 8], [12, 8]], "kind": "move"}], mask).arrows[0]
    assert torch.equal(own.region, mask)


anything = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=12,
)
spots = st.lists(st.integers(0, 63) | anything, min_size=2, max_size=2)
outlines = st.lists(st.lists(spots, min_size=1, max_size=5), max_size=2)
strokes = st.fixed_dictionaries({"brush": st.lists(spots, max_size=3), "radius": st.integers(0, 9) | anything})
odd_arrows = st.fixed_dictionaries(
    {"path": st.lists(spots, max_size=4) | anything},
    optional={
        "kind": st.sampled_from(["flow", "move", "sway", "turn"]) | anything,
        "region": outlines | strokes | st.just("river") | anything,
        **{key: st.integers(0, 20) | anything for key in ("speed", "period", "phase", "start", "end")},
        "easing": st.sampled_from(["linear", "ease"]) | anything, "center": spots | anything,
    },
)  # fmt: skip
drawings = anything | st.fixed_dictionaries(
    {"arrows": st.lists(odd_arrows | st.lists(st.integers(0, 47), min_size=4, max_size=5), max_size=3)},
    optional={"pins": st.lists(spots, max_size=2), "regions": st.fixed_dictionaries({"river": outlines | anything})},
)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(value=drawings)
def test_whatever_is_given_is_read_or_refused_by_a_value_error(value):
    try:
        controls = parse_controls(value, MASK)
    except ValueError:
        return
    for arrow in controls.arrows:
        x, y = arrow.path[0]
        if arrow.region is not None and arrow.kind != "turn" and arrow.region[0, round(y), round(x)] == 0:
            assert (x, y) != arrow.path[1]
        assert arrow.kind != "turn" or abs(turn_angle(arrow)) >= 1e-3


def test_regions_and_centers_go_with_their_photo():
    way = fit(torch.zeros(3, 48, 64), 24, 24)[1]
    drawn = parse_controls(
        [{"path": [[12, 6], [12, 30]], "region": LEFT}, {"path": [[14, 6], [14, 30]], "region": LEFT}, TURN], MASK
    )
    fitted = fit_controls(drawn, way)
    assert fitted.arrows[0].region is fitted.arrows[1].region
    assert torch.equal(fitted.arrows[0].region, way.mask(drawn.arrows[0].region))
    assert fitted.arrows[2].center == pytest.approx(way.points(torch.tensor(drawn.arrows[2].center)).tolist())
    assert turn_angle(fitted.arrows[2]) == pytest.approx(turn_angle(drawn.arrows[2]), rel=1e-6)
    corner = parse_controls([{"path": [[6, 6], [12, 30]], "region": [[[4, 4], [7, 4], [7, 7], [4, 7]]]}], MASK)
    with pytest.raises(ValueError, match=r"arrows\[0\]: region: mask: nothing of it is left in the visible part"):
        fit_controls(corner, way)


def test_cropping_a_drawing_leaves_regions_of_one_size():
    drawn = parse_controls(ALL, MASK)
    cropped = crop_controls(drawn, 46, 62)
    assert cropped.mask.shape == (1, 46, 62)
    assert all(arrow.region is None or arrow.region.shape == (1, 46, 62) for arrow in cropped.arrows)
    assert cropped.arrows[0].region is cropped.arrows[1].region
    assert drawn.mask.shape == (1, 48, 64)


def test_a_turn_is_measured_round_its_center():
    def arc(*degrees):
        path = tuple((10 + 5 * math.cos(math.radians(a)), 20 + 5 * math.sin(math.radians(a))) for a in degrees)
        return turn_angle(Arrow(path, kind="turn", center=(10, 20)))

    assert arc(0, 30) == pytest.approx(math.radians(30)), "x towards y: clockwise on the screen"
    assert arc(0, -100, -200, -300) == pytest.approx(math.radians(-300))
    assert np.isclose(arc(170, 190), math.radians(20))
