"""FVMD (Liu et al. 2024, arXiv 2407.16124): Fréchet distance of histograms of how tracked points move.

Each clip of 16 frames is tracked on a grid of 20 x 20 points by PIPs++ at 256 px. Velocities and accelerations of the
tracks are counted by direction in cells of 4 frames and 5 x 5 points. The numbers are those of fvmd 1.0.0.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as transforms

from motionanim.files import file_sha256
from motionanim.metrics.frechet import frechet_distance, moments
from motionanim.metrics.fvd import Sums
from motionanim.metrics.published.base import PublishedFeatures
from motionanim.metrics.published.pips import PIPs
from motionanim.models.weights.checkpoint import locate, read_part

FILE = "pips2_weights.pth"
URL = f"https://github.com/ljh0v0/FVMD-frechet-video-motion-distance/releases/download/pips2_weights/{FILE}"
_FRAMES, _SIDE, _GRID, _MARGIN = 16, 256, 20, 8  # frames, px, points a side, px from the edge
_STEPS, _CELL, _DIRECTIONS, _LONGEST = 4, 5, 8, 256  # frames and points of a cell, bins, px a frame
_ITERATIONS = 16
_OFFSET = 1e-5  # that fvmd adds to the diagonals of both covariances in the root of their product


def motion_histograms(tracks: Tensor) -> Tensor:
    """The features of FVMD: 8 directions in each cell, of the velocities and then of the accelerations.

    A vector counts ceil(log2(1 + length)) / 8, at most 1. Rounding up counts any motion below 1 px as 1 px.
    The first velocity and the first two accelerations are 0.

    Args:
        tracks: (B, T, N, 2) float32, places (x, y) in px; T at least 4, N the square of a number of at least 5. Points
            in rows. What is left over of a cell of 4 frames or 5 points is not counted.

    Returns:
        (B, 2 * (T // 4) * (sqrt(N) // 5)^2 * 8) float64.

    Raises:
        ValueError: If a shape is not as above.
    """
    shape = tuple(tracks.shape)
    side = math.isqrt(shape[2]) if tracks.ndim == 4 else 0
    if tracks.ndim != 4 or shape[1] < _STEPS or shape[3] != 2 or side < _CELL or side * side != shape[2]:
        raise ValueError(f"tracks {shape}: must be (B, T, N, 2) with T >= {_STEPS} and N a square from {_CELL**2}")
    places = tracks.float().cpu().numpy()  # float32 and NumPy, as published: the edges of the bins depend on rounding
    velocity = np.diff(places, axis=1, prepend=places[:, :1])
    acceleration = np.diff(velocity, axis=1, prepend=velocity[:, :1])
    acceleration[:, 1] = 0
    return torch.from_numpy(np.concatenate([_histograms(velocity, side), _histograms(acceleration, side)], axis=1))


def _histograms(vectors: np.ndarray, side: int) -> np.ndarray:
    """(B, T, N, 2) to (B, cells * 8)."""
    steps, cells = vectors.shape[1] // _STEPS, side // _CELL
    grid = vectors.reshape(*vectors.shape[:2], side, side, 2)[:, : steps * _STEPS, : cells * _CELL, : cells * _CELL]
    angle = np.arctan2(grid[..., 0], grid[..., 1])
    direction = np.clip((angle + np.pi) // (2 * np.pi / _DIRECTIONS), 0, _DIRECTIONS - 1).astype(int)
    length = np.clip(np.linalg.norm(grid, axis=-1), 0, _LONGEST - 1)
    most = math.log2(_LONGEST)
    weight = np.ceil(np.clip(np.log2(length + 1), 0, most)) / most
    counted = weight[..., None] * (direction[..., None] == np.arange(_DIRECTIONS))
    counted = counted.reshape(len(grid), steps, _STEPS, cells, _CELL, cells, _CELL, _DIRECTIONS)
    return counted.sum((2, 4, 6)).reshape(len(grid), -1)


def fvmd(fake: Sums, real: Sums) -> Tensor:
    """Fréchet distance as fvmd computes it, () float64; it may lie below 0 by up to 2e-5 a feature.

    fvmd adds 1e-5 to the diagonals of the covariances in the root of their product and not in their traces.

    Args:
        fake, real: Sums over the clips of each side.

    Returns:
        NaN if a side has fewer than 2 clips.
    """
    if min(fake[0], real[0]) < 2:
        return torch.tensor(torch.nan, dtype=torch.float64)
    (mean1, cov1), (mean2, cov2) = moments(*fake, ddof=1), moments(*real, ddof=1)
    offset = _OFFSET * torch.eye(len(mean1), dtype=torch.float64, device=mean1.device)
    return frechet_distance(mean1, cov1 + offset, mean2, cov2 + offset) - 2 * _OFFSET * len(mean1)


class FVMDFeatures(PublishedFeatures):
    """Frames (B, 16, 3, H, W) in [-1, 1] to the histograms (B, 1024) of their tracks.

    fvmd cuts longer videos into all windows of 16 frames; here a clip is one window.

    Args:
        weights: State dict of PIPs++, as under "model_state_dict" in pips2_weights.pth; None for the folder of weights.
        batch: Clips a pass, at least 1; bounds the memory.

    Raises:
        MissingWeights: If there is no such file.
        ValueError: If the weights cannot be read or have another layout, or `batch` is below 1.
    """

    name, frames, min_frames = "fvmd", _FRAMES, _FRAMES
    dim = 2 * (_FRAMES // _STEPS) * (_GRID // _CELL) ** 2 * _DIRECTIONS
    between = staticmethod(fvmd)

    def __init__(self, weights: Path | str | None = None, *, batch: int) -> None:
        place = locate(weights, file=FILE, url=URL)
        network = PIPs.of(read_part(place, ("model_state_dict",)))
        super().__init__(
            {"network": "PIPs++", "resize": f"stretch {_SIDE}, bilinear, antialias", "grid": _GRID, "ddof": 1,
             "iterations": _ITERATIONS, "offset": _OFFSET, "weights": file_sha256(place), "version": 1},
            batch=batch,
        )  # fmt: skip
        self.network = network

    def features(self, pixels: Tensor) -> Tensor:
        small = transforms.resize(pixels, [_SIDE, _SIDE], antialias=True).float()
        along = _MARGIN + torch.arange(_GRID, device=small.device) / (_GRID - 1) * (_SIDE - 2 * _MARGIN)
        points = torch.cartesian_prod(along, along).flip(-1)  # (x, y), in rows
        return motion_histograms(self.network(small, points, iterations=_ITERATIONS)).to(small.device)
