"""Names of the UNet's layers in the published SVD checkpoint (Stability's sgm layout), which ComfyUI uses.

ComfyUI keeps the checkpoint's own names under `diffusion_model.` (comfy/lora.py, `model_lora_keys_unet`). Its table of
diffusers' names (comfy/utils.py, `unet_to_diffusers`) lacks the temporal layers, so a LoRA for SVD needs these names.
"""

from diffusers import UNetSpatioTemporalConditionModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

_OUTSIDE = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_IN_BLOCKS = {
    "spatial_res_block.": "", "temporal_res_block": "time_stack", "temporal_transformer_blocks": "time_stack",
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_IN_TRANSFORMERS = {
    "temporal_transformer_blocks": "time_stack",
    "time_pos_embed.linear_1": "time_pos_embed.0", "time_pos_embed.linear_2": "time_pos_embed.2",
}  # fmt: skip


def layer_weights(unet: UNetSpatioTemporalConditionModel) -> dict[str, Tensor]:
    """The weight of each linear layer and convolution by diffusers' name of the layer; without LoRAs on them."""
    found = {}
    for name, module in unet.named_modules():
        if ".lora_" in name or name.endswith(".base_layer"):
            continue
        layer = module.get_base_layer() if isinstance(module, LoraLayer) else module
        weight = getattr(layer, "weight", None)
        if isinstance(weight, Tensor) and weight.ndim > 1:
            found[name] = weight
    return found


def published_names(unet: UNetSpatioTemporalConditionModel) -> dict[str, str]:
    """The published name of each linear layer and convolution, by diffusers' name."""
    layers = unet.config.layers_per_block
    blocks = len(unet.config.block_out_channels)
    down = [layers] * blocks if isinstance(layers, int) else list(layers)
    names = list(layer_weights(unet))
    attended = {name.split(".")[1] for name in names if name.startswith("up_blocks.") and ".attentions." in name}
    return {name: _OUTSIDE.get(name) or _in_blocks(name, down, attended) for name in names}


def _in_blocks(name: str, down: list[int], attended: set[str]) -> str:
    """The published name of a layer in a block.

    Args:
        down: Residual blocks of each down block. An up block has one more, in the reverse order.
        attended: Indices of the up blocks with transformers, which stand before the upsampling.
    """
    head, *rest = name.split(".")
    if head == "mid_block":
        kind, index, *inner = rest
        place = f"middle_block.{2 * int(index) + (kind == 'attentions')}"
        return f"{place}.{_inner(kind, inner)}"
    block, kind, index, *inner = rest
    counts = [count + 1 for count in (down if head == "down_blocks" else down[::-1])]
    first = sum(counts[: int(block)])
    if kind == "downsamplers":
        return f"input_blocks.{first + counts[int(block)]}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{first + counts[int(block)] - 1}.{1 + (block in attended)}.conv"
    place = f"input_blocks.{1 + first + int(index)}" if head == "down_blocks" else f"output_blocks.{first + int(index)}"
    return f"{place}.{int(kind == 'attentions')}.{_inner(kind, inner)}"


def _inner(kind: str, inner: list[str]) -> str:
    name = ".".join(inner)
    for ours, published in (_IN_TRANSFORMERS if kind == "attentions" else _IN_BLOCKS).items():
        name = name.replace(ours, published)
    return name
