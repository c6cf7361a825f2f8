"""A run's folder belongs to one run and one process; records of its earlier parts stay; `last` and `auto` find it."""

import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from configs import _fresh_hydra, composed  # noqa: F401  the fixture clears Hydra's global state
from in_process import run as run_command

from motionanim.cli.command import run_name
from motionanim.training.runs.checkpoints import find_checkpoint
from motionanim.training.runs.folder import checkpoints, claim, newest_run, set_records_aside, write_records

HOLD = (
    "import sys, pathlib; from motionanim.training.runs.folder import claim; "
    "lock = claim(pathlib.Path(sys.argv[1]), None)"
)


def saved(folder: Path, *names: str) -> None:
    """Checkpoints of nothing, the newest first."""
    for age, name in enumerate(reversed(names)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({}, path)
        os.utime(path, ns=(age, age))


def test_a_folder_is_of_one_process_at_a_time(tmp_path: Path) -> None:
    run = tmp_path / "run"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{HOLD}; print(1, flush=True); input()", str(run)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert holder.stdout.readline() == b"1\n"
    with pytest.raises(ValueError, match=r"a training runs in .*run now: .*run=NAME"):
        claim(run, None)
    holder.kill()
    holder.wait()
    claim(run, None).close()


def test_a_run_is_not_replaced_by_another(tmp_path: Path) -> None:
    saved(tmp_path, "a/checkpoints/last.ckpt", "a/checkpoints/previous.ckpt", "b/checkpoints/last.ckpt")
    for checkpoint in (None, str(tmp_path / "b/checkpoints/last.ckpt")):
        with pytest.raises(ValueError, match=r"a holds the checkpoints of an earlier run: .*ckpt_path=last"):
            claim(tmp_path / "a", checkpoint)
    claim(tmp_path / "a", str(tmp_path / "a/checkpoints/previous.ckpt")).close()
    claim(tmp_path / "c", str(tmp_path / "b/checkpoints/last.ckpt")).close()


def test_each_part_of_a_run_keeps_its_config_and_overrides(tmp_path: Path) -> None:
    for part in range(3):
        set_records_aside(tmp_path)
        write_records(tmp_path, f"part: {part}\n", [f"run={part}", "a=b"])
    texts = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.yaml")}
    assert texts == {
        "config.yaml": "part: 2\n", ".hydra/overrides.yaml": "- run=2\n- a=b\n",
        "config.0.yaml": "part: 0\n", ".hydra/overrides.0.yaml": "- run=0\n- a=b\n",
        "config.1.yaml": "part: 1\n", ".hydra/overrides.1.yaml": "- run=1\n- a=b\n",
    }  # fmt: skip


def test_an_earlier_part_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / ".hydra").mkdir()
    for name in ("config.yaml", "config.4.yaml", ".hydra/overrides.yaml", ".hydra/overrides.5.yaml", "config.a.yaml"):
        (tmp_path / name).write_text(name)
    for name in ("metrics.csv", "metrics.3.csv"):
        (tmp_path / name).write_text(name)
    set_records_aside(tmp_path)
    texts = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()}
    assert texts == {
        "config.4.yaml": "config.4.yaml", "config.6.yaml": "config.yaml", "config.a.yaml": "config.a.yaml",
        ".hydra/overrides.5.yaml": ".hydra/overrides.5.yaml", ".hydra/overrides.6.yaml": ".hydra/overrides.yaml",
        "metrics.3.csv": "metrics.3.csv", "metrics.4.csv": "metrics.csv",
    }  # fmt: skip


def test_what_a_killed_save_left_is_no_checkpoint_and_is_removed(tmp_path: Path) -> None:
    saved(tmp_path, "x/cut/checkpoints/.last.7.ckpt", "x/cut/checkpoints/.last-v1.8.ckpt", "x/a/checkpoints/last.ckpt")
    assert newest_run(tmp_path / "x") == "a"
    claim(tmp_path / "x" / "cut", None).close()
    assert list((tmp_path / "x" / "cut" / "checkpoints").iterdir()) == []


def test_checkpoints_are_ordered_by_name_and_may_vanish(tmp_path: Path) -> None:
    saved(tmp_path, "x/a/checkpoints/previous.ckpt", "x/a/checkpoints/last.ckpt")  # the newest first
    assert [path.name for path in checkpoints(tmp_path / "x/a")] == ["previous.ckpt", "last.ckpt"]
    (tmp_path / "x/a/checkpoints/last.ckpt").unlink()
    (tmp_path / "x/a/checkpoints/last.ckpt").symlink_to(tmp_path / "gone")  # listed, and not there
    assert newest_run(tmp_path / "x") == "a"
    assert [path.name for path in checkpoints(tmp_path / "x/a")] == ["previous.ckpt"]


@pytest.mark.parametrize(
    ("run", "last"),
    [("x/a", "x/a/checkpoints/last-v1.ckpt"), ("x/s/0", None), ("x/s/1", "x/s/1/checkpoints/previous.ckpt")],
)
def test_last_and_auto_are_the_newest_checkpoint_of_this_run(tmp_path: Path, run: str, last: str | None) -> None:
    saved(
        tmp_path, "x/s/1/checkpoints/previous.ckpt", "x/b/checkpoints/last.ckpt", "x/a/checkpoints/last-v1.ckpt",
        "x/a/checkpoints/last.ckpt",
    )  # fmt: skip
    for how in ("last", "auto") if last else ("auto",):
        assert find_checkpoint(how, tmp_path / run) == (last and tmp_path / last, [])


def test_last_without_a_name_is_the_newest_run_of_the_experiment_in_its_own_folder(tmp_path: Path) -> None:
    x = str(tmp_path / "x")
    assert run_name("last", x, "now", "now") == "now"
    saved(tmp_path, "x/s/1/checkpoints/last.ckpt", "x/b/checkpoints/last.ckpt", "x/a/checkpoints/last.ckpt")
    assert run_name("last", x, "now", "now") == "b"
    assert run_name("last", x, "given", "now") == "given"
    assert {run_name(path, x, "now", "now") for path in (None, "auto", "a.ckpt")} == {"now"}


@pytest.mark.slow
def test_trainings_that_begin_in_one_second_have_folders_of_their_own() -> None:
    first, second = (composed("experiment=motion_lora").run for _ in range(2))
    assert first != second


@pytest.mark.slow
def test_a_job_of_a_sweep_has_a_short_folder_however_many_settings_it_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = Mock(side_effect=ValueError("seen"))
    monkeypatch.setattr("motionanim.training.runs.checkpoints.find_checkpoint", seen)
    settings = ["experiment=motion_lora", "data=folder", f"data.root={tmp_path}", "run=sweep", "model.rank=4,16"]
    settings += [f"callbacks.{name}.clips=2" for name in ("camera", "preview")]
    settings += [f"trainer.{name}=2" for name in ("max_steps", "log_every_n_steps", "accumulate_grad_batches")]
    settings += [f"scale.{name}=64" for name in ("height", "width", "num_frames", "batch_size", "num_steps")]
    assert run_command("train", ["-m", *settings], monkeypatch) == 2
    seen.assert_called_once_with(None, tmp_path / "runs" / "motion_lora" / "sweep" / "0")
