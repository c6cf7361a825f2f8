"""The page's settings of a video: checked, as arguments of `motionanim.animate`, and read back from its record."""

import json
import math
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from motionanim.cli.command import CONF
from motionanim.cli.settings import check_seed, lora_weights, quoted

Settings = dict[str, Any]  # the keys of DEFAULTS

# Long-video methods; the page has a switch of its own for loops.
METHODS = sorted(
    (path.stem for path in (CONF / "long_video").glob("*.yaml") if path.stem != "loop"),
    key=lambda name: (name != "continuous", name != "phased", name),
)
DEFAULTS: Settings = {
    "renderer": "eulerian", "method": METHODS[0], "frames": 16, "fps": 7, "strength": None, "loop": False, "loras": {},
    "seed": 0, "size": "photo", "gif": False, "webp": False,
}  # fmt: skip
MOST_FRAMES = 10_000  # the page lists the places of a travelling region in each of them

_PLAIN = re.compile(r"\w[\w.-]*", re.ASCII)  # values that neither a shell nor Hydra reads in another way


def checked(value: Any, defaults: Settings = DEFAULTS) -> Settings:
    """Settings from JSON, with defaults for missing keys.

    Raises:
        ValueError: If a key is unknown, or a value is of the wrong kind or out of range.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"settings={str(value)[:80]}: must be an object with {', '.join(DEFAULTS)}")
    unknown = sorted(map(str, set(value) - set(DEFAULTS)))
    if unknown:
        raise ValueError(f"settings have {', '.join(unknown)[:80]}: their keys are {', '.join(DEFAULTS)}")
    made = {**defaults, **value}
    for name, choices in (("renderer", ("eulerian", "diffusion")), ("method", METHODS)):
        if made[name] not in choices:
            raise ValueError(f"{name}={str(made[name])[:40]}: must be one of {', '.join(choices)}")
    for name in ("loop", "gif", "webp"):
        if not isinstance(made[name], bool):
            raise ValueError(f"{name}={str(made[name])[:40]}: must be true or false")
    if not _whole(made["frames"]) or not 2 <= made["frames"] <= MOST_FRAMES:
        raise ValueError(f"frames={str(made['frames'])[:40]}: must be a whole number from 2 to {MOST_FRAMES}")
    if not _number(made["fps"]) or not 0.1 <= made["fps"] <= 1000:
        raise ValueError(f"fps={str(made['fps'])[:40]}: must be from 0.1 to 1000 frames a second")
    if made["strength"] is not None and (not _number(made["strength"]) or made["strength"] < 0):
        raise ValueError(
            f"strength={str(made['strength'])[:40]}: must be at least 0 (the usual range is 100 to 400), or null"
        )
    check_seed(made["seed"])
    _check_size(made["size"])
    _check_loras(made["loras"])
    return made


def arguments(settings: Settings, *, image: str, name: str, base: Sequence[str]) -> list[str]:
    """The arguments of `python -m motionanim.animate` in the working folder.

    Args:
        settings: From `checked`.
        image: Name of the photo's file.
        name: Of the video without its suffix; its drawing is NAME.arrows.json.
        base: Overrides that choose the base, such as scale=svd.
    """
    files = (("image", image), ("arrows", f"{name}.arrows.json"), ("out", f"{name}.mp4"))
    made = [*(f"{key}={_text(value)}" for key, value in files), *base, f"renderer={settings['renderer']}"]
    if settings["renderer"] == "diffusion":
        made.append(f"long_video={'loop' if settings['loop'] else settings['method']}")
        weights = {file: _shortest(weight) for file, weight in settings["loras"].items()}
        if weights:
            # Hydra's grammar takes few names as keys; `lora_weights` reads text too.
            plain = all(_PLAIN.fullmatch(file) for file in weights)
            made.append(f"loras={quoted(weights if plain else json.dumps(weights, ensure_ascii=False))}")
    elif settings["loop"]:
        made.append("eulerian.loop=true")
    made += [f"{key}={_shortest(settings[key])!r}" for key in ("frames", "fps", "seed")]
    if settings["strength"] is not None:
        made.append(f"strength={_shortest(settings['strength'])!r}")
    if settings["size"] != "photo":
        size = settings["size"]
        made.append(f"size={size if isinstance(size, str) else quoted(size)}")
    return made + [f"{key}=true" for key in ("gif", "webp") if settings[key]]


def command(words: Sequence[str]) -> str:
    """The command line of `arguments`, for a shell."""
    return shlex.join(["python", "-m", "motionanim.animate", *words])


def of_command(config: Mapping[str, Any]) -> Settings:
    """The settings of a record's "command", the configuration of any run of `animate`.

    Raises:
        ValueError, LookupError, TypeError, AttributeError: If it is no such configuration.
    """
    method = config["long_video"]["_target_"].rpartition(".")[2]
    diffusion, strength = config["renderer"] == "diffusion", config["strength"]
    return checked(
        {
            "renderer": config["renderer"],
            "method": method if method in METHODS else METHODS[0],
            "frames": config["frames"],
            "fps": config["fps"],
            "strength": None if isinstance(strength, list) else strength,  # a sweep of several
            "loop": method == "loop" if diffusion else config["eulerian"]["loop"],
            "loras": {Path(file).name: weight for file, weight in lora_weights(config["loras"])},
            "seed": config["seed"],
            "size": config["size"],
            "gif": config["gif"],
            "webp": config.get("webp", False),  # newer than some records
        }
    )


def _check_size(size: Any) -> None:
    sides = size if isinstance(size, list) else []
    even = len(sides) == 2 and all(_whole(side) and side > 1 and side % 2 == 0 for side in sides)
    if not even and size not in ("photo", "model"):
        raise ValueError(f"size={str(size)[:40]}: must be photo, model, or [height, width], even numbers of pixels")


def _check_loras(loras: Any) -> None:
    if not isinstance(loras, Mapping) or not all(_number(weight) for weight in loras.values()):
        raise ValueError(f"loras={str(loras)[:80]}: must be {{file: weight, ...}} with numbers as weights")
    for file in loras:
        if not file.endswith(".safetensors") or file != Path(file).name:
            raise ValueError(f"loras: {file[:80]} is no LoRA of the working folder: name a .safetensors file in it")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _shortest(value: float) -> float:
    """A whole number without its decimal point."""
    return int(value) if float(value).is_integer() else value


def _text(value: str) -> str:
    return value if _PLAIN.fullmatch(value) else quoted(value)
