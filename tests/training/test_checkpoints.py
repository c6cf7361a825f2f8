"""When checkpoints are saved, when they are not, and which of them can be resumed."""

import errno
import os
import shutil
import signal
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from training_runs import NUMBERS, VALIDATED, At, RandomClips, fit, lora_module, raising, saves, stream, trained

from motionanim.training.callbacks import Ema
from motionanim.training.diffusion import DiffusionModule
from motionanim.training.optim import Diverged
from motionanim.training.runs.checkpoints import CtrlC, WholeFile, check_checkpoint, is_full, requeue

RARELY = 100  # steps: saves at the end and on exceptions only


@pytest.fixture(scope="module")
def last(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    fit(lora_module(base), folder, 1, saves(folder))
    return folder / "last.ckpt"


def saved_steps(folder: Path) -> dict[str, int]:
    return {path.name: torch.load(path, weights_only=True)["global_step"] for path in folder.glob("*.ckpt")}


def without(part: str) -> Callable[[dict], dict]:
    return lambda saved: {name: value for name, value in saved.items() if name != part}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("StreamData"), "is no checkpoint of this version's runs: it lacks StreamData"),
        (lambda saved: [1], "it lacks state_dict"),
        (lambda saved: {**saved, "StreamData": {"batches": 3}}, "of an earlier version, which counted batches"),
        (lambda saved: {**saved, "state_dict": {}}, "does not fit this model: .* is missing"),
        *(
            (spoil, "cannot be read as a checkpoint: damaged, or of")
            for spoil in (0, 100, 5000, lambda saved: {**saved, "more": Path("code")})
        ),
    ],
)
def test_what_is_no_checkpoint_of_this_run_is_refused(base: Path, last: Path, tmp_path: Path, spoil, message) -> None:
    assert check_checkpoint(str(last), lora_module(base), stream()) == 1
    path = tmp_path / "old.ckpt"
    if isinstance(spoil, int):  # keep only this many bytes
        path.write_bytes(last.read_bytes()[:spoil])
    else:
        torch.save(spoil(torch.load(last, weights_only=True)), path)
    with pytest.raises(ValueError, match=rf"(?s)old\.ckpt.*{message}"):
        check_checkpoint(str(path), lora_module(base), stream())


@pytest.mark.slow
def test_a_checkpoint_holds_only_what_trains_and_fits_no_other_rank_and_module(base, last, tmp_path) -> None:
    assert all(".lora_" in name for name in torch.load(last, weights_only=True)["state_dict"])
    with pytest.raises(ValueError, match=r"does not fit this model: .* has shape \(4, 32\), needed \(8, 32\)"):
        fit(lora_module(base, rank=8), tmp_path, 2, resume=last)
    module = DiffusionModule(base=str(base), trainable="all", **NUMBERS)
    with pytest.raises(ValueError, match=r"last\.ckpt: the checkpoint does not fit this model: .* is missing"):
        check_checkpoint(str(last), module, stream())


def signals(*numbers: int) -> Callable[[L.LightningModule], None]:
    return lambda _: [os.kill(os.getpid(), number) for number in numbers]


def late(error: Exception) -> L.Callback:
    callback = L.Callback()
    callback.on_train_end = raising(error)
    return callback


# What ends the run: the callback, the last step, after how many steps it saves, the error and words of its message, and
# the steps in the files.
BROKEN = "the loss is (nan|inf) at step 4"
ENDS: dict[str, tuple[L.Callback, int, int, type | None, str, tuple[int, ...]]] = {
    "NaN weights": (At(4, lambda module: trained(module).fill_(float("nan"))), 9, 1, Diverged, BROKEN, (4, 3)),
    "infinite ones": (At(4, lambda module: trained(module).fill_(float("inf"))), 9, 2, Diverged, BROKEN, (4, 2)),
    "a lost disk": (At(3, raising(OSError(errno.EIO, "lost"))), 9, 2, OSError, "lost", (3, 2)),
    "a full disk": (At(3, raising(OSError(errno.ENOSPC, "full"))), 9, 2, OSError, "full", (2,)),
    "a NaN loss": (At(3, raising(Diverged("the loss is nan"))), 9, 2, Diverged, "nan", (2,)),
    "Ctrl-C": (At(3, signals(signal.SIGINT)), 9, 1, CtrlC, "", (4, 3)),
    "Ctrl-C twice": (At(3, signals(signal.SIGINT, signal.SIGINT)), 9, 1, SystemExit, "", (3, 2)),
    "a signal in the last step": (At(2, signals(signal.SIGTERM)), 3, RARELY, None, "", (3,)),
    "after the last step": (late(OSError("late")), 3, 2, OSError, "late", (2,)),  # a resumed run repeats what failed
    "after it, without a checkpoint": (late(OSError("late")), 3, RARELY, OSError, "late", (3,)),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", ENDS)
def test_what_is_kept_when_a_run_ends_early(base: Path, tmp_path: Path, what: str) -> None:
    callback, steps, every, error, message, kept = ENDS[what]
    with nullcontext() if error is None else pytest.raises(error, match=message):
        fit(lora_module(base), tmp_path, steps, callback, saves(tmp_path, every), plugins=[WholeFile()])
    assert saved_steps(tmp_path) == dict(zip(("last.ckpt", "previous.ckpt"), kept))
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["StreamData"]["clips"] == 2 * saved["global_step"], "clips of steps that were not saved do not count"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("factor", "dies", "message"),
    [(float("inf"), False, "weights are NaN or infinite after step 4: lower"), (0.5, True, "killed by signal")],
    ids=["exploding", "half updated"],
)
def test_weights_that_the_last_update_broke_are_not_saved(base, tmp_path, factor, dies, message, monkeypatch):
    module, update = lora_module(base), torch.optim.AdamW.step

    def step(optimizer: torch.optim.AdamW, *args: Any, **options: Any) -> Any:
        loss = update(optimizer, *args, **options)
        if module.global_step == 3:
            trained(module).mul_(factor)
            if dies:  # torch raises this from a signal handler, at any place
                raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")
        return loss

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    with pytest.raises((Diverged, RuntimeError), match=message):
        fit(module, tmp_path, 9, saves(tmp_path, every=2), plugins=[WholeFile()])
    assert saved_steps(tmp_path) == {"last.ckpt": 2}


def test_a_full_disk_is_known_by_any_librarys_error() -> None:
    full = Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    found = [is_full(error) for error in (full, OSError(28, "full"), OSError(5, "lost"), ValueError("28"))]
    assert found == [True, True, False, False]


@pytest.mark.slow
def test_a_run_that_fails_before_its_first_step_saves_nothing(base: Path, last: Path, tmp_path: Path) -> None:
    path = shutil.copy(last, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="unreadable"):
        fit(lora_module(base), tmp_path, 3, saves(tmp_path), data=stream(train=RandomClips(2)), resume=path)
    assert path.read_bytes() == last.read_bytes()
    early, folder = L.Callback(), tmp_path / "new"
    early.on_fit_start = raising(OSError("early"))
    with pytest.raises(OSError, match="early"):
        fit(lora_module(base), folder, 1, early, saves(folder))
    assert not list(folder.glob("*.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("steps", [4, 5])  # the last is one to save at, or not
def test_the_last_step_is_saved_when_all_else_is_done(base: Path, tmp_path: Path, steps: int) -> None:
    class Ends(L.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            logged.append(trainer.fit_loop.epoch_loop._batches_that_stepped)

        def on_train_end(self, trainer, pl_module) -> None:
            before.append(saved_steps(folder).get("last.ckpt"))

    def run(steps: int, resume: Path | None = None) -> list[float]:
        options = VALIDATED | {"val_check_interval": 2}
        return fit(lora_module(base), folder, steps, saves(folder, 2), Ends(), resume=resume, **options)

    before, logged, folder = [], [], tmp_path / "first"
    first = run(steps)
    assert before == [2 if steps == 4 else 4]  # a run killed now repeats the last steps and exports
    assert saved_steps(folder) == {"last.ckpt": steps}
    folder = tmp_path / "more"
    more = run(steps + 1, resume=tmp_path / "first" / "last.ckpt")
    in_two, logged, folder = logged, [], tmp_path / "whole"
    assert first + more == run(steps + 1)
    assert in_two == logged


@pytest.mark.slow
@pytest.mark.parametrize("where", ["loading", "step"])
def test_half_a_step_that_failed_is_done_again_as_a_whole(base: Path, tmp_path: Path, where: str) -> None:
    class Stops(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if where == "step" and batch.position.tolist() == [broken]:
                raise ValueError("unreadable")

    def run(folder: Path, resume: Path | None = None) -> list[float]:
        data = stream(batch_size=1, train=RandomClips(broken) if where == "loading" else None)
        options = {"accumulate_grad_batches": 2, "data": data, "resume": resume}
        return fit(lora_module(base), folder, 4, Stops(), saves(folder, RARELY), **options)

    broken = None
    whole = run(tmp_path / "whole")
    broken = 5  # the last of step 3
    with pytest.raises(ValueError, match="unreadable"):
        run(tmp_path / "cut")
    broken = None
    assert run(tmp_path / "more", resume=tmp_path / "cut" / "last.ckpt") == whole[4:]
    ends = [torch.load(tmp_path / name / "last.ckpt", weights_only=True)["state_dict"] for name in ("whole", "more")]
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


def test_a_run_that_fails_in_validation_saves_its_weights_and_not_their_average(base: Path, tmp_path: Path) -> None:
    ema = Ema(decay=0.9)
    ema.on_train_batch_end = lambda *_: None  # the average stays at the initial weights
    data = stream(val=RandomClips(0))
    with pytest.raises(ValueError, match="unreadable"):
        fit(lora_module(base), tmp_path, 9, ema, saves(tmp_path, RARELY), data=data, val_check_interval=2, **VALIDATED)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    averages = saved["callbacks"]["Ema"]
    up = [name for name in averages if "lora_B" in name]  # zero at the start
    assert up
    assert all(saved["state_dict"][name].abs().max() > 0 == averages[name].abs().max() for name in up)


@pytest.mark.slow
def test_resumed_runs_repeat_the_uninterrupted_losses_bit_for_bit(base: Path, tmp_path: Path) -> None:
    options = {"accumulate_grad_batches": 2, "plugins": [WholeFile()]}
    whole = fit(lora_module(base), tmp_path, 3, **options)
    parts = fit(lora_module(base), tmp_path, 1, saves(tmp_path / "run"), **options)
    folder = (tmp_path / "run").rename(tmp_path / "moved")  # Lightning then forgets which file it wrote last
    for steps in (2, 3):
        resume = folder / "last.ckpt"
        parts += fit(lora_module(base), tmp_path, steps, saves(folder), resume=resume, **options)
    assert len(whole) == 6
    assert parts == whole
    assert saved_steps(folder) == {"last.ckpt": 3, "previous.ckpt": 2}


def test_a_full_disk_leaves_the_last_checkpoint_and_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    WholeFile().save_checkpoint({"step": 1}, path)

    def save(value: object, file) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="No space left") as raised:
        WholeFile().save_checkpoint({"step": 2}, path)
    assert raised.value.filename == str(path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_requeue_says_what_happened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert requeue() == "no SLURM here to requeue it"
    (tmp_path / "scontrol").write_text("#!/bin/sh\n[ $2 = 7_3 ] || echo unknown >&2\n[ $2 = 7_3 ]\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    assert requeue() == "job 9 cannot be requeued: unknown"
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "3")
    assert requeue() == "job 7_3 is requeued"
