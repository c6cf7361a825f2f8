"""Drift of long videos: how far their texture, sharpness and colours move away from where they began.

PSNR, SSIM and LPIPS to the true clip do not see a video that falls apart, because after some seconds nothing in it is
where the true clip has it. The numbers here compare how often each value occurs, wherever it is in the picture: content
that only moves leaves them as they are, and blur, blocks, noise and a change of colour do not. A wave that fills the
picture changes them too, so true clips give the scale.
"""

import math
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from motionanim.metrics.base import ClipMetric, Column, Direction, Range
from motionanim.metrics.frame import check_clips
from motionanim.metrics.perceptual import ClipConsistency, clip_pixels

QUARTERS = (25, 50, 75, 100)  # per cent of the clip's time at which each quarter ends
LEVELS = 3  # of the pyramid on which texture is measured: steps of 1, 2 and 4 px
FRAMES = 4  # of each quarter or window, evenly spaced
QUANTILES = 256
LEAST_CHANGE = 0.1  # of Lab from px to px: a plainer picture has no texture to compare with
ENDS = 8  # the first and the last eighth of a clip are compared


def quarters(length: int) -> list[range]:
    """Frames 1 to length - 1 in four parts, as equal as can be; empty ones below 5 frames."""
    ends = [1 + (length - 1) * k // 4 for k in range(5)]
    return [range(first, last) for first, last in pairwise(ends)]


def texture_drift(frames: Tensor) -> Tensor:
    """How far the texture of each quarter of a clip is from that of frame 0.

    Texture is the distribution of the changes of Lab colour from each px to its right and lower neighbour, on `LEVELS`
    levels of a Gaussian pyramid. On each level the number is the Wasserstein distance of the two distributions over the
    mean change in frame 0, and it is averaged over the levels: 0 for the same texture, near 1 where all of it is gone.

    Args:
        frames: (T, 3, H, W) in [-1, 1].

    Returns:
        (4,) float64, at least 0; NaN for a quarter without frames, and where frame 0 is plain, as in a fade from black.
    """
    first = _texture(frames[:1])
    if first[0].mean() < LEAST_CHANGE:
        return torch.full((4,), torch.nan, dtype=torch.float64)
    rows = []
    for quarter in quarters(len(frames)):
        if not quarter:
            rows.append(float("nan"))
            continue
        later = _texture(frames[_spread(quarter)])
        rows.append(np.mean([_wasserstein(a, b) / max(a.mean(), LEAST_CHANGE) for a, b in zip(first, later)]))
    return torch.tensor(rows, dtype=torch.float64)


def colour_drift(first: Tensor, last: Tensor) -> float:
    """Distance between the colours of two sets of frames (N, 3, H, W) in [-1, 1], in units of Lab (CIE76).

    The root of the summed squares of the Wasserstein distances of L, a and b. If all colours shift alike it is the
    length of that shift, the colour difference Delta E; about 2.3 is just noticeable.
    """
    before, after = _lab(first), _lab(last)
    return float(np.linalg.norm([_wasserstein(before[..., k], after[..., k]) for k in range(3)]))


def sharpness_drift(first: Tensor, last: Tensor) -> float:
    """Mean change of lightness from px to px in the last frames over that in the first, both (N, 3, H, W) in [-1, 1].

    1 is unchanged, less is blurred, more is noise or blocks; NaN if the first frames are plain.
    """
    before, after = (
        np.abs(np.diff(light, axis=1)).mean() + np.abs(np.diff(light, axis=2)).mean()
        for light in (_lab(frames)[..., 0] for frames in (first, last))
    )
    return float(after / before) if before >= LEAST_CHANGE else float("nan")


def _spread(frames: range) -> list[int]:
    """At most `FRAMES` of the frames, evenly spaced, the last among them."""
    count = min(FRAMES, len(frames))
    return [frames[(k + 1) * len(frames) // count - 1] for k in range(count)]


def _lab(frames: Tensor) -> np.ndarray:
    """Frames (N, 3, H, W) in [-1, 1] to CIE Lab (N, H, W, 3) float32, of sRGB under D65."""
    pixels = (frames.detach().cpu().float() * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    return np.stack([cv2.cvtColor(np.ascontiguousarray(each), cv2.COLOR_RGB2Lab) for each in pixels.numpy()])


def _texture(frames: Tensor) -> list[np.ndarray]:
    """Changes of Lab from px to px over all frames, one array for each level that has any."""
    levels: list[np.ndarray] = []
    pictures = list(_lab(frames))
    for _ in range(LEVELS):
        steps = [np.linalg.norm(np.diff(each, axis=axis), axis=-1).ravel() for each in pictures for axis in (0, 1)]
        levels.append(np.concatenate(steps))
        pictures = [cv2.pyrDown(each) for each in pictures]
    return levels


def _wasserstein(first: np.ndarray, second: np.ndarray) -> float:
    """First Wasserstein distance of two samples of any sizes, from `QUANTILES` quantiles of each."""
    at = (np.arange(QUANTILES) + 0.5) / QUANTILES
    # Without interpolation, so that a sample and its copies are at distance 0.
    one, other = (np.quantile(sample, at, method="inverted_cdf") for sample in (first, second))
    return float(np.abs(one - other).mean())


_STILL = "a frozen picture scores 0: compare with true clips"


def _curve(key: str, name: str, digits: int, direction: Direction, remark: str, legal: Range) -> tuple[Column, ...]:
    """Columns KEY_25 to KEY_100, a curve against time."""
    return tuple(
        Column(f"{key}_{end}", f"{name} to {end} %", digits, direction, "long", remark=remark, range=legal)
        for end in QUARTERS
    )


class Drift(ClipMetric):
    """`texture_drift` of each quarter, and colour and sharpness of the last eighth of a clip against the first."""

    columns = (
        *_curve("drift", "Texture drift", 3, "real", _STILL, (0, math.inf)),
        Column("colour_drift", "Colour drift", 2, "real", "long", "ΔE", remark=_STILL, range=(0, math.inf)),
        Column(
            "sharpness_drift", "Sharpness, last over first", 3, "real", "long", remark="a frozen picture scores 1",
            range=(0, math.inf),
        ),
    )  # fmt: skip
    needs = ("frames",)
    undefined = "fewer than 5 frames, or a plain frame 0"

    def score(self, frames: Tensor) -> Tensor:
        """Scores (B, 6) of frames (B, T, 3, H, W) in [-1, 1]; the sides must be at least 8 px.

        Raises:
            ValueError: If frames are not as above.
        """
        check_clips("frames", frames)
        if min(frames.shape[-2:]) < 2**LEVELS:
            raise ValueError(f"frames of {tuple(frames.shape[-2:])} px: drift needs sides of at least {2**LEVELS} px")
        length = frames.shape[1]
        window = max(1, length // ENDS)
        rows = []
        for clip in frames.detach().cpu().float():
            first, last = clip[_spread(range(window))], clip[_spread(range(length - window, length))]
            rows.append([*texture_drift(clip).tolist(), colour_drift(first, last), sharpness_drift(first, last)])
        return torch.tensor(rows, dtype=torch.float64)

    @property
    def protocol(self) -> dict[str, Any]:
        return {
            "metric": "drift", "version": 1, "texture": "lab steps", "levels": LEVELS, "frames": FRAMES,
            "quantiles": QUANTILES, "ends": ENDS,
        }  # fmt: skip


class ClipDrift(ClipConsistency):
    """Mean cosine of the CLIP embeddings of each quarter's frames and of frame 0, in [-1, 1].

    The similarity to the first frame is one half of VBench's subject consistency (Huang et al., CVPR 2024), there with
    DINO features. Arguments as of `ClipConsistency`.
    """

    columns = _curve("clip_to_first", "CLIP similarity to frame 0", 4, "real", "a frozen picture scores 1", (-1, 1))

    def score(self, frames: Tensor) -> Tensor:
        check_clips("frames", frames)
        embeddings = self.in_parts(lambda part: self.network(clip_pixels(part)), frames).double()
        cosine = torch.cosine_similarity(embeddings, embeddings[:, :1], dim=-1)
        return torch.stack([cosine[:, list(quarter)].mean(1) for quarter in quarters(frames.shape[1])], dim=1)

    @property
    def protocol(self) -> dict[str, Any]:
        return {**super().protocol, "metric": "clip_to_first", "version": 1, "pairs": "frame 0"}
