"""What the long-video methods share: functions with one signature, a YAML each in conf/long_video.

Each takes (model, condition, *, num_frames, sigmas, generator, progress, its own options) and returns latents
(B, N, C, h, w) and a `Record`. `condition.flow` holds the motion of the whole video, (B, N-1, 2, H, W); a window sees
its part of it, and the image carried along it (`Model.at`). N is any number of frames from 2 on: whole
windows are computed and the rest is cut.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from motionanim.cli.progress import SILENT, Progress, now
from motionanim.sampling.euler import Denoise
from motionanim.types import Condition


class Model(NamedTuple):
    """What a method needs of the network."""

    denoise: Denoise  # guidance included
    unguided: Denoise
    window: int  # L, the frames it was trained on
    # As `at`, the function, with the input image carried to the first of those frames as the window's own image.
    at: Callable[[Condition, int, int], Condition]
    # Scaled latents (B, T, C, h, w) of the input image carried along the field to T frames from a first one on.
    predict: Callable[[int, int], Tensor]
    # Scaled latents of one frame (B, C, h, w) and the condition of a window: the window begins with that frame instead.
    begin: Callable[[Tensor, Condition], Condition]
    # The condition of a window of T frames: scaled latents (B, T, C, h, w) of the input image as the last of them,
    # carried against the motion.
    rewind: Callable[[Condition], Tensor]
    scaling: float  # of the VAE: condition.image_latents times this are scaled latents
    # Within this context temporal attention runs in windows of (size, stride) frames, fused: FreeNoise.
    temporal_windows: Callable[[int, int], AbstractContextManager[None]]
    # Guidance at the first and the last frame of a video, which `denoise` then takes as a fourth argument, (B, T); None
    # where it is the same for all frames.
    guidance: tuple[float, float] | None = None


class Record(NamedTuple):
    """What a video cost, and where it was split."""

    calls: float  # UNet evaluations of one window of L frames, a guidance pair counted once
    seconds: dict[str, float]  # wall time of each stage
    borders: tuple[int, ...]  # first frames of the segments after the first; none where windows melt together
    split_step: int | None = None  # M, the denoising steps that segments share
    split_sigma: float | None = None  # the noise level after them


class Meter:
    """Counts calls and times stages.

    Args:
        batch: B, clips that are made at once.
        progress: Is told of every call; None shows nothing.
        scales: Guidance of each frame of the video, (N,), as `ramp` gives it: see `at`.
    """

    def __init__(self, model: Model, batch: int, progress: Progress | None, scales: Tensor | None = None) -> None:
        self.calls, self.seconds, self._model, self._batch, self._scales = 0.0, {}, model, batch, scales
        self._progress = progress or SILENT

    def expect(self, calls: float) -> None:
        """Announce how many calls the whole video takes."""
        self._progress.expect("denoising", calls)

    def denoise(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """As a clip of its own: guidance ramps over the frames of the call."""
        return self._counted(self._model.denoise(z, sigma, condition))

    def at(self, *starts: int) -> Denoise:
        """`denoise` for windows of the video, one or more for each clip of the batch, from frames `starts` on.

        Their frames have the guidance of their place in the whole video, and that of its last frame past its end.
        """
        if self._scales is None:
            return self.denoise
        scales = self._scales

        def run(z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
            places = torch.tensor(starts)[:, None] + torch.arange(z.shape[1])
            scale = scales[places.clamp(max=len(scales) - 1)].repeat_interleave(self._batch, 0)
            return self._counted(self._model.denoise(z, sigma, condition, scale.to(z.device)))

        return run

    def unguided(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return self._counted(self._model.unguided(z, sigma, condition))

    def _counted(self, denoised: Tensor) -> Tensor:
        calls = len(denoised) / self._batch * max(1, denoised.shape[1] / self._model.window)
        self.calls += calls
        self._progress.done("denoising", calls)
        return denoised

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + now() - start

    def record(self, borders: Iterable[int], split: int | None = None, sigmas: Tensor | None = None) -> Record:
        level = None if split is None else sigmas[split].item()
        return Record(round(self.calls, 6), self.seconds, tuple(borders), split, level)


def ramp(model: Model, num_frames: int) -> Tensor | None:
    """The guidance of each frame of a video: SVD's ramp over the whole of it, at least over one window.

    A ramp that began anew in every window would make each begin less sharp than the one before has ended.
    """
    return None if model.guidance is None else torch.linspace(*model.guidance, max(num_frames, model.window))


def check_frames(num_frames: int) -> None:
    """Raises ValueError if a video of that length has no motion."""
    if num_frames < 2:
        raise ValueError(f"frames={num_frames}: a video needs at least 2 frames")


def at(condition: Condition, start: int, length: int) -> Condition:
    """The condition of frames start ... start+length-1: their flow, and as prediction the image standing still.

    Past the end of the video its last step goes on.
    """
    steps = torch.arange(start, start + length - 1).clamp(max=condition.flow.shape[1] - 1).to(condition.flow.device)
    return condition._replace(flow=condition.flow[:, steps], predicted=condition.predicted[:, :1])


def repeat(condition: Condition, times: int) -> Condition:
    """The same condition for `times` segments of every clip: (B, ...) to (times * B, ...)."""
    return Condition(*(field.repeat(times, *[1] * (field.ndim - 1)) for field in condition))


def draw_noise(condition: Condition, frames: int, generator: torch.Generator) -> Tensor:
    """Unit noise (B, frames, C, h, w), drawn on the CPU so that every device starts from the same."""
    shape = (len(condition.image_latents), frames, *condition.image_latents.shape[1:])
    return torch.randn(shape, generator=generator).to(condition.image_latents)


def phase_split(num_steps: int, gamma: float) -> int:
    """Denoising steps M that later segments inherit from segment 1 (Sec. 3.4).

    The paper prints floor brackets and says "upward rounding": rounded up, after rounding the product to 9 decimals,
    because 0.28 * 25 is 7.000000000000001 in binary.

    Args:
        num_steps: T.
        gamma: Share of the T steps inherited, in [0, 1]; 1 copies segment 1.

    Returns:
        M, in [0, T].

    Raises:
        ValueError: If gamma is outside [0, 1].

    Example:
        >>> phase_split(num_steps=25, gamma=0.8)
        20
    """
    if not 0 <= gamma <= 1:
        raise ValueError(f"gamma={gamma}: must be in [0, 1], the share of the denoising steps that segments inherit")
    return math.ceil(round(gamma * num_steps, 9))


def split_at(sigmas: Tensor, *, gamma: float | None, sigma: float | None) -> tuple[Tensor, int]:
    """Where segments part: at a share of the steps or at a noise level; exactly one is given.

    Args:
        sigmas: (T + 1,), falling to 0.
        gamma: As in `phase_split`.
        sigma: The noise level. Between two levels of the grid it becomes a level of its own, one step more: the grid of
            8 steps has 2.33 and then 0.66.

    Returns:
        The noise levels of the run, `sigmas` or one more, and M, the steps before the split. Their M-th level is the
        split; it is `sigma`, or the largest of `sigmas` where that is lower.

    Raises:
        ValueError: If both or none are given, or one is out of range.
    """
    if (gamma is None) == (sigma is None):
        raise ValueError(f"gamma={gamma}, sigma={sigma}: give one of the two, the other is then null by itself")
    if gamma is not None:
        return sigmas, phase_split(len(sigmas) - 1, gamma)
    if not sigma >= 0:
        raise ValueError(f"sigma={sigma}: must be at least 0, the noise level at which segments part")
    level = sigmas.new_tensor([sigma])
    split = int((sigmas > level).sum())
    if split == 0 or sigmas[split] == level:
        return sigmas, split
    return torch.cat([sigmas[:split], level, sigmas[split:]]), split
