"""Sparse to dense flow from whole paths: Eq. 5-7 of the paper, where D is the distance to an arrow's path.

Points are (x, y) in pixels, origin at the first pixel centre; vectors are px per frame, x to the right and y down.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from motionanim.motion.sparse_to_dense import Edge, Normalized, check_spread, exact_weight
from motionanim.types import Hint

# Larger fields are computed at this size and enlarged: they are smooth, and each part of a path costs a pass over all
# pixels, which takes seconds on a phone's photo.
_MOST_PIXELS = 1_000_000

# Half the width of a drawn line in px: its coverage there is 1/e.
_LINE = 1.5


def path_flow(
    paths: Sequence[Tensor],
    speeds: Sequence[float],
    pins: Tensor,
    mask: Tensor,
    *,
    edge: Edge,
    sigma: float,
    threshold: float,
    threshold_on: Literal["weight", "magnitude"],
    normalized: Normalized,
) -> Tensor:
    """`bounded_flow` where the whole path of an arrow is its entry, and not only the start of the arrow.

    D of Eq. 6 is the distance to the path, and the vector follows the path at the arrow's speed. With entries at the
    starts alone the flow fades along the way, so that moved content stops short of the tip. On the path itself the flow
    has the arrow's full speed; under "exact" no other arrow and no pin changes that, however near it is. Where a path
    crosses itself, the flow is the mean of both directions.

    Args:
        paths: (K, 2) float64 px each, K at least 2, no two neighbours equal.
        speeds: px per frame along each path, above 0.
        pins: (P, 2) px, points that stand still; only "exact" uses them.
        mask: (1, H, W) in {0, 1}; 1 where pixels may move.
        edge, sigma, threshold, threshold_on, normalized: As in `bounded_flow`.

    Returns:
        (2, H, W) float32, px per frame.

    Raises:
        ValueError: As `bounded_flow` does.
    """
    check_spread(edge, sigma, threshold, threshold_on, normalized)
    height, width = mask.shape[-2:]
    flow, reached = spread_paths(paths, speeds, pins, height, width, sigma=sigma, normalized=normalized)
    bounded = edge == "soft" and bool((mask == 0).any())
    if not bounded:
        flow = flow * ((reached if threshold_on == "weight" else torch.linalg.vector_norm(flow, dim=0)) > threshold)
    if edge == "soft" and not bounded:
        flow = flow * reached.clamp(max=1)
    return flow * mask


def spread_paths(
    paths: Sequence[Tensor], speeds: Sequence[float], pins: Tensor, height: int, width: int, *, sigma: float,
    normalized: Normalized,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Eq. 6 from whole paths, without the edge of Eq. 7.

    Args:
        paths, speeds, pins, sigma, normalized: As in `path_flow`.

    Returns:
        The flow (2, H, W) px per frame; if `normalized`, it is as fast as the arrows everywhere. And the sum of the
        arrows' weights (1, H, W): at least 1 on a path, towards 0 far from all paths.
    """
    shrink = min(1.0, math.sqrt(_MOST_PIXELS / (height * width)))
    size = max(1, round(height * shrink)), max(1, round(width * shrink))
    scale = torch.tensor([size[1] / width, size[0] / height], dtype=torch.float64)
    maps = _spread_paths(
        [(path + 0.5) * scale - 0.5 for path in paths], speeds, (pins + 0.5) * scale - 0.5, *size, sigma, normalized
    )
    if size != (height, width):
        maps = F.interpolate(maps[None], size=(height, width), mode="bilinear", align_corners=False)[0]
    return maps[:2], maps[2:]


def draw_paths(paths: Sequence[Tensor], speeds: Sequence[float], pins: Tensor, height: int, width: int) -> Tensor:
    """The sparse flow of Eq. 5 as a picture: arrows are soft lines, pins are soft dots.

    Args:
        paths, speeds, pins: As in `path_flow`.

    Returns:
        (3, H, W): the velocity in px per frame times the coverage, and the coverage, which is 1 on a path or a pin and
        0 beyond about 4 px. A pin has coverage and no velocity.
    """
    flow, total, cover = torch.zeros(2, height, width), torch.zeros(height, width), torch.zeros(height, width)
    for path, speed in (*zip(paths, speeds, strict=True), *((pin[None], 0.0) for pin in pins)):
        squared, direction = nearest_on_path(path, height, width)
        weight = torch.exp(-squared / _LINE**2)
        flow += weight * speed * direction
        total += weight
        cover = torch.maximum(cover, weight)
    return torch.cat([flow / total.clamp_min(torch.finfo(total.dtype).tiny) * cover, cover[None]])


def path_hint(
    paths: Sequence[Tensor], speeds: Sequence[float], pins: Tensor, height: int, width: int, *, sigma: float,
    normalized: Normalized,
) -> Hint:  # fmt: skip
    """The input of T for a drawing: `spread_paths` and `draw_paths`."""
    flow, reach = spread_paths(paths, speeds, pins, height, width, sigma=sigma, normalized=normalized)
    return Hint(flow, reach, draw_paths(paths, speeds, pins, height, width))


def _spread_paths(
    paths: Sequence[Tensor], speeds: Sequence[float], pins: Tensor, height: int, width: int, sigma: float,
    normalized: Normalized,
) -> Tensor:  # fmt: skip
    """`spread_paths` at the size of the field: flow and sum of weights, (3, H, W)."""
    maps, total = torch.zeros(3, height, width), torch.zeros(height, width)
    scale = 1 / (sigma * height) ** 2

    def share(squared: Tensor) -> Tensor:
        # exp(-80) is above 0 in float32, so that the average of far weights stays defined.
        squared = (squared * scale).clamp(max=80)
        return exact_weight(squared) if normalized == "exact" else torch.exp(-squared)

    for path, speed in zip(paths, speeds, strict=True):
        squared, direction = nearest_on_path(path, height, width)
        weight = share(squared)
        maps[:2] += weight * speed * direction
        maps[2] += torch.exp(-squared * scale)
        total += weight
    for pin in pins if normalized == "exact" else ():
        total += share(nearest_on_path(pin[None], height, width)[0])
    if normalized:
        maps[:2] /= total.clamp_min(torch.finfo(total.dtype).tiny)
    return maps


def nearest_on_path(path: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Distance of every pixel to a polyline, and the direction of the polyline near it.

    Args:
        path: (K, 2) px; the direction of a single point is zero.

    Returns:
        The squared distance (H, W) in px², and the direction (2, H, W): the mean of the unit vectors of all parts,
        weighted by length / distance⁴, so that on a part it is that part's own. Float32.
    """
    path = path.double()
    x = torch.arange(width, dtype=torch.float32)
    y = torch.arange(height, dtype=torch.float32)[:, None]
    if len(path) == 1:
        (left, top) = path[0].tolist()
        return (x - left) ** 2 + (y - top) ** 2, torch.zeros(2, height, width)
    nearest = torch.full((height, width), math.inf)
    direction, total = torch.zeros(2, height, width), torch.zeros(height, width)
    for start, end in pairwise(path):
        length = float(torch.linalg.vector_norm(end - start))
        across, down = ((end - start) / length).tolist()
        dx, dy = x - float(start[0]), y - float(start[1])
        along = (dx * across + dy * down).clamp(0, length)
        squared = (dx - along * across).square() + (dy - along * down).square()
        torch.minimum(nearest, squared, out=nearest)
        weight = length / (squared + 1e-6) ** 2
        direction[0] += across * weight
        direction[1] += down * weight
        total += weight
    return nearest, direction / total
