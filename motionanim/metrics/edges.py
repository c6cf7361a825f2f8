"""New edges: contours that a video shows and its first picture does not. They need no true clip."""

import math
from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from motionanim.metrics.base import Column
from motionanim.metrics.control import RequestMetric
from motionanim.motion.flow import follow_points

MARGIN = 3  # px along the region's edge that are left out, because moving and still parts meet there
LEAST_CONTOUR = 0.01  # mean Sobel magnitude in [-1, 1]; a sixth of a ramp of one grey level per px
FARTHEST = 1 / 16  # of the shorter side: `NewEdges` lets no contour come from farther away
POINTS = 32  # about so many a side of the grid on which `reach` follows the flow


def new_edges(frames: Iterable[Tensor], image: Tensor, mask: Tensor, max_displacement: float) -> Tensor:
    """The share of contours in each frame that the picture does not have within reach.

    With G the Sobel magnitude of the grey values: mean of max(0, G_t - dilate(G_0, r)) over mean of G_0, both over
    the mask less its outer `MARGIN` px, with r = `max_displacement` + 2 px, rounded up. Content that only moves
    scores 0; a seam, a ghost or a hard edge of a mask does not.

    Args:
        frames: N frames (3, H, W) in [-1, 1]; may be an iterator, to hold one at a time.
        image: (3, H, W) in [-1, 1], the picture that the frames were made from.
        mask: (1, H, W) in {0, 1}; 1 where pixels may move.
        max_displacement: The farthest that content may have moved from its place in the picture, px, at least 0.

    Returns:
        (N,) float32, at least 0; NaN where the picture itself has hardly any contours.

    Raises:
        ValueError: If `max_displacement` is negative or not finite, or no pixel of the mask is inside the margin.
    """
    if not 0 <= max_displacement < float("inf"):
        raise ValueError(f"max_displacement={max_displacement}: must be at least 0 px and finite")
    # cv2.erode does not erode at the border of the picture.
    region = cv2.erode(mask[0].cpu().numpy().astype(np.uint8), _disc(MARGIN)) > 0
    if not region.any():
        raise ValueError(f"mask: nothing is left {MARGIN} px inside its edge; mark a larger region")
    contours = _contours(image)
    known = cv2.dilate(contours, _disc(int(np.ceil(max_displacement)) + 2))
    usual = float(contours[region].mean())
    scale = usual if usual >= LEAST_CONTOUR else float("nan")
    return torch.tensor([float(np.maximum(_contours(frame) - known, 0)[region].mean()) / scale for frame in frames])


def _contours(frame: Tensor) -> np.ndarray:
    """Sobel magnitude (H, W) of the grey of a frame (3, H, W)."""
    grey = cv2.cvtColor(frame.detach().cpu().float().permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2GRAY)
    return np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))


def reach(flow: Tensor, mask: Tensor) -> Tensor:
    """How far a flow has carried the movable content from its place in frame 0, at most: (T,) px.

    Args:
        flow: (T-1, 2, H, W) px per frame.
        mask: (1, H, W) in {0, 1}; 1 where pixels may move.
    """
    height, width = mask.shape[-2:]
    y, x = (torch.arange(0, side, max(1, side // POINTS)) for side in (height, width))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    points = grid[mask[0, grid[..., 1], grid[..., 0]] > 0].float()
    if not len(points):
        return torch.zeros(len(flow) + 1)
    paths = follow_points(flow, points)
    # Content that has left the picture puts no contour into it: a path counts as far as the picture's edge.
    paths = torch.minimum(paths.clamp_min(0), paths.new_tensor([width - 1, height - 1]))
    return torch.linalg.vector_norm(paths - paths[0], dim=-1).amax(1).cummax(0).values


class NewEdges(RequestMetric):
    """`new_edges` of the later frames against frame 0, averaged, and of the worst frame.

    Contours may have come from as far as the requested flow's `reach` until then, but not from farther than `FARTHEST`
    of the shorter side. Without that limit a stream that crosses the picture would make every contour a known one, and
    a long video that falls apart would score 0. With it, true clips score more than 0 where new content comes in or an
    object uncovers ground, and give the scale.
    """

    columns = (
        Column(
            "new_edges", "New edges", 4, "real", "quality", "share", range=(0, math.inf),
            remark="a frozen picture scores 0: compare with true clips",
        ),
        Column("new_edges_worst", "New edges, worst frame", 4, "real", "quality", "share", range=(0, math.inf)),
    )  # fmt: skip
    undefined = "the mask is empty or too narrow, or frame 0 has hardly any contours in it"

    def _score(self, frames: Tensor, flow: Tensor, mask: Tensor) -> tuple[float, float]:
        if not cv2.erode(mask[0].numpy().astype(np.uint8), _disc(MARGIN)).any():
            return float("nan"), float("nan")
        limit = FARTHEST * min(frames.shape[-2:])
        distance = reach(flow, mask).clamp(max=limit).ceil()[1:]
        later = frames[1:]
        values = [new_edges(later[distance == r], frames[0], mask, float(r)) for r in distance.unique()]
        return torch.cat(values).mean().item(), torch.cat(values).max().item()

    @property
    def protocol(self) -> dict[str, Any]:
        return {"metric": "new_edges", "version": 2, "margin": MARGIN, "farthest": FARTHEST, "reach": POINTS}
