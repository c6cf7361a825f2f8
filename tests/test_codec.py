"""Decoding in chunks: exact for a plain VAE, without edges for SVD's temporal one."""

import torch
from diffusers import AutoencoderKLTemporalDecoder

from motionanim.models.codec import Codec


def test_a_plain_vae_decodes_in_chunks_as_at_once(codec: Codec) -> None:
    latents = torch.randn(2, 7, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(codec.decode(latents, chunk=3), codec.decode(latents), atol=1e-5, rtol=1e-5)
    assert codec.decode(latents).shape == (2, 7, 3, 16, 16)


def test_a_temporal_vae_sees_beyond_the_edges_of_its_chunks(codec: Codec) -> None:
    torch.manual_seed(0)
    vae = AutoencoderKLTemporalDecoder(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2)
    temporal = Codec(vae.eval(), codec.image_encoder, _extractor())
    latents = torch.randn(1, 12, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole = temporal.decode(latents)
    assert torch.equal(temporal.decode(latents, chunk=5, context=12), whole)
    blind, seeing = ((temporal.decode(latents, chunk=6, context=context) - whole).abs().mean() for context in (0, 4))
    assert seeing < blind
    assert temporal.decode(latents, chunk=5, context=1).shape == whole.shape


def _extractor():
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor()
