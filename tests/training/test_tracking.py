"""W&B: a run there for each run here, however often it is resumed; without its server they are logged offline."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from motionanim.evaluation.harness import Finished

sys.path.insert(0, str(Path(__file__).parents[2]))
import evaluate
import train


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
    begun = []

    def init(**options: object) -> None:
        begun.append(options)
        raise InterruptedError

    monkeypatch.setattr(evaluate.wandb, "init", init)
    monkeypatch.setattr(evaluate, "wandb_offline", lambda: False)
    monkeypatch.setattr(evaluate, "wandb_unreachable", lambda: reason)
    result = dict.fromkeys(("benchmark", "n", "reference", "saw_motion", "seed", "settings")) | {"label": "ours"}
    for folder in ("a/ours-1", "b/ours-1", "a/ours-1"):
        with pytest.raises(InterruptedError):
            evaluate.log(OmegaConf.create({"name": folder[0]}), Finished("ours", tmp_path / folder, result, [], 0, 1))
    ids = [options["id"] for options in begun]
    assert ids[0] == ids[2] != ids[1]
    assert {options["mode"] for options in begun} == {"offline" if reason else None}
    assert {options["resume"] for options in begun} == {"allow"}
    assert ("W&B cannot be reached (refused): ours is logged offline" in capsys.readouterr().out) == bool(reason)
