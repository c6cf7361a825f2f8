"""Pipeline folders: build one with random weights, write one with trained weights.

A tiny pipeline differs from Stable Video Diffusion in numbers only: `StableVideoDiffusionPipeline.from_pretrained`
loads both.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import (
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from motionanim.models.svd.bases import in_any_variant

# SVD's own scheduler settings, which belong to the base and not to an experiment.
_SCHEDULER = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction", "interpolation_type": "linear", "use_karras_sigmas": True,
    "sigma_min": 0.002, "sigma_max": 700.0, "timestep_spacing": "leading", "timestep_type": "continuous",
    "steps_offset": 1,
}  # fmt: skip


def build_pipeline(
    *, seed: int, vae: Mapping[str, Any], unet: Mapping[str, Any], image_encoder: Mapping[str, Any]
) -> StableVideoDiffusionPipeline:
    """A complete pipeline with random weights; the arguments are the configs of the diffusers and transformers classes.

    The VAE's `_class_name` says which one it is, as in a folder's config.json: the SVD pipeline takes any whose
    `encode` gives a `latent_dist`. SVD's own, AutoencoderKLTemporalDecoder, needs more channels than a tiny base has
    (32 norm groups at every width). The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        denoiser = UNetSpatioTemporalConditionModel(**unet)
        torch.nn.init.zeros_(denoiser.conv_out.weight)  # the estimate starts as what the preconditioning alone gives
        torch.nn.init.zeros_(denoiser.conv_out.bias)
        return StableVideoDiffusionPipeline(
            vae=getattr(diffusers, vae["_class_name"]).from_config(dict(vae)),
            image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**image_encoder)).eval(),
            unet=denoiser,
            scheduler=EulerDiscreteScheduler(**_SCHEDULER),
            feature_extractor=CLIPImageProcessor(),
        )


def save_pipeline(
    folder: Path | str,
    *,
    base: Path | str | None = None,
    pipeline: StableVideoDiffusionPipeline | None = None,
    unet: UNetSpatioTemporalConditionModel | None = None,
    dtype: torch.dtype = torch.float16,
    published_names: bool = False,
) -> None:
    """Write a pipeline folder: `pipeline`, or the one at `base`, with `unet` in place of its own if given.

    Args:
        published_names: Name fp16 files as in SVD's published folder (variant "fp16") and write the image encoder in
            `dtype` too.
    """
    if pipeline is None:
        pipeline = in_any_variant(StableVideoDiffusionPipeline.from_pretrained, base)
    if unet is not None:
        # A copy, because .to() below converts in place; from the config, so that it has no hooks of the adapter.
        plain = UNetSpatioTemporalConditionModel.from_config(unet.config)
        kept = pipeline.unet.state_dict()
        # Weights that `Denoiser.halve_frozen` has rounded are the base's own.
        halved = {name for name, value in unet.named_parameters() if value.dtype == torch.bfloat16}
        plain.load_state_dict({k: kept[k] if k in halved else v for k, v in unet.state_dict().items()})
        pipeline.register_modules(unet=plain)
    # transformers loads fp16 as fp16, diffusers as fp32: CLIP stays fp32 where no variant has to be asked for.
    for module in (pipeline.vae, pipeline.unet, *[pipeline.image_encoder] * published_names):
        torch.nn.Module.to(module, dtype)  # diffusers' own .to() warns on every folder
    pipeline.save_pretrained(folder, variant="fp16" if published_names and dtype == torch.float16 else None)
    for file in Path(folder).rglob("*.safetensors"):  # safetensors leaves mode 600, whatever the umask
        file.chmod(Path(folder, "model_index.json").stat().st_mode)
    for file in (Path(folder, "model_index.json"), *Path(folder).glob("*/config.json")):
        # diffusers writes down where a part was loaded from, a path that no other machine has.
        config = json.loads(file.read_text())
        if config.pop("_name_or_path", None) is not None:
            file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
