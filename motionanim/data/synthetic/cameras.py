"""Camera motion of the procedural world."""

from typing import NamedTuple

import numpy as np

from motionanim.data.synthetic.layers import MARGIN, Points, Stage

CAMERAS = ("any", "pan")
PAN = 0.02  # of the width per frame


class Camera(NamedTuple):
    """Maps picture points p to world points w in frame k: w = c + s_k R_k (p - c) + d_k."""

    centre: np.ndarray  # (2,) px
    matrix: np.ndarray  # (T, 2, 2) zoom and rotation
    shift: np.ndarray  # (T, 2) px
    moves: bool

    def to_world(self, points: Points, time: int) -> Points:
        return self._apply(points, self.matrix[time], self.centre, self.centre + self.shift[time])

    def to_picture(self, points: Points, time: int) -> Points:
        return self._apply(points, np.linalg.inv(self.matrix[time]), self.centre + self.shift[time], self.centre)

    @staticmethod
    def _apply(points: Points, matrix: np.ndarray, before: np.ndarray, after: np.ndarray) -> Points:
        m, b = matrix.astype(np.float32), (after - matrix @ before).astype(np.float32)
        x, y = points
        return m[0, 0] * x + m[0, 1] * y + b[0], m[1, 0] * x + m[1, 1] * y + b[1]


def draw_camera(rng: np.random.Generator, stage: Stage, moves: bool, kind: str) -> Camera:
    """A camera at a random sub-pixel place, still or moving as `kind` (of `CAMERAS`) says.

    Raises:
        ValueError: If a pan of so many frames would leave the painted world.
    """
    frames, width = stage.num_frames, stage.width
    longest = int(2 * MARGIN / PAN + 1)
    if moves and kind == "pan" and frames > longest:
        raise ValueError(f"{frames} frames of camera=pan leave the painted world: at most {longest}; or use camera=any")
    centre = np.array([(stage.width - 1) / 2, (stage.height - 1) / 2])
    shift = np.tile(rng.uniform(-0.5, 0.5, 2), (frames, 1))
    zoom, turn = np.zeros(frames), np.zeros(frames)
    # The middle of the clip sees the middle of the painted world, so that both ends stay inside it, or near it.
    clock = np.arange(frames) - (frames - 1) / 2
    if moves and kind == "pan":
        shift = shift + clock[:, None] * np.array([PAN * width, 0])
    elif moves:
        parts = rng.random(4) < (0.6, 0.3, 0.35, 0.2)
        if not parts.any():
            parts[rng.integers(4)] = True
        speed = width * np.exp(rng.uniform(np.log(0.003), np.log(0.025), 4)) / np.sqrt(parts.sum())
        pan, zooming, shake, turning = np.where(parts, speed, 0)
        heading = rng.uniform(0, 2 * np.pi)
        shift = shift + clock[:, None] * pan * np.array([np.cos(heading), np.sin(heading)])
        zoom = clock * zooming / (width / 2) * rng.choice([-1, 1])
        zoom = zoom * min(1, 0.25 / max(np.abs(zoom).max(), 1e-9))
        turn = clock * turning / (width / 2) * rng.choice([-1, 1])
        # Hand shake is a sum of slow swings with random phases and root mean square velocity `shake`.
        rates, phases = rng.uniform(0.3, 1.2, (3, 1, 2)), rng.uniform(0, 2 * np.pi, (3, 1, 2))
        swings = np.sin(rates * clock[None, :, None] + phases) / rates
        shift = shift + swings.sum(0) * shake / np.sqrt(3)
    cos, sin, scale = np.cos(turn), np.sin(turn), np.exp(zoom)
    matrix = (scale * np.stack([cos, -sin, sin, cos])).T.reshape(frames, 2, 2)
    return Camera(centre, matrix, shift, moves)
