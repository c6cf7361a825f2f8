"""The synthetic world has exact flow and equally sharp frames, and a position always gives the same clip."""

import numpy as np
import pytest
import torch
from configs import _fresh_hydra, composed  # noqa: F401  the fixture clears Hydra's global state
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from motionanim.data.stream import rng
from motionanim.data.synthetic import clips as synthetic
from motionanim.data.synthetic import layers, scenes, textures
from motionanim.data.synthetic.cameras import Camera
from motionanim.data.synthetic.clips import SyntheticClips, SyntheticFlowPairs, synthetic_data
from motionanim.data.synthetic.photometric import vary
from motionanim.motion import flow as flow_math
from motionanim.types import Hint

SIZE = {"num_frames": 6, "height": 48, "width": 64}
OPTIONS = {**SIZE, "moving_camera": 0.5, "split": "train"}
STAGE = layers.Stage(**SIZE)
SCENES = [scenes.river, scenes.pond, scenes.sky, scenes.wheel, scenes.drift, scenes.foliage]


def world(**changes) -> SyntheticClips:
    return SyntheticClips(**{"seed": 3, "length": 4, "fps": 7, **OPTIONS, **changes})


def render(scene, seed: int, *, moving_camera: float = 0.0, stage: layers.Stage = STAGE) -> synthetic.SyntheticClip:
    return synthetic._render(
        rng(seed, 0), stage, moving_camera=moving_camera, camera="any", split="train", kinds=((scene, 1),)
    )


def smooth_interior(clip: synthetic.SyntheticClip) -> torch.Tensor:
    """(T-1, H, W) bool: far from jumps of the flow in both frames, and with a target well inside the picture."""
    flow = clip.flow
    count, _, height, width = flow.shape
    jump = torch.zeros(count, height, width)
    jump[:, :, 1:] += (flow[..., 1:] - flow[..., :-1]).abs().amax(1) > 0.12
    jump[:, 1:] += (flow[..., 1:, :] - flow[..., :-1, :]).abs().amax(1) > 0.12
    either = torch.maximum(jump, torch.cat([jump[1:], jump[-1:]]))
    near = torch.nn.functional.max_pool2d(either, 9, stride=1, padding=4) > 0
    target = flow_math.pixel_grid(height, width) + flow
    inside = (target[:, 0] > 1) & (target[:, 0] < width - 2) & (target[:, 1] > 1) & (target[:, 1] < height - 2)
    return inside & ~near


@pytest.mark.slow
def test_items_are_functions_of_seed_and_position_in_any_process():
    clips = world()
    clip = clips.clip(2)
    assert [tuple(t.shape) for t in clip] == [(6, 3, 48, 64), (5, 2, 48, 64), (5, 2, 48, 64), (1, 48, 64)]
    assert all(t.dtype == torch.float32 for t in clip)
    assert clip.frames.abs().max() <= 1
    assert set(clip.mask.unique().tolist()) <= {0.0, 1.0}
    assert (len(clips), clips[5].fps.item(), clips[5].position.item()) == (4, 7.0, 5)
    assert torch.equal(clips[2].frames, clip.frames)
    assert all(torch.equal(a, b) for a, b in zip(world()[90], clips[90])), "what was drawn before does not matter"
    assert not torch.equal(clips[90].frames, clips[91].frames)
    assert not torch.equal(clips[1].frames, world(seed=4)[1].frames)
    shared = torch.utils.data.DataLoader(clips, batch_size=2, num_workers=1)
    alone = torch.utils.data.DataLoader(clips, batch_size=2)
    assert all(torch.equal(a, b) for x, y in zip(alone, shared) for a, b in zip(x, y))


def blur(frames: torch.Tensor) -> torch.Tensor:
    """Remove fine detail, which bilinear warping softens."""
    for _ in range(2):
        frames = torch.nn.functional.avg_pool2d(frames, 3, stride=1, padding=1, count_include_pad=False)
    return frames


@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("moving_camera", [0.0, 1.0])
def test_flow_carries_each_frame_to_the_next(scene, moving_camera):
    """The true flow explains the next frame, and flows 5 % slower or faster explain it worse."""
    unmoved, errors = 0.0, {0.95: 0.0, 1.0: 0.0, 1.05: 0.0}
    stage = layers.Stage(num_frames=3, height=80, width=112)
    for seed in range(5):
        clip = render(scene, seed, moving_camera=moving_camera, stage=stage)
        valid = smooth_interior(clip) & (clip.flow.norm(dim=1) > 0.3)
        frames = blur(clip.frames)
        unmoved += ((frames[1:] - frames[:-1]).pow(2).mean(1) * valid).sum().item()
        for scale in errors:
            warped = flow_math.warp(frames[1:], scale * clip.flow)
            errors[scale] += ((warped - frames[:-1]).pow(2).mean(1) * valid).sum().item()
    assert unmoved > 0
    assert errors[1.0] < 0.05 * unmoved
    assert errors[1.0] < min(errors[0.95], errors[1.05])


@pytest.mark.slow
@given(st.integers(0, 10**6), st.integers(0, 4))
@settings(max_examples=15, deadline=None)
def test_a_step_keeps_hold_of_its_material(seed, time):
    """The material that shows at p at t shows at step(p) at t + 1."""
    generator = np.random.default_rng(seed)
    points = tuple(generator.uniform(4, 44, (2, 50, 1)).astype(np.float32))
    for scene in SCENES:
        for layer in scene(generator, STAGE, textures.draw_style(generator, "train")):
            if layer.motion is not None:
                before = layer.motion.material(points, time)
                after = layer.motion.material(layer.motion.step(points, time), time + 1)
                assert np.allclose(before, after, atol=0.08)


def test_drift_moves_by_its_velocity_and_rotation_turns_about_its_centre():
    points = (np.array([[3.0]], np.float32), np.array([[5.0]], np.float32))
    assert np.allclose(layers.Drift(1.5, -0.5).step(points, 2), ([[4.5]], [[4.5]]))
    turned = layers.Spin(3.0, 4.0, np.pi / 2).step(points, 0)
    assert np.allclose(turned, ([[2.0]], [[4.0]]), atol=1e-6)  # down turns to the left: clockwise on screen


def test_a_steady_shear_carries_material_along_its_streamlines():
    """Independent reference: v = (0.1 y, 0) has the closed-form displacement t * 0.1 * y."""
    y = np.broadcast_to(np.arange(-8, 60, dtype=np.float32)[:, None], (68, 84))
    motion = layers.Eulerian(np.stack([0.1 * y, 0 * y]), origin=(-10, -8), spacing=1.0, num_frames=6, reference=2)
    points = (np.full((1, 40), 30, np.float32), np.arange(40, dtype=np.float32)[None])
    moved = motion.step(points, 0)
    assert np.allclose(moved[0], 30 + 0.1 * points[1], atol=0.01)
    assert np.allclose(motion.material(points, 5)[0], 30 - 3 * 0.1 * points[1], atol=0.05)


def test_drifting_body_has_its_velocity_as_flow():
    ground = scenes.still(np.random.default_rng(0), STAGE, textures.draw_style(np.random.default_rng(0), "train"))[0]
    square = np.ones((24, 24, 4), np.float32)
    body = scenes._placed(square, 30.0, 20.0, layers.Drift(2.0, 1.0))
    clip = render(lambda *_: [ground, body], 1)
    for k, flow in enumerate(clip.flow):
        assert torch.allclose(flow[:, 20 + k, 30 + 2 * k], torch.tensor([2.0, 1.0]), atol=1e-5)
        assert flow[:, 2, 2].tolist() == [0, 0]
    assert 100 <= clip.mask.sum() <= 196
    assert clip.mask[0, 20, 30] == 1
    assert torch.equal(clip.flow[0] != 0, clip.mask.bool().expand(2, -1, -1))


def camera(**changes) -> Camera:
    still = {"centre": np.array([31.5, 23.5]), "matrix": np.tile(np.eye(2), (6, 1, 1)), "shift": np.zeros((6, 2))}
    return Camera(**{**still, **changes}, moves=True)


def textbook(kind: str) -> tuple[Camera, torch.Tensor]:
    """A camera that moves in one way, and the flow of a still scene that it sees."""
    clock = np.arange(6)
    x, y = flow_math.pixel_grid(48, 64) - torch.tensor([31.5, 23.5]).view(2, 1, 1)
    if kind == "pan":  # a camera that goes right sends the picture left
        view = camera(shift=np.stack([1.25 * clock, -0.5 * clock], -1))
        return view, torch.stack([torch.full((48, 64), -1.25), torch.full((48, 64), 0.5)])
    if kind == "zoom":
        return camera(matrix=0.98 ** clock[:, None, None] * np.eye(2)), torch.stack([x, y]) * (1 / 0.98 - 1)
    cos, sin = np.cos(0.02 * clock), np.sin(0.02 * clock)
    c, s = np.cos(0.02), np.sin(0.02)
    view = camera(matrix=np.stack([cos, -sin, sin, cos], -1).reshape(6, 2, 2))
    return view, torch.stack([c * x + s * y - x, c * y - s * x - y])


@pytest.mark.parametrize("kind", ["pan", "zoom", "roll"])
def test_camera_flow_matches_the_textbook(monkeypatch, kind):
    view, expected = textbook(kind)
    monkeypatch.setattr(synthetic, "draw_camera", lambda *_: view)
    clip = render(scenes.still, 0)
    assert torch.allclose(clip.camera_flow, expected.float().expand(5, -1, -1, -1), atol=1e-4)
    assert torch.allclose(clip.flow, clip.camera_flow, atol=1e-4)


def test_still_camera_has_exactly_zero_flow_and_moving_one_does_not():
    for seed in range(4):
        clip = render(scenes.drift, seed)
        assert torch.count_nonzero(clip.camera_flow) == 0
        assert torch.count_nonzero(clip.flow[0] * (1 - clip.mask)) == 0
        moved = render(scenes.drift, seed, moving_camera=1.0)
        speed = moved.camera_flow.norm(dim=1).mean() / 64
        assert 0.0005 < speed < 0.06
    still = render(scenes.still, 0)
    assert torch.equal(still.frames[0], still.frames[-1])
    assert torch.count_nonzero(still.mask) == 0


def test_the_panning_camera_is_the_same_in_every_clip():
    for seed in range(4):
        clip = world(seed=seed, moving_camera=1.0, camera="pan").clip(0)
        pan = torch.tensor([-0.02 * clip.frames.shape[-1], 0]).view(1, 2, 1, 1)  # the picture moves to the left
        assert torch.allclose(clip.camera_flow, pan.expand_as(clip.camera_flow), atol=1e-4)
    still = world(moving_camera=0.0, camera="pan")[0]
    assert torch.equal(still.frames, world(moving_camera=0.0)[0].frames)


def test_object_speeds_span_the_stated_range():
    draws = [STAGE.speed(np.random.default_rng(i)) / 64 for i in range(400)]
    assert 0.003 <= min(draws) < 0.0035
    assert 0.035 < max(draws) <= 0.04
    assert 0.009 < np.median(draws) < 0.0135  # log-uniform: the geometric mean


@pytest.mark.slow
def test_no_frame_is_sharper_than_another():
    """Compares high-frequency energy, because a network could tell a sharper frame 0."""
    stage = layers.Stage(num_frames=8, height=48, width=48)
    energies = []
    for seed in range(40):
        frames = render((scenes.river, scenes.pond, scenes.sky, scenes.still)[seed % 4], seed, stage=stage).frames
        laplacian = 4 * frames[..., 1:-1, 1:-1] - sum(
            frames.roll(shift, axis)[..., 1:-1, 1:-1] for shift in (1, -1) for axis in (-1, -2)
        )
        energy = laplacian.pow(2).mean((1, 2, 3))
        energies.append(energy / energy.mean())
    mean = torch.stack(energies).mean(0)
    assert abs(mean[0] - mean[1:].mean()) < 0.04


def test_validation_textures_are_held_out():
    def words(split):
        return {half for pair in textures._PALETTES[split] for half in pair}

    assert not words("train") & words("val")
    train = [textures.draw_style(np.random.default_rng(i), "train") for i in range(50)]
    val = [textures.draw_style(np.random.default_rng(i), "val") for i in range(50)]
    assert not set(train[0].corners) & set(val[0].corners)
    assert max(s.slope for s in train) < min(s.slope for s in val)
    assert max(s.power for s in train) < min(s.power for s in val)


def test_flow_pairs_hold_the_steady_field_and_the_hint_made_from_it():
    seen = []

    def hint(flow, mask, generator):
        seen.append((flow, mask, generator.random()))
        return Hint(flow * 0.5, mask, torch.zeros(3, 48, 64))

    pairs = SyntheticFlowPairs(seed=2, length=3, height=48, width=64, split="train", hint=hint)
    for position in (0, 1, 2, 40):
        pair = pairs[position]
        sizes = [(3, 48, 64), (2, 48, 64), (1, 48, 64), (3, 48, 64), (1, 48, 64), (2, 48, 64), ()]
        assert [tuple(t.shape) for t in pair] == sizes
        assert torch.count_nonzero(pair.flow) > 0
        assert torch.count_nonzero(pair.flow * (1 - pair.mask)) == 0
        assert torch.equal(pair.hint.flow, pair.flow * 0.5)
        assert torch.equal(pair.hint.reach, pair.mask)
        assert torch.equal(seen[-1][1], pair.mask)
        assert torch.equal(pairs[position].image, pair.image)
        assert seen[-1][2] == seen[-2][2]
    assert len(pairs) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 1}, "num_frames=1: must be at least 2"),
        ({"height": 8}, "8x64: each must be at least 16"),
        ({"moving_camera": 1.5}, r"moving_camera=1.5: must be a share in \[0, 1\]"),
        ({"camera": "zoom"}, "camera=zoom: must be any or pan"),
        ({"camera": "pan", "moving_camera": 1.0, "num_frames": 27}, "27 frames of camera=pan .* at most 26"),
        ({"split": "test"}, "split='test': must be one of train, val"),
        ({"length": 0}, "length=0: must be at least 1"),
    ],
)
def test_bad_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        world(**change)[0]


@pytest.mark.parametrize(
    ("name", "share", "camera"),
    [("synthetic", 0.5, "any"), ("synthetic_static", 0.0, "any"), ("synthetic_panning", 1.0, "pan")],
)
def test_config_builds_the_kind_of_item_that_the_experiment_reads(name, share, camera):
    config = composed("experiment=motion_lora", f"data={name}", "scale.height=32", "scale.width=32")
    options = OmegaConf.to_container(config.data, resolve=True) | {
        "hint": lambda flow, mask, generator: Hint(flow, mask, torch.zeros(3, 32, 32)),
        "shapes": instantiate(config.data.shapes),
    }
    assert options.pop("_target_") == "motionanim.data.synthetic.clips.synthetic_data"
    data = synthetic_data(**options)
    for split, clips in (("train", data.train), ("val", data.val)):
        assert (clips.moving_camera, clips.camera, clips.split) == (share, camera, split)
        assert clips[0].frames.shape == (16, 3, 32, 32)
    pairs = synthetic_data(**options | {"items": "pairs"})
    assert pairs.train[0].hint.flow.shape == (2, 32, 32)
    with pytest.raises(ValueError, match="items=frames: must be clips or pairs"):
        synthetic_data(**options | {"items": "frames"})


# Training pictures vary in look.


def picture(seed: int) -> torch.Tensor:
    return torch.rand(3, 20, 28, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_same_state_gives_the_same_picture_in_range(seed):
    image = picture(seed)
    kept = image.clone()
    made = vary(image, np.random.default_rng(seed))
    torch.manual_seed(seed + 1)
    assert torch.equal(made, vary(image, np.random.default_rng(seed)))
    assert torch.equal(image, kept)
    assert made.shape == image.shape
    assert made.dtype == torch.float32
    assert made.abs().max() <= 1


def test_pictures_differ_from_draw_to_draw():
    image = picture(0)
    made = torch.stack([vary(image, np.random.default_rng(seed)) for seed in range(20)])
    apart = (made[:, None] - made[None]).abs().mean((2, 3, 4))
    assert (apart + torch.eye(20)).min() > 0.01


def test_only_training_pictures_vary():
    def image(split: str) -> torch.Tensor:
        options = {"hint": lambda flow, mask, generator: (flow, mask, torch.zeros(3, 32, 32)), "split": split}
        return SyntheticFlowPairs(seed=3, length=4, height=32, width=32, **options)[1].image

    assert image("val").unique().numel() > 300, "as rendered, in more than 256 levels"
    levels = (image("train") + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
