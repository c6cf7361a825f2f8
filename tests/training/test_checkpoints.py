"""What may be resumed: another file, version or module is an error that names the file, and costs no checkpoint."""

import errno
import os
import shutil
import signal
from pathlib import Path

import lightning as L
import pytest
import torch
from conftest import MOTION
from training_runs import NUMBERS, Losses, RandomClips, lora_module, make_trainer, stream

from motionanim.training.callbacks import Ema
from motionanim.training.diffusion import DiffusionModule
from motionanim.training.optim import Diverged
from motionanim.training.runs.checkpoints import Checkpoint, CtrlC, WholeFile, check_checkpoint, is_full, requeue


@pytest.fixture(scope="module")
def last(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, 1, checkpoint(folder)).fit(lora_module(base), stream())
    return folder / "last.ckpt"


def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(folder, save_last=True, every_n_train_steps=1, save_top_k=0, save_on_exception=True)


def test_a_runs_own_checkpoint_is_fine(base: Path, last: Path) -> None:
    assert check_checkpoint(str(last), lora_module(base), stream()) == 1


def without(part: str):
    def spoil(saved: dict) -> dict:
        return {name: value for name, value in saved.items() if name != part}

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (without("StreamData"), "is no checkpoint of this version's runs: it lacks StreamData"),
        (without("optimizer_states"), "it lacks optimizer_states"),
        (lambda saved: [1], "it lacks state_dict"),
        (lambda saved: {**saved, "StreamData": {"batches": 3}}, "of an earlier version, which counted batches"),
        (lambda saved: {**saved, "state_dict": {}}, "does not fit this model: .* is missing"),
        (lambda saved: {**saved, "more": Path("x")}, "cannot be read as a checkpoint: damaged, or of"),
    ],
)
def test_what_is_no_checkpoint_of_this_run_is_named(base: Path, last: Path, tmp_path: Path, spoil, message) -> None:
    path = tmp_path / "old.ckpt"
    torch.save(spoil(torch.load(last, weights_only=True)), path)
    with pytest.raises(ValueError, match=rf"(?s)old\.ckpt.*{message}"):
        check_checkpoint(str(path), lora_module(base), stream())


def steps(folder: Path) -> dict[str, int]:
    return {path.name: torch.load(path, weights_only=True)["global_step"] for path in folder.glob("*.ckpt")}


class At(L.Callback):
    """Do something to the module before the batch of a step."""

    def __init__(self, step: int, action) -> None:
        self.step, self.action = step, action

    def on_train_batch_start(self, trainer, pl_module, *_) -> None:
        if trainer.global_step == self.step:
            self.action(pl_module)


def trained(module: L.LightningModule) -> torch.Tensor:
    return next(p for p in module.parameters() if p.requires_grad).data


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("every", [1, 2])  # the step that breaks is not one to save at, or is
def test_broken_weights_leave_the_two_newest_good_checkpoints(base: Path, tmp_path, value: float, every: int) -> None:
    saves = Checkpoint(tmp_path, save_last=True, every_n_train_steps=every, save_top_k=0, save_on_exception=True)
    breaks = At(4, lambda module: trained(module).fill_(value))  # as an exploding gradient in step 4 would
    with pytest.raises(Diverged, match=r"NaN or infinite|the loss is (nan|inf) at step 4"):
        make_trainer(tmp_path, 9, breaks, saves, plugins=[WholeFile()]).fit(lora_module(base), stream())
    assert steps(tmp_path) == {"last.ckpt": 4, "previous.ckpt": 4 - every}


def test_weights_that_a_step_breaks_are_not_saved_after_it(base: Path, tmp_path: Path) -> None:
    module = lora_module(base)
    optimizers = module.configure_optimizers

    def exploding() -> dict:
        made = optimizers()
        step = made["optimizer"].step

        def explode(*args, **options):
            loss = step(*args, **options)
            trained(module).fill_(float("inf") if module.global_step == 2 else 0)
            return loss

        made["optimizer"].step = explode
        return made

    module.configure_optimizers = exploding
    with pytest.raises(Diverged, match="weights are NaN or infinite after step 3: lower model.lr"):
        make_trainer(tmp_path, 9, checkpoint(tmp_path), plugins=[WholeFile()]).fit(module, stream())
    assert steps(tmp_path) == {"last.ckpt": 2, "previous.ckpt": 1}


@pytest.mark.parametrize(
    ("error", "kept"),
    [(OSError(errno.ENOSPC, "No space left on device"), 2), (OSError(errno.EIO, "Input/output error"), 3)],
)
def test_a_full_disk_is_not_written_to_again(base: Path, tmp_path: Path, error: OSError, kept: int) -> None:
    def fail(_: L.LightningModule) -> None:
        raise error

    saves = Checkpoint(tmp_path, save_last=True, every_n_train_steps=2, save_top_k=0, save_on_exception=True)
    with pytest.raises(OSError, match=error.strerror):
        make_trainer(tmp_path, 9, At(3, fail), saves).fit(lora_module(base), stream())
    assert steps(tmp_path)["last.ckpt"] == kept


def test_a_loss_that_is_nan_ends_the_run_without_a_checkpoint(base: Path, tmp_path: Path) -> None:
    def fail(_: L.LightningModule) -> None:
        raise Diverged("the loss is nan at step 3")

    saves = Checkpoint(tmp_path, save_last=True, every_n_train_steps=2, save_top_k=0, save_on_exception=True)
    with pytest.raises(Diverged, match="step 3"):
        make_trainer(tmp_path, 9, At(3, fail), saves).fit(lora_module(base), stream())
    assert steps(tmp_path) == {"last.ckpt": 2}


def test_a_full_disk_is_known_by_any_librarys_error() -> None:
    full = Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    assert [is_full(error) for error in (full, OSError(28, "full"), OSError(5, "lost"), ValueError("28"))] == [
        True, True, False, False,
    ]  # fmt: skip


def test_a_resumed_run_has_one_last_checkpoint_the_newest(base: Path, last: Path, tmp_path: Path) -> None:
    shutil.copy(last, tmp_path / "last.ckpt")
    make_trainer(tmp_path, 4, checkpoint(tmp_path), plugins=[WholeFile()]).fit(
        lora_module(base), stream(), ckpt_path=str(tmp_path / "last.ckpt"), weights_only=True
    )
    assert steps(tmp_path) == {"last.ckpt": 4, "previous.ckpt": 3}


@pytest.mark.parametrize(("times", "error"), [(1, CtrlC), (2, SystemExit)])
def test_ctrl_c_ends_after_the_step_and_twice_at_once(base: Path, tmp_path: Path, times: int, error: type) -> None:
    def press(_: L.LightningModule) -> None:
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(error):
        make_trainer(tmp_path, 9, At(3, press), checkpoint(tmp_path)).fit(lora_module(base), stream())
    assert steps(tmp_path)["last.ckpt"] == (4 if times == 1 else 3)


@pytest.mark.parametrize("size", [0, 100, 5000])
def test_a_file_cut_short_is_named(base: Path, last: Path, tmp_path: Path, size: int) -> None:
    (tmp_path / "cut.ckpt").write_bytes(last.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"cut\.ckpt cannot be read as a checkpoint"):
        check_checkpoint(str(tmp_path / "cut.ckpt"), lora_module(base), stream())


def test_another_modules_checkpoint_is_refused(base: Path, last: Path) -> None:
    module = DiffusionModule(base=str(base), trainable="all", **NUMBERS | {"motion": MOTION})
    with pytest.raises(ValueError, match=r"last\.ckpt: the checkpoint does not fit this model: .* is missing"):
        check_checkpoint(str(last), module, stream())


def test_a_run_that_fails_before_its_first_step_leaves_the_last_checkpoint(base: Path, last: Path, tmp_path) -> None:
    class Broken(RandomClips):
        def __getitem__(self, position: int):
            raise ValueError("unreadable")

    path = tmp_path / "last.ckpt"
    shutil.copy(last, path)
    data, before = stream(), path.read_bytes()
    data.train = Broken()
    with pytest.raises(ValueError, match="unreadable"):
        make_trainer(tmp_path, 3, checkpoint(tmp_path)).fit(
            lora_module(base), data, ckpt_path=str(path), weights_only=True
        )
    assert [file.name for file in tmp_path.glob("*.ckpt")] == ["last.ckpt"]
    assert path.read_bytes() == before


def test_a_run_that_fails_later_saves_what_it_learned(base: Path, tmp_path: Path) -> None:
    class Broken(RandomClips):
        def __getitem__(self, position: int):
            if position == 6:
                raise ValueError("unreadable")
            return super().__getitem__(position)

    data = stream()
    data.train = Broken()
    with pytest.raises(ValueError, match="unreadable"):
        make_trainer(tmp_path, 9, rare(tmp_path)).fit(lora_module(base), data)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] * 2 == saved["StreamData"]["clips"] > 0
    assert [file.name for file in tmp_path.glob("*.ckpt")] == ["last.ckpt"]


def test_half_updated_weights_are_not_saved(base: Path, tmp_path: Path) -> None:
    module = lora_module(base)
    optimizers = module.configure_optimizers

    def killed_within() -> dict:
        made = optimizers()
        step = made["optimizer"].step

        def half(closure):
            loss = step(closure)
            if module.global_step == 3:  # as torch raises, out of a signal's handler, when a loader process dies
                trained(module).mul_(0.5)
                raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")
            return loss

        made["optimizer"].step = half
        return made

    module.configure_optimizers = killed_within
    saves = Checkpoint(tmp_path, save_last=True, every_n_train_steps=2, save_top_k=0, save_on_exception=True)
    with pytest.raises(RuntimeError, match="killed by signal"):
        make_trainer(tmp_path, 9, saves).fit(module, stream())
    assert steps(tmp_path) == {"last.ckpt": 2}


@pytest.mark.parametrize("steps", [4, 5])  # the last is one to save at, or is not
def test_the_last_step_is_saved_when_all_else_is_done(base: Path, tmp_path: Path, steps: int) -> None:
    def saved() -> int:
        return torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"]

    class Ends(L.Callback):
        def on_train_batch_end(self, trainer, *_) -> None:
            logged.append(trainer.fit_loop.epoch_loop._batches_that_stepped)

        def on_train_end(self, trainer, pl_module) -> None:
            before.append(saved())

    def run(steps: int, folder: Path, resume: str | None = None) -> list[float]:
        saves = Checkpoint(folder, save_last=True, every_n_train_steps=2, save_top_k=0, save_on_exception=True)
        losses, options = Losses(), {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
        make_trainer(folder, steps, losses, saves, Ends(), **options).fit(
            lora_module(base), stream(), ckpt_path=resume, weights_only=True
        )
        return losses.losses

    before, logged = [], []
    first = run(steps, tmp_path)
    assert before == [2 if steps == 4 else 4]  # a run killed now makes up for what it has not exported yet
    assert saved() == steps
    assert [file.name for file in tmp_path.glob("*.ckpt")] == ["last.ckpt"]
    more = run(7, tmp_path / "more", resume=str(tmp_path / "last.ckpt"))
    in_two, logged = logged, []
    assert first + more == run(7, tmp_path / "whole")
    assert in_two == logged


@pytest.mark.parametrize(("every", "kept"), [(2, 2), (100, 3)])
def test_what_fails_after_the_last_step_is_repeated_if_there_is_a_checkpoint_before(
    base: Path, tmp_path: Path, every: int, kept: int
) -> None:
    class Full(L.Callback):
        def on_train_end(self, trainer, pl_module) -> None:
            raise OSError("No space left on device")

    saves = Checkpoint(tmp_path, save_last=True, every_n_train_steps=every, save_top_k=0, save_on_exception=True)
    with pytest.raises(OSError, match="No space left"):
        make_trainer(tmp_path, 3, Full(), saves).fit(lora_module(base), stream())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == kept


def test_what_fails_before_a_run_begins_is_its_own_error(base: Path, tmp_path: Path) -> None:
    class Early(L.Callback):
        def on_fit_start(self, trainer, pl_module) -> None:
            raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"):
        make_trainer(tmp_path, 0, Early(), rare(tmp_path)).fit(lora_module(base), stream())
    assert not list(tmp_path.glob("*.ckpt"))


def test_told_to_stop_in_the_last_step_a_run_ends_well(base: Path, tmp_path: Path) -> None:
    class Told(L.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if batch_idx == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    make_trainer(tmp_path, 3, Told(), rare(tmp_path)).fit(lora_module(base), stream())
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 3


def rare(folder: Path) -> Checkpoint:
    """Saves at the end and on exceptions."""
    return Checkpoint(folder, save_last=True, every_n_train_steps=100, save_top_k=0, save_on_exception=True)


@pytest.mark.parametrize("where", ["loading", "step"])
def test_half_a_step_that_failed_is_done_again_as_a_whole(base: Path, tmp_path: Path, where: str) -> None:
    def run(steps: int, folder: Path, position: int | None = None, resume: str | None = None) -> list[float]:
        class Fails(RandomClips):
            def __getitem__(self, at: int):
                if at == position and where == "loading":
                    raise ValueError("unreadable")
                return super().__getitem__(at)

        class Stops(Losses):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
                if batch.position.tolist() == [position] and where == "step":
                    raise ValueError("unreadable")

        losses, data = Stops(), stream(batch_size=1)
        data.train = Fails()
        trainer = make_trainer(folder, steps, losses, rare(folder), accumulate_grad_batches=3)
        trainer.fit(lora_module(base), data, ckpt_path=resume, weights_only=True)
        return losses.losses

    whole = run(4, tmp_path / "whole")
    with pytest.raises(ValueError, match="unreadable"):
        run(4, tmp_path / "cut", position=8)  # the last of step 3
    assert run(4, tmp_path / "more", resume=str(tmp_path / "cut" / "last.ckpt")) == whole[6:]
    ends = (torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("whole", "more"))
    for found, wanted in zip(*(end["state_dict"].values() for end in ends), strict=True):
        assert torch.equal(found, wanted)


def test_a_run_that_fails_in_validation_saves_its_weights_and_not_their_average(base: Path, tmp_path: Path) -> None:
    class Broken(RandomClips):
        def __getitem__(self, position: int):
            raise ValueError("unreadable")

    data, module, ema = stream(), lora_module(base), Ema(decay=0.9)
    ema.update = lambda averages, weights, step: None  # stays at the start
    ema.on_train_batch_end = lambda *_: None
    data.val = Broken()
    trainer = make_trainer(
        tmp_path, 9, ema, rare(tmp_path), limit_val_batches=1, val_check_interval=2, check_val_every_n_epoch=None
    )
    with pytest.raises(ValueError, match="unreadable"):
        trainer.fit(module, data)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    averages = saved["callbacks"]["Ema"]
    up = [name for name in averages if "lora_B" in name]  # zero at the start
    assert up
    assert all(saved["state_dict"][name].abs().max() > 0 == averages[name].abs().max() for name in up)


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.ckpt"
    WholeFile().save_checkpoint({"step": 1}, path)

    def save(value: object, file) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="No space left"):
        WholeFile().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_without_slurm_the_user_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
