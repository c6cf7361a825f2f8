"""Any directory tree of videos."""

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from motionanim.data.clips import check_root
from motionanim.data.file_lists import Names, Pool, split_names, weighted_roots

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".flv", ".gif", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4", ".mpe",
    ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".vob", ".webm", ".wmv",
})  # fmt: skip

# Of pictures that may be the frames of a clip; the first are stored without loss.
LOSSLESS = frozenset({".bmp", ".png", ".ppm", ".tif", ".tiff"})
PICTURES = LOSSLESS | {".jpeg", ".jpg", ".webp"}


def folder_clips(root: str | Path | Mapping[str, int] | None, *, val_share: float) -> tuple[Names | Pool, Names | Pool]:
    """Training and validation videos under `root`, split by a hash of each one's path below it.

    Args:
        root: A folder, or several with their weights: each is split by itself.

    Raises:
        ValueError: If a folder is none or has fewer than two videos, or as `weighted_roots`.
    """
    if isinstance(root, Mapping):
        roots = weighted_roots(root)
        sides = zip(*(folder_clips(folder, val_share=val_share) for folder in roots))
        return tuple(Pool(side, list(roots.values())) for side in sides)
    return split_names(((name, name) for name in folder_names(root)), val_share=val_share)


def folder_names(root: str | Path | None) -> Iterator[str]:
    """Paths of all videos below `root`, told by their suffix, relative to it and sorted.

    Linked folders are entered. Hidden files and folders are left out; files of other suffixes are left out and counted
    in the log.

    Raises:
        ValueError: If `root` is no folder, or has no video.
    """
    root = check_root(root)
    found, others = False, Counter[str]()
    for folder, files in _walk(root):
        for name in files:
            suffix = os.path.splitext(name)[1].lower()
            if suffix in SUFFIXES:
                found = True
                yield os.path.relpath(os.path.join(folder, name), root)
            else:
                others[suffix or "no suffix"] += 1
    if not found:
        raise ValueError(f"root={root} has no video: files ending in {', '.join(sorted(SUFFIXES))} are looked for")
    if others:
        listed = ", ".join(f"{count} {suffix}" for suffix, count in others.most_common(8))
        logger.info("%s: left out as no videos by their suffix: %s", root, listed)


def picture_folders(root: str | Path) -> dict[str, list[str]]:
    """The folders below `root` that hold pictures, by their path relative to it: the frames of one clip each.

    Returns:
        The pictures' names in each folder, ordered as people count: frame_2 before frame_10. `root` itself is ".".

    Raises:
        ValueError: If `root` is no folder.
    """
    root, found = check_root(root), {}
    for folder, files in _walk(root):
        pictures = [name for name in files if os.path.splitext(name)[1].lower() in PICTURES]
        if pictures:
            found[os.path.relpath(folder, root)] = sorted(pictures, key=_counted)
    return found


def _counted(name: str) -> tuple[list[str | int], str]:
    """Sorts numbers in names by value. Texts and numbers alternate, so that two names compare part by part."""
    parts = re.split("([0-9]+)", name)
    return [int(part) if place % 2 else part.lower() for place, part in enumerate(parts)], name


def _walk(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Each folder and its files, sorted, without hidden ones; a folder that several links lead to is entered once."""
    entered = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        state = os.stat(folder)
        if (state.st_dev, state.st_ino) in entered:
            folders.clear()
            continue
        entered.add((state.st_dev, state.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield folder, sorted(name for name in files if not name.startswith("."))
