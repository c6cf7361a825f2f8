"""LoRA files in the layouts of diffusers (peft), kohya's trainer and ComfyUI: read any of them, write two of them."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers import UNetSpatioTemporalConditionModel
from peft.utils.other import get_pattern_key
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from motionanim.files import atomic_path
from motionanim.models.svd.interchange.names import layer_weights, published_names

FORMAT = "motionanim-lora-2"  # 1 identified the base by its first and last convolution, on which no LoRA depends
DIFFUSERS_CONFIG = "lora_adapter_metadata"  # diffusers' `save_lora_adapter` puts peft's LoraConfig under this key
_WRAPPERS = re.compile(r"^(base_model\.model\.)?(unet\.|model\.diffusion_model\.|diffusion_model\.|lora_unet_)?")
_MATRIX = re.compile(r"(.+?)[._]lora(?:_linear_layer)?[._](A|B|down|up)(?:\.\w+)?\.weight")


class Adapter(NamedTuple):
    """The LoRA of one layer: it adds alpha / rank times `up` @ `down` to the layer's weight."""

    down: Tensor  # (rank, in), of a convolution (rank, in, *kernel)
    up: Tensor  # (out, rank), of a convolution (out, rank, 1, ...)
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]


def read_lora(path: Path | str, unet: UNetSpatioTemporalConditionModel) -> tuple[dict[str, str], dict[str, Adapter]]:
    """The header of a LoRA file and its adapters, by diffusers' name of the layer.

    Names of layers may be diffusers' or the published checkpoint's (`published_names`), with dots or, as kohya's
    trainer writes them, with underscores. Each rank is read from the shapes. Each alpha comes from the file: a tensor
    NAME.alpha, or the header, or adapter_config.json beside a file of peft; where none has it, it is the rank, as in
    diffusers.

    Args:
        unet: The UNet that the file is for; on device "meta" will do.

    Raises:
        ValueError: If the file is missing or damaged, names a layer that `unet` lacks, has a wrong shape or a tensor
            that belongs to no LoRA, or lacks one of the two matrices of a layer.
    """
    header, tensors = _opened(Path(path))
    if header.get("format", "").startswith("motionanim-lora-") and header["format"] != FORMAT:
        raise ValueError(
            f"{path} is no motion LoRA of this version: it has format {header['format']!r}, not {FORMAT!r}; "
            "train it again with `python train.py experiment=motion_lora`"
        )
    weights = layer_weights(unet)
    known = {}
    for name, published in published_names(unet).items():
        known |= {name.replace(".", "_"): name, published.replace(".", "_"): name}
    parts: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        matrix = _MATRIX.fullmatch(key)
        named, part = (matrix[1], "down" if matrix[2] in ("A", "down") else "up") if matrix else (key, "alpha")
        layer = _layer(named.removesuffix(".alpha"), known) if matrix or key.endswith(".alpha") else None
        if layer is None:
            unknown.append(key)
        else:
            parts.setdefault(layer, {})[part] = tensor
    if unknown or not parts:
        shown = f"{unknown[0]} and {len(unknown) - 1} more" if len(unknown) > 1 else unknown[0] if unknown else "none"
        raise ValueError(
            f"{path} holds tensors that are no LoRA of a layer of this base ({shown}): it must be a LoRA for Stable "
            "Video Diffusion in the names of diffusers, kohya or ComfyUI (lora_A, lora_B or lora_down, lora_up, alpha)"
        )
    config = _config(Path(path), header, wrapped=any(key.startswith("base_model.model.") for key in tensors))
    return header, {layer: _adapter(path, layer, parts[layer], weights[layer], config) for layer in sorted(parts)}


def _opened(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise ValueError(f"no LoRA file at {path}: train one with `python train.py experiment=motion_lora`") from None
    except Exception as error:  # safetensors' own error type derives straight from Exception
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error


def _layer(name: str, known: Mapping[str, str]) -> str | None:
    flat = _WRAPPERS.sub("", name).replace(".", "_").replace("_processor_to_", "_to_")
    return known.get(flat) or known.get(f"{flat}_0")  # some write to_out for to_out.0


def _config(path: Path, header: Mapping[str, str], *, wrapped: bool) -> dict[str, Any]:
    """The alphas that a file states outside its tensors, as in peft's LoraConfig; empty if it states none.

    Args:
        wrapped: The names are those of a PeftModel, whose settings are in a file of their own.
    """
    if header.get("format") == FORMAT and "alpha" in header:
        text = f'{{"lora_alpha": {header["alpha"]}}}'
    elif wrapped:
        beside = path.with_name("adapter_config.json")
        if not beside.is_file():
            raise ValueError(f"{path} is a file of peft, whose alpha is in {beside}, which is not there: fetch it too")
        text = beside.read_text(encoding="utf-8")
    else:
        text = header.get(DIFFUSERS_CONFIG, "{}")
    try:
        config = json.loads(text)
        alphas = [config[key] for key in ("lora_alpha",) if key in config] + [*config.get("alpha_pattern", {}).values()]
        if not all(isinstance(alpha, int | float) for alpha in alphas):
            raise TypeError("an alpha is no number")
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: its settings cannot be read ({error}); {text[:80]!r}") from error
    return config


def _adapter(
    path: Path | str, layer: str, parts: Mapping[str, Tensor], weight: Tensor, config: Mapping[str, Any]
) -> Adapter:
    missing = {"down", "up"} - set(parts)
    if missing:
        raise ValueError(f"{path} lacks the {missing.pop()} matrix of {layer}: the file is not whole, fetch it again")
    down, up = parts["down"], parts["up"]
    rank = down.shape[0] if down.ndim else 0
    wanted = {"down": (rank, *weight.shape[1:]), "up": (weight.shape[0], rank, *[1] * (weight.ndim - 2))}
    for name, tensor in (("down", down), ("up", up)):
        if rank < 1 or tuple(tensor.shape) != wanted[name]:
            raise ValueError(
                f"{path}: the {name} matrix of {layer} is {tuple(tensor.shape)}, this base needs {wanted[name]} "
                "with a rank of at least 1: the LoRA is for another base"
            )
    if "alpha" in parts:
        alpha = float(parts["alpha"].item())
    else:
        patterns = config.get("alpha_pattern") or {}
        alpha = float(patterns.get(get_pattern_key(list(patterns), layer), config.get("lora_alpha", rank)))
        if config.get("use_rslora"):  # which divides by the root of the rank
            alpha *= math.sqrt(rank)
    return Adapter(down.float(), up.float(), alpha)


def diffusers_tensors(adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """Tensors of a file that diffusers' `load_lora_adapter` reads.

    `up` is multiplied by alpha / rank, because diffusers reads an alpha only under some of its options.
    """
    tensors = {}
    for name, each in adapters.items():
        tensors[f"{name}.lora_A.weight"] = each.down
        tensors[f"{name}.lora_B.weight"] = each.up * (each.alpha / each.rank)
    return tensors


def comfyui_tensors(adapters: Mapping[str, Adapter], unet: UNetSpatioTemporalConditionModel) -> dict[str, Tensor]:
    """Tensors of a file that ComfyUI reads: lora_unet_, the published name with underscores, and alpha."""
    names, tensors = published_names(unet), {}
    for layer, each in adapters.items():
        name = f"lora_unet_{names[layer].replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": each.down, f"{name}.lora_up.weight": each.up}
        tensors[f"{name}.alpha"] = torch.tensor(each.alpha)
    return tensors


def write_lora(path: Path | str, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """Write a safetensors file in float32, in one step."""
    with atomic_path(path) as temporary:
        save_file({k: v.detach().float().contiguous().cpu() for k, v in tensors.items()}, temporary, dict(header))
