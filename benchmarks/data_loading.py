"""Clips per second of the data module and of bare decord: python benchmarks/data_loading.py ROOT [--out REPORT.md].

Both do the same reads in one process, alternating. The bare loop opens the file, decodes the same frames in one call
and resizes them. The data module also lists the frames by time, crops, reads the cached flow and collates; the flow is
estimated beforehand, as `motionanim.data.prepare` does. Pictures stay uint8 and flow float16.

Each size is measured twice. First with the C library's defaults, which give large freed blocks of memory back to the
system; where a virtual machine gives them back to its host, new memory costs more than decoding, and the bare loop
holds one clip at a time but the loader a batch. Then both keep their memory, as they would on a machine of their own.
"""

import argparse
import ctypes
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch  # must be imported before decord: otherwise decord's NVBLAS computes matrix products and ends the process
from torch.utils.data import DataLoader

from motionanim.data.clips import VideoClips, clip_data, flow_path
from motionanim.data.folder import folder_clips
from motionanim.data.order import shuffled_index
from motionanim.data.prepare.examine import cached_flow
from motionanim.data.stream import collate, rng
from motionanim.data.video import Video, cover_size
from motionanim.data.video.index import content_key
from motionanim.models.flow_estimator import DisFlow

# isort: split
import decord

MAX_FRAMES = 40  # frames of a file whose flow is cached; both sides read only these


def planned_reads(clips: VideoClips, positions: range) -> list[tuple[str, list[int]]]:
    """File and frames that the data module reads at each position."""
    reads = []
    for position in positions:
        path = clips.root / clips.names[shuffled_index(clips.seed, position, len(clips))]
        indices, _ = Video(path).grid(fps=clips.fps, stride=clips.stride)
        start = int(rng(clips.seed, position).integers(min(len(indices), MAX_FRAMES) - clips.num_frames + 1))
        reads.append((str(path), indices[start : start + clips.num_frames].tolist()))
    return reads


def bare(reads: list[tuple[str, list[int]]], height: int, width: int) -> None:
    for path, indices in reads:
        frames = decord.VideoReader(path, num_threads=1).get_batch(indices).asnumpy()
        tall, wide = cover_size(*frames.shape[1:3], height=height, width=width)
        method = cv2.INTER_AREA if tall <= frames.shape[1] else cv2.INTER_CUBIC
        for frame in frames:
            cv2.resize(frame, (wide, tall), interpolation=method)


def keep_memory() -> None:
    """The C library gives no memory back from here on: M_MMAP_MAX=0 and M_TRIM_THRESHOLD=-1 of glibc."""
    if platform.system() != "Linux":
        raise SystemExit("only glibc can be told to keep memory: run this on Linux")
    for option, value in ((-4, 0), (-1, -1)):
        ctypes.CDLL(None).mallopt(option, value)


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def row(options: argparse.Namespace, memory: str, frames: int, size: int) -> str:
    """A line of the table for clips of `frames` frames of `size` x `size` px; `memory` is its second cell."""
    with tempfile.TemporaryDirectory() as cache:
        data = clip_data(
            items="clips",
            latents=None,
            reading={},
            root=options.root,
            names=folder_clips(options.root, val_share=0.1),
            val_clips=1,
            rejected=Path(cache, "rejected.csv"),
            max_rejected_share=0.0,
            batch_size=4,
            num_workers=0,
            num_frames=frames,
            height=size,
            width=size,
            fps=7,
            stride=None,
            seed=0,
            flow_estimator=DisFlow(preset="ultrafast", min_side=1),
            flow_cache=cache,
        )
        clips = data.train
        for name in clips.names:
            video, shape = Video(clips.root / name), {"height": size, "width": size}
            content = content_key(clips.root / name)
            where = flow_path(Path(cache), content, estimator=clips.flow_estimator.name, fps=7, stride=None, **shape)
            cached_flow(video, video.grid(fps=7, stride=None)[0][:MAX_FRAMES], clips.flow_estimator, where, **shape)
        positions = range(options.clips)
        reads = planned_reads(clips, positions)
        loader = DataLoader(clips, 4, sampler=positions, collate_fn=collate)
        bare(reads[:2], size, size)
        pairs = [
            (seconds(lambda: bare(reads, size, size)), seconds(lambda: list(loader))) for _ in range(options.rounds)
        ]
    bare_rate, module_rate = (options.clips / statistics.median(side) for side in zip(*pairs))
    ratio = statistics.median(a / b for a, b in pairs)
    return f"| {frames} x {size}x{size} | {memory} | {bare_rate:.2f} | {module_rate:.2f} | {ratio:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, help="write the table here")
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rows = []
    for memory in ("given back", "kept"):
        if memory == "kept":
            keep_memory()
        for frames, size in ((16, 64), (25, 512)):
            rows.append(row(options, memory, frames, size))
    report = "\n".join(
        [
            "| clip | freed memory is | bare decord, clips/s | data module, clips/s | ratio |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Median of {options.rounds} alternating rounds of {options.clips} clips, one process, cached flow. "
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {platform.system()}; Python "
            f"{platform.python_version()}, torch {torch.__version__}, decord2 {decord.__version__}, OpenCV "
            f"{cv2.__version__}, numpy {np.__version__}.",
        ]
    )
    print(report)
    if options.out:
        # The part that `reading.py` wrote stays.
        kept = options.out.read_text(encoding="utf-8").partition("\n## ") if options.out.exists() else ("", "", "")
        options.out.write_text(report + "\n" + "".join(kept[1:]), encoding="utf-8")


if __name__ == "__main__":
    main()
