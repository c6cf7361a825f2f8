"""State dicts out of checkpoints of others, which also hold optimizers, arguments and code. None of that code runs."""

import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from motionanim.models.pretrained import MissingWeights, folder

# What a state dict is made of. torch itself turns the names of its storages into types.
_ALLOWED = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
}


def locate(path: Path | str | None, *, file: str, url: str) -> Path:
    """Where weights are: `path`, or `file` in the folder of weights.

    Raises:
        MissingWeights: If there is no such file.
    """
    place = folder() / file if path is None else Path(path).expanduser()
    if not place.is_file():
        raise MissingWeights(
            f"{place} does not exist: fetch {url} and put it as {file} into {folder()} (MOTIONANIM_WEIGHTS names "
            "another folder), or give its path in the settings of the metric",
            short=f"no weights: {file}",
        )
    return place


def read_part(path: Path, parts: Sequence[str]) -> dict[str, Tensor]:
    """A state dict out of a checkpoint, on the CPU.

    Args:
        path: .safetensors with the state dict, or a file saved by torch with the state dict, maybe under a key.
        parts: Keys it may be under; the first one found counts.

    Raises:
        ValueError: If the file is damaged, or holds no such state dict.
    """
    try:
        content = load_file(path) if path.suffix == ".safetensors" else _load(path)
    except (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, pickle.UnpicklingError,
            SafetensorError) as error:  # fmt: skip
        raise ValueError(f"{path} cannot be read as a checkpoint ({type(error).__name__})") from error
    found = next((content[part] for part in parts if part in content), content) if isinstance(content, dict) else None
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} has no state dict, also not under any of {', '.join(parts)}")
    return dict(found)


def _load(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        if not zipfile.is_zipfile(path):  # a format before torch 1.6, of which torch also unpickles a header
            raise
    # The file holds objects of other types. They are left empty, and their types are never looked up.
    restricted = SimpleNamespace(Unpickler=_Restricted, __name__="restricted")
    return torch.load(path, map_location="cpu", weights_only=False, pickle_module=restricted, mmap=True)


class _Restricted(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _ALLOWED.get((module, name), _Empty)


class _Empty:
    """Stands for any other object: takes whatever it is given, and keeps nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Empty":
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, *args: Any, **kwargs: Any) -> "_Empty":
        return self

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, value: Any) -> None: ...

    def extend(self, values: Any) -> None: ...

    def add(self, value: Any) -> None: ...
