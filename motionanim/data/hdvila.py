"""HD-VILA-100M (Xue et al., CVPR 2022) as its own scripts leave it: JSONL files of videos and a folder of cut clips.

Each line is {"video_id": ..., "url": ..., "clip": [{"clip_id": "ID.0.mp4", "span": [start, end]}, ...]}; a clip lies at
root/video_id/clip_id, or directly at root/clip_id. Lines are streamed: the full set lists 100 M clips.
"""

import glob
import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from motionanim.data.clips import check_root
from motionanim.data.file_lists import Names, split_names
from motionanim.data.hdvila_index import IndexedNames, kept_index, split_index

logger = logging.getLogger(__name__)

Lists = str | Path | Sequence[str | Path] | None


def hdvila_clips(
    root: str | Path | None, *, jsonl: Lists, val_share: float, index: str | Path
) -> tuple[IndexedNames, IndexedNames]:
    """Training and validation clips that are on disk, split by a hash of the video that they are cut from.

    Args:
        root: Folder of cut clips.
        jsonl: The dataset's lists of videos, as `metafiles` takes them.
        val_share: Share of the videos that validate, in (0, 1).
        index: Folder where the list of clips is kept; it is made anew if `changes` sees that clips came or went.

    Raises:
        ValueError: As `hdvila_names` does, or if the clips come from fewer than two videos.
    """
    root, files = check_root(root), metafiles(jsonl)
    states = [(path.absolute(), path.stat()) for path in files]
    about = "|".join([f"{root.absolute()}", *(f"{path}|{s.st_size}|{s.st_mtime_ns}" for path, s in states)])
    listed = ((name, video_of(name)) for name in hdvila_names(root, jsonl=jsonl))
    return split_index(kept_index(Path(index), about, listed, root=root), val_share=val_share)


def metafiles(jsonl: Lists) -> list[Path]:
    """The dataset's lists of videos: a JSONL file, a glob, a folder of them, or a list of these.

    Raises:
        ValueError: If one of them is missing or has no JSONL file.
    """
    found: dict[Path, None] = {}  # each once, in order
    for each in [jsonl] if jsonl is None or isinstance(jsonl, str | Path) else jsonl:
        name = "" if each is None else str(each)
        if os.path.isfile(name):  # even if its name looks like a glob
            files = [name]
        else:
            files = sorted(glob.glob(os.path.join(glob.escape(name), "*.jsonl") if os.path.isdir(name) else name))
        if not files:
            raise ValueError(
                f"jsonl={each} does not exist: pass the dataset's lists of videos, a file such as meta_part0.jsonl, a "
                'folder of such files, a glob such as "hdvila/hdvila_part*.jsonl", or a list of these'
            )
        found |= dict.fromkeys(map(Path, files))
    return list(found)


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
    # No pathlib here and below: it interns every name, and Python's table of interned strings does not shrink.
    stem, _, number = os.path.splitext(os.path.basename(name))[0].rpartition(".")
    return stem if stem and number.isdigit() else name


def hdvila_names(root: str | Path | None, *, jsonl: Lists) -> Iterator[str]:
    """Paths, relative to `root`, of the listed clips that are on disk; the number of missing ones is logged.

    A video's folder is listed once, because asking for each of 100 M clips takes a day on a network disk.

    Raises:
        ValueError: If `root` is no folder or goes away, `jsonl` is missing, a line is wrong, or no clip is on disk.
    """
    root, files = check_root(root), metafiles(jsonl)
    with os.scandir(root) as entries:
        flat = any(entry.is_file() for entry in entries)  # clips may lie directly in it
    last, found, missing = "", 0, 0
    for path in files:
        for video_id, clip_ids in _videos(path):
            there = _files(os.path.join(root, video_id))
            for clip_id in clip_ids:
                if clip_id in there:
                    last = os.path.join(video_id, clip_id)
                elif flat and os.path.isfile(os.path.join(root, clip_id)):
                    last = clip_id
                else:
                    missing += 1
                    continue
                found += 1
                yield last
    shown = ", ".join(map(str, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    if not found:
        raise ValueError(
            f"none of the {missing} clips that {shown} lists is under root={root}: pass the folder of cut clips"
        )
    if not os.path.isfile(os.path.join(root, last)):
        raise ValueError(f"root={root} went away while its clips were looked for: run this again when it is back")
    if missing:
        logger.warning(
            "%d of the %d clips in %s are not under %s and are left out", missing, found + missing, shown, root
        )


def _files(folder: str) -> set[str]:
    """Names of the files in a folder; none if it does not exist."""
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if entry.is_file()}
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _videos(jsonl: Path) -> Iterator[tuple[str, list[str]]]:
    """Video id and clip ids of each line."""
    with open(jsonl, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield _parse(line)
                except ValueError as error:
                    raise ValueError(f"{jsonl}, line {number}: {error}") from error


def _parse(line: str) -> tuple[str, list[str]]:
    try:
        video = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(video, dict) or not isinstance(video.get("clip"), list):
        raise ValueError('must be an object with "video_id" and a list "clip"')
    clip_ids = [clip.get("clip_id") if isinstance(clip, dict) else None for clip in video["clip"]]
    for field, value in (("video_id", video.get("video_id")), *(("clip_id", clip_id) for clip_id in clip_ids)):
        # Names in a downloaded file must not lead out of the root folder.
        if not isinstance(value, str) or not value or value != os.path.basename(value) or value in (".", ".."):
            raise ValueError(f"{field}={value!r}: must be a file name")
    return video["video_id"], clip_ids
