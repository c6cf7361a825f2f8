"""One progress bar over a whole job of several stages, with the time left."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

import torch
from tqdm import tqdm

DELAY = 3.0  # seconds; shorter jobs show no bar
EVERY = 0.5, 30.0  # seconds between updates: on a terminal, and in a log file, which keeps each of them

# Told after each report: the stage that runs, the share of the whole job that is done, in [0, 1], and the seconds left;
# None if a stage has neither a measurement nor a guess, and the share is then 0. An exception stops the job.
Watch = Callable[[str, float, float | None], None]


def now() -> float:
    """Seconds of a clock, read after the GPU has finished its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class Stage:
    """One stage of a job: units of about equal cost.

    Args:
        seconds: Guess for a unit; None if there is none.
    """

    def __init__(self, units: float, seconds: float | None) -> None:
        self.units, self.guess = units, seconds
        self.done = self.spent = self.first_done = self.first_spent = 0.0

    def add(self, units: float, seconds: float) -> None:
        if self.done == 0:
            self.first_done, self.first_spent = units, seconds
        self.done, self.spent = self.done + units, self.spent + seconds

    @property
    def left(self) -> float | None:
        """Seconds left; None if no unit is done and there is no guess."""
        if self.done >= self.units:
            return 0.0
        per_unit = self.guess
        if self.done > self.first_done:
            # The first report includes the preparation for all units.
            per_unit = (self.spent - self.first_spent) / (self.done - self.first_done)
        elif self.done > 0 and per_unit is None:
            per_unit = self.spent / self.done
        return None if per_unit is None else (self.units - self.done) * per_unit


class Progress:
    """A bar on standard error for the share of the job's time that has passed. Use it in a `with` statement.

    The time left is the sum over all announced stages. Each takes its measured seconds per unit, or the guess before
    there is a measurement.

    Attributes:
        stages: By name, in the order of their announcement.

    Args:
        shown: False prints nothing.
        runs: How often the job repeats all stages, such as once for each video of a sweep.
        watch: Told of each report, whether the bar is shown or not.
    """

    def __init__(self, *, shown: bool = True, runs: int = 1, watch: Watch | None = None) -> None:
        self._runs, self.stages, self._watch = runs, dict[str, Stage](), watch
        self._counts = shown or watch is not None
        self._start = self._last = now()
        self._bar = tqdm(
            desc="preparing", total=1, disable=not shown, leave=False, delay=DELAY, miniters=0,
            mininterval=EVERY[0] if sys.stderr.isatty() else EVERY[1],
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
        )  # fmt: skip

    def expect(self, stage: str, units: float, *, seconds: float | None = None) -> None:
        """Announce a stage of one run: `units` of about `seconds` each; None without a guess.

        Only the first announcement of a stage counts. A caller that knows all units announces them before the parts of
        the job, which also announce theirs in case they are used alone.
        """
        if units > 0 and self._counts:
            self.stages.setdefault(stage, Stage(units * self._runs, seconds))

    def done(self, stage: str, units: float = 1) -> None:
        """Report units as done in the time since the last report."""
        if not self._counts:
            return
        time = now()
        self.stages.setdefault(stage, Stage(0, 0)).add(units, time - self._last)
        self._last = time
        elapsed, left = time - self._start, self.left
        waiting = [name for name, each in self.stages.items() if each.left != 0]
        stage = stage if stage in waiting or not waiting else waiting[0]
        self._bar.set_description_str(stage, refresh=False)
        self._bar.set_postfix_str(f"{'?' if left is None else tqdm.format_interval(left)} left", refresh=False)
        self._bar.total = None if left is None else elapsed + left
        self._bar.update(elapsed - self._bar.n)
        if self._watch is not None:
            self._watch(stage, 0.0 if left is None else elapsed / max(elapsed + left, 1e-9), left)

    @property
    def left(self) -> float | None:
        """Seconds left at the last report; None if a stage has neither a measurement nor a guess."""
        parts = [stage.left for stage in self.stages.values()]
        return None if None in parts else sum(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


# For callers without a bar.
SILENT = Progress(shown=False)
