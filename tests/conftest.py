"""Real classes at tiny size: one random pipeline folder a session, made by the code that makes the embedded base.

Large libraries are imported where they are used: the process that hands tests to workers imports this file too.
"""

import gc
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from torch import Tensor

    from motionanim.models.svd.codec import Codec
    from motionanim.models.svd.denoiser import Denoiser
    from motionanim.types import ClipBatch, Condition

gc.disable()  # until all is imported, a sixth of whose time it would take
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MOTIONANIM_WEIGHTS"] = str(Path(__file__).with_name("no_weights"))  # whatever has been downloaded here
os.environ["OMP_NUM_THREADS"] = "1"  # of the commands that tests start, which share the cores

VAE = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [32, 32],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    "mid_block_add_attention": False,
    "layers_per_block": 1,
    "latent_channels": 4,
    "sample_size": 16,
    "scaling_factor": 0.5,
}
UNET = {
    "sample_size": 8,
    "in_channels": 8,
    "out_channels": 4,
    "num_frames": 5,
    "block_out_channels": [32, 64],
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"],
    "layers_per_block": 1,
    "num_attention_heads": [2, 4],
    "cross_attention_dim": 16,
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 48,
}
CLIP = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "patch_size": 56,
    "image_size": 224,
    "projection_dim": 16,
}
MOTION = {
    "channels": 8,
    "motion_field": True,
    "motion_keys": "latents",
    "motion_strength": True,
    "warped_latent": True,
    "residual_std": None,
    "median_strength": 0.01,
}


def pytest_collection_finish() -> None:
    gc.freeze()  # what is imported stays: no later collection need look at it
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    import torch

    # Several test processes share the cores, and more threads than cores are slower.
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real clips for tests, beside the checkout; tests that need them skip without."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("needs the folder of real clips beside the checkout")
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete random SVD pipeline folder: 16 x 16 px, 8 x 8 latents, 5 frames."""
    return random_base(tmp_path_factory.mktemp("tiny") / "pipeline", UNET)


def random_base(folder: Path, unet: dict) -> Path:
    import torch

    from motionanim.models.svd.tiny import build_pipeline, save_pipeline

    pipeline = build_pipeline(seed=0, vae=VAE, unet=unet, image_encoder=CLIP)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        pipeline.unet.conv_out.reset_parameters()  # zero in a new base, which would hide the rest of the network
    save_pipeline(folder, pipeline=pipeline)
    return folder


@pytest.fixture(scope="session")
def raft_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of RAFT (small)."""
    import torch
    from torchvision.models.optical_flow import raft_small

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("raft") / "random.pth"
    torch.save(raft_small(weights=None).state_dict(), path)
    return path


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each device, computing in float32 proper."""
    from on_device import on

    with on(request.param) as name:
        yield name


@pytest.fixture
def close(record_property: Callable[[str, object], None]) -> Callable[..., None]:
    """`check_close(got, expected, tolerance)`, recorded."""
    from on_device import check_close

    return partial(check_close, record_property)


@pytest.fixture
def codec(base: Path) -> "Codec":
    from motionanim.models.svd.codec import Codec

    return Codec.from_pretrained(base)


@pytest.fixture
def denoiser(base: Path) -> "Denoiser":
    import torch

    from motionanim.models.svd.denoiser import Denoiser

    torch.manual_seed(0)
    return Denoiser.from_pretrained(base, downscale=2, motion=MOTION)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Three methods that could be told apart by size, rate, length, shape or codec."""
    from PIL import Image
    from study_runs import CLIPS, METHODS, write_clip

    root = tmp_path_factory.mktemp("methods")
    looks = [
        {"height": 64, "width": 96},
        {"height": 96, "width": 128, "fps": 12, "frames": 15},
        {"height": 80, "width": 120, "fps": 7, "frames": 10, "codec": "mpeg4"},
    ]
    for method, look in zip(METHODS, looks):
        for clip in CLIPS:
            write_clip(root / method / f"{clip}.mp4", method=method, **look)
    (root / "photos").mkdir()
    for clip in CLIPS:
        Image.new("RGB", (150, 100), (200, 120, 40)).save(root / "photos" / f"{clip}.png")
    return root


@pytest.fixture(scope="session")
def study(folders, tmp_path_factory):
    from study_runs import make

    out = tmp_path_factory.mktemp("study") / "study"
    make(folders, out, "--image-folder", folders / "photos", "--checks", 1, "--seed", 3)
    return out


@pytest.fixture(scope="session")
def given_folders(tmp_path_factory) -> Path:
    from given_folders import write_folders

    folder = tmp_path_factory.mktemp("given")
    write_folders(folder)
    return folder


@pytest.fixture
def root(given_folders: Path, tmp_path: Path) -> Path:
    """Folders of true and made videos, as `write_folders` has them."""
    return shutil.copytree(given_folders, tmp_path, dirs_exist_ok=True)


def free_port() -> int:
    """A port on which nothing listens, below those that the system gives to other programs before it is used."""
    while True:
        port = 10000 + secrets.randbelow(20000)
        with socket.socket() as server, suppress(OSError):
            server.bind(("127.0.0.1", port))
            return port


def make_condition(batch: int = 2, frames: int = 5, seed: int = 0, **changes: "Tensor") -> "Condition":
    """A random condition for the tiny base, everything on."""
    import torch

    from motionanim.types import Condition

    generator = torch.Generator().manual_seed(seed)
    condition = Condition.blank(batch, frames, latents=(4, 8, 8), pixels=(16, 16), embed_width=16)
    return condition._replace(
        image_latents=torch.randn(batch, 4, 8, 8, generator=generator),
        image_embed=torch.randn(batch, 1, 16, generator=generator),
        warped_latents=torch.randn(batch, frames, 4, 8, 8, generator=generator),
        flow=torch.randn(batch, frames - 1, 2, 16, 16, generator=generator),
        motion_strength=torch.rand(batch, generator=generator) + 0.1,
        fps=torch.full((batch,), 7.0),
        noise_aug=torch.full((batch,), 0.02),
    )._replace(**changes)


def make_batch(batch: int = 2, frames: int = 5, seed: int = 0, position: int = 0) -> "ClipBatch":
    """Random clips for the tiny base."""
    import torch

    from motionanim.types import ClipBatch

    generator = torch.Generator().manual_seed(seed)
    return ClipBatch(
        frames=torch.rand(batch, frames, 3, 16, 16, generator=generator) * 2 - 1,
        flow=torch.randn(batch, frames - 1, 2, 16, 16, generator=generator),
        fps=torch.full((batch,), 7.0),
        position=torch.arange(position, position + batch),
    )
