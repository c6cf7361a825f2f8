"""The motion field of a drawing, against traced paths and identities; drawings are read in test_drawing."""

import functools
import math

import numpy as np
import pytest
import torch
from configs import _fresh_hydra, check_binding, composed  # noqa: F401  the fixture clears Hydra's global state
from hydra.utils import instantiate
from motion_fields import MASK, field
from motion_fields import drawn as of
from omegaconf import OmegaConf

from motionanim.media.image_io import fit, stretched
from motionanim.models.flow_refiner import FlowRefiner
from motionanim.models.svd.denoiser import Denoiser
from motionanim.motion.controls import at_strength, fit_controls
from motionanim.motion.drawing import path_length
from motionanim.motion.flow import motion_strength, resize_flow, strength_to_px, with_strength
from motionanim.motion.paths import path_hint
from motionanim.types import Hint


def test_controls_go_with_their_photo_and_what_is_cropped_off_is_named():
    way = fit(torch.zeros(3, 100, 200), 50, 50)[1]
    mask = torch.zeros(1, 100, 200)
    mask[:, :, 50:100] = 1
    moved = fit_controls(of([[60, 20, 100, 40, 2]], mask, pins=[[50, 0]]), way)
    expected = way.points(torch.tensor([[60.0, 20.0], [100.0, 40.0], [50.0, 0.0]])).tolist()
    assert np.allclose([*moved.arrows[0].path, *moved.pins], expected)
    assert moved.arrows[0].speed == 2
    assert torch.equal(moved.mask, way.mask(mask))
    visible, whole = r"keep x from 49.5 to 149.5 and y from -0.5 to 99.5", torch.ones(1, 100, 200)
    with pytest.raises(ValueError, match=rf"arrows\[1\]: the point \(40, 5\) is cut off.*50x50: {visible}"):
        fit_controls(of([[60, 20, 100, 40], [60, 5, 40, 5]], whole), way)
    with pytest.raises(ValueError, match=r"pins\[0\]: the point \(150, 5\) is cut off"):
        fit_controls(of([], whole, pins=[[150, 5]]), way)


@pytest.mark.parametrize("kind", ["eulerian", "advected"])
def test_every_arrow_is_met_at_its_start_and_pins_stand_still(kind):
    """Though they are nearer to each other than the reach of a point, 16 px."""
    controls = of([[20, 20, 36, 20], [28, 24, 28, 8, 2], [40, 40, 32, 44]], pins=[[24, 21], [30, 30]])
    dense = field(controls, field=kind).per_step[0]
    for arrow in controls.arrows:
        (x0, y0), (x1, y1) = arrow.path
        wanted = torch.tensor([x1 - x0, y1 - y0]) / 8 * arrow.speed
        torch.testing.assert_close(dense[:, int(y0), int(x0)], wanted, atol=1e-5, rtol=0)
    for x, y in controls.pins:
        assert dense[:, int(y), int(x)].abs().max() < 1e-9
    assert dense[:, 22, 22].abs().min() > 0.1


def bilinear(flow, place):
    """A field (2, H, W) at a point (x, y)."""
    x, y = np.clip(place, 0, np.array(flow.shape[:0:-1]) - 1)
    i, j = min(int(x), flow.shape[2] - 2), min(int(y), flow.shape[1] - 2)
    across, down = np.array([1 - (x - i), x - i]), np.array([1 - (y - j), y - j])
    return np.einsum("cyx,y,x->c", flow[:, j : j + 2, i : i + 2], down, across)


def streamline(flow, place, steps, parts=4):
    """Where a point moves to: Runge-Kutta of order 4 in float64."""
    flow, place, h = flow.double().numpy(), np.array(place, dtype=np.float64), 1 / parts
    for _ in range(steps * parts):
        a = bilinear(flow, place)
        b = bilinear(flow, place + h / 2 * a)
        c = bilinear(flow, place + h / 2 * b)
        place = place + h / 6 * (a + 2 * b + 2 * c + bilinear(flow, place + h * c))
    return place


def missed(drawn, mask=None, **changes):
    """Distance from the moved tail of each arrow to its tip, as shares of the paths' lengths; 128 px frame."""
    controls = of(drawn, torch.ones(1, 128, 128) if mask is None else mask, changes.pop("pins", ()))
    flow = field(controls, span=16, num_frames=16, edge="soft", **changes).dense
    ends = [(streamline(flow, arrow.path[0], 15), arrow) for arrow in controls.arrows]
    return [math.dist(end, arrow.path[-1]) / path_length(arrow) for end, arrow in ends]


STRIP = torch.zeros(1, 128, 128)
STRIP[:, 40:90] = 1
RING = [[64 + 30 * math.cos(a), 64 + 30 * math.sin(a)] for a in np.linspace(0, 1.5 * math.pi, 60)]


@pytest.mark.parametrize("mask", [None, STRIP], ids=["no mask", "mask"])
@pytest.mark.parametrize("length", [10, 50, 100])
def test_an_arrow_arrives(length, mask):
    """S1: with its start as the only entry it went .98 to .54 of the way without a mask."""
    assert missed([[14, 60.3, 14 + length, 60.3 + 0.1 * length]], mask)[0] < 0.01
    assert length < 100 or mask is not None or missed([[14, 60, 114, 60]], entries="start")[0] > 0.3


@pytest.mark.parametrize(
    ("drawn", "pins"),
    [
        ([{"path": [[20, 50], [60, 50], [60, 85]]}], ()),
        ([{"path": [[20, 50], [26, 50], [26, 58]]}], ()),
        ([{"path": [[20, 60], [40, 70], [60, 60], [80, 70], [100, 60]]}], ()),
        ([{"path": RING}], ()),
        ([[20, 60, 90, 60], [90, 64, 20, 64]], ()),
        ([[20, 60, 100, 60], [20, 75, 30, 75]], ()),
        ([[20, 60, 90, 60]], [(50, 62), (50, 57)]),
    ],
    ids=["corner", "small corner", "zigzag", "ring", "opposite, 4 px apart", "fast beside slow", "between pins"],
)
def test_content_follows_a_path_whatever_is_drawn_beside_it(drawn, pins):
    assert max(missed(drawn, pins=pins)) < 0.01


def test_a_large_field_is_made_small_and_arrives_all_the_same(monkeypatch):
    drawn = [{"path": [[20, 50], [60, 50], [60, 85]]}, [100, 100, 30, 104]]
    whole = field(of(drawn, torch.ones(1, 128, 128)), edge="soft").dense
    monkeypatch.setattr("motionanim.motion.paths._MOST_PIXELS", 64 * 64)
    enlarged = field(of(drawn, torch.ones(1, 128, 128)), edge="soft").dense
    assert not torch.equal(enlarged, whole)
    assert (enlarged - whole).abs().mean() < 0.005 * whole.abs().max()
    assert max(missed(drawn)) < 0.02


@pytest.mark.parametrize("span", [5, 25])
def test_one_arrow_moves_by_its_displacement_in_its_span_however_long_the_video(span):
    controls = of([[20, 20, 44, 10]])
    for num_frames in (span, 5 * span):
        steps = field(controls, num_frames=num_frames, span=span, threshold=0).per_step
        assert steps.shape == (num_frames - 1, 2, 48, 64)
        torch.testing.assert_close(steps[: span - 1, :, 20, 20].sum(0), torch.tensor([24.0, -10.0]))
    fast = field(of([[20, 20, 44, 10, 2.5]]), span=span)
    torch.testing.assert_close(fast.dense[:, 20, 20], torch.tensor([60.0, -25.0]) / (span - 1))


@pytest.mark.parametrize("changes", [{}, {"normalized": False, "threshold_on": "magnitude"}, {"normalized": True}])
@pytest.mark.parametrize(
    ("entries", "turned"),
    [
        ("start", [[20, 20, 10, 15], [40, 30, 47, 20]]),  # to the other side
        ("path", [[30, 25, 20, 20], [33, 40, 40, 30]]),  # from tip to tail
    ],
)
def test_a_reversed_arrow_gives_the_reversed_field(changes, entries, turned):
    arrows = [[20, 20, 30, 25], [40, 30, 33, 40]]
    there, back = (field(of(drawn), entries=entries, **changes) for drawn in (arrows, turned))
    torch.testing.assert_close(there.per_step, -back.per_step, atol=1e-5, rtol=1e-5)
    assert there.dense.abs().max() > 0.5


@pytest.mark.parametrize("kind", ["eulerian", "advected"])
def test_nothing_moves_outside_the_mask_nor_without_arrows(kind):
    mask = (torch.rand(1, 48, 64, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    controls, kept = of([[20, 20, 36, 30]], mask), mask.clone()
    steps = field(controls, field=kind).per_step
    assert (steps * (1 - mask)).eq(0).all()
    assert (steps[:, :, mask[0] > 0] != 0).any()
    assert torch.equal(mask, kept)
    for still in (of([]), of([], pins=[[3, 4]])):
        steps = field(still, field=kind).per_step
        assert (steps.shape, steps.dtype) == ((8, 2, 48, 64), torch.float32)
        assert steps.eq(0).all()


def test_an_advected_field_moves_with_its_arrow():
    # 2 px per step to the right, 1 down: whole pixels, so that each field is the one before it, moved.
    steps = field(of([[10, 10, 26, 18]]), field="advected", sigma=0.15, normalized=False).per_step
    torch.testing.assert_close(steps[1:, :, 1:, 2:], steps[:-1, :, :-1, :-2], atol=1e-5, rtol=0)
    lengths = steps.norm(dim=1).flatten(1).argmax(1)
    assert [(int(i % 64), int(i // 64)) for i in lengths] == [(10 + 2 * t, 10 + t) for t in range(8)]
    start = field(of([[10, 10, 26, 18]]), sigma=0.15, normalized=False, entries="start").dense
    torch.testing.assert_close(steps[0], start)


CORNER = [{"path": [[10, 5], [22, 5], [22, 29]]}]  # 12 px right, 24 px down


def test_an_advected_path_is_followed_at_one_speed_and_straight_on_after_its_end():
    fields = field(of(CORNER), field="advected", span=10, num_frames=13)  # 9 steps of 4 px, and 3 further steps
    place = np.array([10, 5])
    for step, wanted in zip(fields.per_step, [(4, 0)] * 3 + [(0, 4)] * 9, strict=True):
        np.testing.assert_allclose(step[:, place[1], place[0]], wanted, atol=1e-5)
        place = place + wanted


def test_a_path_s_steady_field_turns_at_its_corners():
    dense = field(of(CORNER), span=10).dense
    torch.testing.assert_close(dense[:, 5, 10:22], torch.tensor([[4.0], [0.0]]).expand(2, 12), atol=1e-4, rtol=0)
    torch.testing.assert_close(dense[:, 6:30, 22], torch.tensor([[0.0], [4.0]]).expand(2, 24), atol=1e-4, rtol=0)
    assert (dense[:, 5, 22] > 1).all(), "the corner itself has the mean"
    starts = field(of(CORNER), span=10, entries="start").dense
    torch.testing.assert_close(starts[:, 5, [10, 22]], torch.tensor([[4.0, 0.0], [0.0, 4.0]]))
    assert (starts[:, 5, 16] > 1).all()


def refiner(side: int = 48) -> FlowRefiner:
    torch.manual_seed(0)
    network = FlowRefiner(width=8, depth=2, side=side, sees_image=True)
    torch.nn.init.normal_(network.head.weight, std=0.1)
    return network


def test_t_is_used_where_neither_a_mask_nor_a_region_bounds_the_arrows():
    image, whole = torch.rand(3, 48, 48) * 2 - 1, torch.ones(1, 48, 48)
    path = torch.tensor([[20.0, 20.0], [36.0, 30.0]], dtype=torch.float64)
    free = field(of([[20, 20, 36, 30]], whole), image=image, refiner=refiner())
    speed = float(torch.linalg.vector_norm(path[1] - path[0])) / 8
    hint = path_hint([path], [speed], torch.zeros(0, 2), 48, 48, sigma=0.33, normalized="exact")
    expected = refiner().refine(image[None], Hint(*(each[None] for each in hint)), whole[None])[0]
    torch.testing.assert_close(free.refined, expected)
    assert not torch.equal(free.refined, free.dense)
    assert torch.equal(free.per_step, free.refined.expand(8, 2, 48, 48))
    mask = whole.clone()
    mask[:, :10] = 0
    bounded = field(of([[20, 20, 36, 30]], mask), image=image, refiner=refiner())
    assert torch.equal(bounded.refined, bounded.dense)
    region = {"path": [[20, 20], [24, 24]], "region": [[[10, 10], [30, 10], [30, 30], [10, 30]]]}
    both = field(of([[40, 40, 44, 40], region], whole), image=image, refiner=refiner())
    assert torch.equal(both.refined[:, 11:30, 11:30], both.dense[:, 11:30, 11:30])
    assert not torch.equal(both.refined[:, 31:, 31:], both.dense[:, 31:, 31:])
    for change in ({"field": "advected"}, {"entries": "start"}, {"normalized": True}):  # T was not trained on these
        made = field(of([[20, 20, 36, 30]], whole), image=image, refiner=refiner(), **change)
        assert torch.equal(made.refined, made.dense)
        assert made.dense.any()


def test_t_works_at_its_own_size_whatever_the_photo_s():
    large = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    small, way = stretched(large, 24, 24)
    at_small = way.points(torch.tensor([[20.0, 20.0], [36.0, 30.0]])).flatten().tolist()
    whole = field(of([[20.0, 20.0, 36.0, 30.0]], torch.ones(1, 96, 96)), image=large, refiner=refiner(24))
    shrunk = field(of([at_small], torch.ones(1, 24, 24)), image=small, refiner=refiner(24))
    torch.testing.assert_close(whole.refined, resize_flow(shrunk.refined, 96, 96), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 1}, "num_frames=1, span=9: motion needs"),
        ({"field": "lagrangian"}, "field='lagrangian': must be 'eulerian' or 'advected'"),
        ({"normalized": True}, "normalized=True: 1 pins need 'exact'"),
        ({"sigma": 0}, "sigma=0: must be above 0"),
        ({"edge": "hard"}, "edge='hard'"),
        ({"refiner": refiner()}, "image=None: a refiner needs the image"),
        ({"strength": -1.0, "median_strength": 0.01}, "strength=-1.0: must be at least 0"),
        ({"threshold_on": "magnitude", "threshold": 90}, "the arrows move nothing.*threshold=90 on the magnitude"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_option_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        field(of([[20, 20, 36, 30]], pins=[[3, 4]]), **changes)


def test_arrows_out_of_reach_of_the_mask_are_no_silent_still():
    mask = torch.zeros(1, 48, 64)
    mask[:, 40:, 56:] = 1
    with pytest.raises(ValueError, match="the arrows move nothing: start them in or near the mask"):
        field(of([[2, 2, 9, 9]])._replace(mask=mask), sigma=0.1)


def test_strength_is_the_inverse_of_the_models_id(denoiser: Denoiser):
    for strength in (0.0, 100.0, 127.0, 400.0):
        px = strength_to_px(strength, median_strength=denoiser.motion.median_strength, width=64)
        assert float(denoiser.motion.strength_id(torch.tensor(px), 64)) == pytest.approx(strength, rel=1e-6)
    assert strength_to_px(127, median_strength=0.01, width=64) == pytest.approx(0.64)
    for strength in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"strength=.*must be at least 0"):
            strength_to_px(strength, median_strength=0.01, width=64)


HALF = MASK.clone()
HALF[:, :, 48:] = 0


@pytest.mark.parametrize("kind", ["eulerian", "advected"])
@pytest.mark.parametrize("strength", [127, 400])
def test_a_strength_is_one_speed_with_and_without_a_mask(strength, kind):
    """S2, S3. The speed at the arrow; an advected field travels at it too."""
    wanted, told = strength_to_px(strength, median_strength=0.0067, width=64), []
    for mask in (MASK, HALF):
        drawn = of([[20, 20, 36, 30]], mask)
        made = field(drawn, field=kind, edge="soft", strength=strength, median_strength=0.0067).per_step
        assert float(made[0, :, 20, 20].norm()) == pytest.approx(wanted, rel=0.05)
        place = torch.tensor([20.0, 20.0])
        for step in made:
            place += step[:, int(place[1].round()), int(place[0].round())]
        assert float((place - torch.tensor([20.0, 20.0])).norm()) == pytest.approx(8 * wanted, rel=0.05)
        told.append(float(motion_strength(made[None])))
    assert told[0] < wanted, "Eq. 8 counts still pixels too"
    assert told[1] == pytest.approx(wanted * float(HALF.mean()), rel=1e-3) or kind == "advected"


def test_a_strength_keeps_the_ratio_of_speeds_and_the_other_kinds():
    wheel = {"path": [[50, 20], [52, 26]], "kind": "turn", "region": [{"brush": [[45, 22]], "radius": 9}]}
    drawn = of([[20, 20, 36, 20], [20, 40, 24, 40], wheel])
    scaled = at_strength(drawn, 254, span=9, median_strength=0.01)
    speeds = [arrow.speed * length / 8 for arrow, length in zip(scaled.arrows, (16, 4))]
    assert speeds == pytest.approx([4 * 1.28 * 0.4, 4 * 1.28 * 0.1]), "their mean is 1.28 px, as 254 says"
    assert scaled.arrows[2] is drawn.arrows[2]
    assert field(drawn, strength=0, median_strength=0.01).dense.eq(0).all()
    assert at_strength(of([]), 100, span=9, median_strength=0.01).arrows == ()


def test_a_measured_field_gets_the_strength_asked_for_and_keeps_its_directions():
    mask = (torch.rand(8, 1, 48, 64, generator=torch.Generator().manual_seed(0)) > 0.7).float()
    uniform = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1) * mask
    noisy = uniform + 0.01 * torch.randn(8, 2, 48, 64, generator=torch.Generator().manual_seed(1))
    wanted = strength_to_px(200, median_strength=0.0067, width=64)
    for flow in (uniform, noisy):
        kept = flow.clone()
        scaled = with_strength(flow, 200, median_strength=0.0067)
        assert float(scaled.norm(dim=1)[mask[:, 0] > 0].mean()) == pytest.approx(wanted, rel=0.01)
        torch.testing.assert_close(scaled, flow * (scaled.norm() / flow.norm()))
        assert torch.equal(flow, kept)
    assert with_strength(uniform, None, median_strength=0.0067) is uniform
    assert with_strength(uniform, 0, median_strength=0.0067).eq(0).all()
    still = torch.zeros(8, 2, 48, 64)
    assert torch.equal(with_strength(still, 200, median_strength=0.0067), still)


@pytest.mark.slow
def test_both_configs_bind_and_differ_as_the_paper_does():
    controls = of([[20, 20, 36, 20], [24, 20, 40, 20]])
    configs = {name: composed(f"hint={name}", config="animate").controls for name in ("default", "paper")}
    assert composed("hint=paper", config="evaluate").controls.entries == configs["paper"].entries
    speeds = {}
    for name, config in configs.items():
        check_binding(OmegaConf.to_container(config, resolve=True))
        assert (config.sigma * 512, config.threshold) == (170, 0.05)
        made = instantiate(config)
        assert isinstance(made, functools.partial)
        speeds[name] = float(made(controls, num_frames=31).dense[0, 20, 20])
    paper = configs["paper"]
    assert (paper.normalized, paper.threshold_on, paper.edge, paper.entries) == (False, "magnitude", "cut", "start")
    assert speeds["default"] == pytest.approx(16 / 15), "two arrows that agree move as fast as each"
    assert speeds["paper"] > 2, "as printed they move faster than either"


def test_a_soft_edge_fades_without_a_mask_and_fills_one():
    drawn = of([[32, 24, 44, 24]])
    cut, soft = (field(drawn, edge=edge).dense[0] for edge in ("cut", "soft"))
    assert soft[24, 32] == pytest.approx(cut[24, 32].item(), rel=1e-5), "the arrow itself is met"
    for flow, sudden in ((cut, True), (soft, False)):
        steps = torch.cat([flow.diff(dim=0).abs().flatten(), flow.diff(dim=1).abs().flatten()])
        assert (steps.max() / flow.max() > 0.5) == sudden
    assert (soft <= cut + 1e-6).all()
    mask = torch.zeros_like(MASK)
    mask[:, 20:30] = 1
    filled = field(drawn._replace(mask=mask), edge="soft").dense
    torch.testing.assert_close(filled[0], mask[0] * cut[24, 32], rtol=1e-5, atol=1e-6)
