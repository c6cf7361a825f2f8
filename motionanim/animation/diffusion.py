"""The diffusion model as a renderer: it works at its own size in the photo's shape, and the video has the photo's size.

The photo in motion (`animation.moving_photo`) is the model's prediction, and exists at full size too. A frame of the
video shows it wherever the model agrees with its prediction, as sharp as the photo, and the model's own frame
elsewhere.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from motionanim.animation.moving_photo import PIXEL, Flowing, Photo, Scene, photo_frames
from motionanim.cli.progress import SILENT, Progress
from motionanim.motion.flow import motion_strength
from motionanim.motion.kinds import swept
from motionanim.sampling.animator import Animator, LongVideo
from motionanim.sampling.moving.release import Release
from motionanim.sampling.video import Record

AGREES = 0.15  # difference from the prediction, in [-1, 1], at which the photo's share has fallen to 1/e


class Rendered(NamedTuple):
    """A video of the model, and its prediction."""

    sample: Tensor  # (N, 3, h, w) in [-1, 1], decoded
    prediction: Tensor | None  # (N, 3, h, w), through the same decoder; None unless `compared`
    record: Record


def render(
    animator: Animator,
    scene: Scene,
    *,
    num_frames: int,
    fps: float,
    strength: Tensor | None,
    long_video: LongVideo,
    flowing: Flowing | None,
    loop: bool,
    compared: bool,
    seed: int,
    release: Release | None,
    progress: Progress | None,
) -> Rendered:
    """Make a video at the model's size.

    Args:
        scene: At the model's size.
        strength: (1,) the motion strength that the model is told without arrows; with arrows it is Eq. 8 of the field.
        flowing: Renders the flow of the prediction; None warps the photo by `motion.flow.trace_back`.
        loop: Whether the last frame leads back to the first.
        compared: Whether to return the prediction, which `at_photo_size` needs; arrows then need `flowing`.
        release: Moves the video by the prediction instead of by motion weights.
        progress: Counts the frames of the prediction, the denoiser calls and the decoded frames; None shows nothing.
    """
    image, controls, fields = scene
    mask = swept(controls.mask, fields.parts)
    # A model that nothing steers does not see the field, so that its video must not show it either.
    steered = release is not None or animator.denoiser.steerable
    warped, has_flow = None, bool(controls.arrows) and steered
    progress = progress or SILENT
    pixels = image[0].numel()
    progress.expect("predicting", num_frames * (has_flow and flowing is not None), seconds=PIXEL * pixels)
    animator.expect_decoding(progress, num_frames * (1 + compared), pixels)
    if has_flow and flowing is not None:
        stream = photo_frames(scene.photo(loop=loop, num_frames=num_frames), num_frames=num_frames, flowing=flowing)
        warped = torch.stack(list(_reported(stream, progress)))[None]
    latents = None
    if compared:
        # Encoded once, for the condition and for the comparison.
        latents = animator.encode(image.expand(1, num_frames, -1, -1, -1) if warped is None else warped)
    if warped is not None and loop:
        ahead = max(animator.context_length, len(animator.sigmas))  # a window may end this many frames after the video
        warped = warped[:, torch.arange(num_frames + ahead) % num_frames]
    video, record = animator(
        image[None], fields.per_step[None], num_frames=num_frames, fps=fps,
        strength=motion_strength(fields.per_step[None]) if has_flow else strength, use_flow=has_flow, mask=mask[None],
        long_video=long_video, seed=seed, progress=progress, warped_frames=warped, warped_latents=latents,
        release=release,
    )  # fmt: skip
    prediction = None if latents is None else animator.decode(latents, progress)[0].cpu()
    return Rendered(video[0].cpu(), prediction, record)


def _reported(stream: Iterator[Tensor], progress: Progress) -> Iterator[Tensor]:
    for frame in stream:
        progress.done("predicting")
        yield frame


def at_photo_size(photo: Photo, rendered: Rendered, *, flowing: Flowing, num_frames: int) -> Iterator[Tensor]:
    """Frames (3, H, W) at the photo's size: the photo in motion, or the model's frame where it differs from its
    prediction.

    Differences below the model's grain are ignored, because on the sharp photo they would flicker.
    """
    size = photo.image.shape[-2:]
    enlarge = partial(F.interpolate, size=size, mode="bicubic", align_corners=False)
    moves = swept(photo.mask, photo.parts)
    stream: Iterator[Tensor] | Sequence[Tensor] = [photo.image] * num_frames
    if not photo.parts.flow_only or photo.parts.flow.any():
        stream = photo_frames(photo, num_frames=num_frames, flowing=flowing)
    for t, full in enumerate(stream):
        if t == 0:
            yield full
            continue
        sample, known = rendered.sample[t : t + 1], rendered.prediction[t : t + 1]
        # The change is averaged over a few pixels, so that grain alone does not remove detail.
        change = F.avg_pool2d((sample - known).abs().mean(1, keepdim=True), 3, 1, 1, count_include_pad=False)
        trust = F.interpolate(torch.exp(-((change / AGREES) ** 2)), size=size, mode="bilinear")
        yield torch.where(moves > 0, torch.lerp(enlarge(sample)[0].clamp(-1, 1), full, trust[0]), photo.image)


def enlarged(sample: Tensor, size: Sequence[int]) -> Iterator[Tensor]:
    """The model's frames (N, 3, h, w) at another size: for fields that the photo itself cannot follow."""
    for frame in sample:
        yield F.interpolate(frame[None], size=tuple(size), mode="bicubic", align_corners=False)[0].clamp(-1, 1)
