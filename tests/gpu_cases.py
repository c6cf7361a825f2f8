"""Inputs, networks and calls that the tests of a GPU and of the pretended one share."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from flow_runs import drifting, raft
from long_video_runs import VARIED, animator, sample
from on_device import FLOAT32, SAMPLED, noisy, sent, trained_denoiser
from torch import Tensor, nn
from torchvision.models import alexnet
from training_runs import NUMBERS

from motionanim.metrics.frame import psnr, ssim
from motionanim.metrics.frechet import frechet_distance
from motionanim.metrics.fvd import FVD
from motionanim.metrics.i3d import I3D, I3DFeatures
from motionanim.metrics.perceptual import LPIPS
from motionanim.models.flow_estimator import DisFlow
from motionanim.models.schedule import karras_sigmas
from motionanim.models.svd.codec import Codec
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.video_features import FeatureNetwork, VideoFeatures
from motionanim.motion.flow import integrate_flow, motion_strength, resize_flow, trace_back, warp
from motionanim.sampling.guidance import guided
from motionanim.sampling.samplers import euler, initial_latents
from motionanim.training.diffusion import DiffusionModule
from motionanim.training.motion_lora import MotionLoraModule

FLOAT64 = 1e-9  # 2^-53 a rounding; the root of a covariance of condition 10 loses some digits


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
    "decode in chunks": lambda codec, frames, latents: codec.decode(latents, chunk=2, context=1),
}


def coded() -> tuple[torch.Tensor, torch.Tensor]:
    """Frames and latents, for a codec."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.rand(2, 5, 3, 16, 16, generator=generator) * 2 - 1
    return frames, torch.randn(2, 5, 4, 8, 8, generator=generator)


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


def i3d(folder: Path) -> I3DFeatures:
    """With random weights that keep the size of signals."""
    torch.manual_seed(0)
    network = I3D(eps=1e-3, padding="dynamic")
    for weight in network.parameters():
        if weight.ndim > 1:
            nn.init.kaiming_normal_(weight)
    torch.save(network.state_dict(), folder / "i3d.pt")
    return I3DFeatures(folder / "i3d.pt", protocol="ours", batch=2)


class Given(NamedTuple):
    """The files that cases read."""

    base: Path
    raft_weights: Path
    folder: Path


def denoised(given: Given, device: str, *, motion: dict, **options: bool) -> Tensor:
    return estimate(trained_denoiser(given.base, **motion).to(device), device, **options)


def euler_run(given: Given, device: str) -> Tensor:
    noise, _, condition = noisy()
    sigmas = karras_sigmas(4, sigma_min=0.002, sigma_max=80.0, rho=7.0)
    z = initial_latents(noise / noise.std(), sigmas).to(device)
    denoiser = trained_denoiser(given.base).to(device)
    return euler(partial(denoiser, condition=sent(condition, device)), z, sigmas)


def recomputed_blocks(given: Given, device: str) -> list[Tensor]:
    """All gradients."""
    denoiser = trained_denoiser(given.base).train().to(device)
    denoiser.checkpoint_blocks(width=64)
    z, sigma, condition = noisy()
    denoiser(z.to(device), sigma.to(device), sent(condition, device)).square().sum().backward()
    return [parameter.grad for parameter in denoiser.parameters() if parameter.grad is not None]


def coded_part(given: Given, device: str, *, part: str) -> Tensor:
    return CODEC[part](Codec.from_pretrained(given.base).to(device), *(value.to(device) for value in coded()))


def long_video(given: Given, device: str, *, method: str) -> Tensor:
    return sample(animator(given.base, device), method)


def embedded_features(given: Given, device: str) -> Tensor:
    torch.manual_seed(0)
    network = FeatureNetwork(channels=[8, 8, 8], hidden=16, dim=4, size=32)
    for weight in network.parameters():
        if weight.ndim > 1:
            nn.init.kaiming_normal_(weight)  # keeps the size of signals: else the answers are the last bias
    return VideoFeatures(network).to(device)(clips(2, 8, 48).to(device))


def fvd(given: Given, device: str) -> list[Tensor]:
    metric = FVD(dim=6, groups=32, ddof=1).to(device)
    for features, true in ((cloud(64, 6, seed=0), False), (cloud(64, 6, seed=1, shift=0.3), True)):
        metric.update(features.to(device), (torch.arange(64) % 32).to(device), real=true)
    return list(metric.compute().values())


def frechet(given: Given, device: str) -> Tensor:
    clouds = cloud(200, 24, seed=0), cloud(200, 24, seed=1, shift=0.3, scale=1.4)
    return frechet_distance(*(value.to(device) for each in clouds for value in moments(each)))


def of_frames(_: Given, device: str, *, score: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    return score(clips(2, 3, 32).to(device), clips(2, 3, 32, seed=1).to(device))


def lpips(given: Given, device: str) -> Tensor:
    torch.manual_seed(0)
    metric = LPIPS(net="alex", backbone=alexnet(weights=None).features.eval(), batch=4).to(device)
    metric.update(clips(2, 3, 32).to(device), clips(2, 3, 32, seed=1).to(device))
    return torch.cat(
        [of_frames(given, device, score=metric.score).flatten(), *map(torch.atleast_1d, metric.compute().values())]
    )


# A function of files and a device, and the tolerance of its results.
CASES: dict[str, tuple[Callable[[Given, str], Tensor | list[Tensor]], float]] = {
    **{
        f"denoiser {kind} {options}": (partial(denoised, motion=motion, **options), FLOAT32)
        for kind, motion in {"plain": {}, "other": {"residual_std": 0.6, "motion_keys": "field"}}.items()
        for options in ({}, {"per_frame": True}, {"guide": True})
    },
    "euler": (euler_run, SAMPLED),
    "recomputed blocks": (recomputed_blocks, FLOAT32),
    **{part: (partial(coded_part, part=part), FLOAT32) for part in CODEC},
    **{method: (partial(long_video, method=method), SAMPLED) for method in VARIED},
    **{name: (lambda _, device, flow=flow: flow(smooth_flow().to(device)), FLOAT32) for name, flow in FLOW.items()},
    "i3d": (lambda given, device: i3d(given.folder).to(device)(clips(1, 9, 32).to(device)), FLOAT32),
    "embedded features": (embedded_features, FLOAT32),
    "fvd": (fvd, FLOAT64),
    "frechet": (frechet, FLOAT64),
    "psnr": (partial(of_frames, score=psnr), FLOAT32),
    "ssim": (partial(of_frames, score=ssim), FLOAT32),
    "lpips": (lpips, FLOAT32),
    "raft": (
        lambda given, device: raft(given.raft_weights, device=device)(drifting(64, (1.5, -0.6), 3).to(device)),
        FLOAT32,
    ),
    "dis": (lambda _, device: DisFlow(preset="fast", min_side=128)(drifting(64, (1.5, -0.6), 3).to(device)), 0.0),
}
TO_CPU = {"raft", "dis"}  # wherever the frames are, the flow is on the CPU
