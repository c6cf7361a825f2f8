"""Which frames a video file shows, and when: read from its packets (PyAV), without decoding where they suffice."""

import hashlib
import os
from contextlib import closing, nullcontext
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from motionanim.data.video.container import VideoError, WithoutPayload, damage_named, decoded, opened, turn
from motionanim.files import text_sha256

# Codecs whose packets are frames, and whose key frames can be decoded alone. Packets of other codecs may show nothing
# (VP8) or refer to earlier frames whatever their flags say (GIF), so that their frames are known once they are decoded.
_CODECS = frozenset({"h264", "hevc", "av1", "vp9"})
_FORMATS = frozenset({"mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "mpegts"})

# Part of the key of everything that is kept about a file: raise it when the same file gives other frames or times.
READER = 3

_EDGE = 2**16  # bytes at either end of a video that enter its `content_key`

DECORD_BYTES = 32 * 2**20  # decord reads a whole file to open it, so larger files are read by seeking
_DECORD_SECONDS = 10**5  # at later times, such as a camera's wall clock, decord aborts the process
_DECORD_WIDTH = 64  # px; decord refuses narrower frames

_MOST_PAUSE = 60.0  # s; a longer one shows that the file is cut wrongly, or that its clock was set while it recorded


class VideoIndex(NamedTuple):
    """The N frames that a file shows, in order of time."""

    times: np.ndarray  # (N,) float64, s after the first frame, increasing
    end: float  # s after the first frame: when the last one ends
    labels: np.ndarray  # (N,) int64: each frame's timestamp in the file, or its number where `starts` is None
    starts: np.ndarray | None  # (N,) int64: timestamps to seek to for each frame; None: decode from the beginning
    aspect: Fraction  # width of a pixel over its height
    plain: bool  # decord reads the same frames
    pixels: int  # of a frame


def content_key(path: str | Path) -> str:
    """Key of what is kept about a video, 64 hexadecimal digits.

    It changes with `READER`, with the file's size and with its first and last 64 KiB; it does not change with path and
    time, so that videos can be moved and copied.

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


def kept_path(folder: Path, key: str, suffix: str) -> Path:
    """Where `folder` keeps what belongs to `key`: one of 256 subfolders, named by the key's SHA-256."""
    digest = text_sha256(key)[:32]
    return folder / digest[:2] / f"{digest}{suffix}"


def read_index(path: str) -> VideoIndex:
    """Read the index of a file; of a file that has not changed it is read once a process.

    Raises:
        VideoError: If the file is missing, empty, without a picture, truncated or otherwise damaged, or shows one frame
            for more than a minute.
    """
    try:
        state = os.stat(path)
        path.encode("utf-8")
    except UnicodeEncodeError as error:
        raise VideoError(path, "has a name that is not UTF-8: rename it") from error
    except (OSError, ValueError) as error:
        raise VideoError(path, f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    if state.st_size == 0:
        raise VideoError(path, "is empty (0 bytes)")
    key = (os.path.abspath(path), state.st_size, state.st_mtime_ns, state.st_ino)
    if (kept := _kept.get(key)) is not None:
        return kept
    with damage_named(path):
        index = _from_packets(path, state.st_size) or _from_frames(path)
    gaps = np.diff(index.times)
    if len(gaps) and gaps.max() > _MOST_PAUSE and gaps.max() > 10 * np.median(gaps):
        place = int(gaps.argmax())
        raise VideoError(path, f"shows frame {place} for {gaps[place]:.0f} s: cut the file there, or mend its times")
    _kept.keep(key, index)
    return index


class _Kept(dict[tuple, VideoIndex]):
    """Indices that were read, because training opens a file for every clip and some files must be decoded for theirs.

    It holds 2 M frames of 24 bytes each; the oldest indices leave first.
    """

    frames = 0

    def keep(self, key: tuple, index: VideoIndex) -> None:
        for array in (index.times, index.labels, index.starts):
            if array is not None:
                array.setflags(write=False)  # every `Video` of the file shares it
        self[key] = index
        self.frames += len(index.times)
        while self.frames > 2_000_000:
            self.frames -= len(self.pop(next(iter(self))).times)


_kept = _Kept()


def _from_packets(path: str, size: int) -> VideoIndex | None:
    """The index by packets alone; None where they do not tell which frames there are or where decoding must begin."""
    with (
        closing(WithoutPayload(path)) if size > DECORD_BYTES else nullcontext() as file,
        opened(path, file) as (container, stream),
    ):
        kind, codec, base = container.format.name, stream.codec_context.codec.canonical_name, stream.time_base
        keys: dict[int, bool] = {}
        if kind.startswith("mov"):
            entries = [(entry.pos, entry.size, entry.is_keyframe) for entry in stream.index_entries]
            if any(place + length > size for place, length, _ in entries):
                raise VideoError(path, "is truncated: its index points past its end")
            # The index marks key frames; packets whose payload is replaced by zeros do not.
            keys = {place: key for place, _, key in entries}
            if file:
                file.skip([(place, length) for place, length, _ in entries])
        if kind not in _FORMATS or codec not in _CODECS or base is None:
            return None
        rows, upright = [], False
        for packet in container.demux(stream):
            if packet.size:
                key = keys.get(packet.pos, packet.is_keyframe)
                if not rows and not key:
                    return None  # the first packets of a file that begins between key frames may not be decodable
                if not rows and not file:  # only a decoded frame tells whether it is turned
                    first_shown = [*packet.decode(), *stream.codec_context.decode(None)]
                    upright = bool(first_shown) and turn(first_shown[0]) is None
                if packet.pts is None:
                    return None
                # Seeking in MP4 takes presentation times; with decoding times it lands one key frame too early.
                start = packet.pts if packet.dts is None or kind.startswith("mov") else packet.dts
                rows.append((packet.pts, start, key, not packet.is_discard, packet.duration or 0))
        aspect, width, rate = pixel_aspect(stream), stream.codec_context.width, stream.average_rate
        pixels = width * stream.codec_context.height
    if not rows:
        raise VideoError(path, "has no frames")
    pts, start, key, shown, durations = (np.array(column, dtype=np.int64) for column in zip(*rows))
    # The key frame before each packet; a frame that is shown before that key frame needs the previous one, too.
    last_key = np.maximum.accumulate(np.where(key, np.arange(len(pts)), -1))
    leading = pts < pts[last_key]
    first = np.where(leading, last_key[last_key - 1], last_key)
    chosen = np.flatnonzero(shown)
    order = chosen[np.argsort(pts[chosen], kind="stable")]
    labels = pts[order]
    if leading[last_key == 0].any() or not len(order) or (np.diff(labels) <= 0).any():
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
    """The index by decoding the whole file once."""
    stamps: list[int | None] = []
    duration = 0
    with opened(path) as (container, stream):
        for frame in decoded(container, stream):
            stamps.append(frame.pts)
            duration = frame.duration or 0
        rate, base, aspect = stream.average_rate or stream.guessed_rate, stream.time_base, pixel_aspect(stream)
        pixels = stream.codec_context.width * stream.codec_context.height
    if not stamps:
        raise VideoError(path, "has no frames")
    labels = np.arange(len(stamps))
    if None in stamps or base is None or (np.diff(np.array(stamps)) <= 0).any():
        # AVI has no timestamps, and the ones that FFmpeg invents for its B-frames are out of order.
        if not rate:
            raise VideoError(path, "has timestamps that do not increase")
        return VideoIndex(labels / float(rate), len(labels) / float(rate), labels, None, aspect, False, pixels)
    times, end = _times(np.array(stamps), base, duration, rate)
    return VideoIndex(times, end, labels, None, aspect, False, pixels)


def _times(stamps: np.ndarray, base: Fraction, duration: int, rate: Fraction | None) -> tuple[np.ndarray, float]:
    """Seconds after the first frame (N,), and when the last frame ends."""
    times = (stamps - stamps[0]) * float(base)
    last = duration * float(base)
    if not last > 0:
        last = float(np.median(np.diff(times))) if len(times) > 1 else 1 / float(rate or 25)
    return times, float(times[-1]) + last


def pixel_aspect(stream: av.VideoStream) -> Fraction:
    """Width of a pixel over its height."""
    aspect = stream.sample_aspect_ratio
    return Fraction(aspect) if aspect and Fraction(1, 100) < aspect < 100 else Fraction(1)
