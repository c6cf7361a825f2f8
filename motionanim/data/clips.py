"""Clips cut from video files, as every real data source yields them; the sources differ in how they list files."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from motionanim.data.file_lists import weighted_roots
from motionanim.data.latents.prepared import PreparedLatents
from motionanim.data.order import Buckets, Order, Rows
from motionanim.data.prepare.shots import kept_borders, starts_within
from motionanim.data.rejections import FileItems, Rejections
from motionanim.data.stream import StreamData, as_float, rng
from motionanim.data.video import Video, VideoError
from motionanim.data.video.index import content_key, kept_path
from motionanim.data.video.sizes import known_sizes
from motionanim.types import ClipBatch

logger = logging.getLogger(__name__)


class FlowEstimator(Protocol):
    """Frames (T, 3, H, W) float32 in [-1, 1] to flow (T-1, 2, H, W) in px per frame; `name` identifies it in keys."""

    name: str

    def __call__(self, frames: Tensor) -> Tensor: ...


@dataclass(kw_only=True, eq=False, repr=False)
class VideoClips(FileItems[ClipBatch]):
    """Clips of `num_frames` from video files, with their optical flow: frames uint8 (T, H, W, 3), flow float16.

    Flow is estimated on frames that are resized but not yet cropped, so that motion into the crop is seen and one
    cached flow serves every crop. A clip starts at any tick of the video's frame grid (`Video.grid`) from which it lies
    within one shot, as far as `motionanim.data.prepare` has looked for shots.
    """

    root: Path | Sequence[Path]  # folder that the names are relative to, or those of a `Pool`
    names: Sequence[str]
    num_frames: int  # T, at least 2
    height: int  # px
    width: int  # px
    fps: float  # wanted frames per second; an item says which rate the file gave
    stride: int | None  # take every stride-th frame of the file instead; None follows `fps`
    seed: int
    random: bool  # True draws file, start and crop from (seed, position); False takes file `position`, middle, centre
    flow_estimator: FlowEstimator
    flow_cache: str | Path  # filled by `motionanim.data.prepare`: what it lacks is estimated, or taken for one shot
    rejections: Rejections
    shapes: Buckets | None = None  # a clip has the shape of these nearest to its video's; None: all height x width
    _told: bool = field(default=False, init=False)  # that a flow is not in the cache
    _ordered: Sequence[str] | None = field(default=None, init=False)  # the names that `order` is of

    def __post_init__(self) -> None:
        if self.num_frames < 2 or self.height < 1 or self.width < 1:
            size = f"{self.num_frames} frames of {self.height}x{self.width}"
            raise ValueError(f"{size}: at least 2 frames of 1x1 px are needed")
        self.flow_cache = Path(self.flow_cache)
        if isinstance(self.root, str):
            self.root = Path(self.root)

    def path(self, name: str) -> Path:
        if isinstance(self.root, Path):
            return super().path(name)
        number, _, inside = name.partition("/")
        return self.root[int(number)] / inside

    @property
    def order(self) -> Order:
        """Of random clips: made when it is needed, because a resumed run may take an earlier list of names."""
        self._take_names()
        return self._order

    @property
    def numbers(self) -> np.ndarray | None:
        """(N,) the number of each video's shape; None if all clips have one shape."""
        self._take_names()
        return self._numbers

    def _take_names(self) -> None:
        if self._ordered is self.names:
            return
        self._numbers, rows = None, None
        if self.shapes is not None:
            paths = (self.path(self.names[index]) for index in range(len(self.names)))
            sizes = known_sizes(paths, len(self.names), self.flow_cache / "sizes.txt")
            self._numbers = self.shapes.numbers(sizes)
            rows = Rows(self._numbers, self.shapes.row)
        sizes, weights = getattr(self.names, "sizes", [len(self.names)]), self.weights or [1]
        self._order, self._ordered = Order(self.seed, sizes, weights, rows=rows), self.names

    # What `StreamData` reads.

    @property
    def weights(self) -> list[int] | None:
        return getattr(self.names, "weights", None)

    @property
    def row(self) -> int | None:
        return self.shapes and self.shapes.row

    @property
    def buckets(self) -> str | None:
        return self.shapes and self.shapes.fingerprint(self.numbers)

    def shape_number(self, position: int) -> int:
        """The number of a clip's shape, with `shapes`."""
        return self.order.shape(position) if self.random else int(self.numbers[position])

    def load(self, path: Path, position: int) -> ClipBatch:
        """Cut clip `position` from the file `path`; raises VideoError."""
        generator = rng(self.seed, position) if self.random else None
        video = Video(path)
        indices, fps = clip_grid(video, self.num_frames, fps=self.fps, stride=self.stride)
        height, width = self.height, self.width
        if self.shapes is not None:
            height, width = self.shapes.shapes[self.shape_number(position)]
        content, size = content_key(path), {"height": height, "width": width}
        options = {"estimator": self.flow_estimator.name, "fps": self.fps, "stride": self.stride, **size}
        cached = open_flow(flow_path(self.flow_cache, content, **options))
        if cached is not None and len(cached) + 1 < self.num_frames:
            cached = None  # kept by a `prepare` for shorter clips
        if cached is None:
            self._warn_once(path)
        usable = len(indices) if cached is None else len(cached) + 1
        starts = starts_within(indices[:usable], self.num_frames, kept_borders(self.flow_cache, content))
        if not len(starts):
            raise VideoError(path, f"has no shot of {self.num_frames} frames at {fps:.3g} a second")
        start = int(starts[_draw(len(starts) - 1, generator)])
        chosen = indices[start : start + self.num_frames]
        whole = video.read(chosen, **size) if cached is None else None
        # A cached flow has the shape of the resized frames, so the crop is known before the frames are read.
        shape = cached.shape[2:] if whole is None else whole.shape[1:3]
        top, left = _draw(shape[0] - height, generator), _draw(shape[1] - width, generator)
        rows, columns = slice(top, top + height), slice(left, left + width)
        if whole is None:
            pixels = video.read(chosen, **size, crop=(rows, columns))
            flow = torch.from_numpy(cached[start : start + self.num_frames - 1, :, rows, columns])
        else:
            pixels = whole[:, rows, columns]
            flow = self.flow_estimator(as_float(torch.from_numpy(whole)))[..., rows, columns].half().contiguous()
        return ClipBatch(
            frames=torch.from_numpy(pixels),
            flow=flow,
            fps=torch.tensor(fps, dtype=torch.float32),
            position=torch.tensor(position, dtype=torch.int64),
        )

    def _warn_once(self, path: Path) -> None:
        """Warn once, in one loader process, that flow is estimated while training."""
        worker = get_worker_info()
        if not self._told and (worker is None or worker.id == 0):
            logger.warning(
                "no flow of %s in %s: it is estimated while training, which may be slow; python -m "
                "motionanim.data.prepare with the same scale and flow_estimator (%s) fills it",
                path, self.flow_cache, self.flow_estimator.name,
            )  # fmt: skip
        self._told = True


def _draw(room: int, generator: np.random.Generator | None) -> int:
    """An offset in [0, room]: random, or the middle without a generator."""
    return room // 2 if generator is None else int(generator.integers(room + 1))


def clip_grid(video: Video, num_frames: int, *, fps: float, stride: int | None) -> tuple[np.ndarray, float]:
    """`Video.grid` of a video that is long enough for a clip of `num_frames`; raises VideoError if it is not."""
    indices, rate = video.grid(fps=fps, stride=stride)
    if len(indices) < num_frames:
        reason = f"is too short: {len(indices)} frames at {rate:.3g} a second, {num_frames} are needed"
        raise VideoError(video.path, reason)
    return indices, rate


def flow_path(
    folder: Path, content: str, *, estimator: str, height: int, width: int, fps: float, stride: int | None
) -> Path:
    """Where the flow of the video with a `content_key` is cached: the name changes with every setting."""
    return kept_path(folder, f"{content}|{estimator}|{height}|{width}|{fps}|{stride}", ".npy")


def open_flow(path: Path) -> np.ndarray | None:
    """A cached flow (K-1, 2, H', W') float16, mapped rather than read; None if there is none."""
    try:
        # Mapped copy-on-write: torch wants arrays that it could write to, and the file must not change.
        return np.load(path, mmap_mode="c", allow_pickle=False)
    except FileNotFoundError:
        return None


def clip_data(
    *, items: str, latents: str | Path | None, reading: Mapping[str, Any], shapes: Buckets | None = None, **options: Any
) -> StreamData:
    """Training and validation clips: `VideoClips` with what `file_data` takes; `root` may be folders with weights.

    Args:
        items: Must be `clips`.
        latents: Folder or URL of latents by motionanim.data.encode to train on instead; validation reads the videos.
        reading: How `PreparedLatents` reads them.
        shapes: Of the clips; None for height x width.

    Raises:
        ValueError: If the experiment reads another kind of item than `clips`, or the latents do not fit.
    """
    if items != "clips":
        raise ValueError(f"these videos give clips, the experiment reads {items}: use data=synthetic or data=holynski")
    if isinstance(options["root"], Mapping):
        options["root"] = list(weighted_roots(options["root"]))
    data = file_data(VideoClips, shapes=shapes, **options)
    if latents is not None:
        size = {name: options[name] for name in ("num_frames", "height", "width")}
        data.train = PreparedLatents(latents, seed=options["seed"], shapes=shapes, **size, **reading)
    return data


def file_data(
    dataset: Callable[..., Dataset],
    *,
    names: tuple[Sequence[str], Sequence[str]],
    val_clips: int,
    rejected: str | Path,
    max_rejected_share: float,
    batch_size: int,
    num_workers: int,
    **options: Any,
) -> StreamData:
    """A training and a validation dataset over files, with one shared list of unusable files.

    Args:
        dataset: Makes a dataset from `names`, `random`, `rejections` and `options`.
        names: Training and validation files.
        val_clips: Most files to validate on, at least 1; a longer list is sampled at equal distances.
        rejected: CSV file of the unusable files.
        max_rejected_share: Share of all files that may be unusable, in [0, 1].
        batch_size, num_workers: As `StreamData` takes them.

    Raises:
        ValueError: If a number is out of range.
    """
    if val_clips < 1:
        raise ValueError(f"val_clips={val_clips}: must be at least 1")
    trained, validated = names
    count = len(validated)
    if count > val_clips:
        validated = [validated[i * count // val_clips] for i in range(val_clips)]
    options["rejections"] = Rejections(rejected, total=sum(map(len, names)), max_share=max_rejected_share)
    train = dataset(names=trained, random=True, **options)
    val = dataset(names=validated, random=False, **options)
    return StreamData(train=train, val=val, batch_size=batch_size, num_workers=num_workers)


def check_root(root: str | Path | None) -> Path:
    """The root folder; raises ValueError if it is not given or no folder."""
    if root is None:
        raise ValueError("no folder of videos given: pass data.root=FOLDER (root=FOLDER to prepare)")
    if isinstance(root, Mapping):
        raise ValueError(f"root={dict(root)}: several folders with weights are for data=folder; pass one folder")
    if not Path(root).is_dir():
        raise ValueError(f"root={root} is not a folder: pass one that exists")
    return Path(root)
