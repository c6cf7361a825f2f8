"""New edges: contours that a video shows and its first picture does not. They need no true clip."""

from collections.abc import Iterable

import cv2
import numpy as np
import torch
from torch import Tensor

MARGIN = 3  # px along the region's edge that are left out, because moving and still parts meet there


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
        (N,) float32, at least 0; 0 where the picture itself has no contours.

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
    least = np.finfo(np.float32).eps
    values = [float(np.maximum(_contours(frame) - known, 0)[region].mean()) / max(usual, least) for frame in frames]
    return torch.tensor(values)


def _contours(frame: Tensor) -> np.ndarray:
    """Sobel magnitude (H, W) of the grey of a frame (3, H, W)."""
    grey = cv2.cvtColor(frame.detach().cpu().float().permute(1, 2, 0).contiguous().numpy(), cv2.COLOR_RGB2GRAY)
    return np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
