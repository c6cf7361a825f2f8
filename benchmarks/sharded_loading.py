"""Shards addressed by position beside webdataset, litdata and one file per clip: python benchmarks/sharded_loading.py.

[--clips 2000] [--rounds 3] [--folder FOLDER] [--report FILE]; needs pip install webdataset litdata.

All layouts hold the same clips and yield the same batches, each through its own kind of loader, in turns in one run.
Clips are random tensors of a small experiment's size, because a reader does not look at them.
"""

import argparse
import importlib.metadata
import os
import platform
import shutil
import statistics
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import litdata
import safetensors.torch
import torch
import webdataset
from torch.utils.data import DataLoader, Dataset, default_collate

from motionanim.data.latents.shards import ShardLayout, Shards, finished_shard, shard_ranges, write_shard
from motionanim.data.order import shuffled_index

BATCH = 8
SHARD = 128  # clips
BLOCK = 4  # shards whose clips are mixed; webdataset's buffer holds as many clips


def stand_in(number: int) -> dict[str, torch.Tensor]:
    """16 frames of 64 x 64 px and 16 x 16 latents, 0.3 MB."""
    generator = torch.Generator().manual_seed(number)
    return {
        "latents": torch.randn(16, 4, 16, 16, generator=generator).half(),
        "flow": torch.randn(15, 2, 64, 64, generator=generator).half(),
        "image": torch.randint(256, (64, 64, 3), generator=generator, dtype=torch.uint8),
        "image_embed": torch.zeros(1, 1024, dtype=torch.float16),
        "fps": torch.tensor(7.0),
    }


class Indexed(Dataset[dict[str, torch.Tensor]]):
    """Any reader by number, in the order that `index` gives."""

    def __init__(self, read: Callable[[int], dict], index: Callable[[int], int]) -> None:
        self.read, self.index = read, index

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        return self.read(self.index(position))


class Layout(ABC):
    """A layout of clips on disk."""

    def __init__(self, folder: Path, clips: int) -> None:
        self.folder, self.clips = folder, clips

    @abstractmethod
    def write(self, samples: list[dict]) -> None: ...

    @abstractmethod
    def open(self) -> Callable[[int], dict] | None:
        """Random access, if the layout has it."""

    def loader(self, shuffle: bool, workers: int) -> Iterable[Any]:
        order = range(self.clips)
        return DataLoader(
            Indexed(self.open(), self.order if shuffle else int), BATCH, sampler=order, num_workers=workers
        )

    def order(self, position: int) -> int:
        return shuffled_index(0, position, self.clips)


class Files(Layout):
    name = "a file a clip"

    def path(self, number: int) -> Path:
        return self.folder / f"{number // 1000:04}" / f"{number:07}.safetensors"

    def write(self, samples: list[dict]) -> None:
        for number, sample in enumerate(samples):
            self.path(number).parent.mkdir(parents=True, exist_ok=True)
            safetensors.torch.save_file(sample, self.path(number))

    def open(self) -> Callable[[int], dict]:
        return lambda number: safetensors.torch.load_file(self.path(number))


class Positions(Layout):
    name = "tar shards by position (ours)"

    def write(self, samples: list[dict]) -> None:
        for numbers in shard_ranges(self.clips, SHARD):
            write_shard(self.folder, numbers, (samples[number] for number in numbers))

    def open(self) -> Callable[[int], dict]:
        digests, sizes = zip(*(finished_shard(self.folder, numbers) for numbers in shard_ranges(self.clips, SHARD)))
        layout = ShardLayout(self.clips, SHARD, sizes[0][0])
        return Shards(str(self.folder), layout, list(digests), cache="", cache_gb=0, retries=0).read

    def order(self, position: int) -> int:
        return shuffled_index(0, position, self.clips, shard=SHARD, block=BLOCK)


class WebDataset(Layout):
    name = "webdataset"

    def write(self, samples: list[dict]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        with webdataset.ShardWriter(str(self.folder / "%06d.tar"), maxcount=SHARD, verbose=0) as writer:
            for number, sample in enumerate(samples):
                writer.write({"__key__": f"{number:09}", "safetensors": safetensors.torch.save(sample)})

    def open(self) -> None:
        return None

    def loader(self, shuffle: bool, workers: int) -> Iterable[Any]:
        shards = sorted(map(str, self.folder.glob("*.tar")))
        data = webdataset.WebDataset(shards, shardshuffle=len(shards) if shuffle else False)
        if shuffle:
            data = data.shuffle(SHARD * BLOCK)
        data = data.to_tuple("safetensors").map_tuple(safetensors.torch.load).map(lambda fields: fields[0])
        return webdataset.WebLoader(
            data.batched(BATCH, collation_fn=default_collate), batch_size=None, num_workers=workers
        )


class LitData(Layout):
    name = "litdata"

    def write(self, samples: list[dict]) -> None:
        # One writer, as for the other layouts; `litdata.optimize` has one per process.
        cache = litdata.streaming.Cache(str(self.folder), chunk_size=SHARD)
        for number, sample in enumerate(samples):
            cache[number] = sample
        cache.done()
        cache.merge()

    def open(self) -> Callable[[int], dict]:
        return litdata.StreamingDataset(str(self.folder)).__getitem__

    def loader(self, shuffle: bool, workers: int) -> Iterable[Any]:
        data = litdata.StreamingDataset(str(self.folder), shuffle=shuffle)
        return litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=workers)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def passed(loader: Iterable[Any], clips: int) -> None:
    seen = sum(len(batch["fps"]) for batch in loader)
    if seen != clips:
        raise SystemExit(f"{type(loader).__name__} yielded {seen} of {clips} clips")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    samples = [stand_in(number) for number in range(options.clips)]
    drawn = torch.randperm(options.clips, generator=torch.Generator().manual_seed(0))[:200].tolist()
    with tempfile.TemporaryDirectory(dir=options.folder) as root:
        layouts = [kind(Path(root, kind.__name__), options.clips) for kind in (Files, Positions, WebDataset, LitData)]
        rates: dict[tuple[str, str], list[float]] = {}
        for _ in range(options.rounds):
            for layout in layouts:
                shutil.rmtree(layout.folder, ignore_errors=True)
                rates.setdefault((layout.name, "write"), []).append(seconds(lambda: layout.write(samples)))  # noqa: B023
            for workers in (1, 2):
                for shuffle in (False, True):
                    for layout in layouts:
                        loader = layout.loader(shuffle, workers)
                        took = seconds(lambda: passed(loader, options.clips))  # noqa: B023
                        rates.setdefault(
                            (layout.name, f"{'shuffled' if shuffle else 'in order'}, {workers}"), []
                        ).append(took)
            for layout in layouts:
                if (read := layout.open()) is not None:
                    took = seconds(lambda: [read(number) for number in drawn])
                    rates.setdefault((layout.name, "random"), []).append(took)
        columns = ["write", "in order, 1", "in order, 2", "shuffled, 1", "shuffled, 2"]
        rows = []
        for layout in layouts:
            files = [path for path in layout.folder.rglob("*") if path.is_file()]
            row = [f"{options.clips / statistics.median(rates[layout.name, column]):.0f}" for column in columns]
            random = rates.get((layout.name, "random"))
            row.append(
                f"{1000 * statistics.median(random) / len(drawn):.2f}" if random else "none: a shard is read through"
            )
            row += [f"{sum(path.stat().st_size for path in files) / 1e6:.0f}", str(len(files))]
            rows.append(f"| {layout.name} | " + " | ".join(row) + " |")
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}" for name in ("torch", "webdataset", "litdata", "safetensors")
    )
    lines = [
        "# Shards of latents beside other layouts",
        "",
        f"{options.clips} clips of {len(safetensors.torch.save(samples[0])) / 1e6:.2f} MB, shards of {SHARD}, "
        f"batches of {BATCH}. Clips per second of one pass through a loader with 1 or 2 workers, including its start; "
        f"median of {options.rounds} rounds in turns. The files are in the page cache, so that the readers are "
        "measured, not the disk. The machine was shared with other jobs: compare only within one report. "
        f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {versions}, "
        f"{time.strftime('%Y-%m-%d')}.",
        "",
        "| layout | " + " | ".join(columns) + " | one random clip, ms | MB | files |",
        "|---" * (len(columns) + 4) + "|",
        *rows,
        "",
    ]
    print("\n".join(lines))
    if options.report:
        options.report.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
