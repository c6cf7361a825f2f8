"""Benchmarks: clips, each with the motion that methods are to make of its first frame."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from motionanim.data.stream import rng
from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.evaluation.folders.side import read_side
from motionanim.evaluation.folders.source import find_sources, open_source, source_sha256
from motionanim.evaluation.manifest import manifest_clips
from motionanim.evaluation.reading import Reading, read_clip
from motionanim.files import text_sha256
from motionanim.motion.drawing import Arrow
from motionanim.motion.example_arrows import choose_starts, follow, thinned
from motionanim.motion.flow import with_strength


class EvalClip(NamedTuple):
    """A clip of a benchmark with the motion that is requested of its frame 0."""

    id: str
    frames: Tensor  # (T, 3, H, W) in [-1, 1]: the true clip; methods see only frame 0
    flow: Tensor | None  # (T-1, 2, H, W) px per frame: the requested motion; None if videos are given, not asked for
    mask: Tensor | None  # (1, H, W) in {0, 1}; 1 where pixels may move; None as `flow`
    arrows: tuple[Arrow, ...]  # a few points of `flow`, as a user would draw them
    fps: float
    own_motion: bool  # False if `frames` are no truth to compare with: another motion is requested, or none is paired


class TrueClips(Protocol):
    """The true clips of a comparison of sets, which has no pairs of a true and a made clip."""

    ids: Sequence[str]
    identities: Sequence[str]  # as `Benchmark.identity`

    def features(self, extractor: Any, get: Callable[[Any, Tensor], Tensor]) -> Tensor:
        """(N, dim); `get` maps an extractor and the frames of one clip to its features."""


class Benchmark(Protocol):
    name: str
    ids: Sequence[str]  # unique
    left_out: Sequence[str]  # further clips of the folder, beyond the first n
    reading: Reading  # of the number of frames; the sizes of clips may differ
    readings: Mapping[str, Reading]  # of each clip, by its id
    stated: dict[str, Any]  # for reports: fields of `Reading`, None where clips differ; sizes, taken, notes in words
    truth: TrueClips | None  # what all clips together are compared with; None if each has its own true clip
    request: "Request | None"  # None if no motion is requested
    settings: tuple[Any, ...]  # all that determines the clips, except their number and the content of files
    place: str  # folder of the files; "" without files
    repeated: int  # clips with a lower frame rate than is read, so that some of their frames are repeated
    procedural: bool  # whether the clips are of the procedural world

    def identity(self, index: int) -> str:
        """A hash of all that determines a clip, without making it."""

    def clip(self, index: int) -> EvalClip: ...

    def of(self, folder: str) -> "Benchmark":
        """The clips that the videos in a folder are scored on: these, except in a comparison of sets."""


def digest(*parts: Any) -> str:
    """The first 16 hex digits of the SHA-256 of the parts as JSON."""
    return text_sha256(json.dumps(parts, sort_keys=True, default=str))[:16]


@dataclass(kw_only=True)
class Request:
    """Turns a clip's own motion into the requested motion.

    The names of the attributes are part of the identity of every row.

    Raises:
        ValueError: If `max_arrows` is below 1 or `span` below 2.
    """

    max_arrows: int  # a clip gets 1 to this many arrows, which follow the motion from points of its movable region
    span: int  # the most frames that an arrow spans
    strength: float | None  # motion strength on the scale of Fig. 7, the same for all clips; None keeps each clip's own
    reverse: bool  # True requests the opposite motion
    median_strength: float  # median strength of the training set, as a share of the width per frame
    seed: int  # of the arrows

    def __post_init__(self) -> None:
        if self.max_arrows < 1 or self.span < 2:
            raise ValueError(f"max_arrows={self.max_arrows}, span={self.span}: must be at least 1 arrow and 2 frames")

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


class _ForAll:
    """A benchmark that all methods share."""

    truth = None

    def of(self, folder: str) -> Self:
        return self


class SyntheticBenchmark(_ForAll):
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
        self.readings, self.stated = dict.fromkeys(self.ids, reading), reading.stated
        self.settings = (name, size, world, request.identity)

    place, repeated, left_out, procedural = "", 0, (), True

    def identity(self, index: int) -> str:
        return digest(self.settings, index)

    def clip(self, index: int) -> EvalClip:
        clip = self.clips.clip(index)
        return self.request(self.ids[index], index, clip.frames, clip.flow, clip.mask, self.clips.fps)


class VideoBenchmark(_ForAll):
    """Real clips, whose motion is estimated from their own frames.

    Args:
        root: Folder of videos, or of folders of pictures, whose rate may be given as `fps` in root/method.json.
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
        self._rate = read_side(root, {}).get("fps") if manifest is None else None
        found = list(find_sources(root).items()) if manifest is None else manifest_clips(manifest, root, n=n)
        if n is not None and len(found) < n:
            raise ValueError(f"n={n}: {root} has {len(found)} clips; lower it, or null for all")
        self.ids, self.paths = [clip for clip, _ in found[:n]], [path for _, path in found[:n]]
        self.left_out = [clip for clip, _ in found[len(self.ids) :]]
        for path in self.paths:
            # Checked here, so that a long run does not fail at its last clip. This reads no frames.
            places = reading.indices(open_source(path), rate=self._rate)
            self.repeated += len(set(places.tolist())) < len(places)
        self.readings, self.stated = dict.fromkeys(self.ids, reading), reading.stated
        self.settings = (name, reading.identity, flow_estimator.name, min_motion, request.identity)
        if self._rate is not None:
            self.settings += (self._rate,)

    def identity(self, index: int) -> str:
        if index not in self._hashes:
            self._hashes[index] = source_sha256(self.paths[index])
        return digest(self.settings, index, self._hashes[index])

    def clip(self, index: int) -> EvalClip:
        frames = read_clip(self.paths[index], self.reading, rate=self._rate)
        flow = self.estimate(frames)
        speed = torch.linalg.vector_norm(flow, dim=1).mean(0, keepdim=True)
        mask = (speed > self.min_motion * flow.shape[-1]).float()
        fps = self.reading.rate(self.paths[index], self._rate)
        return self.request(self.ids[index], index, frames, flow * mask, mask, fps)
