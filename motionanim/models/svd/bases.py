"""Files of a base besides diffusers' own parts: its motion weights. A base is a pipeline folder or a hub id.

This module imports no PyTorch, because configurations read a base's settings before any work.
"""

import functools
import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

logger = logging.getLogger(__name__)

Part = TypeVar("Part")

MOTION_FOLDER = "motion"  # beside unet/ and vae/


def motion_file(base: str | Path, name: str) -> Path | None:
    """Path of a file in the base's motion folder, downloaded if `base` is a hub id; None if it is not there."""
    if Path(base).is_dir():
        path = Path(base) / MOTION_FOLDER / name
        return path if path.is_file() else None
    return _from_hub(str(base), f"{MOTION_FOLDER}/{name}")


@functools.cache  # the hub is asked once a process: configurations ask for many settings
def _from_hub(base: str, name: str) -> Path | None:
    # Imported here, because it takes a second and folders do not need it.
    from huggingface_hub import _CACHED_NO_EXIST, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, LocalEntryNotFoundError

    try:
        if try_to_load_from_cache(base, name) is _CACHED_NO_EXIST:
            return None  # the cache remembers that the hub has no such file
        return Path(hf_hub_download(base, name))
    except LocalEntryNotFoundError:
        logger.warning(
            "the hub cannot be asked whether %s has motion weights, and none are in its cache: none are used", base
        )
        return None
    except (EntryNotFoundError, HFValidationError, OSError):  # loading the UNet reports what is wrong with `base`
        return None


def motion_config(base: str | Path) -> dict[str, Any]:
    """Settings with which the base's motion weights were trained; empty if it has none."""
    path = motion_file(base, "config.json")
    return {} if path is None else json.loads(path.read_text(encoding="utf-8"))


def motion_setting(base: str | Path, key: str, default: Any) -> Any:
    """One of these settings, or `default`: ${of_base:BASE,KEY,DEFAULT} in the configurations."""
    return motion_config(base).get(key, default)


def in_any_variant(load: Callable[..., Part], base: str | Path, **options: Any) -> Part:
    """Load a base by a diffusers `from_pretrained`, or its variant "fp16" where it has no other.

    Raises:
        OSError: If the base has neither.
        ValueError: If a file is damaged, or a pointer of git-lfs.
    """
    try:
        return load(base, **options)
    except (OSError, SafetensorError) as error:  # transformers lets the latter through
        try:
            return load(base, variant="fp16", **options)
        except (OSError, ValueError, SafetensorError):
            if isinstance(error, OSError):
                raise error from None
            raise ValueError(
                f"{base}: a file of weights cannot be read ({error}): see which one is not whole by `python -m "
                "motionanim.interchange check-base FOLDER`"
            ) from error


def network_motion(base: str | Path, motion: Mapping[str, Any], control: str) -> dict[str, Any]:
    """Arguments of `MotionConditioner`; without parts of no effect where `control` is warp and the base lacks weights.

    Args:
        motion: The same arguments, conditioning.motion.
    """
    bare = control == "warp" and not motion_config(base)
    return {**motion, **({"motion_field": False, "warped_latent": False} if bare else {})}


def control_note(base: str | Path, control: str) -> str | None:
    """What becomes of arrows where the base has no motion weights; None where it has them."""
    if motion_config(base):
        return None
    if control == "warp":
        return f"{base} has no motion weights: control=warp guides it by the photo carried along the arrows"
    return f"{base} has no motion weights: control=motion lets it ignore the arrows; control=warp follows them"
