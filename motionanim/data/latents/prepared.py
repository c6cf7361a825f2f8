"""Latents that motionanim.data.encode has made, so that training neither decodes videos nor encodes their frames."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from motionanim.data.engine import Engine
from motionanim.data.latents.remote import is_remote, remote_request, repair
from motionanim.data.latents.shards import (
    ShardLayout,
    Shards,
    fingerprint,
    finished_shard,
    remove_shard,
    shard_name,
    shard_ranges,
    write_shard,
)
from motionanim.data.stream import StreamData, as_floats, block_shuffled_index, collate
from motionanim.files import atomic_path
from motionanim.media.image_io import to_uint8
from motionanim.types import ClipBatch, LatentBatch

MANIFEST = "latents.json"
FORMAT = "motionanim-latents-6"
WARPED = "predicted"  # name of the warped latents in shards of this format


class PreparedLatents(Dataset[LatentBatch]):
    """The training stream over shards of latents: every epoch is another permutation, the same for any world size.

    Attributes:
        vae: Fingerprint of the VAE and CLIP that made them.
        has_warped: Whether the warped latents are stored; without, every item's stand still.
        fingerprint: Hash of the content; a resumed run compares it.

    Args:
        folder: Output of `encode_clips`: a folder, or its URL on object storage (s3://, gs://, https://, ...).
        seed: Seed of the permutations.
        num_frames, height, width: Size of the experiment's clips.
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
    ) -> None:
        if shuffle_shards < 1:
            raise ValueError(f"shuffle_shards={shuffle_shards}: must be at least 1")
        self.folder, self.seed, self.shuffle_shards = str(folder), seed, shuffle_shards
        manifest = _read_manifest(self.folder, retries=retries)
        if manifest is None:
            advice = "make latents with python -m motionanim.data.encode out=FOLDER"
            if is_remote(self.folder):
                advice = f"give the URL of a folder that holds one, or {advice} and upload them there"
            raise ValueError(f"latents={folder} holds no {MANIFEST}: {advice}")
        self.length, self.vae, self.has_warped = manifest["clips"], manifest["vae"], manifest["predict"]
        wanted = {"num_frames": num_frames, "height": height, "width": width}
        if manifest["size"] != wanted:
            raise ValueError(f"latents={folder} holds clips of {manifest['size']}, the experiment's are {wanted}")
        if "shards" not in manifest:
            raise ValueError(f"latents={folder} is unfinished: {repair(self.folder)}")
        layout = ShardLayout(self.length, manifest["shard_clips"], manifest["clip_bytes"])
        if not is_remote(self.folder):
            _check_shards(Path(folder), layout)
        self.fingerprint = fingerprint(manifest["shards"])
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
        layout = self.shards.layout
        parts = self.shards.read(
            block_shuffled_index(
                self.seed, position, self.length, shard=layout.shard_samples, block=self.shuffle_shards
            )
        )
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
) -> StreamData:
    """Training clips from prepared latents alone, without validation clips.

    Raises:
        ValueError: If the experiment reads another kind of item than `clips`, no folder is given, or `PreparedLatents`
            cannot read it.
    """
    if items != "clips":
        raise ValueError(f"latents give clips, the experiment reads {items}: use data=synthetic or data=holynski")
    if latents is None:
        raise ValueError("no latents given: pass data.latents=FOLDER, or its URL")
    train = PreparedLatents(latents, seed=seed, num_frames=num_frames, height=height, width=width, **reading)
    return StreamData(train=train, val=[], batch_size=batch_size, num_workers=num_workers)


def encode_shard(
    positions: range,
    folder: Path,
    *,
    clips: Dataset[ClipBatch],
    encode: Callable[[Tensor], Tensor],
    embed: Callable[[Tensor], Tensor],
    warp: Callable[[Tensor, Tensor], Tensor] | None,
    batch_size: int,
    num_workers: int,
    device: torch.device,
) -> None:
    """Write the `LatentBatch` of some positions of a training stream as one shard: the unit of work.

    It runs on one thread, because sums in another order would give other bits.

    Args:
        clips: Addressed by position.
        encode: `Codec.encode`.
        embed: `Codec.embed_image`.
        warp: `Codec.warp_image`, to store the warped latents too; None for models that do not read them.
    """

    def samples() -> Iterator[dict[str, Tensor]]:
        for stored in DataLoader(clips, batch_size, sampler=positions, num_workers=num_workers, collate_fn=collate):
            batch = as_floats(ClipBatch(*(field.to(device) for field in stored)))
            parts = {
                "latents": encode(batch.frames).half(),
                "image": to_uint8(batch.image).movedim(1, -1),
                "image_embed": embed(batch.image).half(),
                "flow": batch.flow.half(),
                "fps": batch.fps,
            }
            if warp is not None:
                parts[WARPED] = warp(batch.image, batch.flow).half()
            for row in range(len(batch.position)):
                yield {name: values[row].contiguous().cpu() for name, values in parts.items()}

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        write_shard(folder, positions, samples())
    finally:
        torch.set_num_threads(threads)


def encode_clips(
    make_shard: Callable[[range, Path], None],
    *,
    count: int,
    shard_clips: int,
    predict: bool,
    vae: str,
    size: Mapping[str, int],
    source: Mapping[str, Any],
    folder: Path,
    engine: Engine,
) -> int:
    """Write positions 0 to count-1 of a training stream as shards.

    Finished shards are kept, so that a killed run goes on and a larger `count` adds to a folder. The bytes do not
    depend on the engine nor on the order of the shards.

    Args:
        make_shard: `encode_shard` with all its options bound; the engine must be able to send it to its workers.
        count: Number of clips, at least 1. Random crops and starts are drawn once; take more positions than there are
            videos to have several of each.
        shard_clips: Clips of a shard, at least 1.
        predict: Whether `make_shard` stores warped latents.
        vae: `Codec.fingerprint`.
        size: num_frames, height and width of a clip.
        source: Where the clips come from; all clips of a folder have one source.
        folder: Target; with an engine of many machines, on a disk that they share.
        engine: Runs `make_shard`.

    Returns:
        Number of clips made now.

    Raises:
        ValueError: If `count` or `shard_clips` is below 1, or the folder holds latents of another VAE, size or source.
    """
    if count < 1 or shard_clips < 1:
        raise ValueError(f"clips={count}, shard_clips={shard_clips}: both must be at least 1")
    manifest = {
        "format": FORMAT, "clips": count, "shard_clips": shard_clips, "size": dict(size), "vae": vae,
        "predict": predict, "source": dict(source),
    }  # fmt: skip
    earlier = _read_manifest(str(folder), retries=0) or {}
    for key, value in earlier.items():
        if key in manifest and key != "clips" and manifest[key] != value:
            raise ValueError(f"out={folder} holds latents of another {key}: choose another folder, or delete it")
    if "shards" in earlier:
        manifest["clips"] = count = max(count, earlier["clips"])
    folder.mkdir(parents=True, exist_ok=True)
    if not earlier:
        _write_manifest(folder, manifest)
    shards = shard_ranges(count, shard_clips)
    todo = [positions for positions in shards if finished_shard(folder, positions) is None]
    tasks = ((positions, folder) for positions in todo)
    for _ in tqdm(engine(make_shard, tasks), total=len(todo), desc="encode", unit="shard", disable=not todo):
        continue
    digests, sizes = zip(*(finished_shard(folder, positions) for positions in shards))
    if len(set(sizes)) > 1:
        raise ValueError(f"out={folder} holds clips of different sizes: delete it and encode again")
    # Written last, so that a folder that fails to grow stays usable.
    _write_manifest(folder, manifest | {"clip_bytes": sizes[0], "shards": list(digests)})
    if count > earlier.get("clips", count):
        last = shard_ranges(earlier["clips"], shard_clips)[-1]
        if last not in shards:
            remove_shard(folder, last)  # a fuller one has taken its place
    return sum(map(len, todo))


def _check_shards(folder: Path, layout: ShardLayout) -> None:
    for positions in layout.ranges():
        path = folder / shard_name(positions)
        try:
            size = path.stat().st_size
        except FileNotFoundError as error:
            raise ValueError(f"{path} is missing: {repair(str(folder))}") from error
        if size != layout.shard_bytes(len(positions)):
            raise ValueError(
                f"{path} is truncated: {size} bytes, {layout.shard_bytes(len(positions))} are right; "
                f"{repair(str(folder))}"
            )


def _write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    with atomic_path(folder / MANIFEST) as path:
        path.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _read_manifest(folder: str, *, retries: int) -> dict[str, Any] | None:
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
