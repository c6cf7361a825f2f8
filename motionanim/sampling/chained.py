"""Long videos by segments one after another: `direct`, and ours without seams, `continuous` and `loop`."""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from motionanim.sampling.samplers import Denoise, holding
from motionanim.sampling.split import split_at
from motionanim.sampling.video import Record, VideoModel


def direct(video: VideoModel) -> tuple[Tensor, Record]:
    """Clip after clip, each conditioned on the last frame of the one before: K T calls, and errors add up.

    Every clip is a run of SVD of its own: where guidance ramps, it begins anew, and so does sharpness.
    """
    length, num_frames = video.context_length, video.num_frames
    clips: list[Tensor] = []
    count = math.ceil(num_frames / length)
    video.meter.expect(count * video.calls(video.sigmas))
    for k in range(count):
        if clips:
            with video.meter.stage("condition"):
                here = video.begin(clips[-1][:, -1], k * length, length)
        else:
            here = video.condition_of(0, length)
        with video.meter.stage("denoise"):
            clips.append(video.sample(video.denoiser(here), video.start(length)))
    return torch.cat(clips, dim=1)[:, :num_frames], video.meter.record(range(length, num_frames, length))


def continuous(
    video: VideoModel, *, overlap: int, gamma: float | None, sigma: float | None, warm_start: bool, anchor: bool
) -> tuple[Tensor, Record]:
    """Ours: each segment continues the last `overlap` frames of the one before, so that there is no seam.

    A segment starts at the split, from the input image warped along the motion field to its frames, plus noise; shared
    frames are held as they are. Without a motion field a later segment starts from the last shared frame, standing
    still, and has the first one as its image: a low split leaves it less motion, a high one more and a seam.
    K = ceil((N - overlap) / (L - overlap)) segments take T-M calls each, and one more each where `sigma` lies between
    two steps.

    Args:
        overlap: Shared frames, in [1, L-1].
        gamma: Share of the T steps that later segments skip, or null.
        sigma: Noise level at which they start, or null.
        warm_start: False runs segment 1 from pure noise, all T steps, as every segment 1 without a motion field must.
        anchor: Give every frame the mean and spread of each latent channel that the image has, because small changes
            of colour and contrast from segment to segment would add up.

    Raises:
        ValueError: If an option is out of range.
    """
    levels, split = split_at(video.sigmas, gamma=gamma, sigma=sigma)
    length, num_frames = video.context_length, video.num_frames
    _check_overlap(overlap, length)
    run = _Run(video, levels[split:], overlap, warm_start, anchor)
    video.meter.expect(_calls(run, num_frames))
    latents = _chain(run, num_frames)[:, :num_frames]
    return latents, video.meter.record(range(length, num_frames, length - overlap), split, levels)


def loop(
    video: VideoModel, *, overlap: int, gamma: float | None, sigma: float | None, warm_start: bool, anchor: bool
) -> tuple[Tensor, Record]:
    """Ours: `continuous`, and a last segment that leads back: frame N would be frame 0.

    The closing segment holds its first frames at the end of the video so far, and its last ones at frames 1, 2, ... of
    the video's beginning. In between it starts from the image warped on along the field, cross-faded with the image
    warped against the field from the beginning (without a field: from the held frames, standing still), and its last
    frames are cross-faded with that start. Frame 0 is made anew too: the model makes its own first frame cleaner than
    any other, and the way back to it would be a jump. For the same reason guidance, where it ramps, is the ramp's mean
    throughout.

    Args:
        overlap, gamma, sigma, warm_start, anchor: As in `continuous`; the closing segment shares at most L/8 frames on
            either side, to have room for the way back.

    Raises:
        ValueError: If an option is out of range.
    """
    levels, split = split_at(video.sigmas, gamma=gamma, sigma=sigma)
    length, num_frames = video.context_length, video.num_frames
    _check_overlap(overlap, length)
    if length < 4:
        raise ValueError(f"scale.num_frames={length}: a loop needs windows of at least 4 frames")
    shared = min(overlap, (num_frames - 1) // 2, max(1, length // 8))
    if shared < 1:  # two frames are a loop already
        return continuous(video, overlap=overlap, gamma=gamma, sigma=sigma, warm_start=warm_start, anchor=anchor)
    span = min(length, num_frames)  # frames of the closing segment
    start = num_frames + 1 + shared - span
    run = _Run(video, levels[split:], overlap, warm_start, anchor, level_guidance=True)
    video.meter.expect(_calls(run, start + shared) + video.calls(run.later))
    chain = _chain(run, start + shared)
    tail, head = chain[:, start : start + shared], chain[:, 1 : 1 + shared]
    between = span - 2 * shared
    # After the last frame comes the beginning again, its motion too.
    flow = video.condition.flow[:, : num_frames - 1]
    circular = video.with_flow(torch.cat([flow, flow[:, -1:], flow[:, :shared]], dim=1))
    if video.has_flow:
        leaving = video.warped(start + shared, between)
        returning = circular.rewind(num_frames + 1 - between, between)  # its last frame is frame 0
    else:
        leaving, returning = (frame[:, None].expand(-1, between, -1, -1, -1) for frame in (tail[:, -1], head[:, 0]))
    share = (torch.arange(1, between + 1).to(head) / (between + 1)).view(-1, 1, 1, 1)
    estimate = torch.cat([tail, _cross_faded(leaving, returning, share), head], dim=1)
    held = torch.zeros(span, dtype=torch.bool)
    held[:shared] = held[span - shared :] = True
    closing = _segment(run._replace(video=circular), start, estimate, held)
    # The network knows the beginning only through the held frames: merge triangularly with the estimate before them.
    last = torch.arange(span - shared - min(2 * shared, between), span - shared)
    weight = (torch.arange(1, len(last) + 1).to(head) / (len(last) + 1)).view(-1, 1, 1, 1)
    closing[:, last] = _anchored(run, _cross_faded(closing[:, last], estimate[:, last], weight))
    starts = [k for k in (1, *range(length, start + shared, length - overlap), start + shared) if k < num_frames]
    first, rest = closing[:, num_frames - start], closing[:, : num_frames - start]
    latents = torch.cat([first[:, None], chain[:, 1:start], rest], dim=1)
    return latents, video.meter.record(starts, split, levels)._replace(loops=True)


class _Run(NamedTuple):
    """Settings that the segments of one video share."""

    video: VideoModel
    later: Tensor  # noise levels of a segment that starts from an estimate: from the split on
    overlap: int
    warm_start: bool
    anchor: bool
    level_guidance: bool = False  # no frame of a loop is the first: a ramp would end where it does not begin

    @property
    def stride(self) -> int:
        return self.video.context_length - self.overlap

    def segments(self, num_frames: int) -> int:
        return 1 + max(0, math.ceil((num_frames - self.video.context_length) / self.stride))

    @property
    def warm(self) -> bool:
        """Whether segment 1 starts at the split too."""
        return self.warm_start and self.video.has_flow


def _calls(run: _Run, num_frames: int) -> int:
    """Calls of `_chain`."""
    first, later = (run.video.calls(levels) for levels in (run.later if run.warm else run.video.sigmas, run.later))
    return first + (run.segments(num_frames) - 1) * later


def _chain(run: _Run, num_frames: int) -> Tensor:
    """At least `num_frames` frames of `continuous`."""
    video, length = run.video, run.video.context_length
    with video.meter.stage("segment 1"):
        denoise = video.denoiser(video.condition_of(0, length), video.ramp([0], length, level=run.level_guidance))
        if run.warm:
            z = video.warped(0, length) + run.later[0].to(video.condition.flow) * video.noise(length)
            chain = video.sample(denoise, z, run.later)
        else:
            chain = video.sample(denoise, video.start(length))
        chain = _anchored(run, chain)
    held = torch.arange(length) < run.overlap
    for k in range(1, run.segments(num_frames)):
        start = k * run.stride
        tail = chain[:, start:]
        if video.has_flow:
            ahead = video.warped(start + run.overlap, run.stride)
        else:
            ahead = tail[:, -1:].expand(-1, run.stride, -1, -1, -1)
        made = _segment(run, start, torch.cat([tail, ahead], dim=1), held)
        chain = torch.cat([chain, made[:, run.overlap :]], dim=1)
    return chain


def _segment(run: _Run, start: int, estimate: Tensor, held: Tensor) -> Tensor:
    """The segment from frame `start` on, from an estimate of its latents, noised to the split.

    Frames where `held` (T,) stay as they are.
    """
    video, length = run.video, estimate.shape[1]
    with video.meter.stage("condition"):
        if video.has_flow:
            # The estimate takes the place of the warped frames, because in a loop it knows where it must arrive.
            condition = video.condition_of(start, length)._replace(warped_latents=estimate)
        else:
            condition = video.begin(estimate[:, 0], start, length)
    with video.meter.stage("later segments"):
        z = estimate + run.later[0].to(estimate) * video.noise(length)
        stays = held.view(1, -1, 1, 1, 1).to(z.device)
        denoise: Denoise = video.denoiser(condition, video.ramp([start], length, level=run.level_guidance))
        made = video.sample(holding(denoise, estimate, stays), z, run.later)
        return torch.where(stays, estimate, _anchored(run, made))


def _anchored(run: _Run, latents: Tensor) -> Tensor:
    """Every frame with the image's mean and standard deviation in each channel (AdaIN, Huang and Belongie 2017)."""
    if not run.anchor:
        return latents
    image = run.video.condition.image_latents[:, None]
    spread, mean = torch.std_mean(latents, dim=(-2, -1), keepdim=True)
    like_spread, like_mean = torch.std_mean(image, dim=(-2, -1), keepdim=True)
    return (latents - mean) / spread.clamp_min(1e-6) * like_spread + like_mean


def _cross_faded(first: Tensor, second: Tensor, share: Tensor) -> Tensor:
    """`torch.lerp` that keeps the contrast, which the mean of two different pictures has less of than either.

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


def _check_overlap(overlap: int, length: int) -> None:
    if not 1 <= overlap < length:
        raise ValueError(f"overlap={overlap}: must be in [1, {length - 1}], frames that two segments share")
