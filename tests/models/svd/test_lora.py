"""LoRA by its algebra: silent at init, W + alpha/rank B A, mergeable, and the paper's size."""

import warnings
from pathlib import Path

import pytest
import torch
from conftest import MOTION, make_condition
from diffusers import UNetSpatioTemporalConditionModel
from loras import add_random_lora, randomise_lora
from safetensors.torch import save_file

from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.lora import (
    add_lora,
    base_fingerprint,
    enable_lora,
    load_lora,
    lora_layers,
    merge_lora,
    save_lora,
)

Z, SIGMA = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([1.0, 5.0])


@torch.no_grad()
def output(denoiser: Denoiser) -> torch.Tensor:
    return denoiser(Z, SIGMA, make_condition())


def test_size_at_svd_is_64_modules_and_1_597_440_parameters() -> None:
    with torch.device("meta"):
        unet = UNetSpatioTemporalConditionModel(num_frames=25)
        add_lora(unet, rank=16, alpha=16)
    trained = {n: p.numel() for n, p in unet.named_parameters() if p.requires_grad}
    assert len(lora_layers(unet)) == 64
    assert sum(trained.values()) == 1_597_440
    assert all(".lora_" in name and ".temporal_transformer_blocks." in name and ".attn1." in name for name in trained)


def test_fresh_lora_changes_nothing_and_can_be_switched_off(denoiser: Denoiser) -> None:
    before = output(denoiser)
    add_lora(denoiser.unet, rank=4, alpha=4)
    torch.testing.assert_close(output(denoiser), before, atol=0, rtol=0)
    randomise_lora(denoiser.unet)
    with_lora = output(denoiser)
    assert not torch.allclose(with_lora, before)
    enable_lora(denoiser.unet, False)
    torch.testing.assert_close(output(denoiser), before, atol=0, rtol=0)
    enable_lora(denoiser.unet, True)
    torch.testing.assert_close(output(denoiser), with_lora, atol=0, rtol=0)


def test_merge_equals_the_formula_and_leaves_a_plain_unet(base: Path, denoiser: Denoiser) -> None:
    plain_keys = set(denoiser.unet.state_dict())
    add_random_lora(denoiser.unet, rank=4, alpha=8)
    adapted = output(denoiser)
    layer = lora_layers(denoiser.unet)[0]
    a, b = layer.lora_A["motion"].weight, layer.lora_B["motion"].weight
    expected = layer.get_base_layer().weight + 8 / 4 * b @ a
    name = next(n for n, m in denoiser.unet.named_modules() if m is layer)
    merge_lora(denoiser.unet)
    torch.testing.assert_close(denoiser.unet.get_submodule(name).weight, expected)
    torch.testing.assert_close(output(denoiser), adapted, atol=1e-5, rtol=1e-4)
    assert set(denoiser.unet.state_dict()) == plain_keys


@pytest.mark.slow
def test_file_round_trip_on_a_fresh_base_and_weight(base: Path, denoiser: Denoiser, tmp_path: Path) -> None:
    before = output(denoiser)
    add_random_lora(denoiser.unet)
    adapted = output(denoiser)
    save_lora(denoiser.unet, tmp_path / "lora.safetensors")
    torch.manual_seed(0)
    fresh = Denoiser.from_pretrained(base, downscale=2, motion=MOTION)
    load_lora(fresh.unet, tmp_path / "lora.safetensors")
    torch.testing.assert_close(output(fresh), adapted, atol=0, rtol=0)
    load_lora(fresh.unet, tmp_path / "lora.safetensors", weight=0.0)
    torch.testing.assert_close(output(fresh), before, atol=0, rtol=0)


def test_wrong_files_are_refused_in_words(base: Path, denoiser: Denoiser, tmp_path: Path) -> None:
    add_random_lora(denoiser.unet, rank=4)
    path = tmp_path / "lora.safetensors"
    save_lora(denoiser.unet, path)
    torch.manual_seed(5)  # the base is of seed 0
    other = type(denoiser.unet).from_config(denoiser.unet.config)
    with pytest.raises(ValueError, match="trained on another base"):
        load_lora(other, path)
    with pytest.raises(ValueError, match="no LoRA file at"):
        load_lora(denoiser.unet, tmp_path / "none.safetensors")
    (tmp_path / "junk.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_lora(denoiser.unet, tmp_path / "junk.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "old.safetensors", {"format": "motionanim-lora-1"})
    with pytest.raises(ValueError, match="of this version: it has format 'motionanim-lora-1'.*train it again"):
        load_lora(denoiser.unet, tmp_path / "old.safetensors")
    with pytest.raises(ValueError, match="rank=0"):
        add_lora(other, rank=0, alpha=1)
    fresh = Denoiser.from_pretrained(base, downscale=2, motion=MOTION)
    add_lora(fresh.unet, rank=8, alpha=8)
    with pytest.raises(ValueError, match="has rank 4, the model's LoRA has rank 8"):
        load_lora(fresh.unet, path)


@pytest.mark.slow
def test_a_lora_knows_its_base_by_the_layers_that_it_adapts(base: Path, denoiser: Denoiser, tmp_path: Path) -> None:
    path, plain = tmp_path / "lora.safetensors", base_fingerprint(denoiser.unet)
    add_random_lora(denoiser.unet)
    save_lora(denoiser.unet, path)
    merge_lora(denoiser.unet)
    assert base_fingerprint(denoiser.unet) != plain, "what is merged in is another base"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_lora(denoiser.unet, path, base=plain)  # a second LoRA beside the first
    for dtype in (torch.float16, torch.bfloat16):
        assert base_fingerprint(Denoiser.from_pretrained(base, downscale=2, motion=MOTION).unet.to(dtype)) == plain

    def changed(part: str) -> torch.nn.Module:
        unet = Denoiser.from_pretrained(base, downscale=2, motion=MOTION).unet
        with torch.no_grad():
            for name, parameter in unet.named_parameters():
                if part in name:
                    parameter.sub_(parameter.sign() * 1e-3)  # some 30 steps of AdamW at the paper's learning rate
        return unet

    load_lora(changed("conv_in"), path)
    load_lora(changed("conv_out"), path)
    with pytest.raises(ValueError, match="trained on another base, with other temporal attention"):
        load_lora(changed(".temporal_transformer_blocks."), path)
