"""Controllability: the requested motion against the motion of the generated frames."""

import math
from abc import abstractmethod
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from motionanim.metrics.base import ClipMetric, Column
from motionanim.metrics.frame import check_clips
from motionanim.metrics.motion import (
    MARGIN,
    MOVED,
    REGION,
    FlowEstimator,
    asked_paths,
    field_direction_error,
    field_gain,
    flow_epe,
    grid_points,
    moved_precision_recall,
    region_strength,
    static_change,
    static_drift,
    still_region,
)
from motionanim.models.point_tracker import PointTracker
from motionanim.motion import camera

WITHIN = 30.0  # degrees
QUERIES, EDGE = 8, 2  # points a side of `PointTracks`, and the px of the mask's edge where none starts
_FROZEN = "a frozen picture scores 0"
LEAST_BACKGROUND = 16  # pixels that `motion.camera.camera_residual` needs


def background_residual(flow: Tensor, movable: Tensor) -> float:
    """`camera_residual` of a flow (T-1, 2, H, W) where `movable` (1, H, W) is 0, as a share of the diagonal per frame.

    NaN with fewer than `LEAST_BACKGROUND` such pixels.
    """
    background = movable[0] == 0
    return camera.camera_residual(flow, background) if background.sum() >= LEAST_BACKGROUND else float("nan")


def check_request(frames: Tensor, flow: Tensor, mask: Tensor) -> None:
    """Raises ValueError unless frames pass `check_clips`, flow is (B, T-1, 2, H, W), finite, and mask (B, 1, H, W)."""
    check_clips("frames", frames)
    count, length, _, *size = frames.shape
    for name, value, shape in (("flow", flow, (count, length - 1, 2, *size)), ("mask", mask, (count, 1, *size))):
        if value.shape != shape:
            raise ValueError(f"{name} of shape {tuple(value.shape)}: must be {shape}, as the frames are")
    if not bool(torch.isfinite(flow).all()):
        raise ValueError("flow is not finite: no motion can be compared with it")


class RequestMetric(ClipMetric):
    """A metric of a video against the motion that was requested of it, one clip at a time."""

    needs = ("frames", "flow", "mask")

    def score(self, frames: Tensor, flow: Tensor, mask: Tensor) -> Tensor:
        """Scores (B, len(keys)).

        Args:
            frames: (B, T, 3, H, W) in [-1, 1].
            flow: (B, T-1, 2, H, W) px per frame, the requested motion.
            mask: (B, 1, H, W) in {0, 1}; 1 where pixels may move.

        Raises:
            ValueError: As `check_request`.
        """
        check_request(frames, flow, mask)
        clips = zip(*(value.detach().cpu().float() for value in (frames, flow, mask)))
        return torch.tensor([self._score(*clip) for clip in clips], dtype=torch.float64)

    @abstractmethod
    def _score(self, frames: Tensor, requested: Tensor, mask: Tensor) -> tuple[float, ...]:
        """Scores of one clip, in the order of `columns`; NaN where it has none."""


class Control(RequestMetric):
    """The flow estimated on the generated frames (realised) against the requested flow and the mask.

    Reference rows give the scale. The true clips show what the estimator cannot see. A still copy has no drift, no
    change and no precision. Shuffled frames have a gain of about a half, because their steps add up to a part of the
    true way; `direction_error` tells them apart.

    Args:
        flow_estimator: Estimates the realised flow.
    """

    columns = (
        Column("flow_epe", "Flow error", 3, "lower", "control", "px/frame", range=(0, math.inf)),
        Column("direction_error", "Direction error", 1, "lower", "control", "°", range=(0, 180)),
        Column("within_30", "Within 30°", 3, "higher", "control", "share", range=(0, 1)),
        Column("speed_gain", "Speed gain", 3, "real", "control"),
        Column("requested_strength", "Requested strength", 3, None, "control", "px/frame", range=(0, math.inf)),
        Column("realised_strength", "Realised strength", 3, None, "control", "px/frame", range=(0, math.inf)),
        Column("static_drift", "Static drift", 4, "lower", "control", remark=_FROZEN, range=(0, math.inf)),
        Column("static_change", "Static change", 4, "lower", "control", remark=_FROZEN, range=(0, 1)),
        Column("moved_precision", "Moved, precision", 3, "higher", "control", range=(0, 1)),
        Column("moved_recall", "Moved, recall", 3, "higher", "control", range=(0, 1)),
        Column("camera_residual", "Camera residual", 5, "lower", "control", "diagonals/frame", range=(0, math.inf)),
    )
    undefined = "nothing moves, or nothing stands still"

    def __init__(self, *, flow_estimator: FlowEstimator, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.flow_estimator = flow_estimator

    def _score(self, frames: Tensor, requested: Tensor, mask: Tensor) -> tuple[float, ...]:
        realised = self.flow_estimator(frames).cpu()
        angle = field_direction_error(realised, requested)
        anywhere = ~still_region(requested, mask)
        return (
            flow_epe(realised, requested),
            angle,
            angle if math.isnan(angle) else float(angle <= WITHIN),
            field_gain(realised, requested),
            region_strength(requested, mask),
            region_strength(realised, mask),
            static_drift(realised, anywhere),
            static_change(frames, anywhere),
            *moved_precision_recall(realised, requested),
            background_residual(realised, mask),
        )

    @property
    def protocol(self) -> dict[str, Any]:
        return {
            "metric": "control", "flow": self.flow_estimator.name, "region": REGION, "angle_weight": "slower speed",
            "moved": MOVED, "margin": MARGIN, "within": WITHIN,
            "camera": [camera.INLIER_DISTANCE, camera.MAX_POINTS, LEAST_BACKGROUND],
        }  # fmt: skip


class PointTracks(RequestMetric):
    """Distance of tracked points from the paths that the requested flow asks of them.

    As ObjMC of MotionCtrl (Wang et al., SIGGRAPH 2024), the mean Euclidean distance between asked and tracked places.
    Here the points are a grid of 8 x 8 over the part that may move. A point counts if it is asked to move, at least
    `MOVED` widths a frame; a frame from 1 on counts if the path goes so far (`asked_paths`) and the tracker sees the
    point there. A still copy scores the mean distance of the asked places from the first ones.

    Args:
        tracker: Such as `LucasKanade`.
    """

    columns = (
        Column(
            "track_error", "Track error", 2, None, "control", "px", range=(0, math.inf),
            remark="over points that the tracker follows, and a video that falls apart loses the hard ones: not ranked",
        ),
        Column("track_error_diagonal", "Track error", 4, None, "control", "diagonals", range=(0, math.inf)),
        Column("track_lost", "Tracks lost", 3, "real", "control", "share", range=(0, 1)),
    )  # fmt: skip
    undefined = "no point moves, or none is followed"

    def __init__(self, *, tracker: PointTracker, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tracker = tracker

    def _score(self, frames: Tensor, requested: Tensor, mask: Tensor) -> tuple[float, float, float]:
        # At the edge a bilinear sample of the flow mixes what moves with what does not.
        kernel = np.ones((2 * EDGE + 1,) * 2, np.uint8)
        inner = torch.from_numpy(cv2.erode((mask[0] > 0).byte().numpy(), kernel)) > 0
        points = grid_points(inner, QUERIES)
        asked, known = asked_paths(requested, points)
        height, width = frames.shape[-2:]
        steps = known[1:].sum(0).clamp_min(1)
        length = (torch.linalg.vector_norm(asked.diff(dim=0), dim=-1) * known[1:]).sum(0)
        moves = length >= MOVED * width * steps
        points, asked, known = points[moves], asked[1:, moves], known[1:, moves]
        if not known.any():
            return (float("nan"),) * 3
        tracked, seen = (part[1:] for part in self.tracker(frames, points))
        counted = known & seen
        error = torch.linalg.vector_norm(tracked - asked, dim=-1)[counted].double().mean().item()
        return error, error / math.hypot(height, width), 1 - (counted.sum() / known.sum()).item()

    @property
    def protocol(self) -> dict[str, Any]:
        return {
            "metric": "point_tracks", "version": 1, "tracker": self.tracker.name, "queries": QUERIES, "edge": EDGE,
            "moved": MOVED, "ends": REGION,
        }  # fmt: skip
