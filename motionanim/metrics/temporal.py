"""Seams and loops of long videos: pure functions on frames (T, 3, H, W) in [-1, 1]."""

from collections.abc import Sequence

import torch
from torch import Tensor


def frame_changes(frames: Tensor) -> Tensor:
    """Root mean square change from each frame to the next: (T-1,), in units of the pixel range 2."""
    return frames.float().diff(dim=0).square().mean((1, 2, 3)).sqrt() / 2


def seam_ratio(frames: Tensor, borders: Sequence[int]) -> float:
    """Mean change at segment borders over the median change elsewhere: 1 is smooth.

    Args:
        frames: (T, 3, H, W).
        borders: First frames of the segments after the first, in [1, T-1]; for clips of L frames that follow each
            other, range(L, T, L).

    Raises:
        ValueError: If there is no border, nothing elsewhere, or a border outside the video.
    """
    changes = frame_changes(frames)
    border = torch.zeros(len(changes), dtype=torch.bool)
    if not borders or min(borders) < 1 or max(borders) >= len(frames) or len(set(borders)) == len(changes):
        raise ValueError(f"borders={list(borders)}: must be some, not all, of the frames 1 to {len(frames) - 1}")
    border[torch.tensor(borders) - 1] = True
    return _ratio(changes[border].mean(), changes[~border].median())


def wrap_ratio(frames: Tensor) -> float:
    """Change from the last frame back to the first over the median change within: 1 is a perfect loop."""
    closing = frame_changes(torch.stack([frames[-1], frames[0]]))[0]
    return _ratio(closing, frame_changes(frames).median())


def _ratio(change: Tensor, usual: Tensor) -> float:
    # A still video has no seam; a jump in an otherwise still one is infinitely worse than its surroundings.
    return 1.0 if change == usual else (change / usual).item()


def periodicity(frames: Tensor, period: int) -> float:
    """The loop detector: mean PSNR in dB between frames one period apart; high for a video that begins again.

    Raises:
        ValueError: If the video is no longer than a period.
    """
    if not 1 <= period < len(frames):
        raise ValueError(f"period={period} of {len(frames)} frames: must be in [1, {len(frames) - 1}]")
    error = (frames[period:].float() - frames[:-period].float()).square().mean((1, 2, 3))
    return (10 * torch.log10(4 / error.clamp(min=1e-10))).mean().item()
