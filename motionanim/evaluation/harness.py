"""Runs a method on a benchmark: one row per clip, a summary, and pictures. A stopped run resumes."""

import functools
import json
import os
import platform
import re
import subprocess
import time
import zipfile
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from motionanim.data.video import write_video
from motionanim.evaluation.benchmark import Benchmark, EvalClip, digest
from motionanim.evaluation.methods import Method, MethodOutput
from motionanim.evaluation.scores.rows import Rows
from motionanim.evaluation.scores.scoring import Missing, Scorer, to_bytes
from motionanim.evaluation.scores.summary import summarise
from motionanim.files import atomic_path, text_sha256
from motionanim.media.image_io import from_uint8
from motionanim.media.visualize import sheet, write_picture
from motionanim.types import Sample

STRIP = 256  # px, longest side of a frame in a strip
FORMAT = 2  # of the summary; raise it when older ones can no longer be read
MADE = 1  # of the made videos; raise it when older ones must be made again
MAKING = ("seconds", "calls", "split_sigma", "hardware", "made_with", "commit")  # of a row: how its video was made
VERSIONS = ("torch", "diffusers", "torchmetrics", "motionanim")


class Options(NamedTuple):
    """Which files a run leaves, and whether it shows its progress."""

    keep_frames: bool  # keep lossless frames, so that a metric added later needs no new videos
    show: int  # number of clips that get a video and a strip of frames
    progress: bool


class Finished(NamedTuple):
    """Result of `evaluate`."""

    label: str
    folder: Path
    result: dict[str, Any] | None  # the summary; None while other processes still work on their clips
    rows: list[dict[str, Any]]  # one per clip, in the benchmark's order; empty without a summary
    made: int  # clips made in this call
    scored: int  # clips scored in this call


def evaluate(
    benchmark: Benchmark,
    method: Method,
    scorer: Scorer,
    *,
    root: Path,
    seed: int,
    window: int,
    settings: Mapping[str, Any],
    about: Mapping[str, Any],
    options: Options,
) -> Finished:
    """Run a method on a benchmark and score it.

    The processes of torchrun share the clips, and the one that finds all rows written writes the summary. The numbers
    do not depend on the number of processes, on kills or on the order of work.

    Args:
        root: The run gets a folder in it, named by the method and a hash of all that determines its videos.
        seed: Clip i is made with seed + i.
        window: L, frames of one window of the model, for the metrics of long videos.
        settings: Plain values that determine the videos together with the method's identity.
        about: Further fields of the summary: sweep, axes.

    Raises:
        ValueError: If the benchmark has a clip twice or too few frames for a metric, or the method returns frames of
            another number or size, or values that are not finite.
    """
    if len(set(benchmark.ids)) < len(benchmark.ids):
        raise ValueError(f"benchmark {benchmark.name} has a clip twice")
    for name, extractor in scorer.features.items():
        if not isinstance(extractor, Missing) and benchmark.reading.num_frames < extractor.min_frames:
            raise ValueError(
                f"benchmark.reading.num_frames={benchmark.reading.num_frames}: {name} needs at least "
                f"{extractor.min_frames}; raise it, or leave that one out of metrics.features"
            )
    label = method.label + ("" if benchmark.request is None else benchmark.request.label)
    identity = digest(MADE, benchmark.settings, method.identity, settings, seed)
    # The place is part of the folder's name, because two folders of clips may have the same settings.
    folder = root / f"{_plain(label)}-{digest(identity, benchmark.place, method.place)[:8]}"
    rows, wanted = Rows(folder / "clips.jsonl"), scorer.fingerprints
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    clips = [benchmark.identity(index) for index in range(len(benchmark.ids))]
    keys = [digest(identity, clip, method.files.get(name)) for clip, name in zip(clips, benchmark.ids, strict=True)]
    made, scored, commit = 0, 0, _commit()
    mine = range(rank, len(keys), world)
    for index in tqdm(mine, desc=label, disable=not options.progress):
        row = rows.by_key.get(keys[index])
        if row is not None and wanted.items() <= row["protocols"].items():
            continue
        clip = benchmark.clip(index)
        kept = folder / "frames" / f"{_plain(clip.id)[:80]}-{keys[index]}.npz"
        output = _load(kept) if row is not None and not method.place else None
        if output is None:
            start = time.perf_counter()
            output = method(clip, seed + index)
            seconds, made = time.perf_counter() - start if method.timed else None, made + 1
            _check(label, clip, output)
            output = output._replace(frames=_rounded(output.frames))
            # A reference row is made again in no time, and given videos lie in their own files.
            if options.keep_frames and not method.reference and not method.place:
                _save(kept, output)
            if index < options.show:
                _picture(folder, clip, output)
            making = {"seconds": seconds, "calls": output.calls, "split_sigma": output.split_sigma,
                      "hardware": _hardware(), "made_with": _versions(), "commit": commit}  # fmt: skip
        else:
            making = {name: row.get(name) for name in MAKING}
        flow = clip.flow if output.flow is None else output.flow
        real = _rounded(clip.frames) if clip.own_motion else None
        # A reference row has no segments. It is measured where the methods have their seams, to give them a scale.
        starts = tuple(range(window, len(output.frames), window)) if method.reference else output.segment_starts
        scores = scorer(Sample(output.frames, real, flow, clip.mask, starts, output.window or window, output.loop))
        scored += 1
        rows.append(
            {"clip": clip.id, "key": keys[index], "index": index, **making, "metrics": scores.values,
             "reasons": scores.reasons, "features": scores.features, "protocols": wanted, "scored_commit": commit}
        )  # fmt: skip
    if world > 1:
        rows = Rows(rows.path)
    done = [rows.by_key.get(key) for key in keys]
    if any(row is None or not wanted.items() <= row["protocols"].items() for row in done):
        return Finished(label, folder, None, [], made, scored)
    result = {
        "format": FORMAT, "label": label, "benchmark": benchmark.name, "n": len(done),
        "reference": method.reference, "saw_motion": method.saw_motion, "saw_mask": method.saw_mask,
        "lossless": method.lossless, "reading": benchmark.stated, "window": window, **about,
        "repeated": {"true clips": benchmark.repeated, "made clips": method.repeated},
        "settings": dict(settings), "identity": method.identity, "seed": seed, "keys": keys, "protocols": wanted,
        "measures": scorer.protocols, "pictures": {name: _slug(name) for name in benchmark.ids[: options.show]},
        "metrics": summarise(
            done, scorer, clips, window, procedural=benchmark.procedural, truth=benchmark.truth
        ), "cost": _cost(done),
        **{name: _all(done, name) for name in ("hardware", "made_with", "commit", "scored_commit")},
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }  # fmt: skip
    sigmas = {row["split_sigma"] for row in done} - {None}
    result["axes"] = dict(result.get("axes") or {}) | ({"sigma": sigmas.pop()} if len(sigmas) == 1 else {})
    with atomic_path(folder / "result.json") as path:
        path.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    return Finished(label, folder, result, done, made, scored)


def _all(rows: list[dict[str, Any]], name: str) -> str:
    """All values of a field, which differ if a run was resumed elsewhere."""
    return ", ".join(sorted({row.get(name) or "unknown" for row in rows}))


def _cost(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    cost: dict[str, float | None] = {}
    for name in ("calls", "seconds"):
        known = [row[name] for row in rows if row[name] is not None]
        cost[name] = sum(known) / len(known) if known else None
    return cost


def _check(label: str, clip: EvalClip, output: MethodOutput) -> None:
    if output.frames.shape != clip.frames.shape:
        raise ValueError(
            f"{label} made frames of shape {tuple(output.frames.shape)} of clip {clip.id}: must be "
            f"{tuple(clip.frames.shape)} (frames, channels, height, width)"
        )
    if not bool(torch.isfinite(output.frames).all()):
        raise ValueError(f"{label} made values that are not finite of clip {clip.id}")


def _rounded(frames: Tensor) -> Tensor:
    """Frames rounded to 8 bits, so that scores do not depend on whether frames were kept."""
    return from_uint8(to_bytes(frames))


def _save(path: Path, output: MethodOutput) -> None:
    flow = () if output.flow is None else output.flow.numpy()
    with atomic_path(path) as temporary:
        # "borders" is the segment starts' name in files of format 1.
        np.savez_compressed(
            temporary, frames=to_bytes(output.frames).numpy(), flow=flow, borders=output.segment_starts,
            window=output.window or 0, loop=output.loop,
        )  # fmt: skip


def _load(path: Path) -> MethodOutput | None:
    """The output that `_save` wrote; None if it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            frames, flow, starts = file["frames"], file["flow"], file["borders"]
            window, loop = (int(file[name]) if name in file else 0 for name in ("window", "loop"))  # newer than others
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    realised = from_uint8(torch.from_numpy(frames))
    asked = torch.from_numpy(flow) if flow.size else None
    return MethodOutput(realised, asked, None, tuple(starts.tolist()), window=window or None, loop=bool(loop))


def _picture(folder: Path, clip: EvalClip, output: MethodOutput) -> None:
    name = _slug(clip.id)
    # Large ones would take megabytes in the report.
    rows = [_shrunk(frames, STRIP) for frames in (clip.frames, output.frames)]
    write_picture(folder / "strips" / f"{name}.png", sheet(rows, columns=8))
    height, width = output.frames.shape[-2:]
    even = output.frames[..., : height // 2 * 2, : width // 2 * 2]  # H.264 needs even sides
    write_video(folder / "videos" / f"{name}.mp4", even, clip.fps)


def _shrunk(frames: Tensor, most: int) -> Tensor:
    """Frames (T, 3, H, W) with a longer side of at most `most` px."""
    scale = most / max(frames.shape[-2:])
    if scale >= 1:
        return frames
    size = [max(1, round(side * scale)) for side in frames.shape[-2:]]
    return F.interpolate(frames, size=size, mode="bilinear", antialias=True)


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")


def _slug(text: str) -> str:
    """A file name that differs for each text: a text that is no plain name gets its hash as a suffix."""
    name = _plain(text)
    return name if name == text and len(name) <= 80 else f"{name[:80]}-{text_sha256(text)[:8]}"


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {os.cpu_count()} cores"


@functools.cache
def _versions() -> str:
    return ", ".join([f"python {platform.python_version()}", *(f"{name} {version(name)}" for name in VERSIONS)])


def _commit() -> str | None:
    """The commit of the source tree, with a + if files have changed since; None outside a repository."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=Path(__file__).parent,
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
