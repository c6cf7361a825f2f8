"""Benchmarks: clips, each with the motion that methods are to make of its first frame."""

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


class EvalClip(NamedTuple):
    """A clip of a benchmark with the motion that is requested of its frame 0."""

    id: str
    frames: Tensor  # (T, 3, H, W) in [-1, 1]: the true clip; methods see only frame 0
    flow: Tensor  # (T-1, 2, H, W) px per frame: the requested motion
    mask: Tensor  # (1, H, W) in {0, 1}; 1 where pixels may move
    arrows: tuple[Arrow, ...]  # a few points of `flow`, as a user would draw them
    fps: float
    own_motion: bool  # False if the requested motion is not the clip's own; then `frames` are no truth to compare with


class Benchmark(Protocol):
    name: str
    ids: Sequence[str]  # unique
    reading: Reading
    request: "Request"
    settings: tuple[Any, ...]  # all that determines the clips, except their number and the content of files
    place: str  # folder of the files; "" without files
    repeated: int  # clips with a lower frame rate than is read, so that some of their frames are repeated
    procedural: bool  # whether the clips are of the procedural world

    def identity(self, index: int) -> str:
        """A hash of all that determines a clip, without making it."""

    def clip(self, index: int) -> EvalClip: ...


def digest(*parts: Any) -> str:
    """The first 16 hex digits of the SHA-256 of the parts as JSON."""
    return text_sha256(json.dumps(parts, sort_keys=True, default=str))[:16]


class Request:
    """Turns a clip's own motion into the requested motion.

    The names of the attributes are part of the identity of every row.

    Args:
        max_arrows: A clip gets 1 to this many arrows, which follow the motion from points of its movable region.
        span: The most frames that an arrow spans.
        strength: Motion strength on the scale of Fig. 7, the same for all clips; None keeps each clip's own.
        reverse: True requests the opposite motion.
        median_strength: Median strength of the training set, as a share of the width per frame.
        seed: Of the arrows.

    Raises:
        ValueError: If `max_arrows` is below 1 or `span` below 2.
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
        # Names the rule of `with_strength`, so that rows of its earlier rule are not reused.
        return vars(self) | ({} if self.strength is None else {"strength_of": "sum |F|^2 / sum |F|"})

    @property
    def label(self) -> str:
        """A suffix for the names of rows: what the request changes."""
        strength = "" if self.strength is None else f", strength {self.strength:g}"
        return strength + (", reversed" if self.reverse else "")

    def __call__(self, clip: str, index: int, frames: Tensor, flow: Tensor, mask: Tensor, fps: float) -> EvalClip:
        if self.reverse:
            flow = -flow
        flow = with_strength(flow, self.strength, median_strength=self.median_strength)
        mean = flow.mean(0)
        arrows = []
        for start in choose_starts(mean, mask, rng(self.seed, index), max_arrows=self.max_arrows):
            way = follow(mean, start, self.span - 1, mask)
            # The path may end early, where the moving region ends; the arrow keeps the speed of the motion.
            arrows.append(Arrow(tuple(map(tuple, thinned(way).tolist())), (self.span - 1) / (len(way) - 1)))
        own = self.strength is None and not self.reverse
        return EvalClip(clip, frames, flow, mask, tuple(arrows), fps, own)


class SyntheticBenchmark:
    """Held-out clips of the procedural world, whose motion is known exactly.

    Args:
        n: Number of clips. A larger benchmark begins with the clips of a smaller one.
        reading: Number, size and rate of the rendered frames.
        world: seed, moving_camera and split of `SyntheticClips`.

    Raises:
        ValueError: If `n` is below 1 or `reading` has no rate.
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

    place, repeated, procedural = "", 0, True

    def identity(self, index: int) -> str:
        return digest(self.settings, index)

    def clip(self, index: int) -> EvalClip:
        clip = self.clips.clip(index)
        return self.request(self.ids[index], index, clip.frames, clip.flow, clip.mask, self.clips.fps)


class VideoBenchmark:
    """Real clips, whose motion is estimated from their own frames.

    Args:
        root: Folder of videos.
        manifest: File that names and hashes the videos of `root` that belong to the benchmark; None takes all videos.
        n: Takes the first n clips; None takes all.
        reading: How frames are taken from a file.
        flow_estimator: Maps frames (T, 3, H, W) to flow (T-1, 2, H, W).
        min_motion: A pixel may move if its mean speed over the clip is above this share of the width per frame.

    Raises:
        ValueError: If there are fewer than n clips or two with one name.
        motionanim.data.video.VideoError: If a clip cannot be read or is too short.
    """

    procedural = False

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
            # Checked here, so that a long run does not fail at its last clip. This reads no frames.
            places = reading.indices(Video(path))
            self.repeated += len(set(places.tolist())) < len(places)
        self.settings = (name, reading.identity, flow_estimator.name, min_motion, request.identity)

    def identity(self, index: int) -> str:
        if index not in self._hashes:
            self._hashes[index] = file_sha256(self.paths[index])
        return digest(self.settings, index, self._hashes[index])

    def clip(self, index: int) -> EvalClip:
        frames = read_clip(self.paths[index], self.reading)
        flow = self.estimate(frames)
        speed = torch.linalg.vector_norm(flow, dim=1).mean(0, keepdim=True)
        mask = (speed > self.min_motion * flow.shape[-1]).float()
        return self.request(self.ids[index], index, frames, flow * mask, mask, self.reading.rate(self.paths[index]))
