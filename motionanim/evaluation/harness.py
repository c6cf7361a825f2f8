"""A method on a benchmark: one row per clip, a summary, and pictures; resumed wherever it was stopped."""

import json
import math
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
from torch import Tensor
from tqdm import tqdm

from motionanim.data.video import write_video
from motionanim.evaluation.cases import Benchmark, Case, digest
from motionanim.evaluation.methods import Made, Method
from motionanim.evaluation.rows import Rows
from motionanim.evaluation.scoring import Missing, Scorer, from_text, to_bytes
from motionanim.evaluation.statistics import mean_interval
from motionanim.files import atomic_path, text_sha256
from motionanim.media.image_io import from_uint8
from motionanim.media.visualize import sheet, write_picture
from motionanim.metrics.fvd import FVD
from motionanim.types import Sample

GROUPS = 32  # of FVD's jackknife
FORMAT = 1  # of the rows and the summary; raised where older ones can no longer be read
VERSIONS = ("torch", "diffusers", "torchmetrics", "motionanim")


class Options(NamedTuple):
    """How a run is kept."""

    keep_frames: bool  # leave lossless frames, so that a metric added later need not make the videos again
    show: int  # clips that get a video and a strip of frames
    progress: bool


class Finished(NamedTuple):
    """What `evaluate` did."""

    label: str
    folder: Path
    result: dict[str, Any] | None  # the summary; None while other processes still work on their clips
    rows: list[dict[str, Any]]  # a clip each, in the benchmark's order; none without a summary
    made: int  # clips that were made now
    scored: int  # clips that were scored now


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

    Several processes of torchrun share the clips by place; whoever finds all rows written leaves the summary. The
    number of processes, kills and the order of work change no number.

    Args:
        root: A folder is made in it, named by the method and a hash of all that determines its videos.
        seed: Clip i is made with seed + i.
        window: L, the frames of one window of the model, for the metrics of long videos.
        settings: The plain values that, with the method's identity, determine its videos.
        about: What the summary holds besides: sweep, axes.

    Raises:
        ValueError: If the benchmark has a clip twice or too few frames for a metric, or a method returns another number
            or size of frames, or values that are not finite.
    """
    if len(set(benchmark.ids)) < len(benchmark.ids):
        raise ValueError(f"benchmark {benchmark.name} has a clip twice")
    for name, extractor in scorer.features.items():
        if not isinstance(extractor, Missing) and benchmark.reading.num_frames < extractor.min_frames:
            raise ValueError(
                f"benchmark.reading.num_frames={benchmark.reading.num_frames}: {name} needs at least "
                f"{extractor.min_frames}; raise it, or leave it out with ~metrics.features.{name}"
            )
    label = method.label + benchmark.request.label
    identity = digest(FORMAT, benchmark.settings, method.identity, settings, seed)
    # Two folders of clips may have the same settings; their rows tell them apart, and so must their summaries.
    folder = root / f"{_plain(label)}-{digest(identity, benchmark.place, method.place)[:8]}"
    rows, wanted = Rows(folder / "clips.jsonl"), scorer.fingerprints
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    cases = [benchmark.identity(index) for index in range(len(benchmark.ids))]
    keys = [digest(identity, case, method.files.get(clip)) for case, clip in zip(cases, benchmark.ids, strict=True)]
    made, scored, commit = 0, 0, _commit()
    mine = range(rank, len(keys), world)
    for index in tqdm(mine, desc=label, disable=not options.progress):
        row = rows.by_key.get(keys[index])
        if row is not None and wanted.items() <= row["protocols"].items():
            continue
        case, kept = benchmark.case(index), folder / "frames" / f"{_plain(benchmark.ids[index])}-{keys[index]}.npz"
        answer = _load(kept) if row is not None else None
        if answer is None:
            start = time.perf_counter()
            answer = method(case, seed + index)
            seconds, made = time.perf_counter() - start if method.timed else None, made + 1
            _check(label, case, answer)
            answer = answer._replace(frames=_rounded(answer.frames))
            if options.keep_frames:
                _save(kept, answer)
            if index < options.show:
                _picture(folder, case, answer)
            cost = {"seconds": seconds, "calls": answer.calls, "split_sigma": answer.split_sigma}
        else:
            cost = {name: row[name] for name in ("seconds", "calls", "split_sigma")}
        flow = case.flow if answer.flow is None else answer.flow
        real = _rounded(case.frames) if case.own_motion else None
        # What a seam is worth in known frames is asked where the methods have theirs.
        borders = tuple(range(window, len(answer.frames), window)) if method.control else answer.borders
        scores = scorer(Sample(answer.frames, real, flow, case.mask, borders, window))
        scored += 1
        rows.append(
            {"clip": case.clip, "key": keys[index], "index": index, **cost, "metrics": scores.values,
             "reasons": scores.reasons, "features": scores.features, "protocols": wanted, "commit": commit}
        )  # fmt: skip
    if world > 1:
        rows = Rows(rows.path)
    done = [rows.by_key.get(key) for key in keys]
    if any(row is None or not wanted.items() <= row["protocols"].items() for row in done):
        return Finished(label, folder, None, [], made, scored)
    commits = ", ".join(sorted({row["commit"] or "unknown" for row in done}))
    result = {
        "format": FORMAT, "label": label, "benchmark": benchmark.name, "n": len(done),
        "control": method.control, "saw_motion": method.saw_motion, **about,
        "repeated": {"true clips": benchmark.repeated, "made clips": method.repeated},
        "settings": dict(settings), "identity": method.identity, "seed": seed, "keys": keys, "protocols": wanted,
        "metrics": summarise(done, scorer, (cases, window)), "cost": _cost(done),
        "versions": {name: version(name) for name in VERSIONS} | {"python": platform.python_version()},
        "hardware": _hardware(), "commit": commits, "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
    }  # fmt: skip
    sigmas = {row["split_sigma"] for row in done} - {None}
    result["axes"] = dict(result.get("axes") or {}) | ({"sigma": sigmas.pop()} if len(sigmas) == 1 else {})
    with atomic_path(folder / "result.json") as path:
        path.write_text(json.dumps(result, indent=1, default=str) + "\n", encoding="utf-8")
    return Finished(label, folder, result, done, made, scored)


def summarise(rows: list[dict[str, Any]], scorer: Scorer, cases: Any) -> dict[str, dict[str, Any]]:
    """Mean, 95 % interval, n and protocol of every key; null with a reason where there is none.

    Args:
        cases: What was asked: numbers from other clips, sizes or requests have other protocols too.
    """
    summary: dict[str, dict[str, Any]] = {}
    protocols = {key: digest(protocol, cases) for key, protocol in scorer.protocol_of().items()}
    for metric in scorer.metrics.values():
        if isinstance(metric, Missing):
            summary |= {key: _entry(None, None, None, 0, None, metric.reason) for key in metric.keys}
            continue
        for key in metric.keys:
            known = [row["metrics"][key] for row in rows if row["metrics"].get(key) is not None]
            reason = next((row["reasons"][key] for row in rows if key in row["reasons"]), None)
            summary[key] = _entry(*mean_interval(known), protocols.get(key), None if known else reason)
    for name, extractor in scorer.features.items():
        key = f"fvd_{name}"
        if isinstance(extractor, Missing):
            summary[key] = _entry(None, None, None, 0, None, extractor.reason)
            continue
        protocol = digest(extractor.fingerprint, cases)
        pairs = [row["features"].get(name) for row in rows]
        if None in pairs:
            summary[key] = _entry(None, None, None, 0, protocol, "no true clips of the motion asked for")
            continue
        if len(pairs) < 2:
            summary[key] = _entry(None, None, None, len(pairs), protocol, "one clip has no spread: n >= 2")
            continue
        distance = FVD(dim=extractor.dim, groups=GROUPS, ddof=extractor.protocol["ddof"])
        fake, real = (torch.stack([from_text(pair[side]) for pair in pairs]) for side in ("fake", "real"))
        distance.update(fake, real, torch.tensor([row["index"] % GROUPS for row in rows]))
        found = {part: float(value) for part, value in distance.compute().items()}
        n = len(pairs)
        # Below some number of clips the correction does not correct: then the distance as others print it, which is
        # another protocol.
        main = "corrected" if math.isfinite(found["low"]) else "value"
        summary[key] = _entry(found[main], found["low"], found["high"], n, digest(protocol, main), None)
        for suffix, part in (("plain", "value"), ("half", "half"), ("disjoint", "disjoint"), ("floor", "floor")):
            why = None if math.isfinite(found[part]) else "half of the clips are fewer than 2"
            summary[f"{key}_{suffix}"] = _entry(found[part], None, None, n, protocol, why)
    return summary


def _entry(
    mean: float | None, low: float | None, high: float | None, n: int, protocol: str | None, reason: str | None
) -> dict[str, Any]:
    values = {name: value if value is not None and math.isfinite(value) else None
              for name, value in (("mean", mean), ("low", low), ("high", high))}  # fmt: skip
    return {**values, "n": n, "protocol": protocol, "reason": reason}


def _cost(rows: list[dict[str, Any]]) -> dict[str, float | None]:
    cost: dict[str, float | None] = {}
    for name in ("calls", "seconds"):
        known = [row[name] for row in rows if row[name] is not None]
        cost[name] = sum(known) / len(known) if known else None
    return cost


def _check(label: str, case: Case, answer: Made) -> None:
    if answer.frames.shape != case.frames.shape:
        raise ValueError(
            f"{label} made {tuple(answer.frames.shape)} of clip {case.clip}, and {tuple(case.frames.shape)} (frames, "
            "channels, height, width) were asked for"
        )
    if not bool(torch.isfinite(answer.frames).all()):
        raise ValueError(f"{label} made values that are not finite of clip {case.clip}")


def _rounded(frames: Tensor) -> Tensor:
    """Frames as 8-bit files hold them: what is scored does not depend on whether they were kept."""
    return from_uint8(to_bytes(frames))


def _save(path: Path, answer: Made) -> None:
    flow = () if answer.flow is None else answer.flow.numpy()
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, frames=to_bytes(answer.frames).numpy(), flow=flow, borders=answer.borders)


def _load(path: Path) -> Made | None:
    """What `_save` wrote; None if it is not there or damaged, and the clip is made again."""
    try:
        with np.load(path, allow_pickle=False) as file:
            frames, flow, borders = file["frames"], file["flow"], file["borders"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    realised = from_uint8(torch.from_numpy(frames))
    return Made(realised, torch.from_numpy(flow) if flow.size else None, None, tuple(borders.tolist()))


def _picture(folder: Path, case: Case, answer: Made) -> None:
    name = _slug(case.clip)
    write_picture(folder / "strips" / f"{name}.png", sheet([case.frames, answer.frames], columns=8))
    even = answer.frames[..., : answer.frames.shape[-2] // 2 * 2, : answer.frames.shape[-1] // 2 * 2]
    write_video(folder / "videos" / f"{name}.mp4", even, case.fps)


def _plain(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")


def _slug(text: str) -> str:
    """A file name for each text of its own: one that is no plain name already ends in its hash."""
    name = _plain(text)
    return name if name == text and len(name) <= 80 else f"{name[:80]}-{text_sha256(text)[:8]}"


def _hardware() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {os.cpu_count()} cores"


def _commit() -> str | None:
    """The commit of the source tree, with a + if it was changed since; None outside one."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"], cwd=Path(__file__).parent,
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
