"""Arguments, results and the time limit of each part of benchmarks/gpu.py."""

import argparse
import json
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from motionanim.files import atomic_path


class Results:
    """The results of a part: rows in one JSON file, which is replaced atomically after each row.

    A row is a dict of plain values. Its key `failed`, if any, holds the reason why there is no figure, in one line.

    Args:
        path: The file; its earlier rows are kept.
        until: `time.time()` at which the part must end.
    """

    def __init__(self, path: Path, until: float) -> None:
        self.path, self.until = path, until
        self.rows: dict[str, dict[str, Any]] = read_rows(path)

    def left(self) -> float:
        """Seconds until the part must end."""
        return self.until - time.time()

    def put(self, name: str, **values: Any) -> None:
        """Add or replace a row and write the file."""
        self.rows[name] = values
        self._write()

    def measure(self, name: str, run: Callable[[], dict[str, Any]], *, needs: float) -> None:
        """Add the row that `run` returns, unless an earlier call made it or fewer than `needs` seconds are left.

        An error becomes a row too, so that later figures are still measured.
        """
        if "failed" not in self.rows.get(name, {"failed": ""}):
            return
        if self.left() < needs:
            self.put(name, failed=f"no time: {max(0, self.left()):.0f} s were left, it needs about {needs:.0f}")
            return
        start = time.time()
        try:
            values = run()
        except torch.OutOfMemoryError:
            values = {"failed": "out of memory"}
        except Exception as error:
            values = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"}
        self.put(name, **values)
        shown = values.get("failed") or ", ".join(f"{key} {show(value)}" for key, value in values.items())
        print(f"  {name}: {shown} ({time.time() - start:.0f} s, {self.left():.0f} s left)", flush=True)

    def _write(self) -> None:
        with atomic_path(self.path) as path:
            path.write_text(json.dumps(self.rows, indent=1) + "\n", encoding="utf-8")


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """The rows of a part's file; no rows if there is no file.

    Raises:
        ValueError: If it is not the file of a part.
    """
    if not path.exists():
        return {}
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} holds no results: move it away") from error
    if not isinstance(rows, dict) or not all(isinstance(row, dict) for row in rows.values()):
        raise ValueError(f"{path} holds no results: move it away")
    return rows


def check_settings(out: Path, device: str, overrides: list[str]) -> None:
    """Record the device and settings of a folder, so that a later call with others adds no figures to it.

    Raises:
        ValueError: If the folder has other ones.
    """
    now = {"device": device, "overrides": sorted(overrides)}
    rows = read_rows(out / "machine.json")
    before = rows.setdefault("settings", now)
    if before != now:
        told = " ".join([before["device"], *before["overrides"]])
        raise ValueError(
            f"--out {out} was made with other settings ({told}): give another folder, or the same settings"
        )
    with atomic_path(out / "machine.json") as path:
        path.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def show(value: Any) -> str:
    """A value as text; numbers have three digits."""
    return f"{value:.3g}" if isinstance(value, float) and abs(value) < 1000 else str(value)


def arguments(doc: str, *more: str) -> argparse.Namespace:
    """Parse the arguments of a part: --out, --device, --until, the options `more`, and configuration overrides."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True)
    parser.add_argument("--until", type=float, required=True, help="time.time() at which it must be over")
    for option in more:
        parser.add_argument(option)
    parser.add_argument("overrides", nargs="*", default=[])
    args = parser.parse_args()
    end_with_parent()
    return args


def end_with_parent() -> None:
    """Exit as soon as the parent process has ended, which closes the pipe to our standard input."""
    if not stat.S_ISFIFO(os.fstat(0).st_mode):
        return  # started by hand

    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
