"""FreeLong's temporal attention: its filter, its local window, and what remains of it at either end."""

import math
from pathlib import Path

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from long_video_runs import condition
from on_device import trained_denoiser
from torch import Tensor

from motionanim.models.svd.spectral_attention import blend, local_frames, low_pass, spectral_blend


def published_filter(total: int, height: int, width: int, d_s: float, d_t: float) -> Tensor:
    """The Gaussian of the authors' code, element by element: shifted, (T, h, w)."""
    values = torch.empty(total, height, width)
    for t in range(total):
        for y in range(height):
            for x in range(width):
                ft, fy, fx = 2 * t / total - 1, 2 * y / height - 1, 2 * x / width - 1
                values[t, y, x] = math.exp(-((ft / d_t) ** 2 + (fy / d_s) ** 2 + (fx / d_s) ** 2) / 2)
    return values


def published_mix(coarse: Tensor, fine: Tensor, low: Tensor) -> Tensor:
    """(T, h, w) features mixed in the full, shifted spectrum, as the authors do."""
    spectra = (torch.fft.fftshift(torch.fft.fftn(features)) for features in (coarse, fine))
    mixed = sum(spectrum * share for spectrum, share in zip(spectra, (low, 1 - low), strict=True))
    return torch.fft.ifftn(torch.fft.ifftshift(mixed)).real


@pytest.mark.parametrize(("d_s", "d_t"), [(0.25, 0.25), (1.0, 0.1)])
def test_features_are_mixed_as_by_the_authors(d_s: float, d_t: float) -> None:
    coarse, fine = torch.randn(2, 12, 4, 6, generator=torch.Generator().manual_seed(0))  # (T, h, w)
    wanted = published_mix(coarse, fine, published_filter(12, 4, 6, d_s, d_t))
    maps = (features.permute(1, 2, 0)[None, ..., None] for features in (coarse, fine))
    mixed = blend(*maps, low_pass((4, 6, 12), d_s=d_s, d_t=d_t))[0, ..., 0].permute(2, 0, 1)
    torch.testing.assert_close(mixed, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 6, 12), (3, 5, 25)])
def test_a_full_band_is_the_global_result_and_an_empty_one_the_local(shape: tuple[int, int, int]) -> None:
    coarse, fine = torch.randn(2, 1, *shape, 2, generator=torch.Generator().manual_seed(0))
    everything = low_pass(shape, d_s=math.inf, d_t=math.inf)
    assert (everything == 1).all()
    torch.testing.assert_close(blend(coarse, fine, everything), coarse, atol=1e-5, rtol=1e-5)
    assert torch.equal(blend(coarse, fine, low_pass(shape, d_s=0.0, d_t=0.25)), fine)
    mean = blend(coarse, fine, low_pass(shape, d_s=0.25, d_t=0.25)).mean()
    torch.testing.assert_close(mean, coarse.mean(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("total", "length"), [(12, 4), (13, 5), (5, 5), (40, 16), (6, 5)])
def test_a_frame_looks_at_frames_around_it(total: int, length: int) -> None:
    """The authors' loop: a window around each frame, shifted into the video where it is cut short."""
    for place, row in enumerate(local_frames(total, length)):
        first, end = max(0, place - length // 2), min(total, place + length // 2 + 1)
        if end - first < length:
            first, end = (0, min(total, length)) if first == 0 else (max(0, end - length), end)
        assert row.nonzero().flatten().tolist() == list(range(first, end))


@pytest.mark.parametrize("keys", ["latents", "field", None])
def test_attention_is_blended_at_the_lower_resolution_and_local_at_the_largest(base: Path, keys: str | None) -> None:
    """Each temporal attention by hand from its own input, with both readings of Eq. 4 and without it."""
    denoiser = trained_denoiser(base, motion_keys=keys or "latents")
    attentions = [module for name, module in denoiser.unet.named_modules() if name.endswith(".attn1")]
    attentions = [module for module in attentions if module.processor.__class__.__name__ == "MotionAttention"]
    if keys is None:
        for module in attentions:
            module.set_processor(AttnProcessor2_0())
    z, sigma = torch.randn(2, 9, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.full((2,), 3.0)
    seen: list[tuple[torch.nn.Module, Tensor, Tensor]] = []
    with torch.no_grad():
        plain, short = denoiser(z, sigma, condition(9, 2)), denoiser(z[:, :5], sigma, condition(5, 2))
        with spectral_blend(denoiser, 5, d_s=0.25, d_t=0.25):
            assert torch.equal(denoiser(z[:, :5], sigma, condition(5, 2)), short), "L frames as without"
            hooks = [
                each.register_forward_hook(lambda module, given, out: seen.append((module, given[0], out)))
                for each in attentions
            ]
            assert not torch.allclose(denoiser(z, sigma, condition(9, 2)), plain, atol=1e-3)
            for hook in hooks:
                hook.remove()
        assert torch.equal(denoiser(z, sigma, condition(9, 2)), plain), "the context leaves nothing behind"
        sizes = {out.shape[0] for _, _, out in seen}
        assert len(sizes) > 1, "several resolutions"
        with denoiser.motion.using(denoiser.context(condition(9, 2))):
            for module, given, out in seen:
                local = torch.empty_like(out)
                for frame in range(9):
                    first = min(max(frame - 2, 0), 4)
                    near = slice(first, first + 5)
                    place = {"frames": near} if keys else {}
                    local[:, frame] = module(given[:, near], **place)[:, frame - first]
                wanted = local
                if len(given) < max(sizes):
                    side = int((len(given) // 2) ** 0.5)
                    maps = (part.unflatten(0, (2, side, side)) for part in (module(given), local))
                    wanted = blend(*maps, low_pass((side, side, 9), d_s=0.25, d_t=0.25)).flatten(0, 2)
                torch.testing.assert_close(out, wanted, atol=1e-5, rtol=1e-4)
