"""Flow estimators and the flow refiner at tiny size, for tests."""

import functools
from collections.abc import Sequence
from pathlib import Path

import lightning as L
import torch
from torch import nn
from training_runs import make_trainer

from motionanim.data.stream import StreamData
from motionanim.data.synthetic.clips import SyntheticFlowPairs
from motionanim.files import file_sha256
from motionanim.models.flow_estimator import RaftFlow
from motionanim.models.flow_refiner import FlowRefiner, PatchDiscriminator
from motionanim.motion.example_arrows import sample_hint
from motionanim.motion.flow import warp
from motionanim.training.flow_refiner import FlowRefinerModule

SMALL = {"width": 8, "depth": 3, "side": 24, "sees_image": True}
TRAINING = {
    "lr": 2e-4, "warmup_share": 0.0, "decay_share": 0.0, "beta1": 0.5, "weight_decay": 0.0, "error_weight": 100.0,
    "moves_weight": 0.1, "mask_share": 0.5,
}  # fmt: skip


def refiner(trained: bool = True, **changes) -> FlowRefiner:
    torch.manual_seed(0)
    network = FlowRefiner(**SMALL | changes)
    if trained:  # the head is zero before training
        nn.init.normal_(network.head.weight, std=0.1)
    return network


def refiner_module(gan: bool = True, **changes) -> FlowRefinerModule:
    discriminator = PatchDiscriminator(width=8) if gan else None
    return FlowRefinerModule(refiner=refiner(trained=False), discriminator=discriminator, **TRAINING | changes)


def pairs(*, batch_size: int = 2, size: int = 24) -> StreamData:
    hint = functools.partial(sample_hint, max_arrows=4, max_frames=16, sigma=170 / 512, normalized="exact")
    options = {"height": size, "width": size, "hint": hint}
    return StreamData(
        train=SyntheticFlowPairs(seed=0, length=1000, split="train", **options),
        val=SyntheticFlowPairs(seed=1, length=4, split="val", **options),
        batch_size=batch_size,
        num_workers=0,
    )


def trainer(folder: Path, max_steps: int, callbacks: Sequence[L.Callback] = (), **changes) -> L.Trainer:
    """It validates at the end."""
    options = {"limit_val_batches": 1.0, "val_check_interval": max_steps, "check_val_every_n_epoch": None}
    return make_trainer(folder, max_steps, *callbacks, **options | changes)


def texture(size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    layers = [
        torch.nn.functional.interpolate(torch.randn(1, 3, k, k, generator=generator) / k**0.5, size=(size, size),
                                        mode="bicubic")
        for k in (4, 8, 16, 32)
    ]  # fmt: skip
    image = torch.stack(layers).sum(0)
    return image / image.abs().max()


def drifting(size: int, velocity: tuple[float, float], count: int) -> torch.Tensor:
    """A texture that drifts, rendered at four times the size: (count, 3, size, size) in [-1, 1]."""
    big = texture(4 * size, seed=0)
    drift = 4 * torch.tensor(velocity).view(1, 2, 1, 1).expand(1, 2, 4 * size, 4 * size)
    return torch.cat([torch.nn.functional.avg_pool2d(warp(big, -drift * t), 4) for t in range(count)])


def raft(weights: Path, **changes) -> RaftFlow:
    known = file_sha256(weights) if weights.exists() else None
    options = {"variant": "small", "weights": str(weights), "sha256": known, "device": "cpu", "updates": 2, "pairs": 2}
    return RaftFlow(**options | changes)
