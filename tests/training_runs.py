"""Small trainings on random clips, whose losses can be compared to the last digit."""

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import lightning as L
import torch
from conftest import MOTION, make_batch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Dataset

from motionanim.data.stream import StreamData
from motionanim.training.motion_lora import MotionLoraModule
from motionanim.training.runs.checkpoints import Checkpoint
from motionanim.types import ClipBatch

NUMBERS = {
    "motion": MOTION,
    "sigma_mean": 0.7,
    "free_sigma_mean": 0.7,
    "sigma_std": 1.6,
    "noise_aug_mean": -3.0,
    "noise_aug_std": 0.5,
    "drop_image": 0.1,
    "drop_flow": 0.3,
    "drop_strength": 0.1,
    "checkpoint_width": 0,
    "compile": None,
    "lr": 1e-3,
    "weight_decay": 0.01,
    "warmup_steps": 0,
    "decay_steps": 0,
    "seed": 0,
}


SAMPLING = {
    "num_steps": 2, "sigma_min": 0.002, "sigma_max": 700.0, "rho": 7.0, "min_guidance": 1.0, "max_guidance": 2.0,
    "motion_guidance": None, "noise_aug": 0.02, "dtype": "float32", "decode_dtype": "float32",
}  # fmt: skip


class RandomClips(Dataset[ClipBatch]):
    """Clips that depend on their position only; those at the positions in `broken` cannot be read."""

    def __init__(self, *broken: int) -> None:
        self.broken = broken

    def __len__(self) -> int:
        return 4

    def __getitem__(self, position: int) -> ClipBatch:
        if position in self.broken:
            raise ValueError("unreadable")
        return ClipBatch(*(field[0] for field in make_batch(batch=1, frames=2, seed=position, position=position)))


def stream(batch_size: int = 2, train: Dataset | None = None, val: Dataset | None = None) -> StreamData:
    clips = RandomClips()
    return StreamData(train=train or clips, val=clips if val is None else val, batch_size=batch_size, num_workers=0)


@cache
def _lora_module(base: Path, rank: int) -> MotionLoraModule:
    torch.manual_seed(0)
    return MotionLoraModule(rank=rank, alpha=rank, base=str(base), **NUMBERS)


def lora_module(base: Path, rank: int = 4) -> MotionLoraModule:
    return copy.deepcopy(_lora_module(base, rank))


def trained(module: L.LightningModule) -> torch.Tensor:
    """The first of the weights that train."""
    return next(p for p in module.parameters() if p.requires_grad).data


class Losses(L.Callback):
    """The loss of every batch, and the first gradients that the optimizer sees."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].item())

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in pl_module.named_parameters() if p.grad is not None}


class At(L.Callback):
    """Call `action(module)` before the batches of a step."""

    def __init__(self, step: int, action: Callable[[L.LightningModule], Any]) -> None:
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer, pl_module, *_) -> None:
        if trainer.global_step == self.step:
            self.action(pl_module)


def raising(error: BaseException) -> Callable[..., None]:
    def fail(*_: Any) -> None:
        raise error

    return fail


def saves(folder: Path, every: int = 1) -> Checkpoint:
    return Checkpoint(folder, save_last=True, every_n_train_steps=every, save_top_k=0, save_on_exception=True)


VALIDATED = {"limit_val_batches": 1, "check_val_every_n_epoch": None}  # options of a trainer, with val_check_interval


def make_trainer(folder: Path, steps: int, *callbacks: L.Callback, **options) -> L.Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "use_distributed_sampler": False,
        "enable_checkpointing": any(isinstance(c, ModelCheckpoint) for c in callbacks),
    }
    return L.Trainer(default_root_dir=folder, max_steps=steps, callbacks=list(callbacks), **defaults | options)


def fit(
    module: L.LightningModule, folder: Path, steps: int, *callbacks: L.Callback, data: StreamData | None = None,
    resume: Path | None = None, **options,
) -> list[float]:  # fmt: skip
    """Train up to a step, from a checkpoint if one is given; the loss of every batch."""
    losses = Losses()
    make_trainer(folder, steps, losses, *callbacks, **options).fit(
        module, data or stream(), ckpt_path=resume and str(resume), weights_only=True
    )
    return losses.losses
