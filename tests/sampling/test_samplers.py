"""Samplers and guidance against diffusers' schedulers and pipeline, from the same noise."""

from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import make_condition
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    StableVideoDiffusionPipeline,
)
from long_video_runs import METHODS, run
from on_device import awake
from torch import Tensor

from motionanim.models.schedule import karras_sigmas, to_denoised
from motionanim.models.svd.codec import Codec
from motionanim.models.svd.denoiser import Denoiser
from motionanim.sampling.guidance import guided
from motionanim.sampling.samplers import SAMPLERS, euler, heun, initial_latents, sampler_calls

SVD = {"sigma_min": 0.002, "sigma_max": 700.0, "rho": 7.0}
EMBEDDED = {"sigma_min": 0.02, "sigma_max": 80.0, "rho": 7.0}  # of the embedded base, in 8 steps
COMMON = {"prediction_type": "v_prediction", "use_karras_sigmas": True}


def network_v(z: Tensor, sigma: Tensor) -> Tensor:
    """A v-prediction that is smooth in both, but not linear."""
    return torch.tanh(z / (sigma**2 + 1) ** 0.5) * torch.cos(sigma.log() / 3)


def denoise(z: Tensor, sigma: Tensor) -> Tensor:
    return to_denoised(network_v(z, sigma.view(-1, 1, 1, 1, 1)), z, sigma)


def published(name: str, z: Tensor, sigmas: Tensor) -> Tensor:
    """A run of diffusers' scheduler over `sigmas`, called as a pipeline calls it."""
    if name == "dpmpp_2m":
        scheduler = DPMSolverMultistepScheduler(
            algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero", **COMMON
        )
    elif name == "heun":
        scheduler = HeunDiscreteScheduler(**COMMON)
    else:
        scheduler = EulerDiscreteScheduler(sigma_min=0.02, sigma_max=80.0, timestep_type="continuous", **COMMON)
    steps = len(sigmas) - 1
    scheduler.set_timesteps(steps)
    if name == "euler":
        torch.testing.assert_close(scheduler.sigmas, sigmas, atol=0, rtol=0)
    # The others take their levels from the training betas, which reach 14.6: give them these ones.
    scheduler.sigmas = sigmas
    scheduler.timesteps = torch.arange(steps, 0, -1).float()
    if name == "heun":
        scheduler.sigmas = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
        scheduler.timesteps = torch.arange(2 * steps - 1, 0, -1).float()
    scheduler.set_begin_index(0)
    # DPM-Solver's latents are variance-preserving: z / sqrt(sigma^2 + 1), with the same v.
    preserving = name == "dpmpp_2m"
    if preserving:
        z = z / (sigmas[0] ** 2 + 1) ** 0.5
    for number, time in enumerate(scheduler.timesteps):
        sigma = scheduler.sigmas[number]
        exploding = z * (sigma**2 + 1) ** 0.5 if preserving else z
        z = scheduler.step(network_v(exploding, sigma), time, z).prev_sample
    return z


@pytest.mark.parametrize("steps", [2, 8, 25])
@pytest.mark.parametrize("name", SAMPLERS)
def test_samplers_equal_diffusers_on_the_embedded_bases_schedule(name: str, steps: int) -> None:
    sigmas, seen = karras_sigmas(steps, **EMBEDDED), []

    def counted(z: Tensor, sigma: Tensor) -> Tensor:
        seen.append(sigma)
        return denoise(z, sigma)

    z = initial_latents(torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), sigmas)
    kept = z.clone()
    ours, theirs = SAMPLERS[name](counted, z, sigmas), published(name, z, sigmas)
    exact = {"atol": 0, "rtol": 0} if name == "euler" else {"atol": 2e-5, "rtol": 1e-5}
    torch.testing.assert_close(ours, theirs, **exact)
    assert torch.equal(z, kept)
    assert len(seen) == sampler_calls(name, steps)


@pytest.mark.parametrize("name", ["heun", "dpmpp_2m"])
def test_samplers_of_second_order_converge_faster_than_euler(name: str) -> None:
    z = torch.randn(1, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 80

    def end(sampler, steps: int) -> Tensor:
        return sampler(denoise, z, karras_sigmas(steps, **EMBEDDED).double())

    exact = end(heun, 2000)
    errors = {each: (end(each, 50) - exact).square().mean().sqrt() for each in (euler, SAMPLERS[name])}
    assert errors[SAMPLERS[name]] < errors[euler] / 5


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2m"])
@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("fifo", "zigzag")])
def test_every_method_without_a_queue_takes_every_sampler(method: str, sampler: str) -> None:
    video, record = run(method, sampler=sampler)
    plain, cost = run(method)
    assert video.isfinite().all()
    assert not torch.equal(video, plain)
    assert record.calls > cost.calls if sampler == "heun" else record.calls == cost.calls


def test_equals_the_svd_pipeline_from_the_same_noise(base: Path, codec: Codec, denoiser: Denoiser) -> None:
    """Motion off: same image, same noise, guidance 1 to 3, decode included."""
    pipeline = StableVideoDiffusionPipeline.from_pretrained(base)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 16, 16, generator=generator)
    noise = torch.randn(1, 5, 4, 8, 8, generator=generator)
    pil = pipeline.video_processor.postprocess(image * 2 - 1, output_type="pil")
    reference = pipeline(
        pil, height=16, width=16, num_frames=5, num_inference_steps=4, fps=7, motion_bucket_id=127,
        noise_aug_strength=0.0, latents=noise, output_type="pt",
    ).frames  # fmt: skip

    pixels = (image * 255).round() / 255 * 2 - 1
    condition = codec.condition(
        pixels, noise=torch.zeros_like(pixels), noise_aug=torch.zeros(1), flow=torch.zeros(1, 4, 2, 16, 16),
        motion_strength=torch.zeros(1), fps=torch.tensor([7.0]), warped_latents=None,
    )._replace(use_flow=torch.zeros(1), use_strength=torch.zeros(1))  # fmt: skip
    sigmas = karras_sigmas(4, **SVD)
    with torch.no_grad():
        estimate = guided(denoiser, condition, first=1, last=3, motion=None)
        frames = codec.decode(euler(estimate, initial_latents(noise, sigmas), sigmas))
    torch.testing.assert_close((frames + 1) / 2, reference, atol=2e-5, rtol=1e-4)


@pytest.mark.slow
def test_two_halves_of_an_euler_run_equal_the_whole(denoiser: Denoiser) -> None:
    sigmas, denoise = karras_sigmas(6, **SVD), partial(denoiser, condition=make_condition())
    z = initial_latents(torch.randn(2, 5, 4, 8, 8), sigmas)
    middle = euler(denoise, z, sigmas[:4])
    torch.testing.assert_close(euler(denoise, middle, sigmas[3:]), euler(denoise, z, sigmas), atol=0, rtol=0)


CLOSE = {"atol": 2e-5, "rtol": 1e-4}


@torch.no_grad()
def test_guidance_of_one_is_the_conditional_and_zero_the_unconditional(denoiser: Denoiser) -> None:
    condition, sigma, z = make_condition(), torch.tensor([1.0, 3.0]), torch.randn(2, 5, 4, 8, 8)
    one = guided(denoiser, condition, first=1, last=1 + 1e-6, motion=None)  # 1 exactly skips the pair
    torch.testing.assert_close(one(z, sigma), denoiser(z, sigma, condition), **CLOSE)
    zero = guided(denoiser, condition, first=0, last=0, motion=None)
    without = condition._replace(use_image=torch.zeros(2))
    torch.testing.assert_close(zero(z, sigma), denoiser(z, sigma, without), **CLOSE)


@torch.no_grad()
def test_a_scale_for_each_frame_takes_the_place_of_the_ramp(denoiser: Denoiser) -> None:
    condition, sigma, z = make_condition(), torch.tensor([1.0, 3.0]), torch.randn(2, 5, 4, 8, 8)
    estimate = guided(denoiser, condition, first=1, last=3, motion=None)
    ramp = estimate(z, sigma)
    assert torch.equal(estimate(z, sigma, torch.linspace(1, 3, 5).expand(2, 5)), ramp)
    three = estimate(z, sigma, torch.tensor([[3.0] * 5, [1.0] * 5]))
    torch.testing.assert_close(three[0, -1], ramp[0, -1])
    torch.testing.assert_close(three[1, 0], ramp[1, 0])
    assert not torch.allclose(three[0, 0], ramp[0, 0], atol=1e-3)


@torch.no_grad()
def test_motion_guidance_weighs_image_and_motion_apart(denoiser: Denoiser) -> None:
    awake(denoiser.motion)
    condition, sigma, z = make_condition(), torch.tensor([1.0, 3.0]), torch.randn(2, 5, 4, 8, 8)
    still = condition._replace(use_flow=torch.zeros(2), use_strength=torch.zeros(2))
    full, image = denoiser(z, sigma, condition), denoiser(z, sigma, still)
    one, three = (guided(denoiser, condition, first=1, last=1, motion=scale)(z, sigma) for scale in (1.0, 3.0))
    torch.testing.assert_close(one, full, **CLOSE)
    torch.testing.assert_close(three, image + 3 * (full - image), atol=2e-4, rtol=1e-3)
    assert not torch.allclose(full, image, atol=1e-3)
