"""Settings that a resumed run changes are printed and applied, or refused; any checkpoint can be exported."""

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from conftest import MOTION
from omegaconf import OmegaConf
from safetensors.torch import load_file
from training_runs import NUMBERS, fit, lora_module, saves

from motionanim.cli.command import CONF
from motionanim.export import TARGETS, export
from motionanim.files import atomic_folder
from motionanim.training.callbacks import Ema, Export
from motionanim.training.motion_lora import MotionLoraModule
from motionanim.training.runs.checkpoints import WholeFile
from motionanim.training.runs.resume import Settings


def config(base: Path, **model: Any) -> dict[str, Any]:
    """As train.py resolves it, in small."""
    target = "motionanim.training.motion_lora.MotionLoraModule"
    return {
        "seed": 0, "items": "clips",
        "data": {"_target_": "motionanim.data.folder", "root": "a", "stride": 1, "flow_cache": "x", "latents": None},
        "model": {"_target_": target, "rank": 4, "alpha": 4, "base": str(base), **NUMBERS, **model},
        "trainer": {"precision": "32-true", "max_steps": 2, "devices": 1},
        "callbacks": {"export": {"folder": "runs/a"}},
    }  # fmt: skip


def changed(config: dict[str, Any], name: str, value: Any) -> dict[str, Any]:
    config = OmegaConf.create(config)
    OmegaConf.update(config, name, value, merge=False)
    return OmegaConf.to_container(config)


def run(
    folder: Path, config: dict[str, Any], steps: int, *callbacks: L.Callback, resume: Path | None = None
) -> tuple[MotionLoraModule, list[float]]:
    """Train as train.py does, saving after every step; the module and its losses."""
    torch.manual_seed(0)
    module = MotionLoraModule(**{name: value for name, value in config["model"].items() if name != "_target_"})
    callbacks = (saves(folder), Settings(config, module), *callbacks)
    return module, fit(module, folder, steps, *callbacks, resume=resume, plugins=[WholeFile()])


@pytest.fixture(scope="module")
def last(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    run(folder, config(base), 2, Ema(decay=0.9))
    return folder / "last.ckpt"


@pytest.fixture(scope="module")
def module(base: Path) -> MotionLoraModule:
    return lora_module(base)


@pytest.mark.parametrize(
    ("name", "value", "line"),
    [
        ("model.lr", 1e-4, "model.lr: 0.001 until here, 0.0001 from here on"),
        ("model.weight_decay", 0.0, "model.weight_decay: 0.01 until here, 0.0 from here on"),
        ("trainer.max_steps", 9, "trainer.max_steps: 2 until here, 9 from here on"),
        ("trainer.devices", 8, "trainer.devices: 1 until here, 8 from here on"),
        ("data.root", "b", "data.root: a until here, b from here on"),  # the files in it are compared
        *(
            (f"data.{name}", "b", f"data.{name}: absent until here, b from here on")
            for name in (
                "flow_estimator.device",
                "clips.flow_estimator.pairs",
                "flow_estimator.weights",
                "clips.flow_estimator.sha256",
            )
        ),
        ("callbacks.export.folder", "runs/b", None),
        ("data.flow_cache", "y", None),
    ],
)
def test_what_may_change_is_printed(base: Path, module, last: Path, name: str, value: Any, line: str | None) -> None:
    settings = Settings(changed(config(base), name, value), module)
    assert settings.check(str(last)) == ([line] if line else [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.sigma_mean", 0.0), ("model.drop_flow", 0.5), ("model.motion", {**MOTION, "channels": 4}), ("seed", 1),
        ("data.stride", 2), ("data._target_", "motionanim.data.hdvila"), ("trainer.precision", "bf16-mixed"),
        ("data", {"_target_": "motionanim.data.hdvila", "fps": 3}), ("model.rank", 8), ("items", "pairs"),
    ],
)  # fmt: skip
def test_what_makes_another_run_is_refused_by_name(base: Path, module, last: Path, name: str, value: Any) -> None:
    settings = Settings(changed(config(base), name, value), module)
    named = {"data": "data._target_", "model.motion": "model.motion.channels"}.get(name, name)
    with pytest.raises(ValueError, match=rf"last\.ckpt: the run began with {named}=\S+ and would go on with {named}="):
        settings.check(str(last))


def test_another_base_is_refused_and_the_same_may_have_moved(base: Path, module, last: Path) -> None:
    moved = Settings(config(Path("/elsewhere")), module)
    assert moved.check(str(last)) == [f"model.base: {base} until here, /elsewhere from here on"]
    other = lora_module(base)
    next(p for p in other.parameters() if not p.requires_grad).data.add_(1)
    with pytest.raises(ValueError, match=rf"the run began with model\.base={base} and would go on with .*/elsewhere"):
        Settings(config(Path("/elsewhere")), other).check(str(last))


@pytest.mark.slow
def test_learning_rate_and_weight_decay_of_a_resumed_run_act(base: Path, tmp_path: Path, last: Path) -> None:
    _, whole = run(tmp_path / "whole", config(base), 4)
    _, same = run(tmp_path / "same", config(base), 4, resume=last)
    assert same == whole[2:], "where nothing changes, nothing changes"
    module, other = run(tmp_path / "other", config(base, lr=1e-5, weight_decay=0.3), 4, resume=last)
    (group,) = module.optimizers(use_pl_optimizer=False).param_groups
    assert (group["lr"], group["weight_decay"]) == (1e-5, 0.3)
    assert other[0] == whole[2], "the moments and the weights are kept"
    assert other[1] != whole[3]


@pytest.mark.slow
@pytest.mark.parametrize("average", [False, True])
def test_any_checkpoint_is_exported_as_the_run_would_have_done(base, tmp_path, average, monkeypatch):
    monkeypatch.setattr(Ema, "START", 1)
    kept = [Ema(decay=0.9)] if average else []
    run(tmp_path / "checkpoints", config(base), 4, *kept, Export(folder=str(tmp_path), every_n_steps=2))
    made = export(str(tmp_path / "checkpoints" / "last.ckpt"), None, None)
    assert made == tmp_path / "exports" / "step_0000004" / "lora.safetensors"
    wanted, found = load_file(tmp_path / "lora.safetensors"), load_file(made)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    before = export(str(tmp_path / "checkpoints" / "previous.ckpt"), tmp_path / "out", None)
    assert before == tmp_path / "out" / "lora.safetensors"
    early = load_file(tmp_path / "exports" / "step_0000002" / "lora.safetensors")
    assert early.keys() == load_file(made).keys()
    assert not torch.equal(early.popitem()[1], load_file(made).popitem()[1])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda saved: saved["config"]["model"].update(_target_="os.system"), r"code that is no .*\(os\.system\)"),
        (
            lambda saved: saved["config"]["model"]["motion"].update(_target_="motionanim.files.os.system"),
            r"\(motionanim.+os\.system\)",
        ),
        (lambda saved: saved["config"]["model"].update(_partial_=True), r"do not fit .*_partial_"),
        (lambda saved: saved.pop("config"), r"it lacks config"),
        (lambda saved: saved.update(config=1), r"does not say which model"),
        (lambda saved: saved["config"]["model"].pop("_target_"), r"does not say which model"),
        (lambda saved: saved.update(frozen="0"), r"another base than .*: give it by base=FOLDER"),
    ],
)
def test_what_cannot_be_exported_is_one_line(base: Path, last: Path, tmp_path: Path, spoil, message: str) -> None:
    saved = torch.load(last, weights_only=True)
    spoil(saved)
    torch.save(saved, tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=message):
        export(str(tmp_path / "a.ckpt"), tmp_path / "out", None)
    assert not (tmp_path / "out").exists()


def test_every_model_of_the_configurations_can_be_exported() -> None:
    texts = [path.read_text() for path in (CONF / "model").glob("*.yaml")]
    assert {name for text in texts for name in re.findall(r"_target_: (\S+)", text)} == TARGETS


def test_an_export_replaces_nothing_and_needs_a_checkpoint(last: Path, tmp_path: Path) -> None:
    (tmp_path / "lora.safetensors").write_text("mine")
    with pytest.raises(ValueError, match=r"lora\.safetensors is there already .*out=FOLDER"):
        export(str(last), tmp_path, None)
    assert (tmp_path / "lora.safetensors").read_text() == "mine"
    with pytest.raises(ValueError, match=r"ckpt=gone\.ckpt: no such file"):
        export("gone.ckpt", tmp_path, None)


def test_a_folder_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def write(name: str) -> None:
        with atomic_folder(tmp_path / "out") as new:
            (new / name).touch()
            if name == "bad":
                raise OSError(28, "full")

    for name in ("a", "b"):
        write(name)
        assert [path.name for path in tmp_path.rglob("*")] == ["out", name]
    with pytest.raises(OSError, match="full"):
        write("bad")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "b"]
