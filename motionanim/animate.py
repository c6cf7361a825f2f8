"""Animate a photo: python -m motionanim.animate image=photo.jpg arrows="[[120,200,180,200]]" out=out.mp4

PyTorch is imported only when a run begins, so that help and most errors come at once.
"""

import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from motionanim.cli.command import CONF, one_line_errors, quiet
from motionanim.cli.settings import check_control, check_seed, command, lora_weights, quoted, readable
from motionanim.files import output_files

if TYPE_CHECKING:
    from torch import Tensor

    from motionanim.animation.loaded import Loaded
    from motionanim.cli.progress import Watch


class Animation(NamedTuple):
    """The result of `animate`."""

    frames: "Tensor | None"  # (N, 3, H, W) in [-1, 1], a strength sweep side by side; None above MAX_PIXELS in all
    files: list[Path]
    record: dict[str, Any]  # what the JSON file holds


def animate(overrides: Sequence[str] = (), **settings: Any) -> Animation:
    """The command as a function: `animate(image="photo.jpg", arrows=[[120, 200, 180, 200]], out="out.mp4")`.

    Args:
        overrides: Hydra overrides for whole groups, such as "long_video=continuous" or "scale=svd".
        settings: Keys of conf/animate.yaml and their values.

    Raises:
        ValueError: If an input is unusable; nothing is then written.
    """
    given = [readable(override) for override in overrides]
    config = composed(given)
    unknown = sorted(set(settings) - set(config))
    if unknown:
        raise ValueError(f"animate knows no {', '.join(unknown)}: see the keys of conf/animate.yaml")
    for name, value in settings.items():
        config[name] = os.path.expanduser(value) if isinstance(value, str | os.PathLike) else value
        text = json.dumps(value) if isinstance(value, Mapping) else OmegaConf.to_container(config)[name]
        given.append(f"{name}={quoted(text)}")
    return run(config, overrides=given, keep=True)


def composed(overrides: Sequence[str]) -> DictConfig:
    """conf/animate.yaml with overrides in Hydra's grammar, as the command composes it."""
    with hydra.initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        return hydra.compose("animate", list(overrides))


def run(
    config: DictConfig, *, overrides: Sequence[str], keep: bool, watch: "Watch | None" = None,
    loaded: "Loaded | None" = None,
) -> Animation:  # fmt: skip
    """Animate as a composed conf/animate.yaml says; without `keep` the result holds no frames.

    Args:
        overrides: The overrides that it was composed with, for the record.
        watch: Told of the progress instead of the bar; its exception stops the job, which then leaves no file.
        loaded: Keeps the model for the caller's next job.
    """
    strengths = _check_numbers(config)
    if config.renderer not in ("diffusion", "eulerian"):
        raise ValueError(f"renderer={config.renderer}: must be diffusion or eulerian")
    files = _files(config)
    from motionanim.animation.job import make

    repeat = [override for override in overrides if override.partition("=")[0] not in ("arrows", "out")]
    frames, record = make(
        config, strengths=strengths, files=files, repeat=repeat, keep=keep, watch=watch, loaded=loaded
    )
    return Animation(frames, list(files.values()), record)


def _check_numbers(config: DictConfig) -> list[float | None]:
    """The strengths. Raises ValueError for a value of the wrong type or out of range."""
    check_seed(config.seed)
    check_control(config.control, config.release)
    lora_weights(config.loras)
    for name in ("gif", "webp", "png", "progress"):
        if not isinstance(config[name], bool):
            raise ValueError(f"{name}={config[name]}: must be true or false")
    for name, least in (("frames", 2), ("height", 1), ("width", 1)):
        if not isinstance(config[name], int) or config[name] < least:
            raise ValueError(f"{name}={config[name]}: must be a whole number of at least {least}")
    if not isinstance(config.fps, int | float) or not 0.1 <= config.fps <= 1000:
        raise ValueError(f"fps={config.fps}: must be from 0.1 to 1000 frames a second")
    size = OmegaConf.to_container(config.size) if OmegaConf.is_list(config.size) else config.size
    sides = size if isinstance(size, list) else []
    even = len(sides) == 2 and all(isinstance(side, int) and side > 1 and side % 2 == 0 for side in sides)
    if size not in ("photo", "model") and not even:
        raise ValueError(f"size={size}: must be photo, model, or [height,width], even numbers of pixels")
    strengths = list(config.strength) if OmegaConf.is_list(config.strength) else [config.strength]
    for strength in strengths or [()]:
        if strength is not None and not isinstance(strength, int | float):
            raise ValueError(f"strength={config.strength}: must be a number such as 200, or a list of them")
    return strengths


def _files(config: DictConfig) -> dict[str, Path]:
    """The files to write. Raises ValueError before any work if they cannot be written, or an input cannot be read."""
    if OmegaConf.is_missing(config, "image"):
        raise ValueError("no image given: pass image=photo.jpg")
    for name in ("image", "mask"):
        path = config[name]
        if name == "mask" and path in (None, "auto"):
            continue
        if not isinstance(path, str):
            raise ValueError(f"{name}={path}: must be the name of an image file" + " or auto" * (name == "mask"))
        try:
            open(path, "rb").close()
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise ValueError(f"{path} cannot be opened: {reason}; give an image file") from error
    inputs = [Path(str(config[name])) for name in ("image", "mask", "arrows", "refiner") if config[name]]
    return output_files(Path(config.out), gif=config.gif, webp=config.webp, png=config.png, inputs=inputs)


@command
@hydra.main(config_path=str(CONF), config_name="animate", version_base="1.3")
@one_line_errors
def main(config: DictConfig) -> None:
    """A sweep, `animate -m seed=0,1`, adds each job's number to its name: out-0.mp4, out-1.mp4."""
    quiet(networks=False)
    ran = HydraConfig.get()
    if ran.mode is RunMode.MULTIRUN:
        out = Path(config.out)
        config.out = str(out.with_stem(f"{out.stem}-{ran.job.num}"))
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    made = run(config, overrides=ran.overrides.task, keep=False)
    for cost in made.record.get("runs", []):
        split = "" if cost["split_sigma"] is None else f", segments part at sigma {cost['split_sigma']:.3g}"
        print(f"{cost['calls']:g} denoiser calls{split}")
    print(f"{config.frames} frames in {made.record['seconds']:.0f} s:", *made.files)


if __name__ == "__main__":
    main()
