"""Checks before writing, and writing that leaves the earlier version whole after a killed run or on a full disk."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path` in one step, on failure it is removed.

    It keeps the suffix, because encoders and plotters choose their format by it. The file gets the mode of the umask,
    whichever library writes it: safetensors alone would leave 600.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_new(path: Path, content: bytes) -> None:
    """Write a file in one step. Raises FileExistsError if there is one of that name, which stays."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        temporary.write_bytes(content)
        os.link(temporary, path)  # unlike a renaming, it never replaces
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP):  # of a file system without hard links, as on memory cards
            raise
        with open(path, "xb") as file:
            try:
                file.write(content)
                file.flush()
            except OSError:
                path.unlink()
                raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder beside `path`; on success it replaces `path` with all its files, on failure it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, before = (path.with_name(f".{path.name}.{os.getpid()}{end}") for end in ("", ".before"))
    try:
        temporary.mkdir()
        yield temporary
        if path.exists():
            os.replace(path, before)
        os.replace(temporary, path)
        shutil.rmtree(before, ignore_errors=True)  # only after the new one is in its place
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """SHA-256 of a text in UTF-8, 64 hex digits; file names that are no UTF-8 count by their bytes."""
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()


def content_sha256(path: Path) -> str:
    """SHA-256 of a file's content, or of the names and contents of a folder, 64 hex digits."""
    if not path.is_dir():
        return file_sha256(path)
    return text_sha256("".join(sorted(f"{each.name} {content_sha256(each)}\n" for each in path.iterdir())))


def output_files(out: Path, *, gif: bool, webp: bool, png: bool, inputs: Sequence[Path]) -> dict[str, Path]:
    """The files that `animate` will write beside the video `out`.

    A file that exists may be replaced only if the record beside it names it with its present SHA-256: then an earlier
    run with the same `out` made it.

    Raises:
        ValueError: If a file cannot be written, or would replace an input or a file that no run made.
    """
    if out.suffix.lower() != ".mp4":
        raise ValueError(f"out={out}: must end in .mp4")
    files = {"video": out, "record": out.with_suffix(".json"), "picture": out.with_suffix(".png")}
    files |= {name: out.with_suffix(f".{name}") for name, wanted in (("gif", gif), ("webp", webp)) if wanted}
    for path in files.values():
        if path.is_dir():
            raise ValueError(f"out={out}: {path} is a folder, choose another name")
    if png:
        files["frames"] = out.with_suffix("")
    check_kept(files, inputs)
    existing = next(parent for parent in out.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"out={out}: {existing} cannot be written: choose another folder")
    made = made_before(files["record"])
    for name, path in files.items():
        empty = path.is_dir() and not any(path.iterdir())
        if name != "record" and path.exists() and not empty and made.get(path.name) != content_sha256(path):
            raise ValueError(f"out={out} would replace {path}, which no run left like that: choose another name")
    return files


def made_before(record: Path) -> dict[str, str]:
    """Name and SHA-256 of each file that earlier runs left, as their record says.

    Raises:
        ValueError: If `record` is a file that no run wrote.
    """
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError:
        content = None
    made = content.get("files") if isinstance(content, dict) else None
    if not isinstance(made, dict):
        raise ValueError(
            f"out={record.with_suffix('.mp4')} would replace {record}, which is no record of a run: choose another name"
        )
    return made


def check_kept(files: Mapping[str, Path], inputs: Iterable[Path]) -> None:
    """Raises ValueError if one of `output_files` would replace an input, or a folder of frames that holds one."""
    written = {path.resolve() for path in files.values()}
    for path in inputs:
        if not written.isdisjoint((path.resolve(), path.resolve().parent)):
            raise ValueError(f"out={files['video']} would replace the input {path}: choose another name")


def check_own(folder: Path, names: Sequence[str], marks: Sequence[str], *, option: str) -> None:
    """Raises ValueError if a folder holds any of `names`, which will be written, but not all of `marks`.

    Args:
        marks: Files that each earlier run of the command left there.
        option: The option that gave the folder, as the user writes it.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{option}{folder} is a file: choose another folder")
    strange = [name for name in names if (folder / name).exists()]
    if strange and not all((folder / mark).exists() for mark in marks):
        raise ValueError(f"{option}{folder} holds {strange[0]}, which no run left there: choose another folder")


def printable(path: str | os.PathLike[str]) -> str:
    """A file's name for messages and text files: bytes that are not UTF-8 become \\xff."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
