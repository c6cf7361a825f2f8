"""Borders between the shots of a video: hard cuts, dissolves, and fades through black.

Fast pans, flashes and changes of exposure are no borders: two frames are of one shot if optical flow carries one to the
other, in its colours or, after a change of light, in its details. The thresholds are measured (benchmarks/shots.md).
"""

import json
from pathlib import Path

import cv2
import numpy as np

from motionanim.data.video import Video
from motionanim.data.video.index import kept_path
from motionanim.files import atomic_path

VERSION = 1  # raise it when the same video gives other borders
SIDE = 64  # px of the short side at which frames are compared
DIFFERENT = 16.0  # levels of 255; frames that differ by less after the flow's warp are of one shot
SIMILAR = 0.62  # correlation of details from which frames of different colours are of one shot
STRAIGHT = 0.3  # share of the ends' difference by which the middle of a dissolve may miss their mean
FLASH = 0.25  # s; a flash is over after this time
LAGS = (0.2, 0.4, 0.8)  # s; dissolves and fades are looked for between frames so far apart
_CHUNK = 512  # frames compared at a time, to bound the memory

Border = tuple[int, int]  # the last frame of a shot and the first of the next; frames between them mix both


def crossed(first: np.ndarray, last: np.ndarray, borders: list[Border]) -> np.ndarray:
    """Which spans between a `first` and a `last` frame, both (K,), hold a border or part of one: (K,) bool."""
    spans = np.zeros(len(first), dtype=bool)
    for end, begin in borders:
        spans |= (first < begin) & (last > end)
    return spans


def starts_within(indices: np.ndarray, length: int, borders: list[Border]) -> np.ndarray:
    """Places in `indices` (K,) where a clip of `length` of them can begin and lie within one shot: (N,) ascending."""
    count = max(0, len(indices) - length + 1)
    return np.flatnonzero(~crossed(indices[:count], indices[length - 1 :], borders))


def keep_borders(folder: Path, content: str, borders: list[Border]) -> None:
    """Add the borders of the video with the `content_key` `content` to those kept under `folder`; no file for none.

    An earlier run with other settings may have looked at more of the video.
    """
    known = kept_borders(folder, content)
    if borders and (together := _merged([*known, *borders])) != known:
        with atomic_path(_place(folder, content)) as path:
            path.write_text(json.dumps(together), encoding="utf-8")


def kept_borders(folder: Path, content: str) -> list[Border]:
    """The borders that `keep_borders` has kept of a video, as far as `prepare` has looked at it."""
    try:
        text = _place(folder, content).read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    return [(last, begin) for last, begin in json.loads(text)]


def _place(folder: Path, content: str) -> Path:
    return kept_path(folder, f"shots {VERSION}|{content}", ".json")


def find_borders(video: Video, count: int) -> list[Border]:
    """The borders among the first `count` frames of a video, in order; raises as `Video.read` does."""
    fps = video.info.fps
    context = round(max(LAGS) * fps) + 1
    borders: list[Border] = []
    for first in range(0, count, _CHUNK):
        low, high = max(0, first - context), min(count, first + _CHUNK + context)
        frames = video.read(np.arange(low, high), height=SIDE, width=SIDE)
        borders += [(low + last, low + begin) for last, begin in borders_of(frames, fps)]
    return _merged(borders)


def borders_of(frames: np.ndarray, fps: float) -> list[Border]:
    """The borders in frames (N, H, W, 3) uint8, in order."""
    found = []
    values = frames.astype(np.float32).reshape(len(frames), -1)
    steps = np.abs(np.diff(values, axis=0)).mean(1)
    flash = max(2, round(FLASH * fps))
    for last in np.flatnonzero(steps > DIFFERENT):
        before = range(last, max(-1, last - flash), -1)
        after = range(last + 1, min(len(frames), last + 1 + flash))
        pairs = [(last, k) for k in after] + [(k, last + 1) for k in before[1:]]
        if not any(_same_shot(frames[a], frames[b]) for a, b in pairs):
            found.append((int(last), int(last) + 1))
    for lag in sorted({2 * max(1, round(seconds * fps / 2)) for seconds in LAGS}):
        ends = np.abs(values[lag:] - values[:-lag]).mean(1)
        bend = np.abs(values[lag // 2 : -lag // 2] - (values[lag:] + values[:-lag]) / 2).mean(1)
        for first in np.flatnonzero((ends > DIFFERENT) & (bend < STRAIGHT * ends)):
            if not _same_shot(frames[first], frames[first + lag]):
                found.append((int(first), int(first) + lag))
    return _merged(found)


def _same_shot(one: np.ndarray, other: np.ndarray) -> bool:
    grey, target = (cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (one, other))
    flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(grey, target, None)
    height, width = grey.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x + flow[..., 0], y + flow[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    if inside.mean() < 0.1:
        return False
    moved = cv2.remap(other, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    if np.abs(moved.astype(np.float32) - one)[inside].mean() < DIFFERENT:
        return True
    details = [_details(image)[inside] for image in (grey, cv2.cvtColor(moved, cv2.COLOR_RGB2GRAY))]
    spread = float(details[0].std() * details[1].std())
    return spread > 1e-3 and float(np.mean(details[0] * details[1])) > SIMILAR * spread


def _details(grey: np.ndarray) -> np.ndarray:
    fine = grey.astype(np.float32)
    fine -= cv2.GaussianBlur(fine, (0, 0), SIDE / 10)
    return fine - fine.mean()


def _merged(borders: list[Border]) -> list[Border]:
    """Sorted borders; those that overlap become one."""
    merged: list[Border] = []
    for last, begin in sorted(borders):
        if merged and last < merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], begin))
        else:
            merged.append((last, begin))
    return merged
