"""Training steps: a CUDA device gives the losses, gradients and new weights of the CPU."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import lightning as L
import pytest
import torch
from flow_runs import pairs, refiner_module, trainer
from gpu_cases import lora, whole
from on_device import CUDA, FLOAT32, awake
from torch import Tensor
from training_runs import Losses, make_trainer, stream

from motionanim.training.diffusion import DiffusionModule

# AdamW's first step is lr times the sign of each gradient, here a hundredth of a weight. A gradient that is only
# rounding may have either sign, so a tenth of that step is tolerated.
STEPPED = 1e-3
# bfloat16 rounds each value by 2^-9. In the loss, a mean over all latents, roundings cancel; a gradient is a sum of few
# terms of both signs and passes every layer twice. Measured on a CPU: 0.0015 and 0.032.
BFLOAT16 = {"loss": 5e-3, "gradients": 1e-1}


class Step(NamedTuple):
    loss: Tensor
    gradients: list[Tensor]
    weights: list[Tensor]  # after the step


def step(module: DiffusionModule, device: str, folder: Path, precision: str = "32-true") -> Step:
    """One step of AdamW by the trainer, from weights of which none is zero."""
    awake(module.denoiser)
    seen = Losses()
    make_trainer(folder, 1, seen, accelerator=device, precision=precision).fit(module, stream())
    weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert len(weights) >= len(seen.gradients) > 0
    return Step(torch.tensor(seen.losses), list(seen.gradients.values()), weights)


def same_step(got: Step, expected: Step, close: Callable, *, weights: bool) -> None:
    close(got.loss, expected.loss, FLOAT32)
    close(got.gradients, expected.gradients, FLOAT32)
    if weights:
        close(got.weights, expected.weights, STEPPED)


# Some gradients of the whole network are only rounding, such as that of a bias before a norm of its channel, so its
# weights after the step are not compared.
@pytest.mark.parametrize("make", [lora, pytest.param(whole, marks=pytest.mark.slow)])
def test_step(base: Path, device: str, make: Callable, tmp_path: Path, close: Callable) -> None:
    got, expected = step(make(base), device, tmp_path), step(make(base), "cpu", tmp_path)
    same_step(got, expected, close, weights=make is lora)


@pytest.mark.slow
@pytest.mark.parametrize("make", [lora, whole])
def test_step_in_bfloat16(base: Path, device: str, make: Callable, tmp_path: Path, close: Callable) -> None:
    got = step(make(base), device, tmp_path, precision="bf16-mixed")
    expected = step(make(base), "cpu", tmp_path)
    for name, tolerance in BFLOAT16.items():
        close(getattr(got, name), getattr(expected, name), tolerance)


# Compiling for a CPU takes minutes.
@pytest.mark.parametrize("device", [CUDA], indirect=True)
@pytest.mark.parametrize("make", [lora, whole])
def test_compiled_step(base: Path, device: str, make: Callable, tmp_path: Path, close: Callable) -> None:
    got, expected = (step(make(base, compile=mode), device, tmp_path) for mode in ("default", None))
    same_step(got, expected, close, weights=make is lora)


class Gradients(L.Callback):
    """The gradients of all parameters in the last step."""

    def on_train_batch_end(self, trainer, pl_module, *_) -> None:
        self.gradients = [parameter.grad.clone() for parameter in pl_module.parameters()]


def refiner_step(device: str, folder: Path) -> tuple[list[Tensor], list[Tensor]]:
    """Losses and gradients of both networks in the first step."""
    torch.manual_seed(0)
    module, seen = refiner_module(), Gradients()
    awake(module.refiner)
    run = trainer(folder, 1, accelerator=device, callbacks=[seen])
    run.fit(module, pairs())
    losses = [run.logged_metrics[f"train/loss_{name}"] for name in ("error", "moves", "gan", "discriminator")]
    return losses, seen.gradients


def test_refiner_step(device: str, tmp_path: Path, close: Callable) -> None:
    for values in zip(refiner_step(device, tmp_path), refiner_step("cpu", tmp_path)):
        close(*values, FLOAT32)
