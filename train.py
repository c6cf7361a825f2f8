"""Train: `python train.py experiment=motion_lora` (a bare `python train.py` lists the experiments)."""

import os
import sys
from pathlib import Path

import hydra
import lightning as L
import wandb
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import DictConfig, OmegaConf

from motionanim.entry import find_checkpoint, one_line_errors, quiet
from motionanim.training.callbacks import set_metrics_aside


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
@one_line_errors
def main(cfg: DictConfig) -> None:
    quiet()
    checkpoint = find_checkpoint(cfg)
    L.seed_everything(cfg.seed, workers=True, verbose=False)
    out = Path(cfg.paths.run)
    out.mkdir(parents=True, exist_ok=True)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the other processes of a run start later, into its new file
        set_metrics_aside(out)
    OmegaConf.save(cfg, out / "config.yaml", resolve=True)

    data = hydra.utils.instantiate(cfg.data, _convert_="all")
    model = hydra.utils.instantiate(cfg.model, _convert_="all")
    trainer: L.Trainer = hydra.utils.instantiate(
        cfg.trainer,
        logger=list(hydra.utils.instantiate(cfg.logger).values()),
        callbacks=list(hydra.utils.instantiate(cfg.callbacks).values()),
    )
    try:
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SIGTERMException:
        sys.exit(f"stopped by SIGTERM after step {trainer.global_step}: the same command with ckpt_path=last goes on")
    finally:
        wandb.finish()  # the next run of a sweep is a run of its own
    if trainer.is_global_zero:
        print(f"done: {out}")


if __name__ == "__main__":
    main()
