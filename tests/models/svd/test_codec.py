"""Decoding: in chunks, exact for a plain VAE and without edges for SVD's; what is zero is skipped, exactly."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from accounting import count_flops
from diffusers import AutoencoderKLHunyuanImage, AutoencoderKLTemporalDecoder
from torch import nn
from transformers import CLIPImageProcessor

from motionanim.models.svd.codec import Codec
from motionanim.models.svd.faster_layers import skip_zeros

TINY = Path(__file__).resolve().parents[3] / "motionanim" / "assets" / "tiny-svd"


def test_a_plain_vae_decodes_in_chunks_as_at_once(codec: Codec) -> None:
    latents = torch.randn(2, 7, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(codec.decode(latents, chunk=3), codec.decode(latents), atol=1e-5, rtol=1e-5)
    assert codec.decode(latents).shape == (2, 7, 3, 16, 16)


def test_warped_latents_are_the_image_moved_along_the_field(codec: Codec) -> None:
    image = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    flow = torch.zeros(2, 4, 2, 16, 16)
    flow[1, :, 0] = 2.0  # px per frame to the right
    warped = codec.warp_image(image, flow)
    assert warped.shape == (2, 5, 4, 8, 8)
    still = codec.encode(image[:, None])
    torch.testing.assert_close(warped[0], still[0].expand(5, -1, -1, -1), atol=1e-5, rtol=1e-5)
    for t in range(5):
        entered = image[1, :, :, 1 : 2 * t + 1].flip(2)  # the picture mirrored at its border
        moved = torch.cat([entered, image[1, :, :, : 16 - 2 * t]], dim=2)
        torch.testing.assert_close(warped[1, t], codec.encode(moved[None, None])[0, 0], atol=1e-4, rtol=1e-4)


def test_a_temporal_vae_sees_beyond_the_edges_of_its_chunks(codec: Codec) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLTemporalDecoder(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2)
    temporal = Codec(vae.eval(), codec.image_encoder, CLIPImageProcessor())
    latents = torch.randn(1, 12, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = temporal.decode(latents)
    assert torch.equal(temporal.decode(latents, chunk=5, context=12), whole)
    blind, seeing = ((temporal.decode(latents, chunk=6, context=context) - whole).abs().mean() for context in (0, 4))
    assert seeing < blind
    assert temporal.decode(latents, chunk=5, context=1).shape == whole.shape


def test_the_fingerprint_is_of_all_that_makes_latents_and_embeddings(codec: Codec) -> None:
    before = codec.fingerprint()
    seen = {before}
    inside = (codec.vae.encoder.mid_block.resnets[0].conv1, codec.image_encoder.vision_model.encoder.layers[0].mlp.fc1)
    for number, layer in enumerate(inside):
        with torch.no_grad():
            layer.weight[0, 0] += 1e-3
        seen.add(codec.fingerprint())
        assert len(seen) == number + 2
    after = codec.fingerprint()
    with torch.no_grad():
        codec.vae.decoder.conv_in.weight[0, 0] += 1
    assert codec.fingerprint() == after, "the decoder makes neither"
    codec.vae.register_to_config(scaling_factor=0.4)
    assert codec.fingerprint() != after


@pytest.fixture
def vae() -> AutoencoderKLHunyuanImage:
    torch.manual_seed(0)
    return AutoencoderKLHunyuanImage(
        in_channels=3, out_channels=3, latent_channels=16, block_out_channels=(32, 32), layers_per_block=0,
        spatial_compression_ratio=2, sample_size=16, scaling_factor=1.0,
    ).eval()  # fmt: skip


@torch.no_grad()
def test_only_what_is_zero_is_skipped_and_nothing_changes(vae: AutoencoderKLHunyuanImage) -> None:
    latents = torch.randn(2, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    blocks = vae.decoder.mid_block.resnets
    for last in (blocks[0].conv2, vae.decoder.mid_block.attentions[0].proj):
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    nn.init.zeros_(blocks[1].conv2.weight)  # its bias is not: it adds something
    centre = vae.decoder.conv_in.weight
    centre.copy_(centre * torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]))
    fast = deepcopy(vae)
    skip_zeros(fast)
    torch.testing.assert_close(fast.decode(latents).sample, vae.decode(latents).sample, atol=1e-6, rtol=1e-6)
    assert fast.state_dict().keys() == vae.state_dict().keys(), "a saved file and a fingerprint stay"
    pixels, channels = 2 * 4 * 4, 32
    conv = 2 * pixels * channels * channels
    attention = 4 * conv + 2 * 2 * (4 * 4) * (4 * 4) * channels * 2
    taps = 8 * conv + 8 * 2 * pixels * 16 * channels  # all but the centre of blocks[1].conv2 and conv_in
    saved = 18 * conv + attention + taps  # the whole first block and the attention
    both = [count_flops(lambda network=network: network.decode(latents)) for network in (vae, fast)]
    assert both[0] - both[1] == saved


@pytest.mark.slow
@torch.no_grad()
def test_the_embedded_base_decodes_at_a_thirtieth_of_its_networks_work() -> None:
    vae = AutoencoderKLHunyuanImage.from_pretrained(TINY, subfolder="vae").eval()
    codec = Codec.from_pretrained(TINY)
    latents = torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        codec.decode(latents), vae.decode(latents[0]).sample[None].clamp(-1, 1), atol=1e-5, rtol=1e-5
    )
    whole = count_flops(lambda: vae.decode(latents[0]))
    assert count_flops(lambda: codec.decode(latents)) < whole / 30
