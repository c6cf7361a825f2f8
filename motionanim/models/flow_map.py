"""A picture carried along a steady field for any number of frames: the flow map of water shaders (Vlachos, "Water Flow
in Portal 2", SIGGRAPH 2010), with the contrast of Heitz and Neyret ("High-Performance By-Example Noise using a
Histogram-Preserving Blending Operator", 2018).

Two layers show the same picture, half a period apart. Each is moved along the field from half a period before the
picture's own time to half a period after it, and its weight is 0 where it starts again. So a displacement never grows
beyond half a period, and frame 0 is the picture.
"""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from tqdm import tqdm

LEAST_PERIOD = 8.0  # frames; in a shorter one the eye sees two pictures in turn instead of motion
MOST_NODES = 2**18  # paths are traced on a grid of at most about this many points and interpolated between them
STATIONS = 16  # places on each half of a path that are kept
STEP = 4.0  # grid spacings that one Runge-Kutta step may cover
TILE = (256, 512)  # px that are put together at a time
FADE = 2.0  # px inside the edge of what moves over which motion fades in
RIM = 2  # px along the mask's edge that are not carried: they show a mixture of both sides
SHRINK, WINDOW = 4, 3  # local contrast is measured on a grid SHRINK times coarser, over 2 * WINDOW + 1 points


class _Speed(NamedTuple):
    """What moves about equally fast: one period."""

    period: float  # frames
    share: np.ndarray | None  # (H, W) float32 in [0, 1], how much of a pixel is drawn so; None is all of every pixel
    paths: np.ndarray  # (2 * STATIONS + 1, h, w, 2) displacement in px at even times from -period / 2 to period / 2


def frames(
    image: Tensor, flow: Tensor, *, num_frames: int, loop: bool, mask: Tensor, reach: float, progress: str | None
) -> Iterator[Tensor]:
    """Animate a picture, one frame at a time; the memory does not grow with `num_frames`.

    Frame 0 is the picture, and pixels outside the mask, or with zero flow, stay exactly as they are. What flows in
    over the mask's edge is the region's own texture, mirrored at that edge.

    Args:
        image: (3, H, W) float32 in [-1, 1], RGB.
        flow: (2, H, W) px per frame, the velocity of whatever is at that pixel at any time.
        num_frames: N, at least 2.
        loop: True makes N a whole multiple of every period, so that frame N would be frame 0.
        mask: (1, H, W) in {0, 1}; 1 where pixels may move.
        reach: Share of the picture's height that the texture travels in half a period, above 0: fast motion starts
            again more often than slow motion.
        progress: Text before a progress bar; None shows none.

    Yields:
        N frames (3, H, W) float32 in [-1, 1].

    Raises:
        ValueError: If a shape, `num_frames` or `reach` is not as above, or an input is not finite.
    """
    check_inputs(image, flow, mask, num_frames, least_side=1)
    if not reach > 0:
        raise ValueError(f"reach={reach}: must be above 0, a share of the picture's height such as 0.05")
    return _frames(image, flow, num_frames, loop, mask, reach, progress)


def check_inputs(image: Tensor, flow: Tensor, mask: Tensor, num_frames: int, *, least_side: int) -> None:
    """Raises ValueError for what no renderer along a steady field can use."""
    height, width = image.shape[-2:]
    if image.ndim != 3 or len(image) != 3 or min(height, width) < least_side:
        raise ValueError(
            f"image of shape {tuple(image.shape)}: must be (3, H, W) with H and W of at least {least_side}"
        )
    if flow.shape != (2, height, width) or mask.shape != (1, height, width):
        raise ValueError(
            f"flow of shape {tuple(flow.shape)} and mask of shape {tuple(mask.shape)}: must be (2, {height}, {width}) "
            f"and (1, {height}, {width}), as the image is; resize a flow by motionanim.flow.resize_flow"
        )
    if num_frames < 2:
        raise ValueError(f"num_frames={num_frames}: must be at least 2")
    for name, values in (("image", image), ("flow", flow)):
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} is not finite: replace its NaN and infinite values, such as by zero motion")
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError("mask has values other than 0 and 1: threshold it")


def _frames(
    image: Tensor, flow: Tensor, num_frames: int, loop: bool, mask: Tensor, reach: float, progress: str | None
) -> Iterator[Tensor]:
    may_move = mask[0].cpu().numpy() > 0
    field = np.where(may_move, flow.cpu().float().numpy(), 0).transpose(1, 2, 0)
    moves = (field != 0).any(2)
    photo = np.ascontiguousarray(image.detach().cpu().float().numpy().transpose(1, 2, 0))
    speeds, tiles = [], []
    if moves.any():
        source, carried = _continued(photo, field, may_move)
        step = _step(*moves.shape)
        speeds = _speeds(field, _nodes(carried, step), num_frames, loop, reach)
        fade = np.clip(ndimage.distance_transform_edt(np.pad(moves, 1, mode="edge"))[1:-1, 1:-1] / (FADE + 1), 0, 1)
        fade = fade.astype(np.float32)
        tiles = _tiles(moves)
        del carried
    for t in tqdm(range(num_frames), desc=progress, disable=progress is None, leave=False):
        made = image.detach().clone()
        if t > 0:
            paths = [[(_at(s.paths, place), weight) for place, weight in _layers(t, s.period)] for s in speeds]
            for rows, columns in tiles:
                drawn = _tile(source, speeds, paths, step, rows, columns)
                here = fade[rows, columns, None]
                drawn = photo[rows, columns] + here * (drawn - photo[rows, columns])
                made[:, rows, columns] = torch.from_numpy(drawn.transpose(2, 0, 1)).to(made)
        yield made


def _layers(t: float, period: float) -> list[tuple[float, float]]:
    """The place of each layer on its path, in [-1, 1] from half a period before to half a period after; its weight."""
    place = (2 * t / period + 1) % 2 - 1
    layers = [(place, 1 - abs(place)), (place - 1 if place > 0 else place + 1, abs(place))]
    return [(place, weight) for place, weight in layers if weight > 0]


def _at(paths: np.ndarray, place: float) -> np.ndarray:
    """Displacement (h, w, 2) at a place in [-1, 1] of the paths."""
    station = (place + 1) * STATIONS
    low = min(int(station), 2 * STATIONS - 1)
    if station == low:
        return paths[low]
    return cv2.addWeighted(paths[low], low + 1 - station, paths[low + 1], station - low, 0)


def _tile(
    source: np.ndarray, speeds: list[_Speed], paths: list, step: int, rows: slice, columns: slice
) -> np.ndarray:
    """The layers of all speeds put together on one tile: (h, w, 3)."""
    height, width = source.shape[:2]
    margin = SHRINK * (WINDOW + 1)
    top, left = max(rows.start - margin, 0), max(columns.start - margin, 0)
    bottom, right = min(rows.stop + margin, height), min(columns.stop + margin, width)
    area = slice(top, bottom), slice(left, right)
    y, x = np.mgrid[area].astype(np.float32)
    total, energy, looks = None, None, []
    for speed, layers in zip(speeds, paths):
        share = None if speed.share is None else speed.share[area]
        if share is not None and not share.any():
            continue
        for displacement, weight in layers:
            offset = _enlarged(displacement, step, *area)
            layer = cv2.remap(
                source, x + offset[..., 0], y + offset[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101
            )
            looks.append((layer, np.float32(weight) if share is None else weight * share[..., None]))
    total = sum(layer * weight for layer, weight in looks)
    if len(looks) > 1:
        total = _restored(total, looks)
    inner = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    return total[inner].clip(-1, 1)


def _restored(blend: np.ndarray, layers: list) -> np.ndarray:
    """The blend with the contrast of its layers: what deviates from the local mean, times the ratio of deviations.

    Heitz and Neyret divide by sqrt(sum of squared weights), which is right for layers that have nothing in common, and
    too much while they are still alike. So the deviations are measured.
    """
    size = max(1, blend.shape[1] // SHRINK), max(1, blend.shape[0] // SHRINK)

    def local(values: np.ndarray) -> np.ndarray:
        small = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
        return cv2.blur(small, (2 * WINDOW + 1, 2 * WINDOW + 1), borderType=cv2.BORDER_REFLECT)

    def variance(values: np.ndarray) -> np.ndarray:
        grey = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)
        return np.maximum(local(grey * grey) - local(grey) ** 2, 0)

    wanted, square = 0, 0
    for layer, weight in layers:
        small = weight if np.ndim(weight) == 0 else cv2.resize(weight[..., 0], size, interpolation=cv2.INTER_AREA)
        wanted = wanted + small * variance(layer)
        square = square + small**2
    least = 1e-5
    gain = np.sqrt((wanted + least) / (variance(blend) + least)).clip(1, 1 / np.sqrt(square)).astype(np.float32)
    full = blend.shape[1], blend.shape[0]
    mean, gain = cv2.resize(local(blend), full), cv2.resize(gain, full)[..., None]
    return mean + gain * (blend - mean)


def _continued(photo: np.ndarray, field: np.ndarray, may_move: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Picture and field outside the mask as those inside: mirrored at the edge, and of the nearest pixel."""
    if may_move.all():
        return photo, field
    core = ndimage.binary_erosion(may_move, iterations=RIM, border_value=1)
    core |= may_move & ~ndimage.binary_dilation(core, iterations=RIM + 1)  # parts too narrow to have a core
    height, width = may_move.shape
    nearest = ndimage.distance_transform_edt(~core, return_distances=False, return_indices=True)
    y, x = np.nonzero(~core)
    near_y, near_x = (n[y, x] for n in nearest)
    mirror_y, mirror_x = _folded(2 * near_y - y, height), _folded(2 * near_x - x, width)
    outside = ~core[mirror_y, mirror_x]
    mirror_y[outside], mirror_x[outside] = (n[mirror_y[outside], mirror_x[outside]] for n in nearest)
    source, carried = photo.copy(), field.copy()
    source[y, x] = photo[mirror_y, mirror_x]
    carried[y, x] = field[near_y, near_x]
    return source, carried


def _folded(place: np.ndarray, size: int) -> np.ndarray:
    """Places outside 0 ... size - 1 reflected into it."""
    turn = max(2 * (size - 1), 1)
    place = np.abs(place) % turn
    return np.minimum(place, turn - place).clip(0, size - 1)


def _step(height: int, width: int) -> int:
    return max(1, round((height * width / MOST_NODES) ** 0.5))


def _nodes(field: np.ndarray, step: int) -> np.ndarray:
    """Means (h, w, 2) over blocks of `step` px, and one more block on every side that repeats the border."""
    height, width = field.shape[:2]
    grown = np.pad(field, ((0, -height % step), (0, -width % step), (0, 0)), mode="edge")
    blocks = grown.reshape(grown.shape[0] // step, step, grown.shape[1] // step, step, 2).mean((1, 3))
    return np.pad(blocks, ((1, 1), (1, 1), (0, 0)), mode="edge").astype(np.float32)


def _enlarged(nodes: np.ndarray, step: int, rows: slice, columns: slice) -> np.ndarray:
    """Values on the grid of `_nodes`, linear in between, at the pixels of an area."""
    if step == 1:
        return nodes[1 + rows.start : 1 + rows.stop, 1 + columns.start : 1 + columns.stop]
    top, left = rows.start // step, columns.start // step  # the row of blocks before the one of the first pixel
    part = nodes[top : (rows.stop - 1) // step + 3, left : (columns.stop - 1) // step + 3]
    large = cv2.resize(part, (part.shape[1] * step, part.shape[0] * step), interpolation=cv2.INTER_LINEAR)
    down, right = rows.start - (top - 1) * step, columns.start - (left - 1) * step
    return large[down : down + rows.stop - rows.start, right : right + columns.stop - columns.start]


def _speeds(field: np.ndarray, nodes: np.ndarray, num_frames: int, loop: bool, reach: float) -> list[_Speed]:
    """Periods in octaves, and where each is used."""
    height, width = field.shape[:2]
    step = _step(height, width)
    fastest = float(np.hypot(field[..., 0], field[..., 1]).max())
    period = max(2 * reach * height / fastest, LEAST_PERIOD)
    if loop:
        period = num_frames / max(1, round(num_frames / period))
    return [_Speed(period, None, _paths(nodes, step, period))]


def _paths(nodes: np.ndarray, step: int, period: float) -> np.ndarray:
    """Where what is at each node was, as an offset in px, at each station of half a period before and after."""
    height, width = nodes.shape[:2]
    start = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=2).astype(np.float32)
    velocity = nodes * (period / 2 / STATIONS / step)  # grid spacings from one station to the next
    most = float(np.hypot(velocity[..., 0], velocity[..., 1]).max())
    steps = min(max(1, int(np.ceil(most / STEP))), 64)
    limit = np.array([2 * width, 2 * height], dtype=np.float32)
    paths = np.zeros((2 * STATIONS + 1, height, width, 2), dtype=np.float32)

    def look(place: np.ndarray) -> np.ndarray:
        return cv2.remap(velocity, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    for sign in (-1, 1):
        place, share = start, np.float32(-sign / steps)  # what comes later was upstream
        for station in range(1, STATIONS + 1):
            for _ in range(steps):
                first = look(place)
                second = look(place + share / 2 * first)
                third = look(place + share / 2 * second)
                fourth = look(place + share * third)
                place = place + share / 6 * (first + 2 * second + 2 * third + fourth)
                place = place.clip(-limit, 2 * limit)
            paths[STATIONS + sign * station] = (place - start) * step
    return paths


def _tiles(moves: np.ndarray) -> list[tuple[slice, slice]]:
    """The tiles that hold anything that moves."""
    height, width = moves.shape
    tiles = [
        (slice(y, min(y + TILE[0], height)), slice(x, min(x + TILE[1], width)))
        for y in range(0, height, TILE[0])
        for x in range(0, width, TILE[1])
    ]
    return [tile for tile in tiles if moves[tile].any()]
