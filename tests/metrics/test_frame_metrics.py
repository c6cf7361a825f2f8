import copy
import math

import numpy as np
import piq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.image import PeakSignalNoiseRatio

from motionanim.metrics.frame import PSNR, SSIM, both_conventions, psnr, ssim


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pair(seed: int = 0, *, clips: int = 2, frames: int = 3, height: int = 24, width: int = 33, strength: float = 0.2):
    """Smooth clips (B, T, 3, H, W) in [-1, 1] and noisy versions of them."""
    real = torch.nn.functional.interpolate(
        noise(clips * frames, 3, 5, 6, seed=seed), size=(height, width), mode="bicubic"
    ).clamp(-1, 1)
    made = (real + strength * noise(*real.shape, seed=seed + 1)).clamp(-1, 1)
    return made.unflatten(0, (clips, frames)), real.unflatten(0, (clips, frames))


def images(clips: torch.Tensor) -> np.ndarray:
    """(N, H, W, 3) in [0, 1], float64."""
    return (clips.double() / 2 + 0.5).flatten(0, 1).permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("strength", [0.02, 0.2, 1.0])
def test_ssim_equals_scikit_image(strength):
    made, real = pair(strength=strength)
    expected = [
        structural_similarity(a, b, channel_axis=2, data_range=1, gaussian_weights=True, sigma=1.5,
                              use_sample_covariance=False)
        for a, b in zip(images(made), images(real))
    ]  # fmt: skip
    torch.testing.assert_close(ssim(made, real).flatten().double(), torch.tensor(expected), atol=1e-5, rtol=0)


def test_ssim_keeps_its_digits_in_bright_and_in_nearly_even_frames():
    # E[x^2] - E[x]^2 is where float32 would lose them.
    real = 0.9 + 0.01 * noise(1, 2, 3, 40, 40, seed=0)
    made = 0.9 + 0.01 * noise(1, 2, 3, 40, 40, seed=1)
    expected = [
        structural_similarity(a, b, channel_axis=2, data_range=1, gaussian_weights=True, use_sample_covariance=False)
        for a, b in zip(images(made), images(real))
    ]
    torch.testing.assert_close(ssim(made, real).flatten().double(), torch.tensor(expected), atol=1e-5, rtol=0)


def test_ssim_equals_piq():
    made, real = pair(seed=3)
    x, y = (clip.flatten(0, 1) / 2 + 0.5 for clip in (made, real))
    expected = piq.ssim(x, y, data_range=1.0, downsample=False, reduction="none")
    torch.testing.assert_close(ssim(made, real).flatten(), expected, atol=1e-5, rtol=0)


def test_psnr_equals_scikit_image_and_torchmetrics():
    made, real = pair()
    expected = [peak_signal_noise_ratio(b, a, data_range=1) for a, b in zip(images(made), images(real))]
    torch.testing.assert_close(psnr(made, real).flatten().double(), torch.tensor(expected), atol=1e-4, rtol=0)
    reference = PeakSignalNoiseRatio(data_range=(-1.0, 1.0), dim=(1, 2, 3), reduction="none")
    torch.testing.assert_close(psnr(made, real).flatten(), reference(made.flatten(0, 1), real.flatten(0, 1)))


@settings(max_examples=20, deadline=None)
@given(offset=st.floats(0.01, 1.0))
def test_psnr_of_an_offset_is_known(offset):
    real = torch.full((1, 2, 3, 4, 4), -0.5)
    assert psnr(real + offset, real)[0, 0].item() == pytest.approx(20 * math.log10(2 / offset), abs=1e-3)


def test_equal_frames_have_ssim_1_and_no_finite_psnr():
    _, real = pair()
    torch.testing.assert_close(ssim(real, real), torch.ones(2, 3))
    assert psnr(real, real).isposinf().all()


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), strength=st.floats(0.01, 2.0))
def test_both_are_symmetric_and_blind_to_mirroring(seed, strength):
    made, real = pair(seed, clips=1, frames=2, height=13, width=17, strength=strength)
    for score in (psnr, ssim):
        torch.testing.assert_close(score(made, real), score(real, made))
        torch.testing.assert_close(score(made.flip(-1), real.flip(-1)), score(made, real), atol=1e-4, rtol=1e-5)
    assert ssim(made, real).max() < 1


def test_the_numbers_of_record_leave_frame_0_out():
    made, real = pair(frames=4)
    made[:, 0] = real[:, 0]
    for metric, per_frame in ((PSNR(cap=100.0), psnr(made, real).clamp(max=100)), (SSIM(), ssim(made, real))):
        record, with_frame0 = metric.score(made, real).T
        torch.testing.assert_close(record, per_frame[:, 1:].double().mean(1))
        torch.testing.assert_close(with_frame0, per_frame.double().mean(1))
    # A copied frame 0 adds a share of the cap, not infinity.
    record, with_frame0 = PSNR(cap=100.0).score(made, real).T
    torch.testing.assert_close(with_frame0, (3 * record + 100) / 4)


def test_a_copied_video_scores_the_cap():
    _, real = pair()
    metric = PSNR(cap=80.0)
    metric.update(real, real)
    assert {key: value.item() for key, value in metric.compute().items()} == {"psnr": 80.0, "psnr_with_frame0": 80.0}
    assert metric.protocol != PSNR(cap=100.0).protocol


@pytest.mark.parametrize("metric", [PSNR(cap=100.0), SSIM()], ids=["psnr", "ssim"])
def test_the_mean_is_over_clips_however_they_come(metric):
    made, real = pair(clips=5)
    whole, first, second = (copy.deepcopy(metric) for _ in range(3))
    whole.update(made, real)
    for part in (slice(0, 1), slice(1, 4)):
        first.update(made[part], real[part])
    second.update(made[4:], real[4:])
    first.merge_state(second)
    expected = dict(zip(metric.keys, metric.score(made, real).mean(0)))
    for found in (whole.compute(), first.compute()):
        assert found.keys() == expected.keys()
        for key, value in found.items():
            torch.testing.assert_close(value, expected[key])


def test_nothing_is_changed_in_place():
    made, real = pair()
    kept = made.clone(), real.clone()
    PSNR(cap=100.0).score(made, real), SSIM().score(made, real)
    assert torch.equal(made, kept[0])
    assert torch.equal(real, kept[1])


def test_half_precision_is_measured_in_float32():
    made, real = pair()
    made, real = made.half(), real.half()
    for score in (psnr, ssim):
        torch.testing.assert_close(score(made, real), score(made.float(), real.float()))


def spoiled(value: float) -> torch.Tensor:
    clip = torch.zeros(1, 2, 3, 16, 16)
    clip[0, 1, 2, 3, 4] = value
    return clip


@pytest.mark.parametrize("score", [psnr, ssim, PSNR(cap=100.0).score, SSIM().score])
def test_bad_clips_are_named(score):
    good = torch.zeros(1, 2, 3, 16, 16)
    for shape in [(1, 1, 3, 16, 16), (1, 2, 1, 16, 16), (2, 3, 16, 16), (0, 2, 3, 16, 16)]:
        with pytest.raises(ValueError, match=r"frames of shape .* T of at least 2"):
            score(torch.zeros(shape), torch.zeros(shape))
    with pytest.raises(ValueError, match="must have the same shape"):
        score(good, torch.zeros(1, 2, 3, 16, 17))
    for value in (math.nan, math.inf, 255.0, -1.1):
        with pytest.raises(ValueError, match=r"frames: values from .* in \[-1, 1\]"):
            score(spoiled(value), good)
        with pytest.raises(ValueError, match=r"real: values from .* in \[-1, 1\]"):
            score(good, spoiled(value))


def test_frames_smaller_than_the_window_are_named():
    small = torch.zeros(1, 2, 3, 10, 16)
    with pytest.raises(ValueError, match=r"frames of \(10, 16\) px.*at least 11 px"):
        ssim(small, small)
    assert psnr(small, small).shape == (1, 2)
    assert ssim(torch.zeros(1, 2, 3, 11, 11), torch.zeros(1, 2, 3, 11, 11)).shape == (1, 2)


@pytest.mark.parametrize("cap", [59.0, math.inf, math.nan])
def test_a_cap_that_would_cut_real_scores_is_refused(cap):
    with pytest.raises(ValueError, match=f"cap={cap}.*from 60 upwards"):
        PSNR(cap=cap)


def test_no_clip_is_an_error():
    with pytest.raises(ValueError, match="SSIM: no clip"):
        SSIM().compute()


def test_conventions_are_in_float64():
    assert both_conventions(torch.zeros(2, 3)).dtype == torch.float64
