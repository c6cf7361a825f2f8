"""Video files in and out. Frames come from decord where it reads what a player shows, else from PyAV."""

import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import decord
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

from motionanim.files import atomic_path
from motionanim.media.video_frames import read_frames
from motionanim.media.video_index import VideoError as VideoError
from motionanim.media.video_index import read_index
from motionanim.media.visualize import to_pixels

# FFmpeg's own complaints would flood the log: what goes wrong is raised as a VideoError.
decord.logging.set_level(decord.logging.QUIET)

# decord decodes at most so many bytes of full-size frames at a time, which bounds the memory of long or large clips.
# Each further batch opens the file and seeks anew.
_BATCH_BYTES = 2**28

# From this many px on x264 looks 5 frames ahead instead of 30, which would take it 1.4 GiB at 12 megapixels.
_LARGE = 4_000_000

# The most that H.264 holds: its highest level, 6.2, of 139 264 blocks of 16x16 px, and x264's longest side.
MOST_PIXELS, MOST_SIDE = 139_264 * 256, 16_384

# ITU-T H.273's number of BT.709, as colour matrix, primaries and transfer.
_BT709 = 1


class VideoInfo(NamedTuple):
    """What a file's index says."""

    num_frames: int
    fps: float  # of the usual interval between frames, which a pause in a variable-rate file does not change
    seconds: float  # from the first frame to the end of the last


class Video:
    """One open video file: the frames that a player shows, each always by the same number.

    Edit lists and rotation are applied, and pixels that are not square are scaled to squares along x.

    Attributes:
        info: Its length and rate.
        uses_decord: Whether decord reads it, so far; else PyAV.

    Raises:
        VideoError: As `read_index` does.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._index = read_index(self.path)
        self._times = self._index.times
        gaps, end = np.diff(self._times), self._index.end
        # The middle one itself: numpy's median of an even number may lie between two, and near none.
        middle = np.sort(gaps)[(len(gaps) - 1) // 2] if len(gaps) else end
        usual = gaps[np.abs(gaps - middle) < 2e-3] if len(gaps) else np.array([end])
        self.info = VideoInfo(len(self._times), 1 / float(usual.mean()), end)
        self.uses_decord = self._index.plain

    def grid(self, *, fps: float, stride: int | None) -> tuple[np.ndarray, float]:
        """Choose evenly timed frames from the whole video, by their timestamps.

        Steps of a whole number of frames, because uneven steps would make smooth motion jerk; so the rate is the one
        nearest below about `fps` that the file allows, and a file slower than `fps` keeps all its frames.

        Args:
            fps: Wanted frames per second, above 0; every round(file's rate / fps)-th frame is taken.
            stride: Take every stride-th frame instead, whatever the rate; None follows `fps`.

        Returns:
            Indices of frames (K,) int64, non-decreasing: in a variable-rate file the frame nearest in time to each
            tick. And the resulting frames per second.
        """
        if not fps > 0 or (stride is not None and stride < 1):
            raise ValueError(f"fps={fps}, stride={stride}: fps must be above 0, and stride at least 1 or null")
        step = stride or max(1, round(self.info.fps / fps))
        rate = self.info.fps / step
        ticks = np.arange(int(self._times[-1] * rate + 0.01) + 1) / rate
        return self.nearest(ticks), rate

    def nearest(self, seconds: np.ndarray) -> np.ndarray:
        """The frame nearest to each time after the first frame, the earlier of two; times past the end are left out.

        Args:
            seconds: (K,) non-decreasing, at least 0.

        Returns:
            (K',) int64 indices, K' at most K: a frame stands for its time until half an interval after it.
        """
        times = self._times
        seconds = seconds[seconds <= times[-1] + 0.5 / self.info.fps]
        if len(times) == 1:
            return np.zeros(len(seconds), dtype=np.int64)
        after = np.searchsorted(times, seconds).clip(1, len(times) - 1)
        # Halfway times are common (8 of 30 frames a second), and rounding must not decide them: 1 microsecond is a tie.
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
            indices: (K,) places in the file, non-decreasing.
            crop: Rows and columns to keep of the resized frames.

        Returns:
            (K, H', W', 3) uint8 RGB with H' >= height and W' >= width, one of them equal; area-averaged when shrinking.
            With `crop` those rows and columns of them.

        Raises:
            VideoError: If the frames cannot be decoded.
        """
        unique, places = np.unique(indices, return_inverse=True)
        frames = np.empty(0)
        for number, (picture, shown) in enumerate(self._pictures(unique)):
            if number == 0:
                tall, wide = cover_size(*shown, height=height, width=width)
                resized = np.empty((tall, wide, 3), np.uint8)
                kept = resized[crop]  # only these are kept in memory, because new memory costs time
                frames = np.empty((len(unique), *kept.shape), np.uint8)
            # cv2.resize takes INTER_AREA for shrinking only, along both sides.
            smaller = tall <= picture.shape[0] and wide <= picture.shape[1]
            method = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
            cv2.resize(picture, (wide, tall), dst=resized, interpolation=method)
            frames[number] = kept
        return frames if len(unique) == len(places) else frames[places]

    def size(self) -> tuple[int, int]:
        """(height, width) in px as shown, of square pixels; decodes one frame, as `read` may raise."""
        return next(self._pictures(np.zeros(1, dtype=np.int64)))[1]

    def _pictures(self, places: np.ndarray) -> Iterator[tuple[np.ndarray, tuple[int, int]]]:
        """Frames (H, W, 3) at increasing places, each with its (height, width) as shown."""
        aspect, done = float(self._index.aspect), 0
        most = max(4, _BATCH_BYTES // (3 * max(1, self._index.pixels)))
        while self.uses_decord and done < len(places):
            chunk = self._batch(places[done : done + most])
            if chunk is None:
                self.uses_decord = False  # PyAV reads it, or says what is wrong
                break
            for picture in chunk:
                yield picture, (picture.shape[0], max(1, round(picture.shape[1] * aspect)))
            done += len(chunk)
        if done == len(places):
            return
        for picture, swapped in read_frames(self.path, self._index, places[done:]):
            height, width = picture.shape[:2]
            yield (
                picture,
                (max(1, round(height * aspect)), width) if swapped else (height, max(1, round(width * aspect))),
            )

    def _batch(self, places: np.ndarray) -> np.ndarray | None:
        """(K, H, W, 3) by decord; None if it cannot decode them, or finds another number of frames."""
        try:
            # One thread: the loader's workers are the parallelism, and more threads here make them slower. A new reader
            # each time: one that is kept goes on decoding, and after the end of its file retries for many seconds.
            reader = decord.VideoReader(os.path.abspath(self.path), num_threads=1)
            return reader.get_batch(places.tolist()).asnumpy() if len(reader) == self.info.num_frames else None
        except (decord.DECORDError, RuntimeError, IndexError):
            return None


def cover_size(old_height: int, old_width: int, *, height: int, width: int) -> tuple[int, int]:
    """The smallest (height, width) of the old shape that covers height x width: one side fits, the other is cropped."""
    scale = max(height / old_height, width / old_width)
    return max(height, round(old_height * scale)), max(width, round(old_width * scale))


def check_video_size(height: int, width: int) -> None:
    """Raises ValueError if `write_video` cannot write frames so large."""
    if height * width > MOST_PIXELS or max(height, width) > MOST_SIDE:
        raise ValueError(
            f"a video of {width}x{height} px is too large for H.264, which holds {MOST_PIXELS / 1e6:.1f} megapixels "
            f"and {MOST_SIDE} px on a side: choose a smaller size"
        )


def write_video(path: str | Path, frames: Tensor | Iterable[Tensor], fps: float, *, crf: int = 12) -> None:
    """Write an H.264 yuv420p mp4 file, whole or not at all.

    Its colours are BT.709 of limited range, and its tags say so: players take files without tags for BT.601 or BT.709
    by their number of lines.

    Args:
        path: Target; its folder is made, and an older file is replaced only once the new one is complete.
        frames: (T, 3, H, W) float in [-1, 1], RGB; H and W even, as yuv420p demands. Or its frames (3, H, W) one at a
            time, so that a video of any length takes little memory.
        fps: Frames per second, above 0.
        crf: Quality of x264, 0 (lossless) to 51; 12 is visually lossless.

    Raises:
        ValueError: If a shape or `fps` is out of range.
        OSError: If the disk is full.
    """
    if not fps > 0:
        raise ValueError(f"fps={fps}: must be above 0")
    stream = iter(frames)
    first = next(stream, None)
    shape = tuple(frames.shape) if isinstance(frames, Tensor) else (0 if first is None else 1, *_shape(first))
    if len(shape) != 4 or shape[0] < 1 or shape[1] != 3 or shape[2] % 2 or shape[3] % 2:
        raise ValueError(f"frames of shape {shape}: must be (T, 3, H, W) with T >= 1 and H, W even")
    check_video_size(*shape[2:])
    # Absolute, because FFmpeg takes what stands before a colon for a protocol.
    target = Path(path).absolute()
    with atomic_path(target) as partial, av.open(str(partial), "w", options={"movflags": "faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        # x264's macroblock tree reads memory that it did not write: the same frames became different bytes.
        options = {"crf": str(crf), "preset": "fast", "x264-params": "mbtree=0"}
        if shape[2] * shape[3] > _LARGE:
            options["rc-lookahead"] = "5"
        video = container.add_stream("libx264", rate=rate, options=options)
        video.height, video.width, video.pix_fmt = shape[2], shape[3], "yuv420p"
        tags = video.codec_context
        tags.colorspace = tags.color_primaries = tags.color_trc = _BT709
        tags.color_range = ColorRange.MPEG
        for number, frame in enumerate(chain([first], stream)):
            if _shape(frame) != shape[1:]:
                raise ValueError(f"frame {number} of shape {_shape(frame)}: must be {shape[1:]} as the first one is")
            picture = av.VideoFrame.from_ndarray(to_pixels(frame), format="rgb24")
            container.mux(video.encode(picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        container.mux(video.encode())


def _shape(frame: Tensor | None) -> tuple[int, ...]:
    return () if frame is None else tuple(frame.shape)
