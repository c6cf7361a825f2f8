"""Write a base without its motion weights: python experiments/warp_control/plain.py OUT [--base BASE]

The copy is a plain image-to-video pipeline. Of the motion weights only the convolution of the warped frame acts where
training drops the motion field: it then reads the still image. It becomes a part of the UNet's first convolution, so
that the copy is the base as it was trained for clips without a field. `--strip` leaves it out.
"""

import argparse
import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from motionanim.models.svd.bases import MOTION_FOLDER

ROOT = Path(__file__).resolve().parents[2]


def plain(base: Path, out: Path, *, strip: bool = False) -> Path:
    """A copy of a pipeline folder without motion weights; `strip` does not keep what they say of a still image.

    Raises:
        ValueError: If `out` exists, or `base` has no motion weights.
    """
    weights = base / MOTION_FOLDER / "motion.safetensors"
    if out.exists() or not weights.is_file():
        raise ValueError(f"{out if out.exists() else base}: give a new folder, and a base with motion weights")
    shutil.copytree(base, out, ignore=shutil.ignore_patterns(MOTION_FOLDER))
    motion = load_file(weights)
    if "warped.weight" in motion and not strip:
        (file,) = (out / "unet").glob("*.safetensors")
        unet = load_file(file)
        first = unet["conv_in.weight"]
        scaling = json.loads((out / "vae" / "config.json").read_text())["scaling_factor"]
        # The UNet reads noisy latents and image latents without the VAE's scaling; the warped frame has it.
        image = first[:, first.shape[1] // 2 :].float() + scaling * motion["warped.weight"].float()
        unet["conv_in.weight"][:, first.shape[1] // 2 :] = image.to(first.dtype)
        save_file(unet, file, metadata={"format": "pt"})
    return out


def bases(runs: Path) -> dict[str, Path]:
    """The embedded base, and its copies `plain` and `stripped` in a folder, which are made if they are not there."""
    found = {"embedded": ROOT / "motionanim" / "assets" / "tiny-svd"}
    for name in ("plain", "stripped"):
        found[name] = runs / name
        if not found[name].exists():
            plain(found["embedded"], found[name], strip=name == "stripped")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--base", type=Path, default=ROOT / "motionanim" / "assets" / "tiny-svd")
    parser.add_argument("--strip", action="store_true")
    args = parser.parse_args()
    print(plain(args.base, args.out, strip=args.strip))


if __name__ == "__main__":
    main()
