"""Denoiser, codec, long-video methods, metrics and motion fields: a CUDA device gives the CPU's results."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from gpu_cases import CASES, TO_CPU, Given, coded, estimate
from long_video_runs import animator, sample
from on_device import CUDA, FLOAT32, ROUNDED, SAMPLED, moved, trained_denoiser
from torch import Tensor

from motionanim.models.svd.codec import Codec


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_part(case: str, base: Path, raft_weights: Path, tmp_path: Path, device: str, close: Callable) -> None:
    given, (run, tolerance) = Given(base, raft_weights, tmp_path), CASES[case]
    got = run(given, device)
    assert not isinstance(got, Tensor) or got.device.type == (device if case not in TO_CPU else "cpu")
    close(got, run(given, "cpu"), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("per_frame", [False, True], ids=["sigma of clips", "sigma of frames"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_denoiser_in(base: Path, device: str, dtype: torch.dtype, per_frame: bool, close: Callable) -> None:
    denoiser = trained_denoiser(base)
    got = estimate(moved(denoiser, device, dtype), device, per_frame=per_frame)
    assert got.dtype == torch.float32
    close(got, estimate(denoiser, "cpu", per_frame=per_frame), ROUNDED[dtype])


@pytest.mark.slow
def test_channels_last(base: Path, device: str, close: Callable) -> None:
    denoiser = trained_denoiser(base)
    other = moved(denoiser, device)
    other.channels_last()
    assert other.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    expected = estimate(moved(denoiser, device), device)
    close(estimate(other, device), expected, FLOAT32)


def test_decoder_in_bfloat16(codec: Codec, device: str, close: Callable) -> None:
    _, latents = coded()
    got, expected = moved(codec, device).decode(latents.to(device), dtype=torch.bfloat16), codec.decode(latents)
    assert got.dtype == torch.float32
    close(got, expected, ROUNDED[torch.bfloat16])


# Compiling for a CPU takes minutes. The compiler fuses operations: sums have another order, and fewer are rounded.
@pytest.mark.parametrize("device", [CUDA], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_denoiser(base: Path, device: str, dtype: torch.dtype, close: Callable) -> None:
    denoiser = trained_denoiser(base)
    compiled = moved(denoiser, device, dtype)
    compiled.compile_unet("default")
    expected = estimate(moved(denoiser, device, dtype), device)
    close(estimate(compiled, device), expected, ROUNDED[dtype])


@pytest.mark.parametrize("device", [CUDA], indirect=True)
def test_a_compiled_unet_makes_the_same_video(base: Path, device: str, close: Callable) -> None:
    got, expected = (sample(animator(base, device, compile=mode), "direct") for mode in ("default", None))
    close(got, expected, SAMPLED)
