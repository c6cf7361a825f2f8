"""One video to be made, as the long-video methods see it.

A long-video method is a function of a `VideoModel` and its own options, a YAML each in conf/long_video. It returns
latents (B, N, C, h, w) and a `Record`. N is any number of frames from 2 on: whole windows are computed and the rest is
cut.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple, Self

import torch
from torch import Tensor

from motionanim.cli.memory import phase
from motionanim.cli.progress import SILENT, Progress, now
from motionanim.sampling.guidance import Estimate
from motionanim.sampling.moving.release import Release
from motionanim.sampling.samplers import SAMPLERS, Denoise, Watch, initial_latents, sampler_calls
from motionanim.sampling.split import split_at
from motionanim.types import Condition


class Record(NamedTuple):
    """The cost of a video, and where it was split."""

    calls: float  # UNet evaluations of one window of L frames, a guidance pair counted once
    seconds: dict[str, float]  # wall time of each stage
    segment_starts: tuple[int, ...]  # first frames of the segments after the first; none where windows overlap
    split_step: int | None = None  # M, the denoising steps that segments share
    split_sigma: float | None = None  # the noise level after them
    loops: bool = False  # whether the last frame leads back to the first


class Meter:
    """Counts calls of the network and times stages; None as progress shows nothing."""

    def __init__(self, progress: Progress | None) -> None:
        self.calls, self.seconds, self._progress = 0.0, {}, progress or SILENT

    def expect(self, calls: float) -> None:
        """Announce how many calls the whole video takes."""
        self._progress.expect("denoising", calls)

    def count(self, calls: float) -> None:
        self.calls += calls
        self._progress.done("denoising", calls)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = now()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + now() - start

    def record(self, segment_starts: Iterable[int], split: int | None = None, sigmas: Tensor | None = None) -> Record:
        level = None if split is None else sigmas[split].item()
        return Record(round(self.calls, 6), self.seconds, tuple(segment_starts), split, level)


class VideoModel(ABC):
    """One video to be made: its motion and noise levels, and the network, asked through the abstract methods.

    Args:
        condition: Of the whole video: its flow is (B, N-1, 2, H, W).
        num_frames: N, at least 2.
        context_length: L, the frames of one pass, as in training.
        sigmas: Noise levels of a whole run, (S + 1,), falling to 0.
        sampler: A name in `SAMPLERS`.
        guidance: Of the first and the last frame of a video; None where it is the same for all frames.
        generator: Of all noise.
        progress: Counts the calls of the network; None shows nothing.
        release: Holds the video at the warped image down to noise levels; None leaves the motion to the network.

    Raises:
        ValueError: If N is below 2.
    """

    def __init__(
        self,
        condition: Condition,
        *,
        num_frames: int,
        context_length: int,
        sigmas: Tensor,
        sampler: str,
        guidance: tuple[float, float] | None,
        generator: torch.Generator,
        progress: Progress | None,
        release: Release | None = None,
    ) -> None:
        if num_frames < 2:
            raise ValueError(f"frames={num_frames}: a video needs at least 2 frames")
        self.condition, self.num_frames, self.context_length = condition, num_frames, context_length
        for level in release or ():
            sigmas, _ = split_at(sigmas, gamma=None, sigma=level)
        self.sigmas, self.sampler, self.guidance, self.generator = sigmas, sampler, guidance, generator
        self.release = release
        self.meter = Meter(progress)

    @property
    def batch(self) -> int:
        """B, the clips that are made at once."""
        return len(self.condition.fps)

    @property
    def has_flow(self) -> bool:
        """Whether the motion field of every clip is given."""
        return self.release is not None or bool(self.condition.use_flow.all())

    @abstractmethod
    def condition_of(self, start: int, length: int) -> Condition:
        """Condition of frames [start, start + length); its image is the input image warped to frame `start`."""

    @abstractmethod
    def begin(self, latents: Tensor, start: int, length: int) -> Condition:
        """Condition of frames [start, start + length); its image is the frame decoded from `latents` (B, C, h, w)."""

    @abstractmethod
    def warped(self, start: int, length: int) -> Tensor:
        """(B, length, C, h, w) latents of the input image warped to frames [start, start + length)."""

    @abstractmethod
    def rewind(self, start: int, length: int) -> Tensor:
        """(B, length, C, h, w) latents of frames [start, start + length) of which the last is the input image."""

    @abstractmethod
    def estimator(self, condition: Condition, *, guided: bool) -> Estimate:
        """The network under a condition, whose context is computed once, here."""

    @abstractmethod
    def temporal_windows(self, stride: int) -> AbstractContextManager[None]:
        """Within, temporal attention runs in windows of L frames, `stride` frames apart: FreeNoise."""

    @abstractmethod
    def spectral_blend(self, *, d_s: float, d_t: float) -> AbstractContextManager[None]:
        """Within, temporal attention blends that over all frames with that over L near ones: FreeLong.

        Args:
            d_s, d_t: Cut-offs of its low-pass filter in space and time, in shares of the highest frequency.
        """

    @abstractmethod
    def levels(self, steps: int) -> Tensor:
        """Noise levels (steps + 1,) of a whole run of `steps` steps, by the schedule of `sigmas`."""

    def with_flow(self, flow: Tensor) -> Self:
        """The same video with another flow (B, any, 2, H, W); both are counted together."""
        other = copy.copy(self)
        other.condition = self.condition._replace(flow=flow)
        return other

    def denoiser(self, condition: Condition, scale: Tensor | None = None, *, guided: bool = True) -> Denoise:
        """The network under a condition as a function of latents and noise levels; every call is counted.

        Args:
            scale: (B, T) guidance of each frame, as `ramp` returns it; None ramps over the frames of each call.
        """
        estimate = self.estimator(condition, guided=guided)

        def run(z: Tensor, sigma: Tensor) -> Tensor:
            with phase("denoising"):
                denoised = estimate(z, sigma, scale)
            self.meter.count(len(z) / self.batch * max(1, z.shape[1] / self.context_length))
            return denoised

        return run if self.release is None else self.release.holding(run, condition)

    def ramp(self, starts: Iterable[int], length: int, *, level: bool = False) -> Tensor | None:
        """Guidance of windows of `length` frames from frames `starts` on, B clips each: (len(starts) * B, length).

        SVD's ramp goes over the whole video, or over L frames if it is shorter. If it began anew in every window, each
        window would begin less sharp than the one before has ended. Frames past the end have that of the last, frames
        before the start that of the first.

        Args:
            level: The ramp's mean for all frames.
        """
        if self.guidance is None:
            return None
        scales = torch.linspace(*self.guidance, max(self.num_frames, self.context_length))
        if level:
            scales = torch.tensor([sum(self.guidance) / 2])
        places = torch.tensor(list(starts))[:, None] + torch.arange(length)
        scale = scales[places.clamp(0, len(scales) - 1)].repeat_interleave(self.batch, 0)
        return scale.to(self.condition.flow.device)

    def sample(self, denoise: Denoise, z: Tensor, sigmas: Tensor | None = None, watch: Watch | None = None) -> Tensor:
        """Latents at sigma 0 from `z` at sigmas[0]; `sigmas` is the tail of a run, or None for a whole run."""
        return SAMPLERS[self.sampler](denoise, z, self.sigmas if sigmas is None else sigmas, watch)

    def calls(self, sigmas: Tensor) -> int:
        """Calls of the network that `sample` takes for one window."""
        steps = len(sigmas) - 1
        held = 0 if self.release is None else int((sigmas[:-1] > self.release.first).sum())
        # Heun's second call of the last held step is below the release.
        return sampler_calls(self.sampler, steps - held) + (self.sampler == "heun" and 0 < held < steps)

    def noise(self, frames: int) -> Tensor:
        """Unit noise (B, frames, C, h, w), drawn on the CPU so that every device starts from the same."""
        image = self.condition.image_latents
        return torch.randn((len(image), frames, *image.shape[1:]), generator=self.generator).to(image)

    def start(self, frames: int) -> Tensor:
        """(B, frames, C, h, w): pure noise at the start of a run."""
        return initial_latents(self.noise(frames), self.sigmas)
