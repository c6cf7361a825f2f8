"""A loaded base that turns an image and its motion into a video of any length: shared by all that sample from it."""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from motionanim.cli.progress import SILENT, Progress, now
from motionanim.cli.settings import check_size
from motionanim.models.schedule import karras_sigmas
from motionanim.models.svd.codec import Codec
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.lora import base_fingerprint, load_lora, merge_lora
from motionanim.models.svd.windowed_attention import temporal_windows
from motionanim.motion.flow import motion_strength, trace_back, warp
from motionanim.sampling.chained import holding
from motionanim.sampling.common import Model, Record, at
from motionanim.sampling.euler import Denoise, guided
from motionanim.types import Condition

LongVideo = Callable[..., tuple[Tensor, Record]]
DTYPES = ("float32", "bfloat16", "float16")
DECODE_DTYPES = ("float32", "bfloat16")

# Decoded pixels times weights of the decoder a second, for a first guess of the time left: on a GPU, on a CPU's thread.
GPU_SPEED, CPU_SPEED = 5e14, 5e11


def pick_device() -> torch.device:
    """The GPU of this process, torchrun's LOCAL_RANK, or the CPU."""
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")
    )


def size_multiple(codec: Codec, denoiser: Denoiser) -> int:
    """Height and width must be multiples of this: the VAE's and the UNet's halvings."""
    return codec.downscale * 2 ** (len(denoiser.unet.config.block_out_channels) - 1)


class Generator:
    """VAE, CLIP and denoiser of one base, and how they are sampled.

    Args:
        sampling: The sampling config group.
        window: L, frames of one pass.
    """

    def __init__(self, codec: Codec, denoiser: Denoiser, *, sampling: Mapping[str, Any], window: int) -> None:
        self.codec, self.denoiser, self.sampling, self.window = codec, denoiser, dict(sampling), window
        self.device = next(denoiser.parameters()).device
        s = self.sampling
        self.sigmas = karras_sigmas(s["num_steps"], sigma_min=s["sigma_min"], sigma_max=s["sigma_max"], rho=s["rho"])

    @classmethod
    def load(
        cls,
        *,
        base: str,
        motion: Mapping[str, Any],
        sampling: Mapping[str, Any],
        loras: Sequence[tuple[str, float]],
        window: int,
        device: torch.device,
    ) -> tuple[Self, str]:
        """A generator of a base with any number of LoRA files folded in, and the base's `base_fingerprint`.

        Args:
            base: StableVideoDiffusionPipeline folder or hub id.
            motion: Arguments of `MotionConditioner`, the conditioning group.
            loras: Pairs of a LoRA file and its weight.

        Raises:
            ValueError: If a LoRA belongs to another base, or the sampling's dtype, decode_dtype or compile is unknown.
        """
        for name, known in (("dtype", DTYPES), ("decode_dtype", DECODE_DTYPES)):
            if sampling[name] not in known:
                raise ValueError(f"sampling.{name}={sampling[name]}: must be one of {', '.join(known)}")
        codec = Codec.from_pretrained(base).to(device)
        denoiser = Denoiser.from_pretrained(base, downscale=codec.downscale, motion=dict(motion)).eval()
        found = base_fingerprint(denoiser.unet)
        for path, weight in loras:
            load_lora(denoiser.unet, Path(path), weight=weight, base=found)
            merge_lora(denoiser.unet)
        denoiser.to(device, getattr(torch, sampling["dtype"]))
        if sampling["channels_last"]:
            denoiser.channels_last()
        if sampling["compile"] is not None:
            denoiser.compile_unet(sampling["compile"])
        return cls(codec, denoiser, sampling=sampling, window=window), found

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) in [-1, 1] to scaled latents (B, T, C, h, w)."""
        return self.codec.encode(frames.to(self.device))

    def decode(self, latents: Tensor, progress: Progress | None = None) -> Tensor:
        """What `encode` gave, and what the denoiser makes, to frames."""
        return self.codec.decode(latents, dtype=getattr(torch, self.sampling["decode_dtype"]), progress=progress)

    def expect_decoding(self, progress: Progress | None, frames: int, pixels: int) -> None:
        """Announce the decoding of so many frames of so many pixels."""
        speed = GPU_SPEED if self.device.type == "cuda" else CPU_SPEED * torch.get_num_threads()
        weights = sum(weight.numel() for weight in self.codec.vae.decoder.parameters())
        (progress or SILENT).expect("decoding", frames, seconds=weights * pixels / speed)

    @property
    def multiple(self) -> int:
        """Height and width must be multiples of this: the VAE's and the UNet's halvings."""
        return size_multiple(self.codec, self.denoiser)

    @torch.no_grad()
    def __call__(
        self,
        image: Tensor,
        flow: Tensor,
        *,
        num_frames: int,
        fps: float | Tensor,
        strength: Tensor | None,
        use_flow: bool,
        mask: Tensor,
        long_video: LongVideo,
        seed: int,
        progress: Progress | None,
        carried: Tensor | None = None,
        carried_latents: Tensor | None = None,
    ) -> tuple[Tensor, Record]:
        """Make videos.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            flow: (B, N-1, 2, H, W) px per frame.
            num_frames: N, at least 2.
            fps: What the model is told, a number or (B,).
            strength: (B,) px per frame at W (Eq. 8); None leaves it to the model.
            use_flow: False leaves the motion to the model; so does a model that has no motion field
                (conditioning=no_motion_field), which nothing of `flow` then reaches, its strength excepted.
            mask: (B, 1, H, W) in {0, 1}; where it is 0 the latents are held at the image's and the pixels are the
                image's own: nothing moves there.
            long_video: The method, its options bound.
            progress: Is told of every call and every decoded frame; None shows nothing.
            seed: Of all noise: the same gives the same video, bit for bit on a CPU.
            carried: (B, M, 3, H, W) in [-1, 1], M >= N: the image in motion. It is the prediction of every frame, and
                the image of each window that begins there; past its end the last frame stays. None carries the image
                along `flow`.
            carried_latents: (B, M', C, h, w) of the first M' frames of `carried`, scaled, where they are known.

        Returns:
            (B, N, 3, H, W) in [-1, 1], and the method's record with the seconds of decoding.

        Raises:
            ValueError: If H or W is no multiple of `multiple`.
        """
        height, width = image.shape[-2:]
        check_size(height, width, self.multiple)
        generator, batch = torch.Generator().manual_seed(seed), len(image)
        image, flow, mask = (value.to(self.device) for value in (image, flow, mask))
        on = torch.ones(batch, device=self.device)
        use_flow = use_flow and self.denoiser.steerable

        def encode(pixels: Tensor, motion: Tensor, predicted: Tensor | None) -> Condition:
            noise = torch.randn(pixels.shape, generator=generator).to(pixels)
            return self.codec.condition(
                pixels,
                noise=noise,
                noise_aug=on * self.sampling["noise_aug"],
                flow=motion,
                motion_strength=motion_strength(flow) if strength is None else strength.to(self.device),
                fps=on * torch.as_tensor(fps, device=self.device),
                predicted=predicted,
            )._replace(use_flow=on * float(use_flow), use_strength=on * float(strength is not None))

        # Every window is predicted from the input image itself: frames that were decoded, carried and encoded over
        # and over again lose what is fine. A window may end this much after the video.
        beyond = flow[:, -1:].expand(-1, max(self.window, len(self.sigmas)), -1, -1, -1)
        carry = None
        if use_flow and carried is not None:
            carry = partial(_chosen, carried.to(self.device))
        elif use_flow:
            carry = partial(_warped, image, trace_back(torch.cat([flow, beyond], dim=1).float()))
        known = [] if carried is None or carried_latents is None else carried_latents.unbind(1)
        predict = _predictor(self.codec, carry, known)
        predicts = use_flow and self.denoiser.predicts
        condition = encode(image, flow, None)

        def window(whole: Condition, start: int, length: int) -> Condition:
            part = at(whole, start, length)
            if predicts:
                part = part._replace(predicted=predict(start, length))
            if carry is None or start == 0:
                return part
            return encode(carry([start])[:, 0], part.flow, part.predicted)

        def begin(latent: Tensor, part: Condition) -> Condition:
            frame = self.codec.decode(latent[:, None])[:, 0]
            return encode(frame, part.flow, self.codec.predict(frame, part.flow) if predicts else None)

        def rewind(part: Condition) -> Tensor:
            if carried is None:
                return self.codec.predict(image, -part.flow.flip(1)).flip(1)
            length = part.flow.shape[1] + 1
            return torch.cat([predict(num_frames - length + 1, length - 1), self.codec.encode(image[:, None])], dim=1)

        s = self.sampling
        unguided: Denoise = self.denoiser
        first, last = s["min_guidance"], s["max_guidance"]
        denoise = guided(self.denoiser, first=first, last=last, motion=s["motion_guidance"])
        still = torch.nn.functional.adaptive_max_pool2d(mask, condition.image_latents.shape[-2:])[:, None] == 0
        if still.any():
            known = self.codec.encode(image[:, None])
            denoise, unguided = _held(denoise, known, still), _held(unguided, known, still)
        model = Model(
            denoise, unguided, self.window, window, predict, begin, rewind, self.codec.vae.config.scaling_factor,
            partial(temporal_windows, self.denoiser), None if first == last else (first, last),
        )  # fmt: skip
        self.expect_decoding(progress, batch * num_frames, height * width)
        with self.denoiser.motion.remembering():
            latents, record = long_video(
                model, condition, num_frames=num_frames, sigmas=self.sigmas, generator=generator, progress=progress
            )
        start = now()
        decoded = self.decode(latents, progress)
        frames = torch.where(mask[:, None] > 0, decoded, image[:, None])
        return frames, record._replace(seconds=record.seconds | {"decode": now() - start})


def _warped(image: Tensor, moved: Tensor, frames: list[int]) -> Tensor:
    """The image (B, 3, H, W) at the places `moved` (B, M, 2, H, W) of some frames: (B, len(frames), 3, H, W)."""
    places = [min(frame, moved.shape[1] - 1) for frame in frames]
    return torch.stack([warp(image, moved[:, place]) for place in places], dim=1)


def _chosen(carried: Tensor, frames: list[int]) -> Tensor:
    """Some frames of `carried` (B, M, 3, H, W), the last one for those past its end."""
    return carried[:, [min(frame, carried.shape[1] - 1) for frame in frames]]


def _predictor(
    codec: Codec, carry: Callable[[list[int]], Tensor] | None, known: Sequence[Tensor]
) -> Callable[[int, int], Tensor]:
    """`Model.predict`: windows share frames, and each costs a pass of the VAE, so they are kept."""
    made: dict[int, Tensor] = dict(enumerate(known))

    def predict(start: int, length: int) -> Tensor:
        frames = list(range(start, start + length))
        new = [frame for frame in frames if frame not in made]
        for first in range(0, len(new), 16):  # a long video's frames need not be in memory at once
            some = new[first : first + 16]
            made.update(zip(some, codec.encode(carry(some)).unbind(1), strict=True))
        return torch.stack([made[frame] for frame in frames], dim=1)

    return predict


def _held(denoise: Denoise, known: Tensor, where: Tensor) -> Denoise:
    """`holding` for every segment or window of a batch: `known` (B, 1, C, h, w) where `where` (B, 1, 1, h, w)."""

    def run(z: Tensor, sigma: Tensor, condition: Condition, *scale: Tensor) -> Tensor:
        times = (len(z) // len(known), 1, 1, 1, 1)
        return holding(denoise, known.repeat(times), where.repeat(times))(z, sigma, condition, *scale)

    return run
