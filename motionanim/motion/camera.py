"""Camera motion: how far the whole picture moves, measured from its optical flow.

`camera_residual` defines "static camera" in this project: it labels static clips in data preparation, and it measures
what the static-camera LoRA removes (Sec. 3.3).
"""

import cv2
import numpy as np
import torch
from torch import Tensor

# Parts of the metric's definition.
INLIER_DISTANCE = 5e-4  # of RANSAC, a share of the diagonal, so that the score does not depend on the resolution
MAX_POINTS = 1500


def camera_residual(flow: Tensor, background: Tensor | None) -> float:
    """Mean of `camera_motion` over all frames: 0 for a static camera; share of the image diagonal per frame."""
    return float(camera_motion(flow, background).mean())


def camera_motion(flow: Tensor, background: Tensor | None) -> Tensor:
    """How far a frame's corners move under the homography that fits the background's flow.

    RANSAC fits the homography, so that an object with its own motion does not count while it covers less of
    `background` than the scene does. Each pair of frames is measured by itself, so that a shaking camera does not
    average out.

    Args:
        flow: (T-1, 2, H, W), px per frame.
        background: (H, W) or (T-1, H, W) bool, True where the scene has no motion of its own; None uses all pixels.

    Returns:
        (T-1,) float32 >= 0: mean displacement of the corners per frame, divided by the image diagonal. A pan of 1 % of
        the diagonal per frame gives 0.01.

    Raises:
        ValueError: If the shapes disagree, the flow is empty or not finite, or `background` has fewer than 16 pixels.
    """
    if flow.ndim != 4 or flow.shape[0] < 1 or flow.shape[1] != 2:
        raise ValueError(f"flow of shape {tuple(flow.shape)}: must be (T-1, 2, H, W) with T >= 2")
    if not bool(torch.isfinite(flow).all()):
        raise ValueError("flow is not finite: the camera's motion cannot be measured")
    steps, _, height, width = flow.shape
    if background is None:
        background = torch.ones(height, width, dtype=torch.bool)
    if background.shape[-2:] != (height, width) or background.numel() not in (height * width, steps * height * width):
        raise ValueError(f"background of shape {tuple(background.shape)}: must be (H, W) or (T-1, H, W) of the flow")
    masks = background.detach().cpu().bool().expand(steps, height, width).numpy()
    fields = flow.detach().cpu().float().permute(0, 2, 3, 1).numpy()
    return torch.tensor([_corner_shift(field, mask) for field, mask in zip(fields, masks)], dtype=torch.float32)


def _corner_shift(field: np.ndarray, mask: np.ndarray) -> float:
    """`camera_motion` of one field (H, W, 2)."""
    height, width = mask.shape
    y, x = np.nonzero(mask)
    if len(x) < 16:
        raise ValueError(
            f"background has {len(x)} pixels in a frame: at least 16 are needed to fit the camera's motion"
        )
    # Even steps through the sorted pixels spread the points evenly at any resolution.
    chosen = np.linspace(0, len(x) - 1, min(len(x), MAX_POINTS)).round().astype(int)
    y, x = y[chosen], x[chosen]
    points = np.stack([x, y], axis=1).astype(np.float64)
    moved = points + field[y, x]
    diagonal = float(np.hypot(height, width))
    matrix, _ = cv2.findHomography(points, moved, cv2.RANSAC, INLIER_DISTANCE * diagonal)
    if matrix is None:
        matrix, _ = cv2.findHomography(points, moved, cv2.LMEDS)
    corners = np.array([[0, 0], [width - 1, 0], [0, height - 1], [width - 1, height - 1]], dtype=np.float64)
    shifted = cv2.perspectiveTransform(corners[None], matrix)[0]
    return float(np.linalg.norm(shifted - corners, axis=1).mean() / diagonal)
