"""The weights of networks: files of our own, fingerprints, and float32 arithmetic that is the same everywhere."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from motionanim.files import atomic_path

Network = TypeVar("Network", bound=nn.Module)


def save_network(path: Path | str, network: nn.Module, *, kind: str) -> None:
    """Write the weights and `network.config`, from which `load_network` rebuilds it, as one safetensors file.

    A killed run or a full disk leaves no partial file.
    """
    tensors = {name: value.contiguous() for name, value in network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata={"format": kind, "config": json.dumps(network.config)})


def load_network(path: Path | str, cls: type[Network], *, kind: str, experiment: str) -> Network:
    """Read what `save_network` wrote.

    Args:
        kind: The format that the file must have.
        experiment: The training that writes such files, for the error message.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file has another format, or its config and its weights do not fit each other.
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


def fill(name: str, module: Network, state: dict[str, Tensor]) -> Network:
    """A module on device "meta" with its weights filled in, all and no others: frozen, in eval mode, float32.

    Raises:
        ValueError: If the weights do not fit the module; the message calls them `name`.
    """
    try:
        module.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise ValueError(f"weights for {name} do not fit: {' '.join(str(error).split())[:200]}") from error
    return module.float().eval().requires_grad_(False)


def weights_fingerprint(module: nn.Module, *more: Tensor) -> str:
    """16 hex digits of a hash over the names, shapes, types and values of all weights, and over the tensors `more`."""
    digest = hashlib.sha256()
    named = list(module.state_dict().items()) + [(str(i), tensor) for i, tensor in enumerate(more)]
    for name, value in named:
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def frozen_fingerprint(module: nn.Module) -> str:
    """16 hex digits of a hash over all frozen parameters: their shapes and the first 256 values of each."""
    digest = hashlib.sha256()
    for value in module.parameters():  # without names, because torch.compile changes them
        if not value.requires_grad:
            digest.update(f"{tuple(value.shape)}".encode())
            digest.update(value.detach().flatten()[:256].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Disables autocast and TF32, so that metrics are float32 on every machine."""
    with torch.autocast(device.type, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
