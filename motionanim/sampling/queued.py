"""Long videos from a queue of frames at rising noise, after others: FIFO-Diffusion and the zigzag queue of MIGA.

SVD was not trained on frames of unequal noise: each frame gets its own time embedding and its own scaling. Its image
latents are concatenated to every frame; those of a window are of the input image moved to the window's first frame.
Only Euler's step is defined for such a queue.
"""

import math

import torch
from torch import Tensor

from motionanim.models.schedule import euler_step
from motionanim.sampling.split import split_at
from motionanim.sampling.video import Record, VideoModel
from motionanim.types import Condition


def fifo(video: VideoModel, *, num_partitions: int, lookahead_denoising: bool) -> tuple[Tensor, Record]:
    """FIFO-Diffusion (Kim et al., NeurIPS 2024): each round lowers the noise of T queued frames and frees the first.

    A run has T = n L steps over the range of `sampling`, whatever `sampling.num_steps`, so that the queue is n windows
    long. It starts as published, from a clip of L frames: T - L copies of its first frame, then its L frames, each at
    the noise level of its place. The first T - L frames that come out are those copies and are dropped. The rounds take
    n calls each, with lookahead 2 n: T + (N + T - L) n calls, or twice the second part.

    With lookahead a window spans L frames as well, but only its noisier half is kept, so that every frame is denoised
    behind L // 2 cleaner ones. Before the video those are copies of the first frame, which stands still there. For an
    odd L, where the authors' code is not defined, the kept half is the larger one. That half is the farther one from
    the window's image, which is its first frame, and there an image model is less sure: on the embedded base lookahead
    leaves grain. The authors' bases make videos from text, where no side is surer.

    Args:
        num_partitions: n, at least 1; more steps make the noise within a window more alike.
        lookahead_denoising: Lookahead, at twice the calls.

    Raises:
        ValueError: If an option is out of range, or the sampler is not Euler's.
    """
    _check_sampler(video, "fifo")
    if num_partitions < 1:
        raise ValueError(f"num_partitions={num_partitions}: must be at least 1 window of {video.context_length} frames")
    length, num_frames = video.context_length, video.num_frames
    sigmas = video.levels(num_partitions * length)
    steps = len(sigmas) - 1
    ahead = length // 2 if lookahead_denoising else 0
    ends = [*range(length - ahead, steps, length - ahead), steps]
    dropped = steps - length
    video.meter.expect(video.calls(sigmas) + (dropped + num_frames) * len(ends))
    with video.meter.stage("first clip"):
        denoise = video.denoiser(video.condition_of(0, length), video.ramp([0], length))
        clip = video.sample(denoise, video.start(length), sigmas)
    # The oldest frame stands first and is the cleanest: frame i is at sigmas[T-1-i]. Those before it are finished; the
    # network is told the lowest level for them, because it knows no level 0.
    levels, below = sigmas[:-1].flip(0).to(clip), sigmas[1:].flip(0).to(clip)
    told = torch.cat([levels[:1].expand(ahead), levels]).expand(video.batch, -1)
    copies = clip[:, [max(0, place) for place in range(-dropped, length)]]
    queue = copies + levels.view(-1, 1, 1, 1) * video.noise(steps)
    finished = clip[:, :1] + levels[0] * video.noise(ahead)
    frames = []
    with video.meter.stage("queue"), torch.no_grad():
        for out in range(-dropped, num_frames):
            seen, denoised = torch.cat([finished, queue], dim=1), []
            for first, end in zip([0, *ends], ends, strict=False):
                window = slice(ahead + end - length, ahead + end)
                start = out + end - length
                denoise = video.denoiser(_condition(video, start, length), video.ramp([start], length))
                denoised.append(denoise(seen[:, window], told[:, window])[:, first - end :])
            sigma, sigma_next = (level.expand(video.batch, -1) for level in (levels, below))
            queue = euler_step(queue, torch.cat(denoised, dim=1), sigma, sigma_next)
            if out >= 0:
                frames.append(queue[:, 0])
            finished = torch.cat([finished, queue[:, :1]], dim=1)[:, 1:]
            queue = torch.cat([queue[:, 1:], video.start(1)], dim=1)
    return torch.stack(frames, dim=1), video.meter.record(())


def zigzag(video: VideoModel, *, zigzag_width: int, sigma: float) -> tuple[Tensor, Record]:
    """The two-stage alignment of MIGA (Feng et al., ICML 2026), FIFO-Diffusion with less noise span in a window.

    Stage 1: the queue falls in blocks of L_zig frames of equal noise. Each round lowers the noise of all by a step,
    takes out the first block once its noise has fallen to `sigma`, and adds a block of pure noise. Stage 2: all frames
    have equal noise, as in training, and are denoised in windows. The first blocks are those of a clip of L frames,
    each noised to the level of its place.

    A window has L frames, of which the first L // 2 are kept, the last window all; the windows move by a frame in each
    round (`_windows`), as in the authors' code, so that none of their borders stays where it is.

    It leaves out MIGA's second part, dual consistency enhancement: it replaces noise that makes an unlike block, and it
    sets distant frames before a window, for which a motion field from frame to frame is not defined. It also leaves out
    the second pass from `sigma` that the authors' code makes and their paper does not describe.

    Args:
        zigzag_width: L_zig, frames of a block, in [1, L]; the authors take 4 of 16.
        sigma: Noise level at which stage 2 begins, below the largest. The authors' tau_e, 10 of 64 DDIM steps, is 0.5.

    Raises:
        ValueError: If an option is out of range, or the sampler is not Euler's.
    """
    _check_sampler(video, "zigzag")
    length, width = video.context_length, zigzag_width
    if not 1 <= width <= length:
        raise ValueError(f"zigzag_width={width}: must be in [1, {length}], frames of a block")
    sigmas, handover = split_at(video.sigmas, gamma=None, sigma=sigma)
    if handover == 0:
        raise ValueError(f"sigma={sigma}: must be below {sigmas[0]:g}, the noise level at which a run begins")
    blocks = math.ceil(max(video.num_frames, length) / width)
    known = min(length // width, handover)  # blocks of the first clip
    rounds = blocks - 1 - known + handover
    held = [width * min(known + 1 + k, handover) for k in range(rounds)]
    later = len(sigmas) - 1 - handover
    expected = sum(len(_windows(frames, length, k)) for k, frames in enumerate(held))
    expected += sum(len(_windows(blocks * width, length, k)) for k in range(later))
    video.meter.expect(video.calls(sigmas) + expected)
    with video.meter.stage("first clip"):
        denoise = video.denoiser(video.condition_of(0, length), video.ramp([0], length))
        clip = video.sample(denoise, video.start(length), sigmas)
    ages = [known - block for block in range(known)]  # steps that each block of the queue has taken
    levels = sigmas.to(clip)
    spread = levels[ages].repeat_interleave(width).view(-1, 1, 1, 1)
    queue = clip[:, : known * width] + spread * video.noise(known * width)
    made: list[Tensor] = []
    with video.meter.stage("queue"), torch.no_grad():
        for k in range(rounds + 1):
            if ages[0] == handover:
                made.append(queue[:, :width])
                queue, ages = queue[:, width:], ages[1:]
            if k == rounds:
                break
            queue, ages = torch.cat([queue, video.start(width)], dim=1), [*ages, 0]
            now, after = (levels[[age + more for age in ages]].repeat_interleave(width) for more in (0, 1))
            queue, ages = _step(video, queue, len(made) * width, now, after, k), [age + 1 for age in ages]
    z = torch.cat(made, dim=1)
    with video.meter.stage("equal noise"), torch.no_grad():
        for k, step in enumerate(range(handover, len(sigmas) - 1)):
            now, after = (levels[step + more].expand(z.shape[1]) for more in (0, 1))
            z = _step(video, z, 0, now, after, k)
    return z[:, : video.num_frames], video.meter.record(())


def _windows(total: int, length: int, offset: int) -> list[tuple[int, int]]:
    """Starts of windows of `length` frames over `total`, and how many of its first frames each keeps: all once.

    Windows are length // 2 frames apart from frame `offset` on, modulo that distance. The last one keeps all its
    frames.
    """
    stride = max(1, length // 2)
    if total <= length:
        return [(0, total)]
    offset %= stride
    if total - offset < length:
        offset = 0
    count, rest = divmod(total - offset - length, stride)
    apart = [(offset + k * stride, stride) for k in range(count)]
    windows = [(0, offset), *apart, (total - length - rest, rest), (total - length, length)]
    return [(start, kept) for start, kept in windows if kept]


def _step(video: VideoModel, z: Tensor, first: int, levels: Tensor, below: Tensor, offset: int) -> Tensor:
    """Frames `first`, ... one Euler step from noise levels (T,) to `below`, in windows."""
    levels, below = (each.expand(video.batch, -1) for each in (levels, below))
    denoised = []
    for start, kept in _windows(z.shape[1], video.context_length, offset):
        part = slice(start, start + video.context_length)
        count = z[:, part].shape[1]
        denoise = video.denoiser(video.condition_of(first + start, count), video.ramp([first + start], count))
        denoised.append(denoise(z[:, part], levels[:, part])[:, :kept])
    return euler_step(z, torch.cat(denoised, dim=1), levels, below)


def _condition(video: VideoModel, start: int, length: int) -> Condition:
    """Condition of frames [start, start + length); frames before the video stand still at frame 0."""
    if start >= 0:
        return video.condition_of(start, length)
    here = video.condition_of(0, length)
    still = torch.zeros_like(here.flow[:, :1]).expand(-1, min(-start, length - 1), -1, -1, -1)
    return here._replace(
        flow=torch.cat([still, here.flow], dim=1)[:, : length - 1],
        warped_latents=here.warped_latents[:, [max(0, start + place) for place in range(length)]],
    )


def _check_sampler(video: VideoModel, method: str) -> None:
    if video.sampler != "euler":
        raise ValueError(
            f"sampling.sampler={video.sampler}: the frames of {method}'s queue are at unequal noise levels, for which "
            "only Euler's step is defined here: set sampling.sampler=euler"
        )
