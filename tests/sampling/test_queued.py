"""Queues of frames at rising noise: FIFO-Diffusion and zigzag, against plain loops and on networks of known answers."""

from functools import partial

import pytest
import torch
from long_video_runs import SIGMAS, L, N, ToyVideo, certain, condition, run
from torch import Tensor

from motionanim.models.schedule import euler_step
from motionanim.sampling.queued import _windows, fifo, zigzag
from motionanim.sampling.split import split_at
from motionanim.sampling.video import VideoModel
from motionanim.types import Condition


def linear(z: Tensor, sigma: Tensor, condition: Condition, scale: Tensor | None) -> Tensor:
    """Each frame by itself: unit variance around 0."""
    return z / (1 + sigma.view(*sigma.shape, *[1] * (z.ndim - sigma.ndim)) ** 2)


def mixing(z: Tensor, sigma: Tensor, condition: Condition, scale: Tensor | None) -> Tensor:
    """Every frame is told of the frames before and after it in its window."""
    around = torch.cat([z[:, :1], z, z[:, -1:]], dim=1)
    return linear((z + 0.3 * around[:, :-2] - 0.2 * around[:, 2:]), sigma, condition, scale) + 0.1 * certain(
        z, sigma, condition
    )


class Recorded(ToyVideo):
    """Keeps the pure noise that enters the queue."""

    def __init__(self, *args, **settings) -> None:
        super().__init__(*args, **settings)
        self.drawn: list[Tensor] = []

    def start(self, frames: int) -> Tensor:
        self.drawn.append(super().start(frames))
        return self.drawn[-1]


def share_left(sigmas: Tensor) -> float:
    """What Euler's steps of `linear` leave of its start."""
    left = 1.0
    for sigma, below in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
        left *= 1 + (1 - 1 / (1 + sigma**2)) / sigma * (below - sigma)
    return left


@pytest.mark.parametrize("lookahead", [False, True])
@pytest.mark.parametrize("partitions", [1, 2, 3])
@pytest.mark.parametrize("length", [4, 5])
def test_every_frame_of_fifo_takes_each_step_once(partitions: int, lookahead: bool, length: int) -> None:
    video = Recorded(condition(), linear, context_length=length)
    latents, _ = fifo(video, num_partitions=partitions, lookahead_denoising=lookahead)
    left = share_left(video.levels(partitions * length))
    wanted = torch.cat(video.drawn[1:], dim=1)[:, : N - length] * left
    torch.testing.assert_close(latents[:, length:], wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("width", [1, 2, 5])
@pytest.mark.parametrize("sigma", [0.0, 0.5, 20.0])
def test_every_frame_of_zigzag_takes_each_step_once(width: int, sigma: float) -> None:
    video = Recorded(condition(), linear)
    latents, _ = zigzag(video, zigzag_width=width, sigma=sigma)
    sigmas, handover = split_at(SIGMAS, gamma=None, sigma=sigma)
    known = min(L // width, handover) * width  # frames of the first clip
    wanted = torch.cat(video.drawn[1:], dim=1)[:, : N - known] * share_left(sigmas)
    torch.testing.assert_close(latents[:, known:], wanted, atol=1e-4, rtol=1e-4)


def plain_fifo(video: VideoModel) -> Tensor:
    """One partition without lookahead, frame by frame: the queue is one window of L frames."""
    length = video.context_length
    sigmas = video.levels(length)
    clip = video.sample(video.denoiser(video.condition_of(0, length)), video.start(length), sigmas)
    noise = video.noise(length)
    queue = [clip[:, k] + sigmas[length - 1 - k] * noise[:, k] for k in range(length)]
    frames = []
    for out in range(video.num_frames):
        levels = sigmas[:-1].flip(0).expand(video.batch, -1)
        denoised = video.denoiser(video.condition_of(out, length))(torch.stack(queue, 1), levels)
        steps = [(queue[k], denoised[:, k], sigmas[length - 1 - k], sigmas[length - k]) for k in range(length)]
        first, *queue = [euler_step(z, clean, level, below) for z, clean, level, below in steps]
        frames.append(first)
        queue.append(video.start(1)[:, 0])
    return torch.stack(frames, dim=1)


def published_fifo(video: VideoModel, partitions: int) -> Tensor:
    """The authors' loop with lookahead, for an even L: ranks from the noisiest on, in place, the later half written."""
    length = video.context_length
    half, steps = length // 2, partitions * length
    sigmas = video.levels(steps)
    clip = video.sample(video.denoiser(video.condition_of(0, length)), video.start(length), sigmas)
    rising, below = sigmas[:-1].flip(0), sigmas[1:].flip(0)
    noise, early = video.noise(steps), video.noise(half)
    latents = [clip[:, 0] + rising[0] * early[:, k] for k in range(half)]
    latents += [clip[:, max(0, k - (steps - length))] + rising[k] * noise[:, k] for k in range(steps)]
    levels, nexts = [torch.cat([each[:1].expand(half), each]) for each in (rising, below)]
    frames = []
    for out in range(video.num_frames + steps - length):
        for rank in reversed(range(2 * partitions)):
            first, end = rank * half, rank * half + length
            number = out - (steps - length) + first - half
            if number >= 0:
                here = video.condition_of(number, length)
            else:  # frame 0 stands still before the video
                here = video.condition_of(0, length)
                flow = [here.flow[:, number + k] if number + k >= 0 else 0 * here.flow[:, 0] for k in range(length - 1)]
                here = here._replace(flow=torch.stack(flow, dim=1))
            z = torch.stack(latents[first:end], dim=1)
            denoised = video.denoiser(here)(z, levels[first:end].expand(video.batch, -1))
            for k in range(half, length):
                latents[first + k] = euler_step(z[:, k], denoised[:, k], levels[first + k], nexts[first + k])
        frames.append(latents[half])
        latents = [*latents[1:], video.start(1)[:, 0]]
    return torch.stack(frames[-video.num_frames :], dim=1)


def test_without_lookahead_fifo_is_the_plain_queue() -> None:
    made, _ = run(fifo, mixing, options={"num_partitions": 1, "lookahead_denoising": False})
    with torch.no_grad():
        torch.testing.assert_close(made, plain_fifo(ToyVideo(condition(), mixing)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("partitions", [1, 2])
def test_fifo_is_the_authors_loop(partitions: int) -> None:
    options = {"num_partitions": partitions, "lookahead_denoising": True}
    made, record = run(fifo, mixing, context_length=4, options=options)
    with torch.no_grad():
        wanted = published_fifo(ToyVideo(condition(), mixing, context_length=4), partitions)
    torch.testing.assert_close(made, wanted, atol=1e-5, rtol=1e-5)
    assert record.calls == 4 * partitions + (N + 4 * partitions - 4) * 2 * partitions


def test_lookahead_denoises_every_frame_behind_cleaner_ones() -> None:
    """The network is told of the levels: half a window is cleaner than what is kept, the noisier half."""
    told: list[Tensor] = []

    def watch(z: Tensor, sigma: Tensor, part: Condition, scale: Tensor | None) -> Tensor:
        told.append(sigma)
        return certain(z, sigma, part)

    run(fifo, watch, context_length=4, options={"num_partitions": 2, "lookahead_denoising": True})
    levels = ToyVideo(condition()).levels(8)[:-1].flip(0)
    extended = torch.cat([levels[:1].expand(2), levels])
    assert len(told) == 8 + (N + 4) * 4
    for k, sigma in enumerate(told[8:]):
        first = 2 * (k % 4)
        assert torch.equal(sigma[0], extended[first : first + 4])


def test_the_blocks_of_zigzag_have_equal_noise_and_fall_together() -> None:
    told: list[Tensor] = []

    def watch(z: Tensor, sigma: Tensor, part: Condition, scale: Tensor | None) -> Tensor:
        told.append(sigma[0] if sigma.ndim == 2 else sigma[:1].expand(z.shape[1]))
        return certain(z, sigma, part)

    run(zigzag, watch, context_length=6, options={"zigzag_width": 3, "sigma": 0.5})
    sigmas, handover = split_at(SIGMAS, gamma=None, sigma=0.5)
    steps = len(sigmas) - 1
    queue = [window for window in told[steps:] if window.unique().numel() > 1 or window[0] > 0.5]
    for window in queue:
        assert window.unique().numel() <= 3, "6 frames lie in at most three blocks; FIFO's have six levels"
        assert (window.diff() >= 0).all(), "noise rises"
        assert window.min() > 0.5
    assert all((window == window[0]).all() for window in told[steps + len(queue) :])
    assert {round(window[0].item(), 4) for window in told[steps + len(queue) :]} == {
        round(sigma, 4) for sigma in sigmas[handover:-1].tolist()
    }


@pytest.mark.parametrize("total", [3, 5, 6, 9, 24])
@pytest.mark.parametrize("offset", [0, 1, 5])
@pytest.mark.parametrize("length", [1, 4, 5])
def test_windows_keep_every_frame_once(total: int, offset: int, length: int) -> None:
    windows = _windows(total, length, offset)
    kept = [start + k for start, count in windows for k in range(count)]
    assert kept == list(range(total))
    assert (
        all(0 < count <= length and start + min(length, total) <= total for start, count in windows) or total <= length
    )


def test_the_borders_of_windows_move_from_round_to_round() -> None:
    assert _windows(14, 6, 0) == [(0, 3), (3, 3), (6, 2), (8, 6)]
    assert _windows(14, 6, 1) == [(0, 1), (1, 3), (4, 3), (7, 1), (8, 6)]
    assert _windows(14, 6, 2) == [(0, 2), (2, 3), (5, 3), (8, 6)]
    assert _windows(14, 6, 3) == _windows(14, 6, 0)


@pytest.mark.parametrize("method", ["fifo", "zigzag"])
def test_other_seeds_make_other_videos(method: str) -> None:
    first, second = (run(method, generator=torch.Generator().manual_seed(seed))[0] for seed in (0, 1))
    assert not torch.allclose(first, second, atol=1e-3)


def test_frames_before_the_video_stand_still() -> None:
    """Lookahead's first windows begin before frame 0: no flow there, frame 0 as image, then the video's own flow."""
    seen: list[Condition] = []

    def watch(z: Tensor, sigma: Tensor, part: Condition, scale: Tensor | None) -> Tensor:
        seen.append(part)
        return certain(z, sigma, part)

    given = condition()._replace(flow=torch.ones(1, N - 1, 2, 16, 16))
    run(partial(fifo, num_partitions=1, lookahead_denoising=True), watch, given=given, context_length=4)
    first = seen[4]  # after the first clip: frames -2, -1, 0, 1
    assert first.flow.mean((0, 2, 3, 4)).tolist() == [0, 0, 1]
    steps = (first.warped_latents - given.image_latents[:, None]).mean((0, 2, 3, 4))
    torch.testing.assert_close(steps, torch.tensor([0.0, 0, 0, 1]))
    assert torch.equal(first.image_latents, given.image_latents)
