"""Where commands write: nothing that no run made is replaced, and files say what they hold."""

# ruff: noqa: F811 (tests take imported fixtures as arguments)
import json
import os
import resource
import shlex
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from photos import ARROW, _fresh, photo, quick  # noqa: F401  fixtures
from PIL import Image

from motionanim import animate as command
from motionanim.data.video import Video, write_video
from motionanim.evaluation.benchmark import EvalClip
from motionanim.evaluation.harness import _picture, _slug
from motionanim.evaluation.methods import MethodOutput
from motionanim.files import atomic_path, check_own, content_sha256, file_sha256, output_files, printable
from motionanim.media.image_io import from_uint8
from motionanim.models.weights_io import save_network

QUICK = ["renderer=eulerian", "refiner=null", "frames=2", "arrows=[[20,12,26,12]]", "progress=false"]
RESULTS = ["cat.mp4", "cat.png", "cat.json", "cat.gif", "cat.webp", "cat/00000.png"]


def on_command_line(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    GlobalHydra.instance().clear()
    monkeypatch.setattr("sys.argv", ["animate", *arguments])
    command.main()


@pytest.mark.slow
def test_a_file_that_no_run_made_is_not_replaced(photo: Path) -> None:
    """Neither before the first run nor where it was changed since; a run's own results are replaced."""

    def check() -> dict[str, Path]:
        return output_files(Path("cat.mp4"), gif=True, webp=True, png=True, inputs=[])

    for name in map(Path, RESULTS):
        name.parent.mkdir(exist_ok=True)
        name.write_text('{"labelme": 1}')
        with pytest.raises(ValueError, match=r"^out=cat.mp4 would replace cat.*: choose another name$"):
            check()
        name.unlink()
    for frames in (4, 3):
        quick(photo, out="cat.mp4", gif=True, webp=True, png=True, frames=frames)
        made = {path.suffix for path in check().values() if path.exists()}
        assert made == {".mp4", ".png", ".json", ".gif", ".webp", ""}
    assert sorted(path.name for path in Path("cat").iterdir()) == [f"{i:05}.png" for i in range(3)]
    quick(photo, out="cat.mp4")
    check()  # what the earlier run left besides is known still
    for name in map(Path, RESULTS):
        content = name.read_bytes()
        name.write_text("[]")
        with pytest.raises(ValueError, match="would replace"):
            check()
        name.write_bytes(content)
    (Path("cat") / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="would replace cat, which no run left like that"):
        check()


@pytest.mark.slow
def test_inputs_are_not_replaced(photo: Path) -> None:
    """Neither a mask file that a drawing names, in either form, nor a photo among an earlier video's frames."""
    Path("drawn").mkdir()
    Image.new("L", (48, 36), 255).save("drawn/lake.png")
    path, before = {"path": [[20, 12], [26, 12]]}, Path("drawn/lake.png").read_bytes()
    named = {"arrows": [{**path, "region": "lake"}], "regions": {"lake": "lake.png"}}
    for drawing in (named, [{**path, "region": "lake.png"}]):
        Path("drawn/a.json").write_text(json.dumps(drawing))
        with pytest.raises(ValueError, match=r"lake.mp4 would replace .*lake\.png.*: choose another name"):
            quick(photo, arrows="drawn/a.json", out="drawn/lake.mp4")
    assert Path("drawn/lake.png").read_bytes() == before
    quick(photo, arrows="drawn/a.json", out="new/lake.mp4")
    quick(photo, png=True)
    with pytest.raises(ValueError, match=r"would replace the input .*00001\.png"):
        quick(photo, arrows=[{**path, "region": "o/00001.png"}], png=True)
    photo.rename("o/00000.png")
    with pytest.raises(ValueError, match=r"would replace the input .*00000\.png"):
        quick(Path("o/00000.png"), png=True)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [0, 20_000], ids=["at the start", "in the middle"])
def test_a_full_disk_leaves_the_earlier_files(limit: int, tmp_path: Path) -> None:
    """Really refused by the system, as by a full disk: no file may have more bytes."""
    image, out = tmp_path / "photo.png", tmp_path / "new" / "o.mp4"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(image)
    quick(image, png=True, gif=True, webp=True, out=out)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(OSError, match=r"out=.*o\.mp4 is not written \(File too large\): free some space or choose"):
            quick(image, png=True, gif=True, webp=True, out=out, frames=9)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_jobs_of_a_sweep_have_names_of_their_own(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photo = photo.rename("p.png")
    on_command_line(monkeypatch, "-m", "image=p.png", *QUICK, "seed=3,4", "out=new/o.mp4")
    assert sorted(path.name for path in Path("new").glob("*.mp4")) == ["o-0.mp4", "o-1.mp4"]
    seeds = [json.loads(Path(f"new/o-{job}.json").read_text())["command"]["seed"] for job in (0, 1)]
    assert seeds == [3, 4]
    assert {path.name for path in tmp_path.iterdir()} == {"p.png", "new", ".cache"}


@pytest.mark.slow
def test_a_tilde_is_the_home_folder(photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("home").mkdir()
    photo.rename("home/p.png")
    quick("~/p.png", out="~/o.mp4")
    on_command_line(monkeypatch, "image=~/p.png", "out=~/c.mp4", *QUICK)
    assert sorted(path.name for path in Path("home").glob("*.mp4")) == ["c.mp4", "o.mp4"]
    assert not Path("~").exists()


@pytest.mark.slow
def test_the_record_repeats_the_run(photo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the drawing's content, and a hash of every file that was read."""
    Path("drawn").mkdir()
    Image.new("L", (48, 36), 255).save("drawn/lake.png")
    drawing = {"arrows": [{"path": [[20, 12], [26, 12]], "region": "é"}], "regions": {"é": "lake.png"}}
    Path("drawn/a.json").write_text(json.dumps(drawing))
    settings = {"seed": 7, "frames": 3, "renderer": "eulerian", "progress": False, "out": "it's o.mp4"}
    command.animate(["eulerian.loop=true"], image=photo, arrows=Path("drawn/a.json"), **settings)
    first, record = Path("it's o.mp4").read_bytes(), json.loads(Path("it's o.json").read_text())
    assert record["sha256"] == {name: file_sha256(Path(name)) for name in (str(photo), "drawn/lake.png")}
    Path("drawn/a.json").unlink()
    Path("it's o.mp4").unlink()
    words = shlex.split(record["repeat"])
    assert words[:3] == ["python", "-m", "motionanim.animate"]
    on_command_line(monkeypatch, *words[3:])
    assert Path("it's o.mp4").read_bytes() == first
    assert json.loads(Path("it's o.json").read_text())["repeat"] == record["repeat"]


@pytest.mark.slow
def test_the_record_has_a_hash_of_the_mask_and_of_t(photo: Path) -> None:
    Image.new("L", (48, 36), 255).save("mask.png")
    masked = quick(photo, mask="mask.png", frames=2).record
    assert masked["sha256"] == {name: file_sha256(Path(name)) for name in (str(photo), "mask.png")}
    given = {"image": photo, "arrows": ARROW, "renderer": "eulerian", "frames": 2, "out": "b.mp4"}
    with pytest.warns(UserWarning, match="T proposes"):
        free = command.animate(**given).record
    assert free["sha256"] == {name: file_sha256(Path(name)) for name in (str(photo), free["command"]["refiner"])}


def test_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    """Also where a library makes the file anew."""
    before = os.umask(0o027)
    try:
        network = torch.nn.Linear(2, 2)
        network.config = {}
        save_network("n.safetensors", network, kind="x")
        with atomic_path("t.txt") as path:
            path.write_text("")
    finally:
        os.umask(before)
    assert [oct(path.stat().st_mode & 0o777) for path in sorted(tmp_path.iterdir())] == ["0o640", "0o640"]


def test_a_folder_of_another_program_is_refused(tmp_path: Path) -> None:
    check_own(tmp_path / "new", ["a.txt"], ["mark"], option="out=")
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(ValueError, match=r"^out=.* holds a.txt, which no run left there"):
        check_own(tmp_path, ["a.txt"], ["mark"], option="out=")
    (tmp_path / "mark").write_text("")
    check_own(tmp_path, ["a.txt"], ["mark"], option="out=")
    with pytest.raises(ValueError, match="mark is a file: choose another folder"):
        check_own(tmp_path / "mark", ["a.txt"], ["mark"], option="")
    assert printable(os.fsdecode(b"a\xff.mp4")) == "a\\xff.mp4"
    before = content_sha256(tmp_path)
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert content_sha256(tmp_path) != before, "names count too"


@pytest.mark.parametrize("height", [64, 720])
def test_colours_come_back_as_the_tags_say(height: int, tmp_path: Path) -> None:
    """BT.709, on both sides of the 720 lines from which players take it for granted."""
    colours = torch.tensor([[220, 30, 30], [30, 200, 40], [30, 60, 220], [230, 220, 40], [255, 255, 255], [0, 0, 0]])
    frame = from_uint8(colours.T[:, None, :, None].expand(3, height, 6, 64).reshape(3, height, 384))
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


def test_every_clip_has_pictures_of_its_own(tmp_path: Path) -> None:
    """The name of each is another's only if the clips are one."""
    clips = ["river one", "river_one", "river/one", "Fluß", "Flu", "a" * 300, "a" * 299]
    names = [_slug(clip) for clip in clips]
    assert len(set(names)) == len(clips)
    assert names[1] == "river_one"
    assert max(map(len, names)) < 100
    frames = torch.zeros(1, 3, 8, 8)
    for clip in clips[:2]:
        shown = EvalClip(clip, frames, frames[:0, :2], frames[0, :1], (), 7.0, own_motion=True)
        _picture(tmp_path, shown, MethodOutput(frames))
    assert {kind: len(os.listdir(kind)) for kind in ("strips", "videos")} == {"strips": 2, "videos": 2}
