"""The sampling loop against diffusers' own pipeline from the same noise."""

from pathlib import Path

import torch
from conftest import make_condition
from diffusers import StableVideoDiffusionPipeline

from motionanim.models.schedule import karras_sigmas
from motionanim.models.svd.codec import Codec
from motionanim.models.svd.denoiser import Denoiser
from motionanim.sampling.euler import denoise_from, guided, initial_latents
from motionanim.types import Condition, Kept

SVD = {"sigma_min": 0.002, "sigma_max": 700.0, "rho": 7.0}


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
        pixels,
        noise=torch.zeros_like(pixels),
        noise_aug=torch.zeros(1),
        flow=torch.zeros(1, 4, 2, 16, 16),
        motion_strength=torch.zeros(1),
        fps=torch.tensor([7.0]),
    )._replace(use_flow=torch.zeros(1), use_strength=torch.zeros(1))
    sigmas = karras_sigmas(4, **SVD)
    denoise = guided(denoiser, first=1, last=3, motion=None)
    frames = codec.decode(denoise_from(denoise, initial_latents(noise, sigmas), sigmas, condition))
    torch.testing.assert_close((frames + 1) / 2, reference, atol=2e-5, rtol=1e-4)


def test_two_halves_of_a_run_equal_the_whole_and_inputs_stay(denoiser: Denoiser) -> None:
    condition, sigmas = make_condition(), karras_sigmas(6, **SVD)
    z = initial_latents(torch.randn(2, 5, 4, 8, 8), sigmas)
    kept = z.clone()
    whole = denoise_from(denoiser, z, sigmas, condition)
    middle = denoise_from(denoiser, z, sigmas[:4], condition)
    torch.testing.assert_close(denoise_from(denoiser, middle, sigmas[3:], condition), whole, atol=0, rtol=0)
    torch.testing.assert_close(z, kept, atol=0, rtol=0)


def test_guidance_of_one_is_the_conditional_and_zero_the_unconditional(denoiser: Denoiser) -> None:
    condition, sigma, z = make_condition(), torch.tensor([1.0, 3.0]), torch.randn(2, 5, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            guided(denoiser, first=1, last=1 + 1e-6, motion=None)(z, sigma, condition),  # 1 exactly skips the pair
            denoiser(z, sigma, condition),
            atol=2e-5,
            rtol=1e-4,
        )
        without = condition._replace(
            image_latents=torch.zeros_like(condition.image_latents), image_embed=torch.zeros_like(condition.image_embed)
        )
        torch.testing.assert_close(
            guided(denoiser, first=0, last=0, motion=None)(z, sigma, condition),
            denoiser(z, sigma, without),
            atol=2e-5,
            rtol=1e-4,
        )


def test_a_scale_for_each_frame_takes_the_place_of_the_ramp(denoiser: Denoiser) -> None:
    condition, sigma, z = make_condition(), torch.tensor([1.0, 3.0]), torch.randn(2, 5, 4, 8, 8)
    denoise = guided(denoiser, first=1, last=3, motion=None)
    with torch.no_grad():
        ramp = denoise(z, sigma, condition)
        assert torch.equal(denoise(z, sigma, condition, torch.linspace(1, 3, 5).expand(2, 5)), ramp)
        three = denoise(z, sigma, condition, torch.tensor([[3.0] * 5, [1.0] * 5]))
        torch.testing.assert_close(three[0, -1], ramp[0, -1])
        torch.testing.assert_close(three[1, 0], ramp[1, 0])
        assert not torch.allclose(three[0, 0], ramp[0, 0], atol=1e-3)


def test_what_is_made_of_a_condition_is_kept_for_that_very_one() -> None:
    made: list[Condition] = []
    keep = Kept(lambda condition: made.append(condition) or len(made))
    first, equal = make_condition(), make_condition()
    assert [keep(first), keep(equal), keep(first), keep(equal)] == [1, 2, 1, 2]
    others = [make_condition() for _ in range(Kept.COUNT)]
    assert [keep(other) for other in others * 2] == [*range(3, 11)] * 2
    assert keep(first) == 11, "forgotten"


def test_motion_guidance_weighs_image_and_motion_apart(denoiser: Denoiser) -> None:
    for parameter in denoiser.motion.parameters():
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(1))
    condition, sigma, z = make_condition(), torch.tensor([1.0, 3.0]), torch.randn(2, 5, 4, 8, 8)
    still = condition._replace(use_flow=torch.zeros(2), use_strength=torch.zeros(2))
    with torch.no_grad():
        full, image = denoiser(z, sigma, condition), denoiser(z, sigma, still)
        one = guided(denoiser, first=1, last=1, motion=1.0)(z, sigma, condition)
        torch.testing.assert_close(one, full, atol=2e-5, rtol=1e-4)
        three = guided(denoiser, first=1, last=1, motion=3.0)(z, sigma, condition)
        torch.testing.assert_close(three, image + 3 * (full - image), atol=2e-4, rtol=1e-3)
        assert not torch.allclose(full, image, atol=1e-3)
