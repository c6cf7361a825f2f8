"""Realised against requested flow.

`region_flow`, `direction_error` and `speed_gain` compare one vector of a region, as an arrow requests it. The other
functions compare fields pixel by pixel: the mean of a field may be zero although everything moves, as on a wheel.
"""

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from motionanim.motion.flow import follow_points, sample

# Parts of the metrics' definitions. Lengths are shares of the width, so that they do not depend on the resolution.
REGION = 0.5  # share of the typical requested speed below which a pixel is too slow to have a direction
MOVED = 0.002  # per frame; DIS measures 0.0003 on still parts of 64 x 64 px clips, the slowest synthetic object 0.003
MARGIN = 0.03  # DIS matches patches of 8 px in frames of 256 px and smears motion so far over its border


class FlowEstimator(Protocol):
    """Maps frames (T, 3, H, W) in [-1, 1] to flow (T-1, 2, H, W), px per frame, as `DisFlow` and `RaftFlow` do."""

    name: str

    def __call__(self, frames: Tensor) -> Tensor: ...


def region_flow(flow: Tensor, region: Tensor) -> Tensor:
    """Mean flow inside a region: (T-1, 2, H, W) px per frame and (1, H, W) in {0, 1} to (2,).

    Raises:
        ValueError: If the region is empty.
    """
    if not region.any():
        raise ValueError("region: empty, so there is no flow to average")
    return (flow * region).sum((0, 2, 3)) / (region.sum() * len(flow))


def direction_error(realised: Tensor, requested: Tensor) -> float:
    """Angle between two flow vectors (2,), in [0, 180] degrees; 90, as by chance, if one of them is zero."""
    lengths = torch.linalg.vector_norm(realised) * torch.linalg.vector_norm(requested)
    if lengths == 0:
        return 90.0
    return torch.rad2deg(torch.acos((realised @ requested / lengths).clamp(-1, 1))).item()


def speed_gain(realised: Tensor, requested: Tensor) -> float:
    """Realised speed along the requested direction over the requested speed: 1 is exact, negative is backwards."""
    return (realised @ requested / (requested @ requested)).item()


def requested_region(requested: Tensor) -> Tensor:
    """Pixels that are clearly requested to move, frame by frame: (T-1, 2, H, W) px per frame to (T-1, H, W) bool.

    Their speed is at least `REGION` times the typical speed sum |q|^2 / sum |q|, which does not depend on how much of
    the picture is still. A share of the highest speed would not do: one outlier in an estimated request would leave
    no other pixel. Empty if no motion is requested.
    """
    speed = _speed(requested)
    return (speed > 0) & (speed * speed.sum() >= REGION * speed.square().sum())


def flow_epe(realised: Tensor, requested: Tensor) -> float:
    """Mean end-point error of two flows (T-1, 2, H, W) in `requested_region`, px per frame; NaN if that is empty.

    A still video scores the mean requested speed.
    """
    return _speed(realised - requested)[requested_region(requested)].mean().item()


def field_direction_error(realised: Tensor, requested: Tensor) -> float:
    """Mean angle between two flows (T-1, 2, H, W), in degrees, in [0, 180]: 90 is chance, 180 is backwards.

    The mean is over pixels of `requested_region`, weighted by the slower of the two speeds. A still pixel then has no
    weight (`field_gain` counts it), and an outlier weighs no more than requested. The angle of the mean motion would
    not do: shuffled frames are right on average, because their steps add up to a part of the true way.

    Returns:
        Degrees; 90 if nothing moved; NaN if no motion is requested.
    """
    region = requested_region(requested)
    dot, cross = _products(realised, requested)
    angle = torch.rad2deg(torch.atan2(cross.abs(), dot))[region].double()
    weight = torch.minimum(_speed(realised), _speed(requested))[region].double()
    if region.any() and not weight.any():
        return 90.0
    return ((angle * weight).sum() / weight.sum()).item()


def field_gain(realised: Tensor, requested: Tensor) -> float:
    """The share of the requested motion that was made: c that fits realised = c requested, flows (T-1, 2, H, W).

    Least squares over `requested_region`: sum r.q / sum q.q. 1 is exact, 0 is still or unrelated, negative is
    backwards; NaN if no motion is requested.
    """
    region = requested_region(requested)
    dot, _ = _products(realised, requested)
    return ((dot * region).sum() / (requested.square().sum(1) * region).sum()).item()


def region_strength(flow: Tensor, movable: Tensor) -> float:
    """Motion strength (Eq. 8) of a flow (T-1, 2, H, W) where `movable` (1, H, W) is not 0: mean length, px per frame.

    NaN if `movable` is 0 everywhere.
    """
    return _speed(flow)[:, movable[0] > 0].mean().item()


def moved_precision_recall(realised: Tensor, requested: Tensor) -> tuple[float, float]:
    """Precision and recall of the moved pixels, from two flows (T-1, 2, H, W).

    A pixel moves in a frame if it is faster than `MOVED`. The truth is the requested flow, not the mask: the mask may
    be larger than the field, or smaller once an object has left its place.

    Returns:
        Precision: share of the moved pixels within `MARGIN` of one that was requested to move; NaN if none moved.
        Recall: share of the pixels requested to move that moved; NaN if none was requested.
    """
    threshold = MOVED * requested.shape[-1]
    moved, asked = _speed(realised) > threshold, _speed(requested) > threshold
    near = _grown(asked)
    return (moved & near).sum().div(moved.sum()).item(), (moved & asked).sum().div(asked.sum()).item()


def still_region(requested: Tensor, movable: Tensor) -> Tensor:
    """Pixels that should never change: outside the mask, never requested to move, and `MARGIN` away from both.

    Args:
        requested: (T-1, 2, H, W) px per frame.
        movable: (1, H, W), 0 where pixels may not move.

    Returns:
        (1, H, W) bool; False everywhere if the camera is requested to move.
    """
    return ~_grown((movable > 0) | (_speed(requested) > 0).any(0))


def static_drift(flow: Tensor, movable: Tensor) -> float:
    """Mean length of the flow (T-1, 2, H, W) where `movable` (1, H, W) is 0, px per frame; NaN if it is 0 nowhere."""
    return _speed(flow)[:, movable[0] == 0].mean().item()


def static_change(frames: Tensor, movable: Tensor) -> float:
    """Root mean square change of frames (T, 3, H, W) in [-1, 1] where `movable` (1, H, W) is 0.

    The change is from frame 0 to each later one, so that a slow fade counts. A share of the pixel range; NaN if
    `movable` is 0 nowhere.
    """
    return ((frames[1:] - frames[:1])[..., movable[0] == 0].square().mean().sqrt() / 2).item()


def grid_points(region: Tensor, side: int) -> Tensor:
    """Points of a regular grid, side x side over the bounding box of a region (H, W) bool, that lie inside it: (N, 2).

    Cell centres, px, x and y; N is 0 for an empty region.
    """
    if not region.any():
        return torch.zeros(0, 2)
    lines = []
    for axis in (0, 1):
        places = region.any(axis).nonzero()
        low, high = float(places[0]) - 0.5, float(places[-1]) + 0.5
        lines.append(low + (high - low) * (torch.arange(side) + 0.5) / side)
    points = torch.stack(torch.meshgrid(*lines, indexing="xy"), dim=-1).reshape(-1, 2)
    x, y = points.round().long().unbind(1)
    return points[region[y, x]]


def asked_paths(requested: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """The paths that a flow (T-1, 2, H, W) asks points (N, 2) of frame 0 to take, and as far as they are known.

    A path ends where the content is no longer seen: outside the picture, under a bank, or out of its object. The last
    two show as a loss of speed that the rest of the picture does not share: below `REGION` times the point's own
    highest, each relative to the typical speed sum |q|^2 / sum |q| of its frame.

    Returns:
        Places (T, N, 2), px, and (T, N) bool, True up to the end of each path.
    """
    paths = follow_points(requested, points)
    height, width = requested.shape[-2:]
    known = ((paths >= 0) & (paths <= paths.new_tensor([width - 1, height - 1]))).all(-1)
    field = _speed(requested).flatten(1)
    typical = field.square().sum(1) / field.sum(1).clamp_min(1e-12)
    steps = [_speed(sample(step[None], place.T[None, :, None]))[0, 0] for step, place in zip(requested, paths)]
    relative = torch.stack(steps) / typical.clamp_min(1e-12)[:, None]
    going = relative >= REGION * relative.cummax(0).values
    known[:-1] &= going
    return paths, known.int().cummin(0).values.bool()


def _speed(flow: Tensor) -> Tensor:
    return torch.hypot(flow[:, 0], flow[:, 1])


def _products(realised: Tensor, requested: Tensor) -> tuple[Tensor, Tensor]:
    """Dot and cross product of the two vectors of each pixel, (T-1, H, W) each."""
    dot = (realised * requested).sum(1)
    return dot, requested[:, 0] * realised[:, 1] - requested[:, 1] * realised[:, 0]


def _grown(region: Tensor) -> Tensor:
    """A region (N, H, W) bool, dilated by a square that reaches `MARGIN`."""
    reach = round(MARGIN * region.shape[-1])
    rows = F.max_pool2d(region.float(), (1, 2 * reach + 1), stride=1, padding=(0, reach))
    return F.max_pool2d(rows, (2 * reach + 1, 1), stride=1, padding=(reach, 0)) > 0
