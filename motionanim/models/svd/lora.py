"""Motion LoRA (Sec. 3.3): low-rank adapters on the temporal self-attention, by peft.

At rank 16 on Stable Video Diffusion it has 64 modules and 1 597 440 parameters. The cross-attention attn2 has none,
because it sees one context token: its to_q and to_k get no gradient.
"""

import hashlib
import re
from pathlib import Path

import numpy as np
from diffusers import UNetSpatioTemporalConditionModel
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from motionanim.files import atomic_path

TARGET = r".*\.temporal_transformer_blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)"
ADAPTER = "motion"
FORMAT = "motionanim-lora-2"  # 1 identified the base by its first and last convolution, on which no LoRA depends


def add_lora(unet: UNetSpatioTemporalConditionModel, *, rank: int, alpha: float) -> None:
    """Put a fresh LoRA (no effect until trained) on `unet`, in place; only the LoRA then requires gradients.

    Raises:
        ValueError: If rank < 1.
    """
    if rank < 1:
        raise ValueError(f"rank={rank}: a LoRA's rank must be at least 1 (the paper uses 16)")
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGET), unet, ADAPTER)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def lora_layers(unet: UNetSpatioTemporalConditionModel) -> list[LoraLayer]:
    """The adapted modules, in the UNet's order; none if `unet` has no LoRA."""
    return [module for module in unet.modules() if isinstance(module, LoraLayer)]


def base_fingerprint(unet: UNetSpatioTemporalConditionModel) -> str:
    """16 hex digits that identify a LoRA's base: a hash of the layers that it adapts, without the LoRA.

    It hashes the signs of the weights, because rounding to fp16 or bf16 keeps them and any training changes some.
    """
    digest = hashlib.sha256()
    for name, module in unet.named_modules():
        if re.fullmatch(TARGET, name):
            layer = module.get_base_layer() if isinstance(module, LoraLayer) else module
            digest.update(np.packbits(layer.weight.detach().signbit().cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]


def save_lora(unet: UNetSpatioTemporalConditionModel, path: Path | str) -> None:
    """Write the LoRA of `unet` as one safetensors file; rank, alpha and the base's fingerprint go in its header."""
    layer = lora_layers(unet)[0]
    metadata = {
        "format": FORMAT,
        "rank": str(layer.r[ADAPTER]),
        "alpha": str(layer.lora_alpha[ADAPTER]),
        "base": base_fingerprint(unet),
    }
    weights = get_peft_model_state_dict(unet, adapter_name=ADAPTER)
    with atomic_path(path) as temporary:
        save_file({name: weight.float().contiguous().cpu() for name, weight in weights.items()}, temporary, metadata)


def load_lora(
    unet: UNetSpatioTemporalConditionModel, path: Path | str, *, weight: float = 1.0, base: str | None = None
) -> None:
    """Load a LoRA file onto `unet`, in place, scaled by `weight`; values of a LoRA that is already there are replaced.

    Args:
        base: `base_fingerprint` of the UNet before any LoRA was merged into it; None takes it now.

    Raises:
        ValueError: If the file is no motion LoRA, belongs to another base, or its rank differs from the LoRA present.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise ValueError(f"no LoRA file at {path}: train one with `python train.py experiment=motion_lora`") from None
    except Exception as error:  # safetensors' own error type derives straight from Exception
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"{path} is no motion LoRA of this version: it has format {metadata.get('format')!r}, not {FORMAT!r}; "
            "train it again with `python train.py experiment=motion_lora`"
        )
    base = base or base_fingerprint(unet)
    if metadata["base"] != base:
        raise ValueError(
            f"{path} was trained on another base, with other temporal attention (fingerprint {metadata['base']}, this "
            f"base has {base}): choose the base it was trained on with scale.base=..."
        )
    rank, alpha = int(metadata["rank"]), float(metadata["alpha"])
    present = lora_layers(unet)
    if not present:
        add_lora(unet, rank=rank, alpha=alpha)
    elif present[0].r[ADAPTER] != rank:
        raise ValueError(f"{path} has rank {rank}, the model's LoRA has rank {present[0].r[ADAPTER]}: set model.rank")
    set_peft_model_state_dict(unet, load_file(path), adapter_name=ADAPTER)
    for layer in lora_layers(unet):
        layer.set_scale(ADAPTER, weight)


def enable_lora(unet: UNetSpatioTemporalConditionModel, enabled: bool) -> None:
    """Switch the LoRA on or off without removing it."""
    for layer in lora_layers(unet):
        layer.enable_adapters(enabled)


def merge_lora(unet: UNetSpatioTemporalConditionModel) -> None:
    """Merge the LoRA into the base weights, in place: the same outputs without the extra layers."""
    for name, module in list(unet.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge(adapter_names=[ADAPTER])
            unet.set_submodule(name, module.get_base_layer())
