"""The animator on the tiny random base: masks, motion, guidance, precision, and what is computed how often."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from conftest import MOTION
from long_video_runs import VARIED, animator, sample
from torch import Tensor

from motionanim.models.svd.codec import Codec
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.motion_adapter import MotionContext
from motionanim.sampling.animator import Animator
from motionanim.sampling.moving.image import MovingImage
from motionanim.sampling.samplers import holding


def test_held_latents_are_each_clips_own_in_every_segment() -> None:
    known = torch.arange(2.0).view(2, 1, 1, 1, 1).expand(2, 1, 4, 8, 8) + 10
    where = torch.zeros(2, 1, 1, 8, 8, dtype=torch.bool)
    where[0, ..., :3], where[1, ..., 5:] = True, True

    z = torch.ones(6, 5, 4, 8, 8)  # three segments of two clips, segment after segment
    out = holding(lambda z, sigma: torch.zeros_like(z), known, where)(z, torch.ones(6))
    for row, (value, held) in enumerate([(10.0, slice(0, 3)), (11.0, slice(5, 8))] * 3):
        assert (out[row, ..., held] == value).all()
        rest = torch.ones(8, dtype=torch.bool)
        rest[held] = False
        assert (out[row, ..., rest] == 0).all()


def load(base: Path, motion: Mapping[str, Any] = MappingProxyType({}), **sampling: Any) -> Animator:
    """Two steps without noise on the photo."""
    return animator(base, motion=MOTION | motion, **{"num_steps": 2, "noise_aug": 0.0} | sampling)


BARE = {"motion_field": False, "residual_std": 0.6}


@pytest.mark.slow
@pytest.mark.parametrize("method", VARIED)
def test_without_motion_field_nothing_of_it_reaches_the_video(base: Path, method: str) -> None:
    animator = load(base, BARE | {"warped_latent": False}, max_guidance=1.0)
    right = torch.zeros(1, 6, 2, 16, 16)
    right[:, :, 0] = 2.0
    first, second = (sample(animator, method, frames=7, flow=flow) for flow in (right, -right))
    assert torch.equal(first, second)
    assert torch.equal(sample(animator, method, frames=7, flow=right, use_flow=False), first), "as without arrows"


def test_the_warped_image_alone_steers(base: Path) -> None:
    animator = load(base, BARE, max_guidance=1.0)  # conditioning=warped_only
    right = torch.zeros(1, 4, 2, 16, 16)
    right[:, :, 0] = 2.0
    first, second = (sample(animator, "direct", frames=5, flow=flow) for flow in (right, -right))
    assert not torch.allclose(first, second, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "motion", "rounded", "most"),
    [
        *itertools.product(
            ["direct", "fifo", "continuous"], [{}, {"residual_std": 0.6}], [{"dtype": "bfloat16"}], [0.1]
        ),
        ("direct", {}, {"decode_dtype": "bfloat16"}, 0.02),
    ],
    ids=str,
)
def test_bfloat16_makes_nearly_the_same_video(
    base: Path, method: str, motion: dict[str, float], rounded: dict[str, str], most: float
) -> None:
    made, exact = (sample(load(base, motion, **each), method, frames=5) for each in (rounded, {}))
    assert made.dtype == torch.float32
    assert 0 < (made - exact).abs().mean() < most * exact.std()  # eight bits, over two steps with guidance


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"sampler": "ddim"}, "sampling.sampler=ddim: must be one of euler, heun, dpmpp_2m"),
        ({"dtype": "int8"}, "sampling.dtype=int8: must be one of float32, bfloat16, float16"),
        ({"decode_dtype": "float16"}, "sampling.decode_dtype=float16: must be one of float32, bfloat16"),
        ({"compile": "fast"}, "compile=fast: must be null or one of default, reduce-overhead"),
    ],
)
def test_an_unknown_choice_is_refused_in_words(base: Path, sampling: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(base, **sampling)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "frames", "windows"), [("direct", 5, 1), ("continuous", 8, 2), ("gen_l_video", 8, 2)]
)
def test_motion_is_encoded_once_a_window_and_nothing_changes(
    base: Path, method: str, frames: int, windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    animator, calls = load(base, {"residual_std": 0.6}), []
    hook = animator.denoiser.motion.encoder.register_forward_hook(lambda *_: calls.append(1))
    video = sample(animator, method, frames=frames)
    assert len(calls) == windows
    hook.remove()
    assert animator.denoiser.motion.now is None, "nothing is left behind"
    monkeypatch.setattr(Denoiser, "context", lambda self, condition: condition)  # then `forward` makes it at each step
    assert torch.equal(sample(animator, method, frames=frames), video)


@pytest.mark.slow
def test_one_window_has_svds_own_ramp_of_guidance(base: Path) -> None:
    animator = load(base, max_guidance=3.0)
    plain = sample(animator, "direct", frames=5)
    torch.testing.assert_close(sample(animator, "gen_l_video", frames=5), plain, atol=1e-5, rtol=0)
    constant = load(base, max_guidance=3.0, min_guidance=3.0)
    assert not torch.allclose(sample(constant, "direct", frames=5), plain, atol=1e-3)


@pytest.mark.slow
def test_channels_last_makes_the_same_video(base: Path) -> None:
    plain, other = load(base), load(base, channels_last=True)
    assert other.denoiser.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(sample(other, "direct", frames=5), sample(plain, "direct", frames=5), atol=1e-4, rtol=0)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("method", ["freenoise", "freelong"])
def test_the_compiler_sees_hooks_processors_and_windows_of_the_motion_conditioning(base: Path, method: str) -> None:
    traced, plain = load(base), load(base)
    traced.denoiser.unet.compile(backend="eager", fullgraph=True)  # captures one graph and runs it as it is
    torch.testing.assert_close(sample(traced, method, frames=7), sample(plain, method, frames=7), atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", ["gen_l_video", "freenoise", "freelong", "fifo", "zigzag", "continuous", "loop"])
def test_every_window_is_warped_from_the_photo_itself(base: Path, method: str) -> None:
    """With a denoiser that believes its prediction, every frame is the photo warped there once."""
    animator = load(base, {"residual_std": 0.6}, max_guidance=1.0)
    images: list[Tensor] = []

    def believe(z: Tensor, sigma: Tensor, context: MotionContext) -> Tensor:
        images.extend(context.image_latents)
        return context.expected

    animator.denoiser.forward = believe
    made = sample(animator, method, frames=12)
    random = torch.Generator().manual_seed(1)
    image, flow = torch.rand(1, 3, 16, 16, generator=random) * 2 - 1, torch.randn(1, 11, 2, 16, 16, generator=random)
    latents = animator.codec.warp_image(image, torch.cat([flow, flow[:, -1:]], dim=1))[:, :12]  # its last step goes on
    expected = animator.codec.decode(latents)
    sure = {"loop": slice(1, 9)}.get(method, slice(0, 12))  # its closing segment has two ends to meet
    torch.testing.assert_close(made[:, sure], expected[:, sure], atol=1e-3, rtol=0)
    if method not in ("loop", "freenoise", "freelong"):  # the latter two have one window of all frames
        for k in (0, 3):
            assert min((seen - latents[0, k]).abs().max() for seen in images) < 1e-3, "a window's own image"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "frames", "warped", "encoded"),
    [("continuous", 12, True, 14), ("direct", 5, True, 5), ("direct", 5, False, 0)],  # a last window may go on: 14
)
def test_only_what_is_read_is_warped_and_encoded_and_that_once(
    base: Path, method: str, frames: int, warped: bool, encoded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    animator = load(base, {"warped_latent": warped}, max_guidance=1.0)
    frames_of, seen = MovingImage.frames, []

    def counted(self: MovingImage, numbers: list[int]) -> Tensor:
        seen.extend(numbers if len(numbers) > 1 else [])  # single ones are images of windows
        return frames_of(self, numbers)

    monkeypatch.setattr(MovingImage, "frames", counted)
    sample(animator, method, frames=frames)
    assert len(seen) == len(set(seen)) == encoded


@pytest.mark.slow
def test_latents_that_are_known_are_not_made_again_and_change_nothing(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    animator = load(base, max_guidance=1.0)
    warped = torch.rand(1, 14, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = sample(animator, "continuous", frames=12, warped_frames=warped)
    latents, encode, seen = animator.encode(warped), Codec.encode, []
    monkeypatch.setattr(Codec, "encode", lambda self, frames: seen.append(frames.shape[1]) or encode(self, frames))
    known = sample(animator, "continuous", frames=12, warped_frames=warped, warped_latents=latents)
    assert seen == [1] * len(seen), "single images of windows, no frames of the prediction"
    torch.testing.assert_close(known, plain, atol=1e-5, rtol=1e-4)
