"""Benchmarks: clips with the motion that a method is asked to make of their first frame.

A benchmark has unique `ids`, `case(i)`, and `identity(i)`: a hash of all that determines case i, without making it.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from motionanim.data.folder import folder_names
from motionanim.data.stream import rng
from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.data.video import Video
from motionanim.evaluation.manifest import manifest_clips
from motionanim.evaluation.reading import Reading, read_clip
from motionanim.files import file_sha256, text_sha256
from motionanim.motion.drawing import Arrow
from motionanim.motion.example_arrows import choose_starts, follow, thinned
from motionanim.motion.flow import with_strength


class Case(NamedTuple):
    """One question to every method: make frame 0 move like this."""

    clip: str
    frames: Tensor  # (T, 3, H, W) in [-1, 1]: the true clip; methods see frame 0 only
    flow: Tensor  # (T-1, 2, H, W) px per frame: the motion asked for
    mask: Tensor  # (1, H, W) in {0, 1}; 1 where pixels may move
    arrows: tuple[Arrow, ...]  # a few points of `flow`, as a user would draw them
    fps: float
    own_motion: bool  # False where another motion is asked for than the clip's: then it is no truth to compare with


class Benchmark(Protocol):
    name: str
    ids: Sequence[str]
    reading: Reading
    request: "Request"
    settings: tuple[Any, ...]  # all that determines its cases but their number and, of files, their content
    place: str  # the folder of its files
    repeated: int  # clips that have fewer frames a second than is read: some are shown twice

    def identity(self, index: int) -> str: ...

    def case(self, index: int) -> Case: ...


def digest(*parts: Any) -> str:
    """Sixteen hex digits of the parts' JSON."""
    return text_sha256(json.dumps(parts, sort_keys=True, default=str))[:16]


class Request:
    """How a clip's own motion becomes what methods are asked for.

    Args:
        max_arrows: A clip gets 1 to this many arrows, along the motion from points of its movable region.
        span: Frames that an arrow spans at most.
        strength: On the scale of Fig. 7, for all clips alike; None keeps the clip's own.
        reverse: True asks for the opposite motion.
        median_strength: The training set's, as a share of the width per frame.
        seed: Of the arrows.
    """

    def __init__(
        self,
        *,
        max_arrows: int,
        span: int,
        strength: float | None,
        reverse: bool,
        median_strength: float,
        seed: int,
    ) -> None:
        if max_arrows < 1 or span < 2:
            raise ValueError(f"max_arrows={max_arrows}, span={span}: must be at least 1 arrow and 2 frames")
        self.max_arrows, self.span, self.strength = max_arrows, span, strength
        self.reverse, self.median_strength, self.seed = reverse, median_strength, seed

    @property
    def identity(self) -> dict[str, Any]:
        # Rows of an earlier rule of `with_strength` are no rows of this one.
        return vars(self) | ({} if self.strength is None else {"strength_of": "sum |F|^2 / sum |F|"})

    @property
    def label(self) -> str:
        """What it changes, for the names of rows."""
        strength = "" if self.strength is None else f", strength {self.strength:g}"
        return strength + (", reversed" if self.reverse else "")

    def __call__(self, clip: str, index: int, frames: Tensor, flow: Tensor, mask: Tensor, fps: float) -> Case:
        if self.reverse:
            flow = -flow
        flow = with_strength(flow, self.strength, median_strength=self.median_strength)
        mean = flow.mean(0)
        arrows = []
        for start in choose_starts(mean, mask, rng(self.seed, index), max_arrows=self.max_arrows):
            way = follow(mean, start, self.span - 1, mask)
            # It is as fast as the motion, however soon the moving region ends.
            arrows.append(Arrow(tuple(map(tuple, thinned(way).tolist())), (self.span - 1) / (len(way) - 1)))
        own = self.strength is None and not self.reverse
        return Case(clip, frames, flow, mask, tuple(arrows), fps, own)


class SyntheticBenchmark:
    """Held-out clips of the procedural world, whose motion is known exactly.

    Args:
        n: How many clips; a larger number contains the smaller.
        reading: Number, size and rate of the frames, which are rendered so.
        world: seed, moving_camera and split of `SyntheticClips`.
    """

    def __init__(self, *, name: str, n: int, reading: Reading, world: dict[str, Any], request: Request) -> None:
        self.name, self.reading, self.request = name, reading, request
        if not isinstance(n, int) or n < 1:
            raise ValueError(f"n={n}: must be at least 1 clip")
        if reading.fps is None:
            raise ValueError("benchmark.reading.fps=null: rendered clips need a rate, such as 7")
        size = {"num_frames": reading.num_frames, "height": reading.height, "width": reading.width, "fps": reading.fps}
        self.clips = SyntheticClips(length=n, **size, **world)
        self.ids = [f"{index:06}" for index in range(n)]
        self.settings = (name, size, world, request.identity)

    place, repeated = "", 0

    def identity(self, index: int) -> str:
        return digest(self.settings, index)

    def case(self, index: int) -> Case:
        clip = self.clips.clip(index)
        return self.request(self.ids[index], index, clip.frames, clip.flow, clip.mask, self.clips.fps)


class VideoBenchmark:
    """Real clips. Their motion is estimated from their own frames.

    Args:
        root: Folder of videos.
        manifest: File that names and hashes the videos of `root` that belong to it; None takes every video.
        n: Take the first n clips; None takes all. A folder with fewer is an error.
        reading: How frames are taken from a file.
        flow_estimator: Frames (T, 3, H, W) to flow (T-1, 2, H, W).
        min_motion: A pixel may move if its mean speed over the clip is above this share of the width per frame.

    Raises:
        ValueError: If there are too few clips, two with one name, or one that is shorter than `num_frames`.
    """

    def __init__(
        self,
        *,
        name: str,
        root: str,
        manifest: str | None,
        n: int | None,
        reading: Reading,
        flow_estimator: Callable[[Tensor], Tensor],
        min_motion: float,
        request: Request,
    ) -> None:
        self.name, self.reading, self.request = name, reading, request
        self.estimate, self.min_motion, self._hashes, self.repeated = flow_estimator, min_motion, {}, 0
        if n is not None and n < 1:
            raise ValueError(f"n={n}: must be at least 1 clip, or null for all")
        self.place = str(Path(root).resolve())
        if manifest is None:
            found = [(str(Path(file).with_suffix("")), Path(root, file)) for file in folder_names(root)]
        else:
            found = manifest_clips(manifest, root, n=n)
        if n is not None and len(found) < n:
            raise ValueError(f"n={n}: {root} has {len(found)} clips; lower it, or null for all")
        self.ids, self.paths = [clip for clip, _ in found[:n]], [path for _, path in found[:n]]
        twice = sorted({clip for clip in self.ids if self.ids.count(clip) > 1})
        if twice:
            raise ValueError(f"{root} has two clips named {', '.join(twice[:5])}: names without suffix must differ")
        for path in self.paths:
            # Only indices are read, so that a long run does not fail at its last clip.
            places = reading.indices(Video(path))
            self.repeated += len(set(places.tolist())) < len(places)
        self.settings = (name, reading.identity, flow_estimator.name, min_motion, request.identity)

    def identity(self, index: int) -> str:
        if index not in self._hashes:
            self._hashes[index] = file_sha256(self.paths[index])
        return digest(self.settings, index, self._hashes[index])

    def case(self, index: int) -> Case:
        frames = read_clip(self.paths[index], self.reading)
        flow = self.estimate(frames)
        speed = torch.linalg.vector_norm(flow, dim=1).mean(0, keepdim=True)
        mask = (speed > self.min_motion * flow.shape[-1]).float()
        return self.request(self.ids[index], index, frames, flow * mask, mask, self.reading.rate(self.paths[index]))
