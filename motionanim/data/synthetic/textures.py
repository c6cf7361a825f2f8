"""Textures of the synthetic world with natural-image statistics: palettes, fractal noise and dead leaves.

Dead leaves (overlapping shapes with power-law radii) and 1/f noise have the edge, occlusion and power spectrum
statistics of photographs, so that a network trained on them transfers to photographs. The splits `train` and `val`
share no palette, no family of leaf shapes and no range of noise slopes, so that validation measures unseen textures,
not only unseen seeds.

Textures are float32 RGB in [0, 1], (h, w, 3).
"""

from typing import NamedTuple

import cv2
import numpy as np
import scipy.fft

# Ground colours, then fluid colours, each from dark to light.
_PALETTES = {
    "train": (
        ("1d2a16 3f5a2a 6f7f3c a39a5a d9c894", "12323f 1f5a6b 3f8c98 8fc3c4 e8f3ee"),  # meadow, river
        ("2b1c14 5a3a26 8c6340 bd9468 e6d3b0", "1b2b33 3a545c 6a8288 a3b4b3 e3e6df"),  # earth, grey water
        ("20262b 454e55 737b7f a5a8a5 dcd9d0", "24507e 4d86b8 86b4d8 c3dcee fbfcfc"),  # rock, sky
        ("3a1d12 7d3b1c b9682d dd9d4e f5dfa8", "173a5c 2c6a94 69a3c0 b5d3da f6efe0"),  # autumn, lake
        ("14231f 27463c 4b6f5c 83997c c8cfae", "0f3d3a 22736a 55a893 a8d5bd effaf0"),  # pine, glacier
        ("4a4033 85745a b5a27f d8c8a4 f3ead4", "2a4a6b 5b7fa0 97b1c6 d0d8dc fff6e8"),  # sand, haze
        ("2a1f2d 5b3a4c 94576a c78b86 efcfb8", "3b2a4f 7d4f73 c67b7b efb089 fde5bd"),  # heather, sunset
        ("1a1d14 34452a 5d7d3a 98ac4e e0d87c", "26301f 4e5c38 858a5a bdb98a eeead2"),  # moss, pond
        ("5b1a17 a5352a cf6a45 e2ab7c f6e6cf", "101c2c 23405a 4b7090 93abb9 e9e4d6"),  # brick, night water
        ("38322f 6e6259 9b8a78 b9b2a3 e9e6dd", "45351f 7d6238 ad915c d3c096 f4ecd8"),  # stone, silt
        ("23304a 47607f 8096a6 bdbfb4 efe6d2", "5c6f84 8a9db0 b7c4cf dde3e6 ffffff"),  # dusk rock, cloud
        ("2c0f0c 57201a 8e3b21 6b7a35 c9b45a", "3d1208 8c2a0c d65a17 f5a02f ffe9a0"),  # ember, lava
    ),
    "val": (
        ("17262c 2f5560 6d8f8b b1b79c ece2bf", "0a2540 14507a 2f8fae 7fcbd0 e4f6ee"),
        ("2d2417 66502a a08338 8fa06a dfe3bd", "34304a 66608a 9c9ab9 cfcdd8 f7f1ea"),
        ("3b2330 7a4650 b27a6c 9fa58d e8dccb", "1c3328 3d6650 79997c b9c8a6 f2f0dc"),
        ("1e1e22 4d4a4a 8a7f74 c2b09a f0e4d4", "203a52 4c6a7c 8c9a98 ccc0a4 f8e6c4"),
    ),
}


class Style(NamedTuple):
    """Parameters that all textures of a clip share."""

    ground: np.ndarray  # (n, 3) RGB in [0, 1], dark to light
    fluid: np.ndarray  # (n, 3) RGB in [0, 1], dark to light
    corners: tuple[int, ...]  # numbers of corners a leaf may have; 0 is round
    slope: float  # noise amplitude falls as frequency ** -slope
    power: float  # exponent of the law of leaf radii


def _colours(text: str) -> np.ndarray:
    return np.array([[int(word[i : i + 2], 16) for i in (0, 2, 4)] for word in text.split()], np.float32) / 255


def draw_style(rng: np.random.Generator, split: str) -> Style:
    """Draw the style of one clip.

    Raises:
        ValueError: If `split` is neither train nor val.
    """
    if split not in _PALETTES:
        raise ValueError(f"split={split!r}: must be one of {', '.join(_PALETTES)}")
    palettes = _PALETTES[split]
    ground = _colours(palettes[rng.integers(len(palettes))][0])
    fluid = _colours(palettes[rng.integers(len(palettes))][1])
    exposure, tint = rng.uniform(0.85, 1.12), rng.normal(0, 0.035, 3)

    def vary(colours: np.ndarray) -> np.ndarray:
        return np.clip(colours * exposure + tint + rng.normal(0, 0.03, colours.shape), 0.01, 1).astype(np.float32)

    if split == "train":
        corners, slope, power = (0, 0, 2, 4, 6), rng.uniform(1.0, 1.35), rng.uniform(2.4, 3.0)
    else:
        corners, slope, power = (3, 5), rng.uniform(1.4, 1.7), rng.uniform(3.05, 3.3)
    return Style(vary(ground), vary(fluid), corners, slope, power)


def ramp(colours: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Look up colours (n, 3), from dark to light, by `value` (any shape), clipped to [0, 1]: (..., 3)."""
    knots = np.linspace(0, 255, len(colours))
    table = np.stack([np.interp(np.arange(256), knots, channel) for channel in colours.T], -1).astype(np.float32)
    return table[np.clip(value * 255, 0, 255).astype(np.uint8)]


def noise(
    rng: np.random.Generator, shape: tuple[int, int], *, slope: float, stretch: float = 1.0, angle: float = 0.0
) -> np.ndarray:
    """Two independent periodic 1/f^slope fields (2, h, w) of zero mean and unit standard deviation.

    `stretch` > 1 draws them out along `angle` (radians, 0 to the right, clockwise on screen).
    """
    height, width = shape
    v = scipy.fft.fftfreq(height).astype(np.float32)[:, None] * height
    u = scipy.fft.fftfreq(width).astype(np.float32)[None, :] * height
    along, across = u * np.cos(angle) + v * np.sin(angle), v * np.cos(angle) - u * np.sin(angle)
    squared = (along * np.float32(stretch)) ** 2 + across**2
    squared[0, 0] = 1
    amplitude = squared ** np.float32(-slope / 2)
    amplitude[0, 0] = 0
    # One transform of a complex field gives two real fields.
    spectrum = rng.random((2, height, width), np.float32) - np.float32(0.5)
    field = scipy.fft.ifft2((spectrum[0] + 1j * spectrum[1]) * amplitude)
    both = np.stack([field.real, field.imag]).astype(np.float32)
    return both / both.std(axis=(1, 2), keepdims=True)


def _outlines(rng: np.random.Generator, radius: np.ndarray, corners: np.ndarray, aspect: np.ndarray) -> np.ndarray:
    """Outline polygons (n, 28, 2) around the origin: lobed, lens-shaped or with corners, by `corners` (n,)."""
    count = len(radius)
    phi = np.linspace(0, 2 * np.pi, 28, endpoint=False)[None]
    sides = np.maximum(corners, 3)[:, None]
    wedge = 2 * np.pi / sides
    polygon = np.cos(wedge / 2) / np.cos(phi % wedge - wedge / 2)
    lens = 0.25 + 0.75 * np.abs(np.sin(phi)) ** 1.2
    lobes = 1 + rng.uniform(0, 0.25, (count, 1)) * np.cos(
        rng.integers(2, 6, (count, 1)) * phi + rng.uniform(0, 6.28, (count, 1))
    )
    kind = corners[:, None]
    shape = np.where(kind == 0, lobes, np.where(kind == 2, lens, polygon)) * radius[:, None]
    x, y = shape * np.cos(phi) * aspect[:, None], shape * np.sin(phi)
    turn = rng.uniform(0, 2 * np.pi, (count, 1))
    return np.stack([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn)], -1)


def dead_leaves(
    rng: np.random.Generator,
    shape: tuple[int, int],
    style: Style,
    colours: np.ndarray,
    *,
    base: np.ndarray,
    grain: np.ndarray,
    count: int,
    radius: tuple[float, float],
    centres: np.ndarray | None = None,
    slender: float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Drop `count` shaded leaves with soft shadows on `base`.

    Args:
        base: (h, w, 3) texture below the leaves.
        grain: (h, w) roughness of their surfaces, unit standard deviation; periodic for a periodic result.
        radius: Least and greatest radius in texels; radii between them follow a power law.
        centres: (count, 2) x, y in texels; None draws them uniformly over a torus, for a periodic result.
        slender: Least ratio of a leaf's axes.

    Returns:
        Texture (h, w, 3) and where leaves cover it, (h, w) bool.
    """
    height, width = shape
    low, high = radius
    exponent = 1 - style.power
    radii = (low**exponent + rng.random(count) * (high**exponent - low**exponent)) ** (1 / exponent)
    periodic = centres is None
    places = rng.random((count, 2)) * (width, height) if periodic else centres
    # Roughly from large to small, so that small leaves stay visible.
    order = np.argsort(-radii * np.exp(rng.normal(0, 0.5, count)))
    radii, places = radii[order], places[order]
    outlines = _outlines(rng, radii, rng.choice(style.corners, count), rng.uniform(min(slender, 0.45), slender, count))
    outlines += places[:, None]
    light = rng.uniform(0, 2 * np.pi)
    towards = np.array([np.cos(light), np.sin(light)])
    labels = np.zeros(shape, np.int32)
    shadow = np.zeros(shape, np.uint8)
    lowest, highest = outlines.min(1), outlines.max(1)
    fixed, shade = (outlines * 16).astype(np.int32), ((outlines + (towards * 0.22 * radii[:, None])[:, None]) * 16)
    shade = shade.astype(np.int32)
    # A leaf that crosses an edge of the torus is drawn again on the other side.
    wraps = [
        [(0, *[side] * int(low < 0), *[-side] * int(high > side)) for low, high in zip(lowest[:, a], highest[:, a])]
        for a, side in enumerate((width, height))
    ]
    for i in range(count):
        shifts = [(0, 0)]
        if periodic:
            shifts = [(x, y) for x in wraps[0][i] for y in wraps[1][i]]
        for x, y in shifts:
            offset = (x * 16, y * 16)
            cv2.fillPoly(shadow, [shade[i] + offset], 255, shift=4)
            cv2.fillPoly(shadow, [fixed[i] + offset], 0, shift=4)
            cv2.fillPoly(labels, [fixed[i] + offset], i + 1, shift=4)
    tones = ramp(colours, rng.random(count)) + rng.normal(0, 0.04, (count, 3)).astype(np.float32)
    tilt = rng.uniform(-0.25, 0.25, (count, 2)) - towards * 0.12
    # Columns per leaf: colour (3), slope of the shading (2), its offset, strength of the surface grain.
    table = np.zeros((count + 1, 7), np.float32)
    table[1:, :3] = tones
    table[1:, 3:5] = tilt / radii[:, None]
    table[1:, 5] = -(tilt * places).sum(1) / radii
    table[1:, 6] = np.abs(rng.normal(0, 0.08, count))
    tilt_x, tilt_y, level, rough = (np.take(column, labels) for column in np.ascontiguousarray(table[:, 3:].T))
    y, x = np.ogrid[:height, :width]
    shading = tilt_x * x.astype(np.float32) + tilt_y * y.astype(np.float32) + level
    covered = labels > 0
    # Clipped, because wrapped copies lie a whole period from their centre.
    shading = 1 + np.clip(shading, -0.3, 0.3) + rough * grain
    colour = np.where(covered[..., None], np.take(table[:, :3], labels, axis=0) * shading[..., None], base)
    dark = cv2.blur(shadow, (3, 3)).astype(np.float32) * (-0.45 / 255) + 1
    return np.clip(colour * dark[..., None], 0, 1), covered


def texture(rng: np.random.Generator, shape: tuple[int, int], style: Style, colours: np.ndarray, *, unit: float):
    """A periodic texture (h, w, 3) of fractal noise, mostly with dead leaves; `unit` is the frame width in texels."""
    fields = noise(rng, shape, slope=style.slope, stretch=np.exp(rng.uniform(0, 0.9)), angle=rng.uniform(0, np.pi))
    contrast = np.exp(rng.uniform(np.log(0.04), np.log(0.22)))  # from a bare wall to broken rock
    base = ramp(colours, rng.uniform(0.35, 0.65) + contrast * fields[0])
    base = np.clip(base * (1 + 0.5 * contrast * fields[1])[..., None], 0, 1)
    if rng.random() < 0.2:
        return base
    count = int(np.exp(rng.uniform(np.log(40), np.log(260))))
    low = unit * np.exp(rng.uniform(np.log(0.012), np.log(0.03)))
    return dead_leaves(rng, shape, style, colours, base=base, grain=fields[1], count=count, radius=(low, unit * 0.3))[0]


def fluid_texture(rng: np.random.Generator, shape: tuple[int, int], style: Style, *, angle: float) -> np.ndarray:
    """A periodic water, cloud or lava texture (h, w, 3), drawn out along `angle`, with glints."""
    broad = noise(rng, shape, slope=style.slope + 0.35, stretch=np.exp(rng.uniform(0, 1.2)), angle=angle)
    fine = noise(rng, shape, slope=style.slope * 0.75, stretch=np.exp(rng.uniform(0.3, 1.5)), angle=angle)
    level = rng.uniform(0.35, 0.6) + 0.2 * broad[0] + rng.uniform(0.03, 0.09) * fine[0]
    colour = ramp(style.fluid, level)
    glint = np.clip((fine[1] + 0.5 * broad[1] - rng.uniform(1.2, 2.4)) * 0.9, 0, 1) * rng.uniform(0.2, 0.9)
    return colour + (1 - colour) * glint[..., None]
