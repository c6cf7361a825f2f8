"""Long videos by windows over one long latent video, after others: Gen-L-Video, FreeNoise, FreeLong."""

import torch
from torch import Tensor

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
    """FreeNoise's noise: (B, L, C, h, w) to (B, total, C, h, w), each stride a shuffle of the frames L before it.

    The noise of every L frames that start at a multiple of the stride is then that of the first L, in another order.
    """
    length = noise.shape[1]
    frames = list(noise.unbind(1))
    for first in range(length, total, stride):
        order = torch.randperm(stride, generator=generator).tolist()
        frames += [frames[first - length + place] for place in order]
    return torch.stack(frames[:total], dim=1)


def freenoise(video: VideoModel, *, context_stride: int) -> tuple[Tensor, Record]:
    """FreeNoise (Qiu et al., ICLR 2024): all frames in one pass, from reshuffled noise, with attention in windows.

    Noise and attention (`temporal_windows`) are the authors'. SVD forces three differences: the noise is scaled to its
    largest sigma, the input image, moved along the field, is the condition of all frames, and frame numbers are scaled
    to those of training. A last window ends with the video, which the authors' windows leave uncovered where the
    stride does not fit. Their motion injection is for text prompts. An N-frame pass counts N / L calls. Memory grows
    with N.

    Args:
        context_stride: Frames from one attention window to the next and between reshuffles, in [1, L].

    Raises:
        ValueError: If an option is out of range.
    """
    with video.temporal_windows(context_stride):
        return _one_pass(video, context_stride)


def freelong(video: VideoModel, *, context_stride: int, d_s: float, d_t: float) -> tuple[Tensor, Record]:
    """FreeLong (Lu et al., NeurIPS 2024): all frames in one pass, attention blended by frequency (`spectral_blend`).

    It starts from FreeNoise's noise, as the authors' code. SVD forces the same differences as in `freenoise`. An
    N-frame pass counts N / L calls, though its temporal attention runs twice. Memory grows with N.

    Args:
        context_stride: Frames between reshuffles of the noise, in [1, L].
        d_s, d_t: Cut-offs of the low-pass filter in space and time, in shares of the highest frequency, at least 0.

    Raises:
        ValueError: If an option is out of range.
    """
    for name, value in (("d_s", d_s), ("d_t", d_t)):
        if not value >= 0:
            raise ValueError(f"{name}={value}: must be at least 0, a share of the highest frequency")
    with video.spectral_blend(d_s=d_s, d_t=d_t):
        return _one_pass(video, context_stride)


def _one_pass(video: VideoModel, stride: int) -> tuple[Tensor, Record]:
    """All frames at once from FreeNoise's noise."""
    length = video.context_length
    total = max(video.num_frames, length)
    window_starts(total, length, stride)
    video.meter.expect(video.calls(video.sigmas) * total / length)
    noise = rescheduled_noise(video.noise(length), total, stride, video.generator)
    with video.meter.stage("denoise"):
        denoise = video.denoiser(video.condition_of(0, total))
        z = video.sample(denoise, initial_latents(noise, video.sigmas))
    return z[:, : video.num_frames], video.meter.record(())
