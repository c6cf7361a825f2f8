"""Layers of the synthetic world: textures with motions whose flow is exact, on a stage.

World coordinates are output pixels, x right and y down; (0, 0) is the centre of frame 0's first pixel, up to a
sub-pixel shift drawn per clip. Time is counted in frames. A motion has two maps: `material` gives the point of the
texture that shows at world point p at time t, and `step` the place at t+1 of the material at p at time t.
"""

from typing import NamedTuple, Protocol

import cv2
import numpy as np

SUPER = 2  # texels and rendered samples per output pixel and axis
MARGIN = 0.25  # share of the frame's side that is painted beyond each edge, for the camera to reach

Points = tuple[np.ndarray, np.ndarray]  # x and y, float32, same shape


class Motion(Protocol):
    def material(self, points: Points, time: int) -> Points: ...
    def step(self, points: Points, time: int) -> Points: ...


class Drift(NamedTuple):
    """Constant velocity, px per frame."""

    dx: float
    dy: float

    def material(self, points: Points, time: int) -> Points:
        return points[0] - np.float32(self.dx * time), points[1] - np.float32(self.dy * time)

    def step(self, points: Points, time: int) -> Points:
        return points[0] + np.float32(self.dx), points[1] + np.float32(self.dy)


class Spin(NamedTuple):
    """Rotation about a point, `rate` radians per frame, clockwise on screen when positive."""

    x: float
    y: float
    rate: float

    def _turn(self, points: Points, angle: float) -> Points:
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        x, y = points[0] - np.float32(self.x), points[1] - np.float32(self.y)
        return x * cos - y * sin + np.float32(self.x), x * sin + y * cos + np.float32(self.y)

    def material(self, points: Points, time: int) -> Points:
        return self._turn(points, -self.rate * time)

    def step(self, points: Points, time: int) -> Points:
        return self._turn(points, self.rate)


class Sway(NamedTuple):
    """Horizontal shear that swings: x moves by reach * (root - y) / length * sin(rate * t + bend * y + phase)."""

    reach: float  # px at distance `length` from the root
    root: float  # px; the y that stays in place
    length: float  # px
    rate: float  # radians per frame
    bend: float  # radians per px
    phase: float

    def _offset(self, y: np.ndarray, time: int) -> np.ndarray:
        lever = (np.float32(self.root) - y) * np.float32(self.reach / self.length)
        return lever * np.sin(np.float32(self.bend) * y + np.float32(self.rate * time + self.phase))

    def material(self, points: Points, time: int) -> Points:
        return points[0] - self._offset(points[1], time), points[1]

    def step(self, points: Points, time: int) -> Points:
        return points[0] + self._offset(points[1], time + 1) - self._offset(points[1], time), points[1]


class Eulerian:
    """Material carried by a steady velocity field.

    The flow map of a steady field commutes with itself, so the material at time t is one backward step from the
    material at t-1, and the displacement p -> p + F(p) is the same in all frames. The field is sampled on a coarse
    grid, and both maps are midpoint steps through it. The texture is undistorted at time `reference`, so that the sharp
    frame varies between clips.

    Args:
        velocity: (2, n, m) px per frame at the nodes.
        origin: World x, y of the first node.
        spacing: Node distance in px.
    """

    def __init__(
        self, velocity: np.ndarray, *, origin: tuple[float, float], spacing: float, num_frames: int, reference: int
    ) -> None:
        self._velocity = np.ascontiguousarray(velocity.transpose(1, 2, 0), np.float32) / np.float32(spacing)
        self._origin, self._spacing = origin, spacing
        rows, columns = self._velocity.shape[:2]
        nodes = np.stack(np.meshgrid(np.arange(columns), np.arange(rows)), -1).astype(np.float32)
        self._forward = self._advance(nodes, 1) - nodes
        where = nodes
        for _ in range(reference):
            where = self._advance(where, 1)
        self._offsets = [where - nodes]
        for _ in range(num_frames - 1):
            where = self._advance(where, -1)
            self._offsets.append(where - nodes)

    def _advance(self, nodes: np.ndarray, sign: int) -> np.ndarray:
        middle = nodes + np.float32(0.5 * sign) * self._look(self._velocity, nodes)
        return nodes + np.float32(sign) * self._look(self._velocity, middle)

    @staticmethod
    def _look(field: np.ndarray, nodes: np.ndarray) -> np.ndarray:
        return cv2.remap(field, nodes, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def _move(self, points: Points, field: np.ndarray) -> Points:
        scale = np.float32(1 / self._spacing)
        x, y = (points[axis] * scale - np.float32(self._origin[axis] / self._spacing) for axis in (0, 1))
        offset = cv2.remap(field, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE) * np.float32(self._spacing)
        return points[0] + offset[..., 0], points[1] + offset[..., 1]

    def material(self, points: Points, time: int) -> Points:
        return self._move(points, self._offsets[time])

    def step(self, points: Points, time: int) -> Points:
        return self._move(points, self._forward)


class Layer(NamedTuple):
    """A texture with its motion."""

    pixels: np.ndarray  # (h, w, 3) opaque, or (h, w, 4) premultiplied RGB and coverage, which move with the material
    origin: tuple[float, float]  # world x, y of the first texel's corner; pixel centres are whole numbers
    border: int  # OpenCV border mode of `pixels`
    motion: Motion | None
    region: np.ndarray | None  # coverage over the world's tile: a window fixed in the world that shows the material


class Stage(NamedTuple):
    """Size of a clip, and the tile of the world around it on which scenes are painted."""

    num_frames: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """Texels (h, w) of the tile."""
        return tuple(round(side * (1 + 2 * MARGIN)) * SUPER for side in (self.height, self.width))

    @property
    def origin(self) -> tuple[float, float]:
        """World x, y of the tile's first corner."""
        return (-0.5 - MARGIN * self.width, -0.5 - MARGIN * self.height)

    def grid(self) -> Points:
        """World coordinates of the tile's texels: x (1, w) and y (h, 1)."""
        rows, columns = self.shape
        x = self.origin[0] + (np.arange(columns, dtype=np.float32)[None] + 0.5) / SUPER
        return x.astype(np.float32), (self.origin[1] + (np.arange(rows, dtype=np.float32)[:, None] + 0.5) / SUPER)

    def speed(self, rng: np.random.Generator) -> float:
        """Log-uniform, 0.3 to 4 % of the frame's width per frame, in px per frame."""
        return self.width * float(np.exp(rng.uniform(np.log(0.003), np.log(0.04))))

    def layer(self, pixels: np.ndarray, motion: Motion | None, region: np.ndarray | None = None) -> Layer:
        """A layer that covers the tile."""
        border = cv2.BORDER_REFLECT_101 if motion is None else cv2.BORDER_WRAP
        return Layer(pixels, self.origin, border, motion, region)
