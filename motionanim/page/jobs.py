"""The queue of videos to make, and the one process that makes them."""

import asyncio
import json
import os
import secrets
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import motionanim
from motionanim.files import write_new
from motionanim.page.gallery import SUFFIXES
from motionanim.page.photos import Photo
from motionanim.page.settings import Settings, arguments, command

MOST_JOBS = 100  # that the list keeps
PATIENCE = 5.0  # seconds that the worker has to answer a cancel
LINE = 2**20  # bytes, the longest report


@dataclass
class Job:
    """A video to make."""

    id: str
    name: str  # of its files, without suffix
    photo: str  # id
    drawing: Any  # as it was sent
    settings: Settings
    arguments: list[str]  # of `motionanim.animate`
    created: float  # unix time
    state: str = "waiting"  # running, done, failed or cancelled
    stage: str | None = None
    share: float = 0.0  # of the whole, in [0, 1]
    left: float | None = None  # seconds
    error: str | None = None
    notes: list[str] = field(default_factory=list)
    seconds: float | None = None  # that it took
    unwanted: bool = False  # cancelled while it runs

    @property
    def ended(self) -> bool:
        return self.state not in ("waiting", "running")


class Queue:
    """Makes one video at a time, in the order of the requests. All calls must come from one event loop.

    Args:
        folder: Working folder.
        base: Overrides of each job that choose the base.
    """

    def __init__(self, folder: Path, base: list[str]) -> None:
        self._folder, self._base = folder, base
        self._jobs: dict[str, Job] = {}  # oldest first
        self._wake, self._claiming = asyncio.Event(), asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    async def add(self, photo: Photo, drawing: Any, settings: Settings) -> dict[str, Any]:
        """Queue a job; its drawing is written at once and claims its name.

        Raises:
            OSError: If the drawing cannot be written.
        """
        content = (json.dumps(drawing, ensure_ascii=False) + "\n").encode()
        async with self._claiming:
            name = await asyncio.to_thread(_claimed, self._folder, Path(photo.name).stem, content)
        given = arguments(settings, image=photo.name, name=name, base=self._base)
        job = Job(secrets.token_hex(8), name, photo.id, drawing, settings, given, time.time())
        self._jobs[job.id] = job
        for old in [each.id for each in self._jobs.values() if each.ended][: max(0, len(self._jobs) - MOST_JOBS)]:
            del self._jobs[old]
        self._wake.set()
        return self.shown(job)

    async def preview(self, photo: Photo, settings: Settings) -> str:
        """The command of the job that `add` would queue."""
        name = await asyncio.to_thread(_free, self._folder, Path(photo.name).stem)
        return command(arguments(settings, image=photo.name, name=name, base=self._base))

    def shown(self, job: Job) -> dict[str, Any]:
        """A job as the page shows it."""
        waiting = [each for each in self._jobs.values() if each.state == "waiting"]
        files = {}
        if job.state == "done":
            wanted = [kind for kind in SUFFIXES if kind not in ("gif", "webp") or job.settings[kind]]
            files = {kind: job.name + SUFFIXES[kind] for kind in wanted}
        told = ("id", "name", "state", "stage", "share", "left", "error", "notes", "created", "seconds", "settings")
        return {
            **{key: getattr(job, key) for key in told},
            "photo": job.photo,
            "place": waiting.index(job) + 1 if job in waiting else 0,
            "command": command(job.arguments),
            "files": files,
        }

    def listed(self) -> list[dict[str, Any]]:
        """All jobs, newest first."""
        return [self.shown(job) for job in reversed(self._jobs.values())]

    def drawing(self, id: str) -> Any:
        """The drawing of a job. Raises LookupError if there is none."""
        return self._job(id).drawing

    def _job(self, id: str) -> Job:
        if id not in self._jobs:
            raise LookupError(f"no job {id[:40]}: the list of jobs has its id")
        return self._jobs[id]

    async def cancel(self, id: str) -> dict[str, Any]:
        """Cancel a job that waits or runs; one that has ended stays as it is. Raises LookupError if there is none."""
        job = self._job(id)
        if job.state == "waiting":
            self._end(job, "cancelled")
        elif job.state == "running" and not job.unwanted:
            job.unwanted = True
            if self._process is not None:
                await self._send({"cancel": job.id})
            asyncio.get_running_loop().call_later(PATIENCE, self._kill, job)
        return self.shown(job)

    async def run(self) -> None:
        """Make videos until this task is cancelled."""
        try:
            with suppress(OSError):  # the first job tries again, and says why it cannot
                self._process = await self._started()  # it imports PyTorch while one draws
            while True:
                job = next((each for each in self._jobs.values() if each.state == "waiting"), None)
                if job is None:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                job.state, job.stage = "running", "starting"
                try:
                    await self._make(job)
                except Exception as error:  # such as a folder that is gone: the next job is made all the same
                    traceback.print_exc()
                    self._end(job, "failed", f"it could not be made ({error}): see the terminal of the page")
        finally:
            await self._close()

    async def _make(self, job: Job) -> None:
        """Send a job to the worker and follow its reports to the end."""
        start = time.monotonic()
        if self._process is None or self._process.returncode is not None:
            try:
                self._process = await self._started()
            except OSError as error:
                reason = error.strerror or error
                self._end(job, "failed", f"the process that makes videos cannot be started ({reason}): try again")
                return
        if job.unwanted:
            self._end(job, "cancelled")
            return
        await self._send({"job": job.id, "arguments": job.arguments})
        while line := await self._process.stdout.readline():
            report = json.loads(line)
            if "stage" in report:
                job.stage, job.share, job.left = report["stage"], report["share"], report["left"]
            elif "note" in report:
                job.notes.append(report["note"])
            else:
                job.seconds = time.monotonic() - start
                if "done" in report:
                    job.notes, job.share, job.left = report["notes"], 1.0, 0.0
                    self._end(job, "done")
                elif "cancelled" in report:
                    self._end(job, "cancelled")
                else:
                    self._end(job, "failed", report["error"])
                return
        code = await self._process.wait()
        await asyncio.to_thread(_tidy, self._folder, self._process.pid)
        if job.unwanted:
            self._end(job, "cancelled")
        else:
            self._end(
                job, "failed",
                f"the process that makes videos ended (code {code}), perhaps for lack of memory: try a smaller size",
            )  # fmt: skip

    async def _started(self) -> asyncio.subprocess.Process:
        # -P: a file named like a module in the working folder is not imported.
        paths = [str(Path(motionanim.__file__).parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        return await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "motionanim.page.worker", cwd=self._folder, limit=LINE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip

    async def _send(self, order: dict[str, Any]) -> None:
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            await self._process.stdin.drain()
        except ConnectionError:
            pass  # the worker has ended, which its output shows

    def _kill(self, job: Job) -> None:
        if job.state == "running" and self._process is not None and self._process.returncode is None:
            self._process.kill()

    def _end(self, job: Job, state: str, error: str | None = None) -> None:
        job.state, job.stage, job.left, job.error = state, None, None, error
        if state == "cancelled":
            with suppress(OSError):
                (self._folder / (job.name + SUFFIXES["arrows"])).unlink()

    async def _close(self) -> None:
        """End the worker: at the end of its input it stops its job at the next report."""
        process = self._process
        if process is None:
            return
        if process.returncode is None:
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), PATIENCE)
            except TimeoutError:
                process.kill()
                await process.wait()
        _tidy(self._folder, process.pid)


def _free(folder: Path, stem: str) -> str:
    """The first STEM-1, STEM-2, ... that no file of a video has."""
    taken = {path.name for path in folder.iterdir()}
    names = (f"{stem}-{number}" for number in count(1))
    return next(name for name in names if taken.isdisjoint(name + suffix for suffix in SUFFIXES.values()))


def _claimed(folder: Path, stem: str, drawing: bytes) -> str:
    """Write a drawing under the first free name, which no other process then takes."""
    while True:
        name = _free(folder, stem)
        try:
            write_new(folder / (name + SUFFIXES["arrows"]), drawing)
            return name
        except FileExistsError:
            continue


def _tidy(folder: Path, pid: int) -> None:
    """Remove the temporary files of a process that was killed."""
    for path in folder.glob(f".*.{pid}.*"):
        path.unlink(missing_ok=True)
