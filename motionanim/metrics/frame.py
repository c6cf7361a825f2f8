"""Distance of each frame to the true one: PSNR and SSIM.

Frame 0 of an animated image is the condition image, so a score that counts it flatters: the numbers of record are over
frames 1 to T-1, and the convention that counts frame 0 goes under a key of its own. Mean over frames, then over clips.
"""

from typing import Any

import torch
from torch import Tensor

from motionanim.metrics.base import ClipMetric

# Wang et al. 2004: gaussian window of 11 px with sigma 1.5; C1 = (K1 L)^2, C2 = (K2 L)^2, L the range of the values.
_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03
_RANGE = 2.0
_TOLERANCE = 1e-3  # beyond [-1, 1], for frames that were resized or decoded


def check_clips(name: str, clips: Tensor) -> None:
    """Raise a `ValueError` unless clips are (B, T, 3, H, W), T at least 2, with finite values in [-1, 1]."""
    if clips.ndim != 5 or clips.shape[2] != 3 or clips.shape[1] < 2 or not clips.numel():
        raise ValueError(f"{name} of shape {tuple(clips.shape)}: must be (B, T, 3, H, W) with T of at least 2")
    low, high = (value.item() for value in clips.aminmax())
    if not (low >= -1 - _TOLERANCE and high <= 1 + _TOLERANCE):  # NaN fails too
        raise ValueError(f"{name}: values from {low:g} to {high:g}, must be finite and in [-1, 1]; clamp them first")


def check_pair(frames: Tensor, real: Tensor) -> None:
    """Raise a `ValueError` unless both pass `check_clips` and have one shape."""
    check_clips("frames", frames)
    check_clips("real", real)
    if frames.shape != real.shape:
        raise ValueError(f"frames {tuple(frames.shape)} and real {tuple(real.shape)}: must have the same shape")


def psnr(frames: Tensor, real: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame over its RGB values.

    Args:
        frames: (B, T, 3, H, W) in [-1, 1].
        real: Like `frames`.

    Returns:
        (B, T) float32, dB, infinite for equal frames.

    Raises:
        ValueError: If `check_pair` does.
    """
    check_pair(frames, real)
    error = (frames.float() - real.float()).square().mean((2, 3, 4))
    return 10 * torch.log10(_RANGE**2 / error)


def ssim(frames: Tensor, real: Tensor) -> Tensor:
    """Structural similarity (Wang et al., IEEE TIP 2004) of each frame: mean of its map over RGB and the valid window.

    Scikit-image gives the same with gaussian_weights=True and use_sample_covariance=False, piq with downsample=False.

    Args:
        frames: (B, T, 3, H, W) in [-1, 1], H and W at least 11.
        real: Like `frames`.

    Returns:
        (B, T) float32, at most 1; 1 for equal frames.

    Raises:
        ValueError: If `check_pair` does, or a side is too short.
    """
    check_pair(frames, real)
    if min(frames.shape[-2:]) < _WINDOW:
        raise ValueError(f"frames of {tuple(frames.shape[-2:])} px: SSIM's window needs sides of at least {_WINDOW} px")
    weights = torch.exp(-((torch.arange(_WINDOW) - _WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    window = (weights / weights.sum()).tolist()
    pairs = zip(frames.flatten(0, 1).float(), real.flatten(0, 1).float())
    # Frame by frame: the maps of one frame stay in the processor's cache, four times as fast as all at once.
    return torch.stack([_ssim_map(*pair, window).mean() for pair in pairs]).view(frames.shape[:2])


def _ssim_map(x: Tensor, y: Tensor, window: list[float]) -> Tensor:
    """(3, H, W) twice, in [-1, 1], to the map (3, H-10, W-10)."""
    # SSIM needs the sum of the variances only, so four maps are blurred, not five.
    maps = torch.stack([x, y, x * x + y * y, x * y])
    # Shifted sums, not a convolution: no slower, and the same on a GPU, where convolutions round to 10 bits (TF32).
    for axis in (-2, -1):
        length = maps.shape[axis] - _WINDOW + 1
        blurred = maps.narrow(axis, 0, length) * window[0]
        for shift in range(1, _WINDOW):
            blurred.add_(maps.narrow(axis, shift, length), alpha=window[shift])
        maps = blurred
    mean_x, mean_y, squares, product = maps
    # Variances do not depend on where zero is and lose least in float32 around it; the means count from black, -1.
    variances = squares - mean_x**2 - mean_y**2
    covariance = product - mean_x * mean_y
    black_x, black_y = mean_x + 1, mean_y + 1
    c1, c2 = (_K1 * _RANGE) ** 2, (_K2 * _RANGE) ** 2
    luminance = (2 * black_x * black_y + c1) / (black_x**2 + black_y**2 + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


def both_conventions(per_frame: Tensor) -> Tensor:
    """Scores (B, T) of frames to scores (B, 2) of clips, float64: without frame 0, and with it."""
    per_frame = per_frame.double()
    return torch.stack([per_frame[:, 1:].mean(1), per_frame.mean(1)], dim=1)


class PSNR(ClipMetric):
    """`psnr` over clips.

    Args:
        cap: dB that a frame counts at most. Equal frames have no finite PSNR and would make every mean infinite: a
            method that returns the condition image untouched gets cap / T dB from it in `psnr_with_frame0`.

    Raises:
        ValueError: If `cap` is infinite, or below 60 dB: rounding to 8 bits alone gives 58.9.
    """

    higher_is_better = True
    keys = ("psnr", "psnr_with_frame0")
    needs = ("frames", "real")

    def __init__(self, *, cap: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 60 <= cap < float("inf"):
            raise ValueError(f"cap={cap}: must be a finite number of dB from 60 upwards, such as 100")
        self.cap = float(cap)

    def score(self, frames: Tensor, real: Tensor) -> Tensor:
        return both_conventions(psnr(frames, real).clamp(max=self.cap))

    @property
    def protocol(self) -> dict[str, Any]:
        return {"metric": "psnr", "per": "frame", "colour": "rgb", "cap_db": self.cap}


class SSIM(ClipMetric):
    """`ssim` over clips."""

    higher_is_better = True
    keys = ("ssim", "ssim_with_frame0")
    needs = ("frames", "real")

    def score(self, frames: Tensor, real: Tensor) -> Tensor:
        return both_conventions(ssim(frames, real))

    @property
    def protocol(self) -> dict[str, Any]:
        return {
            "metric": "ssim", "per": "frame", "colour": "rgb", "border": "valid",
            "window": _WINDOW, "sigma": _SIGMA, "k1": _K1, "k2": _K2,
        }  # fmt: skip
