"""Segments one after another: `direct`, and ours without seams, `continuous` and `loop`."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from motionanim.cli.progress import Progress
from motionanim.sampling.common import Meter, Model, Record, at, check_frames, draw_noise, ramp, split_at
from motionanim.sampling.euler import Denoise, denoise_from, initial_latents
from motionanim.types import Condition


def direct(
    model: Model,
    condition: Condition,
    *,
    num_frames: int,
    sigmas: Tensor,
    generator: torch.Generator,
    progress: Progress | None,
) -> tuple[Tensor, Record]:
    """Clip after clip, each conditioned on the last frame of the one before: K T calls, and errors add up.

    Every clip is a run of SVD of its own: guidance, where it ramps, begins anew, and so does sharpness.
    """
    check_frames(num_frames)
    meter, length = Meter(model, len(condition.fps), progress), model.window
    clips: list[Tensor] = []
    count = math.ceil(num_frames / length)
    meter.expect(count * (len(sigmas) - 1))
    for k in range(count):
        if clips:
            with meter.stage("condition"):
                here = model.begin(clips[-1][:, -1], at(condition, k * length, length))
        else:
            here = model.at(condition, 0, length)
        with meter.stage("denoise"):
            z = initial_latents(draw_noise(condition, length, generator), sigmas)
            clips.append(denoise_from(meter.denoise, z, sigmas, here))
    return torch.cat(clips, dim=1)[:, :num_frames], meter.record(range(length, num_frames, length))


def continuous(
    model: Model,
    condition: Condition,
    *,
    num_frames: int,
    sigmas: Tensor,
    generator: torch.Generator,
    progress: Progress | None,
    overlap: int,
    gamma: float | None,
    sigma: float | None,
    warm_start: bool,
    anchor: bool,
) -> tuple[Tensor, Record]:
    """Ours: each segment continues the last `overlap` frames of the one before, so that there is no seam.

    A segment starts at the split from the image carried along the motion field to its frames, plus noise; shared frames
    are held at what they are. Without a motion field a later segment starts from the last shared frame, standing still,
    and has the first as its image: a low split leaves it less motion, a high one more and a seam. K segments, K =
    ceil((N - overlap) / (L - overlap)), of T-M calls each, and one more each where `sigma` lies between two steps.

    Args:
        overlap: Shared frames, in [1, L-1].
        gamma: Share of the T steps that later segments skip, or null.
        sigma: Noise level at which they start, or null.
        warm_start: False runs segment 1 from pure noise, all T steps, as every segment 1 without a motion field must.
        anchor: Give every frame the mean and spread of each latent channel that the image has: small changes of colour
            and contrast from segment to segment would otherwise add up.

    Raises:
        ValueError: If an option is out of range.
    """
    check_frames(num_frames)
    levels, split = split_at(sigmas, gamma=gamma, sigma=sigma)
    _check_overlap(overlap, model.window)
    meter = Meter(model, len(condition.fps), progress, ramp(model, num_frames))
    run = _Run(model, meter, condition, sigmas, levels[split:], overlap, generator, warm_start, anchor)
    meter.expect(_calls(run, num_frames))
    video = _chain(run, num_frames)
    borders = range(model.window, num_frames, model.window - overlap)
    return video[:, :num_frames], meter.record(borders, split, levels)


def loop(
    model: Model,
    condition: Condition,
    *,
    num_frames: int,
    sigmas: Tensor,
    generator: torch.Generator,
    progress: Progress | None,
    overlap: int,
    gamma: float | None,
    sigma: float | None,
    warm_start: bool,
    anchor: bool,
) -> tuple[Tensor, Record]:
    """Ours: `continuous`, and a last segment that leads back: frame N would be frame 0.

    The closing segment holds its first frames at the end of the video so far, and its last at frames 1, 2, ... of the
    video's beginning. In between it starts from the image carried on along the field, cross-faded with the image
    carried against the field from the beginning (without a field: from the held frames, standing still), and its last
    frames are cross-faded with that start. Frame 0 is among those made anew: as the model's own first frame it is
    cleaner than any other, and the way back to it would be a jump. For the same reason guidance, where it ramps, is
    the ramp's mean throughout.

    Args:
        overlap, gamma, sigma, warm_start, anchor: As in `continuous`; the closing segment shares at most L/8 frames on
            either side, to have room for the way back.
    """
    check_frames(num_frames)
    levels, split = split_at(sigmas, gamma=gamma, sigma=sigma)
    length = model.window
    _check_overlap(overlap, length)
    # No frame of a loop is the first: a ramp would end where it does not begin.
    mean = None if model.guidance is None else torch.tensor([sum(model.guidance) / 2])
    meter = Meter(model, len(condition.fps), progress, mean)
    if length < 4:
        raise ValueError(f"scale.num_frames={length}: a loop needs windows of at least 4 frames")
    shared = min(overlap, (num_frames - 1) // 2, max(1, length // 8))
    if shared < 1:  # two frames are a loop already
        return continuous(
            model, condition, num_frames=num_frames, sigmas=sigmas, generator=generator, progress=progress,
            overlap=overlap, gamma=gamma, sigma=sigma, warm_start=warm_start, anchor=anchor,
        )  # fmt: skip
    span = min(length, num_frames)  # frames of the closing segment
    start = num_frames + 1 + shared - span
    run = _Run(model, meter, condition, sigmas, levels[split:], overlap, generator, warm_start, anchor)
    meter.expect(_calls(run, start + shared) + len(run.later) - 1)
    video = _chain(run, start + shared)
    tail, head = video[:, start : start + shared], video[:, 1 : 1 + shared]
    between = span - 2 * shared
    # After the last frame comes the beginning again, its motion too.
    flow = condition.flow[:, : num_frames - 1]
    circular = condition._replace(flow=torch.cat([flow, flow[:, -1:], flow[:, :shared]], dim=1))
    if condition.use_flow.all():
        leaving = model.predict(start + shared, between)
        returning = model.rewind(at(circular, num_frames + 1 - between, between))  # its last frame is frame 0
    else:
        leaving, returning = (frame[:, None].expand(-1, between, -1, -1, -1) for frame in (tail[:, -1], head[:, 0]))
    share = (torch.arange(1, between + 1).to(head) / (between + 1)).view(-1, 1, 1, 1)
    estimate = torch.cat([tail, _cross_faded(leaving, returning, share), head], dim=1)
    held = torch.zeros(span, dtype=torch.bool)
    held[:shared] = held[span - shared :] = True
    closing = _segment(run, circular, start, estimate, held)
    # The network knows the beginning only through the held frames: merge triangularly with what leads up to them.
    last = torch.arange(span - shared - min(2 * shared, between), span - shared)
    weight = (torch.arange(1, len(last) + 1).to(head) / (len(last) + 1)).view(-1, 1, 1, 1)
    closing[:, last] = _anchored(run, _cross_faded(closing[:, last], estimate[:, last], weight))
    borders = [b for b in (1, *range(length, start + shared, length - overlap), start + shared) if b < num_frames]
    first, rest = closing[:, num_frames - start], closing[:, : num_frames - start]
    return torch.cat([first[:, None], video[:, 1:start], rest], dim=1), meter.record(borders, split, levels)


class _Run(NamedTuple):
    """What the segments of one video share."""

    model: Model
    meter: Meter
    condition: Condition
    sigmas: Tensor  # of a segment from pure noise
    later: Tensor  # of one from an estimate: from the split on
    overlap: int
    generator: torch.Generator
    warm_start: bool
    anchor: bool

    @property
    def stride(self) -> int:
        return self.model.window - self.overlap

    def segments(self, num_frames: int) -> int:
        return 1 + max(0, math.ceil((num_frames - self.model.window) / self.stride))

    @property
    def warm(self) -> bool:
        """Whether segment 1 starts at the split too."""
        return self.warm_start and bool(self.condition.use_flow.all())


def _calls(run: _Run, num_frames: int) -> int:
    """Of `_chain`."""
    first = run.later if run.warm else run.sigmas
    return len(first) - 1 + (run.segments(num_frames) - 1) * (len(run.later) - 1)


def _chain(run: _Run, num_frames: int) -> Tensor:
    """At least `num_frames` frames of `continuous`."""
    model, condition, length = run.model, run.condition, run.model.window
    stride, count = run.stride, run.segments(num_frames)
    with run.meter.stage("segment 1"):
        here, noise = model.at(condition, 0, length), draw_noise(condition, length, run.generator)
        if run.warm:
            z = model.predict(0, length) + run.later[0].to(noise) * noise
            video = denoise_from(run.meter.at(0), z, run.later, here)
        else:
            video = denoise_from(run.meter.at(0), initial_latents(noise, run.sigmas), run.sigmas, here)
        video = _anchored(run, video)
    held = torch.arange(length) < run.overlap
    for k in range(1, count):
        start = k * stride
        tail = video[:, start:]
        if condition.use_flow.all():
            ahead = model.predict(start + run.overlap, stride)
        else:
            ahead = tail[:, -1:].expand(-1, stride, -1, -1, -1)
        made = _segment(run, condition, start, torch.cat([tail, ahead], dim=1), held)
        video = torch.cat([video, made[:, run.overlap :]], dim=1)
    return video


def _segment(run: _Run, whole: Condition, start: int, estimate: Tensor, held: Tensor) -> Tensor:
    """The segment from frame `start` on, from an estimate of its latents, noised to the split.

    Frames where `held` (T,) stay as they are.
    """
    with run.meter.stage("condition"):
        if whole.use_flow.all():
            # The estimate, which in a loop knows where it must arrive, is what is predicted.
            condition = run.model.at(whole, start, estimate.shape[1])._replace(predicted=estimate)
        else:
            condition = run.model.begin(estimate[:, 0], at(whole, start, estimate.shape[1]))
    with run.meter.stage("later segments"):
        z = estimate + run.later[0].to(estimate) * draw_noise(condition, estimate.shape[1], run.generator)
        stays = held.view(-1, 1, 1, 1).to(z.device)
        denoise = holding(run.meter.at(start), estimate, stays)
        made = denoise_from(denoise, z, run.later, condition)
        return torch.where(stays, estimate, _anchored(run, made))


def _anchored(run: _Run, video: Tensor) -> Tensor:
    """Every frame with the image's mean and standard deviation in each channel (AdaIN, Huang and Belongie 2017)."""
    if not run.anchor:
        return video
    image = (run.condition.image_latents * run.model.scaling)[:, None]
    spread, mean = torch.std_mean(video, dim=(-2, -1), keepdim=True)
    like_spread, like_mean = torch.std_mean(image, dim=(-2, -1), keepdim=True)
    return (video - mean) / spread.clamp_min(1e-6) * like_spread + like_mean


def _cross_faded(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """`torch.lerp` that keeps the contrast: where two pictures differ, their mean has less than either.

    In windows of 5 x 5 latents the deviation from the local mean gets the variance that the two have on average
    (variance-preserving blending, Heitz and Neyret 2018); at most twice its own, that of two unrelated pictures.
    """

    def local(video: Tensor) -> tuple[Tensor, Tensor]:
        frames = video.flatten(0, 1)
        mean, square = (F.avg_pool2d(part, 5, 1, 2, count_include_pad=False) for part in (frames, frames.square()))
        return mean.view_as(video), (square - mean.square()).view_as(video).clamp_min(0)

    mixed = torch.lerp(first, second, share)
    mean, variance = local(mixed)
    wanted = torch.lerp(local(first)[1], local(second)[1], share)
    return mean + (mixed - mean) * (wanted / variance.clamp_min(1e-6)).clamp(1, 2).sqrt()


def holding(denoise: Denoise, known: Tensor, where: Tensor) -> Denoise:
    """A denoiser that knows part of the answer: its estimate is `known` where `where` (broadcast over z) is true.

    Latents there that start as known + sigma * noise then stay on the line to `known` at every noise level.
    """

    def run(z: Tensor, sigma: Tensor, condition: Condition, *scale: Tensor) -> Tensor:
        return torch.where(where, known, denoise(z, sigma, condition, *scale))

    return run


def _check_overlap(overlap: int, length: int) -> None:
    if not 1 <= overlap < length:
        raise ValueError(f"overlap={overlap}: must be in [1, {length - 1}], frames that two segments share")
