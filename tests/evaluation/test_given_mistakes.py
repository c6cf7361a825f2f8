"""Mistakes in given folders are one line that names the file or the setting, before any work."""

import json
import re
import shutil
from pathlib import Path

import in_process
import numpy as np
import pytest
from configs import _fresh_hydra  # noqa: F401  the fixture is for all tests
from given_folders import clip, given, methods, write_pictures
from PIL import Image

from motionanim.data.video import VideoError, write_video
from motionanim.evaluation.folders.source import PictureFolder


def checked(truth: Path, videos: Path) -> None:
    """All that the command does before any work."""
    methods(given(truth, videos), videos, truth=truth)


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


@pytest.mark.parametrize(
    ("side", "message"),
    [({"size": [32, 48]}, r"clip0.mp4 is 48x32 px"), ({"seconds": 9}, "clip0.mp4 lasts 1.20 s"), ({"fps": 0}, "fps=0")],
)
def test_the_truths_method_json_is_checked_too(root: Path, side: dict, message: str) -> None:
    (root / "truth" / "method.json").write_text(json.dumps(side))
    with pytest.raises(ValueError, match=message):
        given(root / "truth", root / "res" / "a")


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
    root: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(root)
    assert in_process.run("evaluate", [*arguments, "metrics=frame", "wandb=false", "progress=false"], monkeypatch) == 2
    told = capsys.readouterr().err
    assert re.search(message, told)
    assert told.count("\n") == 1
    assert not list(root.glob("runs/evaluate/*/*"))
