"""Arrows as a user would draw them, taken from a known motion: they train T, and the evaluation gives them to methods.

`example_arrow` is one for a user to copy.

Points are (x, y) in pixels, origin at the first pixel centre; vectors are px per frame, x to the right and y down.
"""

import cv2
import numpy as np
import torch
from torch import Tensor

from motionanim.motion.paths import path_hint
from motionanim.motion.sparse_to_dense import Normalized, check_spread
from motionanim.types import Hint


def follow(flow: Tensor, start: tuple[float, float], steps: int, mask: Tensor) -> Tensor:
    """The path of a point in a steady field, in steps of one frame, while it stays inside the moving region.

    Args:
        flow: (2, H, W) px per frame.
        start: x, y; the flow there is not zero.
        steps: Most steps, at least 1; the first step is always made.
        mask: (1, H, W) in {0, 1}; the path ends at its edge and at the frame's. The flow outside it is never used.

    Returns:
        (K, 2) float64 px, K from 2 to `steps` + 1, no two neighbours equal.
    """
    height, width = flow.shape[1:]
    field, moves = flow.double().numpy(), mask[0].numpy() > 0

    def at(place: np.ndarray) -> np.ndarray:
        # Bilinear over the moving ones of the four pixels: the others would slow the point down at the region's edge.
        x, y = np.clip(place, 0, (width - 1, height - 1))
        left, top = min(int(x), max(width - 2, 0)), min(int(y), max(height - 2, 0))
        corners = (slice(top, top + 2), slice(left, left + 2))
        weight = np.outer([1 - (y - top), y - top], [1 - (x - left), x - left])[: height - top, : width - left]
        weight = weight * moves[corners]
        return (field[:, *corners] * weight).sum((1, 2)) / max(weight.sum(), 1e-9)

    def inside(place: np.ndarray) -> bool:
        x, y = np.rint(place).astype(int)
        return 0 <= x < width and 0 <= y < height and bool(moves[y, x])

    path = [np.array(start, np.float64)]
    for _ in range(steps):
        step = at(path[-1])
        middle = path[-1] + step / 2
        if inside(middle):
            step = at(middle)  # the midpoint rule
        ends = not inside(path[-1] + step) or not step.any()
        if not ends or len(path) == 1:
            path.append(path[-1] + (step if step.any() else at(path[-1])))
        if ends:
            break
    return torch.from_numpy(np.stack(path))


def choose_starts(
    flow: Tensor, mask: Tensor, generator: np.random.Generator, *, max_arrows: int
) -> list[tuple[int, int]]:
    """Starts of 1 to `max_arrows` arrows: (x, y) of random moving pixels inside the mask, in reading order."""
    movable = torch.nonzero((mask[0] > 0) & (torch.linalg.vector_norm(flow, dim=0) > 1e-3))
    count = min(int(generator.integers(1, max_arrows + 1)), len(movable))
    if count == 0:
        return []
    chosen = movable[torch.from_numpy(np.sort(generator.choice(len(movable), count, replace=False)))]
    return [(x, y) for y, x in chosen.tolist()]


def sample_hint(
    flow: Tensor,
    mask: Tensor,
    generator: np.random.Generator,
    *,
    max_arrows: int,
    max_frames: int,
    sigma: float,
    normalized: Normalized,
) -> Hint:
    """A hint like a user's: some arrows along the true motion.

    Half of the arrows follow the motion as a path; the others are straight, from the start of that path to its end.
    Half of them end where the moving region ends; the others go on, because users do not draw to the pixel.

    Args:
        flow: (2, H, W) px per frame, the true steady field.
        mask: (1, H, W) in {0, 1}; 1 where pixels may move. An empty mask gives a hint of zeros.
        generator: Source of all random draws.
        max_arrows: Most arrows in a hint, at least 1.
        max_frames: Most frames that an arrow spans, at least 2; the number is log-uniform from 2.
        sigma, normalized: As in `motion.paths.path_flow`.

    Raises:
        ValueError: If an option is not as above.
    """
    check_spread("soft", sigma, 0.0, "weight", normalized)
    if max_arrows < 1 or max_frames < 2:
        raise ValueError(f"max_arrows={max_arrows}, max_frames={max_frames}: must be at least 1 arrow and 2 frames")
    height, width = flow.shape[1:]
    paths, speeds = [], []
    for start in choose_starts(flow, mask, generator, max_arrows=max_arrows):
        steps = round(float(np.exp(generator.uniform(np.log(2), np.log(max_frames)))))
        straight, beyond = generator.random(2) < 0.5
        path = follow(flow, start, steps, mask)
        made = len(path) - 1
        if beyond and made < steps:
            last = path[-1] + (path[-1] - path[-2]) * torch.arange(1, steps - made + 1)[:, None]
            path = torch.cat([path, last])
        # No straight arrow stands for a path that turns back.
        whole = float(torch.linalg.vector_norm(path.diff(dim=0), dim=1).sum())
        if straight and float(torch.linalg.vector_norm(path[-1] - path[0])) > 0.7 * whole:
            path = path[[0, -1]]
        lengths = torch.linalg.vector_norm(path.diff(dim=0), dim=1)
        path = path[torch.cat([torch.tensor([True]), lengths > 0])]
        frames = steps if beyond else made
        paths.append(thinned(path))
        speeds.append(float(lengths.sum()) / frames)
    none = torch.zeros(0, 2, dtype=torch.float64)
    return path_hint(paths, speeds, none, height, width, sigma=sigma, normalized=normalized)


def thinned(path: Tensor) -> Tensor:
    """At most 6 points of a path, its ends among them: each part of a path costs a pass over the picture."""
    return path if len(path) <= 6 else path[torch.linspace(0, len(path) - 1, 6).round().long()]


def example_arrow(mask: Tensor) -> list[int]:
    """An arrow [x0, y0, x1, y1] to copy and change: from well inside the mask, a tenth of the width to the side.

    Args:
        mask: (1, H, W) in {0, 1}; at least one pixel is 1, and W is at least 2.

    Returns:
        Pixels of the mask's picture. The start is in the mask; the tip is to its right, or to its left where the
        picture ends.
    """
    width = mask.shape[2]
    # The picture's border counts as an edge of the mask, so that a mask of ones gives the centre.
    framed = np.pad(mask[0].numpy().astype(np.uint8), 1)
    depth = cv2.distanceTransform(framed, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)[1:-1, 1:-1]
    places = np.argwhere(depth >= depth.max() - 0.5)
    middle = places.mean(0)
    y, x = (int(value) for value in places[((places - middle) ** 2).sum(1).argmin()])
    reach = max(1, round(width / 10))
    return [x, y, x + reach if x + reach < width else max(x - reach, 0), y]
