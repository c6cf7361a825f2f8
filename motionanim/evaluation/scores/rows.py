"""One row of JSON per scored clip, appended when it is finished, so that a killed run loses only its current clip."""

import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Rows:
    """The rows of one run, shared by any number of processes on one file system.

    A row is a dict with "clip" and "key". Of two rows with one key the later counts. A line that a kill cut short is
    skipped, and its clip is done again.

    Args:
        path: The JSONL file.

    Raises:
        ValueError: If a line is JSON but not a row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_key = {row["key"]: row for row in self._read()}

    def _read(self) -> Iterator[dict[str, Any]]:
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if not isinstance(row, dict) or not {"clip", "key"} <= row.keys():
                raise ValueError(f"{self.path} line {number} is no row of an evaluation: move the file away")
            yield row

    def append(self, row: dict[str, Any]) -> None:
        """Write a row; returns once it is on disk."""
        line = json.dumps(row, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released when the file closes, or its process dies
            end = file.seek(0, os.SEEK_END)
            file.seek(max(end - 1, 0))
            if file.read(1) not in (b"", b"\n"):  # a kill cut the last line short
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.by_key[row["key"]] = row
