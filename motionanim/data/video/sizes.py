"""The sizes of video files, which decide the shapes of training clips: read once and kept."""

import fcntl
import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from motionanim.data.video.container import VideoError, damage_named, decoded, opened, turn
from motionanim.data.video.index import pixel_aspect
from motionanim.files import text_sha256


def shown_size(path: str | Path) -> tuple[int, int]:
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


def _read(kept: Path) -> dict[str, tuple[int, int]]:
    try:
        text = kept.read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return {}
    # A killed run may leave half a line.
    lines = re.findall(r"^([0-9a-f]{16}) (\d+) (\d+)$", text, flags=re.M)
    return {key: (int(height), int(width)) for key, height, width in lines}


def _size_or_none(path: Path) -> tuple[int, int]:
    try:
        return shown_size(path)
    except VideoError:
        return 0, 0
