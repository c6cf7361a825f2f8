"""Seam, wrap, loop and flicker scores of videos whose scores are known."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from motionanim.metrics.temporal import (
    Consistency,
    Temporal,
    flicker,
    frame_changes,
    periodicity,
    seam_ratio,
    visible,
    warp_error,
    wrap_ratio,
)
from motionanim.models.flow_estimator import DisFlow


def sliding(shifts: list[int]) -> Tensor:
    """A texture, smooth and periodic over 32 px, slid sideways by each shift."""
    generator = torch.Generator().manual_seed(0)
    wave = torch.rand(3, 16, 1, generator=generator) * torch.sin(torch.arange(32) * 2 * torch.pi / 32)
    return torch.stack([wave.roll(shift, dims=2) for shift in shifts])


def steady(x: float, frames: int, y: float = 0.0) -> tuple[Tensor, Tensor]:
    """Forward and backward flow of a slide of `sliding`."""
    flow = torch.tensor([x, y]).view(1, 2, 1, 1).expand(frames - 1, 2, 16, 32)
    return flow, -flow


def test_a_steady_slide_has_no_seam_and_a_jump_has_one() -> None:
    assert seam_ratio(sliding(list(range(20))), range(5, 20, 5)) == pytest.approx(1, abs=1e-3)
    jumping = [5 * (t // 5) + t for t in range(20)]  # 6 px instead of 1 at every border
    assert 4 < seam_ratio(sliding(jumping), range(5, 20, 5)) <= 6
    assert seam_ratio(sliding([0] * 10), [5]) == 1.0
    for starts in ([], [0], [20], list(range(1, 20))):
        with pytest.raises(ValueError, match=r"segment_starts=.* the frames 1 to 19"):
            seam_ratio(sliding(list(range(20))), starts)


def test_a_jump_in_a_still_video_is_large_and_finite_and_rounding_is_no_seam() -> None:
    still = sliding([0] * 5 + [4] * 5)
    assert 50 < seam_ratio(still, [5]) < 1000
    assert 50 < wrap_ratio(still) < 1000
    grey = torch.zeros(10, 3, 16, 32)
    grey[5:, :, :2] = 2 / 255  # one level of 8 bits in an eighth of the picture
    assert seam_ratio(grey, [5]) == 1.0


def test_a_full_turn_closes_and_half_a_turn_does_not() -> None:
    assert wrap_ratio(sliding(list(range(32)))) == pytest.approx(1, abs=1e-3)
    assert wrap_ratio(sliding(list(range(16)))) > 8


def test_periodicity_is_high_for_a_repeat_only() -> None:
    assert periodicity(sliding([*range(8)] * 3), 8) == pytest.approx(106.02, abs=0.1)
    frames = sliding(list(range(24)))
    changes = frames.diff(dim=0).square().mean((1, 2, 3)).sqrt() / 2
    torch.testing.assert_close(frame_changes(frames), changes)
    by_hand = 10 * torch.log10(4 / (frames[8:] - frames[:-8]).square().mean())
    assert periodicity(frames, 8) == pytest.approx(by_hand.item(), abs=0.01)
    assert periodicity(frames, 8) < 30
    with pytest.raises(ValueError, match="period=24"):
        periodicity(frames, 24)


def test_true_clips_whose_changes_vary_have_a_seam_ratio_of_1() -> None:
    """Seams are like all other changes, most small and few large: a mean over a median would say 2."""
    steps = torch.tensor([1.0, 1, 7, 1, 1, 7, 1, 1, 7, 1, 1, 7])
    levels = torch.cat([torch.zeros(1), (0.01 * steps * torch.tensor([1.0, -1] * 6)).cumsum(0)])
    frames = levels.view(-1, 1, 1, 1).expand(-1, 3, 4, 4)
    assert seam_ratio(frames, (1, 2, 3)) == pytest.approx(1, abs=1e-3)


def test_the_class_scores_nan_where_a_video_has_no_seam_or_period() -> None:
    metric = Temporal()
    batch = torch.stack([sliding(list(range(20))), sliding([5 * (t // 5) + t for t in range(20)])])
    starts = (5, 10, 15)
    expected = [[seam_ratio(clip, starts), wrap_ratio(clip), periodicity(clip, 5)] for clip in batch]
    torch.testing.assert_close(metric.score(batch, starts, 5, True), torch.tensor(expected, dtype=torch.float64))
    one_segment = metric.score(batch, (), 5, True)
    assert one_segment.isnan().all(0).tolist() == [True, False, True]
    assert metric.score(batch, (), 5, False).isnan().all(), "no loop was asked for"
    torch.testing.assert_close(one_segment[:, 1], torch.tensor(expected, dtype=torch.float64)[:, 1])
    assert metric.score(batch, starts, 20, True)[:, 2].isnan().all()
    assert metric.score(batch[:, :3], (1, 2), 5, True)[:, 0].isnan().all()  # a start at every frame
    for bad_starts, period, message in ((starts, 0, "period=0"), ((25,), 5, r"segment_starts=\[25\]")):
        with pytest.raises(ValueError, match=message):
            metric.score(batch, bad_starts, period, False)


def test_visible_pixels_stay_inside_and_come_back() -> None:
    forward, backward = steady(3.0, 2, y=-1.0)
    expected = torch.zeros(1, 16, 32, dtype=torch.bool)
    expected[:, 1:, :29] = True
    assert torch.equal(visible(forward, backward), expected)
    # |w + w'|^2 = 0.01 (|w|^2 + |w'|^2) + 0.5 for w = (4, 0) and w' = (-4 - s, 0) at s^2 = 0.5 + 0.01 (16 + (4 + s)^2).
    limit = (0.08 + math.sqrt(0.08**2 + 4 * 0.99 * 0.82)) / (2 * 0.99)
    there = steady(4.0, 2)[0]
    back = [steady(-4.0 - limit + step, 2)[0] for step in (0.01, -0.01)]
    assert [bool(visible(there, each)[0, 8, 8]) for each in back] == [True, False]


def lai_warp_error(frames: Tensor, forward: Tensor, backward: Tensor) -> float:
    """E_warp by numpy and scipy, pixel values in [0, 1]."""
    errors = []
    for first, second, there, back in zip(
        frames[:-1].double().numpy(), frames[1:].double().numpy(), forward.double().numpy(), backward.double().numpy()
    ):
        y, x = np.mgrid[: first.shape[1], : first.shape[2]]
        where = np.stack([y + there[1], x + there[0]])
        carried, returned = (
            np.stack([map_coordinates(plane, where, order=1, mode="nearest") for plane in image])
            for image in (second, back)
        )
        seen = ((there + returned) ** 2).sum(0) < 0.01 * ((there**2).sum(0) + (returned**2).sum(0)) + 0.5
        seen &= (where >= 0).all(0) & (where[0] <= first.shape[1] - 1) & (where[1] <= first.shape[2] - 1)
        assert 0.1 < seen.mean() < 0.99
        errors.append(((((first - carried) / 2) ** 2).mean(0) * seen).sum() / seen.sum())
    return float(np.mean(errors))


def test_warp_error_is_the_root_of_an_independent_one() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(4, 3, 16, 32, generator=generator) * 2 - 1
    flow = torch.randn(3, 2, 16, 32, generator=generator)
    back = -flow + 0.5 * torch.randn(3, 2, 16, 32, generator=generator)
    assert warp_error(frames, flow, back) ** 2 == pytest.approx(lai_warp_error(frames, flow, back), rel=1e-5)


def test_a_slide_along_its_flow_has_no_error_and_against_it_has() -> None:
    frames = sliding(list(range(0, 16, 2)))
    right, wrong = steady(2.0, 8), steady(-2.0, 8)
    for metric in (warp_error, flicker):
        assert metric(frames, *right) == pytest.approx(0, abs=1e-6)
    assert warp_error(frames, *wrong) > 0.05


def test_stutter_flickers_though_its_flow_is_exact() -> None:
    shifts = [0, 0, 4, 4, 8, 8, 12, 12]
    steps = torch.tensor(shifts).diff().view(-1, 1, 1, 1) * steady(1.0, 8)[0]
    stutter = sliding(shifts)
    assert warp_error(stutter, steps, -steps) == pytest.approx(0, abs=1e-6)
    # Both neighbours show the wave half way between them, 2 px from where the frame has it.
    halves = zip(shifts[1:-1], shifts[:-2], shifts[2:])
    off = torch.stack([sliding([here])[0] - sliding([(before + after) // 2])[0] for here, before, after in halves])
    assert flicker(stutter, steps, -steps) == pytest.approx(off[..., 2:-2].square().mean().sqrt().item() / 2, rel=1e-4)


def test_flicker_is_a_flash_and_not_a_fade() -> None:
    frames, none = sliding([0] * 5), steady(0.0, 5)
    fade = frames / 2 + torch.linspace(-0.3, 0.3, 5).view(5, 1, 1, 1)
    assert flicker(fade, *none) == pytest.approx(0, abs=1e-6)
    flash = frames / 2
    flash[2] += 0.2
    # The flash differs by 0.1 of the range from its neighbours' mean, and its neighbours by half of that.
    assert flicker(flash, *none) == pytest.approx(math.sqrt((0.05**2 + 0.1**2 + 0.05**2) / 3), rel=1e-4)
    assert warp_error(flash, *none) == pytest.approx(math.sqrt(2 * 0.1**2 / 4), rel=1e-4)


def test_videos_without_visible_pixels_or_with_two_frames_score_nan() -> None:
    assert math.isnan(flicker(sliding([0, 1]), *steady(1.0, 2)))
    assert math.isnan(warp_error(sliding([0, 1]), *steady(40.0, 2)))
    assert math.isnan(flicker(sliding([0, 1, 2]), *steady(40.0, 3)))


def test_the_class_estimates_flow_both_ways() -> None:
    estimate = DisFlow(preset="medium", min_side=64)
    metric = Consistency(flow_estimator=estimate)
    generator = torch.Generator().manual_seed(0)
    canvas = torch.nn.functional.interpolate(
        torch.rand(1, 3, 10, 20, generator=generator), size=(40, 80), mode="bicubic"
    )[0].clamp(0, 1)
    clip = torch.stack([canvas[:, 4:36, 4 + 2 * t : 36 + 2 * t] for t in range(5)]) * 2 - 1
    back = torch.cat([estimate(clip[[k + 1, k]]) for k in range(4)])
    expected = [[warp_error(clip, estimate(clip), back), flicker(clip, estimate(clip), back)]]
    torch.testing.assert_close(metric.score(clip[None]), torch.tensor(expected, dtype=torch.float64))
    assert (metric.score(clip[None]) < metric.score(clip[None, [0, 3, 1, 4, 2]])).all()
