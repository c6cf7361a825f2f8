"""The controllability table: what was asked for against what the generated frames do."""

import math
from typing import Any

import torch
from torch import Tensor

from motionanim.metrics.base import ClipMetric
from motionanim.metrics.frame import check_clips
from motionanim.metrics.motion import (
    MARGIN,
    MOVED,
    REGION,
    FlowEstimator,
    field_direction_error,
    field_gain,
    flow_epe,
    moved_precision_recall,
    region_strength,
    static_change,
    static_drift,
    still_region,
)
from motionanim.motion import camera

WITHIN = 30.0  # degrees
LEAST_BACKGROUND = 16  # pixels that `motion.camera.camera_residual` needs


def background_residual(flow: Tensor, movable: Tensor) -> float:
    """`camera_residual` of a flow (T-1, 2, H, W) where `movable` (1, H, W) is 0, a share of the diagonal per frame.

    NaN below `LEAST_BACKGROUND` pixels.
    """
    background = movable[0] == 0
    return camera.camera_residual(flow, background) if background.sum() >= LEAST_BACKGROUND else float("nan")


class Control(ClipMetric):
    """Realised flow, estimated on the generated frames, against the requested flow and the mask.

    Read it beside the true clips' row: what an estimator cannot see is missing there too. And beside a still copy's:
    it has no drift, no change and no precision. The steps of shuffled frames add up to a part of the true way, so
    their gain is about a half; `direction_error` tells them apart.

    Args:
        flow_estimator: Which flow counts as realised.
    """

    keys = (
        "flow_epe", "direction_error", "within_30", "speed_gain", "requested_strength", "realised_strength",
        "static_drift", "static_change", "moved_precision", "moved_recall", "camera_residual",
    )  # fmt: skip
    needs = ("frames", "flow", "mask")

    def __init__(self, *, flow_estimator: FlowEstimator, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.flow_estimator = flow_estimator

    def score(self, frames: Tensor, flow: Tensor, mask: Tensor) -> Tensor:
        """Scores of frames (B, T, 3, H, W), requested flow (B, T-1, 2, H, W) and mask (B, 1, H, W): (B, 11).

        Raises:
            ValueError: If a shape or range is not as above, or the flow is not finite.
        """
        check_clips("frames", frames)
        count, length, _, *size = frames.shape
        for name, value, shape in (("flow", flow, (count, length - 1, 2, *size)), ("mask", mask, (count, 1, *size))):
            if value.shape != shape:
                raise ValueError(f"{name} of shape {tuple(value.shape)}: must be {shape}, as the frames are")
        if not bool(torch.isfinite(flow).all()):
            raise ValueError("flow is not finite: no motion can be held against it")
        clips = zip(*(value.detach().cpu().float() for value in (frames, flow, mask)))
        return torch.tensor([self._score(*clip) for clip in clips], dtype=torch.float64)

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
