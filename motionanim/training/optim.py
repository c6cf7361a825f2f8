"""AdamW with its learning-rate schedule, and the check for a loss that is NaN: shared by all experiments."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import lightning as L
import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def trapezoid(step: int, *, warmup: int, decay: int, total: int) -> float:
    """Factor on the learning rate: rises to 1 over the first `warmup` steps, falls to 0 over the last `decay` ones."""
    up = min(1.0, (step + 1) / warmup) if warmup else 1.0
    down = min(1.0, (total - step) / decay) if decay else 1.0
    return max(0.0, min(up, down))


def adamw(
    parameters: Iterable[Parameter], *, lr: float, weight_decay: float, warmup_steps: int, decay_steps: int, total: int,
    moments: str = "float32",
) -> dict[str, Any]:  # fmt: skip
    """AdamW (Sec. 4.1) over the parameters that train, in the form that `configure_optimizers` returns.

    Args:
        total: Steps of the run; below 1 for a run without an end.
        moments: "float32", or "8bit" for those of bitsandbytes' AdamW8bit, a quarter of the memory.

    Raises:
        ValueError: If decay_steps > 0 and the run has no end; if `moments` is neither; if bitsandbytes is missing.
    """
    if decay_steps and total < 1:
        raise ValueError(f"decay_steps={decay_steps} needs an end: set trainer.max_steps or decay_steps=0")
    trained = [p for p in parameters if p.requires_grad]
    optimizer = _optimizer(moments)(trained, lr=lr, weight_decay=weight_decay)
    # With the flag on, Lightning refuses to clip gradients in mixed precision, because they might still be scaled (its
    # issue 21435). bfloat16 gradients are never scaled; with the flag off, torch unscales float16 ones before the step.
    optimizer._step_supports_amp_scaling = False
    schedule = LambdaLR(optimizer, lambda step: trapezoid(step, warmup=warmup_steps, decay=decay_steps, total=total))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _optimizer(moments: str) -> Callable[..., Optimizer]:
    if moments == "float32":
        return partial(torch.optim.AdamW, fused=True)
    if moments != "8bit":
        raise ValueError(f"model.moments={moments}: must be float32 or 8bit")
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ValueError(
            "model.moments=8bit needs bitsandbytes: pip install 'motionanim[eightbit]', or set model.moments=float32"
        ) from error
    return AdamW8bit


def module_adamw(module: L.LightningModule, parameters: Iterable[Parameter]) -> dict[str, Any]:
    """`adamw` by the module's hyperparameters, up to the trainer's last step."""
    names = ("lr", "weight_decay", "warmup_steps", "decay_steps", "moments")
    settings = {name: module.hparams[name] for name in names if name in module.hparams}
    return adamw(parameters, total=module.trainer.max_steps, **settings)


class Diverged(ValueError):
    """A loss or a weight is NaN or infinite. No checkpoint is saved, because the weights in memory may be broken."""


def check_finite(loss: torch.Tensor, step: int) -> None:
    """Stop the run before a broken loss changes the weights.

    Raises:
        Diverged: If the loss is NaN or infinite.
    """
    if not torch.isfinite(loss):
        raise Diverged(
            f"the loss is {loss.item()} at step {step}: lower model.lr, keep trainer.gradient_clip_val, or train in "
            "32-true"
        )


def obey_settings(optimizer: Optimizer, schedulers: Iterable[LambdaLR]) -> None:
    """Set learning rate, weight decay and betas of a resumed optimizer to those of the config; its moments stay.

    Loading a checkpoint overwrites them with the values of the earlier run; `optimizer.defaults` still holds the
    config's. This changes nothing where both are equal.
    """
    for group in optimizer.param_groups:
        group |= {name: optimizer.defaults[name] for name in ("lr", "weight_decay", "betas")}
        if "initial_lr" in group:
            group["initial_lr"] = group["lr"]
    for scheduler in schedulers:
        scheduler.base_lrs = [group["initial_lr"] for group in optimizer.param_groups]
        for group, base, factor in zip(optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * factor(scheduler.last_epoch)
        scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
