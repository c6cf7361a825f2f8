"""Stable Video Diffusion as a denoiser: any StableVideoDiffusionPipeline folder or hub id, real or tiny.

Only this file knows how the UNet is called and which of its parameters are spatial, temporal or motion.
"""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

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
from motionanim.models.svd.faster_layers import speed_up_unet
from motionanim.models.svd.motion_adapter import SETTINGS, SWITCHES, MotionConditioner, MotionContext
from motionanim.types import Condition

COMPILE = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")  # of torch.compile
SEQUENCES = 65_535  # of attention in one call: the limit of CUDA's grids
CALL_CHANNELS = 40  # channels alive at the peak of a call without gradients, as multiples of the first block's
SCALING = 0.18215  # of a VAE whose config leaves it out: diffusers' default


class Denoiser(nn.Module):
    """EDM-preconditioned SVD UNet with motion conditioning; returns the denoised latents.

    With `residual_std` in `motion` the preconditioning is centred on the warped first frame instead of on zero, with
    the residual's standard deviation (`MotionConditioner.sigma_data`) instead of 1: before any training the estimate
    is then the best linear mix of prediction and noisy latents. It is a choice of bases trained from nothing; SVD's
    own weights need None.

    `unet` is a plain diffusers UNet (its state dict has SVD's keys); all added parameters are in `motion`.

    Args:
        downscale: Pixels per latent pixel (`Codec.downscale`).
        scaling: The VAE's scaling factor: SVD's UNet reads the image latents without it.
        motion: Arguments of `MotionConditioner`.
    """

    def __init__(
        self,
        unet: UNetSpatioTemporalConditionModel,
        *,
        downscale: int,
        motion: Mapping[str, Any],
        scaling: float,
    ) -> None:
        super().__init__()
        self.unet, self.scaling = unet, scaling
        speed_up_unet(unet)
        self.motion_config = dict(motion)
        latent_channels = unet.config.out_channels
        self.motion = MotionConditioner(unet, latent_channels=latent_channels, downscale=downscale, **motion)
        for module in unet.modules():
            if isinstance(module, SpatioTemporalResBlock):
                module.register_forward_pre_hook(self._offset_time)

    def _offset_time(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        if self.motion.now is None or self.motion.now.time_offset is None:
            return None
        hidden, embedded, *rest = inputs
        return hidden, embedded + self.motion.now.time_offset, *rest

    @classmethod
    def from_pretrained(
        cls, base: Path | str, *, downscale: int, motion: Mapping[str, Any], dtype: torch.dtype = torch.float32
    ) -> "Denoiser":
        """Load the UNet and, where the base has them, the motion weights.

        Args:
            base: Pipeline folder or hub id; one that was saved with `variant="fp16"` too.
            downscale: Pixels per latent pixel (`Codec.downscale`).
            motion: Arguments of `MotionConditioner`. Conditions that are off here are left out even if the base has
                weights for them (Table 1's ablations); the other settings must agree with the base's.
            dtype: Of the UNet. The motion weights are float32.

        Raises:
            ValueError: If the base's motion weights were made with other settings.
        """
        load = partial(UNetSpatioTemporalConditionModel.from_pretrained, subfolder="unet", torch_dtype=dtype)
        unet = in_any_variant(load, base)
        vae = UNetSpatioTemporalConditionModel.load_config(base, subfolder="vae")
        scaling = vae.get("scaling_factor", SCALING)
        denoiser = cls(unet, downscale=downscale, motion=motion, scaling=scaling)
        made_with = motion_config(base)
        if not made_with:
            return denoiser
        if "motion_keys" not in made_with:
            raise ValueError(
                f"the motion weights of {base} are of an earlier version, whose residual_std meant something else: "
                "train the base again"
            )
        for key, setting in SETTINGS.items():
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
                condition = SWITCHES[name.partition(".")[0]]
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

    def context(self, condition: Condition) -> MotionContext:
        """The values of a condition that all denoising steps share, for `forward`; a run computes them once."""
        return self.motion.context(condition)

    def forward(self, z: Tensor, sigma: Tensor, condition: Condition | MotionContext) -> Tensor:
        """Denoise.

        Args:
            z: (B, T, C, h, w) noisy latents.
            sigma: (B,) noise level of each clip, or (B, T) of each frame, > 0.
            condition: Its flow gives T - 1 motion fields; or its `context`.

        Returns:
            (B, T, C, h, w) float32: the estimate of the clean latents.
        """
        # Not by `self.context`, which sharded training wraps as an entry of its own.
        context = self.motion.context(condition) if isinstance(condition, Condition) else condition
        time = 0.25 * sigma.log()
        if time.ndim == 2:
            # The UNet embeds one time a clip; the other frames' difference is added where the embedding is used.
            embedded = self.unet.time_embedding(self.unet.time_proj(time.flatten()).to(self.unet.dtype))
            embedded = embedded.unflatten(0, time.shape)
            context = context._replace(time_offset=(embedded - embedded[:, :1]).flatten(0, 1))
            time = time[:, 0]
        dtype = self.unet.dtype
        image_latents = (context.image_latents / self.scaling)[:, None].expand(-1, z.shape[1], -1, -1, -1)
        residual = z - context.expected
        scaled = residual / (per_clip(sigma, z) ** 2 + context.sigma_data**2) ** 0.5
        with self.motion.using(context):
            v = self.unet(
                torch.cat([scaled, image_latents], dim=2).to(dtype),
                time,
                encoder_hidden_states=context.image_embed.to(dtype),
                added_time_ids=context.time_ids,
                return_dict=False,
            )[0]
        return context.expected + to_denoised(v.float(), residual, sigma, sigma_data=context.sigma_data)

    def blocks(self) -> list[nn.Module]:
        """The UNet's residual blocks and transformers, nearly all of its weights: the units of sharding."""
        kinds = (SpatioTemporalResBlock, TransformerSpatioTemporalModel)
        return [module for module in self.unet.modules() if isinstance(module, kinds)]

    def clips_at_once(self, frames: int, latents: tuple[int, int], room: int | None) -> int:
        """The most clips of `frames` frames of (h, w) latents that one call without gradients may have, at least 1.

        Args:
            room: Bytes that the call may fill; None leaves only the limit of CUDA's attention kernels, the first
                dimension of whose grid of blocks counts the sequences: the pixels of the clips, for temporal attention.
        """
        pixels = latents[0] * latents[1]
        most = SEQUENCES // max(pixels, frames)
        if room is not None:
            bytes_each = CALL_CHANNELS * self.unet.config.block_out_channels[0] * self.unet.dtype.itemsize
            most = min(most, room // (bytes_each * frames * pixels))
        return max(1, most)

    @property
    def uses_warped(self) -> bool:
        """Whether it reads the warped frames of a condition."""
        return self.motion.warped is not None

    @property
    def steerable(self) -> bool:
        """Whether anything of a motion field reaches it: Eq. 4 or the warped frames."""
        return self.motion.encoder is not None or self.uses_warped

    def checkpoint_blocks(self, width: int) -> None:
        """Recompute blocks and the motion encoder in backward, in place; for training within less memory.

        diffusers' own `enable_gradient_checkpointing` keeps the activations of the temporal transformer blocks: at SVD
        size and batch 4 a step takes 160 GiB with it and 44 with this, for a tenth more work (benchmarks/counted.py).
        Wide blocks save little memory for the work of doing them twice.

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
        for module in chosen:
            module.forward = partial(_recomputed, self.motion, module.forward)
        if self.motion.encoder is not None:
            self.motion.encoder.forward = partial(_recomputed, self.motion, self.motion.encoder.forward)

    def compile_unet(self, mode: str) -> None:
        """torch.compile the UNet, in place: at its first use, once for each size.

        The compiled code is kept in $TORCHINDUCTOR_CACHE_DIR, by default ~/.cache/motionanim/compiled, for later runs.
        PyTorch's own default is a temporary folder, which a restart or a new node does not have.

        Raises:
            ValueError: If `mode` is none of `COMPILE`.
        """
        if mode not in COMPILE:
            raise ValueError(f"compile={mode}: must be null or one of {', '.join(COMPILE)}")
        temporary = Path(tempfile.gettempdir(), "torchinductor_")
        # PyTorch writes its default into the environment when its compiler is imported.
        if os.environ.get("TORCHINDUCTOR_CACHE_DIR", str(temporary)).startswith(str(temporary)):
            kept = Path("~/.cache/motionanim/compiled").expanduser()
            with suppress(OSError):  # such as a home that is read-only
                kept.mkdir(parents=True, exist_ok=True)
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(kept)
        self.unet.compile(mode=mode)

    def channels_last(self) -> None:
        """Store the convolutions' weights with the channels last, in place: tensor cores read them so."""
        for module in self.unet.modules():
            if isinstance(module, nn.Conv2d):
                module.to(memory_format=torch.channels_last)
            elif isinstance(module, nn.Conv3d):
                module.to(memory_format=torch.channels_last_3d)

    def halve_frozen(self) -> None:
        """Store the weights of convolutions and linear layers that do not train in bfloat16, in place.

        Under bfloat16 autocast nothing changes, to the last bit, because it rounds exactly these weights at each use.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d):
                for parameter in layer.parameters(recurse=False):
                    if not parameter.requires_grad:
                        parameter.data = parameter.data.bfloat16()

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


def _recomputed(motion: MotionConditioner, forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """`forward` by gradient checkpointing. Backward runs it again after `Denoiser.forward` has cleared the context."""
    context = motion.now

    def run(*args: Any, **options: Any) -> Any:
        if motion.now is context:
            return forward(*args, **options)
        with motion.using(context):
            return forward(*args, **options)

    # Nothing in it draws random numbers, so their state need not be kept.
    return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=False, **options)


def _channels(block: SpatioTemporalResBlock | TransformerSpatioTemporalModel) -> int:
    return block.spatial_res_block.out_channels if isinstance(block, SpatioTemporalResBlock) else block.in_channels
