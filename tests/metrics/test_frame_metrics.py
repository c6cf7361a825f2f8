import math

import numpy as np
import piq
import pytest
import torch
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


@pytest.mark.parametrize(
    "clips",
    [
        *(pair(strength=strength) for strength in (0.02, 0.2, 1.0)),
        # Bright and nearly even frames, where E[x^2] - E[x]^2 would lose its digits in float32.
        [0.9 + 0.01 * noise(1, 2, 3, 40, 40, seed=seed) for seed in (0, 1)],
    ],
    ids=["weak", "medium", "strong", "bright"],
)
def test_ssim_equals_scikit_image_and_piq(clips) -> None:
    made, real = clips
    found = ssim(made, real).flatten()
    options = {"channel_axis": 2, "data_range": 1, "gaussian_weights": True, "use_sample_covariance": False}
    expected = [structural_similarity(a, b, **options) for a, b in zip(images(made), images(real))]
    torch.testing.assert_close(found.double(), torch.tensor(expected), atol=1e-5, rtol=0)
    x, y = (clip.flatten(0, 1).double() / 2 + 0.5 for clip in clips)
    expected = piq.ssim(x, y, data_range=1.0, downsample=False, reduction="none")
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=0)


def test_psnr_equals_scikit_image_and_torchmetrics() -> None:
    made, real = pair()
    expected = [peak_signal_noise_ratio(b, a, data_range=1) for a, b in zip(images(made), images(real))]
    torch.testing.assert_close(psnr(made, real).flatten().double(), torch.tensor(expected), atol=1e-4, rtol=0)
    reference = PeakSignalNoiseRatio(data_range=(-1.0, 1.0), dim=(1, 2, 3), reduction="none")
    torch.testing.assert_close(psnr(made, real).flatten(), reference(made.flatten(0, 1), real.flatten(0, 1)))


def test_equal_frames_have_ssim_1_and_no_finite_psnr() -> None:
    _, real = pair()
    torch.testing.assert_close(ssim(real, real), torch.ones(2, 3))
    assert psnr(real, real).isposinf().all()


def test_the_numbers_of_record_leave_frame_0_out() -> None:
    made, real = pair(frames=4)
    made[:, 0] = real[:, 0]
    for metric, per_frame in ((PSNR(cap=100.0), psnr(made, real).clamp(max=100)), (SSIM(), ssim(made, real))):
        record, with_frame0 = metric.score(made, real).T
        torch.testing.assert_close(record, per_frame[:, 1:].double().mean(1))
        torch.testing.assert_close(with_frame0, per_frame.double().mean(1))
    assert both_conventions(torch.zeros(2, 4), real).dtype == torch.float64


def test_frames_at_which_the_true_clip_stands_still_do_not_count() -> None:
    """A copy of frame 0 is perfect there: at a cap of 100 dB one still clip in eight would add 9 dB to a mean of 27."""
    made, real = pair(clips=2, frames=4)
    real[0, 1:] = real[0, :1]  # a clip that stands still
    real[1, 2] = real[1, 0]  # a clip that comes back once
    made[:, 0] = real[:, 0]
    for metric, per_frame in ((PSNR(cap=100.0), psnr(made, real).clamp(max=100)), (SSIM(), ssim(made, real))):
        (still, still_with), (record, with_frame0) = metric.score(made, real)
        assert still.isnan()
        assert still_with.isnan()
        torch.testing.assert_close(record, per_frame[1, [1, 3]].double().mean())
        torch.testing.assert_close(with_frame0, per_frame[1, [0, 1, 3]].double().mean())
        metric.update(made, real)
        assert metric.compute()[metric.keys[0]] == record
        assert metric.protocol["still_frames"] == "left out"


def test_the_cap_bounds_a_copied_frame_and_is_part_of_the_protocol() -> None:
    _, real = pair()
    assert PSNR(cap=80.0).score(real, real).unique().tolist() == [80.0]
    assert PSNR(cap=80.0).protocol != PSNR(cap=100.0).protocol
    for cap in (59.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"cap={cap}"):
            PSNR(cap=cap)


def test_true_frames_are_checked_too_and_ssim_needs_its_window() -> None:
    good = torch.zeros(1, 2, 3, 11, 16)
    for score in (psnr, ssim):
        assert score(good, good).shape == (1, 2)
        with pytest.raises(ValueError, match="must have the same shape"):
            score(good, torch.zeros(1, 2, 3, 11, 17))
        with pytest.raises(ValueError, match=r"real: values from"):
            score(good, good + math.nan)
    with pytest.raises(ValueError, match=r"frames of \(10, 16\) px.*at least 11 px"):
        ssim(good[..., :10, :], good[..., :10, :])
