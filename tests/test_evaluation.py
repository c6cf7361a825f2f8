"""The harness: rows that survive a kill, controls with known scores, equal numbers however the work is cut."""

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import MOTION
from safetensors.torch import load_file, save_file
from torch import Tensor

from motionanim.data.video import VideoError, write_video
from motionanim.evaluation.cases import Request, SyntheticBenchmark, VideoBenchmark
from motionanim.evaluation.harness import Finished, Options, evaluate
from motionanim.evaluation.methods import Control, Eulerian, External, Made, Ours, Warp, externals
from motionanim.evaluation.reading import Reading, read_clip
from motionanim.evaluation.rows import Rows
from motionanim.evaluation.scoring import FeatureCache, Missing, Scorer, from_text, to_text
from motionanim.metrics.frame import PSNR, SSIM
from motionanim.metrics.temporal import Temporal
from motionanim.models.eulerian import render
from motionanim.report.runs import read_run

SIDE = 32
READING = Reading(num_frames=5, height=SIDE, width=SIDE, fps=7, shape="stretch")


def request(**changes) -> Request:
    options = {"max_arrows": 3, "span": 5, "strength": None, "reverse": False, "median_strength": 0.0067, "seed": 0}
    return Request(**options | changes)


def synthetic(n: int = 3, **changes) -> SyntheticBenchmark:
    world = {"seed": 5, "moving_camera": 0.0, "split": "val"}
    return SyntheticBenchmark(name="tiny", n=n, reading=READING, world=world, request=request(**changes))


class Mean:
    """Real, if plain, features: what FVD is told of a clip is its mean colour and its change over time."""

    name, dim, min_frames, fingerprint, protocol = "mean", 4, 2, "mean-v1", {"ddof": 1}

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, frames: Tensor) -> Tensor:
        self.calls += len(frames)
        return torch.cat([frames.mean((1, 3, 4)), frames.diff(dim=1).abs().mean((1, 2, 3, 4))[:, None]], dim=1)


def scorer(folder: Path, **metrics) -> Scorer:
    return Scorer(metrics or {"psnr": PSNR(cap=100.0)}, {"mean": Mean()}, FeatureCache(folder / "features"))


def run(folder: Path, method=None, *, benchmark=None, score=None, keep_frames: bool = True, **changes) -> Finished:
    return evaluate(
        benchmark or synthetic(), method or Control(label="shuffled", kind="shuffled"), score or scorer(folder),
        root=folder / "runs", seed=0, window=5, settings=changes.get("settings", {}), about={"sweep": None, "axes": {}},
        options=Options(keep_frames=keep_frames, show=1, progress=False),
    )  # fmt: skip


def numbers(done: Finished) -> dict:
    """All of a summary that must not depend on when and how often it was made."""
    return {key: done.result[key] for key in ("label", "n", "metrics", "axes", "identity")}


# Cases


def test_a_case_is_a_function_of_its_index_and_a_larger_benchmark_contains_the_smaller() -> None:
    small, large = synthetic(2), synthetic(4)
    assert [large.identity(i) for i in range(2)] == [small.identity(i) for i in range(2)]
    assert len({large.identity(i) for i in range(4)}) == 4
    torch.testing.assert_close(small.case(1).frames, large.case(1).frames, atol=0, rtol=0)
    assert small.case(1).arrows == large.case(1).arrows


def test_arrows_are_points_of_the_motion_over_their_span() -> None:
    benchmark = synthetic(8)
    arrows = [(case, arrow) for case in map(benchmark.case, range(8)) for arrow in case.arrows]
    assert arrows
    for case, arrow in arrows:
        (x, y), (to_x, to_y) = arrow.path
        assert case.mask[0, int(y), int(x)] == 1
        mean = case.flow.mean(0)[:, int(y), int(x)]
        np.testing.assert_allclose([to_x - x, to_y - y], mean.numpy() * 4, rtol=1e-5)


def test_reversed_and_scaled_requests_have_no_true_clip() -> None:
    plain, back, strong = (synthetic(8, **c).case(0) for c in ({}, {"reverse": True}, {"strength": 200.0}))
    torch.testing.assert_close(back.flow, -plain.flow)
    assert plain.own_motion
    assert not back.own_motion
    assert not strong.own_motion
    assert synthetic(strength=200.0).identity(0) != synthetic().identity(0)
    assert synthetic(strength=200.0, reverse=True).request.label == ", strength 200, reversed"


# Reading


def ramp(path: Path, frames: int, fps: float, *, height: int = 64, width: int = 80) -> None:
    """A video whose frame k is grey of brightness k / frames, to tell frames apart after compression."""
    values = torch.linspace(-0.9, 0.9, frames).view(-1, 1, 1, 1).expand(-1, 3, height, width)
    write_video(path, values, fps)


def test_frames_are_taken_by_time_or_by_place(tmp_path: Path) -> None:
    ramp(tmp_path / "fast.mp4", 30, 30)
    ramp(tmp_path / "slow.mp4", 10, 10)
    reading = READING._replace(fps=10, num_frames=8)
    by_time = [read_clip(tmp_path / name, reading).mean((1, 2, 3)) for name in ("fast.mp4", "slow.mp4")]
    expected = torch.linspace(-0.9, 0.9, 30)[: 3 * 8 : 3]
    torch.testing.assert_close(by_time[0], expected, atol=0.02, rtol=0)
    torch.testing.assert_close(by_time[1], torch.linspace(-0.9, 0.9, 10)[:8], atol=0.02, rtol=0)
    by_place = read_clip(tmp_path / "fast.mp4", reading._replace(fps=None)).mean((1, 2, 3))
    torch.testing.assert_close(by_place, torch.linspace(-0.9, 0.9, 30)[:8], atol=0.02, rtol=0)
    # A file that says 10 but was made at 20: its content passes twice as fast.
    declared = read_clip(tmp_path / "fast.mp4", reading._replace(num_frames=4), rate=60).mean((1, 2, 3))
    torch.testing.assert_close(declared, torch.linspace(-0.9, 0.9, 30)[:24:6], atol=0.02, rtol=0)


def test_stretching_shows_all_and_cropping_the_middle(tmp_path: Path) -> None:
    frames = torch.full((5, 3, 64, 128), -0.8)
    frames[..., 32:96] = 0.8
    write_video(tmp_path / "a.mp4", frames, 7)
    stretched = read_clip(tmp_path / "a.mp4", READING)[2, 0, 16]
    assert stretched[:7].max() < -0.7
    assert stretched[10:22].min() > 0.7
    assert stretched[25:].max() < -0.7
    cropped = read_clip(tmp_path / "a.mp4", READING._replace(shape="crop"))
    assert cropped.shape == (5, 3, SIDE, SIDE)
    assert cropped[..., 2:-2].min() > 0.7
    with pytest.raises(ValueError, match="shape='fill'.*stretch or crop"):
        read_clip(tmp_path / "a.mp4", READING._replace(shape="fill"))


def test_too_few_frames_are_an_error_that_names_the_clip(tmp_path: Path) -> None:
    ramp(tmp_path / "short.mp4", 4, 7)
    with pytest.raises(VideoError, match=r"short.mp4 has 4 frames at 7 a second .* needs 5"):
        read_clip(tmp_path / "short.mp4", READING)


# Real clips and other systems' videos


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    benchmark = synthetic(3)
    for index in range(3):
        big = torch.nn.functional.interpolate(benchmark.case(index).frames, size=(64, 64), mode="bilinear")
        for folder in ("truth", "other"):
            write_video(tmp_path / folder / f"clip{index}.mp4", big, 7)
    return tmp_path


class Still:
    name = "still"

    def __call__(self, frames: Tensor) -> Tensor:
        return torch.full((len(frames) - 1, 2, *frames.shape[2:]), 0.5)


def folder_benchmark(root: Path, **changes) -> VideoBenchmark:
    options = {"name": "folder", "root": str(root), "manifest": None, "n": None, "reading": READING,
               "flow_estimator": Still(), "min_motion": 0.002, "request": request()}  # fmt: skip
    return VideoBenchmark(**options | changes)


def test_a_folder_is_a_benchmark_and_its_copy_scores_perfectly(videos: Path) -> None:
    benchmark = folder_benchmark(videos / "truth")
    assert benchmark.ids == ["clip0", "clip1", "clip2"]
    method = External(folder=str(videos / "other"), side={}, reading=READING, clips=benchmark.ids)
    done = run(videos, method, benchmark=benchmark)
    assert done.result["metrics"]["psnr"]["mean"] >= 99
    assert done.result["metrics"]["fvd_mean_plain"]["mean"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match=r"n=4: .* has 3 clips"):
        folder_benchmark(videos / "truth", n=4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "clip1.mp4").unlink(), "no video for clip1"),
        (lambda folder: ramp(folder / "clip9.mp4", 5, 7), "videos of no clip: clip9"),
        (lambda folder: (folder / "clip1.mp4").write_bytes(b"x" * 500), "clip1.mp4"),
        (lambda folder: ramp(folder / "clip1.mp4", 3, 7), "clip1.mp4 has 3 frames"),
        (lambda folder: (folder / "method.json").write_text('{"size": [1, 2]}'), "is 64x64 px and method.json says"),
        (lambda folder: (folder / "method.json").write_text('{"seconds": 9}'), "says seconds=9"),
        (lambda folder: (folder / "method.json").write_text('{"speed": 9}'), "speed=9 is not one of"),
        (lambda folder: (folder / "method.json").write_text('{"saw_motion": 1}'), "saw_motion=1"),
        (lambda folder: (folder / "method.json").write_text("{"), "cannot be read as JSON"),
        (lambda folder: (folder / "method.json").write_text('{"fps": -5}'), "fps=-5 must be a finite number above 0"),
        (lambda folder: (folder / "method.json").write_text('{"fps": NaN}'), "fps=nan must be"),
    ],
)
def test_a_folder_that_is_not_the_benchmarks_is_an_error_before_any_work(videos: Path, spoil, message: str) -> None:
    spoil(videos / "other")
    with pytest.raises(ValueError, match=message):
        External(folder=str(videos / "other"), side={}, reading=READING, clips=["clip0", "clip1", "clip2"])


def test_folders_by_pattern_leave_the_truth_out_and_take_overrides(videos: Path) -> None:
    (videos / "other" / "method.json").write_text('{"label": "Other", "seconds": 0.71}')
    found = externals(
        folders=str(videos / "*"), side={"other": {"saw_motion": True}}, reading=READING,
        clips=["clip0", "clip1", "clip2"], truth=str(videos / "truth"),
    )  # fmt: skip
    assert [(method.label, method.saw_motion) for method in found] == [("Other", True)]
    with pytest.raises(ValueError, match="no such folder"):
        externals(folders=str(videos / "none*"), side={}, reading=READING, clips=[], truth="")


# Runs


def test_controls_have_the_scores_that_they_must(tmp_path: Path) -> None:
    score = scorer(tmp_path, psnr=PSNR(cap=100.0), ssim=SSIM())
    real = run(tmp_path, Control(label="real", kind="real"), score=score).result["metrics"]
    still = run(tmp_path, Control(label="static", kind="static_copy"), score=score).result["metrics"]
    shuffled = run(tmp_path, Control(label="shuffled", kind="shuffled"), score=score).result["metrics"]
    assert real["ssim"]["mean"] == pytest.approx(1)
    assert real["fvd_mean_plain"]["mean"] == pytest.approx(0, abs=1e-6)
    assert still["ssim"]["mean"] < 1
    assert shuffled["ssim"]["mean"] < 1
    assert still["ssim_with_frame0"]["mean"] > still["ssim"]["mean"]
    with pytest.raises(ValueError, match="method.kind='fake'"):
        Control(label="x", kind="fake")


def test_the_flipped_control_is_held_against_the_opposite_motion() -> None:
    case = synthetic().case(0)
    torch.testing.assert_close(Control(label="f", kind="flipped")(case, 0).flow, -case.flow)


def test_a_second_run_computes_nothing_and_a_second_method_no_real_feature(tmp_path: Path) -> None:
    first, extractor = run(tmp_path), Mean()
    assert (first.made, first.scored) == (3, 3)
    again = run(tmp_path)
    assert (again.made, again.scored) == (0, 0)
    assert numbers(again) == numbers(first)
    other = Scorer({"psnr": PSNR(cap=100.0)}, {"mean": extractor}, FeatureCache(tmp_path / "features"))
    run(tmp_path, Control(label="static", kind="static_copy"), score=other)
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


def test_folders_of_other_clips_are_other_runs_with_other_protocols(videos: Path) -> None:
    for number in range(3):
        (videos / "third").mkdir(exist_ok=True)
        (videos / "third" / f"clip{number}.mp4").write_bytes((videos / "other" / "clip0.mp4").read_bytes())
    still = Control(label="static", kind="static_copy")
    one, two = (run(videos, still, benchmark=folder_benchmark(videos / name)) for name in ("truth", "third"))
    assert one.folder != two.folder
    assert two.made == 3
    assert one.result["metrics"]["psnr"]["protocol"] != two.result["metrics"]["psnr"]["protocol"]


def test_a_folder_that_lost_a_clip_is_summed_up_and_reported_anew(videos: Path) -> None:
    still = Control(label="static", kind="static_copy")
    run(videos, still, benchmark=folder_benchmark(videos / "truth"))
    (videos / "truth" / "clip0.mp4").unlink()
    again = run(videos, still, benchmark=folder_benchmark(videos / "truth"))
    assert again.result["n"] == 2
    assert read_run(again.folder).clips.keys() == {"clip1", "clip2"}


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
    found = run(tmp_path, Control(label="real", kind="real"), benchmark=long, score=scorer(tmp_path, t=Temporal()))
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
    label, control, saw_motion, timed, identity, files, place = "broken", False, False, True, {}, {}, ""

    def __init__(self, change) -> None:
        self.change = change

    def __call__(self, case, seed: int) -> Made:
        return Made(self.change(case.frames.clone()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda frames: frames[:-1], r"broken made \(4, 3, 32, 32\) of clip 000000"),
        (lambda frames: frames[..., :-2], "were asked for"),
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


def test_the_warp_carries_the_image_inside_the_mask_only() -> None:
    case = synthetic().case(0)
    flow, mask = torch.zeros_like(case.flow), torch.zeros_like(case.mask)
    flow[:, 0], mask[..., 8:] = 2.0, 1.0  # px per frame to the right
    method = Warp(label="w", request="exact", controls=None, refiner=None, use_refiner=True)
    frames = method(case._replace(flow=flow, mask=mask), 0).frames
    image = case.frames[0]
    assert torch.equal(frames[:, :, :, :8], image[:, :, :8].expand(5, -1, -1, -1))
    for t in range(5):
        torch.testing.assert_close(frames[t, :, :, 8:], image[:, :, 8 - 2 * t : SIDE - 2 * t], atol=1e-5, rtol=0)
    still = method(case._replace(flow=torch.zeros_like(flow)), 0).frames
    torch.testing.assert_close(still, image.expand(5, -1, -1, -1), atol=1e-5, rtol=0)


def test_the_eulerian_baseline_moves_along_the_exact_field(tmp_path: Path) -> None:
    method = Eulerian(
        label="eulerian", request="exact", controls=None, refiner=None, use_refiner=True,
        render=partial(render, loop=False, min_density=0.5),
    )  # fmt: skip
    assert method.saw_motion
    still = run(tmp_path, Control(label="static", kind="static_copy"), benchmark=synthetic(6)).result["metrics"]
    moved = run(tmp_path, method, benchmark=synthetic(6)).result["metrics"]
    assert moved["psnr"]["mean"] > still["psnr"]["mean"]
    with pytest.raises(ValueError, match=r"refiner=null: .*conditioning=no_refiner"):
        Eulerian(label="e", request="arrows", controls=None, refiner=None, use_refiner=True, render=render)
    with pytest.raises(ValueError, match="method.request='all'"):
        Eulerian(label="e", request="all", controls=None, refiner=None, use_refiner=False, render=render)


def test_a_base_that_differs_in_one_inner_layer_is_another_method(base: Path, tmp_path: Path) -> None:
    sampling = {
        "num_steps": 2, "sigma_min": 0.002, "sigma_max": 700.0, "rho": 7.0, "noise_aug": 0.02, "dtype": "float32",
        "decode_dtype": "float32", "channels_last": False, "compile": None,
    }  # fmt: skip

    def identity(folder: Path) -> dict:
        return Ours(
            label="ours", request="exact", controls=None, refiner=None, use_refiner=False, base=str(folder),
            motion=MOTION, sampling=sampling, loras=None, window=5, long_video=None,
        ).identity  # fmt: skip

    shutil.copytree(base, tmp_path / "other")
    weights = next((tmp_path / "other" / "unet").glob("*.safetensors"))
    state = load_file(weights)
    name = next(name for name in state if "temporal_transformer_blocks" in name and name.endswith("to_v.weight"))
    save_file(state | {name: state[name] + 0.1}, weights, metadata={"format": "pt"})
    assert identity(base) == identity(base)
    assert identity(tmp_path / "other") != identity(base)


def test_pictures_of_the_first_clips_are_left(tmp_path: Path) -> None:
    done = run(tmp_path)
    assert sorted(os.listdir(done.folder / "strips")) == ["000000.png"]
    assert sorted(os.listdir(done.folder / "videos")) == ["000000.mp4"]


MEMORY = """
import resource, sys
from pathlib import Path
from test_evaluation import READING, run, request
from motionanim.evaluation.cases import SyntheticBenchmark

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
    assert float(done.stdout) < 2 * clip, "MiB for 16 clips more"
