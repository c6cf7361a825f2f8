"""PSNR and SSIM of each frame to the true frame, averaged over frames and then over clips.

Frame 0 of an animated image is the condition image, so a score that counts it is too good. The numbers of record are
over frames 1 to T-1; the mean that counts frame 0 has the key KEY_with_frame0.
"""

import math
from typing import Any

import torch
from torch import Tensor

from motionanim.metrics.base import ClipMetric, Column

# Wang et al. 2004: Gaussian window of 11 px, sigma 1.5 px; C1 = (K1 L)^2, C2 = (K2 L)^2, L is the range of the values.
_WINDOW, _SIGMA = 11, 1.5
_K1, _K2 = 0.01, 0.03
_RANGE = 2.0
STILL = {"still_frames": "left out"}  # of the protocols of `both_conventions`
STANDS_STILL = "the true clip stands still"
_TOLERANCE = 1e-3  # frames that were resized or decoded may leave [-1, 1] by this


def check_clips(name: str, clips: Tensor) -> None:
    """Raises ValueError unless clips are (B, T, 3, H, W), T at least 2, with finite values in [-1, 1]."""
    if clips.ndim != 5 or clips.shape[2] != 3 or clips.shape[1] < 2 or not clips.numel():
        raise ValueError(f"{name} of shape {tuple(clips.shape)}: must be (B, T, 3, H, W) with T of at least 2")
    low, high = (value.item() for value in clips.aminmax())
    if not (low >= -1 - _TOLERANCE and high <= 1 + _TOLERANCE):  # NaN fails too
        raise ValueError(f"{name}: values from {low:g} to {high:g}, must be finite and in [-1, 1]; clamp them first")


def check_pair(frames: Tensor, real: Tensor) -> None:
    """Raises ValueError unless both pass `check_clips` and have the same shape."""
    check_clips("frames", frames)
    check_clips("real", real)
    if frames.shape != real.shape:
        raise ValueError(f"frames {tuple(frames.shape)} and real {tuple(real.shape)}: must have the same shape")


def psnr(frames: Tensor, real: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each frame over its RGB values.

    Args:
        frames: (B, T, 3, H, W) in [-1, 1].
        real: The true frames, like `frames`.

    Returns:
        (B, T) float32, dB; infinite for equal frames.

    Raises:
        ValueError: As `check_pair`.
    """
    check_pair(frames, real)
    error = (frames.float() - real.float()).square().mean((2, 3, 4))
    return 10 * torch.log10(_RANGE**2 / error)


def ssim(frames: Tensor, real: Tensor) -> Tensor:
    """Structural similarity (Wang et al., IEEE TIP 2004) of each frame: mean of the map over RGB and valid windows.

    Equals scikit-image with gaussian_weights=True and use_sample_covariance=False, and piq with downsample=False.

    Args:
        frames: (B, T, 3, H, W) in [-1, 1], H and W at least 11.
        real: The true frames, like `frames`.

    Returns:
        (B, T) float32, at most 1; 1 for equal frames.

    Raises:
        ValueError: As `check_pair`, or if a side is shorter than 11 px.
    """
    check_pair(frames, real)
    if min(frames.shape[-2:]) < _WINDOW:
        raise ValueError(f"frames of {tuple(frames.shape[-2:])} px: SSIM's window needs sides of at least {_WINDOW} px")
    weights = torch.exp(-((torch.arange(_WINDOW) - _WINDOW // 2) ** 2) / (2 * _SIGMA**2))
    window = (weights / weights.sum()).tolist()
    pairs = zip(frames.flatten(0, 1).float(), real.flatten(0, 1).float())
    # One frame at a time is four times as fast as all at once, because its maps stay in the processor's cache.
    return torch.stack([_ssim_map(*pair, window).mean() for pair in pairs]).view(frames.shape[:2])


def _ssim_map(x: Tensor, y: Tensor, window: list[float]) -> Tensor:
    """Frames (3, H, W) in [-1, 1] to the SSIM map (3, H-10, W-10)."""
    # SSIM needs only the sum of the variances, so four maps are blurred instead of five.
    maps = torch.stack([x, y, x * x + y * y, x * y])
    # Shifted sums instead of a convolution: as fast, and exact on a GPU, where convolutions round to 10 bits (TF32).
    for axis in (-2, -1):
        length = maps.shape[axis] - _WINDOW + 1
        blurred = maps.narrow(axis, 0, length) * window[0]
        for shift in range(1, _WINDOW):
            blurred.add_(maps.narrow(axis, shift, length), alpha=window[shift])
        maps = blurred
    mean_x, mean_y, squares, product = maps
    # Variances do not depend on the origin and lose fewest digits near 0. The means count from black, which is -1.
    variances = squares - mean_x**2 - mean_y**2
    covariance = product - mean_x * mean_y
    black_x, black_y = mean_x + 1, mean_y + 1
    c1, c2 = (_K1 * _RANGE) ** 2, (_K2 * _RANGE) ** 2
    luminance = (2 * black_x * black_y + c1) / (black_x**2 + black_y**2 + c1)
    return luminance * (2 * covariance + c2) / (variances + c2)


def both_conventions(per_frame: Tensor, real: Tensor) -> Tensor:
    """Means over frames, without frame 0 and with it. Frames at which the true clip equals its frame 0 are left out.

    A copy of the condition image is perfect there, whatever the method: one still clip at a cap of 100 dB would move
    the mean PSNR of a benchmark by more than methods differ.

    Args:
        per_frame: (B, T) scores.
        real: (B, T, 3, H, W), the true frames.

    Returns:
        (B, 2) float64; NaN where the true clip stands still throughout.
    """
    # Frame by frame, because `equal` stops at the first difference.
    moves = torch.tensor([[not torch.equal(frame, clip[0]) for frame in clip[1:]] for clip in real], device=real.device)
    later = torch.where(moves, per_frame[:, 1:].double(), torch.nan)
    known = torch.cat([per_frame[:, :1].double(), later], dim=1)
    both = torch.stack([later.nanmean(1), known.nanmean(1)], dim=1)
    return torch.where(moves.any(1, keepdim=True), both, torch.nan)


def both_columns(column: Column) -> tuple[Column, Column]:
    """The columns of `both_conventions`, from the first one."""
    return column, column._replace(key=f"{column.key}_with_frame0", group="frame0")


class PSNR(ClipMetric):
    """`psnr` over clips.

    Args:
        cap: Upper bound of a frame's score, dB. Equal frames have an infinite PSNR, which would make every mean
            infinite. A method that returns the condition image as frame 0 gains cap / T dB in `psnr_with_frame0`.

    Raises:
        ValueError: If `cap` is infinite, or below 60 dB: rounding to 8 bits alone gives 58.9 dB.
    """

    columns = both_columns(Column("psnr", "PSNR", 2, "higher", "quality", "dB", range=(0, math.inf)))
    needs = ("frames", "real")
    undefined = STANDS_STILL

    def __init__(self, *, cap: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 60 <= cap < float("inf"):
            raise ValueError(f"cap={cap}: must be a finite number of dB from 60 upwards, such as 100")
        self.cap = float(cap)

    def score(self, frames: Tensor, real: Tensor) -> Tensor:
        return both_conventions(psnr(frames, real).clamp(max=self.cap), real)

    @property
    def protocol(self) -> dict[str, Any]:
        return {"metric": "psnr", "per": "frame", "colour": "rgb", "cap_db": self.cap, **STILL}


class SSIM(ClipMetric):
    """`ssim` over clips."""

    columns = both_columns(Column("ssim", "SSIM", 3, "higher", "quality", range=(-1, 1)))
    needs = ("frames", "real")
    undefined = STANDS_STILL

    def score(self, frames: Tensor, real: Tensor) -> Tensor:
        return both_conventions(ssim(frames, real), real)

    @property
    def protocol(self) -> dict[str, Any]:
        return {
            "metric": "ssim", "per": "frame", "colour": "rgb", "border": "valid",
            "window": _WINDOW, "sigma": _SIGMA, "k1": _K1, "k2": _K2, **STILL,
        }  # fmt: skip
