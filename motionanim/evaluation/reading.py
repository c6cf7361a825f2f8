"""The protocol by which every video, true or made, becomes frames to score."""

import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from motionanim.data.video import Video, VideoError
from motionanim.media.image_io import from_uint8

logger = logging.getLogger(__name__)


class Reading(NamedTuple):
    """Which frames of a file, at which size."""

    num_frames: int
    height: int
    width: int
    fps: float | None  # takes the frames nearest in time to 0, 1/fps, 2/fps ...; None takes the file's first frames
    shape: Literal["stretch", "crop"]  # for another aspect ratio: stretch, or resize to cover and crop at the centre
    slower: Literal["repeat", "refuse"] = "repeat"  # what to do with a file of a lower rate than `fps`

    @property
    def identity(self) -> dict[str, Any]:
        """The values that determine the frames. `slower` does not: a file that is refused has no frames."""
        return {name: value for name, value in self._asdict().items() if name != "slower"}

    def indices(self, video: Video, *, rate: float | None = None) -> np.ndarray:
        """(num_frames,) indices of frames in the file.

        Args:
            rate: True frames per second of the content; None takes the file's own rate.

        Raises:
            VideoError: If the file is too short, or has a lower rate than `fps` and `slower` is "refuse".
        """
        if self.fps is None:
            places = np.arange(min(self.num_frames, video.info.num_frames))
        else:
            stretch = 1.0 if rate is None else rate / video.info.fps
            places = video.nearest(np.arange(self.num_frames) / self.fps * stretch)
        if len(places) < self.num_frames:
            at = "" if self.fps is None else f" at {self.fps:g} a second"
            raise VideoError(
                video.path,
                f"has {len(places)} frames{at} ({video.info.seconds:.2f} s), and the benchmark needs "
                f"{self.num_frames}: lower benchmark.reading.num_frames, or leave the clip out of every folder",
            )
        repeated = len(places) - len(np.unique(places))
        if repeated:
            text = (
                f"has {repeated} frames too few among {self.num_frames} at {self.fps:g} a second (its rate is "
                f"{rate or video.info.fps:.3g})"
            )
            if self.slower == "refuse":
                raise VideoError(
                    video.path, f"{text}: lower benchmark.reading.fps, or set benchmark.reading.slower=repeat"
                )
            logger.warning("%s %s: frames are repeated", video.path, text)
        return places

    def rate(self, path: Path) -> float:
        """Frames per second of the frames that are read."""
        return Video(path).info.fps if self.fps is None else self.fps


def read_clip(path: Path | str, reading: Reading, *, rate: float | None = None) -> Tensor:
    """(num_frames, 3, height, width) in [-1, 1] of a video file.

    Stretching is bilinear with antialiasing, from full-size frames. The result is rounded to 8 bits.

    Raises:
        VideoError: If the file cannot be read or is too short.
        ValueError: If `shape` is neither stretch nor crop.
    """
    video = Video(path)
    indices = reading.indices(video, rate=rate)
    height, width = reading.height, reading.width
    if reading.shape == "stretch":
        size = video.size()
    elif reading.shape == "crop":
        size = (height, width)
    else:
        raise ValueError(f"shape={reading.shape!r}: must be stretch or crop")
    frames = torch.from_numpy(video.read(indices, height=size[0], width=size[1])).permute(0, 3, 1, 2)
    if reading.shape == "crop":
        top, left = (frames.shape[2] - height) // 2, (frames.shape[3] - width) // 2
        frames = frames[:, :, top : top + height, left : left + width]
    elif frames.shape[2:] != (height, width):
        # One frame at a time, because 125 large frames as float would take gigabytes.
        frames = torch.cat(
            [F.interpolate(f[None].float(), size=(height, width), mode="bilinear", antialias=True) for f in frames]
        ).round()
    return from_uint8(frames)
