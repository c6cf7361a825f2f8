"""Merged pipeline folders and folders for a hub: what is in them, and that diffusers and this project load them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import MOTION, make_condition
from diffusers import StableVideoDiffusionPipeline
from loras import add_random_lora
from safetensors.torch import load_file

from motionanim.interchange import main
from motionanim.models.svd.bases import motion_config
from motionanim.models.svd.codec import Codec
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.interchange.pipelines import hub_folder, merge_pipeline
from motionanim.models.svd.lora import load_lora, merge_lora, save_lora
from motionanim.models.svd.tiny import save_pipeline

STRONG = MOTION | {"median_strength": 0.02}


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder with motion weights that act, a licence, and a LoRA beside it."""
    folder = tmp_path_factory.mktemp("merging") / "pipeline"
    save_pipeline(folder, base=base)
    denoiser = Denoiser.from_pretrained(base, downscale=2, motion=STRONG)
    torch.nn.init.constant_(denoiser.motion.warped.weight, 0.01)
    denoiser.save_motion(folder)
    (folder / "LICENSE.md").write_text("Share alike.\n")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# a base\n")
    add_random_lora(denoiser.unet, alpha=6)
    save_lora(denoiser.unet, folder.parent / "lora.safetensors")
    return folder


def denoiser_of(folder: Path, lora: Path | None = None, weight: float = 1.0) -> Denoiser:
    denoiser = Denoiser.from_pretrained(folder, downscale=2, motion=STRONG)
    if lora is not None:
        load_lora(denoiser.unet, lora, weight=weight)
        merge_lora(denoiser.unet)
    return denoiser


@torch.no_grad()
def output(denoiser: Denoiser) -> torch.Tensor:
    z = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    return denoiser(z, torch.tensor([1.0, 5.0]), make_condition())


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("float16", 5e-3)])
def test_a_merged_folder_acts_as_base_and_lora(trained: Path, tmp_path: Path, dtype: Any, tolerance: float) -> None:
    lora = trained.parent / "lora.safetensors"
    expected = output(denoiser_of(trained, lora, 0.5))
    assert (expected - output(denoiser_of(trained))).abs().max() > 2 * tolerance
    merge_pipeline(str(trained), tmp_path / "merged", loras=[(str(lora), 0.5)], dtype=dtype)
    torch.testing.assert_close(output(denoiser_of(tmp_path / "merged")), expected, atol=tolerance, rtol=0)
    assert motion_config(tmp_path / "merged") == STRONG
    variant = ".fp16" if dtype == "float16" else ""
    for part, stem in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("image_encoder", "model"),
    ):
        tensors = load_file(tmp_path / "merged" / part / f"{stem}{variant}.safetensors")
        assert {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()} == {getattr(torch, dtype)}
    theirs = StableVideoDiffusionPipeline.from_pretrained(
        tmp_path / "merged", variant="fp16" if variant else None, torch_dtype=torch.float32
    )
    ours = denoiser_of(tmp_path / "merged").unet.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.unet.state_dict().items())
    codec = Codec.from_pretrained(tmp_path / "merged")
    for name, value in Codec.from_pretrained(trained).state_dict().items():
        torch.testing.assert_close(codec.state_dict()[name], value, atol=1e-3, rtol=1e-3)
    assert (tmp_path / "merged" / "LICENSE.md").read_text() == "Share alike.\n"
    assert not [path for path in (tmp_path / "merged").rglob("*.json") if "_name_or_path" in path.read_text()]


def settings(base: Path, **model: Any) -> dict[str, Any]:
    return {
        "name": "motion_lora", "seed": 3, "model": {"base": str(base), "lr": 3e-5, **model},
        "trainer": {"max_steps": 500, "precision": "bf16-mixed"}, "scale": {"batch_size": 4, "num_frames": 25},
    }  # fmt: skip


@pytest.mark.slow
def test_the_hub_folder_of_a_lora_has_both_layouts_and_a_card(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "lora.safetensors").write_bytes((trained.parent / "lora.safetensors").read_bytes())
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings(trained, rank=4, alpha=6)))
    hub_folder(tmp_path, tmp_path / "hub")
    assert {path.name for path in (tmp_path / "hub").iterdir()} == {
        "README.md", "LICENSE.md", "lora.safetensors", "lora_comfyui.safetensors",
    }  # fmt: skip
    expected = output(denoiser_of(trained, tmp_path / "lora.safetensors"))
    for name in ("lora.safetensors", "lora_comfyui.safetensors"):
        torch.testing.assert_close(output(denoiser_of(trained, tmp_path / "hub" / name)), expected, atol=1e-5, rtol=0)
    card = (tmp_path / "hub" / "README.md").read_text()
    _, front, text = card.split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "apache-2.0"
    assert "lora" in yaml.safe_load(front)["tags"]
    for row in ("| rank | 4 |", "| alpha | 6 |", "| steps | 500 |", "| batch size | 4 |", "| learning rate | 3e-05 |"):
        assert row in text
    assert "Base: `pipeline`" in text
    assert str(tmp_path) not in card
    assert str(trained) not in card


@pytest.mark.slow
def test_the_hub_folder_of_a_pipeline_has_its_motion_weights(trained: Path, base: Path, tmp_path: Path) -> None:
    (tmp_path / "pipeline").symlink_to(trained)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings(base, trainable="literal")))
    hub_folder(tmp_path, tmp_path / "hub")
    torch.testing.assert_close(output(denoiser_of(tmp_path / "hub")), output(denoiser_of(trained)), atol=0, rtol=0)
    assert (tmp_path / "hub" / "motion" / "motion.safetensors").is_file()
    assert (tmp_path / "hub" / "unet" / "diffusion_pytorch_model.fp16.safetensors").is_file()
    card = (tmp_path / "hub" / "README.md").read_text()
    assert "| trainable | literal |" in card
    assert "Stability AI" in card, "a base that states no licence gets the note"
    assert "license: other" in card


@pytest.mark.slow
def test_the_command_writes_and_refuses(
    trained: Path, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, out = str(trained.parent / "lora.safetensors"), str(tmp_path / "comfyui.safetensors")
    convert = ["lora", lora, "--base", str(trained), "--layout", "comfyui", "--out", out]
    assert main(convert) == 0
    assert capsys.readouterr().out == f"written: {out}\n"
    assert main(convert) == 2
    assert capsys.readouterr().err == f"error: {out} is there already and is kept: give another name, or remove it\n"
    merged = tmp_path / "merged"
    assert main(["merge", str(trained), "--lora", f"{lora}=0.5", "--lora", out, "--out", str(merged)]) == 0
    assert "| `lora.safetensors` | 0.5 |\n| `comfyui.safetensors` | 1 |" in (merged / "README.md").read_text()
    for wrong, words in (
        (["merge", str(trained), "--lora", f"{lora}=much", "--out", "x"], "the weight must be a number"),
        (["merge", str(tmp_path / "none"), "--out", str(tmp_path / "x")], "none"),
        (["hub", str(tmp_path), "--out", str(tmp_path / "x")], "has no config.yaml"),
        (["check-base", str(tmp_path / "none")], "no such folder"),
    ):
        assert main(wrong) == 2
        assert words in (message := capsys.readouterr().err)
        assert message.count("\n") == 1
        assert not (tmp_path / "x").exists()
    (tmp_path / "config.yaml").write_text(json.dumps(settings(base)))
    assert main(["hub", str(tmp_path), "--out", str(tmp_path / "x")]) == 2
    assert "neither lora.safetensors nor pipeline" in capsys.readouterr().err
