"""Scenes of the synthetic world: layers of texture with motions that are known in closed form, and a camera.

World coordinates are output pixels, x right and y down, (0, 0) the centre of frame 0's first pixel (but for a
sub-pixel shift drawn per clip). Time is counted in frames. A motion answers two questions: which point of the texture
shows at world point p at time t (`material`), and where the material at p at time t is at t+1 (`step`).
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import cv2
import numpy as np

from motionanim.data.textures import Style, dead_leaves, fluid_texture, noise, ramp, texture

SUPER = 2  # texels, and rendered samples, per output pixel and axis
_MARGIN = 0.25  # of the frame's side, on each side: what the camera may reach

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
    root: float  # y that stays in place, px
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

    The flow map of a steady field commutes with itself, so the material at time t is one backward step from that at
    t-1, and the displacement p -> p + F(p) is the same in all frames. The field is sampled on a coarse grid; both maps
    are midpoint steps through it. The texture is undistorted at time `reference`, so that no end of the clip is
    always the sharp one.

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
    """A texture with its motion.

    `pixels` is (h, w, 3), opaque, or (h, w, 4), premultiplied RGB and coverage that move with the material; texel
    (0, 0) lies at world point `origin` (its corner: pixel centres are whole numbers). `region`, over the world's tile,
    is a window fixed in the world through which the material shows.
    """

    pixels: np.ndarray
    origin: tuple[float, float]
    border: int  # OpenCV border mode of `pixels`
    motion: Motion | None
    region: np.ndarray | None


class Stage(NamedTuple):
    """Size of a clip and the tile of world around it that scenes are painted on."""

    num_frames: int
    height: int
    width: int

    @property
    def shape(self) -> tuple[int, int]:
        """Texels (h, w) of the tile."""
        return tuple(round(side * (1 + 2 * _MARGIN)) * SUPER for side in (self.height, self.width))

    @property
    def origin(self) -> tuple[float, float]:
        """World x, y of the tile's first corner."""
        return (-0.5 - _MARGIN * self.width, -0.5 - _MARGIN * self.height)

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


def _edge(distance: np.ndarray) -> np.ndarray:
    """Coverage in [0, 1] from the signed distance inside, px: an edge about one pixel wide."""
    return np.clip(distance + 0.5, 0, 1).astype(np.float32)


def _eulerian(rng: np.random.Generator, stage: Stage, angle: float, slope_at: Callable) -> Eulerian:
    """Main stream along `angle` that follows the bends of `slope_at`, plus low-frequency curl noise."""
    width, spacing = stage.width, stage.width / 64
    origin = stage.origin
    columns, rows = (int((1 + 2 * _MARGIN) * side / spacing) + 2 for side in (stage.width, stage.height))
    x = (origin[0] + np.arange(columns) * spacing)[None]
    y = (origin[1] + np.arange(rows) * spacing)[:, None]
    speed = stage.speed(rng)
    slope = slope_at(x * np.cos(angle) + y * np.sin(angle))
    velocity = speed * np.stack([np.cos(angle) - slope * np.sin(angle), np.sin(angle) + slope * np.cos(angle)])
    # The share of noise is bounded by the strain it piles up over the clip, so that textures are not drawn to threads.
    modes = 4
    lengths = width * np.exp(rng.uniform(np.log(0.4), np.log(1.5), modes))
    strain = 2 * np.pi * stage.num_frames / lengths
    sizes = rng.uniform(0, 1, modes) * np.minimum(0.35 * speed, 0.8 / strain) / np.sqrt(modes) * 1.5
    for size, length, heading, phase in zip(
        sizes, lengths, rng.uniform(0, 2 * np.pi, modes), rng.uniform(0, 2 * np.pi, modes)
    ):
        wave = size * np.cos((x * np.cos(heading) + y * np.sin(heading)) * 2 * np.pi / length + phase)
        velocity = velocity + wave * np.array([-np.sin(heading), np.cos(heading)])[:, None, None]
    return Eulerian(
        velocity,
        origin=origin,
        spacing=spacing,
        num_frames=stage.num_frames,
        reference=int(rng.integers(stage.num_frames)),
    )


def _ground(rng: np.random.Generator, stage: Stage, style: Style) -> np.ndarray:
    """A still background (h, w, 3) under uneven light."""
    colour = texture(rng, stage.shape, style, style.ground, unit=stage.width * SUPER)
    x, y = stage.grid()
    light = rng.normal(0, 0.22, 2)
    return np.clip(
        colour * (1 + light[0] * (x / stage.width - 0.5) + light[1] * (y / stage.height - 0.5))[..., None], 0, 1
    )


def _wobble(rng: np.random.Generator, stage: Stage, slope: float) -> np.ndarray:
    """Smooth noise over the tile, unit deviation, to roughen an outline."""
    small = noise(rng, (stage.shape[0] // 4, stage.shape[1] // 4), slope=slope)[0]
    return cv2.resize(small, stage.shape[::-1], interpolation=cv2.INTER_CUBIC)


def river(rng: np.random.Generator, stage: Stage, style: Style) -> list[Layer]:
    """A winding band of water, or a fall when it runs down the picture, between shaded banks."""
    angle = rng.choice([rng.uniform(0, 2 * np.pi), np.pi / 2, rng.choice([0, np.pi])]) + rng.normal(0, 0.15)
    bends = rng.uniform(0, 0.12) * stage.width
    pulse, phase = 2 * np.pi / (stage.width * rng.uniform(0.9, 2)), rng.uniform(0, 2 * np.pi)
    x, y = stage.grid()
    middle = rng.uniform(0.3, 0.7, 2) * (stage.width, stage.height)
    offset = -middle[0] * np.sin(angle) + middle[1] * np.cos(angle)
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle) - offset
    wobble = _wobble(rng, stage, style.slope + 0.6) * (0.015 * stage.width)
    half = rng.uniform(0.12, 0.38) * stage.width
    inside = half - np.abs(across - bends * np.sin(pulse * along + phase)) + wobble
    motion = _eulerian(rng, stage, angle, lambda s: bends * pulse * np.cos(pulse * s + phase))
    ground = _ground(rng, stage, style)
    # Banks slope down into the water.
    bank = 1 - 0.45 * np.exp(np.minimum(inside, 0) / (0.03 * stage.width))
    return [
        stage.layer(ground * bank[..., None].astype(np.float32), None),
        stage.layer(_fluid_pixels(rng, stage, style, angle), motion, _edge(inside)),
    ]


def _fluid_pixels(rng: np.random.Generator, stage: Stage, style: Style, angle: float) -> np.ndarray:
    if rng.random() < 0.25:  # any texture may flow
        return texture(rng, stage.shape, style, style.fluid, unit=stage.width * SUPER)
    return fluid_texture(rng, stage.shape, style, angle=angle)


def pond(rng: np.random.Generator, stage: Stage, style: Style) -> list[Layer]:
    """A body of water, lava or mist with an irregular shore."""
    x, y = stage.grid()
    middle = rng.uniform(0.2, 0.8, 2) * (stage.width, stage.height)
    size = rng.uniform(0.25, 0.6, 2) * (stage.width, stage.height)
    wobble = _wobble(rng, stage, style.slope + 0.9)
    reach = np.hypot((x - middle[0]) / size[0], (y - middle[1]) / size[1])
    inside = (1 - reach + 0.12 * wobble) * size.min()
    angle = rng.uniform(0, 2 * np.pi)
    motion = _eulerian(rng, stage, angle, np.zeros_like)
    bank = 1 - 0.45 * np.exp(np.minimum(inside, 0) / (0.03 * stage.width))
    return [
        stage.layer(_ground(rng, stage, style) * bank[..., None].astype(np.float32), None),
        stage.layer(_fluid_pixels(rng, stage, style, angle), motion, _edge(inside)),
    ]


def sky(rng: np.random.Generator, stage: Stage, style: Style) -> list[Layer]:
    """Clouds over hills, each range nearer and darker."""
    _, y = stage.grid()
    angle = rng.choice([0, np.pi]) + rng.normal(0, 0.25)
    ground = _ground(rng, stage, style)
    horizon = rng.uniform(0.35, 0.75) * stage.height
    lines = noise(rng, (8, stage.shape[1]), slope=style.slope + 0.3)[0]
    haze = ramp(style.fluid, np.array(rng.uniform(0.6, 0.95)))
    first, land = None, ground
    for k, depth in enumerate((0.55, 0.3, 0.0)):
        line = horizon + k * rng.uniform(0.06, 0.18) * stage.height + lines[2 * k][None] * (0.035 * stage.height)
        cover = _edge(y - line)
        first = cover if first is None else np.maximum(first, cover)
        shade = 1 - 0.35 * np.exp(-np.maximum(y - line, 0) / (0.12 * stage.height)) * (depth < 0.5)
        tone = (ground * (1 - depth) + haze * depth) * shade[..., None].astype(np.float32)
        land = land * (1 - cover[..., None]) + tone * cover[..., None]
    motion = _eulerian(rng, stage, angle, np.zeros_like)
    return [stage.layer(land, None), stage.layer(_fluid_pixels(rng, stage, style, angle), motion, 1 - first)]


def _sprite(colour: np.ndarray, inside: np.ndarray, drop: float) -> np.ndarray:
    """Premultiplied (n, n, 4) with a soft shadow `drop` texels below; shadow coverage stays under one half."""
    cover = np.clip(inside + 0.5, 0, 1).astype(np.float32)
    blurred = cv2.GaussianBlur(cover, (0, 0), max(0.35 * drop, 0.8))
    shadow = 0.4 * np.roll(blurred, (round(0.7 * drop), round(0.4 * drop)), (0, 1))
    return np.dstack([colour * cover[..., None], cover + (1 - cover) * shadow]).astype(np.float32)


def _placed(pixels: np.ndarray, x: float, y: float, motion: Motion | None) -> Layer:
    half = len(pixels) / (2 * SUPER)
    return Layer(pixels, (x - half, y - half), cv2.BORDER_CONSTANT, motion, None)


def _polar(radius: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Square of texels round a disc of `radius` texels: offsets x, y in units of the radius, and the side."""
    side = 2 * int(radius * 1.45 + 3)
    place = ((np.arange(side, dtype=np.float32) + 0.5) - side / 2) / np.float32(radius)
    return place[None], place[:, None], np.array(side)


def blob(rng: np.random.Generator, stage: Stage, style: Style, *, moving: bool) -> Layer:
    """A lit, textured body; it drifts so that mid-clip finds it inside the frame, or it stands still."""
    radius = rng.uniform(0.07, 0.22) * stage.width * SUPER
    x, y, side = _polar(radius)
    phi = np.arctan2(y, x)
    outline = 0.85 + 0.0 * phi
    for lobe in range(2, 6):
        outline = outline + rng.normal(0, 0.12 / lobe) * np.cos(lobe * phi + rng.uniform(0, 2 * np.pi))
    colours = style.fluid if rng.random() < 0.35 else style.ground[:, rng.permutation(3)]
    colour = texture(rng, (int(side), int(side)), style, colours, unit=radius * 2.5)
    light = 1.05 - 0.3 * (0.7 * y + 0.4 * x) - 0.25 * (x**2 + y**2)
    colour = np.clip(colour * light[..., None], 0, 1)
    pixels = _sprite(colour, (outline - np.hypot(x, y)) * radius, 0.25 * radius)
    speed, angle = stage.speed(rng), rng.uniform(0, 2 * np.pi)
    motion = Drift(speed * np.cos(angle), speed * np.sin(angle)) if moving else None
    place = rng.uniform(0.15, 0.85, 2) * (stage.width, stage.height)
    if motion is not None:
        place = place - np.array(motion) * (stage.num_frames - 1) * rng.uniform(0.1, 0.9)
        # It must show in frame 0, or the movable region of frame 0 would miss it.
        place = np.clip(place, 0, (stage.width - 1, stage.height - 1))
    return _placed(pixels, *place, motion)


def drift(rng: np.random.Generator, stage: Stage, style: Style) -> list[Layer]:
    """One to three bodies adrift, perhaps behind one that stands still."""
    layers = [stage.layer(_ground(rng, stage, style), None)]
    layers += [blob(rng, stage, style, moving=True) for _ in range(rng.integers(1, 4))]
    return layers + ([blob(rng, stage, style, moving=False)] if rng.random() < 0.3 else [])


def wheel(rng: np.random.Generator, stage: Stage, style: Style) -> list[Layer]:
    """A turning disc with rim, hub and spokes before a wall."""
    radius = rng.uniform(0.15, 0.42) * stage.width * SUPER
    x, y, side = _polar(radius)
    rho, phi = np.hypot(x, y), np.arctan2(y, x)
    colours = style.fluid if rng.random() < 0.5 else style.ground
    panel = texture(rng, (int(side), int(side)), style, colours, unit=radius * 2.5)
    spokes, sweep = rng.integers(2, 9), rng.choice([0, rng.normal(0, 1.5)])
    bar = np.cos((phi + sweep * rho) * spokes) * rho / spokes
    metal = np.clip((bar - (rho / spokes - rng.uniform(0.04, 0.12))) * radius * 0.7, 0, 1) * (rho < 0.9)
    rim = np.clip((0.12 - np.abs(rho - 0.9)) * radius + 0.5, 0, 1)
    hub = np.clip((rng.uniform(0.1, 0.25) - rho) * radius + 0.5, 0, 1)
    tones = ramp(style.ground, rng.random(2))
    relief = (1 + 0.25 * np.cos(rho * 20) * (rho > 0.8))[..., None]
    solid = np.maximum(metal, rim)[..., None]
    colour = panel * 0.8 * (1 - solid) + tones[0] * relief * solid
    colour = colour * (1 - hub[..., None]) + tones[1] * hub[..., None]
    pixels = _sprite(np.clip(colour, 0, 1), (1 - rho) * radius, 0.0)
    place = rng.uniform(0.25, 0.75, 2) * (stage.width, stage.height)
    rate = stage.speed(rng) / (radius / SUPER) * rng.choice([-1, 1])
    return [
        stage.layer(_ground(rng, stage, style), None),
        _placed(pixels, *place, Spin(place[0], place[1], rate)),
    ]


def foliage(rng: np.random.Generator, stage: Stage, style: Style) -> list[Layer]:
    """Leaves that sway before a distance of sky or ground, rooted below or hanging from above."""
    unit = stage.width * SUPER
    rows, columns = stage.shape
    far = fluid_texture(rng, stage.shape, style, angle=0.0) if rng.random() < 0.5 else _ground(rng, stage, style)
    count = int(rng.integers(150, 420))
    # Leaf centres crowd towards the root and under a rounded top.
    height = rng.uniform(0.35, 0.8) * rows
    place = rng.random(count) * columns
    top = height * (0.75 + 0.25 * np.sin(place * rng.uniform(1, 5) * 2 * np.pi / columns + rng.uniform(0, 6.28)))
    rise = rng.random(count) ** 0.8 * top
    hanging = rng.random() < 0.3
    centres = np.stack([place, rise if hanging else rows - rise], -1)
    low = unit * np.exp(rng.uniform(np.log(0.02), np.log(0.05)))
    colour, cover = dead_leaves(
        rng,
        stage.shape,
        style,
        style.ground,
        base=np.zeros((rows, columns, 3), np.float32),
        grain=noise(rng, stage.shape, slope=style.slope)[0],
        count=count,
        radius=(low, low * 4),
        centres=centres,
        slender=rng.uniform(0.45, 1),
    )
    cover = cover.astype(np.float32)
    pixels = np.dstack([colour * cover[..., None], cover])
    root = stage.origin[1] + (0 if hanging else rows / SUPER)
    rate, length = 2 * np.pi / rng.uniform(8, 28), rows / SUPER
    reach = min(2 * stage.speed(rng) / rate, 0.15 * stage.width)
    bend = rng.uniform(-1, 1) * 2 * np.pi / stage.height
    return [
        stage.layer(np.clip(far, 0, 1), None),
        Layer(
            pixels,
            stage.origin,
            cv2.BORDER_REPLICATE,
            Sway(reach, root, length, rate, bend, rng.uniform(0, 2 * np.pi)),
            None,
        ),
    ]


def still(rng: np.random.Generator, stage: Stage, style: Style) -> list[Layer]:
    """Nothing moves but, perhaps, the camera."""
    return [
        stage.layer(_ground(rng, stage, style), None),
        *(blob(rng, stage, style, moving=False) for _ in range(rng.integers(0, 3))),
    ]
