"""Run a command in a process group of its own and interrupt it: for tests of resuming."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from forked import Process

LONGEST = 600  # seconds that a busy machine may take for what needs a few


@contextmanager
def started(
    command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """The running command, its stderr a file to be read; at the end all of its group is killed."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, cwd=cwd, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=errors, text=True
        )
        process.stderr = errors  # a pipe that nobody reads would stop a command that writes much
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str] | Process) -> None:
    """Wait for `ready()`; an error if the process ends before, or it takes too long."""
    end = time.monotonic() + LONGEST
    while True:
        ended = process.poll() is not None  # before `ready`, or it could end between the two
        if ready():
            return
        assert not ended, f"the command ended by itself: {read_errors(process)[-2000:]}"
        assert time.monotonic() < end, "not ready in time"
        time.sleep(0.02)


def read_errors(process: subprocess.Popen[str] | Process) -> str:
    if isinstance(process, Process):
        return process.read(2)
    process.stderr.seek(0)
    return process.stderr.read()
