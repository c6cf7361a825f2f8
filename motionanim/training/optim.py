"""The optimizer that all experiments share."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def trapezoid(step: int, *, warmup: int, decay: int, total: int) -> float:
    """Learning-rate factor: up from 0 over `warmup` steps, 1, down to 0 over the last `decay` of `total` steps."""
    up = min(1.0, (step + 1) / warmup) if warmup else 1.0
    down = min(1.0, (total - step) / decay) if decay else 1.0
    return max(0.0, min(up, down))


def check_end(decay_steps: int, total: int) -> None:
    """Raises ValueError if decay_steps > 0 and the run has no last step to decay towards."""
    if decay_steps and total < 1:
        raise ValueError(f"decay_steps={decay_steps} needs an end: set trainer.max_steps or decay_steps=0")


def adamw(
    parameters: Iterable[Parameter], *, lr: float, weight_decay: float, warmup_steps: int, decay_steps: int, total: int
) -> dict[str, Any]:
    """AdamW (Sec. 4.1) over the parameters that train, in the form that `configure_optimizers` returns.

    Raises:
        ValueError: As `check_end`.
    """
    check_end(decay_steps, total)
    trained = [p for p in parameters if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=weight_decay, fused=True)
    # Else Lightning refuses to clip in mixed precision, for fear of gradients that are still scaled (its issue 21435):
    # bfloat16's never are, and without this torch unscales float16's before the step and not inside it.
    optimizer._step_supports_amp_scaling = False
    schedule = LambdaLR(optimizer, lambda step: trapezoid(step, warmup=warmup_steps, decay=decay_steps, total=total))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Diverged(ValueError):
    """A loss or a weight is NaN or infinite. The weights in memory may be broken, so no checkpoint is made of them."""


def check_finite(loss: torch.Tensor, step: int) -> None:
    """Stop before a broken loss reaches the weights.

    Raises:
        Diverged: If the loss is NaN or infinite.
    """
    if not torch.isfinite(loss):
        raise Diverged(
            f"the loss is {loss.item()} at step {step}: lower model.lr, keep trainer.gradient_clip_val, or train in "
            "32-true"
        )


def obey_settings(optimizer: Optimizer, schedulers: Iterable[LambdaLR]) -> None:
    """After a resume: the optimizer keeps its moments, and takes its numbers from the config again.

    A checkpoint brings back the learning rate, weight decay and betas of the time when it was written;
    `optimizer.defaults` still holds those that the optimizer was made with. Where nothing changed nothing changes.
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
