"""Invariants of the long-video methods (Sec. 3.4), on a denoiser with a known answer and on the tiny random base."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from long_video_runs import CHAINED, METHODS, PHASED, SIGMAS, L, N, T, ToyVideo, certain, condition, run, toy
from torch import Tensor

from motionanim.models.schedule import karras_sigmas
from motionanim.models.svd.denoiser import Denoiser
from motionanim.sampling.chained import _cross_faded, continuous, direct, loop
from motionanim.sampling.phased import fresh_noise, phased
from motionanim.sampling.queued import fifo, zigzag
from motionanim.sampling.split import phase_split, split_at
from motionanim.sampling.windowed import freelong, freenoise, gen_l_video
from motionanim.types import Condition


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("frames", [2, 3, 5, 6, 16])
def test_any_length_is_whole_finite_and_repeatable(method: str, frames: int) -> None:
    given = condition(frames, batch=2)
    before = Condition(*(field.clone() for field in given))
    video, record = run(method, frames=frames, given=given)
    assert video.shape == (2, frames, 4, 8, 8)
    assert video.isfinite().all()
    again, _ = run(method, frames=frames, given=given)
    assert torch.equal(video, again)
    assert all(torch.equal(a, b) for a, b in zip(given, before)), "no argument is changed"
    assert record.calls >= 1
    assert all(0 < start < frames for start in record.segment_starts)
    assert all(seconds >= 0 for seconds in record.seconds.values())


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        ("direct", 5 * T),
        (partial(phased, **PHASED | {"gamma": 0.0}), 5 * T),  # it shares nothing but the starting noise
        ("phased", T + 4 * (T - 8)),
        ("gen_l_video", 7 * T),  # starts 0, 3, ..., 15, 18
        ("freenoise", T * N / L),
        ("freelong", T * N / L),
        ("fifo", T + (T - L + N) * 4),  # a queue of 10 frames, of which each of four windows of 5 lowers up to 3
        # 11 levels, 7 above 0.5. The queue grows from 3 blocks of 2 frames to 7: 16 rounds until 12 blocks are out.
        # Windows of 5, of which 2 are kept. Then four steps of 24 frames.
        ("zigzag", (T + 1) + (2 + 3 + 4 + 5 + 12 * 6) + 4 * 11),
        ("continuous", T + 6 * (T + 1 - 7)),  # strides of 3: 5 + 6 * 3 = 23; 7 sigmas are above 2, which is one more
        ("loop", T + 7 * (T + 1 - 7)),
    ],
)
def test_calls_are_those_of_the_table(method, calls: float) -> None:
    assert run(method)[1].calls == pytest.approx(calls)


def test_calls_at_the_papers_size() -> None:
    sigmas = karras_sigmas(25, sigma_min=0.002, sigma_max=700.0, rho=7.0)
    wanted = {"direct": 125, "phased": 45, "gen_l_video": 250, "freenoise": 125, "freelong": 125, "fifo": 275}
    at_size = {
        "gen_l_video": partial(gen_l_video, context_stride=12, batch_size=4),
        "fifo": partial(fifo, num_partitions=1, lookahead_denoising=True),
    }
    for name, calls in wanted.items():
        method = at_size.get(name, name)
        assert run(method, frames=125, sigmas=sigmas, context_length=25)[1].calls == calls, name


@given(st.integers(1, 200), st.floats(0, 1))
def test_phase_split_rounds_up_and_spans_the_run(steps: int, gamma: float) -> None:
    split = phase_split(steps, gamma)
    assert 0 <= split <= steps
    assert split - 1 < gamma * steps <= split + 1e-8
    assert phase_split(25, 0.28) == 7
    assert (phase_split(25, 0.8), phase_split(25, 0.0), phase_split(25, 1.0)) == (20, 0, 25)


@given(st.floats(0, 1e4, width=32), st.integers(1, 30))
def test_a_split_by_sigma_is_at_that_very_level(sigma: float, steps: int) -> None:
    grid = karras_sigmas(steps, sigma_min=0.002, sigma_max=700.0, rho=7.0)
    levels, split = split_at(grid, gamma=None, sigma=sigma)
    assert levels[split] == min(sigma, grid[0]), "a run cannot start above its largest level"
    assert (levels.diff() < 0).all()
    assert set(grid.tolist()) <= set(levels.tolist())
    assert len(levels) == len(grid) + (sigma not in grid.tolist() and sigma < grid[0])


def test_a_split_by_sigma_is_recorded_and_paid_for() -> None:
    for name, whole in (("phased", T + 1), ("continuous", T), ("loop", T)):
        record = run(partial(METHODS[name], gamma=None, sigma=2.0))[1]
        assert (record.split_sigma, record.split_step) == (2.0, 7)
        count = {"phased": 4, "continuous": 6, "loop": 7}[name]
        assert record.calls == whole + count * (T + 1 - 7), name


@pytest.mark.parametrize("options", [(None, None), (0.5, 1.0), (1.2, None), (None, -1.0), (None, math.nan)])
def test_a_split_is_a_level_or_a_share_and_within_range(options: tuple[float | None, float | None]) -> None:
    with pytest.raises(ValueError, match=r"gamma=|sigma="):
        split_at(SIGMAS, gamma=options[0], sigma=options[1])


def segments_of(video: Tensor) -> list[Tensor]:
    return list(video.unflatten(1, (-1, L)).unbind(1))


def test_gamma_1_copies_segment_1_and_costs_one_run(denoiser: Denoiser) -> None:
    video, record = run(phased, denoiser, frames=15, options=PHASED | {"gamma": 1.0})
    first, *others = segments_of(video)
    assert all(torch.equal(first, other) for other in others)
    assert (record.calls, record.split_step, record.split_sigma) == (T, T, 0.0)


@pytest.mark.slow
def test_no_fresh_noise_and_no_shuffle_repeat_segment_1_bitwise(denoiser: Denoiser) -> None:
    options = PHASED | {"omega": 0.0, "shuffle": "none", "batch_size": 1}
    first, *others = segments_of(run(phased, denoiser, frames=10, options=options)[0])
    assert all(torch.equal(first, other) for other in others)
    changed, *rest = segments_of(run(phased, denoiser, frames=10, options=PHASED)[0])
    assert torch.equal(changed, first), "segment 1 is the plain run"
    assert not torch.equal(changed, rest[0])


@pytest.mark.slow
def test_later_segments_in_one_batch_equal_one_at_a_time(denoiser: Denoiser) -> None:
    batched, one = (run(phased, denoiser, frames=15, options=PHASED | {"batch_size": size}) for size in (8, 1))
    torch.testing.assert_close(batched[0], one[0], atol=2e-4, rtol=1e-3)
    assert batched[1].calls == one[1].calls


def test_segments_go_two_at_a_time_on_a_cpu_where_nothing_is_said() -> None:
    seen = []

    def denoise(z, sigma, condition, scale):
        seen.append(len(z))
        return z * 0

    run(phased, denoise, options=PHASED | {"batch_size": None})
    assert max(seen) == 2


@pytest.mark.slow
def test_segment_1_is_what_direct_begins_with(denoiser: Denoiser) -> None:
    plain = run(direct, denoiser, frames=L, given=condition())[0]
    for method in ("phased", "continuous"):
        torch.testing.assert_close(
            run(method, denoiser, frames=8, given=condition())[0][:, :L], plain, atol=2e-4, rtol=1e-3
        )


def test_shared_noise_of_the_image_costs_one_call_more() -> None:
    video, record = run(phased, options=PHASED | {"shared_noise": "image"})
    assert record.calls == T + 4 * (T - 8) + 1
    assert not torch.equal(video, run("phased")[0])


def test_later_segments_may_go_without_guidance() -> None:
    def louder(z, sigma, condition, scale):
        return 2 * toy(z, sigma, condition)

    video = partial(ToyVideo, plain=toy)
    both, first_only = (
        run(phased, louder, video=video, options=PHASED | {"guide_later": guide}) for guide in (True, False)
    )
    assert torch.equal(first_only[0][:, :L], both[0][:, :L])
    assert not torch.equal(first_only[0][:, L:], both[0][:, L:])
    assert first_only[1].calls == both[1].calls == run("phased")[1].calls


@pytest.mark.parametrize("shuffle", ["segment", "global", "none"])
@pytest.mark.parametrize("omega", [0.0, 0.2, 2.0])
def test_new_noise_keeps_unit_variance_or_grows_as_printed(shuffle: str, omega: float) -> None:
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(2, 6, 4, 32, 32, generator=generator)
    make = partial(fresh_noise, shared, 3, omega=omega, shuffle=shuffle, generator=generator)
    assert make(renormalize=True).std().item() == pytest.approx(1, abs=0.01)
    assert make(renormalize=False).std().item() == pytest.approx((1 + omega**2) ** 0.5, rel=0.01)


def test_shuffles_only_move_frames() -> None:
    shared = torch.arange(6.0).view(1, 6, 1, 1, 1).expand(2, 6, 1, 1, 1)
    make = partial(fresh_noise, shared, 4, omega=0.0, renormalize=True, generator=torch.Generator().manual_seed(0))
    within = make(shuffle="segment").flatten(2)
    assert all(sorted(row) == list(range(6)) for row in within.flatten(0, 1).tolist())
    assert not torch.equal(within[0], within[1])
    overall = make(shuffle="global").flatten(2).transpose(0, 1).flatten(1)
    assert all(sorted(row) == sorted([0, 1, 2, 3, 4, 5] * 4) for row in overall.tolist())
    assert not all(sorted(row) == list(range(6)) for row in make(shuffle="global").flatten(2).flatten(0, 1).tolist())
    assert torch.equal(make(shuffle="none")[2], shared)


def test_continuous_shares_frames_and_has_no_seam() -> None:
    """The answer moves by the mean flow a frame: every step of the video is that, across segments too."""
    given = condition()._replace(flow=torch.full((1, N - 1, 2, 16, 16), 0.01))
    warm_start = partial(continuous, **CHAINED | {"warm_start": True})
    video, record = run("continuous", certain, given=given)
    steps = video.diff(dim=1).mean((0, 2, 3, 4))
    torch.testing.assert_close(steps, torch.full_like(steps, 0.01), atol=1e-4, rtol=0)
    assert record.split_sigma == 2.0
    warm, cheaper = run(warm_start, certain, given=given)
    torch.testing.assert_close(warm, video, atol=1e-3, rtol=0)
    assert cheaper.calls == 7 * (T + 1 - 7)
    assert run(warm_start, given=given._replace(use_flow=torch.zeros(1)))[1].calls == record.calls
    steps = run("phased", certain, given=given)[0].diff(dim=1).mean((0, 2, 3, 4))
    assert steps[L - 1] == pytest.approx(-0.04, abs=1e-4), "the paper's own segments jump back to the image"


def scaled(z: Tensor, sigma: Tensor, condition: Condition, scale: Tensor | None) -> Tensor:
    """Every frame shows its guidance; without, SVD's own ramp over the call."""
    scale = torch.linspace(1, 3, z.shape[1]) if scale is None else scale
    return scale[..., None, None, None].expand_as(z)


@pytest.mark.parametrize("frames", [3, L, N])
@pytest.mark.parametrize("method", METHODS)
def test_guidance_ramps_over_the_whole_video_and_not_in_every_window(method: str, frames: int) -> None:
    video, _ = run(method, scaled, frames=frames, given=condition(frames, batch=2), guidance=(1.0, 3.0))
    wanted = torch.linspace(1, 3, max(frames, L))
    if method in ("direct", "phased"):  # each segment is a clip of its own
        wanted = torch.linspace(1, 3, L).repeat(5)
    elif method == "loop":
        wanted = torch.full((N,), 2.0)
    # The last frame of a loop and frame 0 after it are mixed with the frames that lead up to them.
    alone = slice(1, frames - 1) if method == "loop" else slice(0, frames)
    torch.testing.assert_close(video.mean((2, 3, 4))[:, alone], wanted[alone].expand(2, -1), atol=2e-3, rtol=0)


@pytest.mark.parametrize("method", [continuous, loop])
def test_anchored_frames_keep_the_images_colours(method) -> None:
    image = condition().image_latents
    for anchor in (True, False):
        video, _ = run(method, options=CHAINED | {"anchor": anchor})
        spread, mean = torch.std_mean(video, dim=(-2, -1))
        like_spread, like_mean = torch.std_mean(image[:, None].expand_as(video), dim=(-2, -1))
        # The farthest of all: the merged frames of a loop would have less spread than their neighbours.
        farthest = torch.maximum((spread - like_spread).abs().amax(), (mean - like_mean).abs().amax())
        assert (farthest < 1e-4) == anchor


def test_a_cross_fade_keeps_the_contrast_of_unrelated_pictures_and_leaves_equal_ones_alone() -> None:
    first, second = torch.randn(2, 1, 1, 16, 64, 64, generator=torch.Generator().manual_seed(0))
    for share in map(torch.tensor, (0.0, 0.25, 0.5, 1.0)):
        torch.testing.assert_close(_cross_faded(first, first, share), first)
        mean = _cross_faded(first + 3, second + 3, share).mean()
        torch.testing.assert_close(mean.item(), 3.0, atol=0.01, rtol=0)
        assert 0.94 < _cross_faded(first, second, share).std() < 1.03, "torch.lerp leaves 0.71 in the middle"


@pytest.mark.slow
def test_a_loop_comes_back(denoiser: Denoiser) -> None:
    video, chain = (run(method, denoiser, frames=11)[0] for method in ("loop", "continuous"))
    torch.testing.assert_close(video[:, 1:L], chain[:, 1:L])

    def wrap(frames: Tensor) -> float:
        steps = torch.cat([frames, frames[:, :1]], dim=1).diff(dim=1).square().mean((0, 2, 3, 4)).sqrt()
        return (steps[-1] / steps[:-1].median()).item()

    assert wrap(video) < 1.5
    # A picture that only ever drifts on: the loop spreads the way back over its closing segment.
    drifting = condition()._replace(flow=torch.full((1, N - 1, 2, 16, 16), 0.01))

    def believe(z, sigma, part, scale):
        return part.warped_latents

    assert wrap(run("continuous", believe, given=drifting)[0]) == pytest.approx(N - 1, rel=1e-3)
    assert wrap(run("loop", believe, given=drifting)[0]) < (N - 1) / 3


@pytest.mark.parametrize("method", METHODS)
def test_each_clip_of_a_batch_follows_its_own_image_and_motion(method: str) -> None:
    both = condition(batch=2)
    together, _ = run(method, certain, given=both)
    for row in range(2):
        alone, _ = run(method, certain, given=Condition(*(field[row : row + 1] for field in both)))
        torch.testing.assert_close(together[row : row + 1], alone, atol=2e-3, rtol=0)
    assert not torch.allclose(together[0], together[1], atol=0.1)


def test_a_loop_begins_again_with_its_own_first_motion() -> None:
    """Motion that changes with time: it goes up to frame 0, and from there with the first step, not the last."""
    flow = torch.linspace(1, 2, N - 1).view(1, -1, 1, 1, 1).expand(1, -1, 2, 16, 16)
    rewound: list[Tensor] = []
    closing: list[Tensor] = []

    class Watched(ToyVideo):
        def rewind(self, start: int, length: int) -> Tensor:
            rewound.append(self.condition.window(start, length).flow.mean((0, 2, 3, 4)))
            return super().rewind(start, length)

    def watch(z: Tensor, sigma: Tensor, part: Condition, scale: Tensor | None) -> Tensor:
        closing.append(part.flow.mean((0, 2, 3, 4)))
        return certain(z, sigma, part)

    warm_start = partial(loop, **CHAINED | {"warm_start": True})
    run(warm_start, watch, given=condition()._replace(flow=flow), video=Watched)
    assert len(rewound) == 1
    assert rewound[0].min() > 1.8, "up to frame 0"
    # Frames 20, 21, 22, 0, 1: the field has 22 steps, so that the one into frame 0 is the last once more.
    torch.testing.assert_close(closing[-1], torch.tensor([1 + 20 / 21, 2, 2, 1]), atol=1e-5, rtol=0)


def test_segments_start_where_the_record_says() -> None:
    assert run("phased")[1].segment_starts == run("direct")[1].segment_starts == (5, 10, 15, 20)
    assert run("continuous")[1].segment_starts == (5, 8, 11, 14, 17, 20)
    # Six segments reach frame 20; the last shares it with them, and frame 1 on its other side.
    assert run("loop")[1].segment_starts == (1, 5, 8, 11, 14, 17, 20, 21)
    assert run("fifo")[1].segment_starts == ()


def test_windows_see_their_part_of_the_motion() -> None:
    flow = torch.arange(6.0).view(1, 6, 1, 1, 1).expand(1, 6, 2, 16, 16)
    part = condition(7)._replace(flow=flow).window(3, 6)
    assert part.flow[0, :, 0, 0, 0].tolist() == [3, 4, 5, 5, 5]
    assert part.warped_latents.shape[1] == 6


@pytest.mark.parametrize(
    ("method", "options", "settings", "message"),
    [
        ("direct", {}, {"frames": 1}, "frames=1: a video needs at least 2"),
        (phased, PHASED | {"batch_size": 0}, {}, "batch_size=0"),
        (phased, PHASED | {"shared_noise": "both"}, {}, "shared_noise='both'"),
        (phased, PHASED | {"gamma": -0.1}, {}, "gamma=-0.1"),
        (phased, PHASED | {"shuffle": "all"}, {}, "shuffle='all'"),
        (phased, PHASED | {"omega": -1.0}, {}, "omega=-1"),
        (gen_l_video, {"context_stride": 6, "batch_size": 1}, {}, "context_stride=6"),
        (gen_l_video, {"context_stride": 3, "batch_size": 0}, {}, "batch_size=0"),
        (freenoise, {"context_stride": 0}, {}, "context_stride=0"),
        (continuous, CHAINED | {"overlap": 5}, {}, r"overlap=5: must be in \[1, 4\]"),
        (loop, CHAINED | {"overlap": 0}, {}, "overlap=0"),
        (loop, CHAINED, {"context_length": 3}, "a loop needs windows of at least 4"),
        (freelong, {"context_stride": 2, "d_s": -0.1, "d_t": 0.25}, {}, "d_s=-0.1: must be at least 0"),
        (freelong, {"context_stride": 6, "d_s": 0.25, "d_t": 0.25}, {}, "context_stride=6"),
        (fifo, {"num_partitions": 0, "lookahead_denoising": True}, {}, "num_partitions=0: must be at least 1"),
        ("fifo", {}, {"sampler": "heun"}, "set sampling.sampler=euler"),
        ("zigzag", {}, {"sampler": "dpmpp_2m"}, "set sampling.sampler=euler"),
        (zigzag, {"zigzag_width": 6, "sigma": 0.5}, {}, r"zigzag_width=6: must be in \[1, 5\]"),
        (zigzag, {"zigzag_width": 2, "sigma": 700.0}, {}, "sigma=700.0: must be below 700"),
    ],
)
def test_options_out_of_range_are_named(method, options, settings, message) -> None:
    with pytest.raises(ValueError, match=message):
        run(method, options=options, **settings)


@pytest.mark.parametrize("frames", [3, 8, N])
@pytest.mark.parametrize("method", METHODS)
def test_as_many_calls_are_announced_as_are_made(method: str, frames: int) -> None:
    announced: list[float] = []

    class Told:
        def expect(self, what: str, calls: float) -> None:
            announced.append(calls)

        def done(self, what: str, calls: float) -> None:
            pass

    _, record = run(method, frames=frames, progress=Told())
    assert announced == [pytest.approx(record.calls)]
