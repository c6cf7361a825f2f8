"""Copy the results of benchmarks/gpu.py into the project: the report, and weights better than the shipped ones."""

import json
import re
import shutil
import tempfile
import time
from pathlib import Path

from diffusers import UNetSpatioTemporalConditionModel

from gpu_parts import weights
from gpu_parts.results import read_rows
from motionanim.files import atomic_path
from motionanim.models.svd.codec import Codec
from motionanim.models.svd.denoiser import MOTION_FOLDER, Denoiser
from motionanim.models.svd.tiny import save_pipeline
from motionanim.models.weights_io import weights_fingerprint

HEADING = "## Trained on"
TABLE = (
    "| date | device | minutes | steps | clips rendered | held-out loss before | after |",
    "|---|---|---|---|---|---|---|",
)
CHANGED = (
    "unet/diffusion_pytorch_model.safetensors",
    f"{MOTION_FOLDER}/motion.safetensors",
)


def take(folder: Path, *, reports: Path, assets: Path) -> list[str]:
    """Copy `folder`'s report to `reports`/gpu_CARD.md, and its average into `assets` if the held-out loss fell.

    Returns:
        Lines that say what was done.

    Raises:
        ValueError: If the folder holds no report, one of its files is damaged, or its training had other settings or
            started from other weights than those in `assets`; nothing is then changed.
    """
    if not (folder / "report.md").is_file():
        raise ValueError(f"--take {folder}: holds no report.md of benchmarks/gpu.py")
    train, machine = read_rows(folder / "train.json"), read_rows(folder / "machine.json")
    card, settings = machine.get("machine", {}).get("card", "unknown"), machine.get("settings", {})
    held_out = train.get("held-out loss")
    if held_out is not None and settings.get("overrides"):
        raise ValueError(f"--take {folder}: it was trained with {' '.join(settings['overrides'])}, the base is not")
    if held_out is not None and train.get("base", {}).get("fingerprint") != _fingerprint(assets):
        raise ValueError(f"--take {folder}: it went on from other weights than those of {assets}")
    better = "checkpoint" in train and held_out is not None and held_out["after"]["loss"] < held_out["shipped"]
    lines = []
    if better:
        _take_weights(folder, train["checkpoint"]["average"], assets)
        before, after = held_out["shipped"], held_out["after"]["loss"]
        total = train["total"]
        _add_line(
            assets / "README.md",
            f"| {time.strftime('%Y-%m-%d')} | {card} | {total['minutes']:.1f} | {total['steps']} | {total['clips']} "
            f"| {before:.4f} | {after:.4f} |",
        )
        lines.append(f"{assets}: held-out loss {before:.4f} -> {after:.4f}, weights and card replaced")
    elif held_out is not None:
        lines.append(
            f"{assets}: left alone, the held-out loss did not fall ({held_out['shipped']:.4f} -> "
            f"{held_out['after']['loss']:.4f})"
        )
    target = reports / f"gpu_{re.sub(r'[^a-z0-9]+', '_', card.lower()).strip('_')}.md"
    with atomic_path(target) as path:
        shutil.copyfile(folder / "report.md", path)
    return [f"{target}: the report", *lines]


def _fingerprint(base: Path) -> str:
    return weights_fingerprint(UNetSpatioTemporalConditionModel.from_pretrained(base, subfolder="unet"))


def _take_weights(folder: Path, files: list[str], assets: Path) -> None:
    motion = json.loads((assets / MOTION_FOLDER / "config.json").read_text())
    downscale = Codec.from_pretrained(assets).downscale
    denoiser = Denoiser.from_pretrained(assets, downscale=downscale, motion=motion)
    weights.load(folder, files, dict(denoiser.named_parameters()))
    with tempfile.TemporaryDirectory() as made:
        save_pipeline(made, base=assets, unet=denoiser.unet)
        denoiser.save_motion(made)
        for name in CHANGED:
            with atomic_path(assets / name) as path:
                shutil.copyfile(Path(made) / name, path)


def _add_line(card: Path, line: str) -> None:
    text = card.read_text(encoding="utf-8").rstrip("\n")
    if HEADING not in text:
        text += "\n\n" + "\n".join(
            [HEADING, "", "By `python benchmarks/gpu.py`, after what is told above.", "", *TABLE]
        )
    head, _, rest = text.partition(HEADING)
    rows, blank, after = rest.partition("\n\n##")
    with atomic_path(card) as path:
        path.write_text(f"{head}{HEADING}{rows}\n{line}{blank}{after}\n", encoding="utf-8")
