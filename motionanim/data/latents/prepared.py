"""Latents that motionanim.data.encode has made, so that training neither decodes videos nor encodes their frames."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from motionanim.data.latents.remote import is_remote, remote_request, repair
from motionanim.data.latents.shards import ShardLayout, Shards, shard_name
from motionanim.data.order import Buckets, Order, Rows
from motionanim.data.stream import StreamData
from motionanim.files import atomic_path, text_sha256
from motionanim.types import LatentBatch

MANIFEST = "latents.json"
FORMAT = "motionanim-latents-6"
WARPED = "predicted"  # name of the warped latents in shards of this format


class PreparedLatents(Dataset[LatentBatch]):
    """The training stream over shards of latents: every epoch is another permutation, the same for any world size.

    Attributes:
        vae: Fingerprint of the VAE and CLIP that made them.
        has_warped: Whether the warped latents are stored; without, every item's stand still.
        fingerprint: Hash of all bytes of all shards; a resumed run compares it.

    Args:
        folder: Output of `encode_clips`: a folder, or its URL on object storage (s3://, gs://, https://, ...).
        seed: Seed of the permutations.
        num_frames, height, width: Size of the experiment's clips.
        shapes: The shapes of its clips, if they have several.
        shuffle_shards: Clips are shuffled among this many shards, which are themselves shuffled in every epoch.
        cache, cache_gb, retries: As in `Shards`; only for URLs. The cache must hold 2 * shuffle_shards shards.

    Raises:
        ValueError: If the folder holds no latents, cannot be reached, is unfinished, or holds clips of another size.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        seed: int,
        num_frames: int,
        height: int,
        width: int,
        shuffle_shards: int,
        cache: str | Path,
        cache_gb: float,
        retries: int,
        shapes: Buckets | None = None,
    ) -> None:
        if shuffle_shards < 1:
            raise ValueError(f"shuffle_shards={shuffle_shards}: must be at least 1")
        self.folder, self.seed, self.shuffle_shards = str(folder), seed, shuffle_shards
        manifest = read_manifest(self.folder, retries=retries)
        if manifest is None:
            advice = "make latents with python -m motionanim.data.encode out=FOLDER"
            if is_remote(self.folder):
                advice = f"give the URL of a folder that holds one, or {advice} and upload them there"
            raise ValueError(f"latents={folder} holds no {MANIFEST}: {advice}")
        self.length, self.vae, self.has_warped = manifest["clips"], manifest["vae"], manifest["predict"]
        wanted = clip_size(shapes, num_frames=num_frames, height=height, width=width)
        if manifest["size"] != wanted:
            hint = "" if len(manifest["size"]) == len(wanted) else ": scale.buckets is true for one of them only"
            raise ValueError(f"latents={folder} holds clips of {manifest['size']}, the experiment's are {wanted}{hint}")
        if "shards" not in manifest:
            raise ValueError(f"latents={folder} is unfinished: {repair(self.folder)}")
        sample_bytes, rows = manifest["clip_bytes"], None
        if shapes is not None:
            numbers = np.repeat(*np.array(manifest["shapes_in_order"], dtype=np.int64).T).astype(np.uint16)
            sample_bytes, rows = np.array(sample_bytes)[numbers], Rows(numbers, shapes.row)
        # What `StreamData` reads.
        self.row, self.buckets = (None, None) if shapes is None else (shapes.row, shapes.fingerprint())
        shards = {"shard": manifest["shard_clips"], "block": shuffle_shards}
        self.order = Order(seed, [self.length], rows=rows, shards=shards)
        layout = ShardLayout(self.length, manifest["shard_clips"], sample_bytes)
        if not is_remote(self.folder):
            _check_shards(Path(folder), layout)
        self.fingerprint = text_sha256("\n".join(manifest["shards"]))[:16]
        self.shards = Shards(
            self.folder,
            layout,
            manifest["shards"],
            cache=cache,
            cache_gb=cache_gb,
            retries=retries,
            together=2 * shuffle_shards,  # some processes still read one block while others begin the next
        )

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> LatentBatch:
        parts = self.shards.read(self.order.item(position))
        still = parts["latents"][:1].expand_as(parts["latents"])
        warped = parts.pop(WARPED, still)
        return LatentBatch(**parts, warped_latents=warped, position=torch.tensor(position, dtype=torch.int64))


def latent_data(
    *,
    items: str,
    latents: str | Path | None,
    reading: Mapping[str, Any],
    num_frames: int,
    height: int,
    width: int,
    seed: int,
    batch_size: int,
    num_workers: int,
    shapes: Buckets | None = None,
) -> StreamData:
    """Training clips from prepared latents alone, without validation clips.

    Args:
        shapes: As `PreparedLatents` takes it.

    Raises:
        ValueError: If the experiment reads another kind of item than `clips`, no folder is given, or `PreparedLatents`
            cannot read it.
    """
    if items != "clips":
        raise ValueError(f"latents give clips, the experiment reads {items}: use data=synthetic or data=holynski")
    if latents is None:
        raise ValueError("no latents given: pass data.latents=FOLDER, or its URL")
    size = {"num_frames": num_frames, "height": height, "width": width}
    train = PreparedLatents(latents, seed=seed, shapes=shapes, **size, **reading)
    return StreamData(train=train, val=[], batch_size=batch_size, num_workers=num_workers)


def clip_size(shapes: Buckets | None, **size: int) -> dict[str, Any]:
    """The size of clips as a manifest records it."""
    return size if shapes is None else {**size, "shapes": [list(shape) for shape in shapes.shapes]}


def _check_shards(folder: Path, layout: ShardLayout) -> None:
    for positions in layout.ranges():
        path = folder / shard_name(positions)
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise ValueError(f"{path} is missing: {repair(str(folder))}") from error
        if size != layout.shard_bytes(positions):
            raise ValueError(
                f"{path} is truncated: {size} bytes, {layout.shard_bytes(positions)} are right; {repair(str(folder))}"
            )


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    with atomic_path(folder / MANIFEST) as path:
        path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: str, *, retries: int) -> dict[str, Any] | None:
    where = f"{folder.rstrip('/')}/{MANIFEST}"
    try:
        if is_remote(folder):
            text = remote_request(where, lambda files, path: files.cat_file(path), retries=retries)
        else:
            text = Path(where).read_bytes()
    except FileNotFoundError:
        return None
    try:
        manifest = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{where} is damaged: delete it; {repair(folder)}") from error
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{where} has format {manifest.get('format')!r}, this version reads {FORMAT!r}: encode again, into another "
            "folder, or delete this one"
        )
    return manifest
