"""Long videos by windows over one long latent video, after others: Gen-L-Video, FreeNoise, FIFO-Diffusion."""

import math

import torch
from torch import Tensor

from motionanim.models.schedule import euler_step
from motionanim.sampling.samplers import initial_latents
from motionanim.sampling.video import Record, VideoModel
from motionanim.types import Condition


def window_starts(num_frames: int, length: int, stride: int) -> list[int]:
    """Starts of windows of `length` frames that cover all of `num_frames` >= length, the tail window included.

    Raises:
        ValueError: If the stride leaves gaps or is below 1.
    """
    if not 1 <= stride <= length:
        raise ValueError(
            f"context_stride={stride}: must be in [1, {length}], so that windows of {length} frames leave no gap"
        )
    starts = list(range(0, num_frames - length, stride))
    return [*starts, num_frames - length]


def gen_l_video(video: VideoModel, *, context_stride: int, batch_size: int) -> tuple[Tensor, Record]:
    """Gen-L-Video (Wang et al. 2023): overlapping windows are denoised apart, averaged, and stepped once: V T calls.

    Every window is conditioned on the input image, because the model was trained to begin with its image. All windows'
    contexts are in memory at once, about 35 MB a window at SVD's size.

    Args:
        context_stride: Frames from one window to the next, in [1, L].
        batch_size: Windows denoised at once, at least 1.

    Raises:
        ValueError: If an option is out of range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1 window")
    length, total = video.context_length, max(video.num_frames, video.context_length)
    starts = window_starts(total, length, context_stride)
    video.meter.expect(len(starts) * video.calls(video.sigmas))
    groups = [starts[first : first + batch_size] for first in range(0, len(starts), batch_size)]
    conditions = [Condition.cat([video.condition_of(start, length) for start in group]) for group in groups]

    def averaged(z: Tensor, sigma: Tensor) -> Tensor:
        summed, counts = torch.zeros_like(z), z.new_zeros(total, 1, 1, 1)
        for group, denoise in zip(groups, denoisers, strict=True):
            parts = torch.cat([z[:, start : start + length] for start in group])
            estimates = denoise(parts, sigma.repeat(len(group))).split(video.batch)
            for start, estimate in zip(group, estimates, strict=True):
                summed[:, start : start + length] += estimate
                counts[start : start + length] += 1
        return summed / counts

    z = video.start(total)
    with video.meter.stage("denoise"):
        denoisers = [
            video.denoiser(condition, video.ramp(group, length))
            for group, condition in zip(groups, conditions, strict=True)
        ]
        z = video.sample(averaged, z)
    return z[:, : video.num_frames], video.meter.record(())


def rescheduled_noise(noise: Tensor, total: int, stride: int, generator: torch.Generator) -> Tensor:
    """FreeNoise's noise: (B, L, C, h, w) to (B, total, C, h, w), each stride a shuffle of the frames L before it."""
    length = noise.shape[1]
    frames = list(noise.unbind(1))
    for first in range(length, total, stride):
        order = torch.randperm(stride, generator=generator).tolist()
        frames += [frames[first - length + place] for place in order]
    return torch.stack(frames[:total], dim=1)


def freenoise(video: VideoModel, *, context_stride: int) -> tuple[Tensor, Record]:
    """FreeNoise (Qiu et al. 2024): all frames in one pass, from reshuffled noise, with windowed temporal attention.

    An N-frame pass counts N / L calls. Memory grows with N.

    Args:
        context_stride: Frames from one attention window to the next and between reshuffles, in [1, L].

    Raises:
        ValueError: If an option is out of range.
    """
    length = video.context_length
    total = max(video.num_frames, length)
    window_starts(total, length, context_stride)
    video.meter.expect(video.calls(video.sigmas) * total / length)
    noise = rescheduled_noise(video.noise(length), total, context_stride, video.generator)
    with video.meter.stage("denoise"), video.temporal_windows(context_stride):
        denoise = video.denoiser(video.condition_of(0, total))
        z = video.sample(denoise, initial_latents(noise, video.sigmas))
    return z[:, : video.num_frames], video.meter.record(())


def fifo(video: VideoModel) -> tuple[Tensor, Record]:
    """FIFO-Diffusion (Kim et al. 2024), experimental: a queue of T frames at rising noise; each call frees one frame.

    The queue starts from one clip at the model's own length. With T <= L it is one window: T + N calls; a longer one is
    cut into ceil(T / L) windows. The model was not trained on frames of unequal noise.

    Raises:
        ValueError: If T is below 2, or the sampler is not Euler's.
    """
    length, batch, sigmas, steps = video.context_length, video.batch, video.sigmas, len(video.sigmas) - 1
    if video.sampler != "euler":
        raise ValueError(
            f"sampling.sampler={video.sampler}: the frames of fifo's queue are at unequal noise levels, for which only "
            "Euler's step is defined here: set sampling.sampler=euler"
        )
    if steps < 2:
        raise ValueError(f"num_steps={steps}: fifo needs at least 2, a frame of its queue for each")
    windows = math.ceil(steps / length)
    video.meter.expect(steps + video.num_frames * windows)
    with video.meter.stage("first clip"):
        z = video.start(length)
        clip = video.sample(video.denoiser(video.condition_of(0, length), video.ramp([0], length)), z)
    # The oldest frame stands first and is the cleanest: frame i is at sigmas[T-1-i].
    levels, below = sigmas[:-1].flip(0).to(clip), sigmas[1:].flip(0).to(clip)
    places = torch.arange(steps).clamp(max=length - 1)
    queue = clip[:, places.to(clip.device)] + levels.view(-1, 1, 1, 1) * video.noise(steps)
    size = math.ceil(steps / windows)
    parts = [slice(first, min(first + size, steps)) for first in range(0, steps, size)]
    frames = []
    with video.meter.stage("queue"), torch.no_grad():
        for out in range(video.num_frames):
            denoised = []
            for part in parts:
                start, count = out + part.start, part.stop - part.start
                denoise = video.denoiser(video.condition_of(start, count), video.ramp([start], count))
                denoised.append(denoise(queue[:, part], levels[part].expand(batch, -1)))
            queue = euler_step(queue, torch.cat(denoised, dim=1), levels.expand(batch, -1), below.expand(batch, -1))
            frames.append(queue[:, 0])
            queue = torch.cat([queue[:, 1:], video.start(1)], dim=1)
    return torch.stack(frames, dim=1), video.meter.record(())
