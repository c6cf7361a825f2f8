"""Every YAML binds to its target, every setting is read, every experiment runs at the tiniest size."""

import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
from configs import CONF, ROOT, _fresh_hydra, check_binding, choices, composed  # noqa: F401  the fixture is for all tests
from hydra.utils import instantiate
from omegaconf import OmegaConf

from motionanim.cli.settings import readable

EXPERIMENTS = choices("experiment")
# Overrides that each command needs, and effects of some choices.
GIVEN = {
    "train": ["experiment=motion_lora"], "animate": ["image=none"], "evaluate": [], "prepare": ["root=none"],
    "encode": ["out=none"],
}  # fmt: skip
FOLDERS = ["method.folders=none", "+method.benchmark=null", "+method.truth=none"]
NEEDED = {
    "benchmark=folder": ["benchmark.root=none"], "benchmark=published": ["benchmark.root=none"],
    "method=external": FOLDERS, "method=published": FOLDERS,
}  # fmt: skip
ALONE = ("experiment", "model", "sweep", "score", "hydra")  # they set others, or are set by them


def targets(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict) and "_target_" in node:
        yield node
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from targets(child)


def compositions() -> Iterator[tuple[str, list[str]]]:
    """Commands and overrides that together take every choice: the n-th takes the n-th choice of each group."""
    for config, given in GIVEN.items():
        defaults = OmegaConf.to_container(OmegaConf.load(CONF / f"{config}.yaml"))["defaults"]
        groups = [name for entry in defaults if isinstance(entry, dict) for name in entry if " " not in name]
        of = {group: choices(group) for group in groups if group not in ALONE}
        for n in range(max(map(len, of.values()))):
            words = [readable(f"{group}={names[n % len(names)]}") for group, names in of.items()]
            yield config, [*given, *words, *(each for word in words for each in NEEDED.get(word, ()))]
    yield from (("train", [f"experiment={name}"]) for name in EXPERIMENTS)
    yield "train", ["experiment=flow_refiner", "model=flow_refiner_paper"]
    yield from (("evaluate", [f"sweep={name}"]) for name in choices("sweep"))
    yield "evaluate", ["score=given", "truth=a", "videos=b", *FOLDERS[1:]]


@pytest.mark.slow
@pytest.mark.parametrize(("config", "words"), list(compositions()), ids=str)
def test_every_target_binds(config: str, words: list[str]) -> None:
    nodes = list(targets(OmegaConf.to_container(composed(*words, config=config), resolve=True)))
    assert nodes
    for node in nodes:
        check_binding(node)


def test_a_key_that_no_target_takes_would_be_noticed() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'speling'"):
        check_binding({"_target_": "motionanim.training.callbacks.Ema", "decay": 0.9, "speling": 1})
    with pytest.raises(TypeError, match="missing a required argument: 'decay'"):
        check_binding({"_target_": "motionanim.training.callbacks.Ema"})


def test_every_setting_is_read() -> None:
    """Where no target takes the keys, another YAML or the code of a command names each of them."""
    yamls = {path: path.read_text() for path in CONF.rglob("*.yaml")}
    programs = (
        "animate.py", "export.py", "animation/job.py", "data/encode.py", "data/prepare/__main__.py", "cli/command.py",
        "page/__main__.py",
    )  # fmt: skip
    paths = [ROOT / "train.py", ROOT / "evaluate.py", *(ROOT / "motionanim" / name for name in programs)]
    code = "".join(path.read_text() for path in paths)
    unread = []
    for path in yamls:
        group = path.parent.name + "." if path.parent != CONF else ""
        if group not in ("", "scale.", "conditioning.", "hint.", "paths."):
            continue
        for key, value in OmegaConf.to_container(OmegaConf.load(path)).items():
            if key in ("defaults", "hydra") or (isinstance(value, dict) and "_target_" in value):
                continue
            used = rf"\$\{{({group}|\.+){key}\b|[{{,:]{group}{key}\b"
            called = rf"\.{group}{key}\b|\[\"{key}\"\]|\"{key}\""
            if not re.search(called, code) and not any(re.search(used, text) for text in yamls.values()):
                unread.append(f"{path.name}: {group}{key}")
    assert unread == []


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("trainer=default", "trainer.accelerator", "auto"),
        ("trainer=cpu", "trainer.accelerator", "cpu"),
        ("trainer=gpu", "trainer.accelerator", "gpu"),
        *((f"trainer={name}", "trainer.plugins[0]._target_", "motionanim.training.runs.checkpoints.WholeFile")
          for name in choices("trainer")),
        ("logger=none", "logger", {}),
        # On a GPU an operation without deterministic gradient warns; true would end the run.
        ("experiment=tiny_base", "trainer.deterministic", "warn"),
        # The camera report runs during training: it keeps the fast estimator.
        ("data=folder flow_estimator=raft", "callbacks.camera.flow_estimator._target_",
         "motionanim.models.flow_estimator.DisFlow"),
        ("data=folder flow_estimator=raft", "data.flow_estimator._target_",
         "motionanim.models.flow_estimator.RaftFlow"),
        # Small files are exported every 500 steps, large ones at the end only.
        *((f"experiment={name}", "callbacks.export.every_n_steps",
           500 if name in ("motion_lora", "flow_refiner") else None) for name in EXPERIMENTS),
    ],
)  # fmt: skip
def test_a_choice_sets(words: str, key: str, value: Any) -> None:
    assert OmegaConf.select(composed("experiment=motion_lora", *words.split()), key) == value


@pytest.mark.slow
def test_the_papers_test_set_shows_no_frame_twice() -> None:
    for name in ("pixabay16", "pixabay125"):
        assert composed(f"benchmark={name}", config="evaluate").benchmark.reading.slower == "refuse"


@pytest.mark.parametrize(
    ("given", "gamma", "sigma"),
    [
        ({}, {"continuous": None, "loop": None, "phased": 0.8}, {"continuous": 2.0, "loop": 2.0, "phased": None}),
        ({"gamma": 0.5}, 0.5, None),
        ({"gamma": 0}, 0, None),
        ({"sigma": 1}, None, 1),
        ({"gamma": None, "sigma": 1}, None, 1),
        ({"gamma": 0.5, "sigma": None}, 0.5, None),
    ],
)
@pytest.mark.parametrize("method", ["continuous", "loop", "phased"])
def test_gamma_or_sigma_alone_is_enough(method: str, given: dict[str, Any], gamma: Any, sigma: Any) -> None:
    """Each turns the method's own default off, whichever of the two it is."""
    split = instantiate(OmegaConf.merge(OmegaConf.load(CONF / "long_video" / f"{method}.yaml"), given)).keywords
    wanted = [each[method] if isinstance(each, dict) else each for each in (gamma, sigma)]
    assert [split["gamma"], split["sigma"]] == wanted


def test_the_method_ours_gets_the_long_video_settings() -> None:
    node = composed("long_video=phased", "long_video.sigma=1", config="evaluate").method.long_video
    assert (node.gamma, node.sigma) == (None, 1)


SMALL = [
    "scale.height=16", "scale.width=16", "scale.num_frames=5", "scale.batch_size=2", "trainer.max_steps=1",
    "trainer.val_check_interval=1", "trainer.limit_val_batches=1", "trainer.log_every_n_steps=1", "run=smoke",
    "scale.num_workers=0", "sampling.num_steps=1",
]  # fmt: skip
LARGER = ["scale.height=32", "scale.width=32"]
EXPORTED = {
    "motion_lora": "lora.safetensors", "flow_refiner": "flow_refiner.safetensors",
    "diffusion": "pipeline/motion/motion.safetensors", "tiny_base": "pipeline/unet/config.json",
    "panning_base": "pipeline/unet/config.json", "tiny_autoencoder": "pipeline/vae/config.json",
    "video_features": "video_features.safetensors",
}  # fmt: skip


def overrides_of(experiment: str, base: Path) -> list[str]:
    own = {
        "motion_lora": ["callbacks.camera.clips=2"], "flow_refiner": LARGER, "video_features": LARGER,
        "tiny_autoencoder": [*LARGER, "model.crop=16"],
    }.get(experiment, [])  # fmt: skip
    if not set(LARGER) & set(own):
        own += [f"scale.base={base}", "scale.motion_channels=8", "scale.median_strength=0.01"]
        own.append("callbacks.preview.clips=1")
    return [f"experiment={experiment}", *SMALL, *own]


run_train = functools.partial(forked.run, ROOT / "train.py")


def check_one_step(experiment: str, *overrides: str, cwd: Path) -> Path:
    """Run an experiment; its folder."""
    done = run_train(*overrides, cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]
    out = cwd / "runs" / experiment / "smoke"
    assert (out / "checkpoints" / "last.ckpt").is_file()
    assert (out / "curves.png").is_file()
    assert (out / EXPORTED[experiment]).is_file()
    return out


@pytest.mark.slow
@pytest.mark.parametrize("experiment", sorted({*EXPERIMENTS} - {"motion_lora"}))
def test_every_experiment_runs_one_step(experiment: str, base: Path, tmp_path: Path) -> None:
    check_one_step(experiment, *overrides_of(experiment, base), "~logger.wandb", cwd=tmp_path)


@pytest.mark.long
@pytest.mark.slow
def test_a_motion_lora_runs_one_step_and_a_finished_run_is_left_as_it_is(base: Path, tmp_path: Path) -> None:
    overrides = overrides_of("motion_lora", base)
    out = check_one_step("motion_lora", *overrides, cwd=tmp_path)
    assert list((out / "wandb").glob("offline-run-*")), "a W&B offline run"
    for name in ("camera.json", "before.mp4", "after.mp4", "before_after.png"):
        assert (out / name).is_file()
    before = {path: path.read_bytes() for path in out.glob("*.*") if path.suffix in (".yaml", ".csv")}
    for more, code, told in (
        (["ckpt_path=auto", "model.rank=8"], 2, "the checkpoint does not fit this model"),
        (["ckpt_path=auto"], 0, "has its 1 steps: give a trainer.max_steps above 1 to train on"),
        (["ckpt_path=last"], 2, "last.ckpt has its 1 steps: give a trainer.max_steps above 1"),
    ):
        done = run_train(*overrides, *more, cwd=tmp_path)
        assert done.returncode == code, done.stderr[-2000:]
        assert told in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert {path: path.read_bytes() for path in out.glob("*.*") if path.suffix in (".yaml", ".csv")} == before


@pytest.mark.slow
def test_debug_runs_save_nothing_and_see_one_batch(base: Path, tmp_path: Path) -> None:
    given = [word for word in overrides_of("diffusion", base) if not word.startswith(("trainer.", "callbacks."))]
    for debug, more, left in (
        ("fast", [], set()),
        ("overfit", ["trainer.max_steps=5"], {"metrics.csv", "hparams.yaml", "curves.png"}),
    ):
        done = run_train(*given, f"debug={debug}", f"run={debug}", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-3000:]
        files = {path.name for path in (tmp_path / "runs" / "debug" / debug).rglob("*") if path.is_file()}
        assert files - {".lock", "train.log"} == {"config.yaml", "overrides.yaml"} | left
    rows = (tmp_path / "runs" / "debug" / "overfit" / "metrics.csv").read_text().splitlines()[1:]
    losses = [float(row.split(",")[2]) for row in rows]
    assert losses == sorted(losses, reverse=True), "one batch with the same noise"
    assert losses[-1] < losses[0]
