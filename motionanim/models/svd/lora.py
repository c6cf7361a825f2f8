"""Motion LoRA (Sec. 3.3): low-rank adapters on the temporal self-attention, by peft.

At rank 16 on Stable Video Diffusion it has 64 modules and 1 597 440 parameters. The cross-attention attn2 has none,
because it sees one context token: its to_q and to_k get no gradient.
"""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from diffusers import UNetSpatioTemporalConditionModel
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from motionanim.models.svd.interchange.lora_files import FORMAT, Adapter, diffusers_tensors, read_lora, write_lora

TARGET = r".*\.temporal_transformer_blocks\.\d+\.attn1\.(to_q|to_k|to_v|to_out\.0)"
ADAPTER = "motion"


def add_lora(unet: UNetSpatioTemporalConditionModel, *, rank: int, alpha: float) -> None:
    """Put a fresh LoRA (no effect until trained) on `unet`, in place; only the LoRA then requires gradients.

    Raises:
        ValueError: If rank < 1.
    """
    if rank < 1:
        raise ValueError(f"rank={rank}: a LoRA's rank must be at least 1 (the paper uses 16)")
    _inject(unet, LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGET))


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
    """Write the LoRA of `unet` as one safetensors file in diffusers' layout, with its base's fingerprint."""
    adapters = {
        name: Adapter(module.lora_A[ADAPTER].weight, module.lora_B[ADAPTER].weight, float(module.lora_alpha[ADAPTER]))
        for name, module in unet.named_modules()
        if isinstance(module, LoraLayer)
    }
    write_lora(path, diffusers_tensors(adapters), {"format": FORMAT, "base": base_fingerprint(unet)})


def load_lora(
    unet: UNetSpatioTemporalConditionModel, path: Path | str, *, weight: float = 1.0, base: str | None = None
) -> None:
    """Load a LoRA file onto `unet`, in place, scaled by `weight`; values of a LoRA that is already there are replaced.

    A file of this project is checked against its base. Files of others for SVD are read too (`read_lora`); they do not
    say which base they are for, and may adapt any linear layer or convolution.

    Args:
        base: `base_fingerprint` of the UNet before any LoRA was merged into it; None takes it now.

    Raises:
        ValueError: As `read_lora`; if the file belongs to another base, or does not fit the LoRA that is there.
    """
    header, adapters = read_lora(path, unet)
    if header.get("format") == FORMAT:
        base = base or base_fingerprint(unet)
        if header.get("base") != base:
            raise ValueError(
                f"{path} was trained on another base, with other temporal attention (fingerprint {header.get('base')}, "
                f"this base has {base}): choose the base it was trained on with scale.base=..."
            )
    present = {name: module for name, module in unet.named_modules() if isinstance(module, LoraLayer)}
    if not present:
        _inject(unet, _config(adapters))
    else:
        _check_fits(path, adapters, present)
    tensors = {}
    for name, adapter in adapters.items():
        tensors |= {f"{name}.lora_A.weight": adapter.down, f"{name}.lora_B.weight": adapter.up}
    set_peft_model_state_dict(unet, tensors, adapter_name=ADAPTER)
    for name, adapter in adapters.items():
        layer = unet.get_submodule(name)
        layer.lora_alpha[ADAPTER] = adapter.alpha
        layer.set_scale(ADAPTER, weight)


def _config(adapters: Mapping[str, Adapter]) -> LoraConfig:
    first = next(iter(adapters.values()))
    return LoraConfig(
        r=first.rank,
        lora_alpha=first.alpha,
        target_modules="|".join(re.escape(name) for name in adapters),
        rank_pattern={f"^{re.escape(name)}": each.rank for name, each in adapters.items() if each.rank != first.rank},
    )


def _inject(unet: UNetSpatioTemporalConditionModel, config: LoraConfig) -> None:
    inject_adapter_in_model(config, unet, ADAPTER)
    for name, parameter in unet.named_parameters():
        parameter.requires_grad_(".lora_" in name)


def _check_fits(path: Path | str, adapters: Mapping[str, Adapter], present: Mapping[str, LoraLayer]) -> None:
    if adapters.keys() != present.keys():
        other = sorted(adapters.keys() ^ present.keys())[0]
        raise ValueError(f"{path} and the model's LoRA adapt other layers ({other}): merge one, then load the other")
    for name, adapter in adapters.items():
        rank = present[name].r[ADAPTER]
        if adapter.rank != rank:
            raise ValueError(f"{path} has rank {adapter.rank}, the model's LoRA has rank {rank}: set model.rank")


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
    if hasattr(unet, "peft_config"):
        del unet.peft_config  # peft warns where it finds one of a LoRA before
