"""What holds still, the latents outside the mask, for every clip, segment and window; and the denoiser's dtype."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType

import pytest
import torch
from conftest import MOTION, make_condition
from torch import Tensor

import motionanim.sampling.animator
from motionanim.models.svd.codec import Codec
from motionanim.sampling.animator import Generator, LongVideo, _held
from motionanim.sampling.chained import continuous, direct, loop
from motionanim.sampling.windowed import fifo, freenoise, gen_l_video
from motionanim.types import Condition

CHAINED = {"overlap": 2, "gamma": None, "sigma": 2.0, "warm_start": True, "anchor": False}
METHODS = {
    "direct": direct, "fifo": fifo, "gen_l_video": partial(gen_l_video, stride=3, batch_size=1),
    "freenoise": partial(freenoise, stride=2), "continuous": partial(continuous, **CHAINED),
    "loop": partial(loop, **CHAINED),
}  # fmt: skip


def test_held_latents_are_each_clips_own_in_every_segment() -> None:
    known = torch.arange(2.0).view(2, 1, 1, 1, 1).expand(2, 1, 4, 8, 8) + 10
    where = torch.zeros(2, 1, 1, 8, 8, dtype=torch.bool)
    where[0, ..., :3], where[1, ..., 5:] = True, True

    def zeros(z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return torch.zeros_like(z)

    z = torch.ones(6, 5, 4, 8, 8)  # three segments of two clips, segment after segment
    out = _held(zeros, known, where)(z, torch.ones(6), make_condition())
    for row, (value, held) in enumerate([(10.0, slice(0, 3)), (11.0, slice(5, 8))] * 3):
        assert (out[row, ..., held] == value).all()
        rest = torch.ones(8, dtype=torch.bool)
        rest[held] = False
        assert (out[row, ..., rest] == 0).all()


def load(
    base: Path,
    *,
    dtype: str = "float32",
    guidance: float = 2.0,
    sampling: Mapping = MappingProxyType({}),
    device: str = "cpu",
    **motion,
) -> Generator:
    sampling = {
        "num_steps": 2, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "min_guidance": 1.0,
        "max_guidance": guidance, "motion_guidance": None, "noise_aug": 0.0, "dtype": dtype,
        "decode_dtype": "float32", "channels_last": False, "compile": None,
    } | sampling  # fmt: skip
    torch.manual_seed(0)  # of the motion weights, which this base lacks
    generator, _ = Generator.load(
        base=str(base), motion=MOTION | motion, sampling=sampling, loras=[], window=5, device=torch.device(device)
    )
    return generator


def sample(
    generator: Generator, method: str | LongVideo, *, frames: int, flow: Tensor | None = None, use_flow: bool = True,
    **carried: Tensor,
) -> Tensor:  # fmt: skip
    random = torch.Generator().manual_seed(1)
    image = torch.rand(1, 3, 16, 16, generator=random) * 2 - 1
    flow = torch.randn(1, frames - 1, 2, 16, 16, generator=random) if flow is None else flow
    return generator(
        image, flow,
        num_frames=frames, fps=7.0, strength=torch.ones(1), use_flow=use_flow, mask=torch.ones(1, 1, 16, 16),
        long_video=METHODS.get(method, method), seed=0, progress=None, **carried,
    )[0]  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_without_motion_field_nothing_of_it_reaches_the_video(base: Path, method: str) -> None:
    generator = load(base, guidance=1.0, motion_field=False, warped_latent=False, residual_std=0.6)
    right = torch.zeros(1, 6, 2, 16, 16)
    right[:, :, 0] = 2.0
    first, second = (sample(generator, method, frames=7, flow=flow) for flow in (right, -right))
    assert torch.equal(first, second)
    assert torch.equal(sample(generator, method, frames=7, flow=right, use_flow=False), first), "as without arrows"


def test_the_carried_image_alone_steers(base: Path) -> None:
    generator = load(base, guidance=1.0, motion_field=False, residual_std=0.6)  # conditioning=warped_only
    right = torch.zeros(1, 4, 2, 16, 16)
    right[:, :, 0] = 2.0
    first, second = (sample(generator, "direct", frames=5, flow=flow) for flow in (right, -right))
    assert not torch.allclose(first, second, atol=0.1)


@pytest.mark.parametrize("residual_std", [None, 0.6])
@pytest.mark.parametrize("method", ["direct", "fifo", "continuous"])
def test_bfloat16_makes_nearly_the_same_video(base: Path, method: str, residual_std: float | None) -> None:
    exact, rounded = (
        sample(load(base, dtype=dtype, residual_std=residual_std), method, frames=5)
        for dtype in ("float32", "bfloat16")
    )
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.1 * exact.std()  # eight bits, over two steps with guidance


@pytest.mark.parametrize(
    ("sampling", "words"),
    [
        ({"dtype": "int8"}, "sampling.dtype=int8: must be one of float32, bfloat16, float16"),
        ({"decode_dtype": "float16"}, "sampling.decode_dtype=float16: must be one of float32, bfloat16"),
        ({"compile": "fast"}, "compile=fast: must be null or one of default, reduce-overhead"),
    ],
)
def test_an_unknown_choice_is_refused_in_words(base: Path, sampling: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load(base, sampling=sampling)


@pytest.mark.parametrize(
    ("method", "frames", "windows"), [("direct", 5, 1), ("continuous", 12, 4), ("gen_l_video", 12, 4)]
)
def test_motion_is_encoded_once_a_window_and_nothing_changes(
    base: Path, method: str, frames: int, windows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator, calls = load(base, sampling={"num_steps": 4}, residual_std=0.6), []
    hook = generator.denoiser.motion.encoder.register_forward_hook(lambda *_: calls.append(1))
    video = sample(generator, method, frames=frames)
    assert len(calls) == windows
    hook.remove()
    assert generator.denoiser.motion.now is None, "nothing is left behind"
    monkeypatch.setattr("motionanim.models.svd.motion_adapter.Kept", lambda make: make)
    assert torch.equal(sample(generator, method, frames=frames), video)


def test_one_window_has_svds_own_ramp_of_guidance(base: Path) -> None:
    generator = load(base, guidance=3.0)
    plain = sample(generator, "direct", frames=5)
    torch.testing.assert_close(sample(generator, "gen_l_video", frames=5), plain, atol=1e-5, rtol=0)
    constant = load(base, guidance=3.0, sampling={"min_guidance": 3.0})
    assert not torch.allclose(sample(constant, "direct", frames=5), plain, atol=1e-3)


def test_channels_last_makes_the_same_video(base: Path) -> None:
    plain, other = load(base), load(base, sampling={"channels_last": True})
    assert other.denoiser.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(sample(other, "direct", frames=5), sample(plain, "direct", frames=5), atol=1e-4, rtol=0)


def test_a_decoder_in_bfloat16_makes_nearly_the_same_video(base: Path) -> None:
    exact, rounded = (
        sample(load(base, sampling={"decode_dtype": dtype}), "direct", frames=5) for dtype in ("float32", "bfloat16")
    )
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.02 * exact.std()


def test_the_compiler_sees_hooks_processors_and_windows_of_the_motion_conditioning(base: Path) -> None:
    traced, plain = load(base), load(base)
    traced.denoiser.unet.compile(backend="eager")  # captures the graph and runs it as it is
    torch.testing.assert_close(
        sample(traced, "freenoise", frames=7), sample(plain, "freenoise", frames=7), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("method", ["gen_l_video", "freenoise", "fifo", "continuous", "loop"])
def test_every_window_is_predicted_from_the_photo_itself(base: Path, method: str) -> None:
    """With a denoiser that believes its prediction, every frame is the photo carried there once."""
    generator = load(base, guidance=1.0)
    images: list[Tensor] = []

    def believe(z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        images.extend(condition.image_latents)
        return condition.predicted

    generator.denoiser.forward = believe
    made = sample(generator, method, frames=12)
    random = torch.Generator().manual_seed(1)
    image, flow = torch.rand(1, 3, 16, 16, generator=random) * 2 - 1, torch.randn(1, 11, 2, 16, 16, generator=random)
    latents = generator.codec.predict(image, torch.cat([flow, flow[:, -1:]], dim=1))[:, :12]  # its last step goes on
    expected = generator.codec.decode(latents)
    sure = {"loop": slice(1, 9)}.get(method, slice(0, 12))  # its closing segment has two ends to meet
    torch.testing.assert_close(made[:, sure], expected[:, sure], atol=1e-3, rtol=0)
    if method not in ("loop", "freenoise"):  # the latter has one window of all frames
        for k in (0, 3):
            end = latents[0, k] / generator.codec.vae.config.scaling_factor
            assert min((seen - end).abs().max() for seen in images) < 1e-3, "a window's own image"


@pytest.mark.parametrize(
    ("method", "frames", "warped", "encoded"),
    [("continuous", 12, True, 14), ("direct", 5, True, 5), ("direct", 5, False, 0)],  # a last window may go on: 14
)
def test_only_what_is_read_is_carried_and_encoded_and_that_once(
    base: Path, method: str, frames: int, warped: bool, encoded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = load(base, guidance=1.0, warped_latent=warped)
    predictor, seen = motionanim.sampling.animator._predictor, []

    def counted(codec: Codec, carry: Callable[[list[int]], Tensor], *known: object) -> Callable[[int, int], Tensor]:
        return predictor(codec, lambda frames: carry(frames) if seen.extend(frames) is None else None, *known)

    monkeypatch.setattr(motionanim.sampling.animator, "_predictor", counted)
    sample(generator, method, frames=frames)
    assert len(seen) == len(set(seen)) == encoded


def test_latents_that_are_known_are_not_made_again_and_change_nothing(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = load(base, guidance=1.0, warped_latent=True)
    carried = torch.rand(1, 14, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    plain = sample(generator, "continuous", frames=12, carried=carried)
    latents, encode, seen = generator.encode(carried), Codec.encode, []
    monkeypatch.setattr(Codec, "encode", lambda self, frames: seen.append(frames.shape[1]) or encode(self, frames))
    known = sample(generator, "continuous", frames=12, carried=carried, carried_latents=latents)
    assert seen == [1] * len(seen), "single images of windows, no frames of the prediction"
    torch.testing.assert_close(known, plain, atol=1e-5, rtol=1e-4)
