"""Drift of videos that blur, fade, change colour or dissolve into blocks, against those that only move."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import wasserstein_distance
from skimage.color import rgb2lab
from small_networks import Encoder
from torch import Tensor

from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.data.video import Video
from motionanim.media.image_io import from_uint8
from motionanim.metrics.drift import ClipDrift, Drift, colour_drift, quarters, sharpness_drift, texture_drift
from motionanim.metrics.perceptual import clip_pixels

LENGTH = 40


def picture(height: int = 64, width: int = 64) -> Tensor:
    """A picture with contours of all sizes, periodic, in [-0.8, 0.8]."""
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(3, height, width)
    for size in (4, 8, 16, 32, 64):
        coarse = torch.rand(1, 3, size, size, generator=generator) - 0.5
        coarse = F.pad(coarse, (0, 1, 0, 1), mode="circular")
        total += F.interpolate(coarse, size=(height + 1, width + 1), mode="bilinear", align_corners=True)[
            0, :, :-1, :-1
        ]
    return (total / 2).clamp(-0.8, 0.8)


def moving() -> Tensor:
    """Frames (T, 3, 64, 64): the picture slides and comes in again at the other side, 3 px right and 1 down a frame."""
    return torch.stack([picture().roll((t, 3 * t), (1, 2)) for t in range(LENGTH)])


def later(frames: Tensor, change) -> Tensor:
    """Frames with `change(frame, share)` made to each, share from 0 to 1."""
    return torch.stack([change(frame, t / (len(frames) - 1)) for t, frame in enumerate(frames)])


def blurred(frame: Tensor, share: float) -> Tensor:
    soft = F.avg_pool2d(F.pad(frame[None], (2, 2, 2, 2), mode="circular"), 5, stride=1)[0]
    return frame + share * (soft - frame)


def tinted(frame: Tensor, share: float) -> Tensor:
    return frame + share * torch.tensor([0.15, 0.0, -0.15]).view(3, 1, 1)


def blocks(frame: Tensor, share: float) -> Tensor:
    height, width = frame.shape[1] // 8 * 8, frame.shape[2] // 8 * 8
    coarse = F.interpolate(F.avg_pool2d(frame[None], 8), size=(height, width), mode="nearest")[0]
    made = frame.clone()
    made[:, :height, :width] += share * (coarse - frame[:, :height, :width])
    return made


def noisy(frame: Tensor, share: float) -> Tensor:
    return (frame + 0.2 * share * torch.randn(frame.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)


def row(frames: Tensor) -> dict[str, float]:
    return dict(zip(Drift.keys, Drift().score(frames[None])[0].tolist(), strict=True))


def test_a_still_video_has_none_and_one_that_only_moves_hardly_any() -> None:
    still = row(picture().expand(LENGTH, -1, -1, -1))
    assert list(still.values()) == [0, 0, 0, 0, 0, 1]
    moved = row(moving())
    assert max(moved[f"drift_{end}"] for end in (25, 50, 75, 100)) < 0.03
    assert moved["colour_drift"] < 0.01
    assert moved["sharpness_drift"] == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("change", [blurred, blocks, noisy])
def test_a_video_that_loses_its_texture_drifts_more_and_more(change) -> None:
    found = row(later(moving(), change))
    curve = [found[f"drift_{end}"] for end in (25, 50, 75, 100)]
    assert all(first < second for first, second in itertools.pairwise(curve))
    assert curve[-1] > 0.15
    sharper = found["sharpness_drift"]
    assert sharper > 1.1 if change is noisy else sharper < 0.9


def test_a_cast_is_a_drift_of_colour_and_of_nothing_else() -> None:
    frames = later(moving(), tinted)
    found = row(frames)
    assert found["colour_drift"] > 5
    assert found["drift_100"] < 0.1
    assert found["sharpness_drift"] == pytest.approx(1, abs=0.05)


def test_a_plain_change_of_colour_is_its_distance_in_lab() -> None:
    before, after = (torch.tensor(colour).view(3, 1, 1).expand(2, 3, 8, 8) for colour in ([0.1, -0.3, 0.5], [0.2] * 3))
    expected = np.linalg.norm(rgb2lab([0.6] * 3) - rgb2lab([0.55, 0.35, 0.75]))
    assert colour_drift(before, after) == pytest.approx(expected, rel=1e-3)


def test_the_distances_are_wassersteins_of_scikit_images_lab() -> None:
    first, last = picture(), later(moving(), blurred)[-1]
    lab = [rgb2lab((each * 0.5 + 0.5).permute(1, 2, 0).double().numpy()) for each in (first, last)]
    by_channel = [wasserstein_distance(lab[0][..., k].ravel(), lab[1][..., k].ravel()) for k in range(3)]
    assert colour_drift(first[None], last[None]) == pytest.approx(np.linalg.norm(by_channel), rel=0.02)
    light = [
        np.abs(np.diff(each[..., 0], axis=0)).mean() + np.abs(np.diff(each[..., 0], axis=1)).mean() for each in lab
    ]
    assert sharpness_drift(first[None], last[None]) == pytest.approx(light[1] / light[0], rel=1e-3)
    # Of three levels the first is checked by hand, on frames that the others do not see: halved, they are plain.
    steps = [
        np.concatenate([np.linalg.norm(np.diff(each, axis=axis), axis=-1).ravel() for axis in (0, 1)]) for each in lab
    ]
    first_level = wasserstein_distance(*steps) / steps[0].mean()
    assert 0.3 < first_level < 1
    clip = torch.stack([first, *[last] * 4])
    drift = texture_drift(clip)
    assert (drift == drift[0]).all()
    assert first_level / 3 < drift[0] < first_level  # the coarser levels lose less by a small blur


def test_quarters_share_the_later_frames_and_short_clips_lack_some() -> None:
    assert [list(part) for part in quarters(9)] == [[1, 2], [3, 4], [5, 6], [7, 8]]
    for length in (5, 16, 125):
        assert list(itertools.chain(*quarters(length))) == list(range(1, length))
        assert {len(part) for part in quarters(length)} <= {(length - 1) // 4, -(-(length - 1) // 4)}
    short = Drift().score(moving()[None, :3])[0]
    assert short.isnan().tolist() == [True, False, True, False, False, False]


def test_frames_that_are_too_small_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"frames of \(6, 32\) px: drift needs sides of at least 8 px"):
        Drift().score(torch.zeros(1, 4, 3, 6, 32))


def test_a_fade_from_black_has_no_drift_rather_than_an_endless_one() -> None:
    faded = moving() * torch.linspace(0, 1, len(moving())).view(-1, 1, 1, 1)
    drift = dict(zip(Drift.keys, Drift().score(faded[None])[0].tolist(), strict=True))
    assert all(math.isnan(drift[key]) for key in ("drift_25", "drift_50", "drift_75", "drift_100"))
    assert drift["colour_drift"] > 1
    assert all(map(math.isfinite, Drift().score(moving()[None])[0].tolist()))


@pytest.mark.slow
def test_true_clips_of_the_world_drift_less_than_the_same_clips_falling_apart() -> None:
    world = SyntheticClips(seed=2, length=8, num_frames=33, height=64, width=64, fps=7, moving_camera=0.0, split="val")
    for position in (0, 1, 3):  # a wheel, a river, a sea
        frames = world.clip(position).frames
        true = row(frames)
        for change, key in ((blurred, "drift_100"), (blocks, "drift_100"), (tinted, "colour_drift")):
            assert row(later(frames, change).clamp(-1, 1))[key] > 1.5 * true[key], (position, change)


def test_clip_similarity_to_the_first_frame_is_the_mean_cosine_of_each_quarter() -> None:
    metric, frames = ClipDrift(encoder=Encoder(), batch=5), moving()[:9]
    embeddings = metric.network(clip_pixels(frames)).double()
    cosine = F.cosine_similarity(embeddings, embeddings[:1])
    expected = [cosine[[1, 2]].mean(), cosine[[3, 4]].mean(), cosine[[5, 6]].mean(), cosine[[7, 8]].mean()]
    torch.testing.assert_close(metric.score(frames[None])[0], torch.stack(expected))
    torch.testing.assert_close(metric.score(frames[None, :1].expand(1, 9, -1, -1, -1))[0], torch.ones(4).double())
    assert metric.score(frames[None, :3])[0].isnan().tolist() == [True, False, True, False]


def read(path: Path) -> Tensor:
    """The first 60 frames of a video, at least 96 px a side."""
    return from_uint8(torch.from_numpy(Video(path).read(np.arange(60), height=96, width=96))).permute(0, 3, 1, 2)


@pytest.mark.slow
def test_real_water_and_leaves_drift_little_and_blur_and_blocks_much(shared: Path) -> None:
    names = ("calm_river", "stream_90frames", "rain_on_leaves", "seafront", "flower_cc0")
    for name in names:
        frames = read(shared / "clips" / f"{name}.mp4")
        true = row(frames)
        assert true["drift_100"] < 0.1, name
        assert abs(math.log(true["sharpness_drift"])) < 0.15, name
        for change in (blurred, blocks):
            assert row(later(frames, change))["drift_100"] > 2.5 * true["drift_100"], (name, change)
        assert row(later(frames, tinted).clamp(-1, 1))["colour_drift"] > 2.5 * true["colour_drift"], name
