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
    [
        ({"size": [32, 48]}, r"clip0.mp4 is 48x32 px"),
        ({"seconds": 9}, "clip0.mp4 lasts 1.20 s"),
        ({"fps": 0}, "fps=0 must be"),
    ],
)
def test_the_truths_method_json_is_checked_too(root: Path, side: dict, message: str) -> None:
    (root / "truth" / "method.json").write_text(json.dumps(side))
    with pytest.raises(ValueError, match=message):
        given(root / "truth", root / "res" / "a")


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def removed(folder: Path) -> Path:
    shutil.rmtree(folder)
    return folder


def as_pictures(folder: Path) -> Path:
    """Puts pictures in the place of the videos; returns the folder of clip 1."""
    removed(folder)
    for index in range(3):
        write_pictures(folder / f"clip{index}", clip(index))
    return folder / "clip1"


MISTAKES = {  # made in the folder of the videos
    r"clip1\.mp4 is not a video file that can be decoded": lambda made: cut(made / "clip1.mp4", 700),
    r"clip1\.mp4": lambda made: cut(made / "clip1.mp4", -400),
    "two videos named clip1": lambda made: shutil.copy(made / "clip1.mp4", made / "clip1.mov"),
    r"res/a has no video for clip1; .*exactly the benchmark's 3 clips in .*paired=false":
        lambda made: (made / "clip1.mp4").unlink(),
    r"res/a has no video: .*folders of pictures such as CLIP/0001.png":
        lambda made: [path.rename(path.with_suffix(".txt")) for path in sorted(made.iterdir())],
    r"res/a holds pictures itself: put the frames of each clip into a folder of its own":
        lambda made: write_pictures(removed(made), clip(0)),
    r"mask\.png is 5x5 px and frame_0.png 48x32":
        lambda made: Image.new("RGB", (5, 5)).save(as_pictures(made) / "mask.png"),
    r"frame_3\.png is not a picture that can be read":
        lambda made: (as_pictures(made) / "frame_3.png").write_bytes(b"no picture"),
    "clip1 has two pictures named frame_3": lambda made: (as_pictures(made) / "frame_3.jpg").touch(),
    r"clip1\.mp4 has 1 frames to compare": lambda made: write_video(made / "clip1.mp4", clip(1)[:1], 10),
}  # fmt: skip


@pytest.mark.parametrize("message", MISTAKES)
def test_a_wrong_folder_is_one_line_before_any_work(root: Path, message: str) -> None:
    MISTAKES[message](root / "res" / "a")
    with pytest.raises(ValueError, match=message) as caught:
        checked(root / "truth", root / "res" / "a")
    assert "\n" not in str(caught.value)


def test_the_truth_itself_and_a_missing_truth_are_named(root: Path) -> None:
    with pytest.raises(ValueError, match=r"videos=.*truth is the folder of the true clips"):
        checked(root / "truth", root / "truth")
    with pytest.raises(ValueError, match=r"truth=.*nowhere: no such folder"):
        checked(root / "nowhere", root / "res" / "a")


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
        (["truth=truth", "videos=res"], "error: res has no video for clip0, clip1, clip2 and videos of no clip: a/"),
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
