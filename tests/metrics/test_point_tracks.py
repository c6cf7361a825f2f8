"""Tracked points against asked paths, on the procedural world and on exact flows."""

import math

import pytest
import torch
from torch import Tensor

from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.metrics.control import PointTracks
from motionanim.metrics.motion import asked_paths, grid_points
from motionanim.models.point_tracker import LucasKanade
from motionanim.motion.flow import follow_points


class Told:
    """A tracker that returns given places, all seen."""

    name = "told"

    def __init__(self, follow) -> None:
        self.follow = follow

    def __call__(self, frames: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        places = self.follow(points)
        return places, torch.ones(places.shape[:2], dtype=torch.bool)


def metric() -> PointTracks:
    return PointTracks(tracker=LucasKanade(min_side=256, window=15, levels=3, tolerance=0.5))


def row(score: Tensor) -> tuple[float, ...]:
    return tuple(score[0].tolist())


def box(height: int = 48, width: int = 64) -> Tensor:
    mask = torch.zeros(1, 1, height, width)
    mask[..., 10:34, 12:44] = 1
    return mask


def test_points_follow_a_steady_flow_and_a_turning_one() -> None:
    flow = torch.tensor([1.5, -0.5]).view(1, 2, 1, 1).expand(4, 2, 20, 30)
    places = follow_points(flow, torch.tensor([[3.0, 10.0], [28.0, 4.0]]))
    steps = torch.arange(5.0).view(5, 1, 1) * torch.tensor([1.5, -0.5])
    torch.testing.assert_close(places, torch.tensor([[3.0, 10.0], [28.0, 4.0]]) + steps)
    y, x = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")
    angle = math.radians(9)
    turned = torch.stack([math.cos(angle) * x - math.sin(angle) * y - x, math.sin(angle) * x + math.cos(angle) * y - y])
    full = follow_points(turned.expand(40, 2, 41, 41), torch.tensor([[32.0, 20.0], [20.0, 11.0]]))
    torch.testing.assert_close(full[-1], full[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(full[10, 0], torch.tensor([20.0, 32.0]), atol=1e-3, rtol=0)


def test_the_grid_has_its_points_at_the_centres_of_cells_inside_the_region() -> None:
    region = torch.zeros(40, 50, dtype=torch.bool)
    region[8:24, 10:42] = True
    points = grid_points(region, 8)
    assert len(points) == 64
    assert points[0].tolist() == [11.5, 8.5]
    assert points[-1].tolist() == [39.5, 22.5]
    region[8:24, 10:26] = False
    region[0, 10] = True
    assert all(region[round(y), round(x)] for x, y in grid_points(region, 8).tolist())
    assert grid_points(torch.zeros(4, 4, dtype=torch.bool), 8).shape == (0, 2)


def test_a_path_ends_at_the_pictures_edge_and_where_its_stream_does() -> None:
    flow = torch.zeros(10, 2, 20, 40)
    flow[:, 0, :, :30] = 2.0
    paths, known = asked_paths(flow, torch.tensor([[3.0, 10.0], [24.0, 10.0]]))
    assert known[:, 0].all()
    # From x = 24 the flow carries to 30, where nothing flows: the content is no longer seen there.
    assert known[:, 1].tolist() == [True] * 3 + [False] * 8
    assert paths[-1, 0].tolist() == [23.0, 10.0]
    leaving = asked_paths(flow.roll(10, 3), torch.tensor([[35.0, 10.0]]))[1][:, 0]
    assert leaving.tolist() == [True] * 3 + [False] * 8
    # All that moves comes to a halt together: the path goes on, standing.
    eased = flow * torch.linspace(1, 0.1, 10).view(10, 1, 1, 1)
    assert asked_paths(eased, torch.tensor([[3.0, 10.0]]))[1].all()


def test_the_error_is_the_mean_distance_of_told_places() -> None:
    mask = box()
    flow = (mask * torch.tensor([0.0, -1.0]).view(1, 2, 1, 1)).expand(6, 2, 48, 64)[None]
    flow = torch.where(flow != 0, flow, torch.tensor([0.0, -1.0]).view(2, 1, 1))  # it goes on outside the mask
    frames = torch.zeros(1, 7, 3, 48, 64)
    exact = PointTracks(tracker=Told(lambda points: follow_points(flow[0], points)))
    assert row(exact.score(frames, flow, mask)) == (0, 0, 0)
    off = PointTracks(tracker=Told(lambda points: follow_points(flow[0], points) + torch.tensor([3.0, 4.0])))
    error, share, lost = row(off.score(frames, flow, mask))
    assert (error, lost) == (pytest.approx(5), 0)
    assert share == pytest.approx(5 / math.hypot(48, 64))
    still = PointTracks(tracker=Told(lambda points: points.expand(7, -1, -1)))
    assert row(still.score(frames, flow, mask))[0] == pytest.approx((1 + 2 + 3 + 4 + 5 + 6) / 6)
    opposite = PointTracks(tracker=Told(lambda points: follow_points(-flow[0], points)))
    assert row(opposite.score(frames, flow, mask))[0] == pytest.approx(2 * 3.5)
    for nothing in ((0 * flow, mask), (flow, 0 * mask)):
        assert exact.score(frames, *nothing).isnan().all()


@pytest.mark.slow
def test_true_clips_are_followed_and_still_and_opposite_ones_are_off_by_the_way() -> None:
    world = SyntheticClips(seed=2, length=16, num_frames=12, height=96, width=96, fps=7, moving_camera=0.0, split="val")
    found = metric()
    rows, still, opposite, ways = [], [], [], []
    for position in (1, 3, 4, 9, 12, 13):
        clip = world.clip(position)
        frames, flow, mask = clip.frames[None], clip.flow[None], clip.mask[None]
        rows.append(row(found.score(frames, flow, mask)))
        copy = frames[:, :1].expand_as(frames)
        still.append(row(found.score(copy, flow, mask)))
        opposite.append(row(found.score(frames, -flow, mask)))
        way = PointTracks(tracker=Told(lambda points: points.expand(12, -1, -1)))
        ways.append(row(way.score(frames, flow, mask)))
    errors = torch.tensor([each[0] for each in rows])
    assert errors.max() < 0.5, errors
    assert torch.tensor([each[2] for each in rows]).mean() < 0.15
    for copied, exact, true, back in zip(still, ways, rows, opposite):
        assert copied[0] == pytest.approx(exact[0], rel=0.1)  # the mean way, but for points that are lost
        assert copied[0] > 5 * true[0]
        assert back[0] > 5 * true[0]


def test_frames_that_do_not_fit_the_flow_are_an_error() -> None:
    with pytest.raises(ValueError, match="flow of shape"):
        metric().score(torch.zeros(1, 3, 3, 32, 32), torch.zeros(1, 3, 2, 32, 32), torch.ones(1, 1, 32, 32))
    assert metric().protocol["tracker"] == "lucas-kanade-256-15-3-0.5"
