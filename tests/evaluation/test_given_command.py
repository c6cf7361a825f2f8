"""evaluate.py truth=... videos=...: its table, its report, and the numbers of short scripts for published videos."""

import json
import os
from pathlib import Path

import forked
import numpy as np
import pytest
import torch
from given_folders import by_hand, by_time, resized, results

from motionanim.files import file_sha256
from motionanim.metrics.i3d import I3DFeatures

ROOT = Path(__file__).resolve().parents[2]


def command(cwd: Path, *arguments: str, code: int = 0) -> str:
    """What evaluate.py prints."""
    done = forked.run(str(ROOT / "evaluate.py"), *arguments, "wandb=false", "progress=false", cwd=cwd)
    assert done.returncode == code, done.stderr[-2000:]
    return done.stderr if code else done.stdout


@pytest.mark.slow
def test_the_command_scores_two_folders_and_says_how(root: Path) -> None:
    told = command(root, "truth=truth", "videos=[res/a,res/b]", "metrics=frame", "show=1")
    assert "those nearest in time at 8 frames a second" in told
    found = results(root)
    assert found.keys() == {"static copy", "real", "shuffled", "a", "b"}  # no motion is asked, so none is flipped
    assert {result["n"] for result in found.values()} == {3}
    assert (root / "runs" / "evaluate" / f"{root.name}_truth" / "report" / "report.html").is_file()
    assert "a: 0 clips read, 0 scored" in command(root, "truth=truth", "videos=res/*", "metrics=frame", "show=1")


NASTY = '=cost $5 "x" <b>|![y](z)_ 猫 ' + "l" * 200


@pytest.mark.slow
def test_a_nasty_label_goes_through_the_command_and_wandb(root: Path) -> None:
    (root / "res" / "a" / "method.json").write_text(json.dumps({"label": NASTY}))
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    arguments = ["truth=truth", "videos=res/a", "metrics=frame", "show=1", "progress=false", "reference_rows=[]"]
    done = forked.run(str(ROOT / "evaluate.py"), *arguments, cwd=root, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(root.glob("runs/evaluate/*/*/wandb/offline-run-*")), "a W&B run"
    assert NASTY in results(root)
    assert "PSNR (dB)" in done.stdout, "the table, on the screen"
    assert r"\begin{table}" in done.stdout, "and in LaTeX"
    assert r"\textbar{}" in done.stdout


def published(shared: Path, name: str, clips: int, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """True and made frames as a short script has them: `count` at 7 a second."""
    pairs = []
    for path in sorted((shared / "published" / "short" / "ground_truth").glob("*.mp4"))[:clips]:
        true = by_time(path, 30, 7, count)
        made = by_time(path.parents[1] / name / path.name, {"paper": 7, "gen2": 8}[name], 7, count)
        pairs.append((true, made))
    return pairs


@pytest.mark.long
@pytest.mark.slow
def test_published_videos_score_at_their_own_size_as_a_short_script_has_it(shared: Path, tmp_path: Path) -> None:
    root = shared / "published" / "short"
    folders = f"videos=[{root}/paper,{root}/gen2]"
    reading = ("n=1", "benchmark.reading.num_frames=4")  # a frame of their size takes the script half a second
    command(tmp_path, f"truth={root}/ground_truth", folders, *reading, "metrics=frame", "reference_rows=[]", "show=0")
    found = results(tmp_path)
    for name in ("paper", "gen2"):
        ((true, made),) = published(shared, name, clips=1, count=4)
        psnr, ssim = by_hand([(true, resized(made, *true.shape[1:3]))])
        assert found[name]["metrics"]["psnr"]["mean"] == pytest.approx(psnr, abs=1e-3)
        assert found[name]["metrics"]["ssim"]["mean"] == pytest.approx(ssim, abs=1e-3)
        assert found[name]["reading"]["taken"] == "those nearest in time at 7 frames a second (files have 7, 8, 30)"


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.weights
def test_published_videos_have_the_lpips_and_fvd_of_a_short_script(shared: Path, tmp_path: Path) -> None:
    """At 256 x 256 px, which takes seconds where the videos' own size takes minutes."""
    lpips, linalg = pytest.importorskip("lpips"), pytest.importorskip("scipy.linalg")
    alexnet, i3d = (shared / "weights" / f"{name}.pth" for name in ("lpips_alexnet_features", "i3d_kinetics400"))
    root = shared / "published" / "short"
    command(
        tmp_path, f"truth={root}/ground_truth", f"videos={root}/paper", "reference_rows=[]", "show=0",
        "benchmark.reading.height=256", "benchmark.reading.width=256", "benchmark.reading.num_frames=10",
        f"+metrics.clip.lpips.backbone.path={alexnet}", f"+metrics.clip.lpips.backbone.sha256={file_sha256(alexnet)}",
        f"+metrics.features.i3d_ours.weights.path={i3d}",
        f"+metrics.features.i3d_ours.weights.sha256={file_sha256(i3d)}",
        "~metrics.clip.control", "~metrics.clip.consistency", "~metrics.features.embedded",
    )  # fmt: skip
    found = results(tmp_path)["paper"]["metrics"]
    pairs = [[resized(video, 256, 256) for video in pair] for pair in published(shared, "paper", clips=3, count=10)]
    psnr, ssim = by_hand(pairs)
    assert found["psnr"]["mean"] == pytest.approx(psnr, abs=1e-3)
    assert found["ssim"]["mean"] == pytest.approx(ssim, abs=1e-3)

    net, state = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval(), torch.load(alexnet, weights_only=True)
    net.net.load_state_dict({key: state["features." + key.split(".", 1)[1]] for key in net.net.state_dict()})
    clips = [[torch.from_numpy(video).permute(0, 3, 1, 2) / 127.5 - 1 for video in pair] for pair in pairs]
    with torch.no_grad():
        distances = [net(made[1:], true[1:]).mean() for true, made in clips]
    assert found["lpips"]["mean"] == pytest.approx(float(torch.stack(distances).mean()), abs=1e-3)

    extractor = I3DFeatures(weights=i3d, protocol="ours", batch=1)
    real, fake = (np.stack([extractor(pair[side][None])[0].double().numpy() for pair in clips]) for side in (0, 1))
    covariances = [np.cov(side.T) for side in (real, fake)]
    overlap = np.trace(linalg.sqrtm(covariances[0] @ covariances[1])).real
    fvd = np.square(real.mean(0) - fake.mean(0)).sum() + sum(map(np.trace, covariances)) - 2 * overlap
    assert found["fvd_i3d_ours"]["mean"] == pytest.approx(fvd, rel=1e-3)
