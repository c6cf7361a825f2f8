"""Our own small networks as one safetensors file each: weights, and the config that rebuilds the network."""

import json
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from motionanim.files import atomic_path

Network = TypeVar("Network", bound=nn.Module)


def save_network(path: Path | str, network: nn.Module, *, kind: str) -> None:
    """Write weights and `network.config`, whole or not at all."""
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": kind, "config": json.dumps(network.config)})


def load_network(path: Path | str, cls: type[Network], *, kind: str, experiment: str) -> Network:
    """Read what `save_network` wrote.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of another kind, or its config and its weights do not fit each other.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file: {error}") from error
    if metadata.get("format") != kind:
        raise ValueError(
            f"{path} has format {metadata.get('format')!r}, not {kind!r}: pass a file that "
            f"experiment={experiment} wrote"
        )
    try:
        network = cls(**json.loads(metadata["config"]))
        network.load_state_dict(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: its config {metadata.get('config')} does not fit: {reason}") from error
    return network
