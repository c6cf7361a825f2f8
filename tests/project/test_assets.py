"""The shipped embedded base: small, described, a pipeline that diffusers runs, an autoencoder above 30 dB."""

import json
from pathlib import Path

import pytest
import torch
from configs import _fresh_hydra, composed  # noqa: F401  the fixture clears Hydra's global state
from diffusers import StableVideoDiffusionPipeline
from torch.utils.data import default_collate

from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.models.svd.codec import Codec
from motionanim.models.svd.denoiser import Denoiser

FOLDER = Path(__file__).resolve().parents[2] / "motionanim" / "assets" / "tiny-svd"


def test_size_and_card() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 30e6
    assert {path.suffix for path in files} <= {".json", ".safetensors", ".md"}
    card = (FOLDER / "README.md").read_text()
    assert not [path for path in files if path.suffix == ".json" and "_name_or_path" in path.read_text()]
    for word in ("commit", "seed", "experiment=tiny_autoencoder", "experiment=tiny_base", "PSNR", "limits"):
        assert word in card


@pytest.mark.slow
def test_diffusers_loads_and_runs_it() -> None:
    pipeline = StableVideoDiffusionPipeline.from_pretrained(FOLDER)
    pipeline.set_progress_bar_config(disable=True)
    video = pipeline(torch.rand(1, 3, 224, 224), height=64, width=64, num_inference_steps=2, output_type="pt").frames
    assert video.shape == (1, 16, 3, 64, 64)
    assert torch.isfinite(video).all()


@pytest.mark.slow
def test_the_config_fits_the_weights_and_the_autoencoder_beats_30_db() -> None:
    cfg = composed("experiment=motion_lora")
    motion = json.loads((FOLDER / "motion" / "config.json").read_text())
    assert {k: cfg.model.motion[k] for k in motion} == motion
    codec = Codec.from_pretrained(FOLDER)
    denoiser = Denoiser.from_pretrained(FOLDER, downscale=codec.downscale, motion=motion)
    assert denoiser.unet.config.num_frames == cfg.scale.num_frames
    held_out = SyntheticClips(
        seed=1, length=8, num_frames=2, height=128, width=128, fps=7, moving_camera=0.0, split="val"
    )
    frames = default_collate([held_out[i] for i in range(8)]).frames
    latents = codec.encode(frames)
    assert latents.std() == pytest.approx(1, abs=0.25), "scaled to unit variance"
    error = (codec.decode(latents) - frames).square().mean((2, 3, 4))
    assert (10 * torch.log10(4 / error)).mean() > 30
