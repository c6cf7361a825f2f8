"""What may be resumed: another file, version or module is an error that names the file, and costs no checkpoint."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import MOTION
from test_training import NUMBERS, RandomClips, lora_module, make_trainer, stream

from motionanim.training.checkpoints import Checkpoint, check_checkpoint, requeue
from motionanim.training.diffusion import DiffusionModule


@pytest.fixture(scope="module")
def last(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    make_trainer(folder, 1, checkpoint(folder)).fit(lora_module(base), stream())
    return folder / "last.ckpt"


def checkpoint(folder: Path) -> Checkpoint:
    return Checkpoint(folder, save_last=True, every_n_train_steps=1, save_top_k=0, save_on_exception=True)


def test_a_runs_own_checkpoint_is_fine(base: Path, last: Path) -> None:
    check_checkpoint(str(last), lora_module(base), stream())


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
    saving = Checkpoint(tmp_path, save_last=True, every_n_train_steps=100, save_top_k=0, save_on_exception=True)
    with pytest.raises(ValueError, match="unreadable"):
        make_trainer(tmp_path, 9, saving).fit(lora_module(base), data)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] * 2 == saved["StreamData"]["clips"] > 0


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
