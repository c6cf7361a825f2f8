"""The process that makes the page's videos, one after the other: python -m motionanim.page.worker

Each line of standard input is an order, {"job": id, "arguments": [...]} with the arguments of `motionanim.animate`, or
{"cancel": id}. Each line of standard output is a report on the running job: {"stage", "share", "left"}, {"note"}, and
at the end {"done": seconds, "notes"}, {"error"} or {"cancelled"}. The end of the input stops the job and the process.
"""

import importlib
import json
import os
import queue
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import motionanim
from motionanim.animate import composed, run
from motionanim.animation.loaded import Loaded
from motionanim.cli.command import one_line, quiet
from motionanim.cli.settings import readable

PACKAGE = Path(motionanim.__file__).parent
EVERY = 0.1  # seconds between reports of progress

Tell = Callable[[dict[str, Any]], None]


class Stopped(Exception):
    """The running job was cancelled, or the page has ended."""


class Orders:
    """The lines of standard input, read by a thread of their own."""

    def __init__(self, lines: IO[str]) -> None:
        self.jobs: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.cancelled, self.ended = set[str](), False
        threading.Thread(target=self._read, args=(lines,), daemon=True).start()

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            order = json.loads(line)
            if "cancel" in order:
                self.cancelled.add(order["cancel"])
            else:
                self.jobs.put(order)
        self.ended = True
        self.jobs.put(None)


def make(arguments: Sequence[str], loaded: Loaded, tell: Tell, stopped: Callable[[], bool]) -> None:
    """Make one video as the command does, and report on it."""
    last = 0.0

    def watch(stage: str, share: float, left: float | None) -> None:
        nonlocal last
        if stopped():
            raise Stopped
        if time.monotonic() - last >= EVERY:
            last = time.monotonic()
            tell({"stage": stage, "share": share, "left": left})

    def note(message: Warning | str, category: type[Warning], filename: str, *_: Any) -> None:
        if Path(filename).is_relative_to(PACKAGE):  # those of libraries tell an artist nothing
            tell({"note": str(message)})

    config = None
    try:
        given = [readable(argument) for argument in arguments]
        config = composed(given)
        with warnings.catch_warnings():  # forgets which notes an earlier job was told
            quiet(networks=False)
            warnings.showwarning = note
            record = run(config, overrides=given, keep=False, watch=watch, loaded=loaded).record
        tell({"done": record["seconds"], "notes": record["notes"]})
    except Stopped:
        tell({"cancelled": True})
    except Exception as error:
        text = one_line(error, config)
        if text is None:
            traceback.print_exc()
            text = f"a fault of the program ({type(error).__name__}), which the terminal of the page shows: report it"
        tell({"error": text})


def main() -> None:
    """Make videos until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the page too, which ends this process
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # leaves no temporary files
    reports = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print goes to the terminal
    orders, loaded = Orders(sys.stdin), Loaded()

    def tell(report: dict[str, Any]) -> None:
        print(json.dumps(report), file=reports, flush=True)

    importlib.import_module("motionanim.animation.job")  # with PyTorch, which takes seconds, while one draws
    while (order := orders.jobs.get()) is not None:
        id = order["job"]
        make(order["arguments"], loaded, tell, lambda id=id: orders.ended or id in orders.cancelled)


if __name__ == "__main__":
    main()
