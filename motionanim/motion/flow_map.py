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
from torch import Tensor

from motionanim.motion.eulerian import check_inputs

CHANGE = 0.5  # share of a turn in which one layer gives way to the other
LEAST_TURN = 6.0  # frames; in a shorter turn the eye sees two pictures by turns instead of motion
HALVING = 0.25  # of the height: a turn may get longer by no more than a factor of 2 over this distance
OCTAVES = 6  # a turn is at most 2**OCTAVES times the shortest
BLEND = 0.3  # octaves over which one turn's length gives way to the next
SCATTERED = 0.3  # turns: how much earlier or later than its own time a place starts again
SCATTER = 0.25  # of the height: how far apart places are that start their turns independently of each other
CELLS = 256  # columns of the noise that scatters them
MOST_NODES = 2**16  # paths are traced on a grid of at most about this many points and interpolated between them
STATIONS = 12  # places on a path that are kept for each turn
STEP = 1.5  # grid spacings that one step of integration may cover
TILE = (256, 512)  # px that are put together at a time
FADE = 2.0  # px inside the edge of what moves over which motion fades in
RIM = 2  # px along the mask's edge that are not carried: they show a mixture of both sides
SHRINK, WINDOW = 4, 3  # local contrast is measured on a grid SHRINK times coarser, over 2 * WINDOW + 1 points


class _Pace(NamedTuple):
    """What moves about equally fast, and so starts again equally often."""

    turn: float  # frames from one start to the next
    share: np.ndarray | None  # (H, W) float32 in [0, 1], how much of a pixel is drawn so; None is all of every pixel
    paths: np.ndarray  # (3 * STATIONS + 1, h, w, 2) displacement in px at even times from -1.5 to 1.5 turns


def frames(
    image: Tensor, flow: Tensor, *, num_frames: int, loop: bool, mask: Tensor, reach: float, seed: int,
) -> Iterator[Tensor]:  # fmt: skip
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

    Yields:
        N frames (3, H, W) float32 in [-1, 1].

    Raises:
        ValueError: If a shape, `num_frames` or `reach` is not as above, or an input is not finite.
    """
    check_inputs(image, flow, mask, num_frames, least_side=1)
    if not reach > 0:
        raise ValueError(f"reach={reach}: must be above 0, a share of the picture's height such as 0.05")
    return _frames(image, flow, num_frames, loop, mask, reach, seed)


def _frames(
    image: Tensor, flow: Tensor, num_frames: int, loop: bool, mask: Tensor, reach: float, seed: int,
) -> Iterator[Tensor]:  # fmt: skip
    may_move = mask[0].cpu().numpy() > 0
    field = np.where(may_move, flow.cpu().float().numpy(), 0).transpose(1, 2, 0)
    moves = (field != 0).any(2)
    photo = np.ascontiguousarray(image.detach().cpu().float().numpy().transpose(1, 2, 0))
    tiles = _tiles(moves)
    if tiles:
        source, carried = _continued(photo, field, may_move)
        step = max(1, round((moves.size / MOST_NODES) ** 0.5))
        nodes = _nodes(carried, step)
        paces = _paces(np.hypot(field[..., 0], field[..., 1]), nodes, step, num_frames, loop, reach)
        offset = _offset(nodes.shape[:2], len(photo) / step, seed)
        edge = cv2.distanceTransform(moves.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
        fade = (edge / np.float32(FADE + 1)).clip(0, 1)
        del field, carried, moves
    for t in range(num_frames):
        made = image.detach().clone()
        if t > 0:
            for rows, columns in tiles:
                drawn = _tile(source, paces, offset, t, num_frames if loop else None, step, rows, columns)
                still = photo[rows, columns]
                drawn = still + fade[rows, columns, None] * (drawn - still)
                made[:, rows, columns] = torch.from_numpy(drawn.transpose(2, 0, 1)).to(made)
        yield made


def _layers(t: float, turn: float, end: float | None, offset: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of the two layers: the time since their own start (or, below 0, until it), in turns, and their weight.

    Layers start at 0, 1 + offset, 2 + offset, ... turns, and at `end`: there they are the picture itself. Between two
    starts the one gives way to the other. Even starts are the first layer's, odd ones the second's: so a layer jumps
    only where its weight is 0.
    """
    now, last = np.float32(t / turn), np.inf if end is None else round(end / turn)
    number = np.clip(np.floor(now - offset), 0, last - 1)
    start = np.where(number > 0, number + offset, 0).astype(np.float32)
    following = np.where(number + 1 < last, number + 1 + offset, last).astype(np.float32)
    late = (((now - start) / (following - start) - 0.5) / CHANGE + 0.5).clip(0, 1)
    first = number % 2 == 0
    return [
        (np.where(first, now - start, now - following), np.where(first, 1 - late, late)),
        (np.where(first, now - following, now - start), np.where(first, late, 1 - late)),
    ]


def _at(paths: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """Displacement (h, w, 2), each at its own time (h, w) in [-1.5, 1.5] turns."""
    station = (turns + 1.5) * STATIONS
    low = station.astype(np.int32).clip(0, len(paths) - 2)
    y, x = np.ogrid[: turns.shape[0], : turns.shape[1]]
    before, after = paths[low, y, x], paths[low + 1, y, x]
    return before + (station - low.astype(np.float32))[..., None] * (after - before)


def _tile(
    source: np.ndarray, paces: list[_Pace], offset: np.ndarray, t: int, end: int | None, step: int, rows: slice,
    columns: slice,
) -> np.ndarray:  # fmt: skip
    """The layers of all paces put together on one tile: (h, w, 3)."""
    height, width = source.shape[:2]
    margin = SHRINK * (WINDOW + 1)
    top, left = max(rows.start - margin, 0), max(columns.start - margin, 0)
    area = slice(top, min(rows.stop + margin, height)), slice(left, min(columns.stop + margin, width))
    part = _covering(step, *area)
    y, x = np.mgrid[area].astype(np.float32)
    layers = []
    for pace in paces:
        share = None if pace.share is None else pace.share[area]
        if share is not None and not share.any():
            continue
        for turns, weight in _layers(t, pace.turn, end, offset[part]):
            moved = _enlarged(_at(pace.paths[:, *part], turns), step, *area)
            weight = _enlarged(weight, step, *area)
            across, down = _reflected(x + moved[..., 0], width), _reflected(y + moved[..., 1], height)
            layer = cv2.remap(source, across, down, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            layers.append((layer, weight if share is None else weight * share))
    blend = _restored(sum(layer * weight[..., None] for layer, weight in layers), layers)
    inner = slice(rows.start - top, rows.stop - top), slice(columns.start - left, columns.stop - left)
    return blend[inner].clip(-1, 1)


def _restored(blend: np.ndarray, layers: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """The blend with the contrast of its layers: what deviates from the local mean, times a gain.

    Heitz and Neyret's gain is 1 / sqrt(sum of squared weights), which is right for layers that have nothing in common
    and too much for layers that are alike. Here the gain is what the gradients lost, and at most theirs.
    """
    full = blend.shape[1], blend.shape[0]
    size = max(1, full[0] // SHRINK), max(1, full[1] // SHRINK)

    def local(values: np.ndarray) -> np.ndarray:
        small = cv2.resize(values, size, interpolation=cv2.INTER_AREA)
        return cv2.blur(small, (2 * WINDOW + 1, 2 * WINDOW + 1), borderType=cv2.BORDER_REFLECT)

    def energy(values: np.ndarray) -> np.ndarray:
        grey = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)
        return cv2.Sobel(grey, -1, 1, 0, ksize=1) ** 2 + cv2.Sobel(grey, -1, 0, 1, ksize=1) ** 2

    wanted, least = local(sum(weight * energy(layer) for layer, weight in layers)), 1e-6
    most = local(sum(weight * weight for _, weight in layers)) ** -0.5
    gain = np.minimum(np.sqrt((wanted + least) / (local(energy(blend)) + least)), most)
    mean, gain = cv2.resize(local(blend), full), cv2.resize(np.maximum(gain, 1), full)
    return mean + gain[..., None] * (blend - mean)


def _continued(photo: np.ndarray, field: np.ndarray, may_move: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Picture and field outside the mask as those inside: mirrored at the edge, and of the nearest pixel."""
    if may_move.all():
        return photo, field
    from scipy import ndimage  # half a second, which a picture without a mask need not wait for

    core = ndimage.binary_erosion(may_move, iterations=RIM, border_value=1)
    core |= may_move & ~ndimage.binary_dilation(core, iterations=RIM + 1)  # parts too narrow to have a core
    height, width = may_move.shape
    nearest = ndimage.distance_transform_edt(~core, return_distances=False, return_indices=True)
    source, carried = photo.copy(), field.copy()
    for top in range(0, height, TILE[0]):  # places are 8 bytes a number, of a whole photo most of a gigabyte
        y, x = np.nonzero(~core[top : top + TILE[0]])
        y += top
        near_y, near_x = (n[y, x] for n in nearest)
        mirror_y, mirror_x = _reflected(2 * near_y - y, height), _reflected(2 * near_x - x, width)
        outside = ~core[mirror_y, mirror_x]
        mirror_y[outside], mirror_x[outside] = (n[mirror_y[outside], mirror_x[outside]] for n in nearest)
        source[y, x] = photo[mirror_y, mirror_x]
        carried[y, x] = field[near_y, near_x]
    return source, carried


def _reflected(place: np.ndarray, size: int) -> np.ndarray:
    """Places outside 0 ... size - 1 reflected into it. OpenCV's own reflection hangs on a picture one pixel wide."""
    if place.size == 0 or (place.min() >= 0 and place.max() <= size - 1):
        return place
    last = size - 1
    return last - np.abs(place % (2 * last) - last) if last else np.zeros_like(place)


def _nodes(field: np.ndarray, step: int) -> np.ndarray:
    """Means (h, w, 2) over blocks of `step` px, and one more block on every side that repeats the border."""
    height, width = field.shape[:2]
    grown = np.pad(field, ((0, -height % step), (0, -width % step), (0, 0)), mode="edge")
    blocks = grown.reshape(grown.shape[0] // step, step, grown.shape[1] // step, step, 2).mean((1, 3))
    return np.pad(blocks, ((1, 1), (1, 1), (0, 0)), mode="edge").astype(np.float32)


def _covering(step: int, rows: slice, columns: slice) -> tuple[slice, slice]:
    """Rows and columns of nodes whose linear interpolation covers an area of pixels."""
    return tuple(slice(s.start // step, (s.stop - 1) // step + 3) for s in (rows, columns))


def _enlarged(part: np.ndarray, step: int, rows: slice, columns: slice) -> np.ndarray:
    """Values at the nodes of `_covering`, linear in between, at the pixels of the area."""
    large = cv2.resize(part, (part.shape[1] * step, part.shape[0] * step), interpolation=cv2.INTER_LINEAR)
    top, left = step + rows.start % step, step + columns.start % step
    return large[top : top + rows.stop - rows.start, left : left + columns.stop - columns.start]


def _offset(shape: tuple[int, int], height: float, seed: int) -> np.ndarray:
    """Smooth noise (h, w) in [-0.5, 0.5], turns: so that the whole picture does not start again at once."""
    cells = [int(np.ceil(side / (SCATTER * height))) + 3 for side in shape]
    # Cut from wide rows of cells: pictures of one shape and different sizes get the same noise, whatever is rounded.
    wide = np.random.default_rng(seed).uniform(-SCATTERED, SCATTERED, (cells[0], max(cells[1], CELLS)))
    coarse = np.ascontiguousarray(wide[:, : cells[1]], dtype=np.float32)
    size = SCATTER * height
    y, x = (np.arange(side, dtype=np.float32) / size + 1 for side in shape)
    return cv2.remap(
        coarse, *(np.ascontiguousarray(v) for v in np.meshgrid(x, y)), cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    ).clip(-SCATTERED, SCATTERED)


def _paces(speed: np.ndarray, nodes: np.ndarray, step: int, num_frames: int, loop: bool, reach: float) -> list[_Pace]:
    """Turns in octaves, the shortest for the fastest motion, and where each is used.

    Where slow motion is near fast motion it keeps the turn of the fast one, and so stays nearer to the photo.
    """
    height, width = speed.shape
    cell = max(1, round(height / 32))
    grown = np.pad(speed, ((0, -height % cell), (0, -width % cell)))
    cells = grown.reshape(grown.shape[0] // cell, cell, -1, cell).max((1, 3))
    peak = cells.max()
    slower = np.divide(peak, cells, where=cells > 0, out=np.full_like(cells, np.inf))
    octave = _lowest_near(np.log2(slower), cell / (HALVING * height))
    octave = cv2.resize(octave.astype(np.float32), (grown.shape[1], grown.shape[0]), interpolation=cv2.INTER_LINEAR)[
        :height, :width
    ]
    octave = np.minimum(octave, octave[speed > 0].max())
    paces: dict[float, np.ndarray] = {}
    for number in range(int(octave.max()) + 1):
        turn = max(reach * height / peak * 2.0**number, LEAST_TURN)
        if loop:
            turn = num_frames / max(1, min(np.ceil(num_frames / turn - 1e-3), num_frames // LEAST_TURN))
        share = ((octave - number) / BLEND).clip(0, 1) if number else np.float32(1)
        share = share - ((octave - number - 1) / BLEND).clip(0, 1)
        paces[float(turn)] = paces.get(float(turn), 0) + share
    alone = len(paces) == 1
    most = reach * height / step  # grid spacings
    return [
        _Pace(turn, None if alone else share, _paths(nodes * (turn / step), step, most))
        for turn, share in paces.items()
        if share.any()
    ]


def _lowest_near(octave: np.ndarray, rise: float) -> np.ndarray:
    """The least of all cells' octaves, each higher by `rise` for every cell that it is away, up to OCTAVES.

    Takes as long as there are cells times those near one of them: a strip has many cells and few near each other.
    """
    rows, columns = octave.shape
    reach = int(OCTAVES / rise)
    down, across = (range(-min(reach, side - 1), min(reach, side - 1) + 1) for side in (rows, columns))
    least = np.full(octave.shape, float(OCTAVES))
    for dy in down:
        for dx in across:
            away = np.hypot(dy, dx) * rise
            if away < OCTAVES:
                here = least[max(dy, 0) : rows + min(dy, 0), max(dx, 0) : columns + min(dx, 0)]
                there = octave[max(-dy, 0) : rows + min(-dy, 0), max(-dx, 0) : columns + min(-dx, 0)]
                np.minimum(here, there + away, out=here)
    return least


def _paths(velocity: np.ndarray, step: int, most: float) -> np.ndarray:
    """Where what is at each node was, as an offset in px, up to 1.5 turns before and after its own time.

    `velocity` is in grid spacings a turn; what is faster than `most` is drawn at another pace, or by LEAST_TURN far.
    """
    height, width = velocity.shape[:2]
    length = np.hypot(velocity[..., 0], velocity[..., 1])[..., None]
    limit = max(most, height, width)
    velocity = velocity * (np.minimum(length, limit) / np.maximum(length, limit / 1e6))
    start = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=2).astype(np.float32)
    steps = max(1, int(np.ceil(min(float(length.max()), 4 * most) / STATIONS / STEP)))
    middle = 3 * STATIONS // 2
    paths = np.zeros((2 * middle + 1, height, width, 2), dtype=np.float32)

    def look(place: np.ndarray) -> np.ndarray:
        return cv2.remap(velocity, place, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    for sign in (-1, 1):
        place, share = start, np.float32(-sign / STATIONS / steps)  # what comes later was upstream
        for station in range(1, middle + 1):
            for _ in range(steps):
                place = place + share * look(place + share / 2 * look(place))
            paths[middle + sign * station] = (place - start) * step
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
