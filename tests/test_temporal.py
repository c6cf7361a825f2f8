"""Seam, wrap and loop figures on videos whose answer is known."""

import pytest
import torch
from torch import Tensor

from motionanim.metrics.temporal import frame_changes, periodicity, seam_ratio, wrap_ratio


def sliding(shifts: list[int]) -> Tensor:
    """A texture, smooth and periodic over 32 px, slid sideways by each shift."""
    generator = torch.Generator().manual_seed(0)
    wave = torch.rand(3, 16, 1, generator=generator) * torch.sin(torch.arange(32) * 2 * torch.pi / 32)
    return torch.stack([wave.roll(shift, dims=2) for shift in shifts])


def test_changes_are_the_rms_of_the_difference() -> None:
    frames = torch.zeros(3, 3, 4, 4)
    frames[1] = 1.0
    torch.testing.assert_close(frame_changes(frames), torch.tensor([0.5, 0.5]))


def test_a_steady_slide_has_no_seam_and_a_jump_has_one() -> None:
    assert seam_ratio(sliding(list(range(20))), range(5, 20, 5)) == pytest.approx(1, abs=1e-3)
    jumping = [5 * (t // 5) + t for t in range(20)]  # 6 px instead of 1 at every border
    assert 4 < seam_ratio(sliding(jumping), range(5, 20, 5)) <= 6
    assert seam_ratio(sliding([0] * 10), [5]) == 1.0
    for borders in ([], [0], [20], list(range(1, 20))):
        with pytest.raises(ValueError, match=r"borders=.* the frames 1 to 19"):
            seam_ratio(sliding(list(range(20))), borders)


def test_a_full_turn_closes_and_half_a_turn_does_not() -> None:
    assert wrap_ratio(sliding(list(range(32)))) == pytest.approx(1, abs=1e-3)
    assert wrap_ratio(sliding(list(range(16)))) > 8


def test_periodicity_is_high_for_a_repeat_only() -> None:
    assert periodicity(sliding([*range(8)] * 3), 8) == pytest.approx(106.02, abs=0.1)
    frames = sliding(list(range(24)))
    by_hand = 10 * torch.log10(4 / (frames[8:] - frames[:-8]).square().mean())
    assert periodicity(frames, 8) == pytest.approx(by_hand.item(), abs=0.01)
    assert periodicity(frames, 8) < 30
    with pytest.raises(ValueError, match="period=24"):
        periodicity(frames, 24)
