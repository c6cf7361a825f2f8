"""Pipeline folders: build a tiny one with random weights, write one with trained weights.

A tiny pipeline differs from Stable Video Diffusion in numbers only: `StableVideoDiffusionPipeline.from_pretrained`
loads both, and so does all code here.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

# SVD's own scheduler settings: facts of the base, not choices of an experiment.
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

    The global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return StableVideoDiffusionPipeline(
            vae=AutoencoderKLTemporalDecoder(**vae),
            image_encoder=CLIPVisionModelWithProjection(CLIPVisionConfig(**image_encoder)).eval(),
            unet=UNetSpatioTemporalConditionModel(**unet),
            scheduler=EulerDiscreteScheduler(**_SCHEDULER),
            feature_extractor=CLIPImageProcessor(),
        )


def save_pipeline(
    folder: Path | str,
    *,
    base: Path | str | None = None,
    pipeline: StableVideoDiffusionPipeline | None = None,
    unet: UNetSpatioTemporalConditionModel | None = None,
) -> None:
    """Write a pipeline folder in fp16: `pipeline`, or the one at `base`, with `unet` in place of its own if given."""
    if pipeline is None:
        pipeline = StableVideoDiffusionPipeline.from_pretrained(base)
    if unet is not None:
        pipeline.register_modules(unet=copy.deepcopy(unet))  # .to() below converts in place
    pipeline.to(dtype=torch.float16).save_pretrained(folder)
