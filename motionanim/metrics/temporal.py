"""Seams, loops and flicker: functions on frames (T, 3, H, W) in [-1, 1], and their metric classes."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from motionanim.metrics.base import ClipMetric, Column
from motionanim.metrics.frame import check_clips
from motionanim.metrics.motion import FlowEstimator
from motionanim.motion.flow import pixel_grid, warp

# RMS difference of two pictures that differ only by rounding to 8 bits: smaller changes count as this one.
LEAST_CHANGE = 1 / (255 * 6**0.5)
LEAST_ERROR = 1e-10  # least squared error of frames in [-1, 1], which is 106 dB
# How far the flow of a pixel and the flow back may differ (Sundaram, Brox and Keutzer, ECCV 2010).
OCCLUSION_SHARE, OCCLUSION_SLACK = 0.01, 0.5
_FROZEN = "a frozen picture scores 0"


def frame_changes(frames: Tensor) -> Tensor:
    """Root mean square change from each frame to the next: (T-1,), as a share of the pixel range."""
    return frames.float().diff(dim=0).square().mean((1, 2, 3)).sqrt() / 2


def seam_ratio(frames: Tensor, segment_starts: Sequence[int]) -> float:
    """Mean change into the first frame of a segment over the mean of all other changes: 1 is smooth.

    Args:
        frames: (T, 3, H, W).
        segment_starts: First frames of the segments after the first, in [1, T-1]: range(L, T, L) for segments of L
            frames one after another.

    Raises:
        ValueError: If there is no start, a start at every frame, or one outside the video.
    """
    changes, starts = frame_changes(frames), set(segment_starts)
    if not starts or min(starts) < 1 or max(starts) >= len(frames) or len(starts) == len(changes):
        raise ValueError(
            f"segment_starts={list(segment_starts)}: must be some, not all, of the frames 1 to {len(frames) - 1}"
        )
    seam = torch.zeros(len(changes), dtype=torch.bool)
    seam[torch.tensor(list(starts)) - 1] = True
    return _ratio(changes[seam].mean(), changes[~seam].mean())


def wrap_ratio(frames: Tensor) -> float:
    """Change from the last frame back to the first over the median change within: 1 is a perfect loop."""
    closing = frame_changes(torch.stack([frames[-1], frames[0]]))[0]
    return _ratio(closing, frame_changes(frames).median())


def _ratio(change: Tensor, usual: Tensor) -> float:
    # The clamps give 1 to a still video, and a finite number to a jump in an otherwise still one.
    return (change.clamp(min=LEAST_CHANGE) / usual.clamp(min=LEAST_CHANGE)).item()


def periodicity(frames: Tensor, period: int) -> float:
    """Mean PSNR in dB between frames one period apart: high for a video that begins again.

    Raises:
        ValueError: If the video is no longer than a period.
    """
    if not 1 <= period < len(frames):
        raise ValueError(f"period={period} of {len(frames)} frames: must be in [1, {len(frames) - 1}]")
    error = (frames[period:].float() - frames[:-period].float()).square().mean((1, 2, 3))
    return (10 * torch.log10(4 / error.clamp(min=LEAST_ERROR))).mean().item()


def inside(flow: Tensor) -> Tensor:
    """Pixels whose target lies in the picture: flow (N, 2, H, W), px, to (N, H, W) bool."""
    x, y = (pixel_grid(*flow.shape[-2:], device=flow.device) + flow).unbind(1)
    return (x >= 0) & (x <= flow.shape[-1] - 1) & (y >= 0) & (y <= flow.shape[-2] - 1)


def visible(flow: Tensor, back: Tensor) -> Tensor:
    """Pixels that the other frame shows too, by the occlusion test of Sundaram et al. (ECCV 2010).

    A pixel is visible if its target is `inside` and |w + w'|^2 < 0.01 (|w|^2 + |w'|^2) + 0.5, where w is its flow and
    w' the flow back from its target. Unlike Ruder et al. (GCPR 2016) and Lai et al., motion borders are not left out.

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
    """Root of the warping error E_warp of Lai et al. (ECCV 2018): the change along the motion of visible pixels.

    E_warp is the mean over frames t of the mean squared difference of frame t and frame t + 1 warped to it, RGB in
    [0, 1], over `visible` pixels. Lai et al. take flow and occlusion from the input video; a generated video has only
    its own. Random motion may therefore count as occlusion; `flicker` leaves out no occlusion.

    Args:
        frames: (T, 3, H, W) in [-1, 1].
        forward: (T-1, 2, H, W) px, frame k to k + 1.
        backward: (T-1, 2, H, W) px, frame k + 1 to k.

    Returns:
        A share of the pixel range; 0 for a still video; NaN if no pixel of any frame is visible.
    """
    error = (warp(frames[1:], forward) - frames[:-1]).square().mean(1) / 4
    seen = visible(forward, backward)
    return ((error * seen).sum((1, 2)) / seen.sum((1, 2))).nanmean().sqrt().item()


def flicker(frames: Tensor, forward: Tensor, backward: Tensor) -> float:
    """Root mean square distance of frames from the mean of their neighbours, warped along one steady motion.

    For pixel p of frame t it is half the second difference of frames t - 1, t and t + 1 at p - u, p and p + u, where u
    is the mean of the flow to t + 1 and the flow from t - 1. A steady change of brightness scores 0, and one frame
    that is brighter by a scores a. Both neighbours use the same u because a flow estimator follows any jump: along its
    own flow, each neighbour of a stutter or of shuffled frames would fit.

    Args:
        frames, forward, backward: As in `warp_error`. A pixel counts if p + u and p - u are `inside`, occluded or not.

    Returns:
        A share of the pixel range; 0 for a still video; NaN below 3 frames or if no pixel counts.
    """
    steady = (forward[1:] - backward[:-1]) / 2
    expected = (warp(frames[2:], steady) + warp(frames[:-2], -steady)) / 2
    error = (frames[1:-1] - expected).square().mean(1) / 4
    return error[inside(steady) & inside(-steady)].mean().sqrt().item()


class Temporal(ClipMetric):
    """`seam_ratio` and `periodicity` of videos of several segments, and `wrap_ratio` of videos that shall loop."""

    columns = (
        Column("seam_ratio", "Seam ratio", 2, "real", "long", range=(0, math.inf)),
        Column(
            "wrap_ratio", "Wrap ratio", 2, None, "long", remark="of videos that shall loop; 1 is a perfect loop",
            range=(0, math.inf),
        ),
        Column("periodicity", "Periodicity", 2, None, "long", "dB", remark="high for a video that begins again"),
    )  # fmt: skip
    needs = ("frames", "segment_starts", "period", "loop")
    undefined = "one segment only, or no loop was asked for"

    def score(self, frames: Tensor, segment_starts: Sequence[int], period: int, loop: bool) -> Tensor:
        """Scores (B, 3) of frames (B, T, 3, H, W) that share their segments and their window of `period` frames.

        `loop` says whether the last frame shall lead back to the first.

        Raises:
            ValueError: If frames or starts are not as in `seam_ratio`, or the period is below 1.
        """
        check_clips("frames", frames)
        if period < 1:
            raise ValueError(f"period={period}: must be at least 1, the frames of one window of the model")
        nan, length = float("nan"), frames.shape[1]
        seams = 0 < len(set(segment_starts)) < length - 1
        rows = [
            (
                seam_ratio(clip, segment_starts) if seams else nan,
                wrap_ratio(clip) if loop else nan,
                periodicity(clip, period) if len(segment_starts) and period < length else nan,
            )
            for clip in frames.detach().cpu().float()
        ]
        return torch.tensor(rows, dtype=torch.float64)

    @property
    def protocol(self) -> dict[str, Any]:
        return {"metric": "temporal", "version": 2, "least_change": LEAST_CHANGE, "least_error": LEAST_ERROR}


class Consistency(ClipMetric):
    """`warp_error` and `flicker` over clips, with forward and backward flow estimated on the scored frames."""

    columns = (
        Column("warp_error", "Warping error", 4, "lower", "quality", remark=_FROZEN, range=(0, 1)),
        Column("flicker", "Flicker", 4, "lower", "quality", remark=_FROZEN, range=(0, 1)),
    )
    needs = ("frames",)
    undefined = "fewer than 3 frames, or no pixel is seen twice"

    def __init__(self, *, flow_estimator: FlowEstimator, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.flow_estimator = flow_estimator

    def score(self, frames: Tensor) -> Tensor:
        """Scores (B, 2) of frames (B, T, 3, H, W).

        Raises:
            ValueError: As `check_clips`.
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
            "flicker": "steady", "version": 1, "occlusion": [OCCLUSION_SHARE, OCCLUSION_SLACK],
        }  # fmt: skip
