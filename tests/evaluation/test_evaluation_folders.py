"""Folders of videos: how they are read as benchmarks, and what another system's folder must hold."""

from pathlib import Path

import pytest
import torch
from evaluation_runs import READING, SIDE, folder_benchmark, run, synthetic

from motionanim.data.video import VideoError, write_video
from motionanim.evaluation.folders.external import External, externals
from motionanim.evaluation.methods import Reference
from motionanim.evaluation.reading import read_clip
from motionanim.evaluation.report.runs import read_run


def ramp(path: Path, frames: int, fps: float, *, height: int = 64, width: int = 80) -> None:
    """A video whose frame k is grey of brightness k / frames, to tell frames apart after compression."""
    values = torch.linspace(-0.9, 0.9, frames).view(-1, 1, 1, 1).expand(-1, 3, height, width)
    write_video(path, values, fps)


def test_frames_are_taken_by_time_or_by_place(tmp_path: Path) -> None:
    ramp(tmp_path / "fast.mp4", 30, 30)
    ramp(tmp_path / "slow.mp4", 10, 10)
    reading = READING._replace(fps=10, num_frames=8)
    fast, slow = (torch.linspace(-0.9, 0.9, frames) for frames in (30, 10))
    for name, how, rate, expected in (
        ("fast.mp4", reading, None, fast[: 3 * 8 : 3]),
        ("slow.mp4", reading, None, slow[:8]),
        ("fast.mp4", reading._replace(fps=None), None, fast[:8]),
        # A file that says 30 but was made at 60: its content passes twice as fast.
        ("fast.mp4", reading._replace(num_frames=4), 60, fast[:24:6]),
    ):
        found = read_clip(tmp_path / name, how, rate=rate).mean((1, 2, 3))
        torch.testing.assert_close(found, expected, atol=0.02, rtol=0)


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


def test_short_and_slow_videos_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ramp(tmp_path / "short.mp4", 4, 7)
    with pytest.raises(VideoError, match=r"short.mp4 has 4 frames at 7 a second .* needs 5"):
        read_clip(tmp_path / "short.mp4", READING)
    ramp(tmp_path / "slow.mp4", 8, 4)
    assert read_clip(tmp_path / "slow.mp4", READING).shape[0] == 5
    assert "slow.mp4 has 2 frames too few among 5 at 7 a second (its rate is 4): frames are repeated" in caplog.text
    refusing = READING._replace(slower="refuse")
    with pytest.raises(VideoError, match=r"slow.mp4 has 2 frames too few .*lower benchmark.reading.fps, or set"):
        read_clip(tmp_path / "slow.mp4", refusing)
    assert refusing.identity == READING.identity  # rows made before are still valid


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    benchmark = synthetic(3)
    for index in range(3):
        big = torch.nn.functional.interpolate(benchmark.clip(index).frames, size=(64, 64), mode="bilinear")
        for folder in ("truth", "other"):
            write_video(tmp_path / folder / f"clip{index}.mp4", big, 7)
    return tmp_path


def test_a_folder_is_a_benchmark_and_its_copy_scores_perfectly(videos: Path) -> None:
    benchmark = folder_benchmark(videos / "truth")
    assert benchmark.ids == ["clip0", "clip1", "clip2"]
    method = External(folder=str(videos / "other"), side={}, readings=benchmark.readings)
    done = run(videos, method, benchmark=benchmark)
    assert done.result["metrics"]["psnr"]["mean"] >= 99
    assert done.result["repeated"] == {"true clips": 0, "made clips": 0}
    assert done.result["metrics"]["fvd_mean"]["mean"] == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match=r"n=4: .* has 3 clips"):
        folder_benchmark(videos / "truth", n=4)


def test_clips_that_are_slower_than_what_is_read_are_counted(videos: Path) -> None:
    for name in ("truth/clip1", "other/clip0", "other/clip2"):
        ramp(videos / f"{name}.mp4", 8, 4, height=64, width=64)
    benchmark = folder_benchmark(videos / "truth")
    method = External(folder=str(videos / "other"), side={}, readings=benchmark.readings)
    assert run(videos, method, benchmark=benchmark).result["repeated"] == {"true clips": 1, "made clips": 2}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "clip1.mp4").unlink(), "no video for clip1"),
        (lambda folder: ramp(folder / "clip9.mp4", 5, 7), "videos of no clip: clip9"),
        (lambda folder: (folder / "clip1.mp4").write_bytes(b"x" * 500), "clip1.mp4"),
        (lambda folder: ramp(folder / "clip1.mp4", 3, 7), "clip1.mp4 has 3 frames"),
        (lambda folder: (folder / "method.json").write_text('{"size": [1, 2]}'), "is 64x64 px and method.json says"),
        (lambda folder: (folder / "method.json").write_text('{"saw_motion": 1}'), "saw_motion=1"),
        (lambda folder: (folder / "method.json").write_text("{"), "cannot be read as JSON"),
    ],
)
def test_a_folder_that_does_not_fit_the_benchmark_is_an_error(videos: Path, spoil, message: str) -> None:
    spoil(videos / "other")
    with pytest.raises(ValueError, match=message):
        External(folder=str(videos / "other"), side={}, readings=dict.fromkeys(["clip0", "clip1", "clip2"], READING))


def test_folders_by_pattern_leave_the_truth_out_and_take_overrides(videos: Path) -> None:
    (videos / "other" / "method.json").write_text('{"label": "Other", "seconds": 0.71}')
    benchmark = folder_benchmark(videos / "truth")
    side = {"other": {"saw_motion": True}}
    found = externals(folders=str(videos / "*"), side=side, benchmark=benchmark, truth=str(videos / "truth"))
    assert [(method.label, method.saw_motion) for method in found] == [("Other", True)]
    (videos / "other").rename(videos / "res [v2]")
    name = {"folders": str(videos / "res [v2]"), "side": {}, "truth": ""}
    assert [method.label for method in externals(benchmark=benchmark, **name)] == ["Other"]
    with pytest.raises(ValueError, match="no such folder"):
        externals(folders=str(videos / "none*"), side={}, benchmark=benchmark, truth="")


def test_folders_of_other_clips_are_other_runs_with_other_protocols(videos: Path) -> None:
    for name in ("滝", "滝" + "a" * 230, "滝" + "b" * 230):  # any name that a file may have
        (videos / "third").mkdir(exist_ok=True)
        (videos / "third" / f"{name}.mp4").write_bytes((videos / "other" / "clip0.mp4").read_bytes())
    still = Reference(label="static", kind="static_copy")
    one, two = (run(videos, still, benchmark=folder_benchmark(videos / name)) for name in ("truth", "third"))
    assert one.folder != two.folder
    assert two.made == 3
    assert one.result["metrics"]["psnr"]["protocol"] != two.result["metrics"]["psnr"]["protocol"]


def test_a_folder_that_lost_a_clip_is_summed_up_and_reported_anew(videos: Path) -> None:
    still = Reference(label="static", kind="static_copy")
    run(videos, still, benchmark=folder_benchmark(videos / "truth"))
    (videos / "truth" / "clip0.mp4").unlink()
    again = run(videos, still, benchmark=folder_benchmark(videos / "truth"))
    assert again.result["n"] == 2
    assert read_run(again.folder).clips.keys() == {"clip1", "clip2"}
