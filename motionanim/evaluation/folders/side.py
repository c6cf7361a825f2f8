"""method.json: what the files in a folder of videos do not tell."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from motionanim.data.video import Video
from motionanim.evaluation.folders.source import PictureFolder

# The fields of method.json and their types.
_NUMBER = (int, float)
_FIELDS = {
    "label": str, "saw_motion": bool, "saw_mask": bool, "fps": _NUMBER, "source": str, "size": list,
    "seconds": _NUMBER, "segment_starts": list, "window": int, "loop": bool,
}  # fmt: skip


def read_side(folder: Path | str, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of FOLDER/method.json, if it exists, with some replaced.

    - label: The row's name.
    - saw_motion, saw_mask: Whether the method was given the true motion, or the true mask of what moves.
    - fps: The true frames per second, if the files' are wrong, or for pictures, which have none.
    - source: Where the videos come from.
    - size: [width, height] in px, and seconds: Both are checked against the files.
    - segment_starts: First frames of the segments after the first, numbered as in the files, ascending.
    - window: Frames of one window of the method, at least 1: the period at which its videos may repeat themselves.
    - loop: Whether the last frame shall lead back to the first.

    Raises:
        ValueError: If a field is unknown or not as above.
    """
    path, side = Path(folder, "method.json"), {}
    if path.exists():
        try:
            side = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise ValueError(f"{path} cannot be read as JSON: {' '.join(str(error).split())[:120]}") from error
    if not isinstance(side, dict):
        raise ValueError(f"{path}: must be an object with any of {', '.join(_FIELDS)}")
    side |= overrides
    for key, value in side.items():
        kind = _FIELDS.get(key)
        if kind is None or not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
            raise ValueError(f"{path}: {key}={value!r} is not one of {', '.join(_FIELDS)}, or of another type")
    for key in ("fps", "seconds"):
        if key in side and not 0 < side[key] < math.inf:
            raise ValueError(f"{path}: {key}={side[key]} must be a finite number above 0")
    if side.get("window", 1) < 1:
        raise ValueError(f"{path}: window={side['window']} must be at least 1 frame")
    starts = side.get("segment_starts", [])
    numbers = all(isinstance(start, int) and not isinstance(start, bool) for start in starts)
    if not numbers or starts != sorted(set(starts)) or (starts and starts[0] < 1):
        raise ValueError(
            f"{path}: segment_starts={starts} must be the first frames of the segments after the first, whole numbers "
            "from 1 upwards, ascending"
        )
    return side


def check_side(side: Mapping[str, Any], video: Video | PictureFolder) -> None:
    """Raises ValueError if method.json and a clip disagree."""
    height, width = video.size()
    if "size" in side and list(side["size"]) != [width, height]:
        raise ValueError(
            f"{video.path} is {width}x{height} px and method.json says size={side['size']} [width, height]"
        )
    count = video.info.num_frames
    if "seconds" in side and not (isinstance(video, PictureFolder) and "fps" not in side):
        seconds = video.info.seconds * video.info.fps / side.get("fps", video.info.fps)
        if abs(side["seconds"] - seconds) > 0.05 * seconds:
            raise ValueError(f"{video.path} lasts {seconds:.2f} s and method.json says seconds={side['seconds']}")
    late = [start for start in side.get("segment_starts", []) if start >= count]
    if late:
        raise ValueError(f"{video.path} has {count} frames and method.json says segment_starts={late}")
