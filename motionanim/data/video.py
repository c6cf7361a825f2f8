"""Video files in and out: the only file that decodes (decord) or encodes (PyAV)."""

import os
from collections.abc import Iterable
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
from motionanim.pictures import to_pixels

# FFmpeg's own complaints would flood the log: what goes wrong is raised as a VideoError.
decord.logging.set_level(decord.logging.QUIET)

# Frames decoded at full size at a time: bounds the memory of long or large clips.
_CHUNK = 16

# From this many px on x264 looks 5 frames ahead instead of 30, which would take it 1.4 GiB at 12 megapixels.
_LARGE = 4_000_000

# The most that H.264 holds: its highest level, 6.2, of 139 264 blocks of 16x16 px, and x264's longest side.
MOST_PIXELS, MOST_SIDE = 139_264 * 256, 16_384

# ITU-T H.273's number of BT.709, as colour matrix, primaries and transfer.
_BT709 = 1

# Frames by which a decoder may read ahead of the one it returns, with room to spare.
_LOOKAHEAD = 48


class VideoError(ValueError):
    """A video that cannot be used: which file, and why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = str(path), reason

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


class VideoInfo(NamedTuple):
    """What a file's index says."""

    num_frames: int
    fps: float  # of the usual interval between frames, which a pause in a variable-rate file does not change
    seconds: float  # from the first frame to the end of the last


class Video:
    """One open video file.

    Attributes:
        info: Its size and rate.

    Raises:
        VideoError: If the file is missing, empty, without a picture, truncated or otherwise damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        try:
            size = os.stat(self.path).st_size
        except OSError as error:
            raise VideoError(path, f"cannot be opened: {error.strerror}") from error
        if size == 0:
            raise VideoError(path, "is empty (0 bytes)")
        try:
            # One thread: the loader's workers are the parallelism, and more threads here make them slower.
            self._reader = decord.VideoReader(self.path, num_threads=1)
            count = len(self._reader)
            spans = np.asarray(self._reader.get_frame_timestamp(range(count)), dtype=np.float64).reshape(-1, 2)
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            raise VideoError(path, _reason(error)) from error
        if count == 0:
            raise VideoError(path, "has no frames")
        self._times, self._at_end = spans[:, 0], False
        gaps = np.diff(self._times)
        usual = gaps[np.abs(gaps - np.median(gaps)) < 2e-3] if count > 1 else spans[:, 1] - spans[:, 0]
        interval = float(usual.mean())
        if not interval > 0 or not np.isfinite(self._times).all():
            raise VideoError(path, "has timestamps that do not increase")
        self.info = VideoInfo(count, 1 / interval, float(spans[-1, 1] - spans[0, 0]))

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
        elapsed = self._times - self._times[0]
        ticks = np.arange(int(elapsed[-1] * rate + 0.01) + 1) / rate
        return self.nearest(ticks), rate

    def nearest(self, seconds: np.ndarray) -> np.ndarray:
        """The frame nearest to each time after the first frame, the earlier of two; times past the end are left out.

        Args:
            seconds: (K,) non-decreasing, at least 0.

        Returns:
            (K',) int64 indices, K' at most K: a frame stands for its time until half an interval after it.
        """
        elapsed = self._times - self._times[0]
        seconds = seconds[seconds <= elapsed[-1] + 0.5 / self.info.fps]
        if len(elapsed) == 1:
            return np.zeros(len(seconds), dtype=np.int64)
        after = np.searchsorted(elapsed, seconds).clip(1, len(elapsed) - 1)
        nearest = np.where(seconds - elapsed[after - 1] <= elapsed[after] - seconds, after - 1, after)
        return nearest.astype(np.int64)

    def read(self, indices: np.ndarray, *, height: int, width: int) -> np.ndarray:
        """Decode frames, resized to the smallest size that covers height x width in the video's own shape.

        Args:
            indices: (K,) places in the file, non-decreasing.

        Returns:
            (K, H', W', 3) uint8 RGB with H' >= height and W' >= width, one of them equal; area-averaged when shrinking.

        Raises:
            VideoError: If the frames cannot be decoded.
        """
        unique, places = np.unique(indices, return_inverse=True)
        frames = np.empty(0)
        for first in range(0, len(unique), _CHUNK):
            decoded = self._decode(unique[first : first + _CHUNK])
            tall, wide = cover_size(*decoded.shape[1:3], height=height, width=width)
            method = cv2.INTER_AREA if tall <= decoded.shape[1] else cv2.INTER_CUBIC
            if first == 0:
                frames = np.empty((len(unique), tall, wide, 3), np.uint8)
            for frame, resized in zip(decoded, frames[first:]):
                cv2.resize(frame, (wide, tall), dst=resized, interpolation=method)
        return frames if len(unique) == len(places) else frames[places]

    def size(self) -> tuple[int, int]:
        """(height, width) in px as shown, rotation metadata applied; decodes one frame, as `read` may raise."""
        height, width = self._decode(np.zeros(1, dtype=np.int64)).shape[1:3]
        return height, width

    def _decode(self, indices: np.ndarray) -> np.ndarray:
        try:
            # A reader that has seen the end of its file retries for many seconds at its next read: take a new one.
            if self._at_end:
                self._reader = decord.VideoReader(self.path, num_threads=1)
            self._at_end = int(indices[-1]) >= self.info.num_frames - _LOOKAHEAD
            return self._reader.get_batch(indices.tolist()).asnumpy()
        except (decord.DECORDError, RuntimeError, IndexError) as error:
            raise VideoError(self.path, _reason(error)) from error


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
    with atomic_path(path) as partial, av.open(str(partial), "w", options={"movflags": "faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        options = {"crf": str(crf), "preset": "fast"}
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


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "cannot find video stream" in text:
        return "has no video stream"
    if "av_read_frame failed" in text:
        return "is truncated or damaged: its index points past what can be read"
    if "DECORD_EOF_RETRY_MAX" in text:
        return "is damaged: its last frames cannot be decoded"
    if "size must exactly match" in text:
        return "is narrower than 64 px, which decord cannot read"
    if "Error reading" in text:
        return "is not a video file that can be decoded"
    return f"cannot be decoded: {text[-160:]}"
