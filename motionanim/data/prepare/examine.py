"""Examines one video for `prepare`: whether it is usable and its camera moves, where shots end, and its flow."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from motionanim.data.clips import FlowEstimator, clip_grid, flow_path, open_flow
from motionanim.data.order import Buckets
from motionanim.data.prepare.shots import crossed, find_borders, keep_borders, starts_within
from motionanim.data.stream import as_float
from motionanim.data.video import Video, VideoError
from motionanim.data.video.index import content_key
from motionanim.files import atomic_path
from motionanim.motion.camera import camera_motion

LOST = "ends the process that reads it: it crashes the decoder or the memory"
_CHUNK = 32  # frames whose flow is estimated at a time, to bound the memory


class Settings(NamedTuple):
    """Settings that decide the result for a file (see conf/prepare.yaml); a change examines the files again."""

    num_frames: int
    height: int
    width: int
    fps: float
    stride: int | None
    max_frames: int
    camera_fps: float
    camera_pairs: int
    camera_short_side: int
    max_camera_speed: float
    cache_moving: bool

    def check(self) -> None:
        """Raise ValueError if a number is out of range, because every video would be rejected, or none measured."""
        least = {
            "num_frames": 2, "height": 1, "width": 1, "max_frames": self.num_frames, "camera_pairs": 1,
            "camera_short_side": 1, "stride": 1,
        }  # fmt: skip
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                why = f", as many as a clip has (scale.num_frames={low})" if name == "max_frames" else ""
                raise ValueError(f"settings.{name}={value}: must be at least {low}{why}")
        for name in ("fps", "camera_fps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"settings.{name}={getattr(self, name)}: must be above 0")


def camera_speed(video: Video, flow_estimator: FlowEstimator, *, fps: float, pairs: int, short_side: int) -> float:
    """How fast the camera moves, measured on pairs of frames spread over the video.

    The time between the frames of a pair is fixed, because a file's frame rate says nothing about the camera. All
    pixels count, so a scene that moves as one, such as clouds that fill the picture, counts as camera motion.

    Args:
        fps: One over the time in seconds between the frames of a pair.
        pairs: Number of pairs.
        short_side: px at which it is measured.

    Returns:
        Mean of `camera_motion`, in image diagonals per second.

    Raises:
        VideoError: If the video has fewer than two frames at `fps`, or cannot be decoded.
    """
    indices, rate = video.grid(fps=fps, stride=None)
    if len(indices) < 2:
        raise VideoError(video.path, f"is too short: one frame at {fps} a second, 2 are needed to see the camera move")
    firsts = np.unique(np.linspace(0, len(indices) - 2, pairs).round().astype(int))
    # One call reads all pairs, because each call decodes anew from the key frame before its first frame.
    frames = video.read(indices[np.add.outer(firsts, (0, 1)).ravel()], height=short_side, width=short_side)
    motions = [
        camera_motion(flow_estimator(as_float(torch.from_numpy(pair))), None)
        for pair in frames.reshape(-1, 2, *frames.shape[1:])
    ]
    return float(torch.cat(motions).mean()) * rate


def cached_flow(
    video: Video, indices: np.ndarray, flow_estimator: FlowEstimator, path: Path, *, height: int, width: int
) -> np.ndarray:
    """The flow between neighbouring `indices`, read from `path`, or estimated and kept there.

    A kept flow of fewer frames is replaced; of a longer one the first frames are taken.

    Returns:
        (K-1, 2, H', W') float16, px per frame, on frames that cover height x width and are not cropped. float16 is off
        by less than 0.01 px up to 32 px per frame, and by 1 part in 2048 above.
    """
    flow = open_flow(path)
    if flow is not None and len(flow) >= len(indices) - 1:
        return flow[: len(indices) - 1]
    steps = []
    for first in range(0, len(indices) - 1, _CHUNK):
        frames = as_float(torch.from_numpy(video.read(indices[first : first + _CHUNK + 1], height=height, width=width)))
        steps.append(flow_estimator(frames).numpy().astype(np.float16))
    flow = np.concatenate(steps)
    with atomic_path(path) as partial:
        np.save(partial, flow)
    return flow


def examine(
    name: str, key: str, root: Path, cache: Path, settings: Settings, flow_estimator: FlowEstimator,
    shapes: Buckets | None,
) -> dict:  # fmt: skip
    """Examine one file; returns its line of the journal. Flow is cached for clips in the nearest of `shapes`."""
    path = root / name
    record: dict[str, Any] = {"name": name, "key": key}
    try:
        video = Video(path)
        height, width = video.size()
        grid = {"fps": settings.fps, "stride": settings.stride}
        indices, fps = clip_grid(video, settings.num_frames, **grid)
        measured = {"pairs": settings.camera_pairs, "short_side": settings.camera_short_side}
        speed = camera_speed(video, flow_estimator, fps=settings.camera_fps, **measured)
        slow = speed <= settings.max_camera_speed
        cached = slow or settings.cache_moving
        used = indices[: settings.max_frames] if cached else indices  # frames that training can show
        borders = find_borders(video, int(used[-1]) + 1)
        if not len(starts_within(used, settings.num_frames, borders)):
            reason = f"has no shot of {settings.num_frames} frames: each of its {len(borders) + 1} is shorter"
            raise VideoError(path, reason)
        content = content_key(path)
        keep_borders(cache, content, borders)
        strength, left_out = None, 0.0
        if cached:
            clip = (settings.height, settings.width) if shapes is None else shapes.shape_of(height, width)
            size = dict(zip(("height", "width"), clip))
            where = flow_path(cache, content, estimator=flow_estimator.name, **grid, **size)
            flow = cached_flow(video, used, flow_estimator, where, **size)[~crossed(used[:-1], used[1:], borders)]
            left_out = (len(indices) - len(used)) / fps
            strength = float(np.mean([np.hypot(x, y).mean(dtype=np.float64) for x, y in flow.astype(np.float32)]))
    except VideoError as error:
        return record | {"reason": error.reason}
    info = video.info._asdict() | {"height": height, "width": width}
    static = slow and not borders  # two joined still scenes are no still scene
    if shapes is not None and cached:
        info["clip_width"] = clip[1]  # which the strength is relative to
    return record | info | {
        "camera_speed": speed, "static": static, "motion_strength": strength, "borders": borders,
        "seconds_left_out": left_out,
    }  # fmt: skip


def lost(name: str, key: str, *_: Any) -> dict:
    """The record of a file whose reader died; the next run examines the file again."""
    return {"name": name, "key": key, "reason": LOST}
