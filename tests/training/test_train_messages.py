"""train.py when checkpoints are damaged or a run ends early: what is taken, kept and advised."""

import sys
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from hydra.types import RunMode
from lightning.pytorch.utilities.exceptions import SIGTERMException
from omegaconf import OmegaConf

from motionanim.evaluation.harness import Finished
from motionanim.training.optim import Diverged
from motionanim.training.runs.checkpoints import CtrlC, TimeIsUp, WholeFile, find_checkpoint

sys.path.insert(0, str(Path(__file__).parents[2]))
import evaluate
import train


def saved(run: Path, *, last: bytes | None) -> Path:
    """Two checkpoints, of steps 1 and 2, the last one damaged."""
    path = run / "checkpoints" / "last.ckpt"
    for step in (1, 2):
        WholeFile().save_checkpoint({"global_step": step}, path)
    if last is not None:
        path.write_bytes(last)
    return path


@pytest.mark.parametrize("content", [b"", b"half a file"])
def test_of_a_damaged_checkpoint_the_one_before_is_taken_and_stays(tmp_path: Path, content: bytes) -> None:
    last = saved(tmp_path, last=content)
    previous = last.with_name("previous.ckpt")
    for how in ("last", "auto"):
        assert find_checkpoint(how, tmp_path) == (previous, [last])
    WholeFile().save_checkpoint({"global_step": 3}, last)
    assert [torch.load(path)["global_step"] for path in (previous, last)] == [1, 3]
    for path in (previous, last):
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"ckpt_path=auto: .*last\.ckpt, .*previous\.ckpt cannot be read: remove"):
        find_checkpoint("auto", tmp_path)


@pytest.mark.parametrize(
    ("mode", "content", "wanted"),
    [
        (RunMode.RUN, None, "kept: {0}/last.ckpt (step 2), {0}/previous.ckpt (step 1); run=0 ckpt_path=last goes on"),
        (RunMode.RUN, b"", "kept: {0}/last.ckpt (damaged), {0}/previous.ckpt (step 1); run=0 ckpt_path=last goes on"),
        (RunMode.MULTIRUN, None, "the same command, with -m, with run=sweep ckpt_path=auto goes on"),
    ],
)
def test_a_run_that_ended_early_says_what_is_kept(tmp_path, monkeypatch, mode, content, wanted):
    monkeypatch.setattr(train.HydraConfig, "get", lambda: SimpleNamespace(mode=mode))
    out = tmp_path / "sweep" / "0"
    saved(out, last=content)
    assert train.kept(out).endswith(wanted.format(out / "checkpoints"))
    assert train.kept(tmp_path) == "nothing that can be read was saved before"


def test_the_model_is_drawn_alike_whatever_the_data_draws(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    drawn = []
    monkeypatch.setattr(train.hydra.utils, "instantiate", lambda *_, **__: drawn.append(torch.rand(1).item()))
    monkeypatch.setattr(train, "Settings", Mock(side_effect=InterruptedError))  # after the model
    cfg = OmegaConf.create({"seed": 0, "data": "data", "model": "model"})
    with pytest.raises(InterruptedError):
        train.train(cfg, tmp_path, None, first=True)
    assert drawn[0] == drawn[1]


CHANGE = "model.lr: 1 until here, 2 from here on"


def ended_by(
    error: BaseException, out: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: str | None = "last.ckpt"
) -> None:
    """`train.train` in a folder of checkpoints, with a trainer whose `fit` raises `error` after step 2."""

    settings = SimpleNamespace(check=lambda _: [CHANGE])

    def instantiate(node: object, **given: object) -> object:
        return SimpleNamespace(fit=fit, is_global_zero=True, global_step=2, **given) if "max_steps" in node else node

    def fit(*_: object, **__: object) -> None:
        raise error

    def check_trainer(trainer: SimpleNamespace) -> None:
        assert settings in trainer.callbacks, "it keeps them in the checkpoints"

    monkeypatch.setattr(train.hydra.utils, "instantiate", instantiate)
    monkeypatch.setattr(train, "Settings", lambda *_: settings)
    monkeypatch.setattr(train, "check_trainer", check_trainer)
    monkeypatch.setattr(train, "check_checkpoint", lambda *_: 2)
    for name in ("check_strategy", "loggers"):
        monkeypatch.setattr(train, name, lambda *_, **__: None)
    overrides = SimpleNamespace(task=["seed=0"])
    monkeypatch.setattr(train.HydraConfig, "get", lambda: SimpleNamespace(mode=RunMode.RUN, overrides=overrides))
    trainer_settings = {"max_steps": 9}
    cfg = OmegaConf.create({"seed": 0, "data": "data", "model": "model", "trainer": trainer_settings, "callbacks": {}})
    train.train(cfg, out, checkpoint and str(out / "checkpoints" / checkpoint), first=True)


FULL = "No space left on device"


@pytest.mark.parametrize(
    ("error", "wanted", "code", "line"),
    [
        (SIGTERMException(), SystemExit, 1, "stopped by SIGTERM after step 2; kept: "),
        (CtrlC(), SystemExit, 130, "stopped by Ctrl-C after step 2; kept: "),
        (TimeIsUp(), SystemExit, 1, "stopped by SIGUSR1 after step 2; no SLURM here to requeue it; kept: "),
        (SystemExit(1), SystemExit, 130, "stopped by Ctrl-C in step 2; kept: "),
        (OSError(28, FULL, "/x/a.csv"), OSError, None, "the disk of /x/a.csv is full"),
        (OSError(28, FULL), OSError, None, "a disk is full"),
        (RuntimeError("I/O error: File too large (os error 27)"), OSError, None, "a disk is full"),  # by safetensors
        (RuntimeError("DataLoader worker (pid(s) 9) exited"), OSError, None, "killed, often for lack of memory"),
        (ValueError("Caught ValueError in DataLoader worker process 0.\nunreadable"), ValueError, None, "unreadable"),
        (Diverged("the loss is nan at step 2"), Diverged, None, "the loss is nan at step 2; kept: "),
        (OSError(5, "Input/output error"), OSError, None, "Input/output error"),
    ],
)
def test_a_run_that_ends_early_says_why_and_what_is_kept(error, wanted, code, line, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    last = saved(tmp_path / "0", last=None)
    with pytest.raises(wanted) as raised:
        ended_by(error, tmp_path / "0", monkeypatch)
    assert getattr(raised.value, "code", None) == code
    told = capsys.readouterr().out.partition("step 2\n")[2] if code else str(raised.value)
    assert line in told
    assert told.endswith("run=0 ckpt_path=last goes on once there is room") is line.endswith("full")
    assert (f"kept: {last} (step 2)" in told) is (line not in ("Input/output error", "unreadable"))


def test_a_resumed_run_says_what_changes_and_keeps_its_earlier_config_and_a_new_one_does_not_begin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    last, config = saved(tmp_path, last=None), tmp_path / "config.yaml"
    with pytest.raises(ValueError, match="holds the checkpoints of an earlier run: give another run=NAME"):
        ended_by(InterruptedError(), tmp_path, monkeypatch, checkpoint=None)
    assert not config.exists()
    config.write_text("of the earlier part")
    with pytest.raises(InterruptedError):
        ended_by(InterruptedError(), tmp_path, monkeypatch)
    assert f"going on from {last}, step 2\n  {CHANGE}\n" in capsys.readouterr().out
    assert config.with_suffix(".0.yaml").read_text() == "of the earlier part"
    assert "max_steps: 9" in config.read_text()
    assert (tmp_path / ".hydra" / "overrides.yaml").read_text() == "- seed=0\n"


# W&B: a run there for each run here, however often it is resumed; without its server they are logged offline.


@pytest.mark.parametrize("reason", [None, "refused"])
def test_parts_of_a_training_are_one_run_and_offline_where_nothing_answers(reason, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "wandb_unreachable", lambda: reason)
    monkeypatch.setattr(train.hydra.utils, "instantiate", lambda node, **given: given)
    monkeypatch.setattr(train.HydraConfig, "get", lambda: SimpleNamespace(mode=RunMode.RUN))
    cfg = OmegaConf.create({"name": "lora", "logger": {"csv": {}, "wandb": {"offline": False}}})
    csv, first = train.loggers(cfg, tmp_path / "a", first=True)
    resumed, other = (train.loggers(cfg, tmp_path / name, first=True)[1] for name in "ab")
    assert csv == {}
    assert first == resumed
    assert first["id"] != other["id"]
    assert (first["name"], first["offline"]) == ("lora/a", reason is not None)
    assert ("W&B cannot be reached (refused): this run is logged offline" in capsys.readouterr().out) == bool(reason)


@pytest.mark.parametrize("reason", [None, "refused"])
def test_evaluations_under_one_label_are_runs_of_their_own(reason, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(evaluate.wandb, "init", begun := Mock(side_effect=InterruptedError))
    monkeypatch.setattr(evaluate, "wandb_offline", lambda: False)
    monkeypatch.setattr(evaluate, "wandb_unreachable", lambda: reason)
    result = dict.fromkeys(("benchmark", "n", "reference", "saw_motion", "seed", "settings")) | {"label": "ours"}
    for folder in ("a/ours-1", "b/ours-1", "a/ours-1"):
        with pytest.raises(InterruptedError):
            evaluate.log(OmegaConf.create({"name": folder[0]}), Finished("ours", tmp_path / folder, result, [], 0, 1))
    options = [call.kwargs for call in begun.call_args_list]
    ids = [each["id"] for each in options]
    assert ids[0] == ids[2] != ids[1]
    assert {(each["mode"], each["resume"]) for each in options} == {("offline" if reason else None, "allow")}
    assert ("W&B cannot be reached (refused): ours is logged offline" in capsys.readouterr().out) == bool(reason)
