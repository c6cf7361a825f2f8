"""A phased video takes the operations of its calls, one encoding and the decoding, and hardly more."""

from functools import partial

import pytest
import torch
from accounting import count_flops
from conftest import MOTION
from small_svd import small_svd

from motionanim.models.svd.codec import Codec
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.tiny import build_pipeline
from motionanim.sampling.animator import Animator
from motionanim.sampling.phased import phased
from motionanim.types import Condition

FRAMES, WINDOW, SIDE, STEPS = 16, 4, 64, 5
SAMPLING = {
    "sampler": "euler", "num_steps": STEPS, "sigma_min": 0.002, "sigma_max": 700.0, "rho": 7.0, "min_guidance": 1.0,
    "max_guidance": 3.0, "motion_guidance": None, "noise_aug": 0.02, "decode_dtype": "float32", "decode_chunk": None,
    "decode_tile": None, "offload": None, "vram": None, "channels_last": False, "compile": None, "dtype": "float32",
}  # fmt: skip
OPTIONS = {
    "gamma": 0.8, "sigma": None, "omega": 0.2, "shuffle": "segment", "renormalize": True, "shared_noise": "segment",
    "guide_later": True, "batch_size": 2,
}  # fmt: skip


@pytest.mark.slow
@torch.no_grad()
def test_a_phased_video_takes_the_operations_of_its_calls() -> None:
    parts = build_pipeline(seed=0, **small_svd())
    codec = Codec(parts.vae, parts.image_encoder, parts.feature_extractor)
    motion = MOTION | {"warped_latent": False, "residual_std": None}  # as conf/scale/svd.yaml
    denoiser = Denoiser(parts.unet, downscale=8, scaling=0.18215, motion=motion).eval()
    animator = Animator(codec, denoiser, sampling=SAMPLING, context_length=WINDOW)
    image, flow = torch.zeros(1, 3, SIDE, SIDE), torch.ones(1, FRAMES - 1, 2, SIDE, SIDE)
    records = []

    def whole() -> None:
        _, record = animator(
            image, flow, num_frames=FRAMES, fps=7.0, strength=torch.ones(1), use_flow=True,
            mask=torch.ones(1, 1, SIDE, SIDE), long_video=partial(phased, **OPTIONS), seed=0, progress=None,
        )  # fmt: skip
        records.append(record)

    taken = count_flops(whole)
    calls = STEPS + (FRAMES // WINDOW - 1) * 1  # segment 1, and the last of 5 steps in each of the others
    assert records[0].calls == calls
    latents = torch.zeros(1, WINDOW, 4, SIDE // 8, SIDE // 8)
    width = parts.unet.config.cross_attention_dim
    condition = Condition.blank(1, WINDOW, latents=latents.shape[2:], pixels=(SIDE, SIDE), embed_width=width)
    context = denoiser.context(condition)
    floor = {
        "calls, guidance pairs": 2 * calls * count_flops(lambda: denoiser(latents, torch.ones(1), context)),
        "conditions": count_flops(lambda: denoiser.context(condition)),
        "image": count_flops(lambda: codec.encode(image[:, None])),
        "CLIP": count_flops(lambda: codec.embed_image(image)),
        "decoding": count_flops(lambda: codec.decode(torch.zeros(1, FRAMES, *latents.shape[2:]))),
    }
    assert sum(floor.values()) <= taken
    assert taken < 1.15 * sum(floor.values()), floor
