"""One video file: decord decodes it where it gives the frames that a player shows, PyAV elsewhere."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch  # noqa: F401  must be imported before decord: else its NVBLAS computes matrix products and crashes

# isort: split
import decord

from motionanim.data.video.frames import read_frames
from motionanim.data.video.index import read_index

decord.logging.set_level(decord.logging.QUIET)  # every fault is raised as a VideoError

# Full-size frames that decord decodes at a time, in bytes: bounds the memory. Each batch opens the file anew.
_BATCH_BYTES = 2**28


class VideoInfo(NamedTuple):
    """Length and rate of a file."""

    num_frames: int
    fps: float  # by the usual interval between frames, which a pause in a variable-rate file does not change
    seconds: float  # from the first frame to the end of the last


class Video:
    """One video file: the frames that a player shows, each always with the same index.

    Edit lists and rotation are applied, and pixels that are not square are scaled to squares along x.

    Attributes:
        info: Its length and rate.
        uses_decord: Whether decord reads it; becomes False when decord fails.

    Raises:
        VideoError: As `read_index` does.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._index = read_index(self.path)
        self._times = self._index.times
        gaps, end = np.diff(self._times), self._index.end
        # The middle gap itself, because numpy's median of an even number of gaps may lie between two and near neither.
        middle = np.sort(gaps)[(len(gaps) - 1) // 2] if len(gaps) else end
        usual = gaps[np.abs(gaps - middle) < 2e-3] if len(gaps) else np.array([end])
        self.info = VideoInfo(len(self._times), 1 / float(usual.mean()), end)
        self.uses_decord = self._index.plain

    def grid(self, *, fps: float, stride: int | None) -> tuple[np.ndarray, float]:
        """Choose evenly timed frames from the whole video, by their timestamps.

        A step is a whole number of frames, because uneven steps would make smooth motion jerk. A file slower than
        `fps` keeps all its frames.

        Args:
            fps: Wanted frames per second, above 0: every round(file's rate / fps)-th frame is taken.
            stride: Take every stride-th frame instead, whatever the rate; None follows `fps`.

        Returns:
            Indices of frames (K,) int64, non-decreasing (in a variable-rate file, the frame nearest in time to each
            tick), and the resulting frames per second.
        """
        if not fps > 0 or (stride is not None and stride < 1):
            raise ValueError(f"fps={fps}, stride={stride}: fps must be above 0, and stride at least 1 or null")
        step = stride or max(1, round(self.info.fps / fps))
        rate = self.info.fps / step
        ticks = np.arange(int(self._times[-1] * rate + 0.01) + 1) / rate
        return self.nearest(ticks), rate

    def nearest(self, seconds: np.ndarray) -> np.ndarray:
        """The frame nearest to each time, the earlier of two that are equally near.

        Args:
            seconds: (K,) after the first frame, non-decreasing, at least 0.

        Returns:
            (K',) int64 indices. Times later than half an interval after the last frame are left out, so K' <= K.
        """
        times = self._times
        seconds = seconds[seconds <= times[-1] + 0.5 / self.info.fps + 1e-6]
        if len(times) == 1:
            return np.zeros(len(seconds), dtype=np.int64)
        after = np.searchsorted(times, seconds).clip(1, len(times) - 1)
        # Times halfway between frames are common (8 of 30 frames a second); rounding moves them by under a microsecond.
        nearest = np.where(seconds - times[after - 1] <= times[after] - seconds + 1e-6, after - 1, after)
        return nearest.astype(np.int64)

    def read(
        self,
        indices: np.ndarray,
        *,
        height: int,
        width: int,
        crop: tuple[slice, slice] = (slice(None), slice(None)),
    ) -> np.ndarray:
        """Decode frames, resized to the smallest size that covers height x width in the video's own shape.

        Args:
            indices: (K,) non-decreasing.
            crop: Rows and columns of the resized frames to return.

        Returns:
            (K, H', W', 3) uint8 RGB with H' >= height and W' >= width, one of them equal; area-averaged when shrinking.

        Raises:
            VideoError: If the frames cannot be decoded.
        """
        unique, places = np.unique(indices, return_inverse=True)
        frames = np.empty(0)
        for number, (picture, shown) in enumerate(self._pictures(unique)):
            if number == 0:
                tall, wide = cover_size(*shown, height=height, width=width)
                resized = np.empty((tall, wide, 3), np.uint8)
                kept = resized[crop]  # only the crop is stored, because new memory costs time
                frames = np.empty((len(unique), *kept.shape), np.uint8)
            # INTER_AREA averages only if both sides shrink.
            shrinks = tall <= picture.shape[0] and wide <= picture.shape[1]
            method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
            cv2.resize(picture, (wide, tall), dst=resized, interpolation=method)
            frames[number] = kept
        return frames if len(unique) == len(places) else frames[places]

    def size(self) -> tuple[int, int]:
        """(height, width) in square px as shown; decodes one frame, and raises as `read` does."""
        return next(self._pictures(np.zeros(1, dtype=np.int64)))[1]

    def _pictures(self, places: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
        """Frames (H, W, 3) at increasing places, each with its (height, width) as shown."""
        aspect = float(self._index.aspect)
        for picture, swapped in self._decoded(places):
            height, width = picture.shape[:2]
            if swapped:
                yield picture, (max(1, round(height * aspect)), width)
            else:
                yield picture, (height, max(1, round(width * aspect)))

    def _decoded(self, places: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
        """As `read_frames`, by decord as long as it succeeds."""
        most, done = max(4, _BATCH_BYTES // (3 * max(1, self._index.pixels))), 0
        while self.uses_decord and done < len(places):
            chunk = self._batch(places[done : done + most])
            if chunk is None:
                self.uses_decord = False  # PyAV reads the file, or says what is wrong with it
                break
            yield from ((picture, False) for picture in chunk)
            done += len(chunk)
        if done < len(places):
            yield from read_frames(self.path, self._index, places[done:])

    def _batch(self, places: np.ndarray) -> np.ndarray | None:
        """(K, H, W, 3) by decord; None if it cannot decode them or counts another number of frames."""
        try:
            # One thread, because the loader's processes are the parallelism. A new reader each time, because a reader
            # that is kept goes on decoding, and retries for many seconds after the end of its file.
            reader = decord.VideoReader(os.path.abspath(self.path), num_threads=1)
            return reader.get_batch(places.tolist()).asnumpy() if len(reader) == self.info.num_frames else None
        except (decord.DECORDError, RuntimeError, IndexError):
            return None


def cover_size(old_height: int, old_width: int, *, height: int, width: int) -> tuple[int, int]:
    """The smallest (height, width) of the old shape that covers height x width: one side is equal, the other longer."""
    scale = max(height / old_height, width / old_width)
    return max(height, round(old_height * scale)), max(width, round(old_width * scale))
