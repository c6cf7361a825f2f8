"""The model card (README.md) of a folder for a model hub."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

# Rows of the card's table: what, and where the run's settings hold it.
SETTINGS = {
    "experiment": "name", "rank": "model.rank", "alpha": "model.alpha", "trainable": "model.trainable",
    "steps": "trainer.max_steps", "batch size": "scale.batch_size",
    "accumulated batches": "trainer.accumulate_grad_batches", "learning rate": "model.lr",
    "precision": "trainer.precision", "frames": "scale.num_frames", "height (px)": "scale.height",
    "width (px)": "scale.width", "clips without the motion field (share)": "model.drop_flow", "data": "data._target_",
    "seed": "seed",
}  # fmt: skip

_LORA_USE = """
In this project: `"loras={lora.safetensors: 1.0}"` with the base above. In ComfyUI: `lora_comfyui.safetensors`, by the
node that loads a LoRA for the model only. In diffusers:

```python
from diffusers import StableVideoDiffusionPipeline, UNetSpatioTemporalConditionModel
from diffusers.loaders import PeftAdapterMixin


class UNet(PeftAdapterMixin, UNetSpatioTemporalConditionModel):  # SVD's UNet has no LoRA loader of its own
    pass


unet = UNet.from_pretrained(BASE, subfolder="unet")
unet.load_lora_adapter("lora.safetensors", prefix=None)
pipeline = StableVideoDiffusionPipeline.from_pretrained(BASE, unet=unet)
```
"""
_PIPELINE_USE = """
In this project: `scale.base=` with this folder or its hub id; its motion weights (`motion/`) are found beside the UNet.
In diffusers, which does not know the motion weights:

```python
pipeline = StableVideoDiffusionPipeline.from_pretrained(FOLDER, variant="fp16", torch_dtype=torch.float16)
```

Without `variant` where the files' names have no `fp16`.
"""


def model_card(name: str, *, base: str, merged: Mapping[str, float], settings: Mapping[str, Any]) -> str:
    """Markdown with the hub's front matter.

    Args:
        base: Pipeline folder or hub id; of a folder only the last part of the path is told.
        merged: Weight of each LoRA in the pipeline, by file name.
        settings: Of the run that trained; {} for a pipeline that was only merged.
    """
    local = Path(base).is_dir()
    told = Path(base).name if local else base
    is_lora = "rank" in settings.get("model", {})
    front = {"license": _licence(base), "library_name": "diffusers", "pipeline_tag": "image-to-video"}
    if not local:
        front["base_model"] = base
    front["tags"] = ["stable-video-diffusion", "image-to-video", *["lora"] * is_lora]
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", f"# {name}", ""]
    kind = "A LoRA for Stable Video Diffusion" if is_lora else "A Stable Video Diffusion pipeline"
    lines += [f"{kind}. Base: `{told}`.", ""]
    if merged:
        lines += ["| merged LoRA | weight |", "|---|---|", *(f"| `{file}` | {w:g} |" for file, w in merged.items()), ""]
    rows = [(what, _setting(settings, place)) for what, place in SETTINGS.items()]
    if settings:
        lines += ["## Training", "", "| setting | value |", "|---|---|"]
        lines += [*(f"| {what} | {value} |" for what, value in rows if value is not None), ""]
    lines += ["## Use", "", (_LORA_USE if is_lora else _PIPELINE_USE).strip(), ""]
    lines += ["## Licence", "", _licence_note(base), ""]
    return "\n".join(lines)


def _setting(settings: Mapping[str, Any], place: str) -> Any:
    node: Any = settings
    for key in place.split("."):
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def _licence(base: str) -> str:
    """The licence that the base's own card states, or `other`."""
    card = Path(base) / "README.md"
    if card.is_file():
        parts = card.read_text(encoding="utf-8").split("---", 2)
        front = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
        if isinstance(front, Mapping) and isinstance(front.get("license"), str):
            return front["license"]
    return "other"


def _licence_note(base: str) -> str:
    if _licence(base) != "other":
        return f"As the base: {_licence(base)}."
    return (
        "The base's licence applies to what is derived from it. That of Stability AI's SVD is the Stability AI\n"
        "Community License: pass on a copy of it (LICENSE.md of the base), keep its notice in a file named Notice,\n"
        'say there what was changed, and show "Powered by Stability AI". Complete these before you upload.'
    )
