"""Animation of one picture along a steady field for any number of frames: the flow map of water shaders.

After Vlachos, "Water Flow in Portal 2" (SIGGRAPH 2010), with the contrast of Heitz and Neyret, "High-Performance
By-Example Noise using a Histogram-Preserving Blending Operator" (2018). Two layers show the same picture, one turn
apart. Each moves along the field from one turn before the picture's own time to one turn after it, and starts again
where its weight is 0. So displacements do not grow with the length of the video, and frame 0 is the picture.
"""

from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from motionanim.motion.eulerian import check_inputs

CHANGE = 0.5  # share of a turn in which one layer gives way to the other
LEAST_TURN = 6.0  # frames; in shorter turns the eye sees two alternating pictures instead of motion
HALVING = 0.25  # of the height: over this distance turns get longer by a factor of at most 2
OCTAVES = 6  # a turn is at most 2**OCTAVES times the shortest
BLEND = 0.3  # octaves over which one turn's length gives way to the next
SCATTERED = 0.3  # turns: a place starts again at most this much earlier or later than its own time
SCATTER = 0.25  # of the height: places this far apart start independently of each other
CELLS = 256  # columns of the noise that scatters them
MOST_NODES = 2**16  # paths are traced on a grid of about this many points at most, and interpolated
STATIONS = 12  # stored places of a path per turn
STEP = 1.5  # grid spacings that one step of integration may cover
TILE = (256, 512)  # px, the part of a frame that is composed at a time
FADE = 2.0  # px inside the edge of the moving region over which motion fades in
RIM = 2  # px along the mask's edge that do not move: they mix the colours of both sides
SHRINK, WINDOW = 4, 3  # local contrast is measured on a grid SHRINK times coarser, over 2 * WINDOW + 1 points


class _Pace(NamedTuple):
    """Pixels that move about equally fast, and so start again equally often."""

    turn: float  # frames from one start to the next
    share: np.ndarray | None  # (H, W) float32 in [0, 1], the pace's share of each pixel; None: 1 everywhere
    paths: np.ndarray  # (3 * STATIONS + 1, h, w, 2) displacement in px at even times from -1.5 to 1.5 turns


def frames(
    image: Tensor, flow: Tensor, *, num_frames: int, loop: bool, mask: Tensor, reach: float, seed: int,
) -> Iterator[Tensor]:  # fmt: skip
    """Animate a picture, one frame at a time; the memory does not grow with `num_frames`.

    Frame 0 is the picture. Pixels outside the mask or with zero flow stay exactly as they are. Content that flows in
    over the mask's edge is the region's own texture, mirrored at that edge.

    Args:
        image: (3, H, W) float32 in [-1, 1], RGB.
        flow: (2, H, W) px per frame: the velocity at each place, at all times.
        num_frames: N, at least 2.
        loop: True makes N a multiple of each turn, so that frame N would be frame 0.
        mask: (1, H, W) in {0, 1}; 1 where pixels may move.
        reach: Share of the picture's height that the texture travels in one turn, above 0. Fast motion starts again
            more often than slow motion.
        seed: Of the noise that spreads the starts over time.

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
    """For each of the two layers: its time since its own start (negative: until it), in turns, and its weight.

    Layers start at 0, 1 + offset, 2 + offset, ... turns, and at `end`; at a start a layer shows the picture itself.
    Between two starts one layer gives way to the other. Even starts belong to the first layer and odd ones to the
    second, so that a layer jumps only where its weight is 0.
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
    """Displacement (h, w, 2) of each pixel at its own time (h, w) in [-1.5, 1.5] turns."""
    station = (turns + 1.5) * STATIONS
    low = station.astype(np.int32).clip(0, len(paths) - 2)
    y, x = np.ogrid[: turns.shape[0], : turns.shape[1]]
    before, after = paths[low, y, x], paths[low + 1, y, x]
    return before + (station - low.astype(np.float32))[..., None] * (after - before)


def _tile(
    source: np.ndarray, paces: list[_Pace], offset: np.ndarray, t: int, end: int | None, step: int, rows: slice,
    columns: slice,
) -> np.ndarray:  # fmt: skip
    """The blend of the layers of all paces on one tile: (h, w, 3)."""
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
    """The blend with the contrast of its layers: its deviation from the local mean, times a gain.

    Heitz and Neyret's gain, 1 / sqrt(sum of squared weights), is right for uncorrelated layers and too large for
    similar ones. Here the gain restores the energy of the gradients, and is at most theirs.
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
    """Picture and field with the outside of the mask filled in: the picture mirrored at the edge, the field nearest."""
    if may_move.all():
        return photo, field
    from scipy import ndimage  # takes half a second to import, and only pictures with a mask need it

    core = ndimage.binary_erosion(may_move, iterations=RIM, border_value=1)
    core |= may_move & ~ndimage.binary_dilation(core, iterations=RIM + 1)  # parts too narrow for a core
    height, width = may_move.shape
    nearest = ndimage.distance_transform_edt(~core, return_distances=False, return_indices=True)
    source, carried = photo.copy(), field.copy()
    for top in range(0, height, TILE[0]):  # in strips: a whole photo's places would take most of a gigabyte
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
    """Means (h, w, 2) over blocks of `step` px, with one more block on each side that repeats the border."""
    height, width = field.shape[:2]
    grown = np.pad(field, ((0, -height % step), (0, -width % step), (0, 0)), mode="edge")
    blocks = grown.reshape(grown.shape[0] // step, step, grown.shape[1] // step, step, 2).mean((1, 3))
    return np.pad(blocks, ((1, 1), (1, 1), (0, 0)), mode="edge").astype(np.float32)


def _covering(step: int, rows: slice, columns: slice) -> tuple[slice, slice]:
    """Rows and columns of the nodes whose linear interpolation covers an area of pixels."""
    return tuple(slice(s.start // step, (s.stop - 1) // step + 3) for s in (rows, columns))


def _enlarged(part: np.ndarray, step: int, rows: slice, columns: slice) -> np.ndarray:
    """Values at the nodes of `_covering`, interpolated linearly to the pixels of the area."""
    large = cv2.resize(part, (part.shape[1] * step, part.shape[0] * step), interpolation=cv2.INTER_LINEAR)
    top, left = step + rows.start % step, step + columns.start % step
    return large[top : top + rows.stop - rows.start, left : left + columns.stop - columns.start]


def _offset(shape: tuple[int, int], height: float, seed: int) -> np.ndarray:
    """Smooth noise (h, w) in turns, at most `SCATTERED`, so that the whole picture does not start again at once."""
    cells = [int(np.ceil(side / (SCATTER * height))) + 3 for side in shape]
    # Cut from wide rows of cells, so that pictures of one shape and different sizes get the same noise.
    wide = np.random.default_rng(seed).uniform(-SCATTERED, SCATTERED, (cells[0], max(cells[1], CELLS)))
    coarse = np.ascontiguousarray(wide[:, : cells[1]], dtype=np.float32)
    size = SCATTER * height
    y, x = (np.arange(side, dtype=np.float32) / size + 1 for side in shape)
    return cv2.remap(
        coarse, *(np.ascontiguousarray(v) for v in np.meshgrid(x, y)), cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    ).clip(-SCATTERED, SCATTERED)


def _paces(speed: np.ndarray, nodes: np.ndarray, step: int, num_frames: int, loop: bool, reach: float) -> list[_Pace]:
    """Turns in octaves, the shortest for the fastest motion, and the pixels that use each.

    Slow motion near fast motion keeps the turn of the fast one, and so stays nearer to the photo.
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
    """The lowest octave near each cell: other cells' octaves rise by `rise` per cell of distance, up to OCTAVES.

    The time is the number of cells times the number near one cell: a strip has many cells, and few near each other.
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
    """Backward offsets of each node, in px, up to 1.5 turns before and after its own time.

    `velocity` is in grid spacings per turn. Speeds above `most` belong to another pace, or travel far because of
    LEAST_TURN.
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
        place, share = start, np.float32(-sign / STATIONS / steps)  # later content was upstream
        for station in range(1, middle + 1):
            for _ in range(steps):
                place = place + share * look(place + share / 2 * look(place))
            paths[middle + sign * station] = (place - start) * step
    return paths


def _tiles(moves: np.ndarray) -> list[tuple[slice, slice]]:
    """The tiles that hold any moving pixel."""
    height, width = moves.shape
    tiles = [
        (slice(y, min(y + TILE[0], height)), slice(x, min(x + TILE[1], width)))
        for y in range(0, height, TILE[0])
        for x in range(0, width, TILE[1])
    ]
    return [tile for tile in tiles if moves[tile].any()]
