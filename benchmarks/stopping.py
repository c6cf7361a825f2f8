"""For `stops.py`: the real training command in a forked process, and its losses compared with a whole run's."""

import csv
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch

import motionanim.training.motion_lora
import motionanim.training.preview  # noqa: F401  all imported once, before the forks
from motionanim.training.runs.folder import checkpoints

ROOT = Path(__file__).resolve().parents[1]
EVERY = 20  # steps between checkpoints
ARGUMENTS = (
    "experiment=motion_lora", "scale.height=32", "scale.width=32", "scale.num_frames=3", "scale.batch_size=1",
    "scale.num_workers=1", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1", "data.val.length=2",
    "trainer.val_check_interval=100000", "sampling.num_steps=2", "callbacks.preview.clips=1",
    "callbacks.camera.clips=1",
    f"callbacks.checkpoint.every_n_train_steps={EVERY}", "+trainer.enable_progress_bar=false",
)  # fmt: skip


class Training:
    """train.py in a forked process in the folder `cwd`, with its output in a file."""

    def __init__(self, cwd: Path, *words: str, before: Callable[[], object] = lambda: None, **env: str) -> None:
        self.log = cwd / f"log.{len(list(cwd.glob('log.*')))}"
        self.pid = os.fork()
        if self.pid:
            return
        os.setsid()
        for number in (1, 2):
            os.dup2(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.chdir(cwd)
        os.environ.update({"WANDB_MODE": "offline", "WANDB_SILENT": "true"} | env)
        wandb = [] if "WANDB_API_KEY" in env else ["logger=csv"]
        flags, settings = ([word for word in words if (word == "-m") is flag] for flag in (True, False))
        sys.argv = [str(ROOT / "train.py"), *flags, *ARGUMENTS, *settings, *wandb]
        sys.path[0] = str(ROOT)
        status = 1
        try:
            before()
            runpy.run_path(sys.argv[0], run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            import traceback

            traceback.print_exc()
        sys.stdout.flush()
        os._exit(status)

    def over(self) -> bool:
        if self.pid:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.pid, self.status = 0, os.waitstatus_to_exitcode(status)
        return not self.pid

    def wait(self, done: Callable[[], object] = lambda: False, seconds: float = 600) -> "Training":
        """Wait until `done` or the end of the process."""
        end = time.monotonic() + seconds
        while not self.over() and not done():
            if time.monotonic() > end:
                self.kill(signal.SIGKILL)
                raise TimeoutError(f"{self.log} is not over after {seconds} s")
            time.sleep(0.05)
        return self

    def kill(self, *numbers: int) -> "Training":
        for number in numbers:
            if not self.over():
                os.killpg(self.pid, number)  # loader processes and all, as a terminal or SLURM does
                time.sleep(0.3)
        return self

    def told(self) -> list[str]:
        """The output's lines without warnings."""
        text = self.log.read_text(errors="replace")
        return [line for line in text.splitlines() if line.strip() and "Warning" not in line]


COLUMNS = (
    "stopped by", "exit code", "last line", "last.ckpt, step", "previous.ckpt, step", "losses equal after resuming",
    "exit code of resuming", "last line of resuming, or note",
)  # fmt: skip


class Row(NamedTuple):
    """A line of the report."""

    what: str
    told: str  # what `short` says of the stopped run
    kept: dict[str, int]  # name of a checkpoint to its step, -1 if it cannot be read
    after: str  # how many losses are equal, or what `short` says of a resumed run that failed
    note: str = ""

    def cells(self) -> list[str]:
        """One for each of COLUMNS."""
        code, _, said = self.told.partition(": ")
        kept = {name: "unreadable" if step < 0 else str(step) for name, step in self.kept.items()}
        ended, _, last = self.after.partition(": ")
        equal, failed, after = (ended, "", self.note) if not ended or " of " in ended else ("", ended, last)
        return [self.what, code, said, kept.get("last.ckpt", ""), kept.get("previous.ckpt", ""), equal, failed, after]


class Bench:
    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps, self.half = folder, steps, steps // 2
        self.whole = self.train("whole").wait()
        self.losses = losses(self.run("whole"))
        assert len(self.losses) == steps, self.whole.told()[-5:]

    def run(self, name: str) -> Path:
        return self.folder / "runs" / "motion_lora" / name

    def train(self, name: str, *words: str, **options: object) -> Training:
        return Training(self.folder, f"run={name}", f"trainer.max_steps={self.steps}", *words, **options)

    def until(self, name: str, step: int) -> Callable[[], bool]:
        """Whether the run has a checkpoint of that step or a later one."""
        return lambda: any(step_of(path) >= step for path in checkpoints(self.run(name)))

    def started(self, name: str, *words: str, **options: object) -> Training:
        """Start a run and wait until it has saved near its middle."""
        return self.train(name, *words, **options).wait(self.until(name, self.half))

    def row(self, what: str, stopped: Training, name: str, *words: str, resume: str = "auto", **env: str) -> Row:
        """Resume a stopped run and compare its losses."""
        kept = {path.name: step_of(path) for path in checkpoints(self.run(name))}
        told = short(stopped)
        resumed = self.train(name, f"ckpt_path={resume}", *words, **env).wait()
        return Row(what, told, kept, self.compared(name, resumed))

    def compared(self, name: str, resumed: Training) -> str:
        found = losses(self.run(name))
        equal = sum(found.get(step) == loss for step, loss in self.losses.items())
        if resumed.status:
            return short(resumed)
        return f"{equal} of {self.steps}"


def step_of(path: Path) -> int:
    try:
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)["global_step"]
    except (OSError, RuntimeError, EOFError):
        return -1  # damaged, or replaced just now


def losses(run: Path) -> dict[int, str]:
    """Step to loss as printed, of all parts of a run; a later part replaces what an earlier one has of its steps."""
    found: dict[int, str] = {}
    for table in [*sorted(run.glob("metrics.*.csv")), run / "metrics.csv"]:
        if table.exists():
            with table.open(newline="") as file:
                found |= {int(row["step"]): row["train/loss"] for row in csv.DictReader(file) if row.get("train/loss")}
    return found


def short(training: Training) -> str:
    """Exit code, how many lines of a traceback there are, and the last line."""
    lines = training.told()
    traces = sum("Traceback" in line for line in lines)
    last = next((line for line in reversed(lines) if line.startswith(("error:", "stopped", "done"))), "")
    said = last.replace("|", "/").replace(str(training.log.parent) + "/", "").replace("runs/motion_lora/", "")
    return f"{training.status}{f', {traces} tracebacks' if traces else ''}{f': `{said}`' if said else ''}"


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A disk of its own; needs the right to mount."""
    folder = Path(tempfile.mkdtemp())
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)
        folder.rmdir()
