"""Checkpoints of a run: when they are written, what may be resumed, and how a stopped job goes back into its queue."""

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

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, a user's share of it, or a file's allowed size


class TimeIsUp(SIGTERMException):
    """SIGUSR1: the job's time is nearly over, and it should be put into the queue again."""


class CtrlC(SIGTERMException):
    """SIGINT: the user pressed Ctrl-C once."""


class Checkpoint(ModelCheckpoint):
    """Lightning's, which also saves when the job is told to stop: by SIGTERM, Ctrl-C, or SIGUSR1 before its time limit.

    All processes finish the step in hand, save and leave, whichever of them got the signal; one that comes during a
    validation waits for its end. Lightning's own handlers save and communicate from within the signal handler, in the
    middle of a step: with sharded weights that hangs. A second Ctrl-C leaves at once, and saves nothing: the weights
    may be in the middle of a step.

    Weights that are NaN or infinite are never saved. A run has one last.ckpt, and previous.ckpt is the one before it.

    The last step's checkpoint is written when all else of the run is. Lightning writes it before the last validation
    and the export, which a killed run would then never make up for, and only if that step is one to save at. Told to
    stop from the last step on, a run goes on to its end.
    """

    _first_step: int | None = None  # of this run, once it trains
    _place: dict[str, Any] | None = None  # in the loops, after the last step
    _updating: int | None = None  # the step whose update of the weights has begun
    _STOPS = (None, SIGTERMException, CtrlC, TimeIsUp)  # by what the run was told; of two the later counts

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, enable_version_counter=False, **options)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._told, self._first_step, self._place = 0, trainer.global_step, None
        # The trainer's teardown restores what was there before.
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT:
            if self._told:
                raise KeyboardInterrupt
            os.write(2, b"\nCtrl-C: the step in hand is finished and saved; Ctrl-C again leaves at once\n")
        self._told = max(self._told, {signal.SIGTERM: 1, signal.SIGINT: 2, signal.SIGUSR1: 3}[number])

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        self._updating = trainer.global_step

    def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
        self._updating = None
        if trainer.global_step == trainer.max_steps:
            # A longer run resumes here: by the time this step is saved, Lightning has closed the epoch and counted on.
            self._place = copy.deepcopy(trainer._checkpoint_connector._get_loops_state_dict())
            return
        super().on_train_batch_end(trainer, *rest)
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return  # half a step cannot be saved
        told = self._told
        if trainer.world_size > 1:
            shared = torch.tensor(told, device=trainer.strategy.root_device)
            told = int(trainer.strategy.reduce(shared, reduce_op="max"))
        if told:
            trainer._logger_connector.on_batch_end()  # Lightning logs a step after this hook: it would never be logged
            trainer._logger_connector.update_train_step_metrics()
            raise self._STOPS[told]

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            if self.save_last:
                self._save_last_checkpoint(trainer, candidates)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save, unless nothing was learned yet, or other processes may be alive and elsewhere: saving takes all.

        Nor after the last step, if there is a checkpoint before it: from there a resumed run repeats what failed. Nor
        where the weights are broken (`Diverged`) or a step may be half done (`KeyboardInterrupt`, and the death of a
        loader process, which torch makes an error wherever the training is), nor to a full disk.
        """
        # That error can also come between the update and the counts, the schedule and the average that follow it.
        half = self._updating == trainer.global_step or (self._updating is not None and is_loader_killed(exception))
        if half or isinstance(exception, Diverged | KeyboardInterrupt) or is_full(exception):
            return
        if trainer.global_step == trainer.max_steps and (self._last_checkpoint_saved or self._first_step):
            return
        together = trainer.world_size == 1 or isinstance(exception, SIGTERMException)
        learned = self._first_step is not None and trainer.global_step > self._first_step
        if together and learned and self._should_save_on_exception(trainer):
            # Lightning writes a file by the step's number before this one: time that a stopped job may not have.
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _save_last_checkpoint(self, trainer: L.Trainer, monitor_candidates: dict[str, Tensor]) -> None:
        """Raises Diverged, on every process, if a weight that trains is NaN or infinite: the files stay as they are."""
        trained = (local(p) for p in trainer.lightning_module.parameters() if p.requires_grad)
        finite = all(bool(weight.isfinite().all()) for weight in trained)
        if not trainer.strategy.reduce_boolean_decision(finite, all=True):
            raise Diverged(
                f"weights are NaN or infinite after step {trainer.global_step}: lower model.lr, keep "
                "trainer.gradient_clip_val, or train in 32-true"
            )
        super()._save_last_checkpoint(trainer, monitor_candidates)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count whole steps only: the gradients of half a step are not saved, and its clips come again on resume."""
        if self._place is not None:
            checkpoint["loops"] = self._place
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        half = progress["current"]["processed"] % trainer.accumulate_grad_batches
        for counts in (progress["total"], progress["current"]) if half else ():
            counts |= dict.fromkeys(counts, counts["processed"] - half)


class WholeFile(TorchCheckpointIO):
    """A checkpoint is written as a whole, and the one of its name that was there before stays as previous.ckpt.

    One that cannot be read does not become previous.ckpt: the run may have gone on from the one that has this name.
    Lightning copies it over from /tmp, if that is another disk.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raises OSError, which names the file, if there is no room: the earlier ones are as they were."""
        path = Path(path)
        try:
            with atomic_path(path) as temporary:
                with temporary.open("wb") as file:  # a full disk is an OSError for a file only
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())  # or a power failure leaves an empty file under the new name
                if path.exists() and readable(path):
                    os.replace(path, path.with_name("previous.ckpt"))
        except OSError as error:
            error.filename = error.filename or str(path)  # writing to an open file names none
            raise


def is_full(error: BaseException) -> bool:
    """Whether there was no room to write. Of safetensors' own error type only the text says so."""
    text = re.search(r"\(os error (\d+)\)", str(error))
    number = error.errno if isinstance(error, OSError) else text and int(text[1])
    return number in FULL


def is_loader_killed(error: BaseException) -> bool:
    """Whether a loader process died. An error raised in one begins otherwise: "Caught ... in DataLoader worker"."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def requeue() -> str:
    """Put this SLURM job back into its queue; what happened, for the user."""
    job = os.environ.get("SLURM_JOB_ID")
    if "SLURM_ARRAY_JOB_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    if job is None or shutil.which("scontrol") is None:
        return "no SLURM here to requeue it"
    done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    return f"job {job} " + ("is requeued" if done.returncode == 0 else f"cannot be requeued: {done.stderr.strip()}")


def check_checkpoint(path: str, module: L.LightningModule, data: StreamData) -> int:
    """Whether a checkpoint can be resumed, before anything is changed or written.

    Returns:
        The steps it has been trained for.

    Raises:
        ValueError: If the file is damaged, of an earlier version or of another module or size.
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
    """A checkpoint, its tensors left on the disk until they are used. Code that a file brings along is never run.

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
    """Whether `read_checkpoint` can read a file, whatever parts it has."""
    try:
        read_checkpoint(path, ())
    except ValueError:
        return False
    return True


def find_checkpoint(ckpt_path: str | None, run: Path) -> tuple[Path | None, list[Path]]:
    """The checkpoint to go on from.

    Args:
        ckpt_path: A file; `last` or `auto`: the newest one that can be read in the run's folder; None: begin anew.

    Returns:
        The checkpoint, and the newer ones, which are damaged. None to begin anew, as `auto` does where there is none: a
        requeued job needs no other command.

    Raises:
        ValueError: If it does not exist, or there are only damaged ones.
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
    """Strict about what trains; what is frozen need not be there.

    Raises:
        ValueError: If a trained parameter is missing or has another shape.
    """
    for name, parameter in module.named_parameters():
        found = saved.get(name)
        if parameter.requires_grad and (found is None or found.shape != parameter.shape):
            what = "is missing" if found is None else f"has shape {tuple(found.shape)}"
            raise ValueError(
                f"the checkpoint does not fit this model: {name} {what}, needed {tuple(parameter.shape)}; "
                "resume with the model settings (rank, conditioning, scale) that the run began with"
            )
