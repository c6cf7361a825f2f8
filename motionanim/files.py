"""Writing files so that a killed run or a full disk leaves the earlier version, whole; and telling files apart."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

NUMBERED = re.compile(r"\d{5}\.png")


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` in one step, on failure it is removed.

    The temporary name keeps the suffix, because encoders and plotters choose their format by it.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def output_files(out: Path, *, gif: bool, png: bool, inputs: Sequence[Path]) -> dict[str, Path]:
    """What will be written beside the video `out`.

    Raises:
        ValueError: If it cannot be written, or would replace an input.
    """
    if out.suffix.lower() != ".mp4":
        raise ValueError(f"out={out}: must end in .mp4")
    files = {"video": out, "record": out.with_suffix(".json"), "picture": out.with_suffix(".png")}
    if gif:
        files["gif"] = out.with_suffix(".gif")
    for path in files.values():
        if path.is_dir():
            raise ValueError(f"out={out}: {path} is a folder, choose another name")
    if png:
        folder = files["frames"] = out.with_suffix("")
        if folder.exists() and not (folder.is_dir() and all(NUMBERED.fullmatch(p.name) for p in folder.iterdir())):
            raise ValueError(f"out={out}: frames would go to {folder}, which holds other files: choose another name")
    check_kept(files, inputs)
    existing = next(parent for parent in out.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"out={out}: {existing} cannot be written: choose another folder")
    return files


def check_kept(files: Mapping[str, Path], inputs: Iterable[Path]) -> None:
    """Raises ValueError if one of `output_files` would replace an input, or the folder of frames one inside it."""
    written = {path.resolve() for path in files.values()}
    for path in inputs:
        if not written.isdisjoint((path.resolve(), path.resolve().parent)):
            raise ValueError(f"out={files['video']} would replace the input {path}: choose another name")
