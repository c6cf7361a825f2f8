"""The rules by which every video, true or made, becomes frames to score."""

import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from motionanim.data.video import Video, VideoError
from motionanim.evaluation.folders.source import PictureFolder, open_source
from motionanim.media.image_io import from_uint8

logger = logging.getLogger(__name__)

UNKNOWN_RATE = 8.0  # frames per second at which pictures are shown if nothing tells their rate


class Reading(NamedTuple):
    """Which frames of a file, at which size."""

    num_frames: int
    height: int
    width: int
    # Takes the frames nearest in time to 0, 1/fps, 2/fps ...; None takes the file's first frames. Pictures without a
    # known rate are taken one after another.
    fps: float | None
    shape: Literal["stretch", "crop"]  # for another aspect ratio: stretch, or resize to cover and crop at the centre
    slower: Literal["repeat", "refuse"] = "repeat"  # what to do with a file of a lower rate than `fps`

    @property
    def identity(self) -> dict[str, Any]:
        """The values that determine the frames. `slower` does not: a file that is refused has no frames."""
        return {name: value for name, value in self._asdict().items() if name != "slower"}

    @property
    def stated(self) -> dict[str, Any]:
        """The same for reports."""
        taken = "the first frames" if self.fps is None else f"the frames nearest in time at {self.fps:g} a second"
        return {
            **self._asdict(), "sizes": [f"{self.width}x{self.height}"], "taken": taken, "notes": [],
        }  # fmt: skip

    def indices(self, video: Video | PictureFolder, *, rate: float | None = None) -> np.ndarray:
        """(num_frames,) indices of frames in the file.

        Args:
            rate: True frames per second of the content; None takes the file's own rate.

        Raises:
            VideoError: If the file is too short, or has a lower rate than `fps` and `slower` is "refuse".
        """
        places = self.available(video, rate=rate)[: self.num_frames]
        shown = rate or self.own_rate(video)
        if len(places) < self.num_frames:
            at = "" if self.fps is None else f" at {self.fps:g} a second"
            seconds = video.info.seconds * video.info.fps / shown
            raise VideoError(
                video.path,
                f"has {len(places)} frames{at} ({seconds:.2f} s), and the benchmark needs "
                f"{self.num_frames}: lower benchmark.reading.num_frames, or leave the clip out of every folder",
            )
        repeated = len(places) - len(np.unique(places))
        if repeated:
            text = (
                f"has {repeated} frames too few among {self.num_frames} at {self.fps:g} a second (its rate is "
                f"{shown:.3g})"
            )
            if self.slower == "refuse":
                raise VideoError(
                    video.path, f"{text}: lower benchmark.reading.fps, or set benchmark.reading.slower=repeat"
                )
            logger.warning("%s %s: frames are repeated", video.path, text)
        return places

    def check(self, video: Video | PictureFolder, *, rate: float | None = None) -> bool:
        """Decode the last frame that is read, to find a file that was cut short. Returns whether frames repeat.

        Args, Raises: As `indices`, or a VideoError if the file is damaged.
        """
        places = self.indices(video, rate=rate)
        video.read(places[-1:], height=self.height, width=self.width)
        return len(set(places.tolist())) < len(places)

    def available(self, video: Video | PictureFolder, *, rate: float | None = None) -> np.ndarray:
        """Indices of all frames that could be taken from a file, more than `num_frames` or fewer."""
        if self.fps is None:
            return np.arange(video.info.num_frames)
        stretch = (rate or self.own_rate(video)) / video.info.fps
        most = int(video.info.seconds / stretch * self.fps) + 2
        return video.nearest(np.arange(most) / self.fps * stretch)

    def own_rate(self, video: Video | PictureFolder) -> float:
        """Frames per second of a file; of pictures, which do not tell it, those of the frames that are read."""
        return (self.fps or UNKNOWN_RATE) if isinstance(video, PictureFolder) else video.info.fps

    def rate(self, path: Path, rate: float | None = None) -> float:
        """Frames per second of the frames that are read from a file, whose true rate may be given."""
        return self.fps or rate or self.own_rate(open_source(path))


def read_clip(path: Path | str, reading: Reading, *, rate: float | None = None) -> Tensor:
    """(num_frames, 3, height, width) in [-1, 1] of a video file or a folder of pictures.

    Stretching is bilinear with antialiasing, from full-size frames. The result is rounded to 8 bits.

    Raises:
        VideoError: If the file cannot be read or is too short.
        ValueError: If `shape` is neither stretch nor crop.
    """
    video = open_source(path)
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
