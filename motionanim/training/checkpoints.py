"""Checkpoints of a run: when they are written, what may be resumed, and how a stopped job goes back into its queue."""

import copy
import os
import pickle
import shutil
import signal
import subprocess
from collections.abc import Mapping
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


class TimeIsUp(SIGTERMException):
    """SIGUSR1: the job's time is nearly over, and it should be put into the queue again."""


class Checkpoint(ModelCheckpoint):
    """Lightning's, which also saves when the job is told to stop: by SIGTERM, or SIGUSR1 before its time limit.

    All processes finish the step in hand, save and leave, whichever of them got the signal; one that comes during a
    validation waits for its end. Lightning's own handlers save and communicate from within the signal handler, in the
    middle of a step: with sharded weights that hangs.

    The last step's checkpoint is written when all else of the run is. Lightning writes it before the last validation
    and the export, which a killed run would then never make up for, and only if that step is one to save at. Told to
    stop from the last step on, a run goes on to its end.
    """

    _first_step: int | None = None  # of this run, once it trains
    _place: dict[str, Any] | None = None  # in the loops, after the last step

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._told, self._first_step, self._place = 0, trainer.global_step, None
        for number in (signal.SIGTERM, signal.SIGUSR1):  # the trainer's teardown restores what was there before
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self._told = max(self._told, 2 if number == signal.SIGUSR1 else 1)

    def on_train_batch_end(self, trainer: L.Trainer, *rest: Any) -> None:
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
            raise (TimeIsUp if told == 2 else SIGTERMException)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._should_skip_saving_checkpoint(trainer):
            candidates = self._monitor_candidates(trainer)
            self._save_topk_checkpoint(trainer, candidates)
            if self.save_last:
                self._save_last_checkpoint(trainer, candidates)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Save, unless nothing was learned yet, or other processes may be alive and elsewhere: saving takes all.

        Nor after the last step, if there is a checkpoint before it: from there a resumed run repeats what failed.
        """
        if trainer.global_step == trainer.max_steps and (self._last_checkpoint_saved or self._first_step):
            return
        together = trainer.world_size == 1 or isinstance(exception, SIGTERMException)
        learned = self._first_step is not None and trainer.global_step > self._first_step
        if together and learned and self._should_save_on_exception(trainer):
            # Lightning writes a file by the step's number before this one: time that a stopped job may not have.
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count whole steps only: the gradients of half a step are not saved, and its clips come again on resume."""
        if self._place is not None:
            checkpoint["loops"] = self._place
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        half = progress["current"]["processed"] % trainer.accumulate_grad_batches
        for counts in (progress["total"], progress["current"]) if half else ():
            counts |= dict.fromkeys(counts, counts["processed"] - half)


class WholeFile(TorchCheckpointIO):
    """A checkpoint replaces the last one in one step. Lightning copies it over from /tmp, if that is another disk."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with atomic_path(path) as temporary, temporary.open("wb") as file:  # a full disk is an OSError for a file only
            torch.save(checkpoint, file)


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
    try:
        saved = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, EOFError, ValueError, OSError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: damaged, or of another program") from error
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "global_step", type(data).__qualname__)
    missing = [part for part in parts if not isinstance(saved, dict) or part not in saved]
    if missing:
        raise ValueError(f"{path} is no checkpoint of this version's runs: it lacks {', '.join(missing)}")
    try:
        data.check_state(saved[type(data).__qualname__])
        check_weights(module, saved["state_dict"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return saved["global_step"]


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
