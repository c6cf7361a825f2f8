"""Where commands write: nothing that no run made is replaced, and files say what they hold."""

import json
import os
import shlex
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from PIL import Image, ImageSequence

from motionanim import animate as command
from motionanim.animate import animate
from motionanim.data.video import Video, write_video
from motionanim.evaluation.harness import _slug
from motionanim.files import atomic_path, file_sha256, output_files
from motionanim.media.visualize import write_gif
from motionanim.models.weights_io import save_network

ARROW = [[20, 12, 26, 12]]


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    GlobalHydra.instance().clear()
    monkeypatch.chdir(tmp_path)
    yield
    GlobalHydra.instance().clear()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    small = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    path = tmp_path / "été (1), a=b #2 it's.png"
    Image.fromarray(small).resize((48, 36), Image.Resampling.BICUBIC).save(path)
    return path


def quick(photo: Path, **settings) -> None:
    animate(image=photo, arrows=ARROW, renderer="eulerian", refiner=None, frames=3, **settings)


def on_command_line(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    GlobalHydra.instance().clear()
    monkeypatch.setattr("sys.argv", ["animate", *arguments])
    command.main()


RESULTS = ["cat.mp4", "cat.png", "cat.json", "cat.gif", "cat/00000.png"]


def test_a_file_that_no_run_made_is_not_replaced(photo: Path, tmp_path: Path) -> None:
    """W1: neither before the first run nor where it was changed since; a run's own results are replaced."""

    def check() -> dict[str, Path]:
        return output_files(Path("cat.mp4"), gif=True, png=True, inputs=[])

    for name in map(Path, RESULTS):
        name.parent.mkdir(exist_ok=True)
        name.write_text('{"labelme": 1}')
        with pytest.raises(ValueError, match=r"^out=cat.mp4 would replace cat.*: choose another name$"):
            check()
        name.unlink()
    for _ in range(2):
        quick(photo, out="cat.mp4", gif=True, png=True)
        assert {path.suffix for path in check().values() if path.exists()} == {".mp4", ".png", ".json", ".gif", ""}
    quick(photo, out="cat.mp4")
    check()  # what the earlier run left besides is known still
    for name in map(Path, RESULTS):
        content = name.read_bytes()
        name.write_text("[]")
        with pytest.raises(ValueError, match="would replace"):
            check()
        name.write_bytes(content)
    check()


def test_jobs_of_a_sweep_have_names_of_their_own(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W3."""
    settings = ["renderer=eulerian", "refiner=null", "frames=2", "arrows=[[20,12,26,12]]", "progress=false"]
    on_command_line(monkeypatch, "-m", f"image={photo.name}", *settings, "seed=3,4", "out=new/o.mp4")
    assert sorted(path.name for path in (tmp_path / "new").glob("*.mp4")) == ["o-0.mp4", "o-1.mp4"]
    seeds = [json.loads((tmp_path / "new" / f"o-{job}.json").read_text())["command"]["seed"] for job in (0, 1)]
    assert seeds == [3, 4]
    assert {path.name for path in tmp_path.iterdir()} == {photo.name, "new", ".cache"}


def test_a_tilde_is_the_home_folder(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W6."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    photo = photo.rename((tmp_path / "home").mkdir() or tmp_path / "home" / "p.png")
    quick("~/p.png", out="~/o.mp4")
    on_command_line(
        monkeypatch, "image=~/p.png", "out=~/c.mp4", "renderer=eulerian", "refiner=null", "arrows=[[20,12,26,12]]"
    )
    assert sorted(path.name for path in photo.parent.glob("*.mp4")) == ["c.mp4", "o.mp4"]
    assert not (tmp_path / "~").exists()


def test_the_record_repeats_the_run(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W11: with the drawing's content, and a hash of every file that was read."""
    (tmp_path / "drawn").mkdir()
    Image.new("L", (48, 36), 255).save(tmp_path / "drawn" / "lake.png")
    drawing = {"arrows": [{"path": [[20, 12], [26, 12]], "region": "é"}], "regions": {"é": "lake.png"}}
    (tmp_path / "drawn" / "a.json").write_text(json.dumps(drawing))
    settings = {"seed": 7, "frames": 3, "renderer": "eulerian", "progress": False, "out": "it's o.mp4"}
    animate(["eulerian.loop=true"], image=photo, arrows=Path("drawn/a.json"), **settings)
    first = Path("it's o.mp4").read_bytes()
    record = json.loads(Path("it's o.json").read_text())
    read = {str(photo), "drawn/lake.png"}
    assert record["sha256"] == {path: file_sha256(Path(path)) for path in read}
    (tmp_path / "drawn" / "a.json").unlink()
    Path("it's o.mp4").unlink()
    words = shlex.split(record["repeat"])
    assert words[:3] == ["python", "-m", "motionanim.animate"]
    on_command_line(monkeypatch, *words[3:])
    assert Path("it's o.mp4").read_bytes() == first
    assert json.loads(Path("it's o.json").read_text())["repeat"] == record["repeat"]


def test_the_record_has_a_hash_of_the_mask_and_of_t(photo: Path, tmp_path: Path) -> None:
    """W11."""
    Image.new("L", (48, 36), 255).save(tmp_path / "mask.png")
    settings = {"image": photo.name, "arrows": ARROW, "renderer": "eulerian", "frames": 2, "progress": False}
    masked = animate(mask="mask.png", out="a.mp4", **settings).record
    assert masked["sha256"] == {name: file_sha256(Path(name)) for name in (photo.name, "mask.png")}
    with pytest.warns(UserWarning, match="T proposes"):
        free = animate(out="b.mp4", **settings).record
    refiner = free["command"]["refiner"]
    assert free["sha256"] == {name: file_sha256(Path(name)) for name in (photo.name, refiner)}


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    """W7: also where a library makes the file anew."""
    before = os.umask(0o027)
    try:
        network = torch.nn.Linear(2, 2)
        network.config = {}
        save_network(tmp_path / "n.safetensors", network, kind="x")
        with atomic_path(tmp_path / "t.txt") as path:
            path.write_text("")
    finally:
        os.umask(before)
    assert [oct(path.stat().st_mode & 0o777) for path in sorted(tmp_path.iterdir())] == ["0o640", "0o640"]


@pytest.mark.parametrize("height", [64, 720])
def test_colours_come_back_as_the_tags_say(height: int, tmp_path: Path) -> None:
    """W8: BT.709, on both sides of the 720 lines from which players take it for granted."""
    colours = torch.tensor([[220, 30, 30], [30, 200, 40], [30, 60, 220], [230, 220, 40], [255, 255, 255], [0, 0, 0]])
    frame = colours.T[:, None, :, None].expand(3, height, 6, 64).reshape(3, height, 384).float() / 127.5 - 1
    write_video(tmp_path / "a.mp4", frame.expand(2, -1, -1, -1), 10)
    with av.open(str(tmp_path / "a.mp4")) as container:
        tags = container.streams.video[0].codec_context
        assert tags.color_range == 1, "of the file, before anything is decoded"
        picture = next(container.decode(video=0))
    assert (picture.colorspace, tags.color_primaries, tags.color_trc) == (1, 1, 1)
    planes = picture.to_ndarray(format="yuv444p").astype(float)[:, height // 2, 32::64]
    luma, blue, red = (planes - [[16], [128], [128]]) * [[255 / 219], [255 / 224], [255 / 224]]
    by_tags = np.stack([luma + 1.5748 * red, luma - 0.18732 * blue - 0.46812 * red, luma + 1.8556 * blue], axis=1)
    assert np.abs(by_tags.clip(0, 255) - colours.numpy()).max() <= 3
    read = Video(tmp_path / "a.mp4").read(np.arange(1), height=height, width=384)[0, height // 2, 32::64]
    assert np.abs(read.astype(float) - colours.numpy()).max() <= 3


@pytest.mark.parametrize("fps", [7, 24, 30, 50, 60, 120])
def test_a_gif_has_the_speed_of_its_video(fps: float, tmp_path: Path) -> None:
    """W9: browsers slow down what is shown for less than 20 ms."""
    write_gif(tmp_path / "a.gif", [Image.new("L", (8, 8), 6 * k).convert("P") for k in range(40)], fps)
    with Image.open(tmp_path / "a.gif") as gif:
        times = [picture.info["duration"] for picture in ImageSequence.Iterator(gif)]
    assert min(times) >= 20
    assert sum(times) == pytest.approx(40_000 / fps, abs=5)
    assert len(times) == 40 if fps <= 50 else len(times) < 40


def test_every_clip_has_pictures_of_its_own() -> None:
    """W5: the name of each is another's only if the clips are one."""
    clips = ["river one", "river_one", "river/one", "Fluß", "Flu", "a" * 300, "a" * 299]
    names = [_slug(clip) for clip in clips]
    assert len(set(names)) == len(clips)
    assert names[1] == "river_one"
    assert max(map(len, names)) < 100
