"""Does the video move as asked? Realised against requested flow: pure functions on tensors.

An arrow asks a region for one vector: `region_flow`, `direction_error` and `speed_gain`. A motion field asks every
pixel for its own, and the mean of a wheel is zero, so the functions after them compare pixel by pixel.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

# Part of the metrics' definition; lengths are shares of the width, so that they do not depend on resolution.
REGION = 0.5  # of the typical requested speed; slower pixels are too near to none to have a direction
MOVED = 0.002  # per frame; DIS sees 0.0003 on the still parts of 64x64 px clips, the world's slowest objects do 0.003
MARGIN = 0.03  # DIS matches patches of 8 px in frames of 256 and smears motion this far beyond its border


class FlowEstimator(Protocol):
    """Frames (T, 3, H, W) in [-1, 1] to flow (T-1, 2, H, W), px per frame: `DisFlow` or `RaftFlow`."""

    name: str

    def __call__(self, frames: Tensor) -> Tensor: ...


def region_flow(flow: Tensor, region: Tensor) -> Tensor:
    """Mean flow inside a region: (T-1, 2, H, W) px per frame and (1, H, W) in {0, 1} to (2,).

    Raises:
        ValueError: If the region is empty.
    """
    if not region.any():
        raise ValueError("region: empty, so that there is no flow to average")
    return (flow * region).sum((0, 2, 3)) / (region.sum() * len(flow))


def direction_error(realised: Tensor, requested: Tensor) -> float:
    """Angle between two flow vectors (2,) in degrees, in [0, 180]; 90, as by chance, where nothing moved at all."""
    lengths = torch.linalg.vector_norm(realised) * torch.linalg.vector_norm(requested)
    if lengths == 0:
        return 90.0
    return torch.rad2deg(torch.acos((realised @ requested / lengths).clamp(-1, 1))).item()


def speed_gain(realised: Tensor, requested: Tensor) -> float:
    """Realised speed along the requested direction over the requested speed: 1 is exact, negative is backwards."""
    return (realised @ requested / (requested @ requested)).item()


def requested_region(requested: Tensor) -> Tensor:
    """Where and when a clip is clearly asked to move: (T-1, 2, H, W) px per frame to (T-1, H, W) bool.

    At least `REGION` times as fast as the typical speed, sum |q|^2 / sum |q|: the mean over all motion, however much of
    the picture is still. Half of the *fastest* would do for an arrow, but one wild vector of an estimated request
    would leave no other pixel. Frame by frame, so that it follows a body that leaves its place and skips the turning
    points of a swing. Empty where nothing is asked to move.
    """
    speed = _speed(requested)
    return (speed > 0) & (speed * speed.sum() >= REGION * speed.square().sum())


def flow_epe(realised: Tensor, requested: Tensor) -> float:
    """Mean end-point error of two flows (T-1, 2, H, W) inside `requested_region`, px per frame; NaN if it is empty.

    A still video has the mean requested speed there.
    """
    return _speed(realised - requested)[requested_region(requested)].mean().item()


def field_direction_error(realised: Tensor, requested: Tensor) -> float:
    """Mean angle between two flows (T-1, 2, H, W), in degrees, in [0, 180]: 90 is chance, 180 is backwards.

    Pixel by pixel in `requested_region`, weighted by the slower of the two speeds: what stands still has no direction
    and is counted by `field_gain`, and one wild vector weighs no more than it was asked to. The angle of the *mean*
    motion would be blind to motion that is right on average: the steps of shuffled frames add up to a part of the
    true way.

    Returns:
        Degrees; 90 if nothing moved, which random motion has however faint it is; NaN if nothing is asked to move.
    """
    region = requested_region(requested)
    dot, cross = _products(realised, requested)
    angle = torch.rad2deg(torch.atan2(cross.abs(), dot))[region].double()
    weight = torch.minimum(_speed(realised), _speed(requested))[region].double()
    if region.any() and not weight.any():
        return 90.0
    return ((angle * weight).sum() / weight.sum()).item()


def field_gain(realised: Tensor, requested: Tensor) -> float:
    """How much of the requested motion was made: least squares c of realised = c requested, flows (T-1, 2, H, W).

    Over `requested_region`: sum r.q / sum q.q, so that a part that stands still takes its share away. 1 is exact,
    0 still or unrelated, negative backwards; NaN if nothing is asked to move.
    """
    region = requested_region(requested)
    dot, _ = _products(realised, requested)
    return ((dot * region).sum() / (requested.square().sum(1) * region).sum()).item()


def region_strength(flow: Tensor, movable: Tensor) -> float:
    """Motion strength (Eq. 8) of a flow (T-1, 2, H, W) where `movable` (1, H, W) is not 0: mean length, px per frame.

    NaN if nothing is movable.
    """
    return _speed(flow)[:, movable[0] > 0].mean().item()


def moved_precision_recall(realised: Tensor, requested: Tensor) -> tuple[float, float]:
    """Did those pixels move that were asked to? Two flows (T-1, 2, H, W) to (precision, recall).

    A pixel moves in a frame if it is faster than `MOVED`. The truth is the request, not the mask: a mask says where
    pixels *may* move, and may be larger than the field, or smaller once a body has left its place.

    Returns:
        Precision: the share of moved pixels within `MARGIN` of one that was asked to; NaN if none moved.
        Recall: the share of the pixels asked that moved; NaN if none was asked.
    """
    threshold = MOVED * requested.shape[-1]
    moved, asked = _speed(realised) > threshold, _speed(requested) > threshold
    near = _grown(asked)
    return (moved & near).sum().div(moved.sum()).item(), (moved & asked).sum().div(asked.sum()).item()


def still_region(requested: Tensor, movable: Tensor) -> Tensor:
    """Where nothing should ever change: outside the mask, never asked to move, and `MARGIN` away from both.

    Args:
        requested: (T-1, 2, H, W) px per frame.
        movable: (1, H, W), 0 where pixels may not move.

    Returns:
        (1, H, W) bool; nowhere under a camera that is asked to move.
    """
    return ~_grown((movable > 0) | (_speed(requested) > 0).any(0))


def static_drift(flow: Tensor, movable: Tensor) -> float:
    """Mean length of the flow (T-1, 2, H, W) where `movable` (1, H, W) is 0, px per frame; NaN if it is 0 nowhere."""
    return _speed(flow)[:, movable[0] == 0].mean().item()


def static_change(frames: Tensor, movable: Tensor) -> float:
    """Root mean square change of frames (T, 3, H, W) in [-1, 1] where `movable` (1, H, W) is 0.

    From frame 0 to each later one: a still part should keep the picture's colours, and a slow fade is small from each
    frame to the next. As a share of the pixel range; NaN if `movable` is 0 nowhere.
    """
    return ((frames[1:] - frames[:1])[..., movable[0] == 0].square().mean().sqrt() / 2).item()


def _speed(flow: Tensor) -> Tensor:
    return torch.hypot(flow[:, 0], flow[:, 1])


def _products(realised: Tensor, requested: Tensor) -> tuple[Tensor, Tensor]:
    """Inner and outer product of the vectors of each pixel, (T-1, H, W) each."""
    dot = (realised * requested).sum(1)
    return dot, requested[:, 0] * realised[:, 1] - requested[:, 1] * realised[:, 0]


def _grown(region: Tensor) -> Tensor:
    """A region (N, H, W) bool with all pixels in squares of `MARGIN` around it."""
    reach = round(MARGIN * region.shape[-1])
    rows = F.max_pool2d(region.float(), (1, 2 * reach + 1), stride=1, padding=(0, reach))
    return F.max_pool2d(rows, (2 * reach + 1, 1), stride=1, padding=(reach, 0)) > 0
