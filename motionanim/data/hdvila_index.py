"""A list of file names in an Arrow file, read batch by batch: HD-VILA's 100 M clips take next to no memory.

A row is a name and its group's share in [0, 1), the hash that splits training from validation. Rows are addressed by
position; a process holds a count for each batch of rows. Batches are not mapped, because mapped pages stay in memory.
"""

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from motionanim.data.file_lists import hash_share, split_border
from motionanim.files import atomic_path, text_sha256

logger = logging.getLogger(__name__)

_STARTED = time.time()
LOOKS = 200  # files by which `changes` compares an index with the disk
ROWS = 1024  # rows of a batch, which are held while writing and read to find a name
_SCHEMA = pa.schema([("name", pa.large_binary()), ("share", pa.float64())])


class IndexedNames(Sequence[str]):
    """One side of the split, as `Names` but on disk: the rows of an index whose share is in [low, high).

    Other processes are sent the index's path.
    """

    def __init__(self, path: Path, low: float, high: float) -> None:
        self.path, self.low, self.high = path, low, high
        self._file = _opened(path)
        self._ends = np.cumsum([self._chosen(share).sum() for share in _shares(path)], dtype=np.int64)

    def __reduce__(self) -> tuple[type, tuple[Path, float, float]]:
        return IndexedNames, (self.path, self.low, self.high)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise IndexError(f"name {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        before = int(self._ends[number - 1]) if number else 0
        row = int(self._rows(number)[index - before])
        return os.fsdecode(self._file.get_batch(number)["name"][row].as_py())

    def __iter__(self) -> Iterator[str]:
        for number in range(self._file.num_record_batches):
            for name in self._file.get_batch(number)["name"].take(pa.array(self._rows(number))):
                yield os.fsdecode(name.as_py())

    def earlier(self) -> Iterator["IndexedNames"]:
        """The same side of the earlier lists of this source, the newest first."""
        for path in _versions(self.path.parent, self.path.name.split(".")[0]):
            yield IndexedNames(path, self.low, self.high)

    def _rows(self, number: int) -> np.ndarray:
        """The chosen rows of a batch."""
        return np.flatnonzero(self._chosen(self._file.get_batch(number)["share"].to_numpy()))

    def _chosen(self, share: np.ndarray) -> np.ndarray:
        return (share >= self.low) & (share < self.high)


def split_index(path: Path, *, val_share: float) -> tuple[IndexedNames, IndexedNames]:
    """Training and validation names of an index, the same as `split_names` gives.

    Raises:
        ValueError: If the file is damaged, `val_share` is out of range, or there are fewer than two groups.
    """
    lowest, highest, rows = 1.0, 0.0, 0
    for share in _shares(path):
        lowest, highest, rows = min(lowest, share.min()), max(highest, share.max()), rows + len(share)
    border = split_border(lowest, highest, rows, val_share=val_share)
    return IndexedNames(path, border, 1.0), IndexedNames(path, 0.0, border)


def write_index(path: Path, names: Iterable[tuple[str, str]], *, root: Path | None = None) -> str:
    """Write pairs of a name and its group as they come; a run that is killed leaves no index.

    Args:
        root: Folder that the names are relative to; its state is stored for `changes`.

    Returns:
        A hash of the names, 16 hexadecimal digits.
    """
    # Taken first, so that changes during the listing count as changes since.
    state = "" if root is None else str(root.stat().st_mtime_ns)
    schema = _SCHEMA.with_metadata({"root": state, "seconds": str(time.time()), "process": str(os.getpid())})
    names, content = iter(names), hashlib.sha256()
    with (
        atomic_path(path) as partial,
        pa.ipc.new_file(str(partial), schema) as file,
        tqdm(desc="index", unit="clip", unit_scale=True) as progress,
    ):
        while rows := list(islice(names, ROWS)):
            encoded = [os.fsencode(name) for name, _ in rows]
            shares = np.array([hash_share(group) for _, group in rows])
            file.write_batch(pa.record_batch([encoded, shares], schema=schema))
            content.update(b"".join(name + b"\0" for name in encoded))
            progress.update(len(rows))
    return content.hexdigest()[:16]


def kept_index(folder: Path, about: str, names: Iterable[tuple[str, str]], *, root: Path) -> Path:
    """The index of a source under `folder`, written on the first call and when files came or went.

    Its name holds a hash of its content, so that earlier ones stay for the runs that began with them. Processes that
    this one starts take the same index, by an environment variable.

    Args:
        about: Identifies the source and its version.
        names: As `write_index` takes them; consumed only if an index is written.
        root: Folder that the names are relative to.
    """
    source = text_sha256(about)[:16]
    variable = f"MOTIONANIM_INDEX_{source}"
    process, _, given = os.environ.get(variable, "").partition(":")
    if given and process != str(os.getpid()) and (folder / given).is_file():
        return folder / given  # the index of the process that started this one
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{source}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # one of several training processes writes
        path = next(iter(_versions(folder, source)), None)
        change = "there is none yet" if path is None else changes(path, root)
        if change is None:
            logger.info("the list of clips in %s is used", path)
        else:
            logger.warning("the list of clips under %s is made: %s", root, change)
            new = folder / f"{source}.new"
            content = write_index(new, names, root=root)
            path = new.replace(new.with_suffix(f".{content}.arrow"))
    os.environ[variable] = f"{os.getpid()}:{path.name}"
    return path


def _versions(folder: Path, source: str) -> list[Path]:
    """The indices of a source, the newest first."""
    return sorted(folder.glob(f"{source}.*.arrow"), key=lambda path: path.stat().st_mtime_ns, reverse=True)


def changes(path: Path, root: Path) -> str | None:
    """A sign that files under `root` came or went since an index was written; None if there is none.

    It looks at `root`, which changes with its folders, and at `LOOKS` files and their folders from all parts of the
    list, because looking at all of them would take as long as a new index.
    """
    kept = _opened(path).schema.metadata or {}  # indices of an earlier version have none
    if path.stat().st_mtime > _STARTED and kept.get(b"process") != str(os.getpid()).encode():
        return None  # another process of this run wrote it: all need the same list, even while clips come in
    if kept.get(b"root") != str(root.stat().st_mtime_ns).encode():
        return f"folders in {root} came or went since"
    written = float(kept[b"seconds"])
    names = IndexedNames(path, 0.0, 1.0)
    for number in range(min(LOOKS, len(names))):
        file = root / names[number * len(names) // min(LOOKS, len(names))]
        if not file.is_file():
            return f"{file} is gone"
        if file.parent != root and file.parent.stat().st_mtime > written:
            return f"{file.parent} changed since"
    return None


def _shares(path: Path) -> Iterator[np.ndarray]:
    file = _opened(path, included_fields=[1])
    for number in range(file.num_record_batches):
        yield file.get_batch(number)["share"].to_numpy()


def _opened(path: Path, **options: Any) -> pa.RecordBatchFileReader:
    try:
        return pa.ipc.open_file(pa.OSFile(str(path)), options=pa.ipc.IpcReadOptions(**options))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} is damaged: delete it, the next run makes it anew") from error
