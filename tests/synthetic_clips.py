"""Clips of the procedural world that the tests of the video features share."""

import functools

from motionanim.data.stream import collate
from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.types import ClipBatch


@functools.cache
def clips(count: int, split: str = "val", size: int = 64) -> ClipBatch:
    world = SyntheticClips(
        seed=3, length=count, num_frames=16, height=size, width=size, fps=7, moving_camera=0.5, split=split
    )
    return collate([world[i] for i in range(count)])
