"""Train: `python train.py experiment=motion_lora` (a bare `python train.py` lists the experiments)."""

import sys
from pathlib import Path

import hydra
import lightning as L
import wandb
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf

from motionanim.cli.command import one_line_errors, quiet, wandb_unreachable
from motionanim.cli.memory import phase
from motionanim.cli.settings import check_size, command
from motionanim.sampling.animator import size_multiple
from motionanim.training.diffusion import DiffusionModule
from motionanim.training.optim import Diverged
from motionanim.training.runs.checkpoints import (
    CtrlC,
    TimeIsUp,
    check_checkpoint,
    find_checkpoint,
    is_full,
    is_loader_killed,
    read_checkpoint,
    requeue,
)
from motionanim.training.runs.folder import checkpoints, claim, set_records_aside, tracking_id, write_records
from motionanim.training.runs.resume import Settings
from motionanim.training.strategies import check_strategy, check_trainer


@command
@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@one_line_errors
def main(cfg: DictConfig) -> None:
    quiet()
    for name in ("val_check_interval", "accumulate_grad_batches"):
        if not cfg.trainer[name] > 0:
            raise ValueError(f"trainer.{name}={cfg.trainer[name]}: must be above 0")
    out, first = Path(cfg.paths.run), rank_zero_only.rank == 0  # over all processes, however they were started
    checkpoint, damaged = find_checkpoint(cfg.ckpt_path, out)
    for path in damaged if first else ():
        print(f"{path} is damaged and cannot be read: the one before it is taken")
    try:
        train(cfg, out, checkpoint and str(checkpoint), first=first)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C before the training began: nothing to save")
        sys.exit(130)
    finally:
        wandb.finish()  # the next run of a sweep is a run of its own


def train(cfg: DictConfig, out: Path, checkpoint: str | None, *, first: bool) -> None:
    """Train in the folder `out`, resuming from `checkpoint` if there is one.

    Raises:
        ValueError: If a setting is wrong or the loss diverges.
        OSError: If the disk is full.
    """
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    data = hydra.utils.instantiate(cfg.data, _convert_="all")
    L.seed_everything(cfg.seed, workers=True, verbose=False)  # an export makes the model without the data
    model = hydra.utils.instantiate(cfg.model, _convert_="all")
    if isinstance(model, DiffusionModule):
        scale, multiple = cfg.scale, size_multiple(model.codec, model.denoiser)
        several = scale.bucket_multiple if scale.buckets else 0
        check_size(scale.height, scale.width, multiple, bucket_multiple=several)
    elif OmegaConf.select(cfg, "scale.buckets"):
        raise ValueError(f"scale.buckets=true: experiment={cfg.name} trains at one size; leave it out")
    settings = Settings(OmegaConf.to_container(cfg, resolve=True), model)
    if checkpoint is not None:
        step = check_checkpoint(checkpoint, model, data)
        changes = settings.check(checkpoint)
        if 0 <= cfg.trainer.max_steps <= step:
            message = f"{checkpoint} has its {step} steps: give a trainer.max_steps above {step} to train on"
            if cfg.ckpt_path != "auto":
                raise ValueError(message)
            if first:  # a script or a queue gave the same command again
                print(f"nothing to do: {message}")
            return
        if first:
            print(f"going on from {checkpoint}, step {step}", *changes, sep="\n  ")
    lock = claim(out, checkpoint) if first else None  # before anything is written
    logger, callbacks = loggers(cfg, out, first=first), hydra.utils.instantiate(cfg.callbacks)
    if not logger:
        callbacks.pop("learning_rate", None)  # Lightning's monitor demands a logger
    trainer: L.Trainer = hydra.utils.instantiate(cfg.trainer, logger=logger, callbacks=[*callbacks.values(), settings])
    check_trainer(trainer)
    check_strategy(trainer, model, data)
    if first:
        set_records_aside(out)
        write_records(out, OmegaConf.to_yaml(cfg, resolve=True), HydraConfig.get().overrides.task)
    try:
        with phase("training step"):
            trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException as stop:
        if not trainer.is_global_zero:
            sys.exit(0)  # a failure would make srun --kill-on-bad-exit end the first process before it requeues the job
        name = {CtrlC: "Ctrl-C", TimeIsUp: "SIGUSR1"}.get(type(stop), "SIGTERM")
        queued = f"{requeue()}; " if isinstance(stop, TimeIsUp) else ""
        print(f"stopped by {name} after step {trainer.global_step}; {queued}{kept(out)}")
        sys.exit(130 if isinstance(stop, CtrlC) else 1)
    except SystemExit:  # Lightning raises it on a second Ctrl-C
        if trainer.is_global_zero:
            print(f"stopped by Ctrl-C in step {trainer.global_step}; {kept(out)}")
        sys.exit(130)
    except Diverged as error:
        raise Diverged(f"{error}; {kept(out)}") from error
    except Exception as error:
        if is_loader_killed(error):
            raise ChildProcessError(
                f"a loader process was killed, often for lack of memory: lower scale.num_workers; {kept(out)}"
            ) from error
        if not is_full(error):
            raise
        where = getattr(error, "filename", None)
        disk = f"the disk of {where}" if where else "a disk"
        raise OSError(f"{disk} is full ({error}); {kept(out)} once there is room") from error
    if lock is not None:
        print(f"done: {out}")
        lock.close()


def kept(out: Path) -> str:
    """The checkpoints of a run that ended early, and the settings that resume it, as a message."""
    found, whole = [], False
    for path in reversed(checkpoints(out)):
        try:
            found.append(f"{path} (step {read_checkpoint(path, ['global_step'])['global_step']})")
            whole = True
        except ValueError:
            found.append(f"{path} (damaged)")
    if not whole:
        return f"nothing that can be read was saved before{': ' if found else ''}{', '.join(found)}"
    again = f"run={run_of(out)} ckpt_path=last"
    if run_of(out) != out.name:  # ckpt_path=last would fail in jobs of the sweep that have not begun
        again = f"the same command, with -m, with run={run_of(out)} ckpt_path=auto"
    return f"kept: {', '.join(found)}; {again} goes on"


def run_of(out: Path) -> str:
    """The value of run=; a job of a sweep has the sweep's."""
    return out.parent.name if HydraConfig.get().mode == RunMode.MULTIRUN else out.name


def loggers(cfg: DictConfig, out: Path, *, first: bool) -> list[Logger]:
    """The configured loggers. All parts of a run are one W&B run, which is offline if the server does not answer."""
    own = {}
    if "wandb" in cfg.logger and first:
        node = cfg.logger.wandb
        reason = None if node.offline else wandb_unreachable()
        if reason is not None:
            print(f"W&B cannot be reached ({reason}): this run is logged offline, `wandb sync` uploads it later")
        job = f"/{out.name}" if run_of(out) != out.name else ""
        name = f"{cfg.name}/{run_of(out)}{job}"
        own = {"id": tracking_id(out), "name": name, "offline": node.offline or bool(reason)}
    return [hydra.utils.instantiate(node, **own if key == "wandb" else {}) for key, node in cfg.logger.items()]


if __name__ == "__main__":
    main()
