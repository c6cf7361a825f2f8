"""Save weights in float16 files of limited size, so that they can be copied and committed."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from motionanim.files import atomic_path

MOST_BYTES = 16 * 2**20


def save(folder: Path, stem: str, tensors: Mapping[str, Tensor]) -> list[str]:
    """Write tensors as float16 to `folder`/`stem`*.safetensors, each of at most 16 MiB; the files' names."""
    halves = {name: tensor.detach().half().contiguous().cpu() for name, tensor in tensors.items()}
    room = MOST_BYTES - 128 * len(halves) - 1024  # for the header: name, type and offset of each tensor
    parts = split_torch_state_dict_into_shards(
        halves, filename_pattern=f"{stem}{{suffix}}.safetensors", max_shard_size=room
    )
    for file, names in parts.filename_to_tensors.items():
        with atomic_path(folder / file) as path:
            save_file({name: halves[name] for name in names}, path)
    return list(parts.filename_to_tensors)


def load(folder: Path, files: Sequence[str], into: Mapping[str, Tensor]) -> None:
    """Copy what `save` wrote into tensors of the same names, in place.

    Raises:
        ValueError: If a file is damaged, or a tensor is missing or has another shape.
    """
    try:
        found = {name: tensor for file in files for name, tensor in load_file(folder / file).items()}
    except SafetensorError as error:
        raise ValueError(f"{folder}: {', '.join(files)} cannot be read: {error}") from error
    for name, tensor in into.items():
        if name not in found or found[name].shape != tensor.shape:
            raise ValueError(f"{folder / files[0]} does not hold {name} of shape {tuple(tensor.shape)}")
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(found[name])
