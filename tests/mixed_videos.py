"""A folder of small videos in three shapes, and data that trains on them in shapes of 32 x 32 px."""

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from motionanim.data.clips import clip_data
from motionanim.data.folder import folder_clips
from motionanim.data.order import Buckets, buckets
from motionanim.data.stream import StreamData
from motionanim.data.video import write_video

SIZES = ((32, 48), (48, 32), (32, 32))  # height, width
SHAPES = {(32, 48): (24, 40), (48, 32): (40, 24), (32, 32): (32, 32)}  # of training


class Steady:
    """A flow that is as fast as the frames are bright."""

    name = "steady"

    def __call__(self, frames: Tensor) -> Tensor:
        return frames[:-1, :2]


def write_videos(root: Path, count: int, frames: int = 8) -> None:
    """Videos 0.mp4, 1.mp4, ... that take turns in size, each of a colour of its own."""
    generator = torch.Generator().manual_seed(0)
    for number in range(count):
        height, width = SIZES[number % 3]
        first = torch.rand(3, 4, 4, generator=generator) * 2 - 1
        first = torch.nn.functional.interpolate(first[None], size=(height, width), mode="bicubic").clamp(-1, 1)[0]
        write_video(root / f"{number}.mp4", torch.stack([first.roll(t, -1) for t in range(frames)]), 7)


def shapes_32(row: int = 4) -> Buckets:
    return buckets(used=True, height=32, width=32, multiple=8, row=row)


def mixed_data(root: Path | dict[str, int], cache: Path, **changes: Any) -> StreamData:
    options = {
        "items": "clips", "latents": None, "reading": {}, "root": root, "names": folder_clips(root, val_share=0.2),
        "shapes": shapes_32(), "val_clips": 99, "rejected": cache / "rejected.csv", "max_rejected_share": 1.0,
        "batch_size": 4, "num_workers": 0, "num_frames": 5, "height": 32, "width": 32, "fps": 7, "stride": None,
        "seed": 0, "flow_estimator": Steady(), "flow_cache": cache,
    }  # fmt: skip
    return clip_data(**options | changes)


def copied(root: Path, to: Path) -> Path:
    return Path(shutil.copytree(root, to))
