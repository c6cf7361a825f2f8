"""The published checkpoint's names of SVD's layers, against a small model of how its UNet is put together."""

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from torch import Tensor

from motionanim.models.svd.interchange.names import layer_weights, published_names


@pytest.fixture(scope="module")
def svd() -> UNetSpatioTemporalConditionModel:
    with torch.device("meta"):
        return UNetSpatioTemporalConditionModel()  # diffusers' defaults are SVD's settings


def put_together(width: int, multiples: list[int], layers: int, attended: list[bool]) -> dict[str, tuple[int, int]]:
    """Channels in and out of each module as the constructor of sgm's VideoUNet appends them, by its place."""
    channels = [width]
    now, blocks = width, {"input_blocks.0.0": (8, width)}
    for level, multiple in enumerate(multiples):
        for _ in range(layers):
            place = f"input_blocks.{len(channels)}"
            blocks[f"{place}.0"] = (now, width * multiple)
            now = width * multiple
            if attended[level]:
                blocks[f"{place}.1"] = (now, now)
            channels.append(now)
        if level < len(multiples) - 1:
            blocks[f"input_blocks.{len(channels)}.0"] = (now, now)
            channels.append(now)
    blocks |= {f"middle_block.{i}": (now, now) for i in range(3)}
    outputs = 0
    for level, multiple in reversed(list(enumerate(multiples))):
        for i in range(layers + 1):
            parts = [(now + channels.pop(), width * multiple)]
            now = width * multiple
            parts += [(now, now)] * (attended[level] + (level > 0 and i == layers))
            blocks |= {f"output_blocks.{outputs}.{j}": part for j, part in enumerate(parts)}
            outputs += 1
    return blocks


def first_weight(place: str, weights: dict[str, Tensor]) -> Tensor:
    """Of a residual block its first convolution, of a transformer the layer that it begins with."""
    for inner in (".in_layers.2", ".proj_in", ".op", ".conv", ""):
        if place + inner in weights:
            return weights[place + inner]
    raise AssertionError(place)


def test_each_block_has_the_channels_that_the_published_unet_gives_it(svd: UNetSpatioTemporalConditionModel) -> None:
    names = published_names(svd)
    weights = {names[name]: weight for name, weight in layer_weights(svd).items()}
    assert len(weights) == len(names) == 574
    blocks = put_together(320, [1, 2, 4, 4], 2, [True, True, True, False])
    for place, (inputs, outputs) in blocks.items():
        assert first_weight(place, weights).shape[:2] == (outputs, inputs), place
    outside = {"out.2", "time_embed.0", "time_embed.2", "label_emb.0.0", "label_emb.0.2"}
    for name in weights:
        assert name in outside or any(name == place or name.startswith(f"{place}.") for place in blocks), name


TIME = "temporal_transformer_blocks.0.attn1"


@pytest.mark.parametrize(
    ("ours", "published"),
    [
        (f"down_blocks.0.attentions.0.{TIME}.to_q", "input_blocks.1.1.time_stack.0.attn1.to_q"),
        (f"mid_block.attentions.0.{TIME}.to_out.0", "middle_block.1.time_stack.0.attn1.to_out.0"),
        ("down_blocks.0.resnets.0.temporal_res_block.conv1", "input_blocks.1.0.time_stack.in_layers.2"),
        ("down_blocks.0.attentions.0.time_pos_embed.linear_2", "input_blocks.1.1.time_pos_embed.2"),
        ("down_blocks.1.attentions.1.proj_out", "input_blocks.5.1.proj_out"),
        ("up_blocks.1.attentions.0.proj_in", "output_blocks.3.1.proj_in"),
        ("up_blocks.0.upsamplers.0.conv", "output_blocks.2.1.conv"),
        ("up_blocks.1.upsamplers.0.conv", "output_blocks.5.2.conv"),
        ("add_embedding.linear_1", "label_emb.0.0"),
    ],
)
def test_names_as_the_published_file_has_them(svd: UNetSpatioTemporalConditionModel, ours: str, published: str) -> None:
    assert published_names(svd)[ours] == published
