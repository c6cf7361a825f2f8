"""Fetches videos by their URL, or takes them from a folder, probes them, and locks them by their hash."""

import csv
import fcntl
import io
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from download import LIMITS, TOO_LARGE, HttpError, Limits, Sleep, download, shown, tag_path
from tqdm import tqdm

from motionanim.data.folder import folder_names
from motionanim.data.video import Video, VideoError
from motionanim.evaluation.manifest import (
    Hashes,
    ManifestEntry,
    other_hash,
    read_manifest,
    select,
    write_manifest,
)
from motionanim.files import atomic_path, file_sha256

_decoder = threading.Lock()  # one video is decoded at a time, because the threads are for the network


class Needs(NamedTuple):
    """Requirements for a clip; all must be landscape."""

    frames: int  # in the file and also at `fps`, so that both ways of reading a clip find enough
    fps: float
    min_width: int  # px
    min_height: int

    @property
    def seconds(self) -> float:
        """From the first frame needed to the last."""
        return (self.frames - 1) / self.fps


class Unusable(ValueError):
    """A clip can never serve the benchmark; the message says why."""


class FetchReport(NamedTuple):
    """The result of a fetch for all clips."""

    locked: int  # clips that are there with their hash
    rejected: list[tuple[str, str]]  # id and reason of unusable clips, each replaced by a spare
    failed: list[tuple[str, str]]  # id and reason of clips still without a file or a hash


def probe(path: Path, needs: Needs) -> dict[str, Any]:
    """Decode the first and the last frame that a benchmark takes.

    Returns:
        width, height, fps, frames and duration of `ManifestEntry`.

    Raises:
        Unusable: If it cannot be decoded, is too small, too short or not landscape.
    """
    try:
        with _decoder:
            video = Video(path)
            height, width = video.size()
            places = video.nearest(np.arange(needs.frames) / needs.fps)
            enough = min(len(places), video.info.num_frames) >= needs.frames
            if enough:
                video.read(np.array([max(int(places[-1]), needs.frames - 1)]), height=1, width=1)
    except VideoError as error:
        raise Unusable(error.reason) from error
    if width <= height:
        raise Unusable(f"is not landscape: {width}x{height} px")
    if width < needs.min_width or height < needs.min_height:
        raise Unusable(f"is too small: {width}x{height} px, needed {needs.min_width}x{needs.min_height}")
    if not enough:
        raise Unusable(
            f"is too short: {video.info.num_frames} frames in {video.info.seconds:.2f} s, needed {needs.frames} "
            f"and {needs.seconds:.2f} s"
        )
    info = video.info
    return {
        "width": width, "height": height, "fps": round(info.fps, 3), "frames": info.num_frames,
        "duration": round(info.seconds, 3),
    }  # fmt: skip


def lock_folder(
    folder: Path, *, n: int | None, seed: int, needs: Needs, licence: str
) -> tuple[list[ManifestEntry], list[tuple[str, str]]]:
    """Lock videos that are there already.

    Args:
        folder: Searched with its subfolders; the name of the first subfolder is a clip's category.
        n: Number of clips, chosen by `select` with `seed`; None takes all that can be used.
        licence: Written into each row.

    Returns:
        The clips, and file and reason of each video that cannot be used.

    Raises:
        ValueError: If there are fewer than n, or none.
    """
    if n is not None and n < 1:
        raise ValueError(f"n={n}: must be at least 1")
    candidates: dict[str, ManifestEntry] = {}  # by SHA-256
    files: dict[str, str] = {}  # by id
    rejected = []
    for name in tqdm(list(folder_names(folder)), desc="hash", unit="clip", delay=5):
        path = folder / name
        try:
            found = probe(path, needs)
            sha256 = file_sha256(path)
            if sha256 in candidates:
                raise Unusable(f"has the same content as {candidates[sha256].file}")
            clip = str(PurePosixPath(name).with_suffix(""))
            if clip in files:
                raise Unusable(f"has the same name without suffix as {files[clip]}")
        except Unusable as error:
            rejected.append((name, str(error)))
            continue
        files[clip], parts = name, PurePosixPath(name).parts
        candidates[sha256] = ManifestEntry(
            id=clip, file=name, url="", sha256=sha256, licence=licence,
            category=parts[0] if len(parts) > 1 else "", bytes=path.stat().st_size, page_url="", author="", query="",
            **found,
        )  # fmt: skip
    if len(candidates) < (n or 1):
        why = "; ".join(f"{name} {reason}" for name, reason in rejected[:5])
        raise ValueError(f"{folder} has {len(candidates)} videos that can be used, needed are {n or 1}; {why}")
    return select(candidates.values(), n=n or len(candidates), seed=seed), rejected


def spares_path(manifest: Path) -> Path:
    """The manifest of the clips that replace unusable ones, in order."""
    return manifest.with_suffix(".spares.csv")


def write_spares(manifest: Path, spares: Sequence[ManifestEntry]) -> None:
    """Write the spares of a manifest; no file for none."""
    if spares:
        write_manifest(spares_path(manifest), spares)
    else:
        spares_path(manifest).unlink(missing_ok=True)


def rejected_path(manifest: Path) -> Path:
    """The list of unusable clips (id, url, reason)."""
    return manifest.with_suffix(".rejected.csv")


def fetch(
    manifest: Path, root: Path, *, needs: Needs, workers: int, limits: Limits = LIMITS, sleep: Sleep | None = None
) -> FetchReport:
    """Fetch missing clips and lock unlocked ones, one row at a time, so that a killed run goes on from there.

    An unusable unlocked clip is replaced by a spare of its category, else by any spare. A locked clip is accepted with
    its hash only.

    Args:
        manifest: CSV file; rewritten at each lock.
        root: Folder of the videos; unfinished ones end in `.part`.
        needs: What a clip must have to be locked.
        workers: Downloads at a time.
        limits: Of a file and of redirects. A locked file may have its locked size.
        sleep: Waits that many seconds; None ends a wait when the run is interrupted.

    Raises:
        ValueError: If another fetch into `root` runs, the manifest is malformed, or a file cannot be written.
    """
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root):
        try:
            return _Run(manifest, root, needs, limits, sleep).all(workers)
        except OSError as error:
            where = error.filename or f"{root} or {manifest}"
            raise ValueError(
                f"{where} cannot be written: {error.strerror}; what was fetched is kept: mend that, then run again"
            ) from error


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    with (root / ".fetch.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # released when its process dies
        except BlockingIOError:
            raise ValueError(f"another fetch into {root} is running; wait for its end") from None
        yield


class _Run:
    """One fetch: threads get the files, and the calling thread writes the manifest."""

    def __init__(self, manifest: Path, root: Path, needs: Needs, limits: Limits, sleep: Sleep | None) -> None:
        self.manifest, self.root, self.needs, self.limits = manifest, root, needs, limits
        self.entries = read_manifest(manifest)
        self.stop, self.hashes = threading.Event(), Hashes(root)
        self.sleep = sleep or self.stop.wait
        self.owner = {entry.sha256: entry.id for entry in self.entries if entry.sha256}
        spares = spares_path(manifest)
        # A kill between two writes can leave a spare that is in use already.
        used = {entry.id for entry in self.entries} | {row[0] for row in _rows(rejected_path(manifest))}
        self.spares = [e for e in read_manifest(spares) if e.id not in used] if spares.exists() else []
        self.rejected: list[tuple[str, str]] = []
        self.failed: list[tuple[str, str]] = []

    def all(self, workers: int) -> FetchReport:
        locked = 0
        with ThreadPoolExecutor(workers) as pool, tqdm(total=len(self.entries), desc="fetch", unit="clip") as progress:
            running: dict[Future[ManifestEntry], int] = {}
            try:
                running |= {pool.submit(self.one, entry): place for place, entry in enumerate(self.entries)}
                while running:
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        place = running.pop(future)
                        try:
                            self.lock(place, future.result())
                            locked += 1
                        except Unusable as error:
                            if self.replace(place, str(error)):
                                running[pool.submit(self.one, self.entries[place])] = place
                                continue
                        except ValueError as error:
                            self.failed.append((self.entries[place].id, str(error)))
                        progress.update()
            finally:
                self.stop.set()
                pool.shutdown(cancel_futures=True)
                self.hashes.save()
        return FetchReport(locked, self.rejected, self.failed)

    def one(self, entry: ManifestEntry) -> ManifestEntry:
        """Get one clip's file; returns its locked entry. Runs in a thread.

        Raises:
            Unusable: If an unlocked clip cannot serve.
            ValueError: If the file cannot be had, or has another hash than the locked one.
        """
        path = self.root / entry.file
        if path.exists():
            found = self.hashes.of(entry.file)
            if entry.sha256 and found != entry.sha256:
                raise ValueError(f"{other_hash(path, found, entry.sha256)}: remove it and run again to fetch it anew")
            return entry if entry.sha256 else self.described(entry, path, found)
        if not entry.url:
            raise ValueError(f"{path} is missing, and its row has no url: put the file back")
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{path.name}.part")
        try:
            limits = self.limits._replace(bytes=max(entry.bytes or 0, self.limits.bytes))
            download(entry.url, part, sleep=self.sleep, stop=self.stop, limits=limits)
        except HttpError as error:
            if error.status in (404, 410, TOO_LARGE) and not entry.sha256:
                raise Unusable(str(error)) from error
            raise
        found = file_sha256(part)
        try:
            if entry.sha256 and found != entry.sha256:
                raise ValueError(
                    f"{other_hash(shown(entry.url), found, entry.sha256)}: the server has another file now"
                )
            locked = entry if entry.sha256 else self.described(entry, part, found)
        except ValueError:
            part.unlink()  # otherwise the next run would take it up again
            raise
        else:
            os.replace(part, path)
        finally:
            tag_path(part).unlink(missing_ok=True)
        return locked

    def described(self, entry: ManifestEntry, path: Path, sha256: str) -> ManifestEntry:
        return entry._replace(sha256=sha256, bytes=path.stat().st_size, **probe(path, self.needs))

    def lock(self, place: int, entry: ManifestEntry) -> None:
        if entry == self.entries[place]:
            return
        if entry.sha256 in self.owner:
            raise Unusable(f"has the same content as {self.owner[entry.sha256]}")
        self.owner[entry.sha256] = entry.id
        self.entries[place] = entry
        write_manifest(self.manifest, self.entries)

    def replace(self, place: int, reason: str) -> bool:
        """Replace an unusable clip by a spare; False if none is left."""
        entry = self.entries[place]
        if not self.spares:
            self.failed.append((entry.id, f"{reason}; no spare is left: build with another seed or fewer clips"))
            return False
        spare = next((s for s in self.spares if s.category == entry.category), self.spares[0])
        self.rejected.append((entry.id, reason))
        _write_rows(rejected_path(self.manifest), (entry.id, entry.url, reason))
        self.entries[place] = spare
        write_manifest(self.manifest, self.entries)
        self.spares.remove(spare)
        write_spares(self.manifest, self.spares)
        return True


def _rows(path: Path) -> list[list[str]]:
    if not path.exists():
        return []
    return list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))[1:]


def _write_rows(path: Path, row: tuple[str, ...]) -> None:
    rows = [("id", "url", "reason"), *_rows(path), row]
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
