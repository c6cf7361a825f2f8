"""LoRA files of other tools, written by these tools or in their layouts, act here as there; ours act there."""

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from configs import ROOT
from conftest import MOTION
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.loaders import PeftAdapterMixin
from loras import add_random_lora, randomise_lora
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.interchange.lora_files import read_lora
from motionanim.models.svd.interchange.names import layer_weights, published_names
from motionanim.models.svd.interchange.pipelines import convert_lora
from motionanim.models.svd.lora import load_lora, merge_lora, save_lora

DOWN = "down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q"
LAYERS = {  # of each kind one: rank and alpha
    DOWN: (4, 2.0),
    "mid_block.attentions.0.temporal_transformer_blocks.0.attn1.to_out.0": (2, 3.0),
    "up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_v": (4, 2.0),
    "up_blocks.0.resnets.0.spatial_res_block.conv1": (3, 1.5),
    "down_blocks.0.resnets.0.temporal_res_block.conv2": (2, 2.0),
    "conv_in": (1, 1.0),
}


class AdaptableUNet(PeftAdapterMixin, UNetSpatioTemporalConditionModel):
    pass


@functools.cache
def read(base: Path, kind: type[UNetSpatioTemporalConditionModel]) -> Any:
    return kind.from_pretrained(base, subfolder="unet", torch_dtype=torch.float32)


def plain(base: Path, kind: type[UNetSpatioTemporalConditionModel] = UNetSpatioTemporalConditionModel) -> Any:
    with torch.device("meta"):
        unet = kind.from_config(read(base, kind).config)
    unet.load_state_dict({name: value.clone() for name, value in read(base, kind).state_dict().items()}, assign=True)
    return unet.eval()


@torch.no_grad()
def output(unet: UNetSpatioTemporalConditionModel) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    sample, embed = torch.randn(1, 5, 8, 8, 8, generator=generator), torch.randn(1, 1, 16, generator=generator)
    return unet(sample, torch.tensor([0.3]), embed, torch.tensor([[6.0, 127.0, 0.02]])).sample


@pytest.fixture
def ours(base: Path, tmp_path: Path) -> Path:
    """A LoRA file of this project, alpha twice the rank."""
    unet = plain(base)
    add_random_lora(unet, rank=4, alpha=8)
    save_lora(unet, tmp_path / "lora.safetensors")
    return tmp_path / "lora.safetensors"


def matrices(unet: UNetSpatioTemporalConditionModel) -> dict[str, tuple[Tensor, Tensor]]:
    """A random pair (down, up) for each of LAYERS."""
    generator, pairs = torch.Generator().manual_seed(4), {}
    for name, (rank, _) in LAYERS.items():
        shape = layer_weights(unet)[name].shape
        down = torch.randn(rank, *shape[1:], generator=generator) * 0.2
        pairs[name] = down, torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator) * 0.2
    return pairs


def with_added(base: Path, pairs: dict[str, tuple[Tensor, Tensor]], weight: float = 1.0, *, alphas: bool = True) -> Any:
    """The UNet with alpha / rank times up times down added to its weights by a few lines of algebra."""
    unet = plain(base)
    for name, (down, up) in pairs.items():
        rank, alpha = LAYERS[name]
        delta = (up.flatten(1) @ down.flatten(1)).view(up.shape[0], *down.shape[1:])
        unet.get_submodule(name).weight.data += weight * (alpha / rank if alphas else 1) * delta
    return unet


def loaded(base: Path, file: Path, weight: float = 1.0) -> Any:
    unet = plain(base)
    load_lora(unet, file, weight=weight)
    merge_lora(unet)
    return unet


@pytest.mark.slow
def test_diffusers_loads_ours_by_the_documented_lines(base: Path, ours: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "full_scale.md").read_text(), flags=re.S)
    (lines,) = (block for block in blocks if "load_lora_adapter" in block)
    names: dict[str, Any] = {}
    exec(lines.replace('"BASE"', repr(str(base))).replace('"lora.safetensors"', repr(str(ours))), names)
    theirs = output(names["pipeline"].unet)
    torch.testing.assert_close(theirs, output(loaded(base, ours)), atol=1e-5, rtol=0)
    assert (theirs - output(plain(base))).abs().max() > 1e-2


@pytest.mark.slow
def test_ours_through_comfyui_names_and_back(base: Path, ours: Path, tmp_path: Path) -> None:
    """ComfyUI finds every tensor of the file and adds the same; the file still knows its base and is kept."""
    there, back = tmp_path / "comfyui.safetensors", tmp_path / "back.safetensors"
    convert_lora(ours, there, base=str(base), layout="comfyui")
    expected = output(loaded(base, ours))
    torch.testing.assert_close(output(loaded(base, there)), expected, atol=1e-5, rtol=0)
    convert_lora(there, back, base=str(base), layout="diffusers")
    adapted = plain(base, AdaptableUNet)
    adapted.load_lora_adapter(str(back), prefix=None)
    torch.testing.assert_close(output(adapted), expected, atol=1e-5, rtol=0)
    tensors, unet = load_file(there), plain(base)
    for name, published in published_names(unet).items():  # as ComfyUI: of each weight the key, then alpha / rank
        key = f"lora_unet_{published.replace('.', '_')}"
        if f"{key}.lora_up.weight" in tensors:
            up, down = tensors.pop(f"{key}.lora_up.weight"), tensors.pop(f"{key}.lora_down.weight")
            unet.get_submodule(name).weight.data += tensors.pop(f"{key}.alpha").item() / down.shape[0] * up @ down
    assert not tensors
    torch.testing.assert_close(output(unet), expected, atol=1e-5, rtol=0)
    for name, parameter in unet.named_parameters():
        if ".temporal_transformer_blocks." in name:
            parameter.data.neg_()
    with pytest.raises(ValueError, match="trained on another base"):
        load_lora(unet, there)
    with pytest.raises(ValueError, match="is there already and is kept"):
        convert_lora(ours, there, base=str(base), layout="comfyui")


def kohya(layer: str, unet: UNetSpatioTemporalConditionModel) -> tuple[str, str, str]:
    name = f"lora_unet_{layer.replace('.', '_')}"
    return f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha"


def kohya_published(layer: str, unet: UNetSpatioTemporalConditionModel) -> tuple[str, str, str]:
    return kohya(published_names(unet)[layer], unet)


def comfyui_generic(layer: str, unet: UNetSpatioTemporalConditionModel) -> tuple[str, str, str]:
    name = f"diffusion_model.{published_names(unet)[layer]}"
    return f"{name}.lora_A.weight", f"{name}.lora_B.weight", f"{name}.alpha"


def foreign(file: Path, unet: UNetSpatioTemporalConditionModel, layout: Callable) -> dict[str, tuple[Tensor, Tensor]]:
    pairs, tensors = matrices(unet), {}
    for name, (down, up) in pairs.items():
        down_key, up_key, alpha_key = layout(name, unet)
        tensors |= {down_key: down, up_key: up, alpha_key: torch.tensor(LAYERS[name][1])}
    save_file(tensors, file)
    return pairs


@pytest.mark.slow
@pytest.mark.parametrize("layout", [kohya, kohya_published, comfyui_generic])
def test_foreign_files_of_any_rank_alpha_and_kind_of_layer_load_here_and_in_diffusers(
    base: Path, tmp_path: Path, layout: Callable
) -> None:
    file = tmp_path / "foreign.safetensors"
    pairs = foreign(file, read(base, UNetSpatioTemporalConditionModel), layout)
    expected = output(with_added(base, pairs, weight=0.5))
    torch.testing.assert_close(output(loaded(base, file, 0.5)), expected, atol=1e-5, rtol=0)
    convert_lora(file, tmp_path / "diffusers.safetensors", base=str(base), layout="diffusers")
    theirs = plain(base, AdaptableUNet)
    theirs.load_lora_adapter(str(tmp_path / "diffusers.safetensors"), prefix=None)
    torch.testing.assert_close(output(theirs), output(with_added(base, pairs)), atol=1e-5, rtol=0)


def test_old_attention_processors_have_alpha_equal_to_the_rank(base: Path, tmp_path: Path) -> None:
    pairs = {DOWN: matrices(plain(base))[DOWN]}
    key = f"unet.{DOWN.replace('.to_q', '.processor.to_q_lora')}"
    save_file({f"{key}.down.weight": pairs[DOWN][0], f"{key}.up.weight": pairs[DOWN][1]}, tmp_path / "old.safetensors")
    expected = output(with_added(base, pairs, alphas=False))
    torch.testing.assert_close(output(loaded(base, tmp_path / "old.safetensors")), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_files_that_peft_and_diffusers_write_themselves(base: Path, tmp_path: Path) -> None:
    options = {"r": 4, "lora_alpha": 6, "target_modules": ["to_k", "conv1"], "alpha_pattern": {f"{DOWN[:-1]}k": 2}}
    wrapped = get_peft_model(plain(base), LoraConfig(**options, use_rslora=True))
    randomise_lora(wrapped)
    wrapped.save_pretrained(tmp_path / "peft")
    expected = output(wrapped.base_model.model)
    file = tmp_path / "peft" / "adapter_model.safetensors"
    torch.testing.assert_close(output(loaded(base, file)), expected, atol=1e-5, rtol=0)
    theirs = plain(base, AdaptableUNet)
    theirs.add_adapter(LoraConfig(**options), adapter_name="it")
    randomise_lora(theirs)
    theirs.save_lora_adapter(tmp_path, adapter_name="it", weight_name="diffusers.safetensors")
    torch.testing.assert_close(
        output(loaded(base, tmp_path / "diffusers.safetensors")), output(theirs), atol=1e-5, rtol=0
    )
    (tmp_path / "peft" / "adapter_config.json").unlink()
    with pytest.raises(ValueError, match=r"whose alpha is in .*adapter_config.json, which is not there"):
        loaded(base, file)


def test_a_foreign_lora_acts_beneath_the_motion_conditioning(base: Path, tmp_path: Path) -> None:
    denoiser = Denoiser.from_pretrained(base, downscale=2, motion=MOTION)
    pairs, tensors = matrices(denoiser.unet), {}
    for name, pair in pairs.items():
        tensors |= dict(zip((f"{name}.lora_A.weight", f"{name}.lora_B.weight"), pair))
    save_file(tensors, tmp_path / "foreign.safetensors")
    load_lora(denoiser.unet, tmp_path / "foreign.safetensors")
    merge_lora(denoiser.unet)
    weights = with_added(base, pairs, alphas=False).state_dict()
    assert set(denoiser.unet.state_dict()) == set(weights)
    for name, value in denoiser.unet.state_dict().items():
        torch.testing.assert_close(value, weights[name], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t | {"text_encoder.q_proj.lora_A.weight": torch.zeros(2, 2)}, r"no LoRA of a layer .*text_encoder"),
        (lambda t: t | {f"{DOWN}.hada_w1_a": torch.zeros(2, 2)}, "hada_w1_a"),
        (lambda t: {f"x{i}": torch.zeros(1) for i in range(3)}, "x0 and 2 more"),
        (lambda t: {}, r"\(none\)"),
        (lambda t: {k: v for k, v in t.items() if "lora_B" not in k}, "lacks the up matrix of down_blocks.0"),
        (lambda t: t | {f"{DOWN}.lora_A.weight": torch.zeros(4, 7)}, r"down matrix of .* is \(4, 7\), this base needs"),
        (lambda t: t | {f"{DOWN}.lora_A.weight": torch.zeros(3, 32)}, r"up matrix of .* is \(32, 4\), this base needs"),
    ],
)
def test_wrong_files_are_refused_in_one_line(base: Path, tmp_path: Path, change: Callable, words: str) -> None:
    tensors = {f"{DOWN}.lora_A.weight": torch.zeros(4, 32), f"{DOWN}.lora_B.weight": torch.zeros(32, 4)}
    unet = read(base, UNetSpatioTemporalConditionModel)  # stays as it is
    assert list(read_lora(save(tmp_path / "right.safetensors", tensors), unet)[1]) == [DOWN]
    with pytest.raises(ValueError, match=words) as error:
        load_lora(unet, save(tmp_path / "wrong.safetensors", change(tensors)))
    assert "\n" not in str(error.value)
    for settings in ("{", "[]", json.dumps({"lora_alpha": "much"}), json.dumps({"alpha_pattern": 3})):
        file = save(tmp_path / "wrong.safetensors", tensors, {"lora_adapter_metadata": settings})
        with pytest.raises(ValueError, match="its settings cannot be read"):
            load_lora(unet, file)


def save(path: Path, tensors: dict[str, Tensor], header: dict[str, str] | None = None) -> Path:
    save_file(tensors, path, header)
    return path
