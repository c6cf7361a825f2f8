"""The harness: rows survive a kill, reference rows have known scores, and numbers do not depend on how work is cut."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_runs import READING, Mean, Noisy, numbers, run, scorer, synthetic

from motionanim import metrics
from motionanim.evaluation import harness
from motionanim.evaluation.benchmark import EvalClip, SyntheticBenchmark
from motionanim.evaluation.methods import MethodOutput, Reference
from motionanim.evaluation.report.runs import read_run
from motionanim.evaluation.scores.rows import Rows
from motionanim.evaluation.scores.scoring import Missing, Scorer, from_text, to_text
from motionanim.metrics.frame import PSNR, SSIM
from motionanim.metrics.temporal import Temporal


def two_metrics(folder: Path) -> Scorer:
    return scorer(folder, psnr=PSNR(cap=100.0), ssim=SSIM())


def test_a_clip_is_a_function_of_its_index_and_a_larger_benchmark_contains_the_smaller() -> None:
    small, large = synthetic(2), synthetic(4)
    assert [large.identity(i) for i in range(2)] == [small.identity(i) for i in range(2)]
    assert len({large.identity(i) for i in range(4)}) == 4
    torch.testing.assert_close(small.clip(1).frames, large.clip(1).frames, atol=0, rtol=0)
    assert small.clip(1).arrows == large.clip(1).arrows
    with pytest.raises(ValueError, match="n=0: must be at least 1"):
        synthetic(0)


def test_arrows_follow_the_motion_at_its_speed() -> None:
    arrows = [(clip, arrow) for clip in map(synthetic(8).clip, range(8)) for arrow in clip.arrows]
    assert arrows
    for clip, arrow in arrows:
        path = np.array(arrow.path)
        x, y = path[0].astype(int)
        assert clip.mask[0, y, x] == 1
        mean = clip.flow.mean(0)[:, y, x].numpy()
        first = path[1] - path[0]
        assert first @ mean > 0.9 * np.linalg.norm(first) * np.linalg.norm(mean)
        # Arrows of a span of 5 frames have 4 steps, or fewer where the moving region ends.
        steps = 4 / arrow.speed
        assert steps == round(steps)
        assert 1 <= steps <= 4
        speed = np.linalg.norm(np.diff(path, axis=0), axis=1).sum() / steps
        np.testing.assert_allclose(speed, np.linalg.norm(mean), rtol=0.35)
        inside = path[1:-1].round().astype(int)
        assert (clip.mask[0].numpy()[inside[:, 1], inside[:, 0]] == 1).all()


def test_reversed_and_scaled_requests_have_no_true_clip() -> None:
    plain, back, strong = (synthetic(8, **c).clip(0) for c in ({}, {"reverse": True}, {"strength": 200.0}))
    torch.testing.assert_close(back.flow, -plain.flow)
    assert (plain.own_motion, back.own_motion, strong.own_motion) == (True, False, False)
    assert synthetic(strength=200.0).identity(0) != synthetic().identity(0)
    assert synthetic(strength=200.0, reverse=True).request.label == ", strength 200, reversed"


def test_reference_rows_have_the_scores_that_they_must_and_keep_no_frames(tmp_path: Path) -> None:
    runs = [
        run(tmp_path, Reference(label=kind, kind=kind), score=two_metrics(tmp_path))
        for kind in ("real", "static_copy", "shuffled")
    ]
    assert not any((done.folder / "frames").exists() for done in runs)
    real, still, shuffled = (done.result["metrics"] for done in runs)
    assert real["ssim"]["mean"] == pytest.approx(1)
    assert real["fvd_mean"]["mean"] == pytest.approx(0, abs=1e-6)
    assert still["ssim"]["mean"] < 1
    assert shuffled["ssim"]["mean"] < 1
    assert still["ssim_with_frame0"]["mean"] > still["ssim"]["mean"]
    clip = synthetic().clip(0)
    torch.testing.assert_close(Reference(label="f", kind="flipped")(clip, 0).flow, -clip.flow)
    with pytest.raises(ValueError, match="method.kind='fake'"):
        Reference(label="x", kind="fake")


def test_a_second_run_computes_nothing_and_a_second_method_no_real_feature(tmp_path: Path) -> None:
    first, extractor = run(tmp_path), Mean()
    assert (first.made, first.scored) == (3, 3)
    assert (first.folder / "frames").exists()
    again = run(tmp_path)
    assert (again.made, again.scored) == (0, 0)
    assert numbers(again) == numbers(first)
    other = scorer(tmp_path, extractor)
    run(tmp_path, Reference(label="static", kind="static_copy"), score=other)
    assert extractor.calls == 3  # of the made clips only
    assert other.cache.computed == 0
    run(tmp_path, Reference(label="real", kind="real"), score=scorer(tmp_path / "empty", same := Mean()))
    assert same.calls == 3  # not once more where the made clip is the true one


@pytest.mark.slow
def test_a_new_metric_uses_the_kept_frames_unless_damaged_and_more_clips_reuse_the_first(tmp_path: Path) -> None:
    first = run(tmp_path)
    more = run(tmp_path, score=two_metrics(tmp_path))
    assert (more.made, more.scored) == (0, 3)
    assert numbers(more) == numbers(run(tmp_path / "fresh", score=two_metrics(tmp_path)))
    grown = run(tmp_path, score=two_metrics(tmp_path), benchmark=synthetic(5))
    assert (grown.made, grown.result["n"]) == (2, 5)
    for path in (first.folder / "frames").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    again = run(tmp_path, score=scorer(tmp_path, psnr=PSNR(cap=80.0)))
    assert (again.made, again.scored) == (3, 3)


def test_a_killed_run_goes_on_with_the_clip_that_was_in_hand(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    killed = run(tmp_path / "killed")
    rows = killed.folder / "clips.jsonl"
    rows.write_bytes(rows.read_bytes()[:-50])  # cut inside the last row
    (killed.folder / "result.json").unlink()
    again = run(tmp_path / "killed")
    assert (again.made, again.scored) == (1, 1)
    assert numbers(again) == numbers(whole)
    assert run(tmp_path / "killed").scored == 0


def test_processes_share_the_clips_and_the_last_one_sums_up(tmp_path: Path, monkeypatch) -> None:
    whole = run(tmp_path / "whole", benchmark=synthetic(5))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    first = run(tmp_path / "ranks", benchmark=synthetic(5))
    assert (first.made, first.result) == (2, None)
    monkeypatch.setenv("RANK", "0")
    last = run(tmp_path / "ranks", benchmark=synthetic(5))
    assert last.made == 3
    assert numbers(last) == numbers(whole)
    # A report keeps to the summary while a run measures again: here the other process never comes.
    before = read_run(last.folder).clips
    half = run(tmp_path / "ranks", benchmark=synthetic(5), score=scorer(tmp_path, psnr=PSNR(cap=60.0)))
    assert (half.result, half.scored) == (None, 3)
    assert read_run(last.folder).clips == before


def test_other_settings_get_another_folder_and_the_first_clips_pictures(tmp_path: Path) -> None:
    one, two = (run(tmp_path, settings={"gamma": gamma}) for gamma in (0.5, 0.8))
    assert one.folder != two.folder
    assert two.made == 3
    assert os.listdir(two.folder / "strips") == ["000000.png"]
    assert os.listdir(two.folder / "videos") == ["000000.mp4"]


def test_a_summary_of_an_older_format_is_refused_and_its_videos_are_scored_again(tmp_path: Path) -> None:
    done = run(tmp_path)
    result = json.loads((done.folder / "result.json").read_text())
    (done.folder / "result.json").write_text(json.dumps(result | {"format": 1}))
    with pytest.raises(ValueError, match="has format 1 and this version reads 2: evaluate again"):
        read_run(done.folder)
    again = run(tmp_path, score=two_metrics(tmp_path))
    assert (again.made, again.scored) == (0, 3)


GLOW = """from motionanim.metrics.base import ClipMetric, Column


class Glow(ClipMetric):
    columns = (Column("glow", "Glow", 1, "lower", "quality"),)
    needs = ("frames",)
    protocol = {"metric": "glow"}

    def score(self, frames):
        return frames.double().mean((1, 2, 3, 4))[:, None]
"""


def test_rows_of_other_code_are_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody edits a metric between two runs and does not think of a version."""
    from motionanim.evaluation.scores import code

    (tmp_path / "glow.py").write_text(GLOW)
    monkeypatch.setattr(metrics, "__path__", [*metrics.__path__, str(tmp_path)])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def score(text: str):
        (tmp_path / "glow.py").write_text(text)
        code._hashed.cache_clear()
        sys.modules.pop("motionanim.metrics.glow", None)
        return scorer(tmp_path, glow=importlib.import_module("motionanim.metrics.glow").Glow())

    first = run(tmp_path, score=score(GLOW))
    commented = GLOW.replace("    needs", "    # What it needs.\n    needs").replace("\n\n\n", "\n\n")
    same = run(tmp_path, score=score(commented))
    other = run(tmp_path, score=score(GLOW.replace("[:, None]", "[:, None] + 1000")))
    assert (first.scored, same.scored, other.scored) == (3, 0, 3)
    assert other.result["metrics"]["glow"]["mean"] == pytest.approx(first.result["metrics"]["glow"]["mean"] + 1000)
    protocols = [done.result["metrics"]["glow"]["protocol"] for done in (first, same, other)]
    assert protocols[0] == protocols[1] != protocols[2], "a report does not rank the two"
    monkeypatch.undo()
    sys.modules.pop("motionanim.metrics.glow", None)


def test_the_code_of_a_metric_includes_what_it_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    from motionanim.evaluation.scores import code
    from motionanim.motion import flow

    before = {kind: code.code_of(kind) for kind in (PSNR, Temporal)}
    changed = flow.__file__
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda p, **k: read(p, **k) + ("\nNEW = 1\n" if str(p) == changed else ""))
    code._hashed.cache_clear()
    assert code.code_of(Temporal) != before[Temporal], "it warps by motion/flow.py"
    assert code.code_of(PSNR) == before[PSNR]
    monkeypatch.undo()
    code._hashed.cache_clear()


def test_a_resumed_run_keeps_the_machine_that_made_each_clip(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(harness, "_hardware", lambda: "the first")
    run(tmp_path)
    monkeypatch.setattr(harness, "_hardware", lambda: "the second")
    measured_again = run(tmp_path, score=two_metrics(tmp_path))
    assert measured_again.result["hardware"] == "the first", "not made again"
    assert run(tmp_path, benchmark=synthetic(4)).result["hardware"] == "the first, the second"


def test_kept_frames_are_measured_as_they_were_made(tmp_path: Path) -> None:
    """A loop and a window of the method's own, when a metric is added later."""

    class Looping(Noisy):
        def __call__(self, clip: EvalClip, seed: int) -> MethodOutput:
            return super().__call__(clip, seed)._replace(loop=True, window=2, segment_starts=(2,))

    temporal = Temporal()
    at_once = run(tmp_path / "once", Looping(), score=scorer(tmp_path, t=temporal))
    first = run(tmp_path / "twice", Looping())
    later = run(tmp_path / "twice", Looping(), score=scorer(tmp_path, t=temporal))
    assert (first.made, later.made) == (3, 0)
    for key in ("wrap_ratio", "periodicity", "seam_ratio"):
        assert later.result["metrics"][key] == at_once.result["metrics"][key]
        assert later.result["metrics"][key]["mean"] is not None


def test_an_fvd_of_features_of_the_procedural_world_is_not_ranked_on_real_clips(tmp_path: Path) -> None:
    class Ours(Mean):
        protocol = Mean.protocol | {"domain": "procedural"}

    class RealClips(SyntheticBenchmark):
        procedural = False

    for benchmark, ranked in ((synthetic(), True), (synthetic(kind=RealClips), False)):
        found = run(tmp_path / str(ranked), score=scorer(tmp_path, Ours()), benchmark=benchmark).result["metrics"]
        assert ("unranked" not in found["fvd_mean"]) == ranked
        assert ("unranked" not in found["fvd_mean_floor"]) == ranked


def test_reference_rows_are_measured_at_the_seams_of_methods(tmp_path: Path) -> None:
    long = synthetic(2, reading=READING._replace(num_frames=12))
    found = run(tmp_path, Reference(label="real", kind="real"), benchmark=long, score=scorer(tmp_path, t=Temporal()))
    assert found.result["metrics"]["seam_ratio"]["mean"] == pytest.approx(1, abs=0.5)
    assert found.result["metrics"]["periodicity"]["n"] == 2


def test_scores_that_do_not_exist_are_null_with_the_reason(tmp_path: Path) -> None:
    score = scorer(tmp_path, psnr=PSNR(cap=100.0), lpips=Missing(("lpips",), "no alexnet weights"))
    score.features = {"i3d": Missing((), "no i3d weights")}
    absent = run(tmp_path, score=score).result["metrics"]
    other = run(tmp_path, benchmark=synthetic(strength=200.0)).result["metrics"]
    one = run(tmp_path, benchmark=synthetic(1)).result["metrics"]
    for found, reason in (
        (absent["lpips"], "no alexnet weights"), (absent["fvd_i3d"], "no i3d weights"),
        (other["psnr"], "another motion"), (other["fvd_mean"], "no true clips"), (one["fvd_mean"], "n >= 2"),
    ):  # fmt: skip
        assert found["mean"] is None
        assert reason in found["reason"]
    assert one["psnr"]["mean"] is not None
    assert one["psnr"]["low"] is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames: frames[:-1], r"broken made frames of shape \(4, 3, 32, 32\) of clip 000000"),
        (lambda frames: frames[..., :-2], "must be"),
        (lambda frames: frames * float("nan"), "not finite of clip 000000"),
    ],
)
def test_bad_output_of_a_method_is_an_error(tmp_path: Path, change, message: str) -> None:
    class Broken(Noisy):
        def __call__(self, clip: EvalClip, seed: int) -> MethodOutput:
            return MethodOutput(change(clip.frames))

    with pytest.raises(ValueError, match=message):
        run(tmp_path, Broken(label="broken"))


def test_bad_scorers_and_rows_are_an_error_before_any_work(tmp_path: Path) -> None:
    score = scorer(tmp_path)
    score.features["mean"].min_frames = 9
    with pytest.raises(ValueError, match="num_frames=5: mean needs at least 9"):
        run(tmp_path, score=score)
    assert not (tmp_path / "runs").exists()
    with pytest.raises(ValueError, match=r"psnr.* measured twice"):
        scorer(tmp_path, one=PSNR(cap=100.0), two=PSNR(cap=100.0))
    (tmp_path / "clips.jsonl").write_text(json.dumps({"a": 1}) + "\n")
    with pytest.raises(ValueError, match="line 1 is no row"):
        Rows(tmp_path / "clips.jsonl")
    features = torch.randn(7)
    assert torch.equal(from_text(to_text(features)), features)


MEMORY = """
import resource, sys
from pathlib import Path
from evaluation_runs import READING, run, synthetic

def peak(n):
    long = synthetic(n, reading=READING._replace(num_frames=125, height=64, width=64))
    assert run(Path(sys.argv[1]) / str(n), benchmark=long).result["n"] == n
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

few = peak(4)
print(peak(12) - few)
"""


@pytest.mark.long
@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_clips(tmp_path: Path) -> None:
    # Freed memory goes back to the system at once. Otherwise the peak depends on the C library's habits.
    freeing = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment = {**os.environ, **freeing, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], cwd=Path(__file__).parent, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    clip = 125 * 3 * 64 * 64 / 2**20  # in 8 bits
    assert float(done.stdout) < 4 * clip, "MiB for 8 clips more; kept, they would take at least twice as much"
