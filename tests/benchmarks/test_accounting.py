"""Counts agree with sums by hand, with known totals of Stable Video Diffusion, and with real tensors."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from accounting import PeakMemory, count_flops
from conftest import MOTION, make_condition
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from motionanim.models.svd.denoiser import Denoiser

SVD = yaml.safe_load((Path(__file__).parents[2] / "benchmarks" / "svd.yaml").read_text())

STILL = MOTION | {"warped_latent": False}  # its warp reads values, which fake tensors lack


@pytest.fixture
def no_memory() -> Iterator[None]:
    with FakeTensorMode():
        yield


def svd_unet() -> UNetSpatioTemporalConditionModel:
    return UNetSpatioTemporalConditionModel(**SVD["unet"])


def run_unet(unet: UNetSpatioTemporalConditionModel, batch: int = 1) -> Tensor:
    return unet(
        torch.empty(batch, 25, 8, 64, 64), torch.empty(batch), encoder_hidden_states=torch.empty(batch, 1, 1024),
        added_time_ids=torch.empty(batch, 3),
    ).sample  # fmt: skip


def test_flops_of_a_product_a_convolution_and_attention():
    assert count_flops(lambda: torch.ones(3, 4) @ torch.ones(4, 5)) == 2 * 3 * 4 * 5
    convolution = nn.Conv2d(3, 7, 3, padding=1)
    assert count_flops(lambda: convolution(torch.ones(2, 3, 8, 8))) == 2 * (2 * 8 * 8) * 7 * (3 * 9)
    q = torch.ones(1, 2, 6, 4)
    assert count_flops(lambda: nn.functional.scaled_dot_product_attention(q, q, q)) == 2 * 2 * 2 * 6 * 6 * 4


def test_backward_costs_twice_the_forward():
    layer, x = nn.Linear(8, 8), torch.ones(4, 8, requires_grad=True)
    forward = count_flops(lambda: layer(x))
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * forward


@pytest.mark.slow
def test_svd_at_512_is_31_7_tflop_a_call_and_76_a_decoded_clip(no_memory):
    with torch.no_grad():
        assert round(count_flops(lambda: run_unet(svd_unet())) / 1e12, 1) == 31.7
        vae = AutoencoderKLTemporalDecoder(**SVD["vae"])
        assert round(sum(p.numel() for p in vae.parameters()) / 1e6, 1) == 97.7
        assert round(count_flops(lambda: vae.decode(torch.empty(25, 4, 64, 64), num_frames=25)) / 1e12) == 76


def test_peak_counts_what_is_alive_once():
    kept = nn.Linear(10, 10, bias=False)
    with PeakMemory(kept) as memory:
        assert memory.now == 400
        a = torch.ones(100)
        view = a.view(10, 10)
        assert memory.now == 800
        b = view + 1
        del a
        assert memory.now == 1200, "the view holds it"
        del view
        assert (memory.now, memory.peak) == (800, 1200)
        del b
        assert (memory.now, memory.peak) == (400, 1200)


def step_memory(denoiser: Denoiser, z: Tensor) -> int:
    with PeakMemory(denoiser) as memory:
        before = memory.now
        context = denoiser.context(make_condition(batch=len(z)))
        with denoiser.motion.using(context):  # diffusers' own checkpointing reads it in the backward pass too
            denoiser(z, torch.ones(len(z)), context).square().mean().backward()
    return memory.peak - before


@pytest.mark.slow
def test_fake_tensors_cost_what_real_ones_do(base):
    config = UNetSpatioTemporalConditionModel.load_config(base, subfolder="unet")

    def peak() -> int:
        unet = UNetSpatioTemporalConditionModel.from_config(config)
        return step_memory(Denoiser(unet, downscale=2, scaling=1.0, motion=STILL).train(), torch.randn(2, 5, 4, 8, 8))

    real = peak()
    with FakeTensorMode():
        assert peak() == pytest.approx(real, rel=0.02)


@pytest.mark.slow
def test_checkpointing_blocks_needs_less_than_diffusers_own(base):
    z, peaks = torch.randn(2, 5, 4, 8, 8), []
    kinds = (
        lambda d: None,
        lambda d: d.unet.enable_gradient_checkpointing(),
        lambda d: d.checkpoint_blocks(32),
        lambda d: d.checkpoint_blocks(64),
    )
    for prepare in kinds:
        denoiser = Denoiser.from_pretrained(base, downscale=2, motion=MOTION).train()
        prepare(denoiser)
        peaks.append(step_memory(denoiser, z))
    plain, diffusers_own, narrow, blocks = peaks
    assert blocks < narrow < diffusers_own < plain


@pytest.mark.long
@pytest.mark.slow
def test_batch_4_trains_within_80_gb_at_svd_size(no_memory):
    """512 x 512 x 25, literal preset, bf16-mixed, weights, gradients and optimizer in float32: 44 GiB at the peak."""
    denoiser = Denoiser(svd_unet(), downscale=8, scaling=1.0, motion=STILL | {"channels": 64}).train()
    denoiser.select_trainable("literal")
    denoiser.checkpoint_blocks(1280)
    trained = [p for p in denoiser.parameters() if p.requires_grad]
    condition = make_condition(
        batch=4, frames=25, image_latents=torch.empty(4, 4, 64, 64), image_embed=torch.empty(4, 1, 1024),
        warped_latents=torch.empty(4, 25, 4, 64, 64), flow=torch.empty(4, 24, 2, 512, 512),
    )  # fmt: skip
    with PeakMemory(denoiser) as memory:
        moments = [torch.zeros_like(parameter) for parameter in trained for _ in range(2)]  # AdamW's
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = denoiser(torch.empty(4, 25, 4, 64, 64), torch.ones(4), condition).square().mean()
        loss.backward()
        del moments
    assert round(memory.peak / 2**30) == 44
