"""Train: `python train.py experiment=motion_lora` (a bare `python train.py` lists the experiments)."""

import sys
from pathlib import Path

import hydra
import lightning as L
import wandb
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf

from motionanim.entry import find_checkpoint, one_line_errors, quiet
from motionanim.generate import size_multiple
from motionanim.settings import check_size, command
from motionanim.training.callbacks import set_metrics_aside
from motionanim.training.checkpoints import TimeIsUp, check_checkpoint, requeue
from motionanim.training.diffusion import DiffusionModule
from motionanim.training.strategies import check_strategy


@command
@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@one_line_errors
def main(cfg: DictConfig) -> None:
    quiet()
    for name in ("val_check_interval", "accumulate_grad_batches"):
        if not cfg.trainer[name] > 0:
            raise ValueError(f"trainer.{name}={cfg.trainer[name]}: must be above 0")
    checkpoint = find_checkpoint(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)

    data = hydra.utils.instantiate(cfg.data, _convert_="all")
    model = hydra.utils.instantiate(cfg.model, _convert_="all")
    if isinstance(model, DiffusionModule):
        check_size(cfg.scale.height, cfg.scale.width, size_multiple(model.codec, model.denoiser))
    trainer: L.Trainer = hydra.utils.instantiate(
        cfg.trainer,
        logger=list(hydra.utils.instantiate(cfg.logger).values()),
        callbacks=list(hydra.utils.instantiate(cfg.callbacks).values()),
    )
    check_strategy(trainer, model, data)
    if checkpoint is not None:
        step = check_checkpoint(checkpoint, model, data)
        if 0 <= trainer.max_steps <= step:
            told = f"{checkpoint} has its {step} steps: give a trainer.max_steps above {step} to train on"
            if cfg.ckpt_path != "auto":
                raise ValueError(told)
            if rank_zero_only.rank == 0:  # the same command again, in a script or a queue
                print(f"nothing to do: {told}")
            return
    out = Path(cfg.paths.run)
    if rank_zero_only.rank == 0:  # one process of all, however they were started
        out.mkdir(parents=True, exist_ok=True)
        set_metrics_aside(out)
        OmegaConf.save(cfg, out / "config.yaml", resolve=True)
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException as stop:
        if not trainer.is_global_zero:
            sys.exit(0)  # srun --kill-on-bad-exit would end the first process before it has asked for the requeue
        told = requeue() if isinstance(stop, TimeIsUp) else "stopped by SIGTERM"
        print(f"{told}; saved after step {trainer.global_step}: the same command with ckpt_path=last goes on")
        sys.exit(1)
    except SystemExit:  # Lightning's answer to Ctrl-C
        if trainer.is_global_zero:
            print(f"stopped by Ctrl-C after step {trainer.global_step}: ckpt_path=last resumes the last checkpoint")
        raise
    finally:
        wandb.finish()  # the next run of a sweep is a run of its own
    if trainer.is_global_zero:
        print(f"done: {out}")


if __name__ == "__main__":
    main()
