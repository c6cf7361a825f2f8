"""Every YAML binds to its target, every experiment runs at the tiniest size, every command that is shown is taken."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import forked
import pytest
from configs import CONF, ROOT, _fresh_hydra, check_binding, composed  # noqa: F401  the fixture is for all tests
from hydra.utils import instantiate
from omegaconf import OmegaConf

import motionanim.cli.command  # noqa: F401  registers the resolvers

EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
GROUPS = {
    group: sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    for group in ("conditioning", "scale", "data", "flow_estimator", "hint", "trainer", "model")
}


def targets(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield node
        for child in node.values():
            yield from targets(child)
    elif isinstance(node, list):
        for child in node:
            yield from targets(child)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_target_of_every_experiment_binds(experiment: str) -> None:
    resolved = OmegaConf.to_container(composed(f"experiment={experiment}"), resolve=True)
    nodes = list(targets(resolved))
    assert len(nodes) > 5
    for node in nodes:
        check_binding(node)


@pytest.mark.parametrize(
    "override", [f"{group}={choice}" for group, choices in GROUPS.items() for choice in choices], ids=str
)
def test_every_choice_of_every_group_binds(override: str) -> None:
    experiment = "flow_refiner" if "flow_refiner" in override or "pairs" in override else "motion_lora"
    if override == "model=diffusion":
        experiment = "diffusion"
    resolved = OmegaConf.to_container(composed(f"experiment={experiment}", override), resolve=True)
    for node in targets(resolved):
        check_binding(node)


ANIMATE = {
    group: sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    for group in ("long_video", "controls", "eulerian", "hint", "scale", "conditioning")
}


@pytest.mark.parametrize(
    "override", [f"{group}={choice}" for group, choices in ANIMATE.items() for choice in choices], ids=str
)
def test_every_choice_of_animate_binds(override: str) -> None:
    resolved = OmegaConf.to_container(composed(override, "image=none", config="animate"), resolve=True)
    nodes = list(targets(resolved))
    assert len(nodes) >= 3
    for node in nodes:
        check_binding(node)


@pytest.mark.parametrize(
    ("given", "gamma", "sigma"),
    [
        ("", {"continuous": None, "loop": None, "phased": 0.8}, {"continuous": 2.0, "loop": 2.0, "phased": None}),
        ("long_video.gamma=0.5", 0.5, None),
        ("long_video.gamma=0", 0, None),
        ("long_video.sigma=1", None, 1),
        ("long_video.gamma=null long_video.sigma=1", None, 1),
        ("long_video.gamma=0.5 long_video.sigma=null", 0.5, None),
    ],
)
@pytest.mark.parametrize("method", ["continuous", "loop", "phased"])
@pytest.mark.parametrize("config", ["animate", "evaluate"])
def test_gamma_or_sigma_alone_is_enough(config: str, method: str, given: str, gamma: Any, sigma: Any) -> None:
    """S18: each turns the method's own default off, whichever of the two it is."""
    extra = ["image=none"] if config == "animate" else []
    cfg = composed(f"long_video={method}", *given.split(), *extra, config=config)
    for node in (cfg.long_video, cfg.method.long_video) if config == "evaluate" else (cfg.long_video,):
        wanted = [each[method] if isinstance(each, dict) else each for each in (gamma, sigma)]
        assert [node.gamma, node.sigma] == wanted
        split = instantiate(node).keywords
        assert [split["gamma"], split["sigma"]] == wanted


EVALUATE = {
    group: sorted(path.stem for path in (CONF / group).glob("*.yaml"))
    for group in ("benchmark", "method", "metrics", "sweep", "conditioning", "long_video", "scale")
}


@pytest.mark.parametrize(
    "override", [f"{group}={choice}" for group, choices in EVALUATE.items() for choice in choices], ids=str
)
def test_every_choice_of_evaluate_binds(override: str) -> None:
    group, _, choice = override.partition("=")
    given = []
    if group == "benchmark" and choice in ("folder", "published"):
        given = ["benchmark.root=none"]
    if group == "method" and choice in ("external", "published"):
        given = ["method.folders=none", "+method.reading=null", "+method.clips=[]", "+method.truth=none"]
    resolved = OmegaConf.to_container(composed(override, *given, config="evaluate"), resolve=True)
    nodes = list(targets(resolved))
    assert len(nodes) >= 8
    for node in nodes:
        check_binding(node)


def test_prepare_and_encode_bind() -> None:
    for config, setting in (("prepare", "root=none"), ("encode", "out=none")):
        for engine in ("processes", "ray"):
            composition = composed(setting, f"engine={engine}", config=config)
            for node in targets(OmegaConf.to_container(composition, resolve=True)):
                check_binding(node)


def test_a_key_that_no_target_takes_would_be_noticed() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'speling'"):
        check_binding({"_target_": "motionanim.training.callbacks.Ema", "decay": 0.9, "speling": 1})
    with pytest.raises(TypeError, match="missing a required argument: 'decay'"):
        check_binding({"_target_": "motionanim.training.callbacks.Ema"})


def test_flow_estimators_and_data_instantiate() -> None:
    cfg = composed("experiment=motion_lora")
    data = instantiate(cfg.data, _convert_="all")
    assert data.train[3].frames.shape == (16, 3, 128, 128)
    assert instantiate(cfg.flow_estimator).name.startswith("dis")


def run_train(*overrides: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    return forked.run(str(ROOT / "train.py"), *overrides, cwd=cwd, env=environment)


SMALL = [
    "scale.height=16", "scale.width=16", "scale.num_frames=5", "scale.batch_size=2", "trainer.max_steps=1",
    "trainer.val_check_interval=1", "trainer.limit_val_batches=1", "trainer.log_every_n_steps=1", "run=smoke",
    "scale.num_workers=0", "sampling.num_steps=2",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_one_step(experiment: str, base: Path, tmp_path: Path) -> None:
    overrides = [f"experiment={experiment}", *SMALL]
    if experiment not in ("flow_refiner", "tiny_autoencoder", "video_features"):
        overrides += [f"scale.base={base}", "scale.motion_channels=8", "scale.median_strength=0.01"]
        overrides += ["callbacks.preview.clips=1"]
    if experiment == "motion_lora":
        overrides += ["callbacks.camera.clips=2"]
    if experiment in ("flow_refiner", "video_features", "tiny_autoencoder"):  # they want larger frames
        overrides += ["scale.height=32", "scale.width=32"]
    if experiment == "tiny_autoencoder":
        overrides += ["model.crop=16"]
    done = run_train(*overrides, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    out = tmp_path / "runs" / experiment / "smoke"
    assert (out / "checkpoints" / "last.ckpt").is_file()
    assert (out / "curves.png").is_file()
    assert list((out / "wandb").glob("offline-run-*")), "a W&B offline run"
    exported = {
        "motion_lora": "lora.safetensors", "flow_refiner": "flow_refiner.safetensors",
        "diffusion": "pipeline/motion/motion.safetensors", "tiny_base": "pipeline/unet/config.json",
        "panning_base": "pipeline/unet/config.json",
        "tiny_autoencoder": "pipeline/vae/config.json",
        "video_features": "video_features.safetensors",
    }  # fmt: skip
    assert (out / exported[experiment]).is_file()
    if experiment == "motion_lora":
        for name in ("camera.json", "before.mp4", "after.mp4", "before_after.png"):
            assert (out / name).is_file()
        before = {path: path.read_bytes() for path in out.glob("*.*") if path.suffix in (".yaml", ".csv")}
        refused = run_train(*overrides, "ckpt_path=auto", "model.rank=8", cwd=tmp_path)
        assert refused.returncode == 2
        assert "the checkpoint does not fit this model" in refused.stderr
        again = run_train(*overrides, "ckpt_path=auto", cwd=tmp_path)
        assert again.returncode == 0, again.stderr[-2000:]
        assert "nothing to do: " in again.stdout
        assert "has its 1 steps: give a trainer.max_steps above 1 to train on" in again.stdout
        refused = run_train(*overrides, "ckpt_path=last", cwd=tmp_path)
        assert refused.returncode == 2
        assert "last.ckpt has its 1 steps: give a trainer.max_steps above 1" in refused.stderr
        assert {path: path.read_bytes() for path in out.glob("*.*") if path.suffix in (".yaml", ".csv")} == before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["experiment=motion_lora", "scale.base=/nowhere"], r"error: .*nowhere"),
        (["experiment=motion_lora", "ckpt_path=gone.ckpt"], r"error: ckpt_path=gone.ckpt: no such file"),
        (["experiment=motion_lora", "ckpt_path=last"], r"error: ckpt_path=last: no checkpoint under"),
        (["experiment=motion_lora", "data=folder", "data.root=/nowhere"], r"error: .*/nowhere.* is not a folder"),
        (["experiment=nothing"], r"Could not find 'experiment/nothing'"),
        ([], r"experiment"),
    ],
    ids=["base", "ckpt", "last", "root", "experiment", "bare"],
)
def test_a_users_mistake_is_one_line_and_no_traceback(overrides: list[str], message: str, tmp_path: Path) -> None:
    done = run_train(*overrides, cwd=tmp_path)
    assert done.returncode != 0
    assert re.search(message, done.stderr), done.stderr[-2000:]
    assert "Traceback" not in done.stderr
    if "error:" in message:
        assert done.returncode == 2
        assert len([line for line in done.stderr.splitlines() if line.startswith("error:")]) == 1


def test_what_waits_for_the_camera_report_waits_for_a_quick_estimator() -> None:
    cfg = composed("experiment=motion_lora", "data=folder", "data.root=none", "flow_estimator=raft")
    assert cfg.callbacks.camera.flow_estimator._target_.endswith("DisFlow")
    assert cfg.data.flow_estimator._target_.endswith("RaftFlow")


def test_the_papers_test_set_shows_no_frame_twice() -> None:
    for name in ("pixabay16", "pixabay125"):
        assert composed(f"benchmark={name}", config="evaluate").benchmark.reading.slower == "refuse"


def test_every_trainer_keeps_the_checkpoint_before_the_last() -> None:
    for name in GROUPS["trainer"]:
        plugins = composed("experiment=motion_lora", f"trainer={name}").trainer.plugins
        assert [plugin._target_ for plugin in plugins] == ["motionanim.training.runs.checkpoints.WholeFile"]


def test_small_files_are_exported_on_the_way_too() -> None:
    every = {name: composed(f"experiment={name}").callbacks.export.every_n_steps for name in EXPERIMENTS}
    assert {name for name, steps in every.items() if steps} == {"motion_lora", "flow_refiner"}


def test_on_a_gpu_what_has_no_deterministic_gradient_warns_instead_of_ending_the_run() -> None:
    assert composed("experiment=tiny_base").trainer.deterministic == "warn"


# The documents.

DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "experiments").rglob("*.md"))]
PROGRAMS = {
    "train.py": "train", "evaluate.py": "evaluate", "motionanim.animate": "animate",
    "motionanim.data.prepare": "prepare", "motionanim.data.encode": "encode", "motionanim.export": "export",
}  # fmt: skip
ELIDED = {  # a choice that "..." can stand for
    "train.py": ("experiment=motion_lora",),
    "evaluate.py": (),
    "motionanim.animate": ("image=photo.jpg",),
    "motionanim.data.encode": ("data=folder", "data.root=my_videos"),
}


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """Of all blocks and lines of code, and of run.py: program, and its arguments as bash hands them over."""
    listed = subprocess.run(
        [sys.executable, ROOT / "experiments" / "run.py", "--list"], capture_output=True, text=True, check=True
    ).stdout
    found = []
    for text in [*(document.read_text() for document in DOCUMENTS), f"```bash\n{listed}```\n"]:
        lines = re.findall(r"`(python [^`]+)`", text)
        for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S):
            lines += block.replace("\\\n", " ").splitlines()
        for line in lines:
            words = shlex.split(re.sub(r"<\w+>", "NAME", line), comments=True)
            for place, word in enumerate(words):
                given = tuple(words[place + 1 :])
                if word in PROGRAMS and given:
                    elided = ELIDED[word] if "..." in given else ()
                    found.append((word, (*elided, *(each for each in given if each != "..."))))
    return found


def test_the_documents_show_commands() -> None:
    shown = commands()
    assert {program for program, _ in shown} == set(PROGRAMS)
    assert len(shown) > 60


@pytest.mark.parametrize(("program", "words"), sorted(set(commands())), ids=str)
def test_every_command_composes(program: str, words: tuple[str, ...]) -> None:
    settings = [word for word in words if not word.startswith(("hydra/", "hydra."))]  # of a plugin
    if "-m" in words:  # of each axis of a sweep its first value
        settings = [re.sub(r"=([^,\[{\"']+),.*", r"=\1", word) for word in settings if word != "-m"]
    assert not OmegaConf.missing_keys(composed(*settings, config=PROGRAMS[program]))
