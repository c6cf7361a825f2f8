"""Scoring given folders: what is read of them by default, against short scripts of PyAV and scikit-image."""

import json
from pathlib import Path

import pytest
import torch
from evaluation_runs import READING, SIDE, Mean, folder_benchmark, run, scorer
from given_folders import both, by_hand, by_time, clip, decoded, given, resized, scored, to_bytes, write_pictures

from motionanim.data.folder import picture_folders
from motionanim.data.video import write_video
from motionanim.evaluation.folders.external import External, externals
from motionanim.evaluation.folders.source import find_sources
from motionanim.evaluation.methods import Reference
from motionanim.metrics.fvd import distance


@pytest.mark.slow
def test_folders_of_one_rate_are_scored_frame_by_frame_at_their_own_size(root: Path) -> None:
    benchmark, method = both(root / "truth", root / "res" / "a")
    result = scored(root, method, benchmark)
    names = [f"clip{index}.mp4" for index in range(3)]
    psnr, ssim = by_hand([(decoded(root / "truth" / k), decoded(root / "res" / "a" / k)) for k in names])
    assert result["metrics"]["psnr"]["mean"] == pytest.approx(psnr, abs=1e-3)
    assert result["metrics"]["ssim"]["mean"] == pytest.approx(ssim, abs=1e-4)
    stated = result["reading"]
    assert (stated["num_frames"], stated["width"], stated["height"], stated["fps"]) == (12, 48, None, None)
    assert stated["sizes"] == ["48x32 (2 clips)", "48x40 (1 clip)"]
    assert stated["taken"] == "frame by frame (10 frames a second)"


@pytest.mark.slow
def test_other_rates_are_taken_by_time_and_other_sizes_resized_and_both_are_said(root: Path) -> None:
    benchmark = given(root / "truth", f"{root}/res/*")
    made = externals(folders=f"{root}/res/*", side={}, benchmark=benchmark, truth=str(root / "truth"))
    found = {method.label: method for method in made}
    assert found.keys() == {"a", "b"}
    result = scored(root, found["b"], benchmark)
    pairs = []
    for index in range(3):
        true = by_time(root / "truth" / f"clip{index}.mp4", own=10, fps=8, count=9)
        made = decoded(root / "res" / "b" / f"clip{index}.mp4")
        pairs.append((true, resized(made, *true.shape[1:3])))
    psnr, ssim = by_hand(pairs)
    assert result["metrics"]["psnr"]["mean"] == pytest.approx(psnr, abs=1e-3)
    assert result["metrics"]["ssim"]["mean"] == pytest.approx(ssim, abs=1e-4)
    assert result["reading"]["num_frames"] == 9
    told = "\n".join(result["reading"]["notes"])
    assert "9 frames of every clip, as many as the shortest has" in told
    assert "those nearest in time at 8 frames a second (files have 8, 10)" in told
    assert "b: 3 of 3 videos are resized (bilinear, antialiased), 3 of them to another shape" in told
    assert "a: " not in told
    copy = scored(root, Reference(label="static copy", kind="static_copy"), benchmark)
    assert copy["metrics"]["psnr"]["mean"] is not None


def test_what_is_asked_replaces_what_the_files_have(root: Path) -> None:
    asked = {"num_frames": 4, "fps": 5, "height": 24, "width": 24, "shape": "crop"}
    frames = given(root / "truth", root / "res" / "b", reading=asked).clip(0)
    assert frames.frames.shape == (4, 3, 24, 24)
    assert frames.fps == 5
    by_place = given(root / "truth", root / "res" / "b", reading={"fps": None})  # frame by frame, whatever the rates
    assert by_place.reading.num_frames == 9
    assert by_place.reading.fps is None
    for wrong, message in (
        ({"num_frames": 1}, "num_frames=1: must be at least 2"),
        ({"height": 32}, "give both"),
        ({"fps": -1}, "fps=-1: must be above 0"),
        ({"num_frames": 50}, r"clip0.mp4 has \d+ frames.*needs 50"),
    ):
        with pytest.raises(ValueError, match=message):
            given(root / "truth", root / "res" / "b", reading=wrong)


def test_the_first_n_clips_of_every_folder(root: Path) -> None:
    benchmark, method = both(root / "truth", root / "res" / "a", n=2)
    assert benchmark.ids == list(method.paths) == ["clip0", "clip1"]
    assert scored(root, method, benchmark)["n"] == 2


def test_folders_of_pictures_are_videos(root: Path) -> None:
    for index in range(3):
        true = clip(index)
        write_pictures(root / "true_pictures" / f"clip{index}", true)
        write_pictures(root / "made_pictures" / f"clip{index}", true * 0.8)
    write_pictures(root / "jpegs" / "clip0", clip(0), "jpg")
    truth, videos = root / "true_pictures", root / "made_pictures"
    assert list(find_sources(truth)) == ["clip0", "clip1", "clip2"]
    assert picture_folders(truth)["clip0"][2:] == [f"frame_{number}.png" for number in range(2, 12)]
    benchmark, method = both(truth, videos)
    result = scored(root, method, benchmark)
    psnr, _ = by_hand([(to_bytes(clip(index)), to_bytes(clip(index) * 0.8)) for index in range(3)])
    assert result["metrics"]["psnr"]["mean"] == pytest.approx(psnr, abs=1e-3)
    assert result["lossless"]
    assert "without a rate" in result["reading"]["taken"]
    assert not External(folder=str(root / "jpegs"), side={}, readings={"clip0": benchmark.reading}).lossless


def test_pictures_follow_the_true_videos_rate_or_their_own(root: Path) -> None:
    for index in range(3):
        write_pictures(root / "made" / f"clip{index}", clip(index))
    benchmark = given(root / "truth", root / "made")
    assert benchmark.reading.fps is None  # one after another
    assert benchmark.reading.num_frames == 12
    (root / "made" / "method.json").write_text('{"fps": 5}')
    slower, method = both(root / "truth", root / "made")
    assert (slower.reading.fps, slower.reading.num_frames) == (5, 6)
    # Frame k of the pictures is shown at k / 5 s, as is frame 2 k of the true video.
    made = method(slower.clip(0), 0).frames
    assert torch.allclose(made, ((clip(0)[:6] + 1) * 127.5).round() / 127.5 - 1, atol=1e-5)
    near = [(slower.clip(0).frames - clip(0)[start : start + 11 : 2]).abs().mean() for start in (0, 1)]
    assert near[0] < near[1] / 2  # what is left is the loss of the compression


@pytest.mark.slow
def test_sets_of_any_size_are_compared_by_fvd_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(5):
        write_video(root / "more" / f"other{index}.mp4", clip(10 + index), 10)
    with pytest.raises(
        ValueError, match="no video for clip0, clip1, clip2 and videos of no clip: other0.*paired=false"
    ):
        given(root / "truth", root / "more")
    benchmark, method = both(root / "truth", root / "more", paired=False)
    result = scored(root, method, benchmark)
    assert result["n"] == 5
    assert result["metrics"]["psnr"] | {"protocol": None} == {
        "mean": None, "low": None, "high": None, "n": 0, "protocol": None,
        "reason": "the videos are not paired with true clips",
    }  # fmt: skip
    sides = []
    for folder, count in (("truth/clip", 3), ("more/other", 5)):
        videos = (torch.from_numpy(decoded(root / f"{folder}{k}.mp4")).permute(0, 3, 1, 2) for k in range(count))
        features = torch.cat([Mean()(video[None] / 127.5 - 1) for video in videos]).double()
        sides.append((torch.tensor(count), features.sum(0), features.T @ features))
    expected = distance(*sides, ddof=1)
    assert result["metrics"]["fvd_mean"]["mean"] == pytest.approx(float(expected), rel=1e-4)
    monkeypatch.chdir(root / "more")  # where "", the place of a reference row, means the made videos
    real = scored(root, Reference(label="real", kind="real"), benchmark)
    assert real["n"] == 3
    assert result["reading"]["paired"] is False
    assert real["metrics"]["fvd_mean"]["mean"] == pytest.approx(0, abs=1e-6)
    assert any("not paired" in note for note in result["reading"]["notes"])


@pytest.mark.slow
def test_pairs_and_sets_in_one_run_folder_do_not_share_rows(root: Path) -> None:
    found = []
    for paired in (True, False):
        benchmark, method = both(root / "truth", root / "res" / "a", paired=paired)
        rows = method, Reference(label="static copy", kind="static_copy")  # whose place is the truth's both times
        found += [scored(root, row, benchmark)["metrics"]["psnr"]["mean"] for row in rows]
    assert min(found[:2]) > 5
    assert found[2:] == [None, None]


def test_segments_window_and_loop_reach_the_metrics_as_frames_that_are_read(root: Path) -> None:
    side = {"segment_starts": [4, 8], "window": 4, "loop": True, "saw_mask": True, "label": "L"}
    (root / "res" / "a" / "method.json").write_text(json.dumps(side))
    benchmark, method = both(root / "truth", root / "res" / "a")
    output = method(benchmark.clip(0), 0)
    assert (output.segment_starts, output.window, output.loop) == ((4, 8), 4, True)
    assert (method.label, method.saw_mask, method.saw_motion, method.lossless) == ("L", True, False, False)
    # At half the rate frame 4 of the file is frame 2 that is read.
    half, method = both(root / "truth", root / "res" / "a", reading={"fps": 5})
    output = method(half.clip(0), 0)
    assert (output.segment_starts, output.window) == ((2, 4), 2)


def test_a_folder_of_pictures_is_a_benchmark_and_n_leaves_clips_out(root: Path) -> None:
    for index in range(3):
        write_pictures(root / "pictures" / f"clip{index}", clip(index, 6, height=SIDE, width=SIDE))
        write_pictures(root / "made" / f"clip{index}", clip(index, 6, height=SIDE, width=SIDE))
    benchmark = folder_benchmark(root / "pictures", n=2)
    assert benchmark.ids == ["clip0", "clip1"]
    assert torch.allclose(benchmark.clip(1).frames, clip(1, 6, height=SIDE, width=SIDE)[:5], atol=0.01)
    (method,) = externals(folders=str(root / "made"), side={}, benchmark=benchmark, truth=str(root / "pictures"))
    result = run(root, method, benchmark=benchmark).result
    assert result["metrics"]["psnr"]["mean"] == 100
    assert (result["lossless"], result["saw_mask"], result["reading"]["sizes"]) == (True, False, [f"{SIDE}x{SIDE}"])
    few = {"n": 2, "reading": READING._replace(num_frames=3)}
    before = folder_benchmark(root / "pictures", **few).identity(0)
    (root / "pictures" / "method.json").write_text('{"fps": 14}')  # every second picture at 7 a second
    faster = folder_benchmark(root / "pictures", **few)
    assert torch.allclose(faster.clip(1).frames, clip(1, 6, height=SIDE, width=SIDE)[::2], atol=0.01)
    assert faster.identity(0) != before


def test_clips_of_too_few_frames_have_no_distance_and_say_why(tmp_path: Path) -> None:
    score = scorer(tmp_path)
    score.features["mean"].min_frames = 9
    score.leave_out_short(9)
    assert isinstance(score.features["mean"], Mean)
    score.leave_out_short(8)
    assert run(tmp_path, score=score).result["metrics"]["fvd_mean"]["reason"] == "needs 9 frames, and the clips have 8"
