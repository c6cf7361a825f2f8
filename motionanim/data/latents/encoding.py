"""Encode clips into shards of latents: the work of motionanim.data.encode."""

from collections.abc import Callable, Iterator, Mapping
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from motionanim.data.engine import Engine
from motionanim.data.latents.prepared import FORMAT, WARPED, read_manifest, write_manifest
from motionanim.data.latents.shards import finished_shard, remove_shard, shard_ranges, write_shard
from motionanim.data.stream import as_floats, collate
from motionanim.media.image_io import to_uint8
from motionanim.types import ClipBatch


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
        encode, embed: `Codec.encode` and `Codec.embed_image`.
        warp: `Codec.warp_image`, to store the warped latents too; None for models that do not read them.
    """
    length = getattr(clips, "row", None)
    batches = list(_batches(positions, batch_size, length))

    def samples() -> Iterator[dict[str, Tensor]]:
        for stored in DataLoader(clips, batch_sampler=batches, num_workers=num_workers, collate_fn=collate):
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
        write_shard(folder, positions, samples(), mixed=length is not None)
    finally:
        torch.set_num_threads(threads)


def _batches(positions: range, batch_size: int, row: int | None) -> Iterator[range]:
    """The positions in batches, which do not cross from one `row` to the next."""
    first = positions.start
    while first < positions.stop:
        end = min(first + batch_size, positions.stop, positions.stop if row is None else first - first % row + row)
        yield range(first, end)
        first = end


def encode_clips(
    make_shard: Callable[[range, Path], None],
    *,
    count: int,
    shard_clips: int,
    predict: bool,
    vae: str,
    size: Mapping[str, Any],
    source: Mapping[str, Any],
    folder: Path,
    engine: Engine,
    shape_number: Callable[[int], int] | None = None,
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
        size: num_frames, height and width of a clip, or `clip_size`.
        source: Where the clips come from; all clips of a folder have one source.
        folder: Target; with an engine of many machines, on a disk that they share.
        shape_number: The number of the shape at a position, if clips have several.

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
    earlier = read_manifest(str(folder), retries=0) or {}
    for key, value in earlier.items():
        if key in manifest and key != "clips" and manifest[key] != value:
            raise ValueError(f"out={folder} holds latents of another {key}: choose another folder, or delete it")
    if "shards" in earlier:
        manifest["clips"] = count = max(count, earlier["clips"])
    folder.mkdir(parents=True, exist_ok=True)
    if not earlier:
        write_manifest(folder, manifest)
    shards = shard_ranges(count, shard_clips)
    todo = [positions for positions in shards if finished_shard(folder, positions) is None]
    tasks = ((positions, folder) for positions in todo)
    for _ in tqdm(engine(make_shard, tasks), total=len(todo), desc="encode", unit="shard", disable=not todo):
        continue
    digests, sizes = zip(*(finished_shard(folder, positions) for positions in shards))
    numbers = [0] * count if shape_number is None else [shape_number(position) for position in range(count)]
    found: dict[int, set[int]] = {}
    for number, each in zip(numbers, chain(*sizes), strict=True):
        found.setdefault(number, set()).add(each)
    if any(len(each) > 1 for each in found.values()):
        raise ValueError(f"out={folder} holds clips of different sizes: delete it and encode again")
    of_clips = {"clip_bytes": sizes[0][0]}
    if shape_number is not None:
        of_clips = {
            "clip_bytes": [min(found.get(number, {0})) for number in range(len(size["shapes"]))],
            "shapes_in_order": [[number, len(list(same))] for number, same in groupby(numbers)],
        }
    # Written last, so that a folder that fails to grow stays usable.
    write_manifest(folder, manifest | of_clips | {"shards": list(digests)})
    if count > earlier.get("clips", count):
        last = shard_ranges(earlier["clips"], shard_clips)[-1]
        if last not in shards:
            remove_shard(folder, last)  # a fuller one has taken its place
    return sum(map(len, todo))
