"""A `VideoModel` of photos: the network is a `Denoiser`, and the input image is warped in pixels."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from motionanim.cli.progress import Progress
from motionanim.models.svd.spectral_attention import spectral_blend
from motionanim.models.svd.windowed_attention import temporal_windows
from motionanim.motion.flow import motion_strength, trace_back
from motionanim.sampling.guidance import Estimate, guided, unguided
from motionanim.sampling.moving.image import MovingImage
from motionanim.sampling.moving.release import Release
from motionanim.sampling.samplers import holding
from motionanim.sampling.video import VideoModel
from motionanim.types import Condition

if TYPE_CHECKING:
    from motionanim.sampling.animator import Animator


class PhotoVideo(VideoModel):
    """A video of each photo of a batch.

    Args:
        animator: The networks and the settings of sampling.
        image: (B, 3, H, W) in [-1, 1].
        flow: (B, N-1, 2, H, W) px per frame.
        mask: (B, 1, H, W) in {0, 1}; where it is 0 the latents are held at the image's.
        fps: (B,) frames per second that the model is told.
        strength: (B,) px per frame at W (Eq. 8); None leaves it to the model.
        use_flow: False leaves the motion to the model.
        release: Moves the video instead of the model, which then sees nothing of the flow but its strength.
        warped_frames: (B, M, 3, H, W) in [-1, 1], M >= N: the warped image; None warps it along `flow`.
        warped_latents: (B, M', C, h, w) of the first M' of them, where they are known.
        generator, progress: As in `VideoModel`.
    """

    def __init__(
        self,
        animator: "Animator",
        image: Tensor,
        flow: Tensor,
        *,
        num_frames: int,
        mask: Tensor,
        fps: Tensor,
        strength: Tensor | None,
        use_flow: bool,
        release: Release | None,
        warped_frames: Tensor | None,
        warped_latents: Tensor | None,
        generator: torch.Generator,
        progress: Progress | None,
    ) -> None:
        codec, network, sampling, length = animator.codec, animator.denoiser, animator.sampling, animator.context_length
        self.codec, self.network, self.sampling, self.animator = codec, network, sampling, animator
        self.image, self.generator, self.fps = image, generator, fps
        self.strength = motion_strength(flow) if strength is None else strength
        on = torch.ones_like(fps)
        release = release if use_flow else None
        steered = use_flow and release is None and network.steerable
        moves = steered or release is not None
        self.flags = {"use_flow": on * float(steered), "use_strength": on * float(strength is not None)}
        self.reads_warped = (steered and network.uses_warped) or release is not None
        self.given, self.moving = warped_frames is not None, None
        if moves and self.given:
            self.moving = MovingImage(codec, image, warped_frames, warped_latents)
        elif moves:
            # A window may end this much after the video, whose last step then goes on.
            beyond = flow[:, -1:].expand(-1, max(length, len(animator.sigmas)), -1, -1, -1)
            self.moving = MovingImage(codec, image, trace_back(torch.cat([flow, beyond], dim=1).float()))
        first, last = sampling["min_guidance"], sampling["max_guidance"]
        super().__init__(
            self._condition(image, flow, None),
            num_frames=num_frames,
            context_length=length,
            sigmas=animator.sigmas,
            sampler=sampling["sampler"],
            guidance=None if first == last else (first, last),
            release=release,
            generator=generator,
            progress=progress,
        )
        latent_size = self.condition.image_latents.shape[-2:]
        self.still = torch.nn.functional.adaptive_max_pool2d(mask, latent_size)[:, None] == 0
        self.image_latents = codec.encode(image[:, None]) if self.still.any() else None

    def _condition(self, image: Tensor, flow: Tensor, warped_latents: Tensor | None) -> Condition:
        noise = torch.randn(image.shape, generator=self.generator).to(image)
        return self.codec.condition(
            image,
            noise=noise,
            noise_aug=torch.full_like(self.fps, self.sampling["noise_aug"]),
            flow=flow,
            motion_strength=self.strength,
            fps=self.fps,
            warped_latents=warped_latents,
        )._replace(**self.flags)

    def condition_of(self, start: int, length: int) -> Condition:
        part = self.condition.window(start, length)
        if self.reads_warped:
            part = part._replace(warped_latents=self.warped(start, length))
        if self.moving is None or start == 0:
            return part
        return self._condition(self.moving.frames([start])[:, 0], part.flow, part.warped_latents)

    def begin(self, latents: Tensor, start: int, length: int) -> Condition:
        frame, flow = self.codec.decode(latents[:, None])[:, 0], self.condition.window(start, length).flow
        return self._condition(frame, flow, self.codec.warp_image(frame, flow) if self.reads_warped else None)

    def warped(self, start: int, length: int) -> Tensor:
        return self.moving.latents(start, length)

    def rewind(self, start: int, length: int) -> Tensor:
        if self.given:
            return torch.cat([self.warped(start, length - 1), self.codec.encode(self.image[:, None])], dim=1)
        return self.codec.warp_image(self.image, -self.condition.window(start, length).flow.flip(1)).flip(1)

    def estimator(self, condition: Condition, *, guided: bool) -> Estimate:
        most = self.network.clips_at_once(
            condition.flow.shape[1] + 1, tuple(condition.image_latents.shape[-2:]), self._room()
        )
        estimate = self._guided(condition, most) if guided else unguided(self.network, condition, most=most)
        return estimate if self.image_latents is None else holding(estimate, self.image_latents, self.still)

    def _guided(self, condition: Condition, most: int) -> Estimate:
        s = self.sampling
        return guided(
            self.network, condition, first=s["min_guidance"], last=s["max_guidance"], motion=s["motion_guidance"],
            most=most,
        )  # fmt: skip

    def _room(self) -> int | None:
        """Bytes that one call of the network may fill, a tenth kept in reserve; None where nothing is known."""
        device, gib = self.image.device, self.sampling.get("vram")
        if device.type == "cuda" and torch.cuda.is_available():
            held = torch.cuda.memory_allocated(device)
            room = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - held
            if gib is not None:
                room = min(room, int(gib * 2**30) - held)
        elif gib is not None:
            room = int(gib * 2**30)
        else:
            return None
        return int(0.9 * room)

    def temporal_windows(self, stride: int) -> AbstractContextManager[None]:
        return temporal_windows(self.network, self.context_length, stride)

    def spectral_blend(self, *, d_s: float, d_t: float) -> AbstractContextManager[None]:
        return spectral_blend(self.network, self.context_length, d_s=d_s, d_t=d_t)

    def levels(self, steps: int) -> Tensor:
        return self.animator.levels(steps)
