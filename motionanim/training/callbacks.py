"""Callbacks of all experiments: average of the weights (EMA), export of the trained part, plot of the losses."""

import csv
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import matplotlib
import torch
from lightning.pytorch.loggers import WandbLogger
from torch.distributed.fsdp import FSDPModule
from torch.optim.swa_utils import get_ema_multi_avg_fn

from motionanim.files import atomic_path
from motionanim.training.runs.folder import earlier_metrics
from motionanim.training.strategies import gathered, local, share

matplotlib.use("Agg")
from matplotlib import pyplot as plt


class Ema(L.Callback):
    """Exponential moving average (EMA) of the weights that train; validation and export use the average.

    Lightning's WeightAveraging does not fit: it copies the whole module with its frozen VAE and CLIP, cannot shard
    it, and saves the average in place of the weights.
    """

    START = 100  # the average equals the weights up to this step: the random initial weights would dominate it

    def __init__(self, *, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay={decay}: must lie between 0 and 1, for example 0.999")
        self.update = get_ema_multi_avg_fn(decay)
        self.average: dict[str, torch.Tensor] = {}
        self._swapped = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._sharded = [part for part in pl_module.modules() if isinstance(part, FSDPModule)]
        self._trained = {n: p for n, p in pl_module.named_parameters() if p.requires_grad}
        saved = self.average
        self.average = {
            n: share(saved[n].to(p.device), like=p) if n in saved else p.detach().clone()
            for n, p in self._trained.items()
        }

    def _local(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """This process's shares of the averages and of the weights."""
        pairs = [(local(self.average[name]), local(p)) for name, p in self._trained.items()]
        return [average for average, _ in pairs], [weight for _, weight in pairs]

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop._should_accumulate():
            return
        if trainer.global_step <= self.START:
            torch._foreach_copy_(*self._local())
        else:
            self.update(*self._local(), trainer.global_step)

    def _swap(self) -> None:
        """Exchange the average and the weights."""
        for part in self._sharded:  # gathered weights would stay as they were
            part.reshard()
        # In place, because FSDP keeps its own references to a sharded parameter's memory.
        for average, weight in zip(*self._local()):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        self._swapped = not self._swapped

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within this context the module has the average."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._swap()

    on_validation_end = on_validation_start  # swaps them back

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if self._swapped:  # the checkpoint that is saved next must hold the weights
            self._swap()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self.average)

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.average = dict(state)


class Export(L.Callback):
    """At the end call `module.export`, which writes the trained part (a LoRA file, a pipeline) into the run's folder.

    It exports the average if there is an `Ema` callback. `python -m motionanim.export` exports any checkpoint.

    Args:
        folder: The run's folder.
        every_n_steps: Also export every so many steps, into `folder`/exports/step_0000500 and so on; None for never.
    """

    def __init__(self, *, folder: str, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and every_n_steps < 1:
            raise ValueError(
                f"every_n_steps={every_n_steps}: must be at least 1, or null for an export at the end only"
            )
        self.folder, self.every_n_steps = Path(folder), every_n_steps

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        if self.every_n_steps is None or step % self.every_n_steps or step == trainer.max_steps:
            return
        if not trainer.fit_loop.epoch_loop._should_accumulate():
            self._write(trainer, pl_module, export_folder(self.folder, step))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        path = self._write(trainer, pl_module, self.folder)
        if path is not None:
            print(f"exported: {path}")

    def _write(self, trainer: L.Trainer, pl_module: L.LightningModule, folder: Path) -> Path | None:
        """Must be called by all processes; the first one writes."""
        average = next((each.in_place() for each in trainer.callbacks if isinstance(each, Ema)), nullcontext())
        with average, gathered(pl_module, keep=trainer.is_global_zero):
            return pl_module.export(folder) if trainer.is_global_zero else None


def export_folder(run: Path, step: int) -> Path:
    """The folder of the export after `step` steps."""
    return run / "exports" / f"step_{step:07d}"


class LossCurve(L.Callback):
    """At the end plot all losses and scores of the run's metrics.csv over the steps, into `folder`/curves.png.

    The plot of a resumed run includes its earlier parts.
    """

    def __init__(self, *, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for logger in trainer.loggers:
            logger.save()
        table = self.folder / "metrics.csv"
        if not trainer.is_global_zero or not table.exists():
            return
        picture = self.folder / "curves.png"
        draw_curves([*earlier_metrics(self.folder), table], picture)
        for logger in wandb_loggers(trainer):
            logger.log_image("curves", [str(picture)])


def wandb_loggers(trainer: L.Trainer) -> list[WandbLogger]:
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


def draw_curves(tables: Sequence[Path], picture: Path) -> None:
    """Plot each train/ and val/ column against its step; long ones with a running median.

    Args:
        tables: metrics.csv of each part of a run, oldest first; a part replaces the steps that an earlier one also has.
    """
    series: dict[str, list[tuple[int, float]]] = {}
    for table in tables:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        first = min((int(row["step"]) for row in rows), default=0)
        for points in series.values():
            points[:] = [point for point in points if point[0] < first]
        for row in rows:
            for name, value in row.items():
                if value and name.startswith(("train/", "val/")) and "_at_sigma_" not in name:
                    series.setdefault(name, []).append((int(row["step"]), float(value)))
    series = {name: points for name, points in series.items() if points}
    panels: dict[str, list[str]] = {}
    for name in sorted(series):
        # Columns such as camera_residual_with_lora and camera_residual_without_lora share a panel.
        panels.setdefault(re.split("_with(?:out)?_", name.split("/")[1])[0], []).append(name)
    figure, axes = plt.subplots(1, max(len(panels), 1), figsize=(5 * max(len(panels), 1), 3.6), squeeze=False)
    for axis, (title, names) in zip(axes[0], panels.items(), strict=False):
        for name in names:
            steps, values = zip(*series[name], strict=True)
            dense = len(values) > 60
            axis.plot(steps, values, alpha=0.3 if dense else 1, marker="" if dense else "o", label=name, linewidth=1)
            if dense:
                window = len(values) // 30
                smooth = torch.tensor(values).unfold(0, window, 1).median(-1).values
                axis.plot(steps[window - 1 :], smooth, color=axis.lines[-1].get_color(), linewidth=1.8)
        axis.set(title=title, xlabel="step")
        if "loss" in title and all(v > 0 for n in names for _, v in series[n]):
            axis.set_yscale("log")
        elif all(v >= 0 for n in names for _, v in series[n]):
            top = max(v for n in names for _, v in series[n])
            axis.set_ylim(0, 1.1 * top or 1)  # from 0: otherwise a small difference looks large
        axis.grid(alpha=0.3)
        axis.legend(fontsize=8)
    figure.tight_layout()
    with atomic_path(picture) as path:
        figure.savefig(path, dpi=110)
    plt.close(figure)
