"""The paper's long videos (Sec. 3.4): segments that share the noisy part of one run."""

import math
from typing import Literal

import torch
from torch import Tensor

from motionanim.models.schedule import to_noise
from motionanim.sampling.split import split_at
from motionanim.sampling.video import Record, VideoModel


def fresh_noise(
    shared: Tensor,
    segments: int,
    *,
    omega: float,
    shuffle: Literal["segment", "global", "none"],
    renormalize: bool,
    generator: torch.Generator,
) -> Tensor:
    """The noise of later segments (Eq. 11): the shared noise with its frames shuffled, plus omega times fresh noise.

    Args:
        shared: n(t), (B, L, C, h, w), of unit variance.
        segments: Number of segments.
        omega: Weight of the fresh noise, at least 0.
        shuffle: Frames change places within each segment, over all segments together, or not at all.
        renormalize: Divide by sqrt(1 + omega^2), the factor by which the noise of Eq. 11 as printed is too strong.

    Returns:
        (segments, B, L, C, h, w).

    Raises:
        ValueError: If `omega` or `shuffle` is not as above.
    """
    _check_noise(omega, shuffle)
    batch, length = shared.shape[:2]
    if shuffle == "segment":
        order = torch.stack([torch.randperm(length, generator=generator) for _ in range(segments * batch)])
    elif shuffle == "global":
        order = torch.stack([torch.randperm(segments * length, generator=generator) for _ in range(batch)])
        order = (order % length).unflatten(1, (segments, length)).transpose(0, 1).flatten(0, 1)
    else:
        order = torch.arange(length).expand(segments * batch, length)
    order = order.reshape(segments, batch, length).to(shared.device)
    rows = torch.arange(batch, device=shared.device)[None, :, None]
    noise = shared[rows, order]
    if omega > 0:
        fresh = torch.randn(noise.shape, generator=generator).to(noise)
        noise = noise + omega * fresh
        if renormalize:
            noise = noise / (1 + omega**2) ** 0.5
    return noise


def _check_noise(omega: float, shuffle: str) -> None:
    if not omega >= 0:
        raise ValueError(f"omega={omega}: must be at least 0, the weight of fresh noise against the shared one")
    if shuffle not in ("segment", "global", "none"):
        raise ValueError(f"shuffle={shuffle!r}: must be 'segment', 'global' or 'none'")


def phased(
    video: VideoModel,
    *,
    gamma: float | None,
    sigma: float | None,
    omega: float,
    shuffle: Literal["segment", "global", "none"],
    renormalize: bool,
    shared_noise: Literal["segment", "image"],
    guide_later: bool,
    batch_size: int | None,
) -> tuple[Tensor, Record]:
    """The paper's method (Sec. 3.4): segment 1 runs all T steps, later segments inherit M and resample the rest.

    Later segments start from segment 1's latents at the split with reshuffled noise (Eq. 10, 11) and keep its
    condition, the input image: T + (K-1)(T-M) calls. Every segment begins at the image again, so the video is nearly a
    loop of length L. Guidance ramps within every segment, because the paper's segments are clips of their own.

    Args:
        gamma: Share of the T steps that are inherited, or null.
        sigma: Noise level at which the segments part, or null; gamma means another level on every schedule. A level
            between two steps splits one in two, so that T is one more.
        omega, shuffle, renormalize: As in `fresh_noise`.
        shared_noise: n(t) of Eq. 10: segment 1's own noise at its last inherited step, or, for one call more, the
            network's noise for the noised input image (the literal reading).
        guide_later: Guidance in phase 2 too; without, its calls cost half.
        batch_size: Segments denoised at once, at least 1: bounds the memory. None takes 2 on a CPU, where more exceed
            its caches and take up to 1.6 times as long, and 8 elsewhere.

    Raises:
        ValueError: If an option is out of range.
    """
    _check_noise(omega, shuffle)
    if batch_size is None:
        batch_size = 2 if video.condition.image_latents.device.type == "cpu" else 8
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: must be at least 1 segment, or null")
    if shared_noise not in ("segment", "image"):
        raise ValueError(f"shared_noise={shared_noise!r}: must be 'segment' or 'image'")
    sigmas, split = split_at(video.sigmas, gamma=gamma, sigma=sigma)
    length, later = video.context_length, sigmas[split:]
    segments = math.ceil(video.num_frames / length)
    literal = shared_noise == "image" and split > 0
    video.meter.expect(video.calls(sigmas) + (segments - 1) * video.calls(later) + (literal and segments > 1))
    here = video.condition_of(0, length)
    parted = video.start(length)
    noise = parted / sigmas[0].to(parted)

    def watch(step: int, z: Tensor, denoised: Tensor) -> None:
        nonlocal noise, parted
        if step == split - 1:
            noise = to_noise(z, denoised, sigmas[step].to(z).expand(len(z)))
        elif step == split:
            parted = z

    with video.meter.stage("phase 1"):
        denoise = video.denoiser(here)
        first = video.sample(denoise, parted, sigmas, watch)
    if split == len(sigmas) - 1:
        parted = first
    clips = [first]
    if segments > 1:
        with video.meter.stage("phase 2"):
            if literal:
                level = sigmas[split - 1].to(parted)
                noised = video.condition.image_latents[:, None] + level * video.noise(length)
                level = level.expand(video.batch)
                noise = to_noise(noised, denoise(noised, level), level)
            new = fresh_noise(
                noise, segments - 1, omega=omega, shuffle=shuffle, renormalize=renormalize, generator=video.generator
            )
            # Only the noise differs from segment 1's: with omega = 0 and no shuffle nothing does, to the last bit.
            for part in (parted + sigmas[split].to(parted) * (new - noise)).split(batch_size):
                denoise = video.denoiser(here.repeat(len(part)), guided=guide_later)
                clips += video.sample(denoise, part.flatten(0, 1), later).unflatten(0, part.shape[:2])
    record = video.meter.record(range(length, video.num_frames, length), split, sigmas)
    return torch.cat(clips, dim=1)[:, : video.num_frames], record
