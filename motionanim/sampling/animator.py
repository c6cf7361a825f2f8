"""A loaded base that turns an image and its motion into a video of any length."""

import os
from collections.abc import Callable, Mapping, Sequence
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
from motionanim.models.svd.memory import offload
from motionanim.sampling.moving.release import Release
from motionanim.sampling.photo_video import PhotoVideo
from motionanim.sampling.samplers import SAMPLERS
from motionanim.sampling.video import Record, VideoModel

LongVideo = Callable[[VideoModel], tuple[Tensor, Record]]
CHOICES = {
    "sampler": tuple(SAMPLERS), "dtype": ("float32", "bfloat16", "float16"), "decode_dtype": ("float32", "bfloat16"),
    "offload": (None, "codec", "all"),
}  # fmt: skip

# Keys that are newer than some saved settings.
NEWER = {"sampler": "euler", "decode_chunk": None, "decode_tile": None, "offload": None, "vram": None}
SMALLEST_TILE = 256  # px: tiles share 128

# Decoded pixels times weights of the decoder a second, for a first guess of the time left: on a GPU, on a CPU's thread.
GPU_SPEED, CPU_SPEED = 5e14, 5e11


def pick_device() -> torch.device:
    """The GPU of this process, torchrun's LOCAL_RANK, or the CPU."""
    there = torch.cuda.is_available()
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if there else torch.device("cpu")


def size_multiple(codec: Codec, denoiser: Denoiser) -> int:
    """Height and width must be multiples of this: the VAE's and the UNet's halvings."""
    return codec.downscale * 2 ** (len(denoiser.unet.config.block_out_channels) - 1)


class Animator:
    """VAE, CLIP and denoiser of one base, and the settings of sampling.

    Args:
        sampling: The sampling config group.
        context_length: L, frames of one pass.
        device: Where the networks run; None takes the device that the denoiser is on.

    Raises:
        ValueError: If one of these settings is out of range.
    """

    def __init__(
        self, codec: Codec, denoiser: Denoiser, *, sampling: Mapping[str, Any], context_length: int,
        device: torch.device | None = None,
    ) -> None:  # fmt: skip
        self.sampling = _checked(sampling)
        self.codec, self.denoiser, self.context_length = codec, denoiser, context_length
        self.device = device or next(denoiser.parameters()).device
        self.sigmas = self.levels(self.sampling["num_steps"])

    @classmethod
    def load(
        cls,
        *,
        base: str,
        motion: Mapping[str, Any],
        sampling: Mapping[str, Any],
        loras: Sequence[tuple[str, float]],
        context_length: int,
        device: torch.device,
    ) -> tuple[Self, str]:
        """An animator with a base and any number of LoRA files merged into it, and the base's `base_fingerprint`.

        Args:
            base: StableVideoDiffusionPipeline folder or hub id.
            motion: Arguments of `MotionConditioner`, conditioning.motion.
            loras: Pairs of a LoRA file and its weight.

        Raises:
            ValueError: If a LoRA belongs to another base, or a choice in `sampling` is unknown.
        """
        sampling = _checked(sampling)
        codec, dtype = Codec.from_pretrained(base), getattr(torch, sampling["dtype"])
        # LoRAs are added in float32 and rounded once; without any, SVD's 6 GB in float32 need not be in memory.
        loaded = torch.float32 if loras else dtype
        denoiser = Denoiser.from_pretrained(base, downscale=codec.downscale, motion=motion, dtype=loaded).eval()
        found = base_fingerprint(denoiser.unet)
        for path, weight in loras:
            load_lora(denoiser.unet, Path(path), weight=weight, base=found)
            merge_lora(denoiser.unet)
        denoiser.to(dtype=dtype)
        if sampling["channels_last"]:
            denoiser.channels_last()
        if sampling["compile"] is not None:
            denoiser.compile_unet(sampling["compile"])
        if sampling["offload"] is None:
            codec.to(device)
        else:
            codec.offload(device)
        if sampling["offload"] == "all":
            denoiser.motion.to(device)
            offload(denoiser.unet, device)
        else:
            denoiser.to(device)
        return cls(codec, denoiser, sampling=sampling, context_length=context_length, device=device), found

    def levels(self, steps: int) -> Tensor:
        """Noise levels (steps + 1,) of a run of `steps` steps."""
        s = self.sampling
        return karras_sigmas(steps, sigma_min=s["sigma_min"], sigma_max=s["sigma_max"], rho=s["rho"])

    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) in [-1, 1] to scaled latents (B, T, C, h, w)."""
        return self.codec.encode(frames.to(self.device))

    def decode(self, latents: Tensor, progress: Progress | None = None) -> Tensor:
        """Scaled latents (B, T, C, h, w) to frames (B, T, 3, H, W) in [-1, 1]."""
        s = self.sampling
        return self.codec.decode(
            latents, chunk=s["decode_chunk"], tile=s["decode_tile"], dtype=getattr(torch, s["decode_dtype"]),
            progress=progress,
        )  # fmt: skip

    def expect_decoding(self, progress: Progress | None, frames: int, pixels: int) -> None:
        """Announce the decoding of `frames` frames of `pixels` pixels each."""
        speed = GPU_SPEED if self.device.type == "cuda" else CPU_SPEED * torch.get_num_threads()
        weights = sum(weight.numel() for weight in self.codec.vae.decoder.parameters())
        (progress or SILENT).expect("decoding", frames, seconds=weights * pixels / speed)

    @property
    def multiple(self) -> int:
        """As `size_multiple`."""
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
        warped_frames: Tensor | None = None,
        warped_latents: Tensor | None = None,
        release: Release | None = None,
    ) -> tuple[Tensor, Record]:
        """Make videos.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            flow: (B, N-1, 2, H, W) px per frame.
            num_frames: N, at least 2.
            fps: Frames per second that the model is told, a number or (B,).
            strength: (B,) px per frame at W (Eq. 8); None leaves it to the model.
            use_flow: False leaves the motion to the model. So does a model without motion field
                (conditioning=no_motion_field), which reads nothing of `flow` but its strength.
            mask: (B, 1, H, W) in {0, 1}; where it is 0 nothing moves: the latents are held at the image's and the
                pixels are the image's own.
            long_video: The method, its options bound.
            seed: Of all noise: the same seed gives the same video, bit for bit on a CPU.
            progress: Counts calls and decoded frames; None shows nothing.
            warped_frames: (B, M, 3, H, W) in [-1, 1], M >= N: the image in motion. The model expects every frame to be
                near it, and it is the image of each window that begins there; past its end the last frame stays. None
                warps the image along `flow`.
            warped_latents: (B, M', C, h, w) of its first M' frames, where they are known.
            release: Moves the video by the image in motion instead of by motion weights; None leaves it to these.

        Returns:
            (B, N, 3, H, W) in [-1, 1], and the method's record with the seconds of decoding.

        Raises:
            ValueError: If H or W is no multiple of `multiple`, or N is below 2.
        """
        height, width = image.shape[-2:]
        check_size(height, width, self.multiple)
        image, flow, mask, strength, warped_frames = (
            None if value is None else value.to(self.device) for value in (image, flow, mask, strength, warped_frames)
        )
        video = PhotoVideo(
            self,
            image,
            flow,
            num_frames=num_frames,
            mask=mask,
            fps=torch.ones(len(image), device=self.device) * torch.as_tensor(fps, device=self.device),
            strength=strength,
            use_flow=use_flow,
            release=release,
            warped_frames=warped_frames,
            warped_latents=warped_latents,
            generator=torch.Generator().manual_seed(seed),
            progress=progress,
        )
        self.expect_decoding(progress, len(image) * num_frames, height * width)
        latents, record = long_video(video)
        start = now()
        frames = torch.where(mask[:, None] > 0, self.decode(latents, progress), image[:, None])
        return frames, record._replace(seconds=record.seconds | {"decode": now() - start})


def _checked(sampling: Mapping[str, Any]) -> dict[str, Any]:
    settings = {**NEWER, **sampling}
    for name, known in CHOICES.items():
        if settings[name] not in known:
            names = ", ".join("null" if choice is None else choice for choice in known)
            raise ValueError(f"sampling.{name}={settings[name]}: must be one of {names}")
    chunk, tile = settings["decode_chunk"], settings["decode_tile"]
    if chunk is not None and not (isinstance(chunk, int) and chunk >= 1):
        raise ValueError(f"sampling.decode_chunk={chunk}: must be at least 1 frame, or null for 25")
    if tile is not None and not (isinstance(tile, int) and tile >= SMALLEST_TILE and tile % 8 == 0):
        raise ValueError(
            f"sampling.decode_tile={tile}: must be a multiple of 8 from {SMALLEST_TILE} on, or null for whole frames"
        )
    if settings["offload"] == "all" and settings.get("compile") is not None:
        raise ValueError("sampling.offload=all moves layers that a compiled UNet holds: set sampling.compile=null")
    return settings
