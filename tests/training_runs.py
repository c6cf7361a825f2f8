"""Small trainings on random clips, whose losses can be compared to the last digit."""

from pathlib import Path

import lightning as L
import torch
from conftest import MOTION, make_batch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import Dataset

from motionanim.data.stream import StreamData
from motionanim.training.motion_lora import MotionLoraModule
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


class RandomClips(Dataset[ClipBatch]):
    """Clips that depend on their position only."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, position: int) -> ClipBatch:
        return ClipBatch(*(field[0] for field in make_batch(batch=1, seed=position, position=position)))


def lora_module(base: Path, rank: int = 4) -> MotionLoraModule:
    torch.manual_seed(0)
    return MotionLoraModule(rank=rank, alpha=rank, base=str(base), **NUMBERS)


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


def stream(batch_size: int = 2) -> StreamData:
    return StreamData(train=RandomClips(), val=RandomClips(), batch_size=batch_size, num_workers=0)
