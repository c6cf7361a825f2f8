"""Whether a download of Stable Video Diffusion is whole: sizes and SHA-256 as published, and the layers of its files.

Weights are compared by their files' headers and hashes, without loading them. The published list is
assets/svd-xt/files.json.
"""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from motionanim.cli.progress import SILENT, Progress

PUBLISHED = Path(__file__).parents[3] / "assets" / "svd-xt" / "files.json"
POINTER = b"version https://git-lfs"
LONGEST_HEADER = 100_000_000  # bytes, safetensors' own limit
CHUNK = 2**24  # bytes read at once for the hash

Shapes = dict[str, list[int]]


class Finding(NamedTuple):
    """What is known of one file."""

    file: str
    told: str  # whole, missing, or what is wrong
    wrong: bool  # something needed is missing or wrong


def published() -> dict[str, Any]:
    """The published files, with sizes in bytes and SHA-256, and of each part the name and layers of its weights."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))


def layers_sha256(shapes: Mapping[str, list[int]]) -> str:
    """SHA-256 over the sorted names and shapes of a part's tensors."""
    text = "".join(f"{name} {list(shapes[name])}\n" for name in sorted(shapes))
    return hashlib.sha256(text.encode()).hexdigest()


def check_base(folder: Path, record: Mapping[str, Any], progress: Progress = SILENT) -> list[Finding]:
    """Check all files that are needed, and of the weights each variant that is there; one variant of a part is enough.

    Args:
        folder: A pipeline folder, in fp16 (variant "fp16") or float32, whole files or sharded.
        record: As `published` gives it.

    Raises:
        ValueError: If there is no such folder.
    """
    if not folder.is_dir():
        raise ValueError(
            f"{folder}: no such folder; give the one that holds model_index.json, unet, vae, image_encoder"
        )
    files = record["files"]
    sizes = [known["size"] for name, known in files.items() if _size(folder / name) == known["size"]]
    progress.expect("hashing", sum(sizes))
    found = [_config(folder, name, record, progress) for name in files if name.endswith(".json")]
    for part in record["parts"]:
        found += _weights(folder, part, record, progress)
    return found


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _config(folder: Path, name: str, record: Mapping[str, Any], progress: Progress) -> Finding:
    path = folder / name
    if not path.is_file():
        return Finding(name, "missing: fetch it", True)
    if _sha256(path, progress) == record["files"][name]["sha256"]:
        return Finding(name, "whole", False)
    part = name.partition("/")[0]
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        same = part not in record["parts"] or layers_sha256(_built(part, config)) == _layers(record, part)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:100]
        return Finding(name, f"cannot be used ({reason}): fetch it again", True)
    if not same:
        return Finding(name, "wrong: it describes a network of other layers; fetch it again", True)
    return Finding(name, "whole, edited" + " without a change of the layers" * (part in record["parts"]), False)


def _layers(record: Mapping[str, Any], part: str) -> str:
    return record["parts"][part]["layers_sha256"]


def _built(part: str, config: Mapping[str, Any]) -> Shapes:
    """Names and shapes of the network that a config describes; it is built without memory for weights."""
    # Imported here: they take seconds, and untouched configs do without.
    import diffusers
    import torch
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.device("meta"):
        if part == "image_encoder":
            network = CLIPVisionModelWithProjection(CLIPVisionConfig(**config))
        else:
            network = getattr(diffusers, config["_class_name"]).from_config(dict(config))
    return {name: list(value.shape) for name, value in network.state_dict().items()}


def _weights(folder: Path, part: str, record: Mapping[str, Any], progress: Progress) -> list[Finding]:
    stem = record["parts"][part]["weights"]
    variants = [
        [_whole_file(folder, f"{part}/{stem}{suffix}.safetensors", record, progress)] for suffix in (".fp16", "")
    ]
    indices = sorted((folder / part).glob(f"{stem}*.index*.json"))
    variants += [list(_sharded(folder, index, part, record)) for index in indices]
    some = any(all(each.told.startswith("whole") for each in variant) for variant in variants)
    if some:  # then others may be absent
        return [
            each._replace(wrong=each.wrong and not each.told.startswith(("missing", "a git-lfs pointer")))
            for variant in variants
            for each in variant
            if not each.told.startswith("missing")
        ]
    there = [variant for variant in variants if not all(each.told.startswith("missing") for each in variant)]
    if not there:
        needed = f"{part}/{stem}.fp16.safetensors"
        return [Finding(needed, "missing: fetch it, or the file without fp16", True)]
    return [each for variant in there for each in variant]


def _whole_file(folder: Path, name: str, record: Mapping[str, Any], progress: Progress) -> Finding:
    path, known, part = folder / name, record["files"][name], name.partition("/")[0]
    fault = _fault(path)
    if fault is None and path.stat().st_size != known["size"]:
        fault = f"wrong size ({path.stat().st_size} of {known['size']} bytes): fetch it again"
    if fault is None:
        fault = _wrong_layers(_header(path)[0], _layers(record, part))
    if fault is None and (sha256 := _sha256(path, progress)) != known["sha256"]:
        fault = f"wrong SHA-256 ({sha256[:16]}..., published {known['sha256'][:16]}...): fetch it again"
    return Finding(name, fault or "whole", fault is not None)


def _sharded(folder: Path, index: Path, part: str, record: Mapping[str, Any]) -> Iterator[Finding]:
    """Of the index and each shard. Sharded files are not published, so lengths and layers are checked, not hashes."""
    name = str(index.relative_to(folder))
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        yield Finding(name, "no index of shards: fetch it again", True)
        return
    shapes: Shapes = {}
    faulty = False
    for shard in shards:
        path = index.parent / Path(shard).name
        fault = _fault(path)
        if fault is None:
            inside, length = _header(path)
            if path.stat().st_size != length:
                fault = f"wrong size ({path.stat().st_size} of {length} bytes): fetch it again"
            shapes |= {each: shape for each, shape in inside.items() if weight_map.get(each) == shard}
        faulty = faulty or fault is not None
        yield Finding(f"{part}/{path.name}", fault or "whole, a shard (no SHA-256 is published)", fault is not None)
    fault = None if faulty else _wrong_layers(shapes, _layers(record, part))
    yield Finding(name, fault or "whole", fault is not None)


def _fault(path: Path) -> str | None:
    """Why a file cannot be safetensors; None if its header can be read."""
    if not path.is_file():
        return "missing: fetch it"
    with path.open("rb") as file:
        if file.read(len(POINTER)) == POINTER:
            return "a git-lfs pointer, not the weights: run `git lfs pull` in the folder"
    try:
        _header(path)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, UnicodeDecodeError):
        return f"no safetensors file ({path.stat().st_size} bytes): fetch it again"
    return None


def _header(path: Path) -> tuple[Shapes, int]:
    """Names and shapes of a safetensors file's tensors, and the bytes that the file must have."""
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > LONGEST_HEADER:
            raise ValueError(f"a header of {length} bytes")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    return {name: list(entry["shape"]) for name, entry in header.items()}, 8 + length + end


def _wrong_layers(shapes: Shapes, expected: str) -> str | None:
    if layers_sha256(shapes) == expected:
        return None
    return f"other layers than SVD's, by names and shapes ({len(shapes)} tensors): fetch it again"


def _sha256(path: Path, progress: Progress) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(CHUNK):
            digest.update(part)
            progress.done("hashing", len(part))
    return digest.hexdigest()
