"""Long-video methods and the networks that their tests share: one with a known answer, and the tiny random base."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from conftest import MOTION, make_condition
from on_device import awake
from torch import Tensor
from training_runs import SAMPLING

from motionanim.models.schedule import karras_sigmas
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.spectral_attention import spectral_blend
from motionanim.models.svd.windowed_attention import temporal_windows
from motionanim.sampling.animator import Animator, LongVideo
from motionanim.sampling.chained import continuous, direct, loop
from motionanim.sampling.guidance import unguided
from motionanim.sampling.phased import phased
from motionanim.sampling.queued import fifo, zigzag
from motionanim.sampling.video import VideoModel
from motionanim.sampling.windowed import freelong, freenoise, gen_l_video
from motionanim.types import Condition

L, T, N = 5, 10, 23
SCHEDULE = {"sigma_min": 0.002, "sigma_max": 700.0, "rho": 7.0}
SIGMAS = karras_sigmas(T, **SCHEDULE)
PHASED = {
    "gamma": 0.8, "sigma": None, "omega": 0.2, "shuffle": "segment", "renormalize": True, "shared_noise": "segment",
    "guide_later": True, "batch_size": 8,
}  # fmt: skip
CHAINED = {"overlap": 2, "gamma": None, "sigma": 2.0, "warm_start": False, "anchor": False}
METHODS = {
    "direct": direct,
    "phased": partial(phased, **PHASED),
    "gen_l_video": partial(gen_l_video, context_stride=3, batch_size=4),
    "freenoise": partial(freenoise, context_stride=2),
    "freelong": partial(freelong, context_stride=2, d_s=0.25, d_t=0.25),
    "fifo": partial(fifo, num_partitions=2, lookahead_denoising=True),
    "zigzag": partial(zigzag, zigzag_width=2, sigma=0.5),
    "continuous": partial(continuous, **CHAINED),
    "loop": partial(loop, **CHAINED),
}
# The same with other options: one partition, one window at a time, a warm start, the noise of the image.
VARIED = METHODS | {
    "fifo": partial(fifo, num_partitions=1, lookahead_denoising=True),
    "gen_l_video": partial(gen_l_video, context_stride=3, batch_size=1),
    "continuous": partial(continuous, **CHAINED | {"warm_start": True}),
    "loop": partial(loop, **CHAINED | {"warm_start": True}),
    "phased": partial(phased, **PHASED | {"gamma": 0.5, "shared_noise": "image", "batch_size": 2}),
}
# (z, sigma, condition, scale) to denoised latents.
Network = Callable[[Tensor, Tensor, Condition, Tensor | None], Tensor]


def condition(frames: int = N, batch: int = 1) -> Condition:
    return make_condition(batch=batch, frames=frames)


def certain(z: Tensor, sigma: Tensor, condition: Condition, scale: Tensor | None = None) -> Tensor:
    """Knows the answer: the image, plus the mean flow so far."""
    drift = torch.cat([torch.zeros_like(condition.flow[:, :1]), condition.flow], dim=1).cumsum(1).mean((2, 3, 4))
    return condition.image_latents[:, None] + drift[:, :, None, None, None]


def toy(z: Tensor, sigma: Tensor, condition: Condition, scale: Tensor | None = None) -> Tensor:
    """Knows it up to unit variance: linear in z, each frame by its own noise level."""
    level = sigma if sigma.ndim == 2 else sigma[:, None].expand(z.shape[:2])
    share = (1 / (1 + level**2)).view(*z.shape[:2], 1, 1, 1)
    return share * z + (1 - share) * certain(z, sigma, condition)


class ToyVideo(VideoModel):
    """A video of a network by itself, without VAE: images are their latents, and move by the mean flow as `certain`.

    Args:
        network: A `Network`, or a `Denoiser`.
        plain: The network without guidance, if it is another.
    """

    def __init__(
        self, condition: Condition, network: Network | Denoiser = toy, *, plain: Network | None = None, **settings
    ) -> None:
        defaults = {
            "num_frames": condition.flow.shape[1] + 1, "context_length": L, "sigmas": SIGMAS, "sampler": "euler",
            "guidance": None, "generator": torch.Generator().manual_seed(0), "progress": None,
        }  # fmt: skip
        super().__init__(condition, **defaults | settings)
        self.network, self.plain = network.eval() if isinstance(network, Denoiser) else network, plain or network

    def begin(self, latents: Tensor, start: int, length: int) -> Condition:
        new = self.condition.window(start, length)._replace(image_latents=latents)
        return new._replace(warped_latents=certain(latents, new.fps, new))

    def condition_of(self, start: int, length: int) -> Condition:
        moved = self.condition.window(0, start + 1).flow.mean((2, 3, 4)).sum(1).view(-1, 1, 1, 1)
        return self.begin(self.condition.image_latents + moved, start, length)

    def warped(self, start: int, length: int) -> Tensor:
        return self.condition_of(start, length + 1).warped_latents[:, :length]

    def rewind(self, start: int, length: int) -> Tensor:
        part = self.condition.window(start, length)
        steps = -part.flow.mean((2, 3, 4)).flip(1).cumsum(1).flip(1)[:, :, None, None, None]
        return torch.cat([part.image_latents[:, None] + steps, part.image_latents[:, None]], dim=1)

    def estimator(self, condition: Condition, *, guided: bool):
        network = self.network if guided else self.plain
        if isinstance(network, Denoiser):
            return unguided(network, condition)
        return lambda z, sigma, scale: network(z, sigma, condition, scale)

    def temporal_windows(self, stride: int):
        if isinstance(self.network, Denoiser):
            return temporal_windows(self.network, self.context_length, stride)
        return nullcontext()

    def spectral_blend(self, *, d_s: float, d_t: float):
        if isinstance(self.network, Denoiser):
            return spectral_blend(self.network, self.context_length, d_s=d_s, d_t=d_t)
        return nullcontext()

    def levels(self, steps: int) -> Tensor:
        return karras_sigmas(steps, **SCHEDULE)


def run(method, network=toy, *, frames=N, given=None, video=ToyVideo, options=None, **settings):
    """The latents and the record of a method, by its name or with its options bound."""
    method = METHODS[method] if isinstance(method, str) else method
    given = condition(frames) if given is None else given
    with torch.no_grad():
        return method(video(given, network, **{"num_frames": frames} | settings), **options or {})


def animator(base: Path, device: str = "cpu", *, motion: Mapping[str, Any] = MOTION, **sampling: Any) -> Animator:
    """Windows of 5 frames, three steps with guidance and noise on the photo; motion weights that do something."""
    sampling = {
        **SAMPLING, "num_steps": 3, "sigma_max": 80.0, "dtype": "float32", "channels_last": False, "compile": None,
    } | sampling  # fmt: skip
    torch.manual_seed(0)  # of the motion weights, which this base lacks
    made, _ = Animator.load(
        base=str(base), motion=motion, sampling=sampling, loras=[], context_length=L, device=torch.device(device)
    )
    awake(made.denoiser.motion)
    return made


def sample(
    animator: Animator, method: str | LongVideo, *, frames: int = 8, flow: Tensor | None = None, use_flow: bool = True,
    **warped: Tensor,
) -> Tensor:  # fmt: skip
    """A video of a random photo, by a method of `VARIED` or another."""
    random = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, 16, 16, generator=random) * 2 - 1
    flow = torch.randn(1, frames - 1, 2, 16, 16, generator=random) if flow is None else flow
    return animator(
        image, flow, num_frames=frames, fps=7.0, strength=torch.ones(1), use_flow=use_flow,
        mask=torch.ones(1, 1, 16, 16), long_video=VARIED.get(method, method), seed=0, progress=None, **warped,
    )[0]  # fmt: skip
