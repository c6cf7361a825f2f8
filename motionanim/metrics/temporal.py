"""Seams, loops and flicker: pure functions on frames (T, 3, H, W) in [-1, 1], and their classes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from motionanim.metrics.base import ClipMetric
from motionanim.metrics.frame import check_clips
from motionanim.metrics.motion import FlowEstimator
from motionanim.motion.flow import pixel_grid, warp

# Two pictures that differ by rounding to 8 bits alone differ by this much: no change of a video means less.
LEAST_CHANGE = 1 / (255 * 6**0.5)
LEAST_ERROR = 1e-10  # squared error of frames in [-1, 1] that counts as equal: 106 dB
# Sundaram, Brox and Keutzer (ECCV 2010): what a pixel's flow and the flow back may differ by.
OCCLUSION_SHARE, OCCLUSION_SLACK = 0.01, 0.5


def frame_changes(frames: Tensor) -> Tensor:
    """Root mean square change from each frame to the next: (T-1,), as a share of the pixel range."""
    return frames.float().diff(dim=0).square().mean((1, 2, 3)).sqrt() / 2


def seam_ratio(frames: Tensor, borders: Sequence[int]) -> float:
    """Mean change at segment borders over the median change elsewhere: 1 is smooth.

    Args:
        frames: (T, 3, H, W).
        borders: First frames of the segments after the first, in [1, T-1]; for clips of L frames that follow each
            other, range(L, T, L).

    Raises:
        ValueError: If there is no border, nothing elsewhere, or a border outside the video.
    """
    changes = frame_changes(frames)
    border = torch.zeros(len(changes), dtype=torch.bool)
    if not borders or min(borders) < 1 or max(borders) >= len(frames) or len(set(borders)) == len(changes):
        raise ValueError(f"borders={list(borders)}: must be some, not all, of the frames 1 to {len(frames) - 1}")
    border[torch.tensor(borders) - 1] = True
    return _ratio(changes[border].mean(), changes[~border].median())


def wrap_ratio(frames: Tensor) -> float:
    """Change from the last frame back to the first over the median change within: 1 is a perfect loop."""
    closing = frame_changes(torch.stack([frames[-1], frames[0]]))[0]
    return _ratio(closing, frame_changes(frames).median())


def _ratio(change: Tensor, usual: Tensor) -> float:
    # A still video has no seam, and a jump in an otherwise still one is as large as 8 bits can tell.
    return (change.clamp(min=LEAST_CHANGE) / usual.clamp(min=LEAST_CHANGE)).item()


def periodicity(frames: Tensor, period: int) -> float:
    """The loop detector: mean PSNR in dB between frames one period apart; high for a video that begins again.

    Raises:
        ValueError: If the video is no longer than a period.
    """
    if not 1 <= period < len(frames):
        raise ValueError(f"period={period} of {len(frames)} frames: must be in [1, {len(frames) - 1}]")
    error = (frames[period:].float() - frames[:-period].float()).square().mean((1, 2, 3))
    return (10 * torch.log10(4 / error.clamp(min=LEAST_ERROR))).mean().item()


def inside(flow: Tensor) -> Tensor:
    """Whose target lies in the picture: flow (N, 2, H, W), px, to (N, H, W) bool."""
    x, y = (pixel_grid(*flow.shape[-2:], device=flow.device) + flow).unbind(1)
    return (x >= 0) & (x <= flow.shape[-1] - 1) & (y >= 0) & (y <= flow.shape[-2] - 1)


def visible(flow: Tensor, back: Tensor) -> Tensor:
    """Which pixels the other frame shows too: the occlusion test of Sundaram et al. (ECCV 2010).

    A pixel is visible if its target is `inside` and |w + w'|^2 < 0.01 (|w|^2 + |w'|^2) + 0.5, where w is its flow and
    w' the flow back from its target. Ruder et al. (GCPR 2016) and Lai et al. also leave out motion borders; we do not.

    Args:
        flow: (N, 2, H, W), px.
        back: (N, 2, H, W), px: flow of the other frame to this one.

    Returns:
        (N, H, W) bool.
    """
    returned = warp(back, flow)
    lengths = flow.square().sum(1) + returned.square().sum(1)
    return inside(flow) & ((flow + returned).square().sum(1) < OCCLUSION_SHARE * lengths + OCCLUSION_SLACK)


def warp_error(frames: Tensor, forward: Tensor, backward: Tensor) -> float:
    """Root of the warping error E_warp of Lai et al. (ECCV 2018): change along the motion where both frames show it.

    E_warp is the mean over frames t of the mean squared difference of frame t and frame t + 1 carried back, RGB in
    [0, 1], over visible pixels. Lai et al. take flow and occlusion from the video that was processed; a generated one
    has only its own. So motion without sense hides as occlusion, and `flicker`, which hides none, is read beside it.

    Args:
        frames: (T, 3, H, W) in [-1, 1].
        forward: (T-1, 2, H, W) px, frame k to k + 1.
        backward: (T-1, 2, H, W) px, frame k + 1 to k.

    Returns:
        Share of the pixel range; 0 for a still video; NaN if no pixel of any frame is visible.
    """
    error = (warp(frames[1:], forward) - frames[:-1]).square().mean(1) / 4
    seen = visible(forward, backward)
    return ((error * seen).sum((1, 2)) / seen.sum((1, 2))).nanmean().sqrt().item()


def flicker(frames: Tensor, forward: Tensor, backward: Tensor) -> float:
    """Root mean square distance of frames from the mean of their neighbours, carried along one steady motion.

    Half the second difference of x at t - 1, t and t + 1 at places p - u, p and p + u, where u is the mean of the flow
    to t + 1 and the flow from t - 1. A steady change of light is none, one frame that is brighter by a counts a. Each
    neighbour along its own flow would call stutter and shuffled frames smooth: a flow estimator follows any jump.

    Args:
        frames, forward, backward: As in `warp_error`. Pixels count whose p + u and p - u are `inside` the picture,
            occluded or not.

    Returns:
        Share of the pixel range; 0 for a still video; NaN below 3 frames or if no pixel counts.
    """
    steady = (forward[1:] - backward[:-1]) / 2
    expected = (warp(frames[2:], steady) + warp(frames[:-2], -steady)) / 2
    error = (frames[1:-1] - expected).square().mean(1) / 4
    return error[inside(steady) & inside(-steady)].mean().sqrt().item()


class Temporal(ClipMetric):
    """`seam_ratio`, `wrap_ratio` and `periodicity` over clips.

    Without borders there is neither a seam nor a window to begin again, so only `wrap_ratio` has a value.
    """

    keys = ("seam_ratio", "wrap_ratio", "periodicity")
    needs = ("frames", "segment_starts", "period")

    def score(self, frames: Tensor, borders: Sequence[int], period: int) -> Tensor:
        """Scores of frames (B, T, 3, H, W) that share their borders and their window of `period` frames: (B, 3).

        Raises:
            ValueError: If frames or a border are not as in `seam_ratio`, or the period is below 1.
        """
        check_clips("frames", frames)
        if period < 1:
            raise ValueError(f"period={period}: must be at least 1, the frames of one window of the model")
        nan, length = float("nan"), frames.shape[1]
        seams = 0 < len(set(borders)) < length - 1
        rows = [
            (
                seam_ratio(clip, borders) if seams else nan,
                wrap_ratio(clip),
                periodicity(clip, period) if len(borders) and period < length else nan,
            )
            for clip in frames.cpu()
        ]
        return torch.tensor(rows, dtype=torch.float64)

    @property
    def protocol(self) -> dict[str, Any]:
        return {"metric": "temporal", "least_change": LEAST_CHANGE, "least_error": LEAST_ERROR}


class Consistency(ClipMetric):
    """`warp_error` and `flicker` over clips, by flow estimated on the frames both ways.

    Args:
        flow_estimator: Whose flow the frames are carried along.
    """

    higher_is_better = False
    keys = ("warp_error", "flicker")
    needs = ("frames",)

    def __init__(self, *, flow_estimator: FlowEstimator, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.flow_estimator = flow_estimator

    def score(self, frames: Tensor) -> Tensor:
        """Scores of frames (B, T, 3, H, W): (B, 2).

        Raises:
            ValueError: If `check_clips` does.
        """
        check_clips("frames", frames)
        rows = []
        for clip in frames.detach().cpu().float():
            forward = self.flow_estimator(clip).cpu()
            backward = self.flow_estimator(clip.flip(0)).cpu().flip(0)
            rows.append((warp_error(clip, forward, backward), flicker(clip, forward, backward)))
        return torch.tensor(rows, dtype=torch.float64)

    @property
    def protocol(self) -> dict[str, Any]:
        return {
            "metric": "consistency", "flow": self.flow_estimator.name, "reference": "itself",
            "flicker": "steady", "occlusion": [OCCLUSION_SHARE, OCCLUSION_SLACK],
        }  # fmt: skip
