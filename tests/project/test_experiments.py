"""Each script in experiments/ runs with tiny numbers, and run.py repeats what failed and nothing else.

`tests/cli/test_configs.py` trains each configuration in conf/experiment for a step.
"""

import functools
import importlib.util
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import forked
import pytest
import torch
import torchvision
from flow_runs import drifting
from safetensors.torch import save_file

from motionanim.animate import Animation, animate
from motionanim.data.video import write_video
from motionanim.evaluation.reading import Reading, read_clip
from motionanim.metrics.frame import PSNR, SSIM
from motionanim.metrics.frechet import frechet_distance, moments
from motionanim.metrics.i3d import I3D, I3DFeatures
from motionanim.metrics.perceptual import LPIPS
from motionanim.models.svd.denoiser import Denoiser
from motionanim.types import Condition

ROOT = Path(__file__).resolve().parents[2]
ASSETS = ROOT / "motionanim" / "assets"
SCALE = ["scale.height=32", "scale.width=32", "scale.num_frames=5", "scale.num_workers=0"]
QUICK = ["scale.num_workers=0", "sampling.num_steps=1", "trainer.limit_val_batches=1", "~logger.wandb"]  # a training


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Load a script of experiments/; what it would write beside itself goes to `tmp_path`."""

    def load(name: str, **constants: Any) -> ModuleType:
        path = ROOT / "experiments" / name
        monkeypatch.syspath_prepend(str(path.parent))
        for other in path.parent.glob("*.py"):  # of two folders one has a make.py too
            monkeypatch.delitem(sys.modules, other.stem, raising=False)
        spec = importlib.util.spec_from_file_location(f"experiments_{path.stem}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for constant, value in ({"HERE": tmp_path} | constants if hasattr(module, "HERE") else constants).items():
            monkeypatch.setattr(module, constant, value)
        return module

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return load


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch):
    def main(module: ModuleType, *arguments: str | Path) -> None:
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, arguments)])
        module.main()

    return main


def small(overrides: Sequence[str] = (), **settings: Any) -> Animation:
    """`animate` with few pixels, frames and steps."""
    settings = {"height": 32, "width": 32, "progress": False, **settings, "frames": 10}
    return animate([*overrides, "sampling.num_steps=1", "scale.num_frames=8"], **settings)


def composing(module: ModuleType, *settings: str) -> None:
    """Add settings to the configurations that a script composes."""
    compose = module.compose
    module.compose = lambda name, overrides: compose(name, [*overrides, *settings])


@pytest.mark.slow
def test_animate_pictures(script, call, tmp_path: Path) -> None:
    call(script("animate/pictures.py", animate=small, OUT=tmp_path))
    assert (tmp_path / "strength.mp4").is_file()
    assert {path.stem for path in tmp_path.glob("*.png")} >= {"eulerian", "proposal", "diffusion", "strength"}


@pytest.mark.slow
def test_demo(script, call, tmp_path: Path) -> None:
    module = script("demo/make.py", animate=small, HEIGHT=64, WIDTH=64, ARROWS=[[9, 9, 20, 12]])
    module.TRAIN[1:] = [
        *SCALE, "scale.batch_size=2", "trainer.max_steps=1", "trainer.val_check_interval=1", "callbacks.camera.clips=2",
        "callbacks.preview.clips=1", *QUICK,
    ]  # fmt: skip
    module.subprocess = SimpleNamespace(run=lambda words, cwd, env: forked.run(*words[1:], cwd=cwd, env=env))
    call(module, "--out", tmp_path)
    page = (tmp_path / "index.html").read_text()
    assert page.count("<video") == 5
    assert "camera residual with it" in page


@pytest.mark.slow
def test_embedded_base_pictures(script, call, tmp_path: Path) -> None:
    module = script("embedded_base/pictures.py", SIDE=16, CLIPS=2)
    module.SETTINGS += [*SCALE, "sampling.num_steps=1"]
    call(module)
    assert {path.name for path in tmp_path.glob("*.png")} == {"world.png", "samples.png"}


@pytest.mark.long
@pytest.mark.slow
def test_embedded_base_conditioning(script, call, tmp_path: Path) -> None:
    few = {
        "motionanim.data.encode": ["engine.workers=0"],
        "train.py": [*QUICK, "trainer.precision=32-true"],
        "evaluate.py": ["benchmark.reading.num_frames=5", "reference_rows=[real]", "wandb=false"],
    }

    def run(*command: str) -> None:
        program = command[1] if command[0] == "-m" else command[0]
        done = forked.run(*command, "scale.num_frames=5", *few[program], cwd=ROOT)
        assert done.returncode == 0, done.stderr[-3000:]

    module = script("embedded_base/conditioning.py", call=run)
    module.train.__globals__["call"] = run  # of make.py
    module.KINDS = {"full": (*module.KINDS["full"], "sampling.num_steps=1")}
    options = {"start": ASSETS / "tiny-svd", "runs": tmp_path, "steps": 1, "clips": 2, "n": 2, "side": 32}
    call(module, *(word for name, value in options.items() for word in (f"--{name}", value)))
    results = [json.loads(path.read_text()) for path in (tmp_path / "evaluate").rglob("result.json")]
    assert {result["label"] for result in results} >= {"both"}


@pytest.mark.slow
def test_flow_refiner_compare(script, call, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    write_video(tmp_path / "clips" / "a.mp4", drifting(64, (2.0, 0.0), 16), 8)
    module = script("flow_refiner/compare.py", ERRORS=tmp_path / "errors.json")
    refiner = f"T={ASSETS / 'flow-refiner' / 'flow_refiner.safetensors'}"
    options = ["--n", 3, "--side", 32, "--examples", 1, "--clips", tmp_path / "clips"]
    call(module, refiner, *options, "--clips-picture", tmp_path / "clips.png")
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert errors["world"].keys() == errors["clips"]["clips/a.mp4"].keys() >= {"no motion", "T"}
    assert errors["clips"]["clips/a.mp4"]["no motion"][0] == 1
    assert (tmp_path / "examples.png").is_file()


@pytest.mark.slow
def test_fvd_interval_simulate(script, call, tmp_path: Path) -> None:
    report = tmp_path / "report.md"
    call(script("fvd_interval/simulate.py"), "--draws", 2, "--dim", 40, "--report", report)
    rows = [line.split(" | ") for line in report.read_text().splitlines()[4:]]
    assert len(rows) == 30
    assert all(0 < float(row[2]) < float(row[3]) for row in rows if "equal" not in row[0])


@pytest.mark.slow
def test_motion_lora_camera(script, call, base: Path, tmp_path: Path) -> None:
    from training_runs import lora_module

    lora = lora_module(base).export(tmp_path)
    module = script("motion_lora/camera.py")
    composing(module, "scale.num_frames=5", "scale.motion_channels=8", "sampling.num_steps=1")
    call(module, "tiny", f"none={lora}", "--base", base, "--n", 4, "--side", 16, "--weights", "1")
    table = json.loads((tmp_path / "tiny.json").read_text())["rows"]
    assert [row["weight"] for row in table.values()] == [0.0, 1.0]
    assert table["none, weight 1"]["camera_ratio"][0] == pytest.approx(1, rel=1e-3), "an untrained LoRA does nothing"
    assert (tmp_path / "tiny_clips.png").is_file()


@pytest.mark.slow
def test_warp_control_measure(script, call, tmp_path: Path) -> None:
    module = script("warp_control/measure.py")
    composing(module, *SCALE[:2], "sampling.num_steps=2")
    module.RUNS = {name: (words, 1) for name, (words, _) in module.RUNS.items() if name in module.SHOWN}
    call(module, "--scenes", 1, "--runs", tmp_path, "--out", tmp_path)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert {run["arrows"] for run in figures.values()} == {2}
    assert (tmp_path / "arrows.png").is_file()


@pytest.mark.slow
def test_warp_control_levels(script, call, tmp_path: Path) -> None:
    module = script("warp_control/levels.py")
    composing(module, *SCALE[:2], "sampling.num_steps=2")
    module.RUNS = [run for run in module.RUNS if run[0] in ("motion weights", "0, 0")]
    call(module, "--clips", 2, "--runs", tmp_path, "--out", tmp_path)
    figures = json.loads((tmp_path / "levels.json").read_text())
    assert figures["0, 0"]["calls"] == 0
    assert figures["motion weights"]["calls"] > 0


@pytest.mark.slow
def test_warp_control_plain_is_the_base_as_trained_without_a_field(script, tmp_path: Path) -> None:
    """To what 16 bits hold of the first convolution."""
    module, base = script("warp_control/plain.py"), ASSETS / "tiny-svd"
    config = json.loads((base / "motion" / "config.json").read_text())
    bare = config | {"motion_field": False, "warped_latent": False, "motion_strength": False}
    blank = Condition.blank(1, 3, latents=(16, 4, 4), pixels=(32, 32), embed_width=32)
    image = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    given = blank._replace(
        image_latents=image, warped_latents=image[:, None].expand(-1, 3, -1, -1, -1), fps=torch.ones(1),
        use_flow=torch.zeros(1), use_strength=torch.zeros(1),
    )  # fmt: skip
    z = torch.randn(1, 3, 16, 4, 4, generator=torch.Generator().manual_seed(1))

    def estimate(folder: Path, motion: dict[str, Any]) -> torch.Tensor:
        denoiser = Denoiser.from_pretrained(folder, downscale=8, motion=motion).eval()
        with torch.no_grad():
            return denoiser(z, torch.ones(1), given) - denoiser.motion.prediction(given)

    asked = estimate(base, config)
    kept = estimate(module.plain(base, tmp_path / "plain"), bare)
    stripped = estimate(module.plain(base, tmp_path / "stripped", strip=True), bare)
    assert (kept - asked).norm() < 0.01 * asked.norm()
    assert (stripped - asked).norm() > 0.1 * asked.norm()
    with pytest.raises(ValueError, match="plain: give a new folder"):
        module.plain(base, tmp_path / "plain")


@pytest.mark.slow
def test_video_features_sensitivity(script, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    module = script("video_features/sensitivity.py", CLIPS=2, FRAMES=4)
    module.main(ASSETS / "video-features")
    torch.set_num_threads(threads)
    report = json.loads((tmp_path / "sensitivity.json").read_text())
    assert len(report["features"]["embedded"]["damage"]) == 12
    assert (tmp_path / "sensitivity.png").is_file()


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
def test_page_pictures(script, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    small = {"HEIGHT": 108, "WIDTH": 192, "RIVER": ((15, 50), (88, 72), (175, 82)), "ARROW": ((62, 55), (108, 62))}
    module = script("page/pictures.py", OUT=tmp_path, FRAMES=2, WINDOW={"width": 800, "height": 480}, **small)
    module.serve = functools.partial(
        lambda serve, folder: serve(folder, "scale.num_steps=1", "scale.num_frames=8"), module.serve
    )
    monkeypatch.setattr("playwright.sync_api.Page.wait_for_timeout", lambda *_: None)
    module.main(shutil.which("chromium"))
    assert {path.stem for path in tmp_path.glob("*.webp")} == {
        "empty", "drawing", "preview", "result", "gallery", "light", "phone",
    }  # fmt: skip


@pytest.mark.long
@pytest.mark.slow
def test_scores_by_hand_are_those_of_our_metrics(script, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("cdfvd")
    torch.manual_seed(0)
    i3d, alexnet = I3D(eps=1e-5, padding="dynamic"), torchvision.models.alexnet(weights=None)
    save_file(i3d.state_dict(), tmp_path / "i3d_kinetics400.safetensors")
    convolutions = {name: value for name, value in alexnet.state_dict().items() if name.startswith("features.")}
    save_file(convolutions, tmp_path / "alexnet_features.safetensors")
    for name, size in (("true", 64), ("made", 72)):
        for number in range(2):
            frames = torch.nn.functional.interpolate(torch.rand(15, 3, 9, 9) * 2 - 1, size=(size, size))
            write_video(tmp_path / name / f"{number}.mp4", frames, 7)
    script("evaluation/by_hand.py", WEIGHTS=tmp_path).main(tmp_path / "true", tmp_path / "made")
    by_hand = json.loads(capsys.readouterr().out.splitlines()[-1])

    reading = Reading(num_frames=14, height=64, width=64, fps=7, shape="stretch")
    made, true = (
        torch.stack([read_clip(tmp_path / name / f"{number}.mp4", reading) for number in range(2)])
        for name in ("made", "true")
    )
    lpips = LPIPS(net="alex", backbone=alexnet.features, batch=32)
    for key, score in (("psnr", PSNR(cap=100.0).score), ("ssim", SSIM().score), ("lpips", lpips.score)):
        assert by_hand[key] == pytest.approx(score(made, true)[:, 0].mean().item(), rel=1e-5)
    extractor = I3DFeatures(tmp_path / "i3d_kinetics400.safetensors", protocol="cdfvd", batch=1)
    sides = []
    for logits in (extractor(made).double(), extractor(true).double()):
        sides += moments(torch.tensor(2), logits.sum(0), logits.T @ logits, ddof=0)
    assert by_hand["fvd"] == pytest.approx(frechet_distance(*sides).item(), rel=1e-3)


def test_every_script_has_a_test() -> None:
    text = Path(__file__).read_text() + (ROOT / "tests" / "models" / "svd" / "test_embedded_base.py").read_text()
    for path in (ROOT / "experiments").rglob("*.py"):
        named = f'"{path.parent.name}/{path.name}"', f'"{path.parent.name}" / "{path.name}"', f'"{path.name}"'
        assert path.name == "page.py" or any(name in text for name in named), path


@pytest.fixture
def run(script, tmp_path: Path) -> ModuleType:
    """run.py with its list of finished commands in a folder that does not exist yet, and two experiments."""
    module = script("run.py", DONE=tmp_path / "runs" / "done.txt")
    note = "-c \"import sys; open(sys.argv[1], 'a').write(sys.argv[2])\" " + str(tmp_path / "seen")
    fail = f'-c "import sys, pathlib; sys.exit(0 if pathlib.Path(sys.argv[1]).exists() else 3)" {tmp_path / "mended"}'
    module.COMMANDS = {"one": [f"{note} 1"], "two": [f"{note} 2", fail, f"{note} 3"]}
    return module


def test_it_stops_at_a_failure_and_goes_on_there(run: ModuleType, call, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stopped:
        call(run)
    assert stopped.value.code == 3
    assert (tmp_path / "seen").read_text() == "12"
    (tmp_path / "mended").touch()
    call(run)
    assert (tmp_path / "seen").read_text() == "123"
    call(run, "one")
    assert (tmp_path / "seen").read_text() == "123"


def test_a_list_runs_nothing_and_an_unknown_name_is_refused(run: ModuleType, call, tmp_path: Path, capsys) -> None:
    call(run, "--list", "one")
    assert not (tmp_path / "seen").exists()
    assert not run.DONE.exists()
    assert capsys.readouterr().out.startswith("$ python -c")
    with pytest.raises(SystemExit):
        call(run, "three")
    assert "no experiment three: choose of one, two" in capsys.readouterr().err
