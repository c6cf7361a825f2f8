"""Scoring given folders: what is read of them by default, against short scripts of PyAV and scikit-image; mistakes."""

import json
import os
import re
import shutil
from pathlib import Path

import av
import forked
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluation_runs import READING, SIDE, Mean, request, run, scorer
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from motionanim.data.folder import picture_folders
from motionanim.data.video import VideoError, write_video
from motionanim.evaluation.benchmark import VideoBenchmark
from motionanim.evaluation.folders.external import External, externals
from motionanim.evaluation.folders.given import GivenClips, given_clips
from motionanim.evaluation.folders.source import PictureFolder, find_sources
from motionanim.evaluation.methods import Reference
from motionanim.files import file_sha256
from motionanim.metrics.frame import PSNR, SSIM
from motionanim.metrics.fvd import distance
from motionanim.metrics.i3d import I3DFeatures

ROOT = Path(__file__).resolve().parents[2]
AUTO = dict.fromkeys(("num_frames", "height", "width", "fps"), "auto") | {"shape": "stretch", "slower": "repeat"}


class Still:
    name = "still"

    def __call__(self, frames: Tensor) -> Tensor:
        return torch.full((len(frames) - 1, 2, *frames.shape[2:]), 0.5)


def clip(seed: int, frames: int = 12, *, height: int = 32, width: int = 48) -> Tensor:
    """Random smooth colours that change over time."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, frames // 3, 5, 6, generator=generator)
    # Aligned corners, so that no frame equals frame 0: such frames do not count.
    large = F.interpolate(small, size=(frames, height, width), mode="trilinear", align_corners=True)
    return large[0].movedim(0, 1) * 1.8 - 0.9


def to_bytes(frames: Tensor) -> np.ndarray:
    """(T, H, W, 3) uint8."""
    return ((frames + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def write_pictures(folder: Path, frames: Tensor, suffix: str = "png") -> None:
    folder.mkdir(parents=True)
    for number, frame in enumerate(to_bytes(frames)):
        Image.fromarray(frame).save(folder / f"frame_{number}.{suffix}")  # 2 before 10 only by value


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """truth: 12 frames at 10 a second of two sizes; a: the same sizes, brighter; b: 9 frames at 8 a second, smaller."""
    folder = tmp_path_factory.mktemp("given")
    for index in range(3):
        true = clip(index, height=(32, 32, 40)[index])
        write_video(folder / "truth" / f"clip{index}.mp4", true, 10)
        write_video(folder / "res" / "a" / f"clip{index}.mp4", true * 0.8 + 0.1, 10)
        small = F.interpolate(true[:9], size=(32, 32), mode="bilinear")
        write_video(folder / "res" / "b" / f"clip{index}.mp4", small, 8)
    return folder


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


def given(truth: Path, videos, **changes) -> GivenClips:
    options = {"name": "given", "paired": True, "side": {}, "n": None, "reading": AUTO}
    listed = [str(each) for each in videos] if isinstance(videos, list) else str(videos)
    changed = options | changes
    changed["reading"] = AUTO | changed["reading"]
    return given_clips(truth=str(truth), videos=listed, **changed)


def methods(benchmark: GivenClips, videos, *, truth: Path, **side) -> list[External]:
    return externals(folders=str(videos), side=side, benchmark=benchmark, truth=str(truth))


def checked(truth: Path, videos: Path) -> None:
    """All that the command does before any work."""
    methods(given(truth, videos), videos, truth=truth)


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def by_hand(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Means over clips of PSNR and SSIM, frame 0 left out, of videos (T, H, W, 3) uint8."""
    scores = []
    for true, made in pairs:
        each = [
            (
                peak_signal_noise_ratio(x, y, data_range=255),
                structural_similarity(
                    x, y, data_range=255, channel_axis=2, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
                ),
            )
            for x, y in zip(true[1:], made[1:], strict=True)
        ]
        scores.append(np.mean(each, axis=0))
    psnr, ssim = np.mean(scores, axis=0)
    return float(psnr), float(ssim)


def resized(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    small = F.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)
    return small.round().byte().permute(0, 2, 3, 1).numpy()


def scored(folder: Path, method, benchmark: GivenClips) -> dict:
    score = scorer(folder, psnr=PSNR(cap=100.0), ssim=SSIM())
    return run(folder, method, benchmark=benchmark.of(method.place), score=score).result


def test_folders_of_one_rate_are_scored_frame_by_frame_at_their_own_size(root: Path) -> None:
    benchmark = given(root / "truth", root / "res" / "a")
    (method,) = methods(benchmark, root / "res" / "a", truth=root / "truth")
    result = scored(root, method, benchmark)
    names = [f"clip{index}.mp4" for index in range(3)]
    psnr, ssim = by_hand([(decoded(root / "truth" / k), decoded(root / "res" / "a" / k)) for k in names])
    assert result["metrics"]["psnr"]["mean"] == pytest.approx(psnr, abs=1e-3)
    assert result["metrics"]["ssim"]["mean"] == pytest.approx(ssim, abs=1e-4)
    stated = result["reading"]
    assert (stated["num_frames"], stated["width"], stated["height"], stated["fps"]) == (12, 48, None, None)
    assert stated["sizes"] == ["48x32 (2 clips)", "48x40 (1 clip)"]
    assert stated["taken"] == "frame by frame (10 frames a second)"


def test_other_rates_are_taken_by_time_and_other_sizes_resized_and_both_are_said(root: Path) -> None:
    benchmark = given(root / "truth", f"{root}/res/*")
    found = {method.label: method for method in methods(benchmark, f"{root}/res/*", truth=root / "truth")}
    assert found.keys() == {"a", "b"}
    result = scored(root, found["b"], benchmark)
    pairs = []
    for index in range(3):
        true = decoded(root / "truth" / f"clip{index}.mp4")
        near = [int(np.ceil(k / 8 * 10 - 0.5)) for k in range(9)]
        made = decoded(root / "res" / "b" / f"clip{index}.mp4")
        pairs.append((true[near], resized(made, *true.shape[1:3])))
    psnr, ssim = by_hand(pairs)
    assert result["metrics"]["psnr"]["mean"] == pytest.approx(psnr, abs=1e-3)
    assert result["metrics"]["ssim"]["mean"] == pytest.approx(ssim, abs=1e-4)
    assert result["reading"]["num_frames"] == 9
    told = "\n".join(result["reading"]["notes"])
    assert "9 frames of every clip, as many as the shortest has" in told
    assert "by time at 8 frames a second (files have 8, 10)" in told
    assert "b: 3 of 3 videos are resized, 3 of them to another shape" in told
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
    benchmark = given(root / "truth", root / "res" / "a", n=2)
    (method,) = methods(benchmark, root / "res" / "a", truth=root / "truth")
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
    benchmark = given(truth, videos)
    (method,) = methods(benchmark, videos, truth=truth)
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
    slower = given(root / "truth", root / "made")
    assert (slower.reading.fps, slower.reading.num_frames) == (5, 6)
    (method,) = methods(slower, root / "made", truth=root / "truth")
    # Frame k of the pictures is shown at k / 5 s, as is frame 2 k of the true video.
    made = method(slower.clip(0), 0).frames
    assert torch.allclose(made, ((clip(0)[:6] + 1) * 127.5).round() / 127.5 - 1, atol=1e-5)
    near = [(slower.clip(0).frames - clip(0)[start : start + 11 : 2]).abs().mean() for start in (0, 1)]
    assert near[0] < near[1] / 2  # what is left is the loss of the compression


def test_sets_of_any_size_are_compared_by_fvd_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(5):
        write_video(root / "more" / f"other{index}.mp4", clip(10 + index), 10)
    message = "no video for clip0, clip1, clip2 and videos of no clip: other0.*paired=false"
    with pytest.raises(ValueError, match=message):
        given(root / "truth", root / "more")
    benchmark = given(root / "truth", root / "more", paired=False)
    (method,) = methods(benchmark, root / "more", truth=root / "truth")
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


def test_segments_window_and_loop_reach_the_metrics_as_frames_that_are_read(root: Path) -> None:
    side = {"segment_starts": [4, 8], "window": 4, "loop": True, "saw_mask": True, "label": "L"}
    (root / "res" / "a" / "method.json").write_text(json.dumps(side))
    benchmark = given(root / "truth", root / "res" / "a")
    (method,) = methods(benchmark, root / "res" / "a", truth=root / "truth")
    output = method(benchmark.clip(0), 0)
    assert (output.segment_starts, output.window, output.loop) == ((4, 8), 4, True)
    assert (method.label, method.saw_mask, method.saw_motion, method.lossless) == ("L", True, False, False)
    # At half the rate frame 4 of the file is frame 2 that is read.
    half = given(root / "truth", root / "res" / "a", reading={"fps": 5})
    (method,) = methods(half, root / "res" / "a", truth=root / "truth")
    output = method(half.clip(0), 0)
    assert (output.segment_starts, output.window) == ((2, 4), 2)


@pytest.mark.parametrize(
    ("side", "message"),
    [
        ({"segment_starts": [8, 4]}, r"segment_starts=\[8, 4\] must be the first frames"),
        ({"segment_starts": [0]}, "must be the first frames"),
        ({"segment_starts": [3.5]}, "must be the first frames"),
        ({"segment_starts": [40]}, "clip0.mp4 has 12 frames and method.json says"),
        ({"window": 0}, "window=0 must be at least 1"),
        ({"loop": 1}, "loop=1 is not one of"),
        ({"borders": [4]}, r"borders=\[4\] is not one of label, .*segment_starts"),
    ],
)
def test_a_method_json_that_makes_no_sense_is_one_line(root: Path, side: dict, message: str) -> None:
    (root / "res" / "a" / "method.json").write_text(json.dumps(side))
    with pytest.raises(ValueError, match=message):
        checked(root / "truth", root / "res" / "a")


def spoiled(root: Path, what: str) -> dict:
    """Make one mistake; returns the folders to give."""
    truth, videos = root / "truth", root / "res" / "a"
    if what == "damaged":
        (videos / "clip1.mp4").write_bytes((videos / "clip1.mp4").read_bytes()[:700])
    elif what == "cut short":
        (videos / "clip1.mp4").write_bytes((videos / "clip1.mp4").read_bytes()[:-400])
    elif what == "twice":
        shutil.copy(videos / "clip1.mp4", videos / "clip1.mov")
    elif what == "missing clip":
        (videos / "clip1.mp4").unlink()
    elif what == "no videos":
        shutil.rmtree(videos)
        videos.mkdir()
        (videos / "notes.txt").touch()
    elif what == "pictures alone":
        shutil.rmtree(videos)
        write_pictures(videos, clip(0))
    elif what == "picture sizes":
        shutil.rmtree(videos)
        for index in range(3):
            write_pictures(videos / f"clip{index}", clip(index))
        Image.new("RGB", (5, 5)).save(videos / "clip1" / "mask.png")
    elif what == "picture damaged":
        shutil.rmtree(videos)
        for index in range(3):
            write_pictures(videos / f"clip{index}", clip(index))
        (videos / "clip1" / "frame_3.png").write_bytes(b"no picture")
    elif what == "picture twice":
        shutil.rmtree(videos)
        for index in range(3):
            write_pictures(videos / f"clip{index}", clip(index))
        shutil.copy(videos / "clip1" / "frame_3.png", videos / "clip1" / "frame_3.jpg")
    elif what == "truth itself":
        videos = truth
    elif what == "no truth":
        truth = root / "nowhere"
    elif what == "no folder":
        videos = root / "nowhere"
    elif what == "one frame":
        write_video(videos / "clip1.mp4", clip(1)[:1], 10)
    return {"truth": truth, "videos": videos}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("damaged", r"clip1\.mp4 is not a video file that can be decoded"),
        ("cut short", r"clip1\.mp4"),
        ("twice", "two videos named clip1"),
        ("missing clip", r"res/a has no video for clip1; .*exactly the benchmark's 3 clips in .*paired=false"),
        ("no videos", r"res/a has no video: .*folders of pictures such as CLIP/0001.png"),
        ("pictures alone", r"res/a holds pictures itself: put the frames of each clip into a folder of its own"),
        ("picture sizes", r"mask\.png is 5x5 px and frame_0.png 48x32"),
        ("picture damaged", r"frame_3\.png is not a picture that can be read"),
        ("picture twice", r"clip1 has two pictures named frame_3"),
        ("truth itself", r"videos=.*truth is the folder of the true clips"),
        ("no truth", r"truth=.*nowhere: no such folder"),
        ("no folder", r"videos=.*nowhere: no such folder"),
        ("one frame", r"clip1\.mp4 has 1 frames to compare"),
    ],
)
def test_a_wrong_folder_is_one_line_before_any_work(root: Path, what: str, message: str) -> None:
    folders = spoiled(root, what)
    with pytest.raises(ValueError, match=message) as caught:
        checked(folders["truth"], folders["videos"])
    assert "\n" not in str(caught.value)


def test_a_damaged_picture_is_named_when_it_is_read(root: Path) -> None:
    write_pictures(root / "p" / "clip0", clip(0))
    path = root / "p" / "clip0" / "frame_3.png"
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(VideoError, match=r"frame_3\.png cannot be read"):
        PictureFolder(root / "p" / "clip0").read(np.arange(12), height=32, width=48)


def test_a_folder_of_pictures_is_a_benchmark_and_n_leaves_clips_out(root: Path) -> None:
    for index in range(3):
        write_pictures(root / "pictures" / f"clip{index}", clip(index, 6, height=SIDE, width=SIDE))
        write_pictures(root / "made" / f"clip{index}", clip(index, 6, height=SIDE, width=SIDE))
    options = {
        "name": "folder", "manifest": None, "reading": READING, "flow_estimator": Still(), "min_motion": 0.002,
        "request": request(),
    }  # fmt: skip
    benchmark = VideoBenchmark(root=str(root / "pictures"), n=2, **options)
    assert benchmark.ids == ["clip0", "clip1"]
    assert torch.allclose(benchmark.clip(1).frames, clip(1, 6, height=SIDE, width=SIDE)[:5], atol=0.01)
    (method,) = externals(folders=str(root / "made"), side={}, benchmark=benchmark, truth=str(root / "pictures"))
    result = run(root, method, benchmark=benchmark).result
    assert result["metrics"]["psnr"]["mean"] == 100
    assert (result["lossless"], result["saw_mask"], result["reading"]["sizes"]) == (True, False, [f"{SIDE}x{SIDE}"])
    (root / "pictures" / "method.json").write_text('{"fps": 14}')  # every second picture at 7 a second
    faster = VideoBenchmark(root=str(root / "pictures"), n=2, **options | {"reading": READING._replace(num_frames=3)})
    assert torch.allclose(faster.clip(1).frames, clip(1, 6, height=SIDE, width=SIDE)[::2], atol=0.01)
    assert faster.identity(0) != benchmark.identity(0)


def test_clips_of_too_few_frames_have_no_distance_and_say_why(tmp_path: Path) -> None:
    score = scorer(tmp_path)
    score.features["mean"].min_frames = 9
    score.leave_out_short(9)
    assert isinstance(score.features["mean"], Mean)
    score.leave_out_short(8)
    assert run(tmp_path, score=score).result["metrics"]["fvd_mean"]["reason"] == "needs 9 frames, and the clips have 8"


def command(cwd: Path, *arguments: str, code: int = 0) -> str:
    """What evaluate.py prints."""
    done = forked.run(str(ROOT / "evaluate.py"), *arguments, "wandb=false", "progress=false", cwd=cwd)
    assert done.returncode == code, done.stderr[-2000:]
    return done.stderr if code else done.stdout


def results(cwd: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in cwd.glob("runs/evaluate/*/*/result.json")]
    return {result["label"]: result for result in found}


@pytest.mark.slow
def test_the_command_scores_two_folders_and_says_how(root: Path) -> None:
    told = command(root, "truth=truth", "videos=[res/a,res/b]", "metrics=frame", "show=1")
    assert "by time at 8 frames a second" in told
    found = results(root)
    assert found.keys() == {"static copy", "real", "shuffled", "a", "b"}  # no motion is asked, so none is flipped
    assert {result["n"] for result in found.values()} == {3}
    assert (root / "runs" / "evaluate" / f"{root.name}_truth" / "report" / "report.html").is_file()
    assert "a: 0 clips made, 0 scored" in command(root, "truth=truth", "videos=res/*", "metrics=frame", "show=1")


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["truth=truth"], "error: videos= is missing"),
        (["videos=res/a"], "error: truth= is missing"),
        (["truth=truth", "videos=res/a", "method=ours"], "error: method= beside truth= and videos=.*benchmark=folder"),
        (["truth=truth", "videos=nowhere"], "error: videos=nowhere: no such folder"),
        (
            ["truth=truth", "videos=res"],
            "error: res has no video for clip0, clip1, clip2 and videos of no clip: a/clip0",
        ),
        (
            [
                "benchmark=folder",
                "benchmark.root=truth",
                "benchmark.reading.num_frames=5",
                "n=3",
                "method=external",
                "method.folders=nowhere",
            ],
            "error: method.folders=nowhere: no such folder",
        ),
    ],
)
def test_a_mistake_on_the_command_line_is_found_before_any_row_is_made(
    root: Path, arguments: list[str], message: str
) -> None:
    told = command(root, *arguments, "metrics=frame", code=2)
    assert re.search(message, told)
    assert "Traceback" not in told
    assert len(told.strip().splitlines()) == 1
    assert not list(root.glob("runs/evaluate/*/*"))


def published(shared: Path, name: str, clips: int, *, stretch: bool = True) -> list[tuple[np.ndarray, np.ndarray]]:
    """True and made frames as a short script has them: 14 at 7 a second, made ones stretched to the true size."""
    pairs = []
    for path in sorted((shared / "published" / "short" / "ground_truth").glob("*.mp4"))[:clips]:
        true, made = decoded(path), decoded(path.parents[1] / name / path.name)
        rates = {"ground_truth": 30, "paper": 7, "gen2": 8}
        near = [[int(np.ceil(k / 7 * rates[each] - 0.5)) for k in range(14)] for each in ("ground_truth", name)]
        true, made = true[near[0]], made[near[1]]
        pairs.append((true, resized(made, *true.shape[1:3]) if stretch else made))
    return pairs


@pytest.mark.slow
def test_published_videos_score_at_their_own_size_as_a_short_script_has_it(shared: Path, tmp_path: Path) -> None:
    root = shared / "published" / "short"
    folders = f"videos=[{root}/paper,{root}/gen2]"
    command(tmp_path, f"truth={root}/ground_truth", folders, "n=1", "metrics=frame", "reference_rows=[]", "show=0")
    found = results(tmp_path)
    for name in ("paper", "gen2"):
        psnr, ssim = by_hand(published(shared, name, 1))
        assert found[name]["metrics"]["psnr"]["mean"] == pytest.approx(psnr, abs=1e-3)
        assert found[name]["metrics"]["ssim"]["mean"] == pytest.approx(ssim, abs=1e-3)
        assert found[name]["reading"]["taken"] == "by time at 7 frames a second (files have 7, 8, 30)"


@pytest.mark.slow
@pytest.mark.weights
def test_published_videos_have_the_lpips_and_fvd_of_a_short_script(shared: Path, tmp_path: Path) -> None:
    """At 256 x 256 px, which takes seconds where the videos' own size takes minutes."""
    lpips, linalg = pytest.importorskip("lpips"), pytest.importorskip("scipy.linalg")
    alexnet, i3d = (shared / "weights" / f"{name}.pth" for name in ("lpips_alexnet_features", "i3d_kinetics400"))
    root = shared / "published" / "short"
    command(
        tmp_path, f"truth={root}/ground_truth", f"videos={root}/paper", "reference_rows=[]", "show=0",
        "benchmark.reading.height=256", "benchmark.reading.width=256",
        f"+metrics.clip.lpips.backbone.path={alexnet}", f"+metrics.clip.lpips.backbone.sha256={file_sha256(alexnet)}",
        f"+metrics.features.i3d_ours.weights.path={i3d}",
        f"+metrics.features.i3d_ours.weights.sha256={file_sha256(i3d)}",
        "~metrics.clip.control", "~metrics.clip.consistency", "~metrics.features.embedded",
    )  # fmt: skip
    found = results(tmp_path)["paper"]["metrics"]
    pairs = [[resized(video, 256, 256) for video in pair] for pair in published(shared, "paper", 3, stretch=False)]
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
