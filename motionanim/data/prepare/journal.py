"""The journal of `prepare`: one line of JSON per file that was examined, from which a killed run goes on."""

import fcntl
import json
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

logger = logging.getLogger(__name__)


class Journal:
    """The records of a folder, opened by `opened_journal`."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self.path, self._file = path, file

    def add(self, *records: dict[str, Any]) -> None:
        """Append records, each with its "key", and flush them."""
        self._file.writelines(json.dumps(record) + "\n" for record in records)
        self._file.flush()

    def records(self) -> Iterator[dict[str, Any]]:
        """All records in the order they were made, without lines that cannot be read."""
        unreadable = 0
        with open(self.path, encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    record = json.loads(line)
                    digest(record["key"])
                except (ValueError, KeyError, TypeError):
                    unreadable += 1
                else:
                    yield record
        if unreadable:
            logger.warning("%d lines of %s cannot be read: their clips are done again", unreadable, self.path)

    def chosen(self, wanted: set[int]) -> Iterator[dict[str, Any]]:
        """The first record of each of the `wanted` digests, which are removed from the set, as it may be large."""
        for record in self.records():
            if (key := digest(record["key"])) in wanted:
                wanted.remove(key)
                yield record


@contextmanager
def opened_journal(folder: Path) -> Iterator[Journal]:
    """Open the journal of a folder for this process alone; half a line that a kill has left is cut off.

    Raises:
        ValueError: If another process has it open.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # The system holds the lock while this process lives, so that a killed run leaves none.
    with open(folder / "journal.lock", "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            who = lock.read().strip() or "another process"
            raise ValueError(f"out={folder} is being written by {who}: wait for it, or give another out") from None
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        lock.flush()
        path = folder / "journal.jsonl"
        _cut_torn_line(path)
        with open(path, "a", encoding="utf-8") as file:
            yield Journal(path, file)


def digest(key: str) -> int:
    """A key as a number, so that 100 M of them fit in memory."""
    return int(key, 16)


def _cut_torn_line(path: Path) -> None:
    if path.exists():
        with open(path, "rb+") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 2**20))
            tail = file.read()
            file.truncate(size - len(tail) + tail.rfind(b"\n") + 1)
