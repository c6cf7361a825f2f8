"""Kills a process at a chosen moment, for tests of the files that it leaves and of the next run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def wait_until(holds: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def kill_when(holds: Callable[[int], bool], *command: object, env: Mapping[str, str] | None = None) -> None:
    """Run `python *command` from the project's root and end it by SIGKILL once `holds(its process id)`."""
    process = subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=ROOT, env={**os.environ, **(env or {})}, stdout=subprocess.DEVNULL
    )

    def ready() -> bool:
        assert process.poll() is None, "the run ended by itself"
        return holds(process.pid)

    try:
        wait_until(ready, 1200)  # a busy machine takes minutes to import everything
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=60)
