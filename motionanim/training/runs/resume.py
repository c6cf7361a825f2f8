"""Compare the settings of a resumed run with those in its checkpoint, and refuse what would make it another run."""

from collections.abc import Iterator, Mapping
from fnmatch import fnmatch
from typing import Any

import lightning as L

from motionanim.models.weights_io import frozen_fingerprint
from motionanim.training.optim import obey_settings
from motionanim.training.runs.checkpoints import read_checkpoint

PARTS = ("seed", "items", "data", "model", "trainer", "callbacks")  # the other groups are resolved into these

# Paths may change; they are not even printed.
PLACES = ("*.dirpath", "*.folder", "*.rejected", "*.default_root_dir", "*.flow_cache", "*.cache", "*.index")

# A resumed run may not change what it learns from or trains: these settings, except for those in APPLIED.
REFUSED = ("seed", "items", "trainer.precision", "data.*", "model.*")
APPLIED = (
    "model.lr", "model.weight_decay", "model.beta1", "model.warmup_*", "model.decay_*", "model.compile",
    "model.checkpoint_width", "model.codec_offload", "model.base",  # its frozen weights are compared
    "data.root*", "data.names.*", "data.latents", "data.shapes.*",  # `StreamData.check_state` compares clips and shapes
    "data.batch_size", "data.num_workers", "data.max_rejected_share", "data.val", "data.val.*", "data.val_clips",
    "data.reading.cache_gb", "data.reading.retries", "data.*flow_estimator.device", "data.*flow_estimator.pairs",
    "data.*flow_estimator.weights", "data.*flow_estimator.sha256",  # and the estimators' names
)  # fmt: skip
# Settings that are newer than some checkpoints, and what these were trained with.
NEWER = {"model.frozen": "float32", "model.moments": "float32", "model.codec_offload": False}


class Settings(L.Callback):
    """Save a run's settings in its checkpoints, and apply the present ones to the optimizers of a resumed run.

    Args:
        config: The resolved config, of plain types.
        module: A hash of its frozen weights is saved.
    """

    def __init__(self, config: Mapping[str, Any], module: L.LightningModule) -> None:
        self.config, self.frozen = config, frozen_fingerprint(module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for number, optimizer in enumerate(trainer.optimizers):
            obey_settings(optimizer, [each.scheduler for each in trainer.lr_scheduler_configs[number : number + 1]])

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint |= {"config": self.config, "frozen": self.frozen}

    def check(self, path: str) -> list[str]:
        """The settings that differ from those in a checkpoint, one line each.

        Raises:
            ValueError: If one may not change: other data, another model, base, seed or precision.
        """
        saved = read_checkpoint(path, ())
        if "config" not in saved:
            return ["the checkpoint is of an earlier version and does not hold its settings: they are not compared"]
        changes = dict(differences(saved["config"], self.config))
        refused = {
            name: values for name, values in changes.items() if matches(name, REFUSED) and not matches(name, APPLIED)
        }
        if saved["frozen"] != self.frozen:
            refused["model.base"] = changes.get("model.base", ("a base of other weights", "this one"))
        for part in ("data._target_", "model._target_"):
            if part in refused:  # all settings of another class differ
                refused = {part: refused[part]}
        if refused:
            began, now = (", ".join(f"{name}={shown(pair[i])}" for name, pair in refused.items()) for i in (0, 1))
            raise ValueError(
                f"{path}: the run began with {began} and would go on with {now}: set what it began with, or start a "
                "new run without ckpt_path"
            )
        return [f"{name}: {shown(old)} until here, {shown(new)} from here on" for name, (old, new) in changes.items()]


def shown(value: Any) -> str:
    """A value as the command line gives it."""
    return "null" if value is None else str(value)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Name and both values ("absent" for none) of each setting that differs between two resolved configs."""
    before, after = (
        {name: value for part in PARTS for name, value in leaves(config.get(part, "absent"), part)}
        for config in (old, new)
    )
    for name in sorted(before.keys() | after.keys()):
        values = before.get(name, NEWER.get(name, "absent")), after.get(name, "absent")
        same = values[0] == values[1]
        if name.endswith("._target_"):  # modules may move between versions; a class keeps its name
            same = values[0].rpartition(".")[2] == values[1].rpartition(".")[2]
        if not same and not matches(name, PLACES):
            yield name, values


def leaves(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, child in value.items():
            yield from leaves(child, f"{name}.{key}")
    else:
        yield name, value
