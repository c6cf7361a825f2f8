"""Sparse to dense flow, Eq. 5-7 of the paper: the motion of a few points is spread over the picture.

`motion.paths` spreads from whole paths instead. Points are (x, y) in pixels, origin at the first pixel centre; vectors
are px per frame, x to the right and y down.
"""

from typing import Literal

import torch
from torch import Tensor

Normalized = bool | Literal["exact"]
Edge = Literal["cut", "soft"]


def arrow_vectors(starts: Tensor, ends: Tensor, num_frames: int) -> Tensor:
    """The nonzero entries of the sparse flow (Eq. 5): arrows that span a whole clip, as motion per frame.

    Eq. 5 prints the end *point* times the mask; the displacement is meant.

    Args:
        starts: (N, 2) px, the arrows' tails and so the places of the entries.
        ends: (N, 2) px, the arrows' tips, reached in the last frame.
        num_frames: Frames of the clip, which has `num_frames - 1` steps.

    Returns:
        (N, 2) px per frame.

    Raises:
        ValueError: If the clip has fewer than 2 frames.
    """
    if num_frames < 2:
        raise ValueError(f"num_frames={num_frames}: an arrow needs at least 2 frames to move along")
    return (ends - starts) / (num_frames - 1)


def dense_flow(
    points: Tensor,
    vectors: Tensor,
    mask: Tensor,
    *,
    sigma: float,
    threshold: float,
    threshold_on: Literal["weight", "magnitude"],
    normalized: Normalized,
) -> Tensor:
    """Spread the flow of a few points over the movable region (Eq. 6) and cut off its far tails (Eq. 7).

    Eq. 6 weights each point by exp(-(D/sigma)^2), where D is the distance to it. The paper does not say what Eq. 7
    compares with R. "weight" compares the sum of the weights, so that an arrow's reach does not depend on its speed.
    "magnitude" compares the length of the dense flow in px per frame, as Eq. 7 reads literally.

    Args:
        points: (N, 2) px; N = 0 gives a zero flow.
        vectors: (N, 2) px per frame.
        mask: (1, H, W) in {0, 1}; 1 where pixels may move.
        sigma: Reach of a point as a share of the frame height, above 0.
        threshold: R, at least 0; values up to R become 0.
        threshold_on: What Eq. 7 compares with R.
        normalized: False adds the arrows, as printed in the paper. True divides by the sum of the weights, so that the
            arrows average. "exact" averages with the weights w / (1 - w) (Shepard 1968): they equal w far away and are
            infinite at the point itself, so that the flow there is exactly the point's vector. A point with a zero
            vector is a pin. The weight of a pin does not count for R, else motion would reach farther beside it.

    Returns:
        (2, H, W) px per frame, in the type of `vectors`.

    Raises:
        ValueError: If `sigma`, `threshold`, `threshold_on` or `normalized` is not as above.
    """
    check_spread("cut", sigma, threshold, threshold_on, normalized)
    height, width = mask.shape[-2:]
    reach = sigma * height
    x = torch.arange(width, dtype=vectors.dtype, device=vectors.device)
    y = torch.arange(height, dtype=vectors.dtype, device=vectors.device)
    # Each weight is a factor along x times a factor along y, so that Eq. 6 is a matrix product over the points.
    distance_x = ((x - points[:, :1]) / reach) ** 2
    distance_y = ((y - points[:, 1:]) / reach) ** 2
    weight_x, weight_y = torch.exp(-distance_x), torch.exp(-distance_y)
    if normalized == "exact":
        moving = vectors.ne(0).any(1)
        total = weight_y[moving].T @ weight_x[moving]
        flow = _interpolate(distance_x, distance_y, vectors)
    else:
        flow = torch.einsum("nc,ny,nx->cyx", vectors, weight_y, weight_x)
        total = weight_y.T @ weight_x
        if normalized:
            flow = flow / total.clamp_min(torch.finfo(total.dtype).tiny)
    size = total if threshold_on == "weight" else torch.linalg.vector_norm(flow, dim=0)
    return flow * (size > threshold) * mask


def check_spread(edge: str, sigma: float, threshold: float, threshold_on: str, normalized: object) -> None:
    """Raises ValueError if an option of `bounded_flow` is not legal."""
    if edge not in ("cut", "soft"):
        raise ValueError(f"edge={edge!r}: must be 'cut' or 'soft'")
    if sigma <= 0:
        raise ValueError(f"sigma={sigma}: must be above 0, a share of the frame height such as 0.332")
    if threshold < 0:
        raise ValueError(f"threshold={threshold}: must be at least 0")
    if threshold_on not in ("weight", "magnitude"):
        raise ValueError(f"threshold_on={threshold_on!r}: must be 'weight' or 'magnitude'")
    if normalized not in (False, True, "exact"):
        raise ValueError(f"normalized={normalized!r}: must be true, false or 'exact'")


def bounded_flow(
    points: Tensor,
    vectors: Tensor,
    mask: Tensor,
    *,
    edge: Edge,
    sigma: float,
    threshold: float,
    threshold_on: Literal["weight", "magnitude"],
    normalized: Normalized,
) -> Tensor:
    """`dense_flow` with a hard or a soft edge.

    Args:
        edge: "cut" ends the motion at once, by Eq. 7 as printed. "soft" fades the flow with the weights of Eq. 6, so
            that the cut removes little; where a mask bounds the motion, the flow does not fade, and the whole mask
            moves.

    Returns:
        As `dense_flow`, (2, H, W) px per frame.

    Raises:
        ValueError: If `edge` is neither, or as `dense_flow` does.
    """
    check_spread(edge, sigma, threshold, threshold_on, normalized)
    bounded = edge == "soft" and bool((mask == 0).any())
    cut = {"sigma": sigma, "threshold": 0.0 if bounded else threshold, "threshold_on": threshold_on}
    flow = dense_flow(points, vectors, mask, normalized=normalized, **cut)
    if edge == "cut" or bounded:
        return flow
    moving = vectors.ne(0).any(1)
    unit = torch.ones_like(vectors[moving])
    return flow * dense_flow(points[moving], unit, mask, normalized=False, **cut).clamp(max=1)


def _interpolate(distance_x: Tensor, distance_y: Tensor, vectors: Tensor) -> Tensor:
    """The mean (2, H, W) of `vectors` (N, 2) with weights w / (1 - w), w = exp(-distance_x - distance_y).

    A loop over the points, because these weights are no product of x and y, and N maps at once could take gigabytes.
    """
    info = torch.finfo(vectors.dtype)
    flow = vectors.new_zeros(2, distance_y.shape[1], distance_x.shape[1])
    total = torch.zeros_like(flow[0])
    for across, down, vector in zip(distance_x, distance_y, vectors):
        weight = exact_weight(down[:, None] + across)
        flow += vector[:, None, None] * weight
        total += weight
    return flow / total.clamp_min(info.tiny)


def exact_weight(squared: Tensor) -> Tensor:
    """w / (1 - w) of w = exp(-squared), computed without cancellation; at the point itself a large finite number."""
    return 1 / torch.expm1(squared).clamp_min(torch.finfo(squared.dtype).eps ** 2)


def along_path(path: Tensor, share: Tensor) -> Tensor:
    """Places of a point that follows a polyline at constant speed.

    Args:
        path: (K, 2) px, K at least 2, no two neighbours equal.
        share: (T,), at least 0: the travelled share of the path's length; above 1 the point goes straight on.

    Returns:
        (T, 2) px.
    """
    steps = path.diff(dim=0)
    lengths = torch.linalg.vector_norm(steps, dim=1)
    ends = lengths.cumsum(0)
    travelled = share * ends[-1]
    segment = torch.searchsorted(ends, travelled).clamp(max=len(steps) - 1)
    part = (travelled - (ends - lengths)[segment]) / lengths[segment]
    return path[segment] + part[:, None] * steps[segment]
