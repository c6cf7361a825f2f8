"""Shapes of training clips that all have about as many pixels, and the sizes of video files that decide among them."""

import fcntl
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from motionanim.data.video.container import VideoError, damage_named, decoded, opened, turn
from motionanim.data.video.index import pixel_aspect
from motionanim.files import text_sha256

LONGEST = 4  # most times that one side of a shape is as long as the other

Size = tuple[int, int]  # height, width


class Buckets(NamedTuple):
    """The shapes of a run's clips."""

    shapes: tuple[Size, ...]  # px, from the tallest to the widest
    own: int  # the number of the shape that clips of unknown size get: the scale's
    row: int  # clips in a row of one shape

    def numbers(self, sizes: np.ndarray) -> np.ndarray:
        """The number of the shape nearest to each size (N, 2) by the logarithm of width over height: (N,) uint16."""
        aspects = np.log([width / height for height, width in self.shapes])
        known = (sizes > 0).all(axis=1)
        heights, widths = np.where(known[:, None], sizes, 1).T
        nearest = np.searchsorted((aspects[1:] + aspects[:-1]) / 2, np.log(widths / heights))
        return np.where(known, nearest, self.own).astype(np.uint16)

    def shape_of(self, height: int, width: int) -> Size:
        """The shape of a clip from a video of this size."""
        return self.shapes[int(self.numbers(np.array([[height, width]]))[0])]

    def fingerprint(self, numbers: np.ndarray | None = None) -> str:
        """Of all that decides the shape at a position; `numbers` of the shapes of all items, where these have one."""
        items = "" if numbers is None else text_sha256(numbers.tobytes().hex())[:16]
        return f"{len(self.shapes)} in rows of {self.row} ({text_sha256(f'{self}{items}')[:8]})"


def buckets(*, used: bool, height: int, width: int, multiple: int, row: int) -> Buckets | None:
    """All shapes whose pixels fit into height x width, and neither side of which could be longer by `multiple`.

    Args:
        used: Whether clips have several shapes; None is returned otherwise.

    Raises:
        ValueError: If height or width is no multiple of `multiple`, or a number is below 1.
    """
    if not used:
        return None
    if multiple < 1 or row < 1:
        raise ValueError(f"scale.bucket_multiple={multiple}, scale.bucket_clips={row}: both must be at least 1")
    if min(height, width) < 1 or height % multiple or width % multiple:
        raise ValueError(
            f"scale.height={height}, scale.width={width}: must be multiples of scale.bucket_multiple={multiple}"
        )
    area = height * width // multiple**2
    pairs = ((rows, area // rows) for rows in range(area, 0, -1))
    kept = [(rows, columns) for rows, columns in pairs if area // columns == rows]
    shapes = tuple(
        (rows * multiple, columns * multiple)
        for rows, columns in kept
        if max(rows, columns) <= LONGEST * min(rows, columns) or rows * multiple == height
    )
    return Buckets(shapes, shapes.index((height, width)), row)


def shown_size(path: str | Path) -> Size:
    """(height, width) of a video in square px as shown, as `Video.size`, which also reads the whole index.

    Raises:
        VideoError: If the file cannot be read.
    """
    path = str(path)
    with damage_named(path), opened(path) as (container, stream):
        frame = next(decoded(container, stream), None)
        if frame is None:
            raise VideoError(path, "has no frames")
        signs, aspect = turn(frame), float(pixel_aspect(stream))
        if signs is not None and signs[0, 1]:  # its sides are swapped, and its pixels' too
            return max(1, round(frame.width * aspect)), frame.height
        return frame.height, max(1, round(frame.width * aspect))


def known_sizes(paths: Iterable[Path], count: int, kept: Path) -> np.ndarray:
    """The sizes of `count` videos, (N, 2) of height and width, zeros where a file cannot be read.

    Args:
        kept: Text file of the sizes that were looked up before, by path, size and time of a video; new ones are added.
    """
    known, sizes, missing = _read(kept), np.zeros((count, 2), dtype=np.int32), []
    for place, path in enumerate(paths):
        try:
            state = os.stat(path)
        except OSError:
            continue  # training says what is wrong with it
        key = text_sha256(f"{os.path.abspath(path)}|{state.st_size}|{state.st_mtime_ns}")[:16]
        if key in known:
            sizes[place] = known[key]
        else:
            missing.append((place, path, key))
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        found = pool.map(_size_or_none, [path for _, path, _ in missing])
        shown = tqdm(found, "sizes of videos", len(missing), disable=not missing)
        for size, (place, _, _) in zip(shown, missing, strict=True):
            sizes[place] = size
    if missing:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with open(kept, "a", encoding="ascii") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # of several training processes
            file.write("".join(f"{key} {sizes[place, 0]} {sizes[place, 1]}\n" for place, _, key in missing))
    return sizes


def _read(kept: Path) -> dict[str, Size]:
    try:
        text = kept.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return {}
    # A killed run may leave half a line.
    lines = re.findall(r"^([0-9a-f]{16}) (\d+) (\d+)$", text, flags=re.M)
    return {key: (int(height), int(width)) for key, height, width in lines}


def _size_or_none(path: Path) -> Size:
    try:
        return shown_size(path)
    except VideoError:
        return 0, 0
