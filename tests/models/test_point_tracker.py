"""Point trackers on pictures that move exactly, and the errors of their arguments."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motionanim.models.point_tracker import CoTracker, LucasKanade


def tracker(**changes) -> LucasKanade:
    return LucasKanade(**{"min_side": 128, "window": 15, "levels": 3, "tolerance": 0.5} | changes)


def sliding(step: float, frames: int) -> Tensor:
    """A smooth texture (T, 3, 64, 80) that moves right by `step` px a frame and down by half of that."""
    coarse = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(80.0), indexing="ij")
    clips = []
    for t in range(frames):
        where = torch.stack([(x - step * t) / 60 - 0.7, (y - step / 2 * t) / 50 - 0.7], dim=-1)
        clips.append(F.grid_sample(coarse, where[None], mode="bicubic", padding_mode="reflection", align_corners=True))
    return torch.cat(clips).clamp(-1, 1)


@pytest.mark.parametrize("step", [0.0, 1.3, -2.7])
@pytest.mark.parametrize("min_side", [1, 200])
def test_points_of_a_sliding_texture_are_followed_to_a_tenth_of_a_pixel(step: float, min_side: int) -> None:
    points = torch.tensor([[30.0, 30.0], [45.5, 24.25], [38.0, 36.0]])
    places, seen = tracker(min_side=min_side)(sliding(step, 6), points)
    asked = points + torch.arange(6).view(6, 1, 1) * torch.tensor([step, step / 2])
    assert places.shape == (6, 3, 2)
    assert seen.all()
    assert (places - asked).abs().max() < 0.1
    torch.testing.assert_close(places[0], points, atol=1e-4, rtol=0)


def test_points_that_leave_or_are_covered_are_lost_for_good() -> None:
    frames = sliding(3.0, 10)
    frames[4:6, :, 20:, :] = 0.0  # a plain cover, which is taken away again
    places, seen = tracker()(frames, torch.tensor([[70.0, 8.0], [20.0, 10.0], [30.0, 30.0]]))
    assert seen[0].all()
    assert not seen[5:, 0].any()  # over the right edge
    assert seen[2].tolist() == [True, True, True]
    assert not seen[4:, 2].any()  # under the cover
    assert places.isfinite().all()
    assert not tracker()(torch.zeros(3, 3, 64, 64), torch.tensor([[30.0, 30.0]]))[1][1:].any()  # no texture


def test_bad_arguments_are_errors() -> None:
    for changes in ({"min_side": 0}, {"window": 4}, {"window": 1}, {"levels": -1}, {"tolerance": 0.0}):
        with pytest.raises(ValueError, match="must be at least 1, odd and at least 3"):
            tracker(**changes)
    for frames, points, message in (
        (torch.zeros(1, 3, 64, 64), torch.zeros(1, 2), r"frames of shape \(1, 3, 64, 64\)"),
        (torch.zeros(2, 3, 64, 64), torch.zeros(2), r"points of shape \(2,\)"),
    ):
        with pytest.raises(ValueError, match=message):
            tracker()(frames, points)


class Predictor(nn.Module):
    """Called as CoTrackerPredictor is; says that every point goes right by its frame's brightness."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, video: Tensor, queries: Tensor) -> tuple[Tensor, Tensor]:
        assert video.shape[0] == queries.shape[0] == 1
        assert queries[..., 0].eq(0).all()  # all points are asked for in frame 0
        shift = torch.stack([video.mean((0, 2, 3, 4)), torch.zeros(video.shape[1])], dim=-1)
        tracks = queries[:, None, :, 1:] + shift[None, :, None]
        return tracks, tracks[..., 0] < 200


def test_cotracker_gets_video_of_8_bits_and_queries_of_frame_0() -> None:
    follow = CoTracker(Predictor(), name="cotracker-test")
    frames = torch.tensor([-1.0, 0.0, 1.0]).view(3, 1, 1, 1).expand(3, 3, 16, 16)
    places, seen = follow(frames, torch.tensor([[3.0, 4.0], [90.0, 2.0]]))
    torch.testing.assert_close(places[:, :, 0], torch.tensor([[3.0, 90.0], [130.5, 217.5], [258.0, 345.0]]))
    torch.testing.assert_close(places[:, :, 1], torch.tensor([[4.0, 2.0]] * 3))
    assert seen.tolist() == [[True, True], [True, False], [False, False]]
    assert follow.name == "cotracker-test"


def test_cotracker_without_its_weights_or_its_package_says_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"do not exist: get scaled_offline\.pth"):
        CoTracker.load(tmp_path / "none.pth", device="cpu")
    (tmp_path / "some.pth").write_bytes(b"")
    with pytest.raises(ValueError, match=r"install it from github\.com/facebookresearch/co-tracker"):
        CoTracker.load(tmp_path / "some.pth", device="cpu")
