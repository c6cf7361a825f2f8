"""Eulerian-motion clips (Holynski et al., CVPR 2021): an image, the video that it starts, and its steady flow.

A clip's files are `00001_00030_input.jpg`, `00001_00030_gt.mp4` and `00001_00030_motion.pth`. The first number is the
video, the second the frame where the clip begins (0, 30 to 120). Videos up to 00979 train, the rest validate. A clip
has 60 frames, 30 a second; its flow is in px from one frame to the next.
"""

import io
import pickle
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import cv2
import lz4.frame
import numpy as np
import torch
from torch import Tensor

from motionanim.data.clips import check_root, clip_data, file_data
from motionanim.data.file_lists import Names
from motionanim.data.order import Buckets, Order
from motionanim.data.rejections import FileItems, Rejections
from motionanim.data.stream import StreamData, as_float, rng
from motionanim.data.video import VideoError, cover_size
from motionanim.motion.flow import resize_flow
from motionanim.types import FlowPairBatch, Hint

# Errors that a damaged pickle or lz4 frame raises.
_DAMAGE = (
    pickle.UnpicklingError, OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError, AttributeError,
    MemoryError,
)  # fmt: skip
_LAST_TRAIN = 979  # number of the last training video
_CLIP = re.compile(r"(\d+)(_\d+)?")  # some copies hold one clip a video and leave the second number out
_MAX_FLOW_BYTES = 2**28  # 2 float32 channels of 5792 x 5792; a decompression bomb must not fill the memory


def holynski_clips(root: str | Path | None, *, suffix: str) -> tuple[Names, Names]:
    """Training and validation files by the official split.

    Args:
        root: Folder of the files; those of both splits may lie anywhere below it.
        suffix: `_gt.mp4` for the videos, `_motion.pth` for the flows.

    Raises:
        ValueError: If `root` is no folder, a file's name has another form, or a side has no file.
    """
    root = check_root(root)
    sides: tuple[list[str], list[str]] = ([], [])
    for path in sorted(root.rglob(f"*{suffix}")):
        clip = _CLIP.fullmatch(path.name.removesuffix(suffix))
        if clip is None:
            raise ValueError(f"{path}: must be named by its video and first frame, such as 00001_00030{suffix}")
        sides[int(clip[1]) > _LAST_TRAIN].append(str(path.relative_to(root)))
    if not all(sides):
        raise ValueError(
            f"root={root} has {len(sides[0])} files *{suffix} up to {_LAST_TRAIN:05} and {len(sides[1])} above: the "
            "official split needs both, to train on and to validate"
        )
    return Names(sides[0]), Names(sides[1])


def read_motion(path: str | Path) -> Tensor:
    """Read a `_motion.pth`, an lz4 frame with a pickled array; nothing but a numpy array can come out of it.

    Returns:
        (2, H, W) float32, px per frame.

    Raises:
        VideoError: If the file cannot be read, or holds anything else.
    """
    try:
        with lz4.frame.open(path, "rb") as file:
            content = file.read(_MAX_FLOW_BYTES + 1)
        if len(content) > _MAX_FLOW_BYTES:
            raise VideoError(path, f"unpacks to more than {_MAX_FLOW_BYTES} bytes")
        flow = _ArrayUnpickler(io.BytesIO(content)).load()
    except VideoError:
        raise
    except _DAMAGE as error:
        raise VideoError(path, f"holds no flow that can be read: {' '.join(str(error).split())[:160]}") from error
    if not isinstance(flow, np.ndarray) or flow.dtype.kind != "f" or flow.ndim != 4 or flow.shape[:2] != (1, 2):
        kind = f"{flow.dtype} {flow.shape}" if isinstance(flow, np.ndarray) else type(flow).__name__
        raise VideoError(path, f"holds {kind}: must be a float array (1, 2, H, W)")
    if 0 in flow.shape or not np.isfinite(flow).all():
        raise VideoError(path, "holds a flow that is empty or not finite")
    return torch.from_numpy(flow[0].astype(np.float32))


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Turns text back into an array's bytes, as pickles of protocol 2 ask."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not part of a numpy array")
    return text.encode("latin1")


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays of numbers; refuses every other global, and so every other call."""

    _ALLOWED: ClassVar[dict[str, Any]] = {
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": np.dtype,
        "numpy.core.multiarray._reconstruct": np._core.multiarray._reconstruct,
        "numpy.core.numeric._frombuffer": np._core.numeric._frombuffer,
        "_codecs.encode": _encode_latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        called = f"{module}.{name}".replace("numpy._core.", "numpy.core.")  # numpy 2 renamed it
        if called not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{called} is not part of a numpy array; nothing was run")
        return self._ALLOWED[called]


@dataclass(kw_only=True, eq=False, repr=False)
class HolynskiPairs(FileItems[FlowPairBatch]):
    """Frame 0 with its true steady flow and a hint of it, for the flow refiner (Sec. 3.2)."""

    root: str | Path  # folder that the names are relative to
    names: Names  # `_motion.pth` files; each has its `_input.jpg` beside it
    height: int  # px
    width: int  # px
    seed: int
    random: bool  # True draws file and crop from (seed, position); False takes file `position` and the centre
    min_speed: float  # px per frame at height x width, above 0; pixels with longer flow are the mask of what may move
    hint: Callable[[Tensor, Tensor, np.random.Generator], Hint]  # draws arrows by (flow (2, H, W), mask (1, H, W), rng)
    rejections: Rejections

    def __post_init__(self) -> None:
        if not self.min_speed > 0:
            raise ValueError(f"min_speed={self.min_speed}: must be above 0 px per frame")
        self.root = Path(self.root)

    @cached_property
    def order(self) -> Order:
        return Order(self.seed, [len(self.names)])

    def load(self, path: Path, position: int) -> FlowPairBatch:
        generator = rng(self.seed, position)
        flow = read_motion(path)
        image_path = path.with_name(path.name.replace("_motion.pth", "_input.jpg"))
        image = cv2.imread(str(image_path), cv2.IMREAD_COLOR_RGB)
        if image is None:
            raise VideoError(image_path, "is missing or not an image")
        tall, wide = cover_size(*image.shape[:2], height=self.height, width=self.width)
        method = cv2.INTER_AREA if tall <= image.shape[0] else cv2.INTER_CUBIC
        image = cv2.resize(image, (wide, tall), interpolation=method)
        flow = resize_flow(flow, tall, wide)
        top, left = (tall - self.height) // 2, (wide - self.width) // 2
        if self.random:
            top = int(generator.integers(tall - self.height + 1))
            left = int(generator.integers(wide - self.width + 1))
        rows, columns = slice(top, top + self.height), slice(left, left + self.width)
        flow = flow[:, rows, columns]
        mask = (torch.linalg.vector_norm(flow, dim=0, keepdim=True) > self.min_speed).float()
        flow = flow * mask
        return FlowPairBatch(
            as_float(torch.from_numpy(image[rows, columns])),
            *self.hint(flow, mask, generator),
            mask=mask,
            flow=flow,
            position=torch.tensor(position, dtype=torch.int64),
        )


def holynski_data(
    *,
    items: str,
    root: str | Path | None,
    latents: str | Path | None,
    reading: Mapping[str, Any],
    min_speed: float,
    hint: Callable[[Tensor, Tensor, np.random.Generator], Hint],
    clips: Mapping[str, Any],
    shapes: Buckets | None = None,
    **shared: Any,
) -> StreamData:
    """The official split as clips or as pairs, whichever the experiment reads.

    Args:
        items: `clips` gives `VideoClips` of the videos, `pairs` gives `HolynskiPairs`.
        latents, reading: For clips, as `clip_data` takes them.
        min_speed, hint: For pairs, as `HolynskiPairs` takes them.
        clips: Options of `VideoClips` alone.
        shapes: Of clips, as `clip_data` takes them.
        shared: Options of both, and of `file_data`.

    Raises:
        ValueError: If pairs are to have several shapes, or as `holynski_clips` and `clip_data`.
    """
    if items == "pairs":
        if shapes is not None:
            raise ValueError("scale.buckets=true: pairs have one shape, only clips have several; leave it out")
        names = holynski_clips(root, suffix="_motion.pth")
        return file_data(HolynskiPairs, root=root, names=names, min_speed=min_speed, hint=hint, **shared)
    names = holynski_clips(root, suffix="_gt.mp4")
    return clip_data(
        items=items, root=root, names=names, latents=latents, reading=reading, shapes=shapes, **clips, **shared
    )
