"""Overlapping windows: Gen-L-Video, FreeNoise, and attention within windows."""

import math

import pytest
import torch
from diffusers.models.attention import FreeNoiseTransformerBlock
from hypothesis import given, settings
from hypothesis import strategies as st
from long_video_runs import L, condition, run
from on_device import awake

from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.windowed_attention import centred_weights, temporal_windows
from motionanim.sampling.chained import direct
from motionanim.sampling.windowed import rescheduled_noise, window_starts


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 30), st.integers(0, 100), st.integers(1, 30))
def test_windows_leave_no_frame_out(length: int, extra: int, stride: int) -> None:
    total = length + extra
    if stride > length:
        with pytest.raises(ValueError, match="leave no gap"):
            window_starts(total, length, stride)
        return
    starts = window_starts(total, length, stride)
    assert {start + i for start in starts for i in range(length)} == set(range(total))
    assert len(starts) == len(set(starts)) == math.ceil(extra / stride) + 1


@pytest.mark.slow
def test_one_window_is_the_plain_run(denoiser: Denoiser) -> None:
    plain = run(direct, denoiser, frames=L)[0]
    for method in ("gen_l_video", "freenoise", "freelong"):
        torch.testing.assert_close(run(method, denoiser, frames=L)[0], plain, atol=2e-4, rtol=1e-3)


def test_windowed_attention_equals_the_plain_one_within_a_window_and_differs_beyond(denoiser: Denoiser) -> None:
    denoiser.eval()
    awake(denoiser.motion, std=0.3)
    z, sigma = torch.randn(2, 9, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((2,), 3.0)
    with torch.no_grad():
        plain, short = denoiser(z, sigma, condition(9, 2)), denoiser(z[:, :5], sigma, condition(5, 2))
        with temporal_windows(denoiser, 5, 2):
            assert torch.equal(denoiser(z[:, :5], sigma, condition(5, 2)), short)
            assert not torch.allclose(denoiser(z, sigma, condition(9, 2)), plain, atol=1e-3)
        assert torch.equal(denoiser(z, sigma, condition(9, 2)), plain), "the context leaves nothing behind"


@pytest.mark.parametrize("count", [1, 2, 5, 16, 25])
def test_a_windows_frames_weigh_as_in_diffusers_freenoise(count: int) -> None:
    published = FreeNoiseTransformerBlock._get_frame_weights(None, count, "pyramid")
    assert centred_weights(count).tolist() == published


def test_windows_are_averaged_by_distance_to_their_centres(denoiser: Denoiser) -> None:
    """Two windows of 5 over 7 frames, by hand: the frames they share weigh 3 2 1 in the first, 1 2 3 in the second."""
    attention = denoiser.unet.down_blocks[0].attentions[0].temporal_transformer_blocks[0].attn1
    awake(denoiser.motion, std=0.3)
    x = torch.randn(64, 7, attention.to_q.in_features, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), denoiser.motion.using(denoiser.context(condition(7))):
        first, second = attention(x[:, :5], frames=slice(0, 5)), attention(x[:, 2:], frames=slice(2, 7))
        with temporal_windows(denoiser, 5, 2):
            whole = attention(x)
    share = torch.tensor([3 / 4, 2 / 4, 1 / 4])[:, None]
    shared = share * first[:, 2:] + (1 - share) * second[:, :3]
    torch.testing.assert_close(whole, torch.cat([first[:, :2], shared, second[:, 3:]], dim=1), atol=1e-6, rtol=1e-5)


def test_reshuffled_noise_keeps_every_frame_equally_often() -> None:
    noise = torch.arange(8.0).view(1, 8, 1, 1, 1)
    longer = rescheduled_noise(noise, 24, 4, torch.Generator().manual_seed(0)).flatten()
    assert longer[:8].tolist() == list(range(8))
    assert sorted(longer.tolist()) == sorted([*range(8)] * 3)


@pytest.mark.parametrize(("length", "stride"), [(8, 4), (25, 4), (5, 2), (6, 6)])
def test_every_window_has_the_first_windows_noise_in_another_order(length: int, stride: int) -> None:
    noise = torch.arange(float(length)).view(1, length, 1, 1, 1)
    longer = rescheduled_noise(noise, 3 * length + 1, stride, torch.Generator().manual_seed(0)).flatten().tolist()
    windows = [longer[first : first + length] for first in range(0, 2 * length, stride)]
    assert all(sorted(window) == list(range(length)) for window in windows)
    assert windows[-1] != windows[0]


def test_frames_of_unequal_noise_are_each_denoised_at_their_own(denoiser: Denoiser) -> None:
    denoiser.eval()
    z = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([0.1, 3.0])
    with torch.no_grad():
        plain = denoiser(z, levels, condition(5, 2))
        same = denoiser(z, levels[:, None].expand(2, 5), condition(5, 2))
        torch.testing.assert_close(same, plain, atol=1e-5, rtol=1e-5)
        mixed = denoiser(z, torch.tensor([[0.1, 0.1, 0.1, 0.1, 9.0]] * 2), condition(5, 2))
        assert not torch.allclose(mixed, plain, atol=1e-3)
        torch.testing.assert_close(denoiser(z, levels, condition(5, 2)), plain, atol=0, rtol=0)
