"""Who does the work of `prepare` and `encode`: processes of this machine, or Ray on many; the results are the same."""

import multiprocessing
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import cv2
import torch

Result = TypeVar("Result")
Task = tuple[Any, ...]


class Engine(Protocol):
    """Calls `function(*task)` for each task and yields the results as they come, in any order.

    Tasks are consumed as a stream: only a few wait at a time. An error that a call raises ends the iteration. A task
    whose process dies has the result `lost(*task)`; without `lost` it ends the iteration with a ValueError.
    """

    def __call__(
        self, function: Callable[..., Result], tasks: Iterable[Task], lost: Callable[..., Result] | None = None
    ) -> Iterator[Result]: ...


@dataclass(kw_only=True)
class ProcessEngine:
    """Processes of this machine; with `workers` = 0 this process does the work."""

    workers: int

    def __post_init__(self) -> None:
        if self.workers < 0:
            raise ValueError(f"workers={self.workers}: must be at least 0")

    def __call__(
        self, function: Callable[..., Result], tasks: Iterable[Task], lost: Callable[..., Result] | None = None
    ) -> Iterator[Result]:
        if self.workers == 0:
            yield from (function(*task) for task in tasks)
            return
        tasks = iter(tasks)
        running: dict[Future, Task] = {}
        while True:
            waiting: list[Task] = []  # at most one: a task that is not in `running` yet
            try:
                yield from self._all(function, tasks, running, waiting)
                return
            except BrokenProcessPool as error:
                suspects = [*running.values(), *waiting]
                if lost is None:
                    raise ValueError(
                        f"a worker process died while it worked on one of {sorted(str(task[0]) for task in suspects)}: "
                        "out of memory, or a file that crashes the decoder; run again to resume, with engine.workers=0 "
                        "to see which"
                    ) from error
            # One at a time, so that it is known which of them ends its process.
            running.clear()
            yield from _one_by_one(function, suspects, lost)

    def _all(
        self, function: Callable[..., Result], tasks: Iterator[Task], running: dict[Future, Task], waiting: list[Task]
    ) -> Iterator[Result]:
        with _pool(self.workers) as pool:
            try:
                for task in tasks:
                    waiting.append(task)
                    running[pool.submit(function, *task)] = task
                    waiting.clear()
                    if len(running) >= 4 * self.workers:
                        yield from _finished(running)
                while running:
                    yield from _finished(running)
            finally:
                pool.shutdown(wait=False, cancel_futures=True)


def _one_by_one(function: Callable[..., Result], tasks: list[Task], lost: Callable[..., Result]) -> Iterator[Result]:
    """All tasks in one process, and in a new process after a task that ended it."""
    left = iter(tasks)
    while (task := next(left, None)) is not None:
        with _pool(1) as pool:
            try:
                while task is not None:
                    yield pool.submit(function, *task).result()
                    task = next(left, None)
            except BrokenProcessPool:
                yield lost(*task)


def _pool(workers: int) -> ProcessPoolExecutor:
    # Spawned, because a forked process inherits the locks of OpenCV's and torch's threads and cannot use a GPU.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)


def _finished(running: dict[Future, Task]) -> list[Any]:
    finished, _ = wait(running, return_when=FIRST_COMPLETED)
    results = [future.result() for future in finished]
    for future in finished:
        del running[future]
    return results


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the main process answers Ctrl-C, in one line
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@dataclass(kw_only=True)
class RayEngine:
    """A Ray cluster, or Ray on this machine. A task whose machine dies is done again on another machine."""

    address: str | None  # of the cluster, as `ray.init` takes it; None starts Ray on this machine
    cpus: float  # cores per task
    gpus: float  # GPUs per task, or a share of one
    retries: int  # how often a task whose machine died is begun again

    def __call__(
        self, function: Callable[..., Result], tasks: Iterable[Task], lost: Callable[..., Result] | None = None
    ) -> Iterator[Result]:
        """Raises ValueError if Ray is not installed, cannot be reached, or lost a task more than `retries` times."""
        try:
            import ray
        except ImportError as error:
            raise ValueError("engine=ray needs Ray: pip install -e .[ray]") from error
        host, _, port = (self.address or "").removeprefix("ray://").rpartition(":")
        try:
            if port.isdigit():  # Ray itself keeps trying for many minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(self.address, include_dashboard=False, ignore_reinit_error=True, log_to_driver=False)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"engine.address={self.address}: no Ray cluster answers ({error})") from error

        @ray.remote(num_cpus=self.cpus, num_gpus=self.gpus, max_retries=self.retries)
        def work(*task: Any) -> Result:
            return function(*task)

        running: dict[ray.ObjectRef, Task] = {}
        try:
            for task in tasks:
                running[work.remote(*task)] = task
                # The number of cores is asked anew each time, because machines come and go.
                if len(running) >= 4 * max(1, ray.cluster_resources().get("CPU", 1)):
                    yield _collected(ray, running, lost)
            while running:
                yield _collected(ray, running, lost)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None  # as if the work had been done here
        except ray.exceptions.RayError as error:
            raise ValueError(f"Ray lost a task for good ({type(error).__name__}): run again, it goes on") from error
        finally:
            for reference in running:
                ray.cancel(reference, force=True)


def _collected(ray: Any, running: dict[Any, Task], lost: Callable[..., Any] | None) -> Any:
    (reference,), _ = ray.wait(list(running), num_returns=1)
    task = running.pop(reference)
    try:
        return ray.get(reference)
    except ray.exceptions.WorkerCrashedError:
        if lost is None:
            raise
        return lost(*task)
