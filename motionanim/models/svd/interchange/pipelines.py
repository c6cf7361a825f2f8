"""Folders for others: a pipeline with LoRAs merged into it, and what a run trained, with a model card."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
import yaml
from diffusers import StableVideoDiffusionPipeline, UNetSpatioTemporalConditionModel

from motionanim.files import atomic_folder
from motionanim.models.svd.bases import MOTION_FOLDER, in_any_variant, motion_file
from motionanim.models.svd.interchange.card import model_card
from motionanim.models.svd.interchange.lora_files import (
    FORMAT,
    comfyui_tensors,
    diffusers_tensors,
    read_lora,
    write_lora,
)
from motionanim.models.svd.lora import base_fingerprint, load_lora, merge_lora
from motionanim.models.svd.tiny import save_pipeline

LAYOUTS = ("diffusers", "comfyui")
DTYPES = ("float16", "float32")
LICENCES = ("LICENSE*", "NOTICE*", "Notice*")


def convert_lora(path: Path, out: Path, *, base: str, layout: Literal["diffusers", "comfyui"]) -> None:
    """Write a LoRA file of any layout in another.

    Args:
        base: Pipeline folder or hub id whose UNet's config says how the layers are counted; no weights are read.

    Raises:
        ValueError: As `read_lora`, if `layout` is unknown, or if `out` exists.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout={layout}: must be one of {', '.join(LAYOUTS)}")
    _check_new(out)
    unet = _without_weights(base)
    header, adapters = read_lora(path, unet)
    tensors = diffusers_tensors(adapters) if layout == "diffusers" else comfyui_tensors(adapters, unet)
    ours = header.get("format") == FORMAT  # then it says which base the LoRA is for
    write_lora(out, tensors, {key: header[key] for key in ("format", "base") if ours and key in header})


def merge_pipeline(
    base: str, out: Path, *, loras: Sequence[tuple[str, float]], dtype: Literal["float16", "float32"]
) -> None:
    """Write `base` as a pipeline folder with LoRAs merged into its UNet, its motion weights, and a model card.

    In float16 the files are named as in the published folder (variant "fp16").

    Args:
        loras: Pairs of a LoRA file, in any layout, and its weight.

    Raises:
        ValueError: As `load_lora`, if `dtype` is neither, or if `out` exists.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}: must be one of {', '.join(DTYPES)}")
    _check_new(out)
    with atomic_folder(out) as new:
        _write_pipeline(base, new, loras, dtype)
        merged = {Path(file).name: weight for file, weight in loras}
        (new / "README.md").write_text(model_card(out.name, base=base, merged=merged, settings={}), encoding="utf-8")


def hub_folder(run: Path, out: Path) -> None:
    """Write what a run trained as a folder to upload: its LoRA in two layouts, or its pipeline in fp16; with a card.

    The pipeline's motion weights go along: `scale.base=` reads them from the hub id too.

    Raises:
        ValueError: If `run` holds no settings, neither result, or if `out` exists.
    """
    settings = run / "config.yaml"
    if not settings.is_file():
        raise ValueError(f"{run} has no config.yaml: give the folder of a run, such as runs/motion_lora/NAME")
    config = yaml.safe_load(settings.read_text(encoding="utf-8"))
    lora, pipeline = run / "lora.safetensors", run / "pipeline"
    _check_new(out)
    if not lora.is_file() and not pipeline.is_dir():
        raise ValueError(f"{run} has neither lora.safetensors nor pipeline: let the run end, or export its checkpoint")
    base = config["model"]["base"]
    with atomic_folder(out) as new:
        if lora.is_file():
            for layout in LAYOUTS:
                name = "lora.safetensors" if layout == "diffusers" else "lora_comfyui.safetensors"
                convert_lora(lora, new / name, base=base, layout=layout)
        else:
            _write_pipeline(str(pipeline), new, [], "float16")
        _copy_licences(base, new)
        (new / "README.md").write_text(model_card(out.name, base=base, merged={}, settings=config), encoding="utf-8")


def _check_new(out: Path) -> None:
    if out.exists():
        raise ValueError(f"{out} is there already and is kept: give another name, or remove it")


def _without_weights(base: str) -> UNetSpatioTemporalConditionModel:
    config = UNetSpatioTemporalConditionModel.load_config(base, subfolder="unet")
    with torch.device("meta"):
        return UNetSpatioTemporalConditionModel.from_config(config)


def _write_pipeline(base: str, folder: Path, loras: Sequence[tuple[str, float]], dtype: str) -> None:
    pipeline = in_any_variant(StableVideoDiffusionPipeline.from_pretrained, base)
    before = base_fingerprint(pipeline.unet)
    for file, weight in loras:
        load_lora(pipeline.unet, file, weight=weight, base=before)
        merge_lora(pipeline.unet)
    save_pipeline(folder, pipeline=pipeline, dtype=getattr(torch, dtype), published_names=True)
    for name in ("config.json", "motion.safetensors"):
        file = motion_file(base, name)
        if file is not None:
            (folder / MOTION_FOLDER).mkdir(exist_ok=True)
            shutil.copyfile(file, folder / MOTION_FOLDER / name)
    _copy_licences(base, folder)


def _copy_licences(base: str, folder: Path) -> None:
    for pattern in LICENCES if Path(base).is_dir() else ():
        for file in Path(base).glob(pattern):
            shutil.copyfile(file, folder / file.name)
