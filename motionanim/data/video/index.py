"""Which frames a video file shows, and when: read from its packets (PyAV), without decoding where they suffice."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from motionanim.files import printable

# Of these a packet is a frame, and a key frame can be decoded alone. Others have packets that show nothing (VP8), or
# refer to earlier frames whatever their flags say (GIF): their frames are known once they are decoded.
_CODECS = frozenset({"h264", "hevc", "av1", "vp9"})
_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts"})

# Part of the key of all that is kept about a file: raise it when other frames or times are read from the same file.
READER = 3

_EDGE = 2**16  # bytes at either end of a video by which its content is told

# decord reads the whole file to open it: larger files are read by seeking.
DECORD_BYTES = 32 * 2**20
# decord aborts the process at times far from 0, such as a camera's wall clock, and refuses narrower frames.
_DECORD_SECONDS, _DECORD_WIDTH = 10**5, 64

# Nothing moves for so long: the file is cut wrongly, or its clock was set while it was recorded.
_MOST_PAUSE = 60.0  # s
MOST_PIXELS = 100_000_000  # of a frame: a damaged header can claim any size

# What PyAV raises on damaged files: FFmpeg's errors, and Python's for values that are out of range.
DAMAGE = (av.FFmpegError, OSError, ValueError, ArithmeticError, RuntimeError, LookupError, TypeError, MemoryError)


class VideoError(ValueError):
    """A video that cannot be used: which file, and why."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = printable(path), reason

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


class VideoIndex(NamedTuple):
    """The N frames that a file shows, in the order of their times."""

    times: np.ndarray  # (N,) float64, s after the first frame, increasing
    end: float  # s after the first frame: when the last one ends
    labels: np.ndarray  # (N,) int64: each frame's timestamp in the file, or its number where `starts` is None
    starts: np.ndarray | None  # (N,) int64: timestamps to seek to for each frame; None: decode from the beginning
    aspect: Fraction  # width of a pixel over its height
    plain: bool  # decord reads the same frames
    pixels: int  # of a frame


def content_key(path: str | Path) -> str:
    """Key of what is kept about a video, 64 hexadecimal digits: it changes with the file's content and with `READER`.

    Not with its path or time, so that videos can be moved and copied. Of the content it is the size, and 64 KiB from
    the start and from the end.

    Raises:
        VideoError: If the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            content = hashlib.sha256(f"{READER}|{size}|".encode())
            for place in (0, max(size - _EDGE, 0)):
                file.seek(place)
                content.update(file.read(_EDGE))
    except OSError as error:
        raise VideoError(path, f"cannot be opened: {error.strerror or error}") from error
    return content.hexdigest()


def read_index(path: str) -> VideoIndex:
    """The index of a file.

    Raises:
        VideoError: If the file is missing, empty, without a picture, truncated or otherwise damaged, or pauses for
            more than a minute.
    """
    try:
        state = os.stat(path)
        path.encode("utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeEncodeError):
            raise VideoError(path, "has a name that is not UTF-8: rename it") from error
        raise VideoError(path, f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    size = state.st_size
    if size == 0:
        raise VideoError(path, "is empty (0 bytes)")
    key = (os.path.abspath(path), size, state.st_mtime_ns, state.st_ino)
    if (kept := _kept.get(key)) is not None:
        return kept
    try:
        index = _from_packets(path, size) or _from_frames(path)
    except DAMAGE as error:
        raise error if isinstance(error, VideoError) else VideoError(path, reason(error)) from error
    gaps = np.diff(index.times)
    if len(gaps) and gaps.max() > _MOST_PAUSE and gaps.max() > 10 * np.median(gaps):
        place = int(gaps.argmax())
        raise VideoError(path, f"shows frame {place} for {gaps[place]:.0f} s: cut the file there, or mend its times")
    _kept.keep(key, index)
    return index


class _Kept(dict[tuple, VideoIndex]):
    """Indices that were read: training opens a file for every clip, and some must be decoded for their index.

    The oldest go first, at 2 M frames in all of 24 bytes each.
    """

    frames = 0

    def keep(self, key: tuple, index: VideoIndex) -> None:
        for array in (index.times, index.labels, index.starts):
            if array is not None:
                array.setflags(write=False)  # all that open the file share it
        self[key] = index
        self.frames += len(index.times)
        while self.frames > 2_000_000:
            self.frames -= len(self.pop(next(iter(self))).times)


_kept = _Kept()


@contextmanager
def opened(
    path: str, file: "_WithoutPayload | None" = None
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The file's container and its first video stream that is no cover picture."""
    # An absolute path: FFmpeg takes what stands before a colon for a protocol.
    with av.open(file or os.path.abspath(path), metadata_errors="ignore") as container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams or streams[0].codec_context is None:
            raise VideoError(path, "has no video stream" if not streams else "has a codec that FFmpeg does not know")
        # One thread: the loader's workers are the parallelism, and more threads here make them slower.
        streams[0].codec_context.thread_count = 1
        streams[0].codec_context.thread_type = "NONE"
        yield container, streams[0]


def reason(error: Exception) -> str:
    text = " ".join(str(getattr(error, "strerror", None) or error).split())
    if isinstance(error, av.InvalidDataError | av.EOFError):
        return "is not a video file that can be decoded, or damaged"
    return f"cannot be decoded: {text[-160:] or type(error).__name__}"


def _from_packets(path: str, size: int) -> VideoIndex | None:
    """None where packets do not tell which frames there are, or where to begin decoding them."""
    with (
        closing(_WithoutPayload(path)) if size > DECORD_BYTES else nullcontext() as file,
        opened(path, file) as (container, stream),
    ):
        kind, codec, base = container.format.name, stream.codec_context.codec.canonical_name, stream.time_base
        keys: dict[int, bool] = {}
        if kind.startswith("mov"):
            entries = [(entry.pos, entry.size, entry.is_keyframe) for entry in stream.index_entries]
            if any(place + length > size for place, length, _ in entries):
                raise VideoError(path, "is truncated: its index points past its end")
            # Where frames are zeros, packets do not tell which are key frames.
            keys = {place: key for place, _, key in entries}
            if file:
                file.skip([(place, length) for place, length, _ in entries])
        if kind not in _FORMATS or codec not in _CODECS or base is None:
            return None
        rows, upright = [], False
        for packet in container.demux(stream):
            if packet.size:
                if not rows and not file:  # only a decoded frame tells how it is turned
                    first_shown = [*packet.decode(), *stream.codec_context.decode(None)]
                    upright = bool(first_shown) and turn(first_shown[0]) is None
                if packet.pts is None:
                    return None
                # An MP4 is sought by the times at which frames are shown: by the others a key frame too early.
                start = packet.pts if packet.dts is None or kind.startswith("mov") else packet.dts
                key = keys.get(packet.pos, packet.is_keyframe)
                rows.append((packet.pts, start, key, not packet.is_discard, packet.duration or 0))
        aspect, width, rate = _aspect(stream), stream.codec_context.width, stream.average_rate
        pixels = width * stream.codec_context.height
    if not rows:
        raise VideoError(path, "has no frames")
    pts, start, key, shown, durations = (np.array(column, dtype=np.int64) for column in zip(*rows))
    # The key frame that a packet follows; one that is shown before it needs the key frame before that as well.
    last_key = np.maximum.accumulate(np.where(key, np.arange(len(pts)), -1))
    leading = pts < pts[last_key]
    first = np.where(leading, last_key[last_key - 1], last_key)
    chosen = np.flatnonzero(shown)
    order = chosen[np.argsort(pts[chosen], kind="stable")]
    labels = pts[order]
    if not key[0] or leading[last_key == 0].any() or not len(order) or (np.diff(labels) <= 0).any():
        return None
    times, end = _times(labels, base, int(durations[order[-1]]), rate)
    plain = (
        kind != "mpegts"
        and bool(shown.all())
        and not leading.any()
        and upright
        and size <= DECORD_BYTES
        and width >= _DECORD_WIDTH
        and abs(labels[0] * base) < _DECORD_SECONDS
        and end < _DECORD_SECONDS
    )
    return VideoIndex(times, end, labels, start[first[order]], aspect, plain, pixels)


def _from_frames(path: str) -> VideoIndex:
    """Decode everything once."""
    stamps: list[int | None] = []
    duration = 0
    with opened(path) as (container, stream):
        for frame in decoded(container, stream):
            stamps.append(frame.pts)
            duration = frame.duration or 0
        rate, base, aspect = stream.average_rate or stream.guessed_rate, stream.time_base, _aspect(stream)
        pixels = stream.codec_context.width * stream.codec_context.height
    if not stamps:
        raise VideoError(path, "has no frames")
    labels = np.arange(len(stamps))
    if None in stamps or base is None or (np.diff(np.array(stamps)) <= 0).any():
        # AVI has no timestamps, and those that FFmpeg makes up for its B-frames are out of order.
        if not rate:
            raise VideoError(path, "has timestamps that do not increase")
        return VideoIndex(labels / float(rate), len(labels) / float(rate), labels, None, aspect, False, pixels)
    times, end = _times(np.array(stamps), base, duration, rate)
    return VideoIndex(times, end, labels, None, aspect, False, pixels)


def decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """All frames of a file that was just opened, from the first that can be decoded.

    Raises:
        av.FFmpegError: If a later one cannot be decoded.
    """
    begun = False
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            if begun:
                raise
            continue
        for frame in frames:
            # A file that begins between key frames has pictures that refer to what is missing.
            begun = begun or not frame.is_corrupt
            if begun:
                yield frame


def turn(frame: av.VideoFrame) -> np.ndarray | None:
    """How a frame is turned or mirrored to be shown: [[a, b], [c, d]] of -1, 0 and 1 with (x, y) -> (ax + cy, bx + dy).

    Raises:
        ValueError: If it is turned by no multiple of 90 degrees.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    matrix = np.frombuffer(data, np.int32).reshape(3, 3)[:2, :2]
    signs = np.sign(matrix)
    if np.abs(signs).sum() != 2 or not signs.any(0).all() or not signs.any(1).all():
        raise ValueError("it is turned by an angle that is no multiple of 90 degrees")
    return None if (signs == np.eye(2)).all() else signs


def _times(stamps: np.ndarray, base: Fraction, duration: int, rate: Fraction | None) -> tuple[np.ndarray, float]:
    """Seconds after the first, and when the last ends."""
    times = (stamps - stamps[0]) * float(base)
    last = duration * float(base)
    if not last > 0:
        last = float(np.median(np.diff(times))) if len(times) > 1 else 1 / float(rate or 25)
    return times, float(times[-1]) + last


def _aspect(stream: av.VideoStream) -> Fraction:
    aspect = stream.sample_aspect_ratio
    return Fraction(aspect) if aspect and Fraction(1, 100) < aspect < 100 else Fraction(1)


class _WithoutPayload:
    """A file whose frames are given as zeros instead of read: an MP4's index tells their times without them."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed by `close`
        self._starts, self._ends = np.empty(0, np.int64), np.empty(0, np.int64)

    def skip(self, spans: list[tuple[int, int]]) -> None:
        """From now on give zeros for these (position, length)."""
        spans = np.array(sorted(spans), dtype=np.int64).reshape(-1, 2)
        self._starts, self._ends = spans[:, 0], spans.sum(1)

    def read(self, length: int) -> bytes:
        at = self._file.tell()
        place = int(np.searchsorted(self._starts, at, side="right")) - 1
        if place >= 0 and at < self._ends[place]:
            length = min(length, int(self._ends[place]) - at)
            self._file.seek(length, os.SEEK_CUR)
            return bytes(length)
        if place + 1 < len(self._starts):
            length = min(length, int(self._starts[place + 1]) - at)
        return self._file.read(length)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        return self._file.tell()

    def close(self) -> None:
        self._file.close()
