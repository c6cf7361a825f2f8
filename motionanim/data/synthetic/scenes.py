"""Scenes of the synthetic world: rivers, ponds, skies, wheels, foliage and drifting bodies.

A scene is a list of layers from back to front; the first layer is opaque and does not move.
"""

from collections.abc import Callable

import cv2
import numpy as np

from motionanim.data.synthetic.layers import MARGIN, SUPER, Drift, Eulerian, Layer, Motion, Spin, Stage, Sway
from motionanim.data.synthetic.textures import Style, dead_leaves, fluid_texture, noise, ramp, texture


def _edge(distance: np.ndarray) -> np.ndarray:
    """Coverage in [0, 1] by the signed distance inside in px: an edge about one pixel wide."""
    return np.clip(distance + 0.5, 0, 1).astype(np.float32)


def _eulerian(rng: np.random.Generator, stage: Stage, angle: float, slope_at: Callable) -> Eulerian:
    """A main stream along `angle` that follows the bends of `slope_at`, with low-frequency curl noise."""
    width, spacing = stage.width, stage.width / 64
    origin = stage.origin
    columns, rows = (int((1 + 2 * MARGIN) * side / spacing) + 2 for side in (stage.width, stage.height))
    x = (origin[0] + np.arange(columns) * spacing)[None]
    y = (origin[1] + np.arange(rows) * spacing)[:, None]
    speed = stage.speed(rng)
    slope = slope_at(x * np.cos(angle) + y * np.sin(angle))
    velocity = speed * np.stack([np.cos(angle) - slope * np.sin(angle), np.sin(angle) + slope * np.cos(angle)])
    # The noise is bounded by its strain over the whole clip, so that textures are not drawn out to threads.
    modes = 4
    lengths = width * np.exp(rng.uniform(np.log(0.4), np.log(1.5), modes))
    strain = 2 * np.pi * stage.num_frames / lengths
    sizes = rng.uniform(0, 1, modes) * np.minimum(0.35 * speed, 0.8 / strain) / np.sqrt(modes) * 1.5
    for size, length, heading, phase in zip(
        sizes, lengths, rng.uniform(0, 2 * np.pi, modes), rng.uniform(0, 2 * np.pi, modes)
    ):
        wave = size * np.cos((x * np.cos(heading) + y * np.sin(heading)) * 2 * np.pi / length + phase)
        velocity = velocity + wave * np.array([-np.sin(heading), np.cos(heading)])[:, None, None]
    reference = int(rng.integers(stage.num_frames))
    return Eulerian(velocity, origin=origin, spacing=spacing, num_frames=stage.num_frames, reference=reference)


def _ground(rng: np.random.Generator, stage: Stage, style: Style) -> np.ndarray:
    """A still background (h, w, 3) under uneven light."""
    colour = texture(rng, stage.shape, style, style.ground, unit=stage.width * SUPER)
    x, y = stage.grid()
    slope = rng.normal(0, 0.22, 2)
    light = 1 + slope[0] * (x / stage.width - 0.5) + slope[1] * (y / stage.height - 0.5)
    return np.clip(colour * light[..., None], 0, 1)


def _wobble(rng: np.random.Generator, stage: Stage, slope: float) -> np.ndarray:
    """Smooth noise over the tile, unit deviation, to roughen an outline."""
    small = noise(rng, (stage.shape[0] // 4, stage.shape[1] // 4), slope=slope)[0]
    return cv2.resize(small, stage.shape[::-1], interpolation=cv2.INTER_CUBIC)


def river(rng: np.random.Generator, stage: Stage, style: Style) -> list[Layer]:
    """A winding band of water between shaded banks, or a waterfall where it runs down the picture."""
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
    return [
        stage.layer(ground * _bank(stage, inside), None),
        stage.layer(_fluid_pixels(rng, stage, style, angle), motion, _edge(inside)),
    ]


def _bank(stage: Stage, inside: np.ndarray) -> np.ndarray:
    """Light (h, w, 1) of banks that slope down into the water; `inside` is the signed distance into it in px."""
    return (1 - 0.45 * np.exp(np.minimum(inside, 0) / (0.03 * stage.width)))[..., None].astype(np.float32)


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
    return [
        stage.layer(_ground(rng, stage, style) * _bank(stage, inside), None),
        stage.layer(_fluid_pixels(rng, stage, style, angle), motion, _edge(inside)),
    ]


def sky(rng: np.random.Generator, stage: Stage, style: Style) -> list[Layer]:
    """Clouds over three ranges of hills, the nearer the darker."""
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
    """Premultiplied (n, n, 4) with a soft shadow `drop` texels below, whose coverage stays under one half."""
    cover = np.clip(inside + 0.5, 0, 1).astype(np.float32)
    blurred = cv2.GaussianBlur(cover, (0, 0), max(0.35 * drop, 0.8))
    shadow = 0.4 * np.roll(blurred, (round(0.7 * drop), round(0.4 * drop)), (0, 1))
    return np.dstack([colour * cover[..., None], cover + (1 - cover) * shadow]).astype(np.float32)


def _placed(pixels: np.ndarray, x: float, y: float, motion: Motion | None) -> Layer:
    half = len(pixels) / (2 * SUPER)
    return Layer(pixels, (x - half, y - half), cv2.BORDER_CONSTANT, motion, None)


def _square(radius: float) -> tuple[np.ndarray, np.ndarray, int]:
    """The square of texels around a disc of `radius` texels: offsets x, y in units of the radius, and the side."""
    side = 2 * int(radius * 1.45 + 3)
    place = ((np.arange(side, dtype=np.float32) + 0.5) - side / 2) / np.float32(radius)
    return place[None], place[:, None], side


def blob(rng: np.random.Generator, stage: Stage, style: Style, *, moving: bool) -> Layer:
    """A lit, textured body that stands still or drifts; in the middle of the clip it is inside the frame."""
    radius = rng.uniform(0.07, 0.22) * stage.width * SUPER
    x, y, side = _square(radius)
    phi = np.arctan2(y, x)
    outline = 0.85 + 0.0 * phi
    for lobe in range(2, 6):
        outline = outline + rng.normal(0, 0.12 / lobe) * np.cos(lobe * phi + rng.uniform(0, 2 * np.pi))
    colours = style.fluid if rng.random() < 0.35 else style.ground[:, rng.permutation(3)]
    colour = texture(rng, (side, side), style, colours, unit=radius * 2.5)
    light = 1.05 - 0.3 * (0.7 * y + 0.4 * x) - 0.25 * (x**2 + y**2)
    colour = np.clip(colour * light[..., None], 0, 1)
    pixels = _sprite(colour, (outline - np.hypot(x, y)) * radius, 0.25 * radius)
    speed, angle = stage.speed(rng), rng.uniform(0, 2 * np.pi)
    motion = Drift(speed * np.cos(angle), speed * np.sin(angle)) if moving else None
    place = rng.uniform(0.15, 0.85, 2) * (stage.width, stage.height)
    if motion is not None:
        place = place - np.array(motion) * (stage.num_frames - 1) * rng.uniform(0.1, 0.9)
        # It must show in frame 0, because the mask is of frame 0.
        place = np.clip(place, 0, (stage.width - 1, stage.height - 1))
    return _placed(pixels, *place, motion)


def drift(rng: np.random.Generator, stage: Stage, style: Style) -> list[Layer]:
    """One to three drifting bodies, sometimes behind one that stands still."""
    layers = [stage.layer(_ground(rng, stage, style), None)]
    layers += [blob(rng, stage, style, moving=True) for _ in range(rng.integers(1, 4))]
    return layers + ([blob(rng, stage, style, moving=False)] if rng.random() < 0.3 else [])


def wheel(rng: np.random.Generator, stage: Stage, style: Style) -> list[Layer]:
    """A turning disc with rim, hub and spokes in front of a wall."""
    radius = rng.uniform(0.15, 0.42) * stage.width * SUPER
    x, y, side = _square(radius)
    rho, phi = np.hypot(x, y), np.arctan2(y, x)
    colours = style.fluid if rng.random() < 0.5 else style.ground
    panel = texture(rng, (side, side), style, colours, unit=radius * 2.5)
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
    """Leaves that sway in front of sky or ground, rooted below or hanging from above."""
    unit = stage.width * SUPER
    rows, columns = stage.shape
    far = fluid_texture(rng, stage.shape, style, angle=0.0) if rng.random() < 0.5 else _ground(rng, stage, style)
    count = int(rng.integers(150, 420))
    # Leaf centres crowd near the root and below a rounded top.
    height = rng.uniform(0.35, 0.8) * rows
    place = rng.random(count) * columns
    top = height * (0.75 + 0.25 * np.sin(place * rng.uniform(1, 5) * 2 * np.pi / columns + rng.uniform(0, 6.28)))
    rise = rng.random(count) ** 0.8 * top
    hanging = rng.random() < 0.3
    centres = np.stack([place, rise if hanging else rows - rise], -1)
    low = unit * np.exp(rng.uniform(np.log(0.02), np.log(0.05)))
    base, grain = np.zeros((rows, columns, 3), np.float32), noise(rng, stage.shape, slope=style.slope)[0]
    colour, cover = dead_leaves(
        rng, stage.shape, style, style.ground, base=base, grain=grain, count=count, radius=(low, low * 4),
        centres=centres, slender=rng.uniform(0.45, 1),
    )  # fmt: skip
    cover = cover.astype(np.float32)
    pixels = np.dstack([colour * cover[..., None], cover])
    root = stage.origin[1] + (0 if hanging else rows / SUPER)
    rate, length = 2 * np.pi / rng.uniform(8, 28), rows / SUPER
    reach = min(2 * stage.speed(rng) / rate, 0.15 * stage.width)
    bend = rng.uniform(-1, 1) * 2 * np.pi / stage.height
    motion = Sway(reach, root, length, rate, bend, rng.uniform(0, 2 * np.pi))
    leaves = Layer(pixels, stage.origin, cv2.BORDER_REPLICATE, motion, None)
    return [stage.layer(np.clip(far, 0, 1), None), leaves]


def still(rng: np.random.Generator, stage: Stage, style: Style) -> list[Layer]:
    """A scene without motion of its own."""
    return [
        stage.layer(_ground(rng, stage, style), None),
        *(blob(rng, stage, style, moving=False) for _ in range(rng.integers(0, 3))),
    ]
