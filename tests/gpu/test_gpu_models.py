"""Denoiser, sampler, codec and long-video methods: a CUDA device gives the CPU's results."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from gpu_cases import CODEC, METHODS, animator, coded, estimate, sample
from on_device import CUDA, FLOAT32, ROUNDED, SAMPLED, close, moved, noisy, sent, trained_denoiser

from motionanim.models.schedule import karras_sigmas
from motionanim.models.svd.codec import Codec
from motionanim.models.svd.denoiser import Denoiser
from motionanim.sampling.samplers import euler, initial_latents

PRECISIONS = list(ROUNDED)


@pytest.mark.parametrize("per_frame", [False, True], ids=["sigma of clips", "sigma of frames"])
@pytest.mark.parametrize("dtype", PRECISIONS, ids=str)
def test_denoiser(base: Path, device: str, dtype: torch.dtype, per_frame: bool, record_property: Callable) -> None:
    denoiser = trained_denoiser(base)
    got = estimate(moved(denoiser, device, dtype), device, per_frame=per_frame)
    assert got.dtype == torch.float32
    expected = estimate(denoiser, "cpu", per_frame=per_frame)
    close(got, expected, tolerance=ROUNDED[dtype], record_property=record_property)


@pytest.mark.parametrize("motion", [{"residual_std": 0.6}, {"motion_keys": "field"}], ids=["residual", "keys of field"])
def test_denoiser_of_another_kind(base: Path, device: str, motion: dict, record_property: Callable) -> None:
    denoiser = trained_denoiser(base, **motion)
    got = estimate(moved(denoiser, device), device)
    close(got, estimate(denoiser, "cpu"), tolerance=FLOAT32, record_property=record_property)


def test_guidance(base: Path, device: str, record_property: Callable) -> None:
    denoiser = trained_denoiser(base)
    got = estimate(moved(denoiser, device), device, guide=True)
    close(got, estimate(denoiser, "cpu", guide=True), tolerance=FLOAT32, record_property=record_property)


def test_euler_run(base: Path, device: str, record_property: Callable) -> None:
    denoiser, (noise, _, condition) = trained_denoiser(base), noisy()
    sigmas = karras_sigmas(4, sigma_min=0.002, sigma_max=80.0, rho=7.0)

    def run(denoiser: Denoiser, device: str) -> torch.Tensor:
        z = initial_latents(noise / noise.std(), sigmas).to(device)
        return euler(partial(denoiser, condition=sent(condition, device)), z, sigmas)

    got, expected = run(moved(denoiser, device), device), run(denoiser, "cpu")
    close(got, expected, tolerance=SAMPLED, record_property=record_property)


def test_channels_last(base: Path, device: str, record_property: Callable) -> None:
    denoiser = trained_denoiser(base)
    other = moved(denoiser, device)
    other.channels_last()
    assert other.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    expected = estimate(moved(denoiser, device), device)
    close(estimate(other, device), expected, tolerance=FLOAT32, record_property=record_property)


@pytest.mark.parametrize("part", CODEC)
def test_codec(codec: Codec, device: str, part: str, record_property: Callable) -> None:
    got = CODEC[part](moved(codec, device), *(value.to(device) for value in coded()))
    close(got, CODEC[part](codec, *coded()), tolerance=FLOAT32, record_property=record_property)


def test_decoder_in_bfloat16(codec: Codec, device: str, record_property: Callable) -> None:
    _, latents = coded()
    got, expected = moved(codec, device).decode(latents.to(device), dtype=torch.bfloat16), codec.decode(latents)
    assert got.dtype == torch.float32
    close(got, expected, tolerance=ROUNDED[torch.bfloat16], record_property=record_property)


def video(base: Path, device: str, method: str, **sampling) -> torch.Tensor:
    return sample(animator(base, device, **sampling), method)


@pytest.mark.parametrize("method", METHODS)
def test_long_video(base: Path, device: str, method: str, record_property: Callable) -> None:
    got, expected = video(base, device, method), video(base, "cpu", method)
    assert got.device.type == device
    close(got, expected, tolerance=SAMPLED, record_property=record_property)


# Compiling for a CPU takes minutes. The compiler fuses operations: sums have another order, and fewer are rounded.
@pytest.mark.parametrize("device", [CUDA], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_denoiser(base: Path, device: str, dtype: torch.dtype, record_property: Callable) -> None:
    denoiser = trained_denoiser(base)
    compiled = moved(denoiser, device, dtype)
    compiled.compile_unet("default")
    expected = estimate(moved(denoiser, device, dtype), device)
    close(estimate(compiled, device), expected, tolerance=ROUNDED[dtype], record_property=record_property)


@pytest.mark.parametrize("device", [CUDA], indirect=True)
def test_a_compiled_unet_makes_the_same_video(base: Path, device: str, record_property: Callable) -> None:
    got, expected = (video(base, device, "direct", compile=mode) for mode in ("default", None))
    close(got, expected, tolerance=SAMPLED, record_property=record_property)
