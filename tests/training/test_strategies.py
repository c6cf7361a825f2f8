"""DDP and FSDP on two CPU processes (gloo) train as one process does with twice the batch."""

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import forked
import lightning as L
import pytest
import torch
from conftest import UNET, free_port, random_base
from mixed_videos import SHAPES, mixed_data, write_videos
from training_runs import NUMBERS, VALIDATED, RandomClips, fit, make_trainer, saves, stream

from motionanim.data.stream import StreamData
from motionanim.training.callbacks import Ema, Export
from motionanim.training.diffusion import DiffusionModule
from motionanim.training.flow_refiner import FlowRefinerModule
from motionanim.training.motion_lora import MotionLoraModule
from motionanim.training.strategies import Sharded, check_strategy, check_trainer, replicated, whole

STRATEGIES = {"ddp": replicated, "fsdp": Sharded}


class Smooth(DiffusionModule):
    """With a large epsilon: AdamW would otherwise turn the rounding of an all but vanishing gradient into a step."""

    def configure_optimizers(self) -> dict[str, Any]:
        made = super().configure_optimizers()
        made["optimizer"].param_groups[0]["eps"] = 1e-3
        return made


def diffusion(base: Path) -> DiffusionModule:
    torch.manual_seed(0)
    return Smooth(base=str(base), trainable="temporal", **NUMBERS | {"warmup_steps": 4})


class Record(L.Callback):
    """Clips that were trained on, the gradient of the first step, and the scores of the last validation."""

    def __init__(self) -> None:
        self.positions: list[int] = []
        self.shapes: list[tuple[int, ...]] = []  # height and width of each batch
        self.gradients: dict[str, torch.Tensor] = {}
        self.scores: dict[str, torch.Tensor] = {}

    def on_train_end(self, trainer, pl_module) -> None:
        self.scores = {name: score for name, score in trainer.callback_metrics.items() if name.startswith("val/")}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.positions += batch.position.tolist()
        self.shapes.append(tuple(batch.frames.shape[-2:]))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if not self.gradients:
            self.gradients = {
                n: whole(p.grad, keep=True).clone() for n, p in pl_module.named_parameters() if p.grad is not None
            }


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 2])
def test_validations_are_counted_in_steps(base: Path, tmp_path: Path, every: int) -> None:
    at, notes = [], L.Callback()
    notes.on_validation_end = lambda trainer, _: at.append(trainer.global_step)
    trainer = make_trainer(tmp_path, 5, notes, val_check_interval=2, accumulate_grad_batches=every, **VALIDATED)
    check_trainer(trainer)
    trainer.fit(diffusion(base), stream(batch_size=1))
    assert at == [2, 4]


def test_without_clips_to_validate_on_there_is_no_validation(base: Path, tmp_path: Path) -> None:
    record, options = Record(), VALIDATED | {"limit_val_batches": 1.0, "val_check_interval": 1}
    fit(diffusion(base), tmp_path, 2, record, data=stream(batch_size=1, val=[]), **options)
    assert (record.positions, record.scores) == ([0, 1], {})


def train(
    base: Path, folder: Path, steps: int, *, batch_size: int, resume: Path | None = None,
    data: StreamData | None = None, export: bool = False, **options,
) -> Record:  # fmt: skip
    """Train to `steps`; leaves folder/last.ckpt, and a pipeline if `export`."""
    record = Record()
    callbacks = [record, Ema(decay=0.5), *[Export(folder=str(folder))] * export, saves(folder, steps)]
    options |= VALIDATED | {"limit_val_batches": None, "val_check_interval": 2, "gradient_clip_val": 0.5}
    fit(diffusion(base), folder, steps, *callbacks, data=data or stream(batch_size), resume=resume, **options)
    return record


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of fewer weights: two processes exchange each of them by itself."""
    unet = {name: UNET[name][:1] for name in ("block_out_channels", "down_block_types", "num_attention_heads")}
    unet = UNET | unet | {"up_block_types": UNET["up_block_types"][1:]}
    return random_base(tmp_path_factory.mktemp("tiny") / "pipeline", unet)


@pytest.fixture(scope="module")
def alone(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Record]:
    """One process: two steps in `one`, one more in `whole`."""
    folder = tmp_path_factory.mktemp("alone")
    record = train(base, folder / "one", 2, batch_size=4, export=True)
    train(base, folder / "whole", 3, batch_size=4, resume=folder / "one" / "last.ckpt")
    return folder, record


def join(rank: int, port: int) -> None:
    os.environ |= {"LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)


def worker(rank: int, kind: str, port: int, base: Path, folder: Path, resume: Path) -> None:
    """One of two processes: two steps, then the single process's checkpoint for one more."""
    join(rank, port)
    options = {"batch_size": 2, "devices": 2}
    fresh = train(base, folder / "fresh", 2, export=True, strategy=STRATEGIES[kind](timeout=300), **options)
    more = train(base, folder / "more", 3, resume=resume, strategy=STRATEGIES[kind](timeout=300), **options)
    saved = {"gradients": fresh.gradients, "scores": fresh.scores, "positions": (fresh.positions, more.positions)}
    torch.save(saved, folder / f"{rank}.pt")


def check_close(found: Path, wanted: Path, *, atol: float = 1e-6, rtol: float = 1e-4) -> None:
    """Two checkpoints hold the same weights, averages, Adam moments and place in the stream, up to summation order."""
    options = {"atol": atol, "rtol": rtol}
    found, wanted = (torch.load(path, weights_only=True) for path in (found, wanted))
    assert found["StreamData"] == wanted["StreamData"]
    assert found["state_dict"].keys() == wanted["state_dict"].keys()
    torch.testing.assert_close(found["state_dict"], wanted["state_dict"], **options)
    torch.testing.assert_close(found["callbacks"]["Ema"], wanted["callbacks"]["Ema"], **options)
    found, wanted = (saved["optimizer_states"][0] for saved in (found, wanted))
    assert found["param_groups"] == wanted["param_groups"]
    torch.testing.assert_close(found["state"], wanted["state"], **options)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("kind", STRATEGIES)
def test_two_processes_are_one_with_twice_the_batch(kind, base, alone, tmp_path):
    folder, one = alone
    forked.call(worker, kind, free_port(), base, tmp_path, folder / "one" / "last.ckpt", ranks=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert ranks[0]["gradients"].keys() == one.gradients.keys()
    for found in ranks:
        torch.testing.assert_close(found["gradients"], one.gradients, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(found["scores"], one.scores, atol=1e-5, rtol=1e-4)
    assert len(one.scores) == 1 + 4  # four clips, each at its own noise level
    check_close(tmp_path / "fresh" / "last.ckpt", folder / "one" / "last.ckpt")

    # Onwards with another number of processes, from 1 to 2 and from 2 to 1, and with another batch on the way.
    check_close(tmp_path / "more" / "last.ckpt", folder / "whole" / "last.ckpt")
    again = train(base, tmp_path / "again", 3, batch_size=4, resume=tmp_path / "fresh" / "last.ckpt")
    check_close(tmp_path / "again" / "last.ckpt", folder / "whole" / "last.ckpt")
    assert [found["positions"] for found in ranks] == [([0, 1, 4, 5], [8, 9]), ([2, 3, 6, 7], [10, 11])]
    assert again.positions == list(range(8, 12))
    last = train(base, tmp_path / "last", 4, batch_size=3, resume=tmp_path / "more" / "last.ckpt")
    assert last.positions == list(range(12, 15))

    exported = [
        torch.cat([p.flatten() for p in diffusion(path / "pipeline").denoiser.parameters()])
        for path in (tmp_path / "fresh", folder / "one")
    ]
    torch.testing.assert_close(*exported, atol=1e-3, rtol=1e-3)


def mixed(base: Path, videos: Path, folder: Path, *, batch_size: int, **options) -> Record:
    names = [f"{number}.mp4" for number in range(9)], ["9.mp4", "10.mp4"]
    data = mixed_data(videos, folder, batch_size=batch_size, names=names)
    return train(base, folder, 4, batch_size=batch_size, data=data, **options)


def mixed_worker(rank: int, port: int, base: Path, videos: Path, folder: Path) -> None:
    join(rank, port)
    found = mixed(base, videos, folder, batch_size=2, devices=2, strategy=replicated(timeout=300))
    torch.save((found.positions, found.shapes, found.scores), folder / f"{rank}.pt")


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_are_one_in_two_passes_bit_for_bit(base: Path, tmp_path: Path) -> None:
    write_videos(tmp_path / "videos", 11)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the processes: the number of threads decides in which order a layer adds up
    try:
        one = mixed(base, tmp_path / "videos", tmp_path / "one", batch_size=2, accumulate_grad_batches=2)
    finally:
        torch.set_num_threads(threads)
    assert (one.positions, set(one.shapes)) == (list(range(16)), set(SHAPES.values()))
    forked.call(mixed_worker, free_port(), base, tmp_path / "videos", tmp_path / "two", ranks=2)
    check_close(tmp_path / "two" / "last.ckpt", tmp_path / "one" / "last.ckpt", atol=0, rtol=0)
    for rank in (0, 1):
        positions, shapes, scores = torch.load(tmp_path / "two" / f"{rank}.pt", weights_only=True)
        assert positions == [place for place in range(16) if place // 2 % 2 == rank]
        assert shapes == one.shapes[::2]
        torch.testing.assert_close(scores, one.scores, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("module", "clips", "limit", "message"),
    [
        (FlowRefinerModule, 8, 1.0, "FlowRefinerModule is too small to shard.*trainer=ddp"),
        (MotionLoraModule, 5, 1.0, "5 validation clips in batches of 2 .* each of 2 .* trainer.limit_val_batches=1"),
        (MotionLoraModule, 5, 1, None),
        (MotionLoraModule, 8, 1.0, None),
    ],
)
def test_what_cannot_be_sharded_is_refused_before_the_run(module, clips, limit, message):
    trainer = L.Trainer(
        accelerator="cpu", devices=2, strategy=Sharded(timeout=60), logger=False, limit_val_batches=limit
    )
    data = stream(val=torch.utils.data.Subset(RandomClips(), range(clips)))
    with nullcontext() if message is None else pytest.raises(ValueError, match=message):
        check_strategy(trainer, object.__new__(module), data)


def test_fewer_validation_clips_than_processes_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    data = stream()
    data.trainer = L.Trainer(accelerator="cpu", devices=5, strategy="ddp", logger=False)
    with pytest.raises(ValueError, match="4 validation clips are fewer than 5 processes"):
        data.val_dataloader()
