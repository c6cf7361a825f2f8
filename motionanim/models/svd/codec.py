"""The frozen ends of an SVD pipeline: VAE (frames to latents and back) and CLIP image encoder."""

from pathlib import Path

import torch
from diffusers import AutoencoderKLTemporalDecoder, ModelMixin, StableVideoDiffusionPipeline
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from motionanim.cli.progress import SILENT, Progress
from motionanim.models.schedule import per_clip
from motionanim.models.svd.bases import in_any_variant
from motionanim.models.svd.zeros import skip_zeros
from motionanim.models.weights_io import weights_fingerprint
from motionanim.motion.flow import trace_back, warp
from motionanim.types import Condition

CHUNK = 4  # pictures of a plain VAE at once: 25 do not fit into a CPU's cache and take four times as long a picture
PREDICTION = 3  # the version of `Codec.predict`: results by another are of another method


class Codec(nn.Module):
    """VAE and CLIP of one StableVideoDiffusionPipeline folder or hub id; always frozen and in eval mode.

    The VAE runs in float32 whatever the trainer's precision: SVD's overflows in fp16.
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
        """What prepared latents remember of what made them: the VAE's encoder and CLIP, whole, but no decoder."""
        quant_conv = getattr(self.vae, "quant_conv", None)  # not every VAE has one
        used = nn.ModuleList([self.vae.encoder, quant_conv or nn.Identity(), self.image_encoder])
        scale = torch.tensor(self.vae.config.scaling_factor)
        return weights_fingerprint(used, scale, self.image_mean, self.image_std)

    def _chunk(self, device: torch.device) -> int:
        return CHUNK if device.type == "cpu" else 16 * CHUNK

    def train(self, mode: bool = True) -> "Codec":
        """Stay in eval mode: frozen means frozen, dropout and norms included."""
        return super().train(False)

    @torch.no_grad()
    def encode(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) in [-1, 1] to scaled latents (B, T, C, h, w)."""
        chunk = 16 if self.temporal else self._chunk(frames.device)
        with torch.autocast(frames.device.type, enabled=False):
            parts = [self.vae.encode(part).latent_dist.mode() for part in frames.float().flatten(0, 1).split(chunk)]
        return torch.cat(parts).unflatten(0, frames.shape[:2]) * self.vae.config.scaling_factor

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> Tensor:
        """Condition image (B, 3, H, W), its noise already added, to latents (B, C, h, w) that are *not* scaled."""
        with torch.autocast(image.device.type, enabled=False):
            return self.vae.encode(image.float()).latent_dist.mode()

    @torch.no_grad()
    def embed_image(self, image: Tensor) -> Tensor:
        """CLIP embedding (B, 1, D) of an image (B, 3, H, W) in [-1, 1], preprocessed as SVD does."""
        resized = (_resize_with_antialiasing(image.float(), (224, 224)) + 1) / 2
        pixels = (resized - self.image_mean) / self.image_std
        return self.image_encoder(pixels).image_embeds[:, None].float()

    @torch.no_grad()
    def predict(self, image: Tensor, flow: Tensor) -> Tensor:
        """Motion compensation: an image (B, 3, H, W) carried along the flow (B, T-1, 2, H, W), as latents.

        Pixels are carried and then encoded: latents of these VAEs do not move with the picture by less than a latent
        pixel.

        Returns:
            (B, T, C, h, w), scaled; frame 0 is the image.
        """
        return self.encode_moved(image, trace_back(flow.float()))

    @torch.no_grad()
    def encode_moved(self, image: Tensor, moved: Tensor) -> Tensor:
        """`predict` for a motion that is traced already, `moved` (B, T, 2, H, W) of `motion.flow.trace_back`."""
        parts = []
        for part in moved.split(16, dim=1):  # a long video's frames need not be in memory at once
            frames = warp(image.repeat_interleave(part.shape[1], 0), part.flatten(0, 1))
            parts.append(self.encode(frames.unflatten(0, part.shape[:2])))
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
        predicted: Tensor | None = None,
        image_embed: Tensor | None = None,
    ) -> Condition:
        """Everything on: the condition for an image (B, 3, H, W), with `noise` (as image) times `noise_aug` (B,) on it.

        `flow` is (B, T-1, 2, H, W) px per frame, `motion_strength` (B,) px per frame, `fps` (B,). `predicted` is
        what `predict` gives; without it no motion is predicted. `image_embed` is what `embed_image` gives, if known.
        """
        on = torch.ones_like(fps)
        return Condition(
            image_latents=self.encode_image(image + noise * per_clip(noise_aug, image)),
            image_embed=self.embed_image(image) if image_embed is None else image_embed,
            predicted=self.encode(image[:, None]) if predicted is None else predicted,
            flow=flow,
            motion_strength=motion_strength,
            use_flow=on,
            use_strength=on,
            fps=fps,
            noise_aug=noise_aug,
        )

    @torch.no_grad()
    def decode(
        self,
        latents: Tensor,
        chunk: int | None = None,
        context: int = 4,
        dtype: torch.dtype = torch.float32,
        progress: Progress | None = None,
    ) -> Tensor:
        """Scaled latents (B, T, C, h, w) to frames (B, T, 3, H, W) in [-1, 1], `chunk` frames of a clip at a time.

        SVD's temporal decoder takes 25 by default, a plain one `CHUNK`. The temporal one also sees `context` frames on
        either side of a chunk, which are thrown away: its chunks would otherwise show their edges. With `dtype`
        bfloat16 it runs under autocast, at eight bits. `progress` is told of all frames, as its stage "decoding".
        """
        chunk, parts = chunk or (25 if self.temporal else self._chunk(latents.device)), []
        with torch.autocast(latents.device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            for clip in latents.float() / self.vae.config.scaling_factor:
                for first in range(0, len(clip), chunk):
                    low = max(0, first - context) if self.temporal else first
                    seen = clip[low : first + chunk + (context if self.temporal else 0)]
                    # SVD's decoder is temporal and must know the frames of a clip; a plain one must not be told.
                    options = {"num_frames": len(seen)} if self.temporal else {}
                    parts.append(self.vae.decode(seen, **options).sample[first - low :][:chunk])
                    (progress or SILENT).done("decoding", len(parts[-1]))
        return torch.cat(parts).float().unflatten(0, latents.shape[:2]).clamp(-1, 1)
