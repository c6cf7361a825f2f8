"""Write tiny data sets in the layouts of HD-VILA and Holynski."""

import json
import pickle
from pathlib import Path

import cv2
import lz4.frame
import numpy as np
import torch
from torch import Tensor

from motionanim.data.video import write_video
from motionanim.media.image_io import to_pixels


def write_hdvila(folder: str | Path, clips: dict[str, list[Tensor]], *, fps: float) -> tuple[Path, Path]:
    """Write clips in the layout that HD-VILA's download and cut scripts produce.

    Args:
        folder: Where to.
        clips: For each video id its clips, (T, 3, H, W) in [-1, 1].
        fps: Frames per second.

    Returns:
        The JSONL file and the folder of cut clips.
    """
    folder = Path(folder)
    lines = []
    for video_id, cuts in clips.items():
        spans, end = [], 0.0
        for number, frames in enumerate(cuts):
            clip_id = f"{video_id}.{number}.mp4"
            write_video(folder / "video_clips" / video_id / clip_id, frames, fps)
            start, end = end, end + len(frames) / fps
            spans.append({"clip_id": clip_id, "span": [_clock(start), _clock(end)]})
        line = {"video_id": video_id, "url": f"https://www.youtube.com/watch?v={video_id}", "clip": spans}
        lines.append(json.dumps(line) + "\n")
    jsonl = folder / "metafiles" / "meta_part0.jsonl"
    jsonl.parent.mkdir(parents=True, exist_ok=True)
    jsonl.write_text("".join(lines), encoding="utf-8")
    return jsonl, folder / "video_clips"


def six_videos(folder: Path) -> tuple[Path, Path]:
    """The list and the folder of the 12 clips of six videos."""
    return write_hdvila(folder, {f"vid-{k}": [torch.zeros(2, 3, 16, 64)] * (k % 3 + 1) for k in range(6)}, fps=10)


def write_holynski(folder: str | Path, clip: str, frames: Tensor, flow: Tensor, *, fps: float) -> None:
    """Write one clip of the Eulerian-motion set: image, video and steady flow.

    Args:
        folder: Where to.
        clip: Video and first frame, such as `00001_00030`; videos up to 00979 train, above validate.
        frames: (T, 3, H, W) in [-1, 1].
        flow: (2, H', W') px per frame at its own resolution.
        fps: Frames per second.
    """
    folder = Path(folder)
    write_video(folder / f"{clip}_gt.mp4", frames, fps)
    image = to_pixels(frames[0])
    cv2.imwrite(str(folder / f"{clip}_input.jpg"), np.ascontiguousarray(image[..., ::-1]))
    with lz4.frame.open(folder / f"{clip}_motion.pth", "wb") as file:
        file.write(pickle.dumps(flow[None].float().numpy()))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours:02}:{minutes:02}:{rest:06.3f}"
