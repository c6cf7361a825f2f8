"""Less memory, the same numbers: the decoder in tiles, layers moved to a device, calls split, frozen weights halved."""

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import make_condition
from diffusers import AutoencoderKLTemporalDecoder
from on_device import sent, trained_denoiser
from pretended_cuda import PretendedCuda, is_there
from torch import Tensor, nn
from transformers import CLIPImageProcessor

from motionanim.models.svd.codec import Codec
from motionanim.models.svd.memory import TiledDecoder, offload
from motionanim.sampling.guidance import guided

SIDE, TILE = 44, 30  # latent pixels


@pytest.fixture(scope="module")
def vae() -> AutoencoderKLTemporalDecoder:
    torch.manual_seed(0)
    made = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, layers_per_block=1
    )
    TiledDecoder(made.decoder)
    return made.eval()


def scene(frames: int) -> Tensor:
    """Latents of frames whose right half is bright and grained, and whose left half is dark and smooth."""
    random = torch.Generator().manual_seed(1)
    across = torch.linspace(-1, 1, SIDE)
    soft = F.interpolate(torch.randn(1, 4, 4, 4, generator=random), (SIDE, SIDE), mode="bicubic")
    still = soft + across.sign() + 0.5 * torch.randn(1, 4, SIDE, SIDE, generator=random) * (across > 0)
    return still + 0.01 * torch.randn(frames, 4, SIDE, SIDE, generator=random)


@torch.no_grad()
def decoded(vae: AutoencoderKLTemporalDecoder, latents: Tensor, tile: int | None = None) -> Tensor:
    return vae.decoder(latents, torch.zeros(1, len(latents)), len(latents), tile)


def halves(vae: AutoencoderKLTemporalDecoder, latents: Tensor) -> Tensor:
    return torch.cat([decoded(vae, half) for half in latents.chunk(2, dim=-1)], dim=-1)


def error(found: Tensor, wanted: Tensor) -> float:
    """Root mean square, as a share of the picture's standard deviation."""
    return float((found - wanted).square().mean().sqrt() / wanted.std())


def test_tiles_are_the_whole_frame_where_all_frames_are_measured(vae: AutoencoderKLTemporalDecoder) -> None:
    latents = scene(1)
    whole = decoded(vae, latents)
    assert torch.equal(decoded(vae, latents, tile=SIDE), whole)
    assert error(decoded(vae, latents, tile=TILE), whole) < 1e-4
    # Tiles that are decoded by themselves, as in diffusers' other autoencoders, take the dark half for a bright one.
    assert error(halves(vae, latents), whole) > 0.2
    assert torch.equal(decoded(vae, latents), whole), "nothing of the tiles stays"


@pytest.mark.slow
def test_tiles_of_a_video_are_nearer_to_whole_frames_than_tiles_that_know_nothing_of_each_other(
    vae: AutoencoderKLTemporalDecoder,
) -> None:
    latents = scene(6)  # of which 3 are measured
    whole = decoded(vae, latents)
    assert error(decoded(vae, latents, tile=TILE), whole) < error(halves(vae, latents), whole) / 2 < 0.3


@pytest.mark.slow
def test_layers_are_on_the_device_only_while_they_run(base: Path) -> None:
    z, sigma, condition = torch.randn(1, 5, 4, 8, 8), torch.ones(1), make_condition(batch=1)
    with torch.no_grad():
        expected = trained_denoiser(base)(z, sigma, condition)
    there: list[int] = []
    with PretendedCuda(), torch.no_grad():
        denoiser, device = trained_denoiser(base), torch.device("cuda", 0)
        layers = [m for m in denoiser.unet.modules() if isinstance(m, nn.Linear | nn.Conv2d | nn.Conv3d)]

        def watched(layer: nn.Module, forward: Callable[..., Tensor], *args: Tensor) -> Tensor:
            assert is_there(layer.weight)
            there.append(sum(is_there(each.weight) for each in layers))
            return forward(*args)

        for layer in layers:
            layer.forward = partial(watched, layer, layer.forward)
        denoiser.motion.to(device)
        offload(denoiser.unet, device)
        assert not any(is_there(parameter) for parameter in denoiser.unet.parameters())
        got = denoiser(z.to(device), sigma.to(device), sent(condition, "cuda"))
    assert is_there(got)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert len(there) > 50
    assert set(there) == {1}
    assert not any(is_there(parameter) for parameter in denoiser.unet.parameters())


def test_a_whole_codec_runs_on_the_device_while_its_weights_stay_on_the_host(
    vae: AutoencoderKLTemporalDecoder, codec: Codec
) -> None:
    extractor = CLIPImageProcessor()
    image, latents = torch.rand(1, 1, 3, 64, 64), scene(2)[None, :, :, :16, :16]

    def run(parts: Codec, device: str) -> list[Tensor]:
        image_there = image.to(device)
        made = [parts.encode(image_there), parts.embed_image(image_there[:, 0]), parts.decode(latents.to(device))]
        return [value.cpu() for value in made]

    expected = run(Codec(deepcopy(vae), deepcopy(codec.image_encoder), extractor), "cpu")
    with PretendedCuda():
        parts = Codec(deepcopy(vae), deepcopy(codec.image_encoder), extractor)
        parts.offload(torch.device("cuda", 0))
        got = run(parts, "cuda")
        assert not any(is_there(parameter) for parameter in parts.parameters())
    for found, wanted in zip(got, expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_a_guidance_pair_in_several_calls_is_the_pair_in_one(base: Path) -> None:
    denoiser, condition = trained_denoiser(base), make_condition(batch=3)
    z, sigma = torch.randn(3, 5, 4, 8, 8), torch.tensor([0.5, 1.0, 2.0])
    seen: list[int] = []
    denoiser.unet.register_forward_pre_hook(lambda unet, inputs: seen.append(len(inputs[0])))
    options = {"first": 1.0, "last": 3.0, "motion": None}
    whole = guided(denoiser, condition, **options)(z, sigma)
    parts = guided(denoiser, condition, **options, most=4)(z, sigma)
    assert seen == [6, 3, 3]
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


def test_a_call_stays_below_the_most_sequences_and_within_its_room(base: Path) -> None:
    denoiser = trained_denoiser(base)
    # 8 segments of 64 x 64 latent pixels with guidance pairs have 65 536 sequences, one more than the grid takes.
    assert denoiser.clips_at_once(25, (64, 64), None) == 15
    assert denoiser.clips_at_once(25, (72, 128), None) == 7
    each = 40 * denoiser.unet.config.block_out_channels[0] * 4 * 25 * 64 * 64
    assert [denoiser.clips_at_once(25, (64, 64), room) for room in (0, each, 3 * each)] == [1, 1, 3]


@pytest.mark.slow
def test_halved_frozen_weights_change_nothing_under_autocast(base: Path) -> None:
    """Not a bit of the estimate, nor of the gradients of what trains."""
    z, sigma, condition = torch.randn(2, 5, 4, 8, 8), torch.tensor([0.5, 2.0]), make_condition()

    def step(halved: bool) -> tuple[Tensor, list[Tensor]]:
        denoiser = trained_denoiser(base).train()
        denoiser.select_trainable("temporal")
        if halved:
            denoiser.halve_frozen()
        frozen = {p.dtype for p in denoiser.parameters() if not p.requires_grad}
        assert frozen == ({torch.bfloat16, torch.float32} if halved else {torch.float32})
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = denoiser(z, sigma, condition)
        out.square().mean().backward()
        return out.detach(), [p.grad for p in denoiser.parameters() if p.requires_grad]

    torch.testing.assert_close(step(True), step(False), atol=0, rtol=0)
