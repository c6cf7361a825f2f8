"""The optimizer that all experiments share."""

from collections.abc import Iterable
from typing import Any

import torch
from torch.nn import Parameter


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
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: trapezoid(step, warmup=warmup_steps, decay=decay_steps, total=total)
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def check_finite(loss: torch.Tensor, step: int) -> None:
    """Stop before a broken loss reaches the weights.

    Raises:
        ValueError: If the loss is NaN or infinite.
    """
    if not torch.isfinite(loss):
        raise ValueError(
            f"the loss is {loss.item()} at step {step}: lower model.lr, keep trainer.gradient_clip_val, or train in "
            "32-true; the last checkpoint is intact (ckpt_path=last resumes it)"
        )
