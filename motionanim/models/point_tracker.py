"""Point trackers: pyramidal Lucas-Kanade of OpenCV, which needs no weights, and CoTracker.

A tracker maps frames (T, 3, H, W) in [-1, 1] and points (N, 2) of frame 0, px, x and y, to their places (T, N, 2), px,
and to whether each is seen (T, N) bool. Its `name` is recorded beside results.
"""

from itertools import pairwise
from pathlib import Path
from typing import Protocol, Self

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from motionanim.files import file_sha256
from motionanim.models.flow_estimator import check_frames, grey_images
from motionanim.models.pretrained import read


class PointTracker(Protocol):
    """A tracker, as this module describes it."""

    name: str

    def __call__(self, frames: Tensor, points: Tensor) -> tuple[Tensor, Tensor]: ...


def _check(frames: Tensor, points: Tensor) -> None:
    check_frames(frames)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"points of shape {tuple(points.shape)}: must be (N, 2), x and y in frame 0")


class LucasKanade:
    """Pyramidal Lucas-Kanade (Bouguet 2001) from frame to frame, with a forward-backward check.

    A point is lost, for the rest of the clip, when it leaves the picture, when its window has no texture, or when
    tracking it back to the last frame ends farther than `tolerance` from where it was (Kalal et al., ICPR 2010).

    Args:
        min_side: Frames are enlarged until the short side has at least this many px. 1 never enlarges.
        window: Side of the window around a point, px of the enlarged frame, odd and at least 3.
        levels: Halvings of the pyramid, at least 0.
        tolerance: Of the forward-backward check, px of the enlarged frame, above 0.

    Raises:
        ValueError: If an argument is not as above.
    """

    def __init__(self, *, min_side: int, window: int, levels: int, tolerance: float) -> None:
        if min_side < 1 or window < 3 or window % 2 == 0 or levels < 0 or not tolerance > 0:
            raise ValueError(
                f"min_side={min_side}, window={window}, levels={levels}, tolerance={tolerance}: must be at least 1, "
                "odd and at least 3, at least 0, and above 0"
            )
        self.name = f"lucas-kanade-{min_side}-{window}-{levels}-{tolerance:g}"
        self._min_side, self._tolerance = min_side, tolerance
        self._search = {"winSize": (window, window), "maxLevel": levels}

    def __call__(self, frames: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        _check(frames, points)
        images = grey_images(frames, self._min_side)
        height, width = images[0].shape
        scale = np.array([width / frames.shape[-1], height / frames.shape[-2]], dtype=np.float32)
        # Pixel centres, not corners, correspond after a resize.
        place = (points.detach().cpu().float().numpy() + 0.5) * scale - 0.5
        kept = np.ones(len(place), dtype=bool)
        places, seen = [place], [kept]
        for first, second in pairwise(images):
            place, kept = self._step(first, second, place, kept)
            places.append(place)
            seen.append(kept)
        found = (np.stack(places) + 0.5) / scale - 0.5
        return torch.from_numpy(found), torch.from_numpy(np.stack(seen))

    def _step(
        self, first: np.ndarray, second: np.ndarray, place: np.ndarray, kept: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Places (N, 2) in the second image, and which points are still kept."""
        if not kept.any():
            return place, kept
        there, found, _ = cv2.calcOpticalFlowPyrLK(first, second, place[:, None], None, **self._search)
        back, returned, _ = cv2.calcOpticalFlowPyrLK(second, first, there, None, **self._search)
        there, away = there[:, 0], np.linalg.norm(back[:, 0] - place, axis=1)
        limits = np.array([first.shape[1] - 1, first.shape[0] - 1])
        inside = ((there >= 0) & (there <= limits)).all(1)
        kept = kept & (found[:, 0] > 0) & (returned[:, 0] > 0) & (away <= self._tolerance) & inside
        return np.where(kept[:, None], there, place), kept


class CoTracker:
    """CoTracker3, offline (Karaev et al., 2024), through its authors' package.

    Args:
        predictor: The package's CoTrackerPredictor, or a module that is called as it is: video (1, T, 3, H, W) in
            [0, 255] and queries (1, N, 3), each frame, x and y, to tracks (1, T, N, 2) and visibility (1, T, N).
        name: Recorded beside results; it should name the weights.
    """

    def __init__(self, predictor: nn.Module, *, name: str) -> None:
        self.name = name
        self._predictor = predictor.eval().requires_grad_(False)

    @classmethod
    def load(cls, weights: Path | str, *, device: str) -> Self:
        """Read `scaled_offline.pth` of huggingface.co/facebook/cotracker3.

        Its SHA-256 is not published, so the file is yours to vouch for; the name of results contains it.

        Raises:
            ValueError: If the package `cotracker` is not installed, or the file is missing, cannot be read or does not
                fit.
        """
        path = Path(weights).expanduser()
        if not path.is_file():
            raise ValueError(
                f"CoTracker weights {path} do not exist: get scaled_offline.pth from "
                "huggingface.co/facebook/cotracker3 and give its path, or use "
                "motionanim.models.point_tracker.LucasKanade, which needs none"
            )
        try:
            from cotracker.predictor import CoTrackerPredictor
        except ImportError as error:
            raise ValueError(
                "CoTracker needs its authors' package: install it from github.com/facebookresearch/co-tracker, or use "
                "motionanim.models.point_tracker.LucasKanade"
            ) from error
        predictor = CoTrackerPredictor(checkpoint=None, window_len=60, v2=False)
        try:
            predictor.model.load_state_dict(read(path))
        except RuntimeError as error:
            raise ValueError(f"weights={path} do not fit CoTracker3: {' '.join(str(error).split())[:200]}") from error
        return cls(predictor.to(device), name=f"cotracker3-offline-{file_sha256(path)[:8]}")

    @torch.no_grad()
    def __call__(self, frames: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        _check(frames, points)
        device = next(self._predictor.parameters()).device
        video = (frames.to(device, torch.float32) + 1) * 127.5
        queries = torch.cat([torch.zeros(len(points), 1), points.detach().cpu().float()], dim=1)
        tracks, seen = self._predictor(video[None], queries=queries[None].to(device))
        return tracks[0].cpu().float(), seen[0].cpu().bool()
