"""The commands of the documents for full scale run in their order at tiny size, each on what the ones before left."""

import hashlib
import json
import re
import runpy
import shlex
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from configs import ROOT
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from layouts import write_hdvila, write_holynski
from PIL import Image
from safetensors.torch import load_file
from small_svd import save_small_svd

from motionanim.models.svd import bases
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.interchange import whole

HUB = "stabilityai/stable-video-diffusion-img2vid-xt"
SIZE = ["scale.num_frames=4", "scale.height=64", "scale.width=64", "scale.motion_channels=8"]
TRAIN = [
    *SIZE, "scale.precision=32-true", "scale.batch_size=2", "scale.num_workers=0", "trainer.accelerator=cpu",
    "trainer.max_steps=2", "trainer.val_check_interval=2", "trainer.limit_val_batches=1", "scale.num_steps=1",
    "sampling.dtype=float32", "logger=csv",
]  # fmt: skip
SAMPLE = [*SIZE, "sampling.dtype=float32", "sampling.num_steps=2"]
TINY = {  # by the words that tell the command
    "motionanim.data.prepare": [*SIZE, "settings.max_camera_speed=1000", "engine.workers=0"],
    "experiment=diffusion": [*TRAIN, "callbacks.preview.clips=1", "model.lr=0.01"],
    "experiment=motion_lora": [*TRAIN, "callbacks.preview.clips=1", "callbacks.camera.clips=1", "model.lr=0.01"],
    "experiment=flow_refiner": [
        *TRAIN, "model.refiner.width=8", "model.refiner.depth=4", "model.discriminator.width=8",
        "callbacks.pictures.pairs=1",
    ],
    "motionanim.animate": [*SAMPLE, "frames=7", "long_video.gamma=0.5", "progress=false"],
    "evaluate.py": [
        *SAMPLE, "n=1", "long_video.overlap=1", "benchmark.reading.num_frames=7", "show=1", "wandb=false",
        "metrics.required=[]", "reference_rows=[real]",
    ],
}  # fmt: skip


def commands(document: str, heading: str = "# ") -> list[list[str]]:
    """The commands in a document's blocks of bash, of one section or of all, as the shell splits them."""
    text = (ROOT / document).read_text(encoding="utf-8").partition(f"{heading}")[2]
    section = text if heading == "# " else text.partition("\n## ")[0]
    blocks = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def tiny(command: list[str], raft: Path) -> list[str]:
    """The settings that make a command of the documents quick; none for other tools' files."""
    told = " ".join(command)
    given = list(next((settings for kind, settings in TINY.items() if kind in told), []))
    if "flow_estimator=raft" in command:  # what the download would bring, and no GPU
        sha256 = hashlib.sha256(raft.read_bytes()).hexdigest()
        given += [f"flow_estimator.{key}" for key in (
            "device=cpu", "variant=small", f"weights={raft}", f"sha256={sha256}", "updates=1"
        )]  # fmt: skip
    return given


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the data sets, a photo, and a small SVD where the download puts it and in the hub's cache."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)

    def clip(number: int, frames: int) -> torch.Tensor:
        coarse = torch.rand(1, 3, 8, 8 + frames, generator=generator) * 2 - 1
        wide = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bicubic").clamp(-1, 1)[0]
        return torch.stack([wide[..., k : k + 64] for k in range(frames)])

    videos = {f"video{k}": [clip(k, 12)] for k in range(3)}
    jsonl, clips = write_hdvila(tmp_path / "hdvila", videos, fps=14)
    clips.rename(tmp_path / "hdvila" / "clips")
    jsonl.rename(tmp_path / "hdvila" / "hdvila_part0.jsonl")
    (tmp_path / "holynski").mkdir()
    for k in (1, 2, 990):  # above 979 they validate
        flow = torch.full((2, 32, 32), 0.5 + 0.1 * (k % 5))
        write_holynski(tmp_path / "holynski", f"{k:05}_00000", clip(k, 4), flow, fps=30)
    Image.new("RGB", (320, 240), (90, 140, 60)).save(tmp_path / "photo.jpg")
    save_small_svd(tmp_path / "svd")
    record = {"source": HUB, "files": {}, "parts": {}}
    for part in ("image_encoder", "unet", "vae"):
        (file,) = (tmp_path / "svd" / part).glob("*.safetensors")
        shapes = {name: list(tensor.shape) for name, tensor in load_file(file).items()}
        record["parts"][part] = {
            "weights": file.name.partition(".")[0], "layers_sha256": whole.layers_sha256(shapes)
        }  # fmt: skip
    for path in (tmp_path / "svd").rglob("*.*"):
        known = {"size": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        name = str(path.relative_to(tmp_path / "svd"))
        record["files"] |= {name: known, name.replace(".fp16", ""): known}
    (tmp_path / "published.json").write_text(json.dumps(record))
    monkeypatch.setattr(whole, "PUBLISHED", tmp_path / "published.json")
    cached = tmp_path / "hub" / f"models--{HUB.replace('/', '--')}"
    shutil.copytree(tmp_path / "svd", cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    bases._from_hub.cache_clear()
    return tmp_path


def carry_out(command: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command in this process; its exit code."""
    assert command[0] == "python"
    module = command[1] == "-m"
    monkeypatch.setattr("sys.argv", command[2:] if module else command[1:])
    try:
        if module:
            runpy.run_module(command[2], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(str(ROOT / command[1]), run_name="__main__")
    except SystemExit as end:
        return end.code or 0
    finally:
        GlobalHydra.instance().clear()
    return 0


@pytest.mark.long
@pytest.mark.slow
def test_every_command_of_full_scale_runs_on_what_the_ones_before_left(workplace, raft_weights, monkeypatch, capfd):
    ran = set()
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)  # composes once more to look for a setting
    for command in (*commands("README.md", "## Full scale"), *commands("docs/full_scale.md")):
        if command[:2] == ["hf", "download"]:
            assert command[2] == HUB
            assert command[command.index("--local-dir") + 1] == "svd", "the folder that the next command takes"
            continue
        code = carry_out([*command, *tiny(command, raft_weights)], monkeypatch)
        out, err = capfd.readouterr()
        assert code == 0, f"{shlex.join(command)}\n{out[-3000:]}{err[-3000:]}"
        assert "An error occurred" not in out + err
        ran.add(" ".join(command[1:3]) if command[1] == "-m" else command[1])
    assert ran == {
        "train.py", "evaluate.py", "-m motionanim.animate", "-m motionanim.data.prepare", "-m motionanim.interchange",
        "-m motionanim.export",
    }  # fmt: skip
    for folder, base in (("merged", "runs/diffusion/paper/pipeline"), ("my-base", "runs/diffusion/paper/pipeline")):
        settings = bases.motion_config(base)
        assert settings["channels"] == 8
        assert bases.motion_config(folder) == settings
        loaded, origin = (
            Denoiser.from_pretrained(each, downscale=8, motion=settings).motion.state_dict() for each in (folder, base)
        )
        assert all(torch.equal(loaded[name], value) for name, value in origin.items())
        assert any(value.abs().max() > 0 for name, value in origin.items() if "strength" in name), "trained"
    for folder in ("merged", "my-base", "my-lora"):
        assert (workplace / folder / "README.md").read_text().startswith("---\nlicense: ")
