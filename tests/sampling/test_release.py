"""Control without training: which latents the image in motion holds, down to which noise level, and what follows."""

from itertools import pairwise

import pytest
import torch
from conftest import make_condition
from long_video_runs import METHODS, SIGMAS, L, ToyVideo, certain, condition, run, toy
from torch import Tensor

from motionanim.sampling.chained import direct
from motionanim.sampling.moving.release import MOVED, Release
from motionanim.types import Condition


def steady(frames: int, speed: float) -> Condition:
    """The right half moves right by `speed` px per frame; latents are 2 px wide."""
    given = make_condition(batch=1, frames=frames)
    flow = torch.zeros_like(given.flow)
    flow[:, :, 0, :, flow.shape[-1] // 2 :] = speed
    return given._replace(flow=flow)


def edited(video: ToyVideo, level: float) -> Tensor:
    """SDEdit, written out: the image in motion, noised to `level`, and Euler's steps from there to 0."""
    here = video.condition_of(0, L)
    guide = here.warped_latents
    noise = (video.start(L) - guide) / video.sigmas[0]
    z = guide + level * noise
    steps = [level, *[sigma for sigma in SIGMAS.tolist() if sigma < level]]
    for now, after in pairwise(steps):
        z = z + (z - toy(z, torch.full((1,), now), here)) / now * (after - now)
    return z


@pytest.mark.parametrize("method", [name for name in METHODS if name != "loop"])  # which fades its end into its start
def test_held_to_the_end_every_method_returns_the_image_in_motion_without_a_call(method: str) -> None:
    frames = L if method == "direct" else 12  # each clip of which begins at the last frame again
    given = condition(frames)
    video, record = run(method, frames=frames, given=given, release=Release(0.0, 0.0))
    asked = certain(video, torch.ones(1), given)
    if method == "phased":  # its segments begin at the image again
        asked = torch.cat([asked[:, :L]] * 3, dim=1)[:, :frames]
    torch.testing.assert_close(video, asked.expand_as(video), rtol=1e-4, atol=1e-3)
    assert record.calls == 0


@pytest.mark.parametrize("level", [0.3, 2.0, 40.0])
def test_one_level_for_all_is_sdedit(level: float) -> None:
    given = steady(L, speed=1.0)
    made, record = run("direct", frames=L, given=given, release=Release(level, level))
    torch.testing.assert_close(made, edited(ToyVideo(given), level), rtol=1e-4, atol=1e-4)
    assert record.calls == sum(0 < sigma < level for sigma in SIGMAS.tolist()) + 1


def test_what_moves_and_what_stands_still_have_a_clock_each() -> None:
    given = steady(L, speed=1.0)
    made, _ = run("direct", frames=L, given=given, release=Release(2.0, 0.0))
    reached = torch.zeros(1, L, 1, 8, 8, dtype=torch.bool)
    reached[:, 1:, ..., 4:] = True
    reached[:, 1:, ..., 3] = True  # the neighbour of what moves
    guide = ToyVideo(given).condition_of(0, L).warped_latents
    wanted = torch.where(reached, edited(ToyVideo(given), 2.0), guide)
    torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-4)
    slow = Release(2.0, 0.0).levels(steady(L, speed=2 * MOVED / (L - 1)))  # comes MOVED latent pixels in all
    assert (slow == 0).all()


def test_frames_at_unequal_noise_are_held_each_by_its_own() -> None:
    given = steady(L, speed=1.0)
    estimate = Release(2.0, 0.0).holding(lambda z, sigma: torch.full_like(z, 7.0), given)
    made = estimate(torch.zeros(1, L, 4, 8, 8), torch.tensor([[9.0, 3.0, 2.0, 1.0, 0.1]]))
    assert torch.equal(made[:, :2], given.warped_latents[:, :2])
    assert (made[:, 2:, ..., 4:] == 7).all()
    assert torch.equal(made[..., :3], given.warped_latents[..., :3])


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("release", [Release(2.0, 0.5), Release(0.5, 2.0), Release(1e6, 0.0)])
def test_expected_calls_are_those_that_are_made(sampler: str, release: Release) -> None:
    given = steady(L, speed=1.0)
    video = ToyVideo(given, sampler=sampler, release=release)
    assert direct(video)[1].calls == video.calls(video.sigmas)
