"""An opened video file by PyAV: its stream, its frames in order, how they are turned, and what goes wrong."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import numpy as np

from motionanim.files import printable

# Errors that PyAV raises on damaged files: FFmpeg's errors, and Python's for values out of range.
_DAMAGE = (av.FFmpegError, OSError, ValueError, ArithmeticError, RuntimeError, LookupError, TypeError, MemoryError)


class VideoError(ValueError):
    """A video cannot be used: its path and the reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(str(path), reason)
        self.path, self.reason = printable(path), reason

    def __str__(self) -> str:
        return f"{self.path} {self.reason}"


@contextmanager
def opened(
    path: str, file: "WithoutPayload | None" = None
) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """The file's container and its first video stream that is no cover picture."""
    # Absolute, because FFmpeg takes what stands before a colon for a protocol.
    with av.open(file or os.path.abspath(path), metadata_errors="ignore") as container:
        streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams or streams[0].codec_context is None:
            raise VideoError(path, "has no video stream" if not streams else "has a codec that FFmpeg does not know")
        # The loader's processes are the parallelism: more threads here would make them slower.
        streams[0].codec_context.thread_count = 1
        streams[0].codec_context.thread_type = "NONE"
        yield container, streams[0]


@contextmanager
def damage_named(path: str) -> Iterator[None]:
    """Turn what PyAV raises on a damaged file into a VideoError."""
    try:
        yield
    except VideoError:
        raise
    except _DAMAGE as error:
        text = " ".join(str(getattr(error, "strerror", None) or error).split())
        if isinstance(error, av.InvalidDataError | av.EOFError):
            reason = "is not a video file that can be decoded, or damaged"
        else:
            reason = f"cannot be decoded: {text[-160:] or type(error).__name__}"
        raise VideoError(path, reason) from error


def decoded(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    """All frames of a file that was just opened, from the first that can be decoded.

    Raises:
        av.FFmpegError: If a later frame cannot be decoded.
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
            # The first pictures of a file that begins between key frames refer to missing ones.
            begun = begun or not frame.is_corrupt
            if begun:
                yield frame


def turn(frame: av.VideoFrame) -> np.ndarray | None:
    """How a frame is turned or mirrored when shown: [[a, b], [c, d]] of -1, 0 and 1 maps (x, y) to (ax + cy, bx + dy).

    None if it is shown as it is stored. Raises ValueError for an angle that is no multiple of 90 degrees.
    """
    data = frame.side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    matrix = np.frombuffer(data, np.int32).reshape(3, 3)[:2, :2]
    signs = np.sign(matrix)
    if np.abs(signs).sum() != 2 or not signs.any(0).all() or not signs.any(1).all():
        raise ValueError("it is turned by an angle that is no multiple of 90 degrees")
    return None if (signs == np.eye(2)).all() else signs


class WithoutPayload:
    """A file object that gives zeros for the frames' bytes instead of reading them: an MP4's index has all times."""

    def __init__(self, path: str) -> None:
        self.name = path
        self._file = open(path, "rb", buffering=0)  # noqa: SIM115  closed by `close`
        self.seek, self.tell, self.close = self._file.seek, self._file.tell, self._file.close
        self._starts, self._ends = np.empty(0, np.int64), np.empty(0, np.int64)

    def skip(self, spans: list[tuple[int, int]]) -> None:
        """Give zeros for these (position, length) from now on."""
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
