"""The frozen ends of an SVD pipeline: VAE (frames to latents and back) and CLIP image encoder."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLTemporalDecoder, ModelMixin, StableVideoDiffusionPipeline
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from motionanim.cli.memory import phase
from motionanim.cli.progress import SILENT, Progress
from motionanim.models.schedule import per_clip
from motionanim.models.svd.bases import in_any_variant
from motionanim.models.svd.faster_layers import skip_zeros
from motionanim.models.svd.memory import TiledDecoder, offload
from motionanim.models.weights_io import weights_fingerprint
from motionanim.motion.flow import trace_back, warp
from motionanim.types import Condition

CHUNK = 4  # pictures of a plain VAE at once: 25 do not fit into a CPU's cache and take four times as long a picture
ENCODED = 16 * 512 * 512  # most pixels that SVD's encoder sees at once: they take 10 GiB
PREDICTION = 3  # version of `Codec.warp_image`: the evaluation counts results of another version as another method


class Codec(nn.Module):
    """VAE and CLIP of one StableVideoDiffusionPipeline folder or hub id; always frozen and in eval mode.

    The VAE runs in float32 whatever the trainer's precision, because SVD's overflows in fp16.
    """

    def __init__(
        self,
        vae: ModelMixin,  # AutoencoderKLTemporalDecoder, or a still image's: see `models.svd.tiny.build_pipeline`
        image_encoder: CLIPVisionModelWithProjection,
        feature_extractor: CLIPImageProcessor,
    ) -> None:
        super().__init__()
        self.vae, self.image_encoder = vae, image_encoder
        for name, values in (("mean", feature_extractor.image_mean), ("std", feature_extractor.image_std)):
            self.register_buffer(f"image_{name}", torch.tensor(values).view(3, 1, 1), persistent=False)
        self.requires_grad_(False).eval()
        skip_zeros(self.vae)
        self.temporal = isinstance(vae, AutoencoderKLTemporalDecoder)
        if self.temporal:
            TiledDecoder(vae.decoder)

    @classmethod
    def from_pretrained(cls, base: Path | str) -> "Codec":
        # The pipeline's own index says which class each part is; the UNet is Denoiser's to load.
        pipeline = in_any_variant(StableVideoDiffusionPipeline.from_pretrained, base, unet=None, scheduler=None)
        return cls(pipeline.vae.float(), pipeline.image_encoder.float(), pipeline.feature_extractor)

    @property
    def downscale(self) -> int:
        """Pixels per latent pixel on a side."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    def fingerprint(self) -> str:
        """Hash of the weights that make latents and embeddings, which prepared latents record; without the decoder."""
        quant_conv = getattr(self.vae, "quant_conv", None)  # not every VAE has one
        used = nn.ModuleList([self.vae.encoder, quant_conv or nn.Identity(), self.image_encoder])
        scale = torch.tensor(self.vae.config.scaling_factor)
        return weights_fingerprint(used, scale, self.image_mean, self.image_std)

    def _chunk(self, device: torch.device) -> int:
        return CHUNK if device.type == "cpu" else 16 * CHUNK

    def train(self, mode: bool = True) -> "Codec":
        """Stay in eval mode whatever `mode` is: the weights and norms are frozen."""
        return super().train(False)

    def offload(self, device: torch.device) -> None:
        """Keep VAE and CLIP on the host; each layer is on `device` while it runs."""
        for part in (self.vae, self.image_encoder):
            offload(part, device)
        self.image_mean, self.image_std = self.image_mean.to(device), self.image_std.to(device)

    @phase("encoding")
    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) in [-1, 1] to scaled latents (B, T, C, h, w)."""
        pixels = frames.shape[-2] * frames.shape[-1]
        chunk = max(1, min(16, ENCODED // pixels)) if self.temporal else self._chunk(frames.device)
        with torch.autocast(frames.device.type, enabled=False):
            parts = [self.vae.encode(part).latent_dist.mode() for part in frames.float().flatten(0, 1).split(chunk)]
        return torch.cat(parts).unflatten(0, frames.shape[:2]) * self.vae.config.scaling_factor

    @torch.no_grad()
    def embed_image(self, image: Tensor) -> Tensor:
        """CLIP embedding (B, 1, D) of an image (B, 3, H, W) in [-1, 1], preprocessed as SVD does."""
        resized = (_resize_with_antialiasing(image.float(), (224, 224)) + 1) / 2
        pixels = (resized - self.image_mean) / self.image_std
        return self.image_encoder(pixels).image_embeds[:, None].float()

    @torch.no_grad()
    def warp_image(self, image: Tensor, flow: Tensor) -> Tensor:
        """Motion compensation: an image (B, 3, H, W) warped along the flow (B, T-1, 2, H, W), as latents.

        Pixels are warped and then encoded, because latents of these VAEs do not move with the picture by less than a
        latent pixel.

        Returns:
            (B, T, C, h, w), scaled; frame 0 is the image.
        """
        parts = []
        for offsets in trace_back(flow.float()).split(16, dim=1):  # so that not all frames are in memory at once
            frames = warp(image.repeat_interleave(offsets.shape[1], 0), offsets.flatten(0, 1))
            parts.append(self.encode(frames.unflatten(0, offsets.shape[:2])))
        return torch.cat(parts, dim=1)

    def condition(
        self,
        image: Tensor,
        *,
        noise: Tensor,
        noise_aug: Tensor,
        flow: Tensor,
        motion_strength: Tensor,
        fps: Tensor,
        warped_latents: Tensor | None,
        image_embed: Tensor | None = None,
    ) -> Condition:
        """The condition of clips that begin with an image, every part on.

        Args:
            image: (B, 3, H, W) in [-1, 1].
            noise: As `image`, unit normal; it is added times `noise_aug` (B,) before the image is encoded.
            flow: (B, T-1, 2, H, W) px per frame.
            motion_strength: (B,) px per frame.
            fps: (B,).
            warped_latents: What `warp_image` returns; None lets the image stand still.
            image_embed: What `embed_image` returns, if it is known.
        """
        if warped_latents is None:
            warped_latents = self.encode(image[:, None]).expand(-1, flow.shape[1] + 1, -1, -1, -1)
        on = torch.ones_like(fps)
        return Condition(
            image_latents=self.encode((image + noise * per_clip(noise_aug, image))[:, None])[:, 0],
            image_embed=self.embed_image(image) if image_embed is None else image_embed,
            warped_latents=warped_latents,
            flow=flow,
            motion_strength=motion_strength,
            use_image=on,
            use_flow=on,
            use_strength=on,
            fps=fps,
            noise_aug=noise_aug,
        )

    @phase("decoding")
    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        chunk: int | None = None,
        context: int = 4,
        dtype: torch.dtype = torch.float32,
        tile: int | None = None,
        progress: Progress | None = None,
    ) -> Tensor:
        """Scaled latents (B, T, C, h, w) to frames (B, T, 3, H, W) in [-1, 1], `chunk` frames of a clip at a time.

        The default is 25 for SVD's temporal decoder and `CHUNK` for a plain one. The temporal one also sees `context`
        frames on either side of a chunk, so that chunks show no edges; these are then thrown away. With `dtype`
        bfloat16 it runs under autocast. `progress` counts decoded frames as its stage "decoding".

        Args:
            tile: Pixels, a multiple of `downscale`: larger frames are decoded in tiles of this side (`TiledDecoder`).
                A plain VAE takes no tiles: one frame of it needs little memory.
        """
        chunk, parts = chunk or (25 if self.temporal else self._chunk(latents.device)), []
        with torch.autocast(latents.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            for clip in latents.float() / self.vae.config.scaling_factor:
                for first in range(0, len(clip), chunk):
                    low = max(0, first - context) if self.temporal else first
                    seen = clip[low : first + chunk + (context if self.temporal else 0)]
                    if self.temporal:
                        shown = torch.zeros(1, len(seen), dtype=seen.dtype, device=seen.device)
                        frames = self.vae.decoder(seen, shown, len(seen), tile and tile // self.downscale)
                    else:
                        frames = self.vae.decode(seen).sample
                    parts.append(frames[first - low :][:chunk])
                    (progress or SILENT).done("decoding", len(parts[-1]))
        return torch.cat(parts).float().unflatten(0, latents.shape[:2]).clamp(-1, 1)
