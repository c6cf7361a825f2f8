"""The manifest of a benchmark: its videos and their hashes, so that everyone scores the same pixels.

A CSV file with the columns of `ManifestEntry`, one row per clip. A row with a hash is locked to the file of that hash.
The first n rows are the benchmark of n clips.
"""

import csv
import json
import logging
import os
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from motionanim.files import atomic_path, file_sha256, text_sha256

logger = logging.getLogger(__name__)


class ManifestEntry(NamedTuple):
    """One clip. Numbers that are unknown before the first fetch are empty in the file and None here."""

    id: str  # name in results: a relative path without suffix
    file: str  # path of the video, relative to the benchmark's folder
    url: str  # of the video; empty for a user's own video
    category: str
    sha256: str  # 64 hex digits; empty until the first fetch, which locks the clip
    licence: str
    bytes: int | None
    width: int | None  # px
    height: int | None
    fps: float | None
    frames: int | None
    duration: float | None  # seconds
    page_url: str  # the page that shows the clip and names its author
    author: str
    query: str  # the search that found the clip


FIELDS = ManifestEntry._fields
_NUMBERS: dict[str, Callable[[str], Any]] = dict.fromkeys(("bytes", "width", "height", "frames"), int)
_NUMBERS |= dict.fromkeys(("fps", "duration"), float)
_PATH = re.compile(r"[^./][^/]*(/[^./][^/]*)*")
_URL = re.compile(r"https?://[!-~]+")  # no file:, no blanks
_SHA256 = re.compile(r"[0-9a-f]{64}|")


def read_manifest(path: str | Path) -> list[ManifestEntry]:
    """The clips of a manifest, in order.

    Raises:
        ValueError: If the file is missing, empty or no UTF-8 CSV; if a column is missing or unknown (unknown ones would
            be lost when a lock rewrites the file); if a row is malformed, leaves the benchmark's folder, or repeats
            the id, file or hash of another row. The message names the line.
    """
    entries, lines = [], []
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            header = next(rows, [])
            if sorted(header) != sorted(FIELDS):
                unknown, missing = sorted(set(header) - set(FIELDS)), sorted(set(FIELDS) - set(header))
                raise ValueError(
                    f"{path} line 1: unknown columns {unknown}, missing {missing}; each once: {', '.join(FIELDS)}"
                )
            for row in rows:
                if row:
                    entries.append(_parsed(header, row, f"{path} line {rows.line_num}"))
                    lines.append(f"{path} line {rows.line_num}")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such manifest; benchmarks/pixabay/build.py makes one") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no CSV file in UTF-8: {error}") from error
    _check(entries, lines)
    if not entries:
        raise ValueError(f"{path} has no clips; build it again with benchmarks/pixabay/build.py")
    return entries


def write_manifest(path: str | Path, entries: Sequence[ManifestEntry]) -> None:
    """Write a manifest in one step.

    Raises:
        ValueError: If `read_manifest` would refuse a row.
    """
    _check(entries, [f"clip {entry.file!r}" for entry in entries])
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(FIELDS)
        table.writerows(["" if value is None else value for value in entry] for entry in entries)


def _parsed(header: list[str], row: list[str], where: str) -> ManifestEntry:
    if len(row) != len(header):
        raise ValueError(f"{where}: {len(row)} columns, the header has {len(header)}; mend or remove the row")
    values: dict[str, Any] = dict(zip(header, row))
    for name, kind in _NUMBERS.items():
        try:
            values[name] = kind(values[name]) if values[name] else None
        except ValueError:
            raise ValueError(f"{where}: {name}={values[name]!r} must be a number, or empty") from None
    return ManifestEntry(**values)


def _check(entries: Sequence[ManifestEntry], where: Sequence[str]) -> None:
    for entry, place in zip(entries, where):
        for name, value in entry._asdict().items():
            if isinstance(value, str) and value.splitlines() not in ([], [value]):
                raise ValueError(f"{place}: {name}={value!r} must be one line")
        for name in ("id", "file"):
            value = getattr(entry, name)
            if not _PATH.fullmatch(value) or not value.isprintable():
                raise ValueError(f"{place}: {name}={value!r} must be a relative path, no part empty or begun by a dot")
        if entry.url and not _URL.fullmatch(entry.url):
            raise ValueError(f"{place}: url={entry.url!r} must be empty or begin with http:// or https://, no blanks")
        if not _SHA256.fullmatch(entry.sha256):
            raise ValueError(f"{place}: sha256={entry.sha256!r} must be 64 hex digits in lower case, or empty")
        for name in _NUMBERS:
            value = getattr(entry, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{place}: {name}={value} must be above 0 and finite, or empty")
    for name in ("id", "file", "sha256"):
        seen: dict[str, str] = {}
        for entry, place in zip(entries, where):
            value = getattr(entry, name)
            if value and value in seen:
                raise ValueError(f"{place}: {name}={value!r} repeats {seen[value]}; remove one of the two")
            seen[value] = place


def select(candidates: Iterable[ManifestEntry], *, n: int, seed: int) -> list[ManifestEntry]:
    """Choose up to n clips, one category after another, so that the first clips of the choice are balanced too.

    A category's clips are taken by the lowest hash of (seed, id). So the order of the candidates does not matter, and
    one candidate more or less changes few others. A clip listed in several categories is used once.

    Args:
        candidates: Clips with their category.
        n: How many, at least 1.
        seed: Of the choice.

    Raises:
        ValueError: If n is below 1.
    """
    if n < 1:
        raise ValueError(f"n={n}: must be at least 1")
    by_category: dict[str, list[ManifestEntry]] = defaultdict(list)
    for entry in candidates:
        by_category[entry.category].append(entry)
    # The best is last and popped first. The query breaks ties between two rows of one clip.
    queues = [
        sorted(entries, key=lambda entry: (text_sha256(f"{seed}:{entry.id}"), entry.query), reverse=True)
        for _, entries in sorted(by_category.items())
    ]
    chosen: dict[str, ManifestEntry] = {}
    while any(queues):
        for queue in queues:
            while queue and queue[-1].id in chosen:
                queue.pop()
            if queue:
                entry = queue.pop()
                chosen[entry.id] = entry
    return list(chosen.values())[:n]


class Hashes:
    """Hashes of the files under `root`, cached in `root/.sha256.json` until a file's size or times change.

    Hashing 1 024 videos takes most of a minute.
    """

    def __init__(self, root: str | Path) -> None:
        self.root, self._changed = Path(root), False
        self._path = self.root / ".sha256.json"
        try:
            known = json.loads(self._path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = {}
        self._known: dict[str, list] = known if isinstance(known, dict) else {}

    def of(self, file: str) -> str:
        """SHA-256 of a file below the root; OSError if it cannot be read."""
        path = self.root / file
        state, remembered = _state(path), self._known.get(file)
        if isinstance(remembered, list) and len(remembered) == 4 and remembered[:3] == state:
            return remembered[3]
        found = file_sha256(path)
        # Not cached within 2 s of a change, because a file could change again within one tick of the clock.
        if _state(path) == state and time.time_ns() - state[2] > 2e9:
            self._known[file], self._changed = [*state, found], True
        return found

    def save(self) -> None:
        """Write new hashes to the cache. If the folder cannot be written, the files are hashed again next time."""
        if self._changed:
            try:
                with atomic_path(self._path) as partial:
                    partial.write_text(json.dumps(self._known), encoding="utf-8")
            except OSError as error:
                logger.info("hashes are not cached: %s", error)


def _state(path: Path) -> list[int]:
    state = os.stat(path)
    # The change time too, because a program can reset the modification time.
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def verify(entries: Sequence[ManifestEntry], root: str | Path) -> list[str]:
    """Compare the files under `root` with their locks.

    Returns:
        A line for each clip that is not locked, is missing, or has another size or hash.
    """
    hashes, problems = Hashes(root), []
    for entry in tqdm(entries, desc="verify", unit="clip", delay=5):
        path = Path(root, entry.file)
        try:
            size = path.stat().st_size
            if not entry.sha256:
                problems.append(f"{entry.id} is not locked by a hash")
            elif entry.bytes is not None and size != entry.bytes:
                problems.append(f"{entry.id}: {path} has {size} bytes, locked are {entry.bytes}")
            elif (found := hashes.of(entry.file)) != entry.sha256:
                problems.append(other_hash(path, found, entry.sha256))
        except FileNotFoundError:
            problems.append(f"{entry.id}: {path} is missing")
        except OSError as error:
            problems.append(f"{entry.id}: {path} cannot be read: {error.strerror}")
    hashes.save()
    return problems


def other_hash(where: Path | str, found: str, locked: str) -> str:
    """The message about a file that is not the locked one."""
    return f"{where} has another hash ({found[:12]}) than the one locked ({locked[:12]})"


def manifest_clips(manifest: str | Path, root: str | Path, *, n: int | None = None) -> list[tuple[str, Path]]:
    """The id and the file of each clip, verified by hash.

    Args:
        manifest: CSV file.
        root: Folder that its files are relative to.
        n: Takes the first n clips; None takes all.

    Raises:
        ValueError: If the manifest is malformed (see `read_manifest`) or has fewer than n clips, `root` is no folder,
            or a clip is not as locked.
    """
    entries = read_manifest(manifest)
    if n is not None and not 1 <= n <= len(entries):
        raise ValueError(f"n={n}: {manifest} has {len(entries)} clips; give 1 to {len(entries)}, or null for all")
    entries = entries[:n]
    if not Path(root).is_dir():
        raise ValueError(f"root={root} is no folder; benchmarks/pixabay/build.py fetches the videos of {manifest}")
    problems = verify(entries, root)
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"{len(problems)} of {len(entries)} clips of {manifest} cannot be used: {'; '.join(problems[:5])}{more}; "
            "remove wrong files, then benchmarks/pixabay/build.py fetches what is missing"
        )
    return [(entry.id, Path(root, entry.file)) for entry in entries]
