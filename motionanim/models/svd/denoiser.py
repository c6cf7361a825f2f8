"""Stable Video Diffusion as a denoiser: any StableVideoDiffusionPipeline folder or hub id, real or tiny.

The only file that knows how the UNet is called and which of its parameters are spatial, temporal or motion.
"""

import json
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.resnet import SpatioTemporalResBlock
from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from motionanim.files import atomic_path
from motionanim.models.schedule import per_clip, to_denoised
from motionanim.models.svd.bases import MOTION_FOLDER, in_any_variant, motion_config, motion_file
from motionanim.models.svd.motion_adapter import MotionConditioner
from motionanim.models.svd.shortcuts import use_shortcuts
from motionanim.types import Condition

COMPILE = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch.compile

# What of a base's motion config must agree with the command's, and the condition that weights of a name belong to.
_SETTINGS = {
    "channels": "scale.motion_channels",
    "median_strength": "scale.median_strength",
    "residual_std": "conditioning.residual_std",
    "motion_keys": "conditioning.motion_keys",
}
_CONDITIONS = {"strength": "motion_strength", "warped": "warped_latent"}  # all others are of motion_field


class Denoiser(nn.Module):
    """EDM-preconditioned SVD UNet with motion conditioning; returns the denoised latents.

    With `residual_std` in `motion` the preconditioning is centred on the motion-compensated first frame instead of on
    zero, and on what is left to add there (`MotionConditioner.deviation`) instead of on unit variance: before any
    training the estimate is then the best linear mix of prediction and noisy latents. It is a choice of bases trained
    from nothing; SVD's own weights need None.

    `unet` is a plain diffusers UNet (its state dict has SVD's keys); all added parameters are in `motion`.
    """

    def __init__(self, unet: UNetSpatioTemporalConditionModel, *, downscale: int, motion: dict[str, float]) -> None:
        super().__init__()
        self.unet = unet
        use_shortcuts(unet)
        self.motion_config = dict(motion)
        latent_channels = unet.config.out_channels
        self.motion = MotionConditioner(unet, latent_channels=latent_channels, downscale=downscale, **motion)
        self._time_change: Tensor | None = None
        for module in unet.modules():
            if isinstance(module, SpatioTemporalResBlock):
                module.register_forward_pre_hook(self._change_time)

    def _change_time(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self._time_change is None:
            return None
        hidden, embedded, *rest = inputs
        return hidden, embedded + self._time_change, *rest

    @classmethod
    def from_pretrained(cls, base: Path | str, *, downscale: int, motion: dict[str, float]) -> "Denoiser":
        """Load the UNet and, where the base has them, the motion weights.

        Args:
            base: Pipeline folder or hub id; one that was saved with `variant="fp16"` too.
            downscale: Pixels per latent pixel (`Codec.downscale`).
            motion: Arguments of MotionConditioner. Conditions that are off here are left out even if the base has
                weights for them (Table 1's ablations); the other settings must agree with the base's.

        Raises:
            ValueError: If the base's motion weights were made with other settings.
        """
        load = partial(UNetSpatioTemporalConditionModel.from_pretrained, subfolder="unet", torch_dtype=torch.float32)
        denoiser = cls(in_any_variant(load, base), downscale=downscale, motion=motion)
        made_with = motion_config(base)
        if not made_with:
            return denoiser
        if "motion_keys" not in made_with:
            raise ValueError(
                f"the motion weights of {base} are of an earlier version, whose residual_std meant something else: "
                "train the base again"
            )
        for key, setting in _SETTINGS.items():
            if made_with[key] != motion[key] and (key != "motion_keys" or motion["motion_field"]):
                raise ValueError(
                    f"the motion weights of {base} have {key}={made_with[key]}, the command asks for {motion[key]}: "
                    f"leave out {setting}, which then follows the base, or train from a base without motion weights"
                )
        path = motion_file(base, "motion.safetensors")
        if path is None:
            raise ValueError(f"{base} has {MOTION_FOLDER}/config.json but no {MOTION_FOLDER}/motion.safetensors")
        weights, wanted = load_file(path), denoiser.motion.state_dict()
        for name in wanted:
            if name not in weights:
                condition = _CONDITIONS.get(name.partition(".")[0], "motion_field")
                raise ValueError(f"{base} was trained without {condition}: leave out conditioning.{condition}=true")
        denoiser.motion.load_state_dict({name: weights[name] for name in wanted})
        return denoiser

    def save_motion(self, base: Path | str) -> None:
        """Write the motion weights (fp16) and their config beside the UNet of the pipeline folder `base`."""
        folder = Path(base) / MOTION_FOLDER
        with atomic_path(folder / "motion.safetensors") as path:
            save_file({k: v.half().contiguous().cpu() for k, v in self.motion.state_dict().items()}, path)
        with atomic_path(folder / "config.json") as path:
            path.write_text(json.dumps(self.motion_config, indent=2) + "\n")

    def forward(self, z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        """Denoise.

        Args:
            z: (B, T, C, h, w) noisy latents, scaled.
            sigma: (B,) noise level of each clip, or (B, T) of each frame, > 0.
            condition: See `Condition`; its flow gives T - 1 motion fields.

        Returns:
            (B, T, C, h, w) float32: the estimate of the clean latents.
        """
        context = self.motion.now = self.motion.contexts(condition)
        time = 0.25 * sigma.log()
        self._time_change = None
        if time.ndim == 2:
            # The UNet embeds one time a clip; what the other frames differ by is added where the embedding is used.
            embedded = self.unet.time_embedding(self.unet.time_proj(time.flatten()).to(self.unet.dtype))
            embedded = embedded.unflatten(0, time.shape)
            self._time_change, time = (embedded - embedded[:, :1]).flatten(0, 1), time[:, 0]
        dtype = self.unet.dtype
        image_latents = condition.image_latents[:, None].expand(-1, z.shape[1], -1, -1, -1)
        rest = z - context.expected
        scaled = rest / (per_clip(sigma, z) ** 2 + context.data_std**2) ** 0.5
        v = self.unet(
            torch.cat([scaled, image_latents], dim=2).to(dtype),
            time,
            encoder_hidden_states=condition.image_embed.to(dtype),
            # SVD was trained on fps - 1: the same in training and inference.
            added_time_ids=torch.stack([condition.fps - 1, context.bucket, condition.noise_aug], dim=1),
            return_dict=False,
        )[0]
        return context.expected + to_denoised(v.float(), rest, sigma, data_std=context.data_std)

    def blocks(self) -> list[nn.Module]:
        """The UNet's residual blocks and transformers, nearly all of its weights: the units of sharding."""
        kinds = (SpatioTemporalResBlock, TransformerSpatioTemporalModel)
        return [module for module in self.unet.modules() if isinstance(module, kinds)]

    @property
    def predicts(self) -> bool:
        """Whether it reads the motion-compensated frames of a condition."""
        return self.motion.warped is not None

    @property
    def steerable(self) -> bool:
        """Whether anything of a motion field reaches it: Eq. 4 or the motion-compensated frames."""
        return self.motion.encoder is not None or self.predicts

    def checkpoint_blocks(self, width: int) -> None:
        """Recompute blocks and the motion encoder in backward, in place; for training within less memory.

        diffusers' own `enable_gradient_checkpointing` keeps what the temporal transformer blocks make: at SVD size
        and batch 4 a step takes 160 GiB with it and 44 with this, for a tenth more work (benchmarks/counted.py). Wide
        blocks hold little for the work of doing them twice.

        Args:
            width: Most channels of a block that is recomputed; SVD's have 320, 640 and 1280.

        Raises:
            ValueError: If no block is so narrow.
        """
        widths = {block: _channels(block) for block in self.blocks()}
        chosen = [block for block, channels in widths.items() if channels <= width]
        if not chosen:
            raise ValueError(
                f"checkpoint_width={width}: the blocks have {sorted({*widths.values()})} channels; 0 for none"
            )
        for module in chosen if self.motion.encoder is None else [*chosen, self.motion.encoder]:
            # Nothing in them draws random numbers, so their state need not be kept.
            module.forward = partial(checkpoint, module.forward, use_reentrant=False, preserve_rng_state=False)

    def compile_unet(self, mode: str) -> None:
        """torch.compile the UNet, in place: at its first use, once for each size.

        Raises:
            ValueError: If `mode` is none of `COMPILE`.
        """
        if mode not in COMPILE:
            raise ValueError(f"compile={mode}: must be null or one of {', '.join(COMPILE)}")
        self.unet.compile(mode=mode)

    def channels_last(self) -> None:
        """Store the convolutions' weights with the channels last, in place: tensor cores read them so."""
        for module in self.unet.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)
            elif isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)

    def select_trainable(self, preset: Literal["all", "literal", "temporal"]) -> None:
        """Set requires_grad. Motion parameters always train.

        `all`: everything (a base from nothing). `literal`: all but the spatial transformer blocks, the paper's reading
        (1 276 M of SVD's 1 525 M). `temporal`: temporal layers only (656 M), the economical choice.

        Raises:
            ValueError: If the preset is none of these.
        """
        if preset not in ("all", "literal", "temporal"):
            raise ValueError(f"trainable={preset}: must be all, literal or temporal")
        for name, parameter in self.unet.named_parameters():
            chosen = preset == "all" or (preset == "literal" and not is_spatial_transformer(name))
            parameter.requires_grad_(chosen or (preset == "temporal" and is_temporal(name)))
        self.motion.requires_grad_(True)


def is_spatial_transformer(name: str) -> bool:
    """Whether a UNet parameter belongs to a spatial transformer block (`.temporal_transformer_blocks.` is another)."""
    return ".transformer_blocks." in name


def is_temporal(name: str) -> bool:
    """Whether a UNet parameter is temporal: temporal resnets and transformers, their mixers and position embeddings."""
    return "temporal" in name or "time_mixer" in name or "time_pos_embed" in name


def _channels(block: SpatioTemporalResBlock | TransformerSpatioTemporalModel) -> int:
    return block.spatial_res_block.out_channels if isinstance(block, SpatioTemporalResBlock) else block.in_channels
