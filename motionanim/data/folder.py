"""Any directory tree of videos."""

import os
from collections.abc import Iterator
from pathlib import Path

from motionanim.data.clips import check_root
from motionanim.data.names import Names, split_names

SUFFIXES = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm"})


def folder_clips(root: str | Path | None, *, val_share: float) -> tuple[Names, Names]:
    """Training and validation videos under `root`, split by a hash of each one's path below it.

    Raises:
        ValueError: If `root` is no folder, or has fewer than two videos.
    """
    return split_names(((name, name) for name in folder_names(root)), val_share=val_share)


def folder_names(root: str | Path | None) -> Iterator[str]:
    """Paths of all videos below `root`, relative to it, in sorted order; hidden files and folders are left out.

    Raises:
        ValueError: If `root` is no folder, or has no video.
    """
    root = check_root(root)
    found = False
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES:
                found = True
                yield os.path.relpath(os.path.join(folder, name), root)
    if not found:
        raise ValueError(f"root={root} has no video: files ending in {', '.join(sorted(SUFFIXES))} are looked for")
