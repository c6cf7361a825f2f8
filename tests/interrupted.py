"""Waiting for what a running command does: for tests of resuming."""

import time
from collections.abc import Callable

from forked import Process

LONGEST = 600  # seconds that a busy machine may take for what needs a few


def wait_until(ready: Callable[[], bool], process: Process) -> None:
    """Wait for `ready()`; an error if the process ends before, or it takes too long."""
    end = time.monotonic() + LONGEST
    while True:
        ended = process.poll() is not None  # before `ready`, or it could end between the two
        if ready():
            return
        assert not ended, f"the command ended by itself: {process.read(2)[-2000:]}"
        assert time.monotonic() < end, "not ready in time"
        time.sleep(0.02)
