"""HD-VILA-100M (Xue et al., CVPR 2022) as its own scripts leave it: a JSONL of videos and a folder of cut clips.

Each line is {"video_id": ..., "url": ..., "clip": [{"clip_id": "ID.0.mp4", "span": [start, end]}, ...]}; a clip lies at
root/video_id/clip_id, or directly at root/clip_id. Lines are streamed: the full set lists 100 M clips.
"""

import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from motionanim.data.clips import check_root
from motionanim.data.hdvila_index import IndexedNames, kept_index, split_index
from motionanim.data.names import Names, split_names

logger = logging.getLogger(__name__)


def hdvila_clips(
    root: str | Path | None, *, jsonl: str | Path | None, val_share: float, index: str | Path
) -> tuple[IndexedNames, IndexedNames]:
    """Training and validation clips that are on disk, split by a hash of the video that they are cut from.

    Args:
        root: Folder of cut clips.
        jsonl: The dataset's list of videos.
        val_share: Share of the videos that validate, in (0, 1).
        index: Folder where the list is kept once it was read. The same list is not read again: delete the folder when
            clips came or went.

    Raises:
        ValueError: As `hdvila_names` does, or if the clips come from fewer than two videos.
    """
    root, jsonl = check_root(root), _check_jsonl(jsonl)
    state = jsonl.stat()
    about = f"{root.absolute()}|{jsonl.absolute()}|{state.st_size}|{state.st_mtime_ns}"
    listed = ((name, video_of(name)) for name in hdvila_names(root, jsonl=jsonl))
    return split_index(kept_index(Path(index), about, listed), val_share=val_share)


def hdvila_static_clips(root: str | Path | None, *, names: str | Path, val_share: float) -> tuple[Names, Names]:
    """The fixed-lens subset (Sec. 4.1), as `motionanim.data.prepare` lists it.

    Args:
        root: Folder of cut clips.
        names: `static.txt`, a clip per line, relative to `root`.
        val_share: Share of the videos that validate, in (0, 1).

    Raises:
        ValueError: If `root` is no folder, or `names` does not exist or lists fewer than two videos.
    """
    check_root(root)
    if not Path(names).is_file():
        raise ValueError(f"names={names} does not exist: make it with python -m motionanim.data.prepare root={root}")
    with open(names, encoding="utf-8") as file:
        listed = (line.rstrip("\n") for line in file)
        return split_names(((name, video_of(name)) for name in listed if name), val_share=val_share)


def video_of(name: str) -> str:
    """The video that a clip was cut from: "x/ID.12.mp4" -> "ID"; any other name stands for itself."""
    # Not pathlib, here and below: it interns every name, and Python's table of interned strings does not shrink.
    stem, _, number = os.path.splitext(os.path.basename(name))[0].rpartition(".")
    return stem if stem and number.isdigit() else name


def hdvila_names(root: str | Path | None, *, jsonl: str | Path | None) -> Iterator[str]:
    """Paths, relative to `root`, of the listed clips that are on disk; how many are not is logged.

    Raises:
        ValueError: If `root` is no folder, `jsonl` is missing, one of its lines is wrong, or no clip is on disk.
    """
    root, jsonl = check_root(root), _check_jsonl(jsonl)
    found = missing = 0
    with open(jsonl, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                video_id, clip_ids = _parse(line)
            except ValueError as error:
                raise ValueError(f"{jsonl}, line {number}: {error}") from error
            for clip_id in clip_ids:
                for name in (os.path.join(video_id, clip_id), clip_id):
                    if os.path.isfile(os.path.join(root, name)):
                        found += 1
                        yield name
                        break
                else:
                    missing += 1
    if not found:
        raise ValueError(
            f"none of the {missing} clips that {jsonl} lists is under root={root}: pass the folder of cut clips"
        )
    if missing:
        logger.warning(
            "%d of the %d clips in %s are not under %s and are left out", missing, found + missing, jsonl, root
        )


def _check_jsonl(jsonl: str | Path | None) -> Path:
    if jsonl is None or not Path(jsonl).is_file():
        raise ValueError(f"jsonl={jsonl} does not exist: pass the dataset's list of videos, such as meta_part0.jsonl")
    return Path(jsonl)


def _parse(line: str) -> tuple[str, list[str]]:
    """Video id and clip ids of one line."""
    try:
        video = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(video, dict) or not isinstance(video.get("clip"), list):
        raise ValueError('must be an object with "video_id" and a list "clip"')
    clip_ids = [clip.get("clip_id") if isinstance(clip, dict) else None for clip in video["clip"]]
    for field, value in (("video_id", video.get("video_id")), *(("clip_id", clip_id) for clip_id in clip_ids)):
        # Names from a downloaded file must not lead out of the root folder.
        if not isinstance(value, str) or not value or value != os.path.basename(value) or value in (".", ".."):
            raise ValueError(f"{field}={value!r}: must be a file name")
    return video["video_id"], clip_ids
