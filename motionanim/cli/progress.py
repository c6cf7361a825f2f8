"""One progress bar over a whole job of several stages, with the time left."""

import sys
import time
from types import TracebackType
from typing import Self

import torch
from tqdm import tqdm

DELAY = 3.0  # seconds; shorter jobs show no bar
EVERY = 0.5, 30.0  # seconds between two looks at it: on a terminal, and in a log, where each stays


def now() -> float:
    """Seconds of a clock, once the GPU has done what it was told."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


class Stage:
    """Units of about equal cost."""

    def __init__(self, units: float, seconds: float | None) -> None:
        self.units, self.guess = units, seconds
        self.done = self.spent = self.first_done = self.first_spent = 0.0

    def add(self, units: float, seconds: float) -> None:
        if self.done == 0:
            self.first_done, self.first_spent = units, seconds
        self.done, self.spent = self.done + units, self.spent + seconds

    @property
    def left(self) -> float | None:
        """Seconds; None while there is nothing to tell them from."""
        if self.done >= self.units:
            return 0.0
        per_unit = self.guess
        if self.done > self.first_done:
            # The first report holds what is prepared for all units.
            per_unit = (self.spent - self.first_spent) / (self.done - self.first_done)
        elif self.done > 0 and per_unit is None:
            per_unit = self.spent / self.done
        return None if per_unit is None else (self.units - self.done) * per_unit


class Progress:
    """A bar on standard error that stands at the share of the job's time that is over.

    The time left is the sum over all stages that are expected: of the seconds that a unit has taken so far, before that
    of the guess. Close it by a `with` statement.

    Attributes:
        stages: By name, in the order in which they were first named.

    Args:
        shown: False prints nothing.
        runs: How often all stages come again, such as once for each video of a sweep.
    """

    def __init__(self, *, shown: bool = True, runs: int = 1) -> None:
        self._runs, self.stages = runs, dict[str, Stage]()
        self._start = self._last = now()
        self._bar = tqdm(
            desc="preparing", total=1, disable=not shown, leave=False, delay=DELAY, miniters=0,
            mininterval=EVERY[0] if sys.stderr.isatty() else EVERY[1],
            bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}{postfix}",
        )  # fmt: skip

    def expect(self, stage: str, units: float, *, seconds: float | None = None) -> None:
        """Announce a stage of one run: `units` of about `seconds` each, None if nobody can guess them.

        Only the first word about a stage counts: whoever knows all its units speaks first, and a part of the job speaks
        for itself where it is used alone.
        """
        if units > 0 and not self._bar.disable:
            self.stages.setdefault(stage, Stage(units * self._runs, seconds))

    def done(self, stage: str, units: float = 1) -> None:
        """Report units as done; the time since the last report was theirs."""
        if self._bar.disable:
            return
        time = now()
        self.stages.setdefault(stage, Stage(0, 0)).add(units, time - self._last)
        self._last = time
        elapsed, left = time - self._start, self.left
        waiting = [name for name, each in self.stages.items() if each.left != 0]
        self._bar.set_description_str(stage if stage in waiting or not waiting else waiting[0], refresh=False)
        self._bar.set_postfix_str(f"{'?' if left is None else tqdm.format_interval(left)} left", refresh=False)
        self._bar.total = None if left is None else elapsed + left
        self._bar.update(elapsed - self._bar.n)

    @property
    def left(self) -> float | None:
        """Seconds that the job will take from the last report on; None while a stage can only be measured."""
        parts = [stage.left for stage in self.stages.values()]
        return None if None in parts else sum(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


# For callers that want no bar.
SILENT = Progress(shown=False)
