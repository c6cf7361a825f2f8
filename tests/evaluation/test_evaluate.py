"""evaluate.py as its users run it: results, resuming after a kill, sweeps, and mistakes as one line."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import forked
import in_process
import pytest
from configs import _fresh_hydra  # noqa: F401  the fixture is for all tests
from given_folders import by_hand, by_time, resized
from interrupted import wait_until
from omegaconf import OmegaConf
from safetensors.torch import save_file

from motionanim.evaluation.scores.scoring import Scorer
from motionanim.metrics.i3d import I3D

ROOT = Path(__file__).resolve().parents[2]
QUICK = ["progress=false", "wandb=false"]
SHARED_FRAMES = "long_video.overlap=2"  # of the 5 in a window of the tiny base


def command(base: Path, *overrides: str) -> list[str]:
    flags, values = ([each for each in overrides if (each == "-m") is flag] for flag in (True, False))
    return [
        sys.executable, str(ROOT / "evaluate.py"), *flags, f"scale.base={base}", "scale.motion_channels=8",
        "scale.height=32", "scale.width=32", "scale.num_frames=5", "benchmark.reading.num_frames=5",
        "sampling.num_steps=2", "conditioning=no_refiner", "n=3", "show=1", *QUICK, *values,
    ]  # fmt: skip


def run(base: Path, cwd: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    return forked.run(*command(base, *overrides)[1:], cwd=cwd, env=environment)


def results(folder: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json"))]
    return {result["label"]: result["metrics"] for result in found}


@pytest.mark.slow
def test_a_sweep_leaves_one_report_of_all_its_runs_and_a_wandb_run_each(base: Path, tmp_path: Path) -> None:
    # On the command line the sweep's own values are replaced, as a user may.
    done = run(
        base, tmp_path, "-m", "sweep=gamma", "long_video.gamma=0.5,1", "benchmark.reading.num_frames=10", "n=2",
        "wandb=true", "reference_rows=[static_copy]", "metrics=frame",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "runs" / "evaluate" / "gamma"
    axes = {}
    for path in folder.glob("phased*/result.json"):
        result = json.loads(path.read_text())
        axes[result["axes"]["gamma"]] = result["axes"]["sigma"]
        assert list(path.parent.glob("wandb/offline-run-*"))
    assert sorted(axes) == [0.5, 1]
    assert axes[0.5] > axes[1] == 0
    with (folder / "report" / "report.csv").open() as file:
        assert {row["label"] for row in csv.DictReader(file)} >= {f"phased, gamma {g}, control=warp" for g in (0.5, 1)}
    assert list((folder / "report" / "plots").glob("*.png"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mask=false", "conditioning=full", "refiner=null"], r"error: refiner=null: .*conditioning=no_refiner"),
        (["benchmark=folder", "benchmark.root=/nowhere"], r"error: .*/nowhere.* is not a folder"),
        (["metrics.required=[lpips]"], r"error: .*alexnet-owt-7be5be79.pth does not exist"),
        (["method=external", "method.folders=/nowhere"], r"error: method.folders=/nowhere: no such folder"),
        (["n=0"], r"error: .*must be at least 1"),
    ],
    ids=["refiner", "root", "weights", "folders", "n"],
)
def test_a_users_mistake_is_one_line_before_any_work(
    overrides: list[str], message: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MOTIONANIM_WEIGHTS", str(tmp_path / "weights"))
    assert in_process.run("evaluate", command(base, *overrides)[2:], monkeypatch) == 2
    told = capsys.readouterr().err
    assert re.search(message, told)
    assert "Traceback" not in told
    assert not list(tmp_path.glob("runs/evaluate/*/ours*"))


@pytest.mark.long
@pytest.mark.slow
def test_published_systems_score_as_a_plain_script_has_it(shared: Path, tmp_path: Path) -> None:
    root = tmp_path / "short"
    for path in (shared / "published" / "short").glob("*/00986.mp4"):  # one clip takes seconds
        (root / path.parent.name).mkdir(parents=True)
        (root / path.parent.name / path.name).symlink_to(path)
    done = forked.run(
        str(ROOT / "evaluate.py"), "benchmark=published", f"benchmark.root={root / 'ground_truth'}",
        "method=published", f"method.folders={root}/*", "reference_rows=[static_copy]", "show=0", "keep_frames=false",
        "metrics=frame", "benchmark.reading.num_frames=5", *QUICK, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    folder = tmp_path / "runs" / "evaluate" / "published"
    found = results(folder)
    assert found.keys() == {
        "Controllable (paper)", "Gen-2", "Genmo", "Pika", "I2VGen-XL", "SFS", "Animating-landscape",
        "Animating-pictures", "Animate-anything", "static copy",
    }  # fmt: skip
    marked = [json.loads(path.read_text()) for path in folder.glob("*/result.json")]
    assert {result["label"] for result in marked if result["saw_motion"]} == {"SFS", "Animating-pictures"}
    for label, name, rate in (("Controllable (paper)", "paper", 7), ("SFS", "sfs", 8), ("Gen-2", "gen2", 8)):
        pair = (by_time(root / "ground_truth" / "00986.mp4", 30, 8, 5), by_time(root / name / "00986.mp4", rate, 8, 5))
        psnr, ssim = by_hand([[resized(frames, 256, 256) for frames in pair]])
        assert found[label]["psnr"]["mean"] == pytest.approx(psnr, abs=0.02)
        assert found[label]["ssim"]["mean"] == pytest.approx(ssim, abs=5e-4)


def torchrun(command: list[str], processes: int) -> list[str]:
    """`command` in processes of torchrun, which are forks of it."""
    launch = ["--standalone", f"--nproc-per-node={processes}", "--start-method=fork", "--run-path"]
    return ["-m", "torch.distributed.run", *launch, *command[1:]]


@pytest.mark.long
@pytest.mark.slow
def test_processes_share_the_clips_and_a_killed_one_costs_only_the_clip_in_hand(base: Path, tmp_path: Path) -> None:
    slow = ("control", "consistency")  # they estimate the flow of every clip
    settings = ("n=5", SHARED_FRAMES, *(f"~metrics.clip.{name}" for name in slow))
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    one = run(base, tmp_path / "one", *settings)
    assert one.returncode == 0, one.stderr[-2000:]

    written = tmp_path / "many" / "runs" / "evaluate" / "synthetic16"
    with forked.started(*torchrun(command(base, *settings), 2), cwd=tmp_path / "many") as process:
        wait_until(lambda: any(path.stat().st_size for path in written.glob("ours*/clips.jsonl")), process)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(children[0]), signal.SIGKILL)
        assert process.wait(timeout=60) != 0
    (rows,) = written.glob("ours*/clips.jsonl")
    before = rows.read_text().splitlines()
    assert 1 <= len(before) < 5

    done = forked.run(*torchrun(command(base, *settings), 3), cwd=tmp_path / "many")
    assert done.returncode == 0, done.stderr[-2000:]
    after = rows.read_text().splitlines()
    assert after[: len(before)] == before
    assert sorted(json.loads(row)["index"] for row in after) == [0, 1, 2, 3, 4]
    found, wanted = (results(tmp_path / name / "runs" / "evaluate" / "synthetic16") for name in ("many", "one"))
    assert found == wanted
    labels = {"ours, continuous, no_refiner, control=warp", "real", "static copy", "shuffled", "flipped"}
    assert found.keys() == labels
    page = (written / "report" / "report.html").read_text()
    assert all(label in page for label in labels)


@pytest.mark.slow
def test_features_have_the_name_of_their_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    from evaluate import build_scorer

    save_file(I3D(eps=1e-3, padding="dynamic").state_dict(), tmp_path / "i3d.safetensors")

    def i3d(protocol: str) -> dict[str, object]:
        target = "motionanim.metrics.i3d.I3DFeatures"
        return {"_target_": target, "weights": str(tmp_path / "i3d.safetensors"), "protocol": protocol, "batch": 1}

    def scorer(**features: dict[str, object]) -> Scorer:
        metrics = {"clip": {}, "required": [], "features": features}
        return build_scorer(OmegaConf.create({"metrics": metrics, "paths": {"features": str(tmp_path)}}))

    assert [*scorer(i3d_ours=i3d("cdfvd")).features] == ["i3d_cdfvd"]
    with pytest.raises(ValueError, match=r"metrics\.features\.i3d_cdfvd: another one computes i3d_cdfvd too"):
        scorer(i3d_ours=i3d("cdfvd"), i3d_cdfvd=i3d("cdfvd"))
