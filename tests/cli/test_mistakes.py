"""Mistakes on the command lines: one line that names the setting and the remedy, and exit code 2. Settings are read."""

import re
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from in_process import run
from omegaconf import OmegaConf
from PIL import Image

from motionanim.cli.settings import lora_weights, mistyped, quoted, readable

ROOT = Path(__file__).resolve().parents[2]
ARROW = "renderer=eulerian refiner=null arrows=[[20,12,26,12]] image=photo.png "
LORA = "experiment=motion_lora logger=none "

# Program; its arguments, of which the last may hold blanks after two blanks; the line.
MISTAKES = [
    ("train", "", r"You must specify 'experiment'.* motion_lora"),
    ("train", LORA + "data=holynsky", r"Could not find 'data/holynsky' .* holynski"),
    ("train", "experiment=motion_lora logger=tensorboard", r"Could not find 'logger/tensorboard' .* csv none wandb"),
    ("train", LORA + "scael.height=64", r"^error: scael.height: no such setting; did you mean scale.height"),
    ("train", LORA + "max_steps=9", r"^error: max_steps: no such setting; did you mean .*\.max_steps"),
    ("train", LORA + "model.rank=4,16", r"Ambiguous value for argument 'model.rank=4,16'"),
    ("train", LORA + "resume", r"^error: resume: no setting; give NAME=VALUE"),
    ("train", LORA + "trainer.max_steps=ten", r"^error: trainer.max_steps=ten: must be a whole number, such as 360"),
    ("train", LORA + "trainer.precision=half", r"half"),
    ("train", LORA + "trainer.precision=bf16-true", r"trainer.precision=bf16-true: .*use 32-true, bf16-mixed"),
    ("train", LORA + "trainer.gradient_clip_val=a", r"gradient_clip_val.*a"),
    ("train", LORA + "trainer.devices=0", r"devices.*0"),
    ("train", LORA + "trainer.accumulate_grad_batches=0", r"trainer.accumulate_grad_batches=0: must be above 0"),
    ("train", LORA + "trainer.val_check_interval=0", r"^error: trainer.val_check_interval=0: must be above 0"),
    ("train", LORA + "model.lr=1e-4x", r"^error: model.lr=1e-4x: must be a number, such as 0.005"),
    ("evaluate", "n=all", r"n=all: must be at least 1 clip"),
    ("train", LORA + "seed=2**64", r"^error: seed=2\*\*64: must be a whole number from 0 to 4294967295"),
    ("train", "experiment=motion_lora ~logger", r"^error: ~logger: this command needs logger; leave that out"),
    ("train", LORA + "paths.runs=photo.png/runs", r"^error: paths.runs=photo.png/runs: .*Not a directory; choose"),
    ("train", "experiment=tiny_autoencoder logger=none scale.height=48", r"^error: model.crop=64: .* 48x128 px; set"),
    ("train", LORA + "data=folder", r"no folder of videos given: pass data.root=FOLDER"),
    ("train", LORA + "data.latents=gone", r"^error: latents=gone holds no latents.json: make latents with"),
    ("train", LORA + "data=folder data.root=/nowhere", r"/nowhere.* is not a folder"),
    ("train", LORA + "ckpt_path=gone.ckpt", r"ckpt_path=gone.ckpt: no such file; give a .ckpt file"),
    ("train", LORA + "ckpt_path=last", r"ckpt_path=last: no checkpoint under .*: give the run by run=NAME"),
    ("train", LORA + "scale.base=/nowhere", r"/nowhere"),
    ("train", LORA + "scale.height=60", r"scale.height=60, scale.width=128: must be multiples of 16"),
    ("train", LORA + "scale.buckets=true scale.bucket_multiple=8", r"bucket_multiple=8: must be a multiple of 16"),
    ("train", LORA + "scale.batch_size=many", r"scale\.batch_size=many: must be a whole number"),
    ("train", LORA + "scale.batch_size=0", "batch_size=0: must be at least 1"),
    ("train", LORA + "vram=16 scale.batch_size=0", "batch_size=0: must be at least 1"),
    ("train", LORA + "scale.buckets=true scale.bucket_clips=6", r"batch_size=4 times 1 processes must divide .*=6"),
    ("train", LORA + "data=folder data.root={some:0.5}", r"some has the weight 0.5: must be a whole number from 1"),
    ("train", "experiment=video_features scale.buckets=true logger=none", r"video_features trains at one size"),
    ("train", LORA + "model.rank=0", r"rank=0: a LoRA's rank must be at least 1"),
    ("animate", "", r"no image given: pass image=photo.jpg"),
    ("animate", "image=gone.png", r"gone.png cannot be opened: No such file"),
    ("animate", "image=run.sh", r"run.sh"),
    ("animate", ARROW + " frames=16 fps=7", r"^error: frames=16 fps=7: must be a whole number of at least 2"),
    ("animate", ARROW + "frames=16.5", r"frames=16.5: must be a whole number"),
    ("animate", ARROW + "fps=24fps", r"fps=24fps: must be from 0.1 to 1000"),
    ("animate", ARROW + "gif=yes", r"^error: gif=yes: write true or false"),
    ("animate", ARROW + "png=all", r"^error: png=all: must be true or false"),
    ("animate", ARROW + "size=720p", r"size=720p: must be photo, model, or"),
    ("animate", ARROW + "strength=fast", r"strength=fast: must be a number such as 200"),
    ("animate", ARROW + "renderer=euler", r"renderer=euler: must be diffusion or eulerian"),
    ("animate", ARROW + "control=arrows", r"^error: control=arrows: must be motion, .* or warp"),
    ("animate", ARROW + "release.moving=-1", r"^error: release.moving=-1: must be a noise level of at least 0"),
    ("animate", ARROW + "out=film.avi", r"out=film.avi: must end in .mp4"),
    ("animate", ARROW + "out=photo.mp4", r"out=photo.mp4 would replace the input photo.png: choose another name"),
    ("animate", ARROW + "out=run.mp4", r"out=run.mp4 would replace run.json, which is no record of a run"),
    ("animate", ARROW + "out=photo.png/o.mp4", r"out=photo.png/o.mp4: .*photo.png cannot be written: choose another"),
    ("animate", ARROW + "mask=gone.png", r"gone.png cannot be opened: No such file or directory; give an image file"),
    ("animate", ARROW + "arrows=gone.json", r"arrows='gone.json' cannot be read"),
    ("animate", ARROW + "arrows=[[1,2,3", r"^error: arrows=\[\[1,2,3: brackets or quotes do not match"),
    ("animate", ARROW + "arrows=[[1,2,300,4]]", r"arrows\[0\]: the point \(300, 4\) is outside the image"),
    ("animate", ARROW + "loras=lora.safetensors", r"loras=lora.safetensors: must be {file: weight, ...}, such as"),
    ("evaluate", "method=our", r"Could not find 'method/our' .* ours"),
    ("evaluate", "wandb=off", r"^error: wandb=off: write true or false"),
    ("evaluate", "seed=1.5", r"seed=1.5: must be a whole number"),
    ("prepare", "", r"root"),
    ("prepare", "root=/nowhere", r"^error: root=/nowhere is not a folder: pass one that exists$"),
    ("prepare", "root=. jsonl=gone.jsonl", r"^error: jsonl=gone.jsonl does not exist: pass the dataset's lists of"),
    ("prepare", "root=. out=photo.png", r"out=photo.png is a file: choose another folder"),
    ("prepare", "root=. out=own", r"out=own holds report.md, which no run left there: choose another folder"),
    ("prepare", "root=. engine.workers=-1", r"workers=-1: must be at least 0"),
    ("prepare", "root=. settings.frames=9", r"^error: settings.frames: no such setting; did you mean settings.*frames"),
    ("prepare", "root=. settings.max_frames=9", r"settings.max_frames=9: must be at least 16, as many as a clip has"),
    ("prepare", "root=. settings.camera_pairs=0", r"settings.camera_pairs=0: must be at least 1"),
    ("prepare", "root=. scale.fps=0", r"settings.fps=0: must be above 0"),
    ("encode", "", r"^error: out is missing: give out=..."),
    ("encode", "out=http://host/x", r"out=http://host/x: encode writes to a local folder"),
    ("encode", "out=new clips=0", r"clips=0, shard_clips=64: both must be at least 1"),
    ("encode", "out=new scale.buckets=true scale.height=48 scale.width=48 scale.bucket_multiple=12",
     r"scale.bucket_multiple=12: must be a multiple of 8 for this base"),
    ("encode", "out=new scale.height=60", r"scale.height=60, scale.width=128: must be multiples of 8"),
    ("study", "make a --out new", r"1 method folder\(s\)|a: no such folder"),
    ("study", "count gone.json v.json --out own", r"--out own holds report.md, which no run left there"),
    ("report", "own --out own", r"--out own holds report.md, which no run left there"),
    ("report", "gone --out new --strips -1", r"--strips -1: must be at least 0"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("program", "arguments", "line"), MISTAKES, ids=str)
def test_a_mistake_is_one_line_with_the_remedy(program, arguments, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    Image.fromarray(np.zeros((36, 48, 3), dtype=np.uint8)).save("photo.png")
    Path("own").mkdir()
    for name in ("run.sh", "run.json", "own/report.md"):
        Path(name).write_text("own")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    first, _, last = arguments.partition("  ")
    assert run(program, first.split() + [last] * bool(last), monkeypatch) == 2
    told = capsys.readouterr().err
    assert "Traceback" not in told
    (only,) = [each for each in told.splitlines() if each.startswith("error: ")]
    assert re.search(line, only), only
    assert {path: path.read_bytes() for path in before} == before


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("image=photo (1).png", "photo (1).png"), ("image=été.png", "été.png"), ("image=夕日.png", "夕日.png"),
        ("image=a=b.png", "a=b.png"), ("image=a,b.png", "a,b.png"), ("image=a#1.png", "a#1.png"),
        ("image=it's.png", "it's.png"), ("image=a&b.png", "a&b.png"), ("out=~/o.mp4", "/home/me/o.mp4"),
        ("frames=9", 9), ("arrows=[[1,2,3,4]]", [[1, 2, 3, 4]]), ("image='a b'", "a b"), ("seed=null", None),
        ("out=C:\\new\\(1).mp4", "C:\\new\\(1).mp4"),
    ],
)  # fmt: skip
def test_ordinary_file_names_are_read(typed, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    Path("a,b.png").touch()
    assert parsed(readable(typed)) == value


def parsed(override: str) -> object:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create().parse_override(override).value()


@pytest.mark.parametrize(
    "value",
    [
        "it's", "a\\b", "a\\", "a\\'b", "\\'", "a\\\\'b", "C:\\", '{"é, (1)": "=#"}', "", " x ", None, True, 1e-5, -3,
        ["a b", [None, 0.5]], {"a": 1, "b": "x y"},
    ],
    ids=repr,
)  # fmt: skip
def test_what_is_quoted_is_read_as_it_was(value: object) -> None:
    assert parsed(f"k={quoted(value)}") == value


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("flag=9", "true or false, such as true"), ("count=ten", "a whole number, such as 3"),
        ("count=true", "a whole number, such as 3"), ("rate=fast", "a number, such as 0.5"), ("count=4", None),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_than_the_default_is_named(word: str, told: str | None) -> None:
    defaults = OmegaConf.create({"flag": True, "count": 3, "rate": 0.5, "name": "x", "other": "${nowhere}"})
    passed = ["+new=1", "count=1,2", "other.part=1", "name=5", "rate=2"]
    assert mistyped([*passed, word], defaults) == (told and f"{word}: must be {told}")


def test_loras_may_be_given_as_text() -> None:
    for wrong in ("{a: [", [], ["a.safetensors"], *({"a.safetensors": weight} for weight in ("strong", None, True))):
        with pytest.raises(ValueError, match=r"loras=.*: must be {file: weight"):
            lora_weights(wrong)
    assert lora_weights("{lora.safetensors: 0.8}") == [("lora.safetensors", 0.8)]
    assert lora_weights({"~/a.safetensors": 1}) == [(str(Path.home() / "a.safetensors"), 1.0)]
    assert lora_weights('{"é, (1).safetensors": 1}') == [("é, (1).safetensors", 1.0)]
    assert lora_weights(None) == lora_weights({}) == []


def test_ctrl_c_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("motionanim.data.prepare.__main__.check_root", Mock(side_effect=KeyboardInterrupt))
    assert run("prepare", ["root=."], monkeypatch) == 130
    assert capsys.readouterr().err == "error: stopped by Ctrl-C; what was finished before is kept\n"
