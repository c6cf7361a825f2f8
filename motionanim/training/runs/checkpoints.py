"""Checkpoints of a run: when they are saved, which of them can be resumed, and how a stopped SLURM job is requeued."""

import copy
import errno
import os
import pickle
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from motionanim.data.stream import StreamData
from motionanim.files import atomic_path
from motionanim.training.optim import Diverged
from motionanim.training.runs.folder import checkpoints
from motionanim.training.strategies import local

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no room on the disk, in the user's quota, in the file


class TimeIsUp(SIGTERMException):
    """SIGUSR1: the job's time is nearly over, and the job should be requeued."""


class CtrlC(SIGTERMException):
    """SIGINT: the user pressed Ctrl-C once."""


class Checkpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, which also saves on SIGTERM, on Ctrl-C and on SIGUSR1 (before a job's time limit).

    Whichever process gets the signal, all of them finish the current step or validation, save and leave. Lightning's
    own handlers save from within the signal handler, in the middle of a step, which hangs with sharded weights. A
    second Ctrl-C leaves at once without saving, because the weights may be half updated.

    Weights that are NaN or infinite are never saved. A run keeps last.ckpt and the one before it, previous.ckpt.

    The last step is always saved, and only after the last validation and the export: Lightning saves it before them, if
    at all, so that a run killed in between would never make up for them. A signal in or after the last step is ignored.
    """

    _first_step: int | None = None  # global_step when this process began to train
    _place: dict[str, Any] | None = None  # state of Lightning's loops after the last step
    _updating: int | None = None  # the step whose update of the weights has begun
    _STOPS = (None, SIGTERMException, CtrlC, TimeIsUp)  # of several signals the one that is last here counts

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, enable_version_counter=False, **options)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._stop, self._first_step, self._place = 0, trainer.global_step, None
        # The trainer's teardown restores the earlier handlers.
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._stop:
                raise KeyboardInterrupt
            os.write(2, b"\nCtrl-C: the step in hand is finished and saved; Ctrl-C again leaves at once\n")
        self._stop = max(self._stop, {signal.SIGTERM: 1, signal.SIGINT: 2, signal.SIGUSR1: 3}[number])

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        self._updating = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
        self._updating = None
        if trainer.global_step == trainer.max_steps:
            # For a longer run that resumes here: when this step is saved, Lightning has already closed the epoch.
            self._place = copy.deepcopy(trainer._checkpoint_connector._get_loops_state_dict())
            return
        super().on_train_batch_end(trainer, *rest)
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return  # half a step cannot be saved
        stop = self._stop
        if trainer.world_size > 1:
            shared = torch.tensor(stop, device=trainer.strategy.root_device)
            stop = int(trainer.strategy.reduce(shared, reduce_op="max"))
        if stop:
            trainer._logger_connector.on_batch_end()  # Lightning would log this step after this hook
            trainer._logger_connector.update_train_step_metrics()
            raise self._STOPS[stop]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            if self.save_last:
                self._save_last_checkpoint(trainer, candidates)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save, except in these cases.

        - No step was trained yet.
        - Other processes may be elsewhere: saving needs all of them.
        - The weights are broken (`Diverged`), or a step may be half done (`KeyboardInterrupt`, or the death of a loader
          process, which torch raises at any place in the training).
        - The disk is full.
        - The last step is done and there is an earlier checkpoint: a run resumed from it repeats what failed.
        """
        # A loader's death can also be raised between the update and the step count, schedule and average after it.
        half = self._updating == trainer.global_step or (self._updating is not None and is_loader_killed(exception))
        if half or isinstance(exception, Diverged | KeyboardInterrupt) or is_full(exception):
            return
        if trainer.global_step == trainer.max_steps and (self._last_checkpoint_saved or self._first_step):
            return
        together = trainer.world_size == 1 or isinstance(exception, SIGTERMException)
        learned = self._first_step is not None and trainer.global_step > self._first_step
        if together and learned and self._should_save_on_exception(trainer):
            # Lightning would first save another file, named by the step; a stopped job may not have the time.
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_last_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Raises Diverged, on all processes, if a trained weight is NaN or infinite; the files stay as they are."""
        trained = (local(p) for p in trainer.lightning_module.parameters() if p.requires_grad)
        finite = all(bool(weight.isfinite().all()) for weight in trained)
        if not trainer.strategy.reduce_boolean_decision(finite, all=True):
            raise Diverged(
                f"weights are NaN or infinite after step {trainer.global_step}: lower model.lr, keep "
                "trainer.gradient_clip_val, or train in 32-true"
            )
        super()._save_last_checkpoint(trainer, monitor_candidates)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count whole steps only: gradients of half a step are not saved, so a resumed run begins the step again."""
        if self._place is not None:
            checkpoint["loops"] = self._place
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        half = progress["current"]["processed"] % trainer.accumulate_grad_batches
        for counts in (progress["total"], progress["current"]) if half else ():
            counts |= dict.fromkeys(counts, counts["processed"] - half)


class WholeFile(TorchCheckpointIO):
    """Write a checkpoint atomically, and keep the earlier file of its name as previous.ckpt.

    A damaged file does not replace previous.ckpt, from which the run may have resumed. Lightning's own plugin writes to
    /tmp first, and its copy from there to another disk is not atomic.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises OSError, which names the file, if the disk is full; the earlier files stay as they are."""
        path = Path(path)
        try:
            with atomic_path(path) as temporary:
                with temporary.open("wb") as file:  # given a path, torch raises RuntimeError on a full disk
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())  # otherwise a power failure can leave an empty file
                if path.exists() and readable(path):
                    os.replace(path, path.with_name("previous.ckpt"))
        except OSError as error:
            error.filename = error.filename or str(path)  # an error of an open file has no name
            raise


def is_full(error: BaseException) -> bool:
    """Whether an error means a full disk. That of safetensors has the error number in its text only."""
    text = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else text and int(text[1])
    return number in FULL


def is_loader_killed(error: BaseException) -> bool:
    """Whether a loader process died. (The text of an error raised in one begins with "Caught".)"""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def requeue() -> str:
    """Put this SLURM job back into its queue; returns what happened, as a message."""
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None or shutil.which("scontrol") is None:
        return "no SLURM here to requeue it"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    return f"job {job} " + ("is requeued" if done.returncode == 0 else f"cannot be requeued: {done.stderr.strip()}")


def check_checkpoint(path: str, module: L.LightningModule, data: StreamData) -> int:
    """Check that a checkpoint can be resumed.

    Returns:
        Its number of trained steps.

    Raises:
        ValueError: If the file is damaged, of an earlier version, or of another module or size.
    """
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step", type(data).__qualname__)
    saved = read_checkpoint(path, parts)
    try:
        data.check_state(saved[type(data).__qualname__])
        check_weights(module, saved["state_dict"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return saved["global_step"]


def read_checkpoint(path: str | Path, parts: Iterable[str]) -> dict[str, Any]:
    """A checkpoint; its tensors stay on the disk until they are used. Code in the file is never run.

    Raises:
        ValueError: If the file is damaged or lacks one of `parts`.
    """
    try:
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: damaged, or of another program") from error
    missing = [part for part in parts if not isinstance(saved, dict) or part not in saved]
    if missing:
        raise ValueError(f"{path} is no checkpoint of this version's runs: it lacks {', '.join(missing)}")
    return saved


def readable(path: Path) -> bool:
    """Whether `read_checkpoint` can read a file, whichever parts it has."""
    try:
        read_checkpoint(path, ())
    except ValueError:
        return False
    return True


def find_checkpoint(ckpt_path: str | None, run: Path) -> tuple[Path | None, list[Path]]:
    """The checkpoint to resume from.

    Args:
        ckpt_path: A file; `last` or `auto` for the newest readable checkpoint in the run's folder; None for none.

    Returns:
        The checkpoint, or None to begin anew, and newer ones that are damaged. `auto` begins anew in a run without
        checkpoints, so that a requeued job can repeat its command.

    Raises:
        ValueError: If there is no such checkpoint, or all are damaged.
    """
    if ckpt_path is None:
        return None, []
    if ckpt_path not in ("last", "auto"):
        if not Path(ckpt_path).is_file():
            raise ValueError(
                f"ckpt_path={ckpt_path}: no such file; give a .ckpt file, ckpt_path=last or ckpt_path=auto"
            )
        return Path(ckpt_path), []
    damaged = []
    for path in reversed(checkpoints(run)):
        if readable(path):
            return path, damaged
        damaged.append(path)
    if damaged:
        raise ValueError(
            f"ckpt_path={ckpt_path}: {', '.join(map(str, damaged))} cannot be read: remove what is damaged to begin "
            "anew, or give another run=NAME"
        )
    if ckpt_path == "last":
        raise ValueError(
            f"ckpt_path=last: no checkpoint under {run}: give the run by run=NAME, or start without ckpt_path"
        )
    return None, []


def check_weights(module: L.LightningModule, saved: Mapping[str, Tensor]) -> None:
    """Raises ValueError if a parameter that trains is missing or has another shape; frozen ones may be missing."""
    for name, parameter in module.named_parameters():
        found = saved.get(name)
        if parameter.requires_grad and (found is None or found.shape != parameter.shape):
            what = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise ValueError(
                f"the checkpoint does not fit this model: {name} {what}, needed {tuple(parameter.shape)}; "
                "resume with the model settings (rank, conditioning, scale) that the run began with"
            )
