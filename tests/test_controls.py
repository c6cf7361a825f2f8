import functools
import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from test_configs import _fresh_hydra, check_binding, composed  # noqa: F401  the fixture clears Hydra's global state

from motionanim.controls import (
    Arrow,
    Controls,
    fit_controls,
    motion_field,
    parse_controls,
    strength_to_px,
    with_strength,
)
from motionanim.images import fit
from motionanim.models.denoiser import Denoiser
from motionanim.models.flow_refiner import FlowRefiner

MASK = torch.ones(1, 48, 64)
OPTIONS = {
    "num_frames": 9,
    "span": 9,
    "field": "eulerian",
    "sigma": 0.33,
    "threshold": 0.05,
    "threshold_on": "weight",
    "normalized": "exact",
    "edge": "cut",
}

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


def of(arrows, mask=MASK, pins=()):
    return parse_controls({"arrows": arrows, "pins": list(pins)}, mask)


def field(controls, **changes):
    return motion_field(controls, **{**OPTIONS, **changes})


@settings(max_examples=100, deadline=None)
@given(arrows=st.lists(arrow_values, max_size=6), pins=st.lists(points, max_size=4))
def test_valid_controls_survive_and_every_way_to_give_them_is_equal(tmp_path_factory, arrows, pins):
    both = {"arrows": arrows, "pins": pins}
    parsed = parse_controls(both, MASK)
    assert [(list(arrow.path), arrow.speed) for arrow in parsed.arrows] == [path_and_speed(a) for a in arrows]
    assert parsed.pins == tuple(map(tuple, pins))
    assert parsed.mask is MASK
    file = tmp_path_factory.getbasetemp() / "arrows.json"
    file.write_text("\ufeff" + json.dumps(both), encoding="utf-8")  # as some Windows editors write it
    for same in (json.dumps(both), file, str(file), OmegaConf.create(both)):
        assert parse_controls(same, MASK) == parsed
    without = parsed._replace(pins=())
    for same in (arrows, json.dumps(arrows), OmegaConf.create(arrows), tuple(arrows)):
        assert parse_controls(same, MASK) == without


def test_no_arrows_are_none_or_an_empty_list():
    for nothing in (None, [], "[]", {}, '{"arrows": null}'):
        assert parse_controls(nothing, MASK) == Controls((), (), MASK)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('[[1, 2, 3, 4], [5, "a]', r"no valid JSON at line 1 column 20"),
        ("[[1, 2, 3, 4],\n [5 6]]", r"no valid JSON at line 2 column 5"),
        ("[" * 100_000, "no usable JSON"),
        ("[[1, 2, 3, " + "9" * 5000 + "]]", "no usable JSON"),
        ("nowhere.json", r"'nowhere.json' cannot be read \(No such file"),
        ("nowhere\0.json", "cannot be read"),
        ("", "cannot be read"),
        ("3", "cannot be read"),
        (3, "arrows=3: must be a list"),
        ({"arrows": 0}, "arrows=0: must be a list"),
        ({"arrows": "abc"}, "must be a list"),
        ({"arrow": []}, "has arrow: its keys may be arrows, pins"),
        ([[1, 2, 3]], r"arrows\[0\]=\[1, 2, 3\]: an arrow is"),
        ([1, 2, 3, 4], r"arrows\[0\]=1: an arrow is"),
        (["abcd"], r"arrows\[0\]=abcd: an arrow is"),
        ([[1, 2, 3, 4, 5, 6]], r"arrows\[0\].*an arrow is"),
        ([[1, 2, 3, 4], [1, 2, "3", 4]], r"arrows\[1\]: 3 must be a finite number"),
        ([[1, 2, 3, None]], "None must be a finite number"),
        ([[1, 2, 3, True]], "True must be a finite number"),
        ("[[1, 2, 3, NaN]]", "nan must be a finite number"),
        ("[[1, 2, 3, 1e999]]", "inf must be a finite number"),
        ([[1, 2, 3, 10**400]], "must be a finite number"),
        ([[1, 2, 1, 2]], r"arrows\[0\] has no length at \(1, 2\): use a pin"),
        ([{"path": [[1, 2], [3, 4], [3, 4]]}], r"no length at \(3, 4\)"),
        ([[1, 2, 64, 4]], r"arrows\[0\]: the point \(64, 4\) is outside the image: x.* 0 to 63, y from 0 to 47"),
        ([[1, -1, 3, 4]], r"\(1, -1\) is outside"),
        ([[1, 2, 3, 4, 0]], r"arrows\[0\]: speed=0 must be above 0"),
        ([[1, 2, 3, 4, -1]], "speed=-1 must be above 0"),
        ([[1, 2, 3, 4, float("nan")]], "speed: nan must be a finite number"),
        ([{"path": [[1, 2]]}], r"at least 2 points \[x, y\], not 1"),
        ([{"path": [[1, 2], [3]]}], r"arrows\[0\]=\[3\]: must be a point"),
        ([{"path": [[1, 2], "34"]}], r"arrows\[0\]=34: must be a point"),
        ([{"points": [[1, 2], [3, 4]]}], "has points: its keys may be path, speed"),
        ({"pins": [[1, 2], [3, 48]]}, r"pins\[1\]: the point \(3, 48\) is outside"),
        ({"pins": [1, 2]}, r"pins\[0\]=1: must be a point"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_it(value, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_controls(value, MASK)
    assert "\n" not in str(caught.value)


def test_a_json_file_that_is_no_text(tmp_path):
    (tmp_path / "arrows.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"arrows.json' cannot be read \(it is no text\)"):
        parse_controls(tmp_path / "arrows.json", MASK)


def test_controls_go_with_their_photo():
    photo = torch.zeros(3, 100, 200)
    way = fit(photo, 50, 50)[1]
    mask = torch.zeros(1, 100, 200)
    mask[:, :, 50:100] = 1
    moved = fit_controls(of([[60, 20, 100, 40, 2]], mask, pins=[[50, 0]]), way)
    expected = way.points(torch.tensor([[60.0, 20.0], [100.0, 40.0], [50.0, 0.0]])).tolist()
    assert np.allclose([*moved.arrows[0].path, *moved.pins], expected)
    assert moved.arrows[0].speed == 2
    assert torch.equal(moved.mask, way.mask(mask))
    assert moved.mask.shape == (1, 50, 50)


def test_what_is_drawn_on_the_cropped_off_part_is_named():
    way = fit(torch.zeros(3, 100, 200), 50, 50)[1]
    visible = r"keep x from 49.5 to 149.5 and y from -0.5 to 99.5"
    mask = torch.ones(1, 100, 200)
    with pytest.raises(ValueError, match=rf"arrows\[1\]: the point \(40, 5\) is cut off.*50x50: {visible}"):
        fit_controls(of([[60, 20, 100, 40], [60, 5, 40, 5]], mask), way)
    with pytest.raises(ValueError, match=rf"pins\[0\]: the point \(150, 5\) is cut off.*{visible}"):
        fit_controls(of([], mask, pins=[[150, 5]]), way)


@pytest.mark.parametrize("kind", ["eulerian", "advected"])
def test_every_arrow_is_met_at_its_start_and_pins_stand_still(kind):
    """Though they are near each other by the reach of a point, 16 px."""
    controls = of([[20, 20, 36, 20], [28, 24, 28, 8, 2], [40, 40, 32, 44]], pins=[[24, 21], [30, 30]])
    dense = field(controls, field=kind).per_step[0]
    for arrow in controls.arrows:
        (x0, y0), (x1, y1) = arrow.path
        wanted = torch.tensor([x1 - x0, y1 - y0]) / 8 * arrow.speed
        torch.testing.assert_close(dense[:, int(y0), int(x0)], wanted, atol=1e-5, rtol=0)
    for x, y in controls.pins:
        assert dense[:, int(y), int(x)].abs().max() < 1e-9
    assert dense[:, 22, 22].abs().min() > 0.1


@pytest.mark.parametrize("span", [5, 9, 25])
def test_one_arrow_moves_by_its_displacement_in_its_span_however_long_the_video(span):
    controls = of([[20, 20, 44, 10]])
    for num_frames in (span, 5 * span):
        steps = field(controls, num_frames=num_frames, span=span, threshold=0).per_step
        assert steps.shape == (num_frames - 1, 2, 48, 64)
        torch.testing.assert_close(steps[: span - 1, :, 20, 20].sum(0), torch.tensor([24.0, -10.0]))
    fast = field(of([[20, 20, 44, 10, 2.5]]), span=span)
    torch.testing.assert_close(fast.dense[:, 20, 20], torch.tensor([60.0, -25.0]) / (span - 1))


@pytest.mark.parametrize("changes", [{}, {"normalized": False, "threshold_on": "magnitude"}, {"normalized": True}])
def test_a_reversed_arrow_gives_the_reversed_field_exactly(changes):
    arrows, turned = [[20, 20, 30, 25], [40, 30, 33, 40]], [[20, 20, 10, 15], [40, 30, 47, 20]]
    there, back = field(of(arrows), **changes), field(of(turned), **changes)
    assert torch.equal(there.per_step, -back.per_step)
    assert there.dense.abs().max() > 0.5


@pytest.mark.parametrize("kind", ["eulerian", "advected"])
def test_nothing_moves_outside_the_mask(kind):
    mask = (torch.rand(1, 48, 64, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    controls, kept = of([[20, 20, 36, 30]], mask), mask.clone()
    steps = field(controls, field=kind).per_step
    assert (steps * (1 - mask)).eq(0).all()
    assert (steps[:, :, mask[0] > 0] != 0).any()
    assert torch.equal(mask, kept)


def test_an_advected_field_is_carried_with_its_arrow():
    # 2 px a step to the right, 1 down: whole pixels, so that each field is the one before it, moved.
    steps = field(of([[10, 10, 26, 18]]), field="advected", sigma=0.15, normalized=False).per_step
    torch.testing.assert_close(steps[1:, :, 1:, 2:], steps[:-1, :, :-1, :-2], atol=1e-5, rtol=0)
    lengths = steps.norm(dim=1).flatten(1).argmax(1)
    assert [(int(i % 64), int(i // 64)) for i in lengths] == [(10 + 2 * t, 10 + t) for t in range(8)]
    torch.testing.assert_close(steps[0], field(of([[10, 10, 26, 18]]), sigma=0.15, normalized=False).dense)


def test_a_path_is_followed_at_one_speed_and_straight_on_after_its_end():
    # 12 px right and 24 px down in 9 steps of 4 px; 3 further steps.
    controls = of([{"path": [[10, 5], [22, 5], [22, 29]]}])
    fields = field(controls, field="advected", span=10, num_frames=13)
    place = np.array([10, 5])
    expected = [(4, 0)] * 3 + [(0, 4)] * 9
    for step, wanted in zip(fields.per_step, expected, strict=True):
        np.testing.assert_allclose(step[:, place[1], place[0]], wanted, atol=1e-5)
        place = place + wanted


def test_a_path_s_steady_field_turns_at_its_corners():
    dense = field(of([{"path": [[10, 5], [22, 5], [22, 29]]}]), span=10).dense
    torch.testing.assert_close(dense[:, 5, 10], torch.tensor([4.0, 0.0]))
    torch.testing.assert_close(dense[:, 5, 22], torch.tensor([0.0, 4.0]))
    assert (dense[:, 5, 16] > 1).all()


def test_without_arrows_the_field_is_zero_and_with_pins_alone_too():
    for controls in (of([]), of([], pins=[[3, 4]])):
        for kind in ("eulerian", "advected"):
            fields = field(controls, field=kind)
            assert fields.per_step.shape == (8, 2, 48, 64)
            assert fields.per_step.dtype == torch.float32
            assert fields.per_step.eq(0).all()


def test_the_refiner_sees_the_hint_and_its_field_is_repeated():
    torch.manual_seed(0)
    refiner = FlowRefiner(width=8, depth=2, motion_norm=0.02, sees_image=True, sees_mask=True)
    torch.nn.init.normal_(refiner.head.weight, std=0.1)
    mask = MASK.clone()
    mask[:, :10] = 0
    image = torch.rand(3, 48, 64) * 2 - 1
    fields = field(of([[20, 20, 36, 30]], mask), image=image, refiner=refiner.refine)
    assert torch.equal(fields.refined, refiner.refine(image[None], fields.dense[None], mask[None])[0])
    assert not torch.equal(fields.refined, fields.dense)
    assert torch.equal(fields.per_step, fields.refined.expand(8, 2, 48, 64))
    escaping = field(of([[20, 20, 36, 30]], mask), image=image, refiner=lambda _, hint, __: hint + 1)
    assert (escaping.per_step * (1 - mask)).eq(0).all()
    with pytest.raises(ValueError, match="needs the image and field='eulerian'"):
        field(of([[20, 20, 36, 30]]), refiner=refiner.refine)
    with pytest.raises(ValueError, match="field='advected': a refiner needs"):
        field(of([[20, 20, 36, 30]]), image=image, refiner=refiner.refine, field="advected")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 1}, "num_frames=1, span=9: motion needs"),
        ({"span": 1}, "span=1: motion needs"),
        ({"field": "lagrangian"}, "field='lagrangian': must be 'eulerian' or 'advected'"),
        ({"normalized": True}, "normalized=True: 1 pins need 'exact'"),
        ({"normalized": "mean"}, "normalized=mean: 1 pins need 'exact'"),
        ({"sigma": 0}, "sigma=0: must be above 0"),
        ({"threshold_on": "magnitude", "threshold": 90}, "the arrows move nothing.*threshold=90 on the magnitude"),
    ],
)
def test_a_bad_option_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        field(of([[20, 20, 36, 30]], pins=[[3, 4]]), **changes)


def test_arrows_out_of_reach_of_the_mask_are_no_silent_still():
    mask = torch.zeros(1, 48, 64)
    mask[:, 40:, 56:] = 1
    with pytest.raises(ValueError, match="the arrows move nothing: start them in or near the mask"):
        field(of([[2, 2, 9, 9]], mask), sigma=0.1)


def test_strength_is_the_inverse_of_the_models_id(denoiser: Denoiser):
    for strength in (0.0, 100.0, 127.0, 400.0):
        px = strength_to_px(strength, median_strength=denoiser.motion.median_strength, width=64)
        assert float(denoiser.motion.strength_id(torch.tensor(px), 64)) == pytest.approx(strength, rel=1e-6)
    assert strength_to_px(127, median_strength=0.01, width=64) == pytest.approx(0.64)


@pytest.mark.parametrize("strength", [-1, float("nan"), float("inf")])
def test_a_strength_that_is_none_is_named(strength):
    with pytest.raises(ValueError, match=r"strength=.*must be at least 0"):
        strength_to_px(strength, median_strength=0.01, width=64)


def test_a_field_gets_the_strength_asked_for_and_keeps_its_directions():
    mask = MASK.clone()
    mask[:, :, 48:] = 0
    flow = field(of([[20, 20, 36, 30], [40, 10, 30, 10]])._replace(mask=mask)).per_step
    kept, moving = flow.clone(), flow.norm(dim=1) > 0
    assert 0.1 < moving.float().mean() < 0.76
    for strength in (100, 200, 400):
        scaled = with_strength(flow, strength, median_strength=0.0067)
        wanted = strength_to_px(strength, median_strength=0.0067, width=64)
        assert float(scaled.norm(dim=1)[moving].mean()) == pytest.approx(wanted, rel=1e-4)
        torch.testing.assert_close(scaled, flow * (scaled.norm() / flow.norm()))
    assert torch.equal(flow, kept)
    assert with_strength(flow, None, median_strength=0.0067) is flow
    assert with_strength(flow, 0, median_strength=0.0067).eq(0).all()
    still = torch.zeros(8, 2, 48, 64)
    assert torch.equal(with_strength(still, 200, median_strength=0.0067), still)


def test_both_configs_bind_and_differ_as_the_paper_does():
    controls = of([[20, 20, 36, 20], [24, 20, 40, 20]])
    configs = {name: composed("experiment=motion_lora", f"+controls={name}") for name in ("default", "paper")}
    for name, cfg in configs.items():
        check_binding(OmegaConf.to_container(cfg.controls, resolve=True))
        assert cfg.controls.sigma * 512 == 170
        assert (cfg.controls.threshold, cfg.controls.span) == (0.05, cfg.scale.num_frames)
        made = instantiate(cfg.controls)
        assert isinstance(made, functools.partial)
        dense = made(controls, num_frames=31).dense
        assert dense[0, 20, 20] >= 16 / 15 - 1e-5, name
    assert configs["default"].controls.normalized == "exact"
    paper = configs["paper"].controls
    assert (paper.normalized, paper.threshold_on) == (False, "magnitude")
    # As printed, two arrows that agree move faster than either; ours move as fast as both.
    assert instantiate(paper)(controls, num_frames=31).dense[0, 20, 20] > 2
    torch.testing.assert_close(
        instantiate(configs["default"].controls)(controls, num_frames=31).dense[0, 20, 20], torch.tensor(16 / 15)
    )


def test_an_arrow_is_a_plain_value():
    assert parse_controls([[1, 2, 3, 4]], MASK).arrows == (Arrow(((1.0, 2.0), (3.0, 4.0)), 1.0),)


def test_a_soft_edge_fades_without_a_mask_and_fills_one():
    drawn = of([[32, 24, 44, 24]])
    cut, soft = (field(drawn, edge=edge).dense[0] for edge in ("cut", "soft"))
    assert soft[24, 32] == pytest.approx(cut[24, 32].item(), rel=1e-5), "the arrow itself is met"
    for flow, largest in ((cut, 0.9), (soft, 0.1)):
        steps = torch.cat([flow.diff(dim=0).abs().flatten(), flow.diff(dim=1).abs().flatten()])
        assert (steps.max() / flow.max() > 0.5) == (largest > 0.5)
    assert (soft <= cut + 1e-6).all()
    mask = torch.zeros_like(MASK)
    mask[:, 20:30] = 1
    filled = field(drawn._replace(mask=mask), edge="soft").dense
    torch.testing.assert_close(filled[0], mask[0] * cut[24, 32], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="edge='hard'"):
        field(drawn, edge="hard")
