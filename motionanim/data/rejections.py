"""Files that cannot be used: recorded once over all processes, counted, and replaced by other files of the list."""

import csv
import fcntl
import io
import logging
import math
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from torch.utils.data import Dataset

from motionanim.data.order import Order
from motionanim.data.video import VideoError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

MOST_IN_A_ROW = 100  # so many failures in a row show that a disk went away, not that files are bad


class Rejections:
    """The files that cannot be used: logged, kept in a CSV file, and counted over all loader processes.

    Args:
        path: The CSV file (path, reason), which all processes append to; made at the first rejection.
        total: Number of files.
        max_share: Share of them that may fail before training stops, in [0, 1].
    """

    def __init__(self, path: str | Path, *, total: int, max_share: float) -> None:
        if not 0 <= max_share <= 1:
            raise ValueError(f"max_rejected_share={max_share}: must be in [0, 1]")
        self.path, self.total, self.max_share = Path(path), total, max_share
        self._known: set[str] = set()  # rejected by any process, as far as the file was read
        self._read = 0  # bytes of the file that were read, because reading all of it each time would be quadratic
        self._in_a_row = 0
        self._held: dict[str, VideoError] = {}  # recorded when a file can be used: until then the disk may be away

    def add(self, error: VideoError) -> None:
        """A file failed. It is recorded, once, when the next file can be used.

        Raises:
            ValueError: If `MOST_IN_A_ROW` files failed without a usable one between; none of these is recorded.
        """
        self._in_a_row += 1
        if error.path not in self._known:
            self._held[error.path] = error
        if self._in_a_row >= MOST_IN_A_ROW:
            raise ValueError(
                f"{self._in_a_row} clips in a row cannot be used, the last: {error}: see whether their disk is still "
                "there, then resume; if it is, python -m motionanim.data.prepare names the bad files"
            ) from error

    def succeeded(self) -> None:
        """A file could be used: record those that failed before it; raises as `record`."""
        self._in_a_row = 0
        self.record()

    def record(self) -> None:
        """Record what has failed.

        Raises:
            ValueError: If more than the allowed share has failed.
        """
        while self._held:
            error = self._held.pop(next(iter(self._held)))
            self._write(error)
            if len(self._known) > self.max_share * self.total:
                raise ValueError(
                    f"{len(self._known)} of {self.total} clips cannot be used, more than "
                    f"max_rejected_share={self.max_share} allows; the last: {error}; all are named in {self.path}: "
                    "mend or remove them, or allow more"
                ) from error

    def _write(self, error: VideoError) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file closes, or its process dies
            file.seek(self._read)
            found = csv.reader(io.StringIO(file.read().decode(errors="replace"), newline=""))
            self._known |= {row[0] for row in found if len(row) == 2 and row != ["path", "reason"]}
            if error.path not in self._known:
                logger.warning("rejected: %s", error)
                lines = io.StringIO()
                rows = [] if file.tell() else [("path", "reason")]
                csv.writer(lines).writerows([*rows, (error.path, error.reason)])
                file.write(lines.getvalue().encode())
                self._known.add(error.path)
            self._read = file.tell()


class FileItems(Dataset[Item], ABC):
    """Items of files. An unusable file is recorded, and another file of the list takes its place.

    The other file has the same root and shape, as long as there is one.
    """

    root: Path | Sequence[Path]  # folder that the names are relative to
    names: Sequence[str]
    order: Order  # of random items
    random: bool  # False: item n is file n
    rejections: Rejections

    def path(self, name: str) -> Path:
        return self.root / name

    @abstractmethod
    def load(self, path: Path, position: int) -> Item:
        """The item at a position, from a file; raises VideoError."""

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, position: int) -> Item:
        """Raises ValueError if too many files, too many in a row, or all are unusable."""
        length = len(self)
        if not self.random and not 0 <= position < length:
            raise IndexError(f"item {position} of {length}")
        for index in _candidates(self.order, position) if self.random else _far_apart(position, length):
            try:
                item = self.load(self.path(self.names[index]), position)
            except VideoError as error:
                self.rejections.add(error)
            else:
                self.rejections.succeeded()
                return item
        self.rejections.record()
        raise ValueError(f"none of {length} files under {self.root} can be used: see {self.rejections.path}")


def _candidates(order: Order, position: int) -> Iterator[int]:
    """All items, each once: the one at the position, those like it, and the rest."""
    first = order.item(position)
    yield first
    alike = order.alike(first)
    yield from (int(alike[place]) for place in islice(_far_apart(bisect_left(alike, first), len(alike)), 1, None))
    if len(alike) < order.items:
        rest = np.setdiff1d(np.arange(order.items), alike)
        yield from (int(rest[place]) for place in _far_apart(0, len(rest)))


def _far_apart(first: int, length: int) -> Iterator[int]:
    """All indices, each once, neighbours far apart: files that stand together are often of one bad folder."""
    step = max(1, round(0.618 * length))
    while math.gcd(step, length) > 1:
        step += 1
    return ((first + number * step) % length for number in range(length))
