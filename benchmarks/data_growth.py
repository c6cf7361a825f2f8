"""Time and memory of prepared data as it grows: python benchmarks/data_growth.py [--report FILE] [--folder FOLDER].

[--clips N ...] [--listed N ...] [--reads 1000]. It writes and reads shards of latents and the index of HD-VILA's clips.
Clips are stand-ins of a few hundred bytes, so that the cost per clip is measured, not that of its pixels. Every stage
runs in its own fork of a process that has imported everything; its memory is what its peak adds.
"""

import argparse
import json
import multiprocessing
import os
import platform
import resource
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from multiprocessing.connection import Connection
from pathlib import Path

import pyarrow
import torch

from motionanim.data import hdvila, hdvila_index
from motionanim.data.engine import ProcessEngine
from motionanim.data.hdvila import hdvila_clips
from motionanim.data.hdvila_index import IndexedNames
from motionanim.data.latents.encoding import encode_clips
from motionanim.data.latents.prepared import PreparedLatents
from motionanim.data.latents.shards import write_shard
from motionanim.data.order import shuffled_index

SIZE = {"num_frames": 2, "height": 4, "width": 4}
SHARD = 500  # clips


def make_shard(numbers: range, folder: Path) -> None:
    def stand_in(number: int) -> dict[str, torch.Tensor]:
        return {
            "latents": torch.full((2, 4, 2, 2), number % 1000).half(),
            "flow": torch.zeros(1, 2, 4, 4).half(),
            "image": torch.zeros(4, 4, 3, dtype=torch.uint8),
            "image_embed": torch.zeros(1, 4, dtype=torch.float16),
            "fps": torch.tensor(7.0),
        }

    write_shard(folder, numbers, map(stand_in, numbers))


def write(folder: Path, clips: int, reads: int) -> None:
    encode_clips(
        make_shard, count=clips, shard_clips=SHARD, predict=False, vae="v", size=SIZE, source={},
        folder=folder / "latents", engine=ProcessEngine(workers=0),
    )  # fmt: skip


def opened(folder: Path, clips: int, reads: int) -> PreparedLatents:
    reading = {"shuffle_shards": 8, "cache": folder / "cache", "cache_gb": 0, "retries": 0}
    return PreparedLatents(folder / "latents", seed=0, **SIZE, **reading)


def read(folder: Path, clips: int, reads: int) -> PreparedLatents:
    data = opened(folder, clips, reads)
    for position in range(clips // 2, clips // 2 + reads):
        data[position]
    return data


def index(folder: Path, clips: int, reads: int) -> tuple[IndexedNames, IndexedNames]:
    # The clips themselves are not there.
    hdvila._files = lambda video: {f"{os.path.basename(video)}.{k}.mp4" for k in range(10)}
    hdvila_index.changes = lambda path, root: None
    os.path.isfile = lambda path: True
    return hdvila_clips(folder, jsonl=folder / "meta.jsonl", val_share=0.01, index=folder / "index")


def names(folder: Path, clips: int, reads: int) -> tuple[IndexedNames, IndexedNames]:
    train, val = index(folder, clips, reads)
    for position in range(reads):
        train[shuffled_index(0, position, len(train))]
    return train, val


def mapped() -> float:
    """MB of files that are mapped and in memory; the system takes them back when it needs the room."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
    return int(line.split()[1]) / 1024


def measured(stage: Callable[[Path, int, int], object], *arguments: object) -> str:
    """Cells of seconds, of the MB that its peak adds, and of those MB that are mapped files in the end."""

    def work(pipe: Connection) -> None:
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)  # progress bars
        before, files = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, mapped()
        start = time.perf_counter()
        kept = stage(*arguments)
        took = time.perf_counter() - start
        pipe.send((took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before, mapped() - files))
        del kept

    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=work, args=(theirs,))
    process.start()
    theirs.close()
    took, memory, files = ours.recv()
    process.join()
    return f"{took:.3g} | {memory:.0f} | {files:.0f}"


def write_list(folder: Path, clips: int) -> None:
    with (folder / "meta.jsonl").open("w") as file:
        for k in range(clips // 10):
            video = {"video_id": f"v{k:09}", "clip": [{"clip_id": f"v{k:09}.{c}.mp4"} for c in range(10)]}
            file.write(json.dumps(video) + "\n")


def table(sizes: list[int], stages: dict[str, Callable], options: argparse.Namespace) -> list[str]:
    rows: dict[str, list[str]] = {name: [] for name in stages}
    for clips in sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as root:
            write_list(Path(root), clips)
            for name, stage in stages.items():
                cells = measured(stage, Path(root), clips, options.reads)
                rows[name].append(f"| {name} | {clips:,} | {cells} |")
    return ["| stage | clips | s | MB | MB mapped |", "|---|---|---|---|---|", *chain(*rows.values()), ""]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, nargs="+", default=[1000, 10_000, 100_000])
    parser.add_argument("--listed", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--reads", type=int, default=1000)
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Prepared data as it grows",
        "",
        f"Clips are stand-ins of a few hundred bytes, in shards of {SHARD}. The list has 10 clips per video. MB is the "
        "peak of resident memory, less that of a process that has imported everything. MB mapped is the part of it "
        "that holds pages of files at the end. The system takes these pages back when it needs them. "
        f"{platform.machine()}, {os.cpu_count()} cores, shared with other jobs: compare only within one report. "
        f"Python {platform.python_version()}, torch {torch.__version__}, pyarrow "
        f"{pyarrow.__version__}, {time.strftime('%Y-%m-%d')}.",
        "",
        *table(
            options.clips,
            {"write shards": write, "open them": opened, f"open, read {options.reads} positions": read},
            options,
        ),
        "HD-VILA's list, without looking for the clips on disk:",
        "",
        *table(
            options.listed,
            {
                "read the list, write the index": index,
                "open the index": index,
                f"open, {options.reads} shuffled names": names,
            },
            options,
        ),
    ]
    print("\n".join(lines))
    if options.report:
        options.report.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
