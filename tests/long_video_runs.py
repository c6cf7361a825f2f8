"""Long-video methods and the denoisers that their tests share: one with a known answer, and the tiny random base."""

from contextlib import nullcontext
from functools import partial

import torch
from conftest import make_condition
from torch import Tensor

from motionanim.models.schedule import karras_sigmas
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.windowed_attention import temporal_windows
from motionanim.sampling.chained import continuous, direct, loop
from motionanim.sampling.common import Model, at
from motionanim.sampling.phased import phased
from motionanim.sampling.windowed import fifo, freenoise, gen_l_video
from motionanim.types import Condition

L, T, N = 5, 10, 23
SIGMAS = karras_sigmas(T, sigma_min=0.002, sigma_max=700.0, rho=7.0)
PHASED = {
    "gamma": 0.8, "sigma": None, "omega": 0.2, "shuffle": "segment", "renormalize": True, "shared_noise": "segment",
    "guide_later": True, "batch_size": 8,
}  # fmt: skip
CHAINED = {"overlap": 2, "gamma": None, "sigma": 2.0, "warm_start": False, "anchor": False}
METHODS = {
    "direct": direct,
    "phased": partial(phased, **PHASED),
    "gen_l_video": partial(gen_l_video, stride=3, batch_size=4),
    "freenoise": partial(freenoise, stride=2),
    "fifo": fifo,
    "continuous": partial(continuous, **CHAINED),
    "loop": partial(loop, **CHAINED),
}


def condition(frames: int = N, batch: int = 1) -> Condition:
    return make_condition(batch=batch, frames=frames)


def certain(z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """Knows the answer: the image, plus the mean flow so far."""
    drift = torch.cat([torch.zeros_like(condition.flow[:, :1]), condition.flow], dim=1).cumsum(1).mean((2, 3, 4))
    return condition.image_latents[:, None] + drift[:, :, None, None, None]


def toy(z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
    """Knows it up to unit variance: linear in z, each frame by its own noise level."""
    level = sigma if sigma.ndim == 2 else sigma[:, None].expand(z.shape[:2])
    share = (1 / (1 + level**2)).view(*z.shape[:2], 1, 1, 1)
    return share * z + (1 - share) * certain(z, sigma, condition)


def begin(frame: Tensor, part: Condition) -> Condition:
    new = part._replace(image_latents=frame)
    return new._replace(predicted=certain(frame, part.fps, new))


def window(whole: Condition, start: int, length: int) -> Condition:
    """As `at`, its image where `certain` knows the first of those frames to be."""
    return begin(
        whole.image_latents + at(whole, 0, start + 1).flow.mean((2, 3, 4)).sum(1).view(-1, 1, 1, 1),
        at(whole, start, length),
    )


def rewind(part: Condition) -> Tensor:
    """As `certain` moves: by the mean flow."""
    steps = -part.flow.mean((2, 3, 4)).flip(1).cumsum(1).flip(1)[:, :, None, None, None]
    return torch.cat([part.image_latents[:, None] + steps, part.image_latents[:, None]], dim=1)


def predicting(model: Model, whole: Condition) -> Model:
    """`model` for one video: what it predicts is `certain`."""
    return model._replace(predict=lambda start, length: window(whole, start, length + 1).predicted[:, :length])


def toy_model() -> Model:
    return Model(toy, toy, L, window, None, begin, rewind, 1.0, lambda size, stride: nullcontext())


def real_model(denoiser: Denoiser) -> Model:
    return Model(denoiser.eval(), denoiser, L, window, None, begin, rewind, 1.0, partial(temporal_windows, denoiser))


def run(method, *, model=None, frames=N, seed=0, given=None, sigmas=SIGMAS, progress=None, **options):
    method = METHODS[method] if isinstance(method, str) else method
    given = condition(frames) if given is None else given
    with torch.no_grad():
        return method(
            predicting(model or toy_model(), given), given, num_frames=frames, sigmas=sigmas,
            generator=torch.Generator().manual_seed(seed), progress=progress, **options,
        )  # fmt: skip
