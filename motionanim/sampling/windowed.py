"""Windows over one long latent video, after others: Gen-L-Video, FreeNoise, FIFO-Diffusion."""

import math

import torch
from torch import Tensor

from motionanim.cli.progress import Progress
from motionanim.models.schedule import euler_step
from motionanim.sampling.common import Meter, Model, Record, check_frames, draw_noise, ramp
from motionanim.sampling.euler import denoise_from, initial_latents
from motionanim.types import Condition


def window_starts(num_frames: int, length: int, stride: int) -> list[int]:
    """Starts of windows of `length` frames that cover all of `num_frames` >= length, the tail window included.

    Raises:
        ValueError: If the stride leaves gaps or is below 1.
    """
    if not 1 <= stride <= length:
        raise ValueError(f"stride={stride}: must be in [1, {length}], so that windows of {length} frames leave no gap")
    starts = list(range(0, num_frames - length, stride))
    return [*starts, num_frames - length]


def gen_l_video(
    model: Model,
    condition: Condition,
    *,
    num_frames: int,
    sigmas: Tensor,
    generator: torch.Generator,
    progress: Progress | None,
    stride: int,
    batch_size: int,
) -> tuple[Tensor, Record]:
    """Gen-L-Video (Wang et al. 2023): overlapping windows are denoised apart, averaged, and stepped once: V T calls.

    Every window is conditioned on the input image, as the model was trained to begin with it.

    Args:
        stride: Frames from one window to the next, in [1, L].
        batch_size: Windows denoised at once, at least 1.

    Raises:
        ValueError: If an option is out of range.
    """
    check_frames(num_frames)
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1 window")
    length, batch, total = model.window, len(condition.fps), max(num_frames, model.window)
    meter = Meter(model, batch, progress, ramp(model, num_frames))
    starts = window_starts(total, length, stride)
    meter.expect(len(starts) * (len(sigmas) - 1))
    groups = [starts[first : first + batch_size] for first in range(0, len(starts), batch_size)]
    windows = [
        Condition(*map(torch.cat, zip(*(model.at(condition, start, length) for start in group), strict=True)))
        for group in groups
    ]
    z = initial_latents(draw_noise(condition, total, generator), sigmas)
    with meter.stage("denoise"), torch.no_grad():
        for i in range(len(sigmas) - 1):
            level, below = sigmas[i : i + 2].to(z)
            summed, counts = torch.zeros_like(z), z.new_zeros(total, 1, 1, 1)
            for group, here in zip(groups, windows, strict=True):
                parts = torch.cat([z[:, start : start + length] for start in group])
                estimates = meter.at(*group)(parts, level.expand(len(parts)), here).split(batch)
                for start, estimate in zip(group, estimates, strict=True):
                    summed[:, start : start + length] += estimate
                    counts[start : start + length] += 1
            z = euler_step(z, summed / counts, level.expand(batch), below.expand(batch))
    return z[:, :num_frames], meter.record(())


def rescheduled_noise(noise: Tensor, total: int, stride: int, generator: torch.Generator) -> Tensor:
    """FreeNoise's noise: (B, L, C, h, w) to (B, total, C, h, w), each stride a shuffle of the frames L before it."""
    length = noise.shape[1]
    frames = list(noise.unbind(1))
    for first in range(length, total, stride):
        order = torch.randperm(stride, generator=generator).tolist()
        frames += [frames[first - length + place] for place in order]
    return torch.stack(frames[:total], dim=1)


def freenoise(
    model: Model,
    condition: Condition,
    *,
    num_frames: int,
    sigmas: Tensor,
    generator: torch.Generator,
    progress: Progress | None,
    stride: int,
) -> tuple[Tensor, Record]:
    """FreeNoise (Qiu et al. 2024): all frames in one pass, from reshuffled noise, with windowed temporal attention.

    An N-frame pass counts N / L calls. Memory grows with N.

    Args:
        stride: Frames from one attention window to the next and between reshuffles, in [1, L].

    Raises:
        ValueError: If an option is out of range.
    """
    check_frames(num_frames)
    meter, length = Meter(model, len(condition.fps), progress), model.window
    total = max(num_frames, length)
    window_starts(total, length, stride)
    meter.expect((len(sigmas) - 1) * total / length)
    noise = rescheduled_noise(draw_noise(condition, length, generator), total, stride, generator)
    with meter.stage("denoise"), model.temporal_windows(length, stride):
        z = denoise_from(meter.denoise, initial_latents(noise, sigmas), sigmas, model.at(condition, 0, total))
    return z[:, :num_frames], meter.record(())


def fifo(
    model: Model,
    condition: Condition,
    *,
    num_frames: int,
    sigmas: Tensor,
    generator: torch.Generator,
    progress: Progress | None,
) -> tuple[Tensor, Record]:
    """FIFO-Diffusion (Kim et al. 2024), experimental: a queue of T frames at rising noise; each call frees one frame.

    The queue starts from one clip at the model's own length. With T <= L it is one window: T + N calls; a longer one is
    cut into ceil(T / L) windows. The model was not trained on frames of unequal noise.
    """
    check_frames(num_frames)
    length, batch, steps = model.window, len(condition.fps), len(sigmas) - 1
    meter = Meter(model, batch, progress, ramp(model, num_frames))
    if steps < 2:
        raise ValueError(f"num_steps={steps}: fifo needs at least 2, a frame of its queue for each")
    windows = math.ceil(steps / length)
    meter.expect(steps + num_frames * windows)
    with meter.stage("first clip"):
        z = initial_latents(draw_noise(condition, length, generator), sigmas)
        clip = denoise_from(meter.at(0), z, sigmas, model.at(condition, 0, length))
    # The oldest frame stands first and is the cleanest: frame i is at sigmas[T-1-i].
    levels, below = sigmas[:-1].flip(0).to(clip), sigmas[1:].flip(0).to(clip)
    places = torch.arange(steps).clamp(max=length - 1)
    queue = clip[:, places.to(clip.device)] + levels.view(-1, 1, 1, 1) * draw_noise(condition, steps, generator)
    size = math.ceil(steps / windows)
    parts = [slice(first, min(first + size, steps)) for first in range(0, steps, size)]
    frames = []
    with meter.stage("queue"), torch.no_grad():
        for out in range(num_frames):
            denoised = torch.cat(
                [
                    meter.at(out + part.start)(
                        queue[:, part],
                        levels[part].expand(batch, -1),
                        model.at(condition, out + part.start, part.stop - part.start),
                    )
                    for part in parts
                ],
                dim=1,
            )
            queue = euler_step(queue, denoised, levels.expand(batch, -1), below.expand(batch, -1))
            frames.append(queue[:, 0])
            new = initial_latents(draw_noise(condition, 1, generator), sigmas)
            queue = torch.cat([queue[:, 1:], new], dim=1)
    return torch.stack(frames, dim=1), meter.record(())
