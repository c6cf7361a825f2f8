"""Inputs, networks and calls that the tests of a GPU and of the pretended one share."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import MOTION
from on_device import awake, noisy, sent
from torch import Tensor, nn
from training_runs import NUMBERS, SAMPLING

from motionanim.metrics.fvd import FVD
from motionanim.metrics.i3d import I3D, I3DFeatures
from motionanim.models.svd.denoiser import Denoiser
from motionanim.motion.flow import integrate_flow, motion_strength, resize_flow, trace_back, warp
from motionanim.sampling.animator import Animator
from motionanim.sampling.chained import continuous, direct, loop
from motionanim.sampling.guidance import guided
from motionanim.sampling.phased import phased
from motionanim.sampling.queued import fifo, zigzag
from motionanim.sampling.windowed import freelong, freenoise, gen_l_video
from motionanim.training.diffusion import DiffusionModule
from motionanim.training.motion_lora import MotionLoraModule

CHAINED = {"overlap": 2, "gamma": None, "sigma": 2.0, "warm_start": True, "anchor": False}
PHASED = {
    "gamma": 0.5, "sigma": None, "omega": 0.2, "shuffle": "segment", "renormalize": True, "shared_noise": "image",
    "guide_later": True, "batch_size": 2,
}  # fmt: skip
LONG_VIDEO = {
    "direct": direct, "fifo": partial(fifo, num_partitions=1, lookahead_denoising=True),
    "zigzag": partial(zigzag, zigzag_width=2, sigma=0.5),
    "freelong": partial(freelong, context_stride=2, d_s=0.25, d_t=0.25),
    "gen_l_video": partial(gen_l_video, context_stride=3, batch_size=1),
    "freenoise": partial(freenoise, context_stride=2), "continuous": partial(continuous, **CHAINED),
    "loop": partial(loop, **CHAINED), "phased": partial(phased, **PHASED),
}  # fmt: skip
METHODS = [pytest.param(m, marks=[] if m in ("direct", "phased") else pytest.mark.slow) for m in LONG_VIDEO]


def clips(batch: int, frames: int, side: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, frames, 3, side, side, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def smooth_flow(steps: int = 4) -> Tensor:
    """A vortex and a source of a few px per frame, in which trace_back takes each of its ways."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, 24), torch.linspace(-1, 1, 32), indexing="ij")
    still = (x.abs() + y.abs() < 0.4).float()
    fields = torch.stack([torch.stack([-y, x]), torch.stack([x + 0.3, y])]) * 2.5 * (1 - still)
    return fields[:, None].expand(-1, steps, -1, -1, -1) * torch.linspace(1, 0.7, steps).view(-1, 1, 1, 1)


FLOW = {
    "warp": lambda flow: warp(clips(2, 1, 32)[:, 0, :, :24].to(flow), flow[:, 0]),
    "integrate_flow": integrate_flow,
    "trace_back": trace_back,
    "motion_strength": motion_strength,
    "resize_flow": lambda flow: resize_flow(flow, 17, 9),
}


@torch.no_grad()
def estimate(denoiser: Denoiser, device: str, *, per_frame: bool = False, guide: bool = False) -> torch.Tensor:
    z, sigma, condition = noisy(per_frame)
    z, sigma, condition = z.to(device), sigma.to(device), sent(condition, device)
    if not guide:
        return denoiser(z, sigma, condition)
    return guided(denoiser, condition, first=1.0, last=3.0, motion=1.5)(z, sigma)


CODEC = {
    "encode": lambda codec, frames, latents: codec.encode(frames),
    "embed_image": lambda codec, frames, latents: codec.embed_image(frames[:, 0]),
    "warp_image": lambda codec, frames, latents: codec.warp_image(frames[:, 0], 3 * frames[:, 1:, :2]),
    "decode": lambda codec, frames, latents: codec.decode(latents),
}


def coded() -> tuple[torch.Tensor, torch.Tensor]:
    """Frames and latents, for a codec."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(2, 5, 3, 16, 16, generator=generator) * 2 - 1
    return frames, torch.randn(2, 5, 4, 8, 8, generator=generator)


def animator(base: Path, device: str, **sampling) -> Animator:
    """Windows of 5 frames, three steps with guidance and noise on the photo."""
    sampling = {
        **SAMPLING, "num_steps": 3, "sigma_max": 80.0, "dtype": "float32", "channels_last": False, "compile": None,
    } | sampling  # fmt: skip
    torch.manual_seed(0)  # of the motion weights, which this base lacks
    made, _ = Animator.load(
        base=str(base), motion=MOTION, sampling=sampling, loras=[], context_length=5, device=torch.device(device)
    )
    awake(made.denoiser.motion)
    return made


def sample(animator: Animator, method: str) -> Tensor:
    """A video of 8 frames."""
    random = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, 16, 16, generator=random) * 2 - 1
    return animator(
        image, torch.randn(1, 7, 2, 16, 16, generator=random), num_frames=8, fps=7.0, strength=torch.ones(1),
        use_flow=True, mask=torch.ones(1, 1, 16, 16), long_video=LONG_VIDEO[method], seed=0, progress=None,
    )[0]  # fmt: skip


def lora(base: Path, **changes) -> MotionLoraModule:
    torch.manual_seed(0)
    return MotionLoraModule(rank=4, alpha=4, base=str(base), **NUMBERS | changes)


def whole(base: Path, **changes) -> DiffusionModule:
    torch.manual_seed(0)
    return DiffusionModule(trainable="all", base=str(base), **NUMBERS | changes)


def cloud(count: int, dim: int, seed: int, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    """Features (count, dim) float64 of a normal distribution."""
    spread = torch.linspace(1, 3, dim, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    return shift + scale * spread * torch.randn(count, dim, generator=generator, dtype=torch.float64)


def moments(features: Tensor) -> Sequence[Tensor]:
    return features.mean(0), torch.cov(features.T)


def metric() -> FVD:
    return FVD(dim=6, groups=32, ddof=1)


def i3d(folder: Path) -> I3DFeatures:
    """With random weights that keep the size of signals."""
    torch.manual_seed(0)
    network = I3D(eps=1e-3, padding="dynamic")
    for weight in network.parameters():
        if weight.ndim > 1:
            nn.init.kaiming_normal_(weight)
    torch.save(network.state_dict(), folder / "i3d.pt")
    return I3DFeatures(folder / "i3d.pt", protocol="ours", batch=2)
