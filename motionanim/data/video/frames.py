"""Frames of any video file by FFmpeg's libraries (PyAV), decoded from the nearest key frame that suffices."""

from collections.abc import Callable, Iterator

import av
import numpy as np

from motionanim.data.video.container import VideoError, damage_named, decoded, opened, turn
from motionanim.data.video.index import VideoIndex

MOST_PIXELS = 100_000_000  # of a frame, because a damaged header can claim any size


def read_frames(path: str, index: VideoIndex, places: np.ndarray) -> Iterator[tuple[np.ndarray, bool]]:
    """Decode the frames at `places` (K,), increasing.

    Yields:
        A picture (H, W, 3) uint8 RGB, turned and mirrored as it is shown, and whether its sides were swapped, because
        its pixels' aspect then is swapped as well.

    Raises:
        VideoError: If a frame cannot be decoded.
    """
    rgb = _Rgb()
    with damage_named(path):
        if index.starts is None:
            found = _in_order(path, places, "frame", lambda number, _: number)
        else:
            found = _sought(path, index.labels[places], index.starts[places])
        for frame in found:
            yield _turned(rgb(frame), turn(frame))


def _in_order(
    path: str, wanted: np.ndarray, kind: str, of: Callable[[int, av.VideoFrame], int | None]
) -> Iterator[av.VideoFrame]:
    """The frames whose number or time, by `of(number, frame)`, is `wanted`, by decoding from the beginning."""
    done = 0
    with opened(path) as (container, stream):
        for number, frame in enumerate(decoded(container, stream)):
            if of(number, frame) == wanted[done]:
                yield frame
                done += 1
                if done == len(wanted):
                    return
    raise VideoError(path, f"is damaged: {kind} {wanted[done]} cannot be decoded")


def _sought(path: str, labels: np.ndarray, starts: np.ndarray) -> Iterator[av.VideoFrame]:
    done = 0
    with opened(path) as (container, stream):
        while done < len(labels):
            end = int(np.searchsorted(starts, starts[done], side="right"))
            container.seek(int(starts[done]), stream=stream)
            for frame in _after_seek(container, stream, int(starts[done])):
                if frame.pts == labels[done]:
                    yield frame
                    done += 1
                if done == end or frame.pts >= labels[done]:
                    break
            if done < end:
                break
    if done < len(labels):  # the container's own index led elsewhere, or a key frame was none
        yield from _in_order(path, labels[done:], "its frame at timestamp", lambda _, frame: frame.pts)


def _after_seek(container: av.container.InputContainer, stream: av.VideoStream, start: int) -> Iterator[av.VideoFrame]:
    """Frames from a packet at or before `start` on, up to a damaged one; none if the seek led past `start`."""
    first = True
    for packet in container.demux(stream):
        if first and packet.size:
            first = False
            if (packet.pts if packet.dts is None else packet.dts) > start:
                return
        try:
            frames = packet.decode()
        except av.FFmpegError:
            return
        for frame in frames:
            if not frame.is_corrupt and frame.pts is not None:
                yield frame


class _Rgb:
    """Converts frames to (H, W, 3) uint8 by ffmpeg's filter; PyAV's own differs for 10 bits and interlacing."""

    def __init__(self) -> None:
        self._kind, self._graph = None, None

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        if frame.width * frame.height > MOST_PIXELS:
            raise ValueError(f"its frames have {frame.width}x{frame.height} px")
        kind = frame.width, frame.height, frame.format.name
        if kind != self._kind:
            graph = av.filter.Graph()
            source = graph.add_buffer(
                width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
            )
            graph.link_nodes(
                source, graph.add("scale", "interl=0"), graph.add("format", "rgb24"), graph.add("buffersink")
            ).configure()
            self._kind, self._graph = kind, graph
        self._graph.push(frame)
        return self._graph.pull().to_ndarray()


def _turned(picture: np.ndarray, signs: np.ndarray | None) -> tuple[np.ndarray, bool]:
    """The picture turned as `turn` says, and whether its sides were swapped."""
    if signs is None:
        return picture, False
    swapped = bool(signs[0, 1])
    if swapped:
        picture = picture.transpose(1, 0, 2)
    across, down = signs.sum(0)  # each column holds one sign: that of x, that of y
    return np.ascontiguousarray(picture[:: int(down), :: int(across)]), swapped
