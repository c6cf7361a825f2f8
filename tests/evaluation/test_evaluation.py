"""The harness: rows that survive a kill, controls with known scores, equal numbers however the work is cut."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_runs import READING, Mean, numbers, request, run, scorer, synthetic

from motionanim.evaluation.benchmark import SyntheticBenchmark
from motionanim.evaluation.methods import MethodOutput, Reference
from motionanim.evaluation.report.runs import read_run
from motionanim.evaluation.rows import Rows
from motionanim.evaluation.scoring import FeatureCache, Missing, Scorer, from_text, to_text
from motionanim.metrics.frame import PSNR, SSIM
from motionanim.metrics.temporal import Temporal

# Cases


def test_a_case_is_a_function_of_its_index_and_a_larger_benchmark_contains_the_smaller() -> None:
    small, large = synthetic(2), synthetic(4)
    assert [large.identity(i) for i in range(2)] == [small.identity(i) for i in range(2)]
    assert len({large.identity(i) for i in range(4)}) == 4
    torch.testing.assert_close(small.clip(1).frames, large.clip(1).frames, atol=0, rtol=0)
    assert small.clip(1).arrows == large.clip(1).arrows


def test_arrows_follow_the_motion_at_its_speed() -> None:
    benchmark = synthetic(8)
    arrows = [(case, arrow) for case in map(benchmark.clip, range(8)) for arrow in case.arrows]
    assert arrows
    for case, arrow in arrows:
        path = np.array(arrow.path)
        x, y = path[0].astype(int)
        assert case.mask[0, y, x] == 1
        mean = case.flow.mean(0)[:, y, x].numpy()
        first = path[1] - path[0]
        assert first @ mean > 0.9 * np.linalg.norm(first) * np.linalg.norm(mean)
        # Arrows of a span of 5 frames have 4 steps, or fewer where the moving region ends.
        steps = 4 / arrow.speed
        assert steps == round(steps)
        assert 1 <= steps <= 4
        speed = np.linalg.norm(np.diff(path, axis=0), axis=1).sum() / steps
        np.testing.assert_allclose(speed, np.linalg.norm(mean), rtol=0.35)
        inside = path[1:-1].round().astype(int)
        assert (case.mask[0].numpy()[inside[:, 1], inside[:, 0]] == 1).all()


def test_reversed_and_scaled_requests_have_no_true_clip() -> None:
    plain, back, strong = (synthetic(8, **c).clip(0) for c in ({}, {"reverse": True}, {"strength": 200.0}))
    torch.testing.assert_close(back.flow, -plain.flow)
    assert plain.own_motion
    assert not back.own_motion
    assert not strong.own_motion
    assert synthetic(strength=200.0).identity(0) != synthetic().identity(0)
    assert synthetic(strength=200.0, reverse=True).request.label == ", strength 200, reversed"


# Runs


def test_controls_have_the_scores_that_they_must(tmp_path: Path) -> None:
    score = scorer(tmp_path, psnr=PSNR(cap=100.0), ssim=SSIM())
    real = run(tmp_path, Reference(label="real", kind="real"), score=score).result["metrics"]
    still = run(tmp_path, Reference(label="static", kind="static_copy"), score=score).result["metrics"]
    shuffled = run(tmp_path, Reference(label="shuffled", kind="shuffled"), score=score).result["metrics"]
    assert real["ssim"]["mean"] == pytest.approx(1)
    assert real["fvd_mean_plain"]["mean"] == pytest.approx(0, abs=1e-6)
    assert still["ssim"]["mean"] < 1
    assert shuffled["ssim"]["mean"] < 1
    assert still["ssim_with_frame0"]["mean"] > still["ssim"]["mean"]
    with pytest.raises(ValueError, match="method.kind='fake'"):
        Reference(label="x", kind="fake")


def test_the_flipped_control_is_held_against_the_opposite_motion() -> None:
    case = synthetic().clip(0)
    torch.testing.assert_close(Reference(label="f", kind="flipped")(case, 0).flow, -case.flow)


def test_a_second_run_computes_nothing_and_a_second_method_no_real_feature(tmp_path: Path) -> None:
    first, extractor = run(tmp_path), Mean()
    assert (first.made, first.scored) == (3, 3)
    again = run(tmp_path)
    assert (again.made, again.scored) == (0, 0)
    assert numbers(again) == numbers(first)
    other = Scorer({"psnr": PSNR(cap=100.0)}, {"mean": extractor}, FeatureCache(tmp_path / "features"))
    run(tmp_path, Reference(label="static", kind="static_copy"), score=other)
    assert extractor.calls == 3  # of the made clips only
    assert other.cache.computed == 0


def test_a_new_metric_uses_the_kept_frames_and_more_clips_reuse_the_first(tmp_path: Path) -> None:
    run(tmp_path)
    more = run(tmp_path, score=scorer(tmp_path, psnr=PSNR(cap=100.0), ssim=SSIM()))
    assert (more.made, more.scored) == (0, 3)
    fresh = run(tmp_path / "fresh", score=scorer(tmp_path, psnr=PSNR(cap=100.0), ssim=SSIM()))
    assert numbers(more) == numbers(fresh)
    grown = run(tmp_path, score=scorer(tmp_path, psnr=PSNR(cap=100.0), ssim=SSIM()), benchmark=synthetic(5))
    assert (grown.made, grown.result["n"]) == (2, 5)


def test_frames_that_were_kept_and_damaged_are_made_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    for path in (first.folder / "frames").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    again = run(tmp_path, score=scorer(tmp_path, psnr=PSNR(cap=100.0), ssim=SSIM()))
    assert (again.made, again.scored) == (3, 3)


def test_a_killed_run_goes_on_with_the_clip_that_was_in_hand(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    killed = run(tmp_path / "killed")
    rows = killed.folder / "clips.jsonl"
    text = rows.read_bytes()
    rows.write_bytes(text[:-50])  # cut inside the last row
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


def test_settings_of_other_videos_get_another_folder(tmp_path: Path) -> None:
    one, two = (run(tmp_path, settings={"gamma": gamma}) for gamma in (0.5, 0.8))
    assert one.folder != two.folder
    assert two.made == 3


def test_a_report_keeps_to_the_summary_while_a_run_measures_anew(tmp_path: Path, monkeypatch) -> None:
    first = run(tmp_path)
    before = read_run(first.folder).clips
    monkeypatch.setenv("WORLD_SIZE", "2")  # the other process never comes
    half = run(tmp_path, score=scorer(tmp_path, psnr=PSNR(cap=60.0)))
    assert half.result is None
    assert half.scored == 2
    assert read_run(first.folder).clips == before


def test_controls_are_asked_for_seams_where_methods_have_theirs(tmp_path: Path) -> None:
    long = SyntheticBenchmark(
        name="long", n=2, reading=READING._replace(num_frames=12),
        world={"seed": 5, "moving_camera": 0.0, "split": "val"}, request=request(),
    )  # fmt: skip
    found = run(tmp_path, Reference(label="real", kind="real"), benchmark=long, score=scorer(tmp_path, t=Temporal()))
    assert found.result["metrics"]["seam_ratio"]["mean"] == pytest.approx(1, abs=0.5)
    assert found.result["metrics"]["periodicity"]["n"] == 2


def test_missing_weights_are_null_with_the_reason_and_never_zero(tmp_path: Path) -> None:
    score = Scorer(
        {"psnr": PSNR(cap=100.0), "lpips": Missing(("lpips",), "no alexnet weights")},
        {"i3d": Missing((), "no i3d weights")},
        FeatureCache(tmp_path),
    )
    found = run(tmp_path, score=score).result["metrics"]
    for key, reason in (("lpips", "no alexnet weights"), ("fvd_i3d", "no i3d weights")):
        assert found[key]["mean"] is None
        assert found[key]["n"] == 0
        assert found[key]["reason"] == reason


def test_another_motion_than_the_clips_own_leaves_image_metrics_null(tmp_path: Path) -> None:
    found = run(tmp_path, benchmark=synthetic(strength=200.0)).result["metrics"]
    assert found["psnr"]["mean"] is None
    assert "another motion" in found["psnr"]["reason"]
    assert found["fvd_mean"]["mean"] is None
    assert "no true clips" in found["fvd_mean"]["reason"]


def test_one_clip_has_a_mean_but_no_interval_and_no_fvd(tmp_path: Path) -> None:
    found = run(tmp_path, benchmark=synthetic(1)).result["metrics"]
    assert found["psnr"]["mean"] is not None
    assert found["psnr"]["low"] is None
    assert found["fvd_mean"]["mean"] is None
    assert "n >= 2" in found["fvd_mean"]["reason"]


class Broken:
    label, reference, saw_motion, timed, identity, files, place = "broken", False, False, True, {}, {}, ""

    def __init__(self, change) -> None:
        self.change = change

    def __call__(self, case, seed: int) -> MethodOutput:
        return MethodOutput(self.change(case.frames.clone()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames: frames[:-1], r"broken made frames of shape \(4, 3, 32, 32\) of clip 000000"),
        (lambda frames: frames[..., :-2], "must be"),
        (lambda frames: frames.fill_(float("nan")), "not finite of clip 000000"),
    ],
)
def test_a_method_that_answers_something_else_is_an_error(tmp_path: Path, change, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(tmp_path, Broken(change))


def test_too_few_frames_for_a_metric_are_an_error_before_any_work(tmp_path: Path) -> None:
    score = scorer(tmp_path)
    score.features["mean"].min_frames = 9
    with pytest.raises(ValueError, match="num_frames=5: mean needs at least 9"):
        run(tmp_path, score=score)
    assert not (tmp_path / "runs").exists()


def test_two_metrics_of_one_key_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="psnr.* measured twice"):
        scorer(tmp_path, one=PSNR(cap=100.0), two=PSNR(cap=100.0))


def test_a_foreign_file_of_rows_is_an_error_and_features_survive_text(tmp_path: Path) -> None:
    (tmp_path / "clips.jsonl").write_text(json.dumps({"a": 1}) + "\n")
    with pytest.raises(ValueError, match="line 1 is no row"):
        Rows(tmp_path / "clips.jsonl")
    features = torch.randn(7)
    torch.testing.assert_close(from_text(to_text(features)), features, atol=0, rtol=0)


def test_pictures_of_the_first_clips_are_left(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert sorted(os.listdir(done.folder / "strips")) == ["000000.png"]
    assert sorted(os.listdir(done.folder / "videos")) == ["000000.mp4"]


MEMORY = """
import resource, sys
from pathlib import Path
from evaluation_runs import READING, run, request
from motionanim.evaluation.benchmark import SyntheticBenchmark

def peak(n):
    world = {"seed": 5, "moving_camera": 0.0, "split": "val"}
    long = SyntheticBenchmark(
        name="long", n=n, reading=READING._replace(num_frames=125, height=64, width=64), world=world, request=request()
    )
    assert run(Path(sys.argv[1]) / str(n), benchmark=long).result["n"] == n
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

few = peak(8)
print(peak(24) - few)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_clips(tmp_path: Path) -> None:
    # What is freed goes back to the system at once: else the peak is that of the C library's own habits.
    freeing = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment = {**os.environ, **freeing, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path)], cwd=Path(__file__).parent, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    clip = 125 * 3 * 64 * 64 / 2**20  # in 8 bits
    assert float(done.stdout) < 8 * clip, "MiB for 16 clips more; kept, they would take twice as much at least"
