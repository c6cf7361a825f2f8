"""python -m motionanim.data.prepare root=FOLDER: index videos, cache their flow, and find the fixed-lens ones.

What is done is kept line by line in `journal.jsonl`, so a killed run resumes; the results are written at the end, each
in one step: `index.jsonl`, `static.txt` (the fixed-lens subset, Sec. 4.1), `rejected.csv` and `report.md`.
"""

import csv
import hashlib
import heapq
import json
import logging
import os
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import hydra
import numpy as np
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from motionanim.camera import camera_motion
from motionanim.data.clips import FlowEstimator, check_root, flow_path, open_flow
from motionanim.data.engine import Engine
from motionanim.data.folder import folder_names
from motionanim.data.hdvila import hdvila_names
from motionanim.data.journal import digest, opened_journal
from motionanim.data.names import printable
from motionanim.data.rejections import MOST_IN_A_ROW
from motionanim.data.shots import VERSION, crossed, find_borders, keep_borders, starts_within
from motionanim.data.stream import as_float
from motionanim.data.video import Video, VideoError
from motionanim.data.video_index import READER, content_key
from motionanim.entry import CONF, one_line_errors
from motionanim.files import atomic_path, check_own
from motionanim.settings import command

logger = logging.getLogger(__name__)

_LOST = "ends the process that reads it: it crashes the decoder or the memory"
_CHUNK = 32  # frames whose flow is estimated at a time: bounds the memory


class Settings(NamedTuple):
    """What decides the result for a file; any change makes it anew. The meanings stand in conf/prepare.yaml."""

    num_frames: int
    height: int
    width: int
    fps: float
    stride: int | None
    max_frames: int
    camera_fps: float
    camera_pairs: int
    camera_short_side: int
    max_camera_speed: float
    cache_moving: bool

    def check(self) -> None:
        """Raises ValueError if a number is out of its range: every video would be rejected, or none measured."""
        least = {
            "num_frames": 2, "height": 1, "width": 1, "max_frames": self.num_frames, "camera_pairs": 1,
            "camera_short_side": 1, "stride": 1,
        }  # fmt: skip
        for name, low in least.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(
                    f"settings.{name}={value}: must be at least {low}, clips have {self.num_frames} frames"
                )
        for name in ("fps", "camera_fps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"settings.{name}={getattr(self, name)}: must be above 0")


def camera_speed(video: Video, flow_estimator: FlowEstimator, *, fps: float, pairs: int, short_side: int) -> float:
    """How fast the camera moves, from pairs of frames spread over the video.

    Per second and over a fixed time between the frames of a pair, because a file's frame rate says nothing about the
    camera; on all pixels, so a scene that moves as one, such as clouds that fill the picture, counts as a camera.

    Args:
        video: An open video.
        flow_estimator: As `VideoClips` takes it.
        fps: One over the time between the frames of a pair.
        pairs: How many pairs.
        short_side: Size at which it is measured, px.

    Returns:
        Mean of `camera_motion` per second: image diagonals a second.

    Raises:
        VideoError: If the video has fewer than two frames at `fps`, or cannot be decoded.
    """
    indices, rate = video.grid(fps=fps, stride=None)
    if len(indices) < 2:
        raise VideoError(video.path, f"is too short: one frame at {fps} a second, 2 are needed to see the camera move")
    motions = []
    for first in np.unique(np.linspace(0, len(indices) - 2, pairs).round().astype(int)):
        frames = as_float(torch.from_numpy(video.read(indices[first : first + 2], height=short_side, width=short_side)))
        motions.append(camera_motion(flow_estimator(frames), None))
    return float(torch.cat(motions).mean()) * rate


def cached_flow(
    video: Video, indices: np.ndarray, flow_estimator: FlowEstimator, path: Path, *, height: int, width: int
) -> np.ndarray:
    """The flow between neighbouring `indices`, read from `path` or estimated and kept there.

    A flow that is kept there of fewer frames is replaced; of one of more frames the first are taken.

    float16: off by less than 0.01 px up to 32 px per frame, and by 1 part in 2048 above.

    Returns:
        (K-1, 2, H', W') float16, px per frame, on frames that cover height x width and are not cropped.
    """
    flow = open_flow(path)
    if flow is not None and len(flow) >= len(indices) - 1:
        return flow[: len(indices) - 1]
    steps = []
    for first in range(0, len(indices) - 1, _CHUNK):
        frames = as_float(torch.from_numpy(video.read(indices[first : first + _CHUNK + 1], height=height, width=width)))
        steps.append(flow_estimator(frames).numpy().astype(np.float16))
    flow = np.concatenate(steps)
    with atomic_path(path) as partial:
        np.save(partial, flow)
    return flow


def examine(name: str, key: str, root: Path, cache: Path, settings: Settings, flow_estimator: FlowEstimator) -> dict:
    """All that is to know about one file: its line of the journal."""
    path = root / name
    record: dict[str, Any] = {"name": name, "key": key}
    try:
        video = Video(path)
        height, width = video.size()
        indices, fps = video.grid(fps=settings.fps, stride=settings.stride)
        if len(indices) < settings.num_frames:
            reason = f"is too short: {len(indices)} frames at {fps:.3g} a second, {settings.num_frames} are needed"
            raise VideoError(path, reason)
        speed = camera_speed(
            video,
            flow_estimator,
            fps=settings.camera_fps,
            pairs=settings.camera_pairs,
            short_side=settings.camera_short_side,
        )
        slow = speed <= settings.max_camera_speed
        cached = slow or settings.cache_moving
        used = indices[: settings.max_frames] if cached else indices  # what training can show
        borders = find_borders(video, int(used[-1]) + 1)
        if not len(starts_within(used, settings.num_frames, borders)):
            reason = f"has no shot of {settings.num_frames} frames: each of its {len(borders) + 1} is shorter"
            raise VideoError(path, reason)
        content = content_key(path)
        keep_borders(cache, content, borders)
        strength, left_out = None, 0.0
        if cached:
            size = {"height": settings.height, "width": settings.width}
            where = flow_path(
                cache, content, estimator=flow_estimator.name, fps=settings.fps, stride=settings.stride, **size
            )
            flow = cached_flow(video, used, flow_estimator, where, **size)[~crossed(used[:-1], used[1:], borders)]
            left_out = (len(indices) - len(used)) / fps
            strength = float(np.mean([np.hypot(x, y).mean(dtype=np.float64) for x, y in flow.astype(np.float32)]))
    except VideoError as error:
        return record | {"reason": error.reason}
    info = video.info._asdict() | {"height": height, "width": width}
    static = slow and not borders  # two still scenes joined are no still scene
    return record | info | {
        "camera_speed": speed, "static": static, "motion_strength": strength, "borders": borders,
        "seconds_left_out": left_out,
    }  # fmt: skip


def _lost(name: str, key: str, *_: Any) -> dict:
    """The record of a file whose reader died; the next run asks for the file again."""
    return {"name": name, "key": key, "reason": _LOST}


def prepare(
    *,
    root: Path,
    names: Iterable[str],
    out: Path,
    cache: Path,
    settings: Settings,
    flow_estimator: FlowEstimator,
    engine: Engine,
    max_static: int,
) -> dict[str, int]:
    """Examine every file that is not yet in the journal, then write the results.

    Args:
        root: Folder that `names` are relative to.
        names: Video files; consumed as a stream.
        out: Folder of the results and the journal.
        cache: Folder of the cached flow.
        settings: What decides the result for a file.
        flow_estimator: As `VideoClips` takes it; sent to the workers.
        engine: Who does the work; with many machines, `root` and `cache` are on a disk that they share.
        max_static: Most clips in `static.txt`: those with the lowest hash, a random but repeatable choice.

    Returns:
        Counts: clips, static, moving, rejected, joined (those of several shots, which count as moving), resumed.

    Raises:
        ValueError: If a setting is out of its range, `out` holds files that no `prepare` left, another run writes to
            it, the engine fails, the videos' disk goes away, or no clip is usable.
    """
    settings.check()
    check_own(out, ("index.jsonl", "static.txt", "rejected.csv", "report.md"), ("journal.jsonl",), option="out=")
    wanted: set[int] = set()
    resumed = 0
    with opened_journal(out) as journal, tqdm(desc="prepare", unit="clip") as progress:
        done = {digest(record["key"]) for record in journal.records()}

        def missing() -> Iterator[tuple[Any, ...]]:
            nonlocal resumed
            for name in names:
                key = _key(root / name, f"{settings}|{flow_estimator.name}|shots {VERSION}|{READER}")
                if digest(key) in wanted:
                    continue  # listed twice
                wanted.add(digest(key))
                if digest(key) in done:
                    resumed += 1
                else:
                    yield name, key, root, cache, settings, flow_estimator

        lost: list[dict] = []  # not in the journal: the memory that others filled may have ended their readers
        held: list[dict] = []  # clips that could not be opened, until one can be: their disk may have gone away
        for record in engine(examine, missing(), _lost):
            progress.update()
            if "reason" in record:
                logger.warning("rejected: %s %s", printable(root / record["name"]), record["reason"])
            if record.get("reason") == _LOST:
                lost.append(record)
                continue
            held.append(record)
            if record.get("reason", "").startswith("cannot be opened"):
                if len(held) == MOST_IN_A_ROW:
                    raise ValueError(
                        f"{len(held)} clips in a row cannot be opened, the last: {printable(root / record['name'])}: "
                        "see whether their disk is still there, then run this again: it goes on"
                    )
            else:
                journal.add(*held)
                held.clear()
        journal.add(*held)
        counts = _write_results(out, root, chain(journal.chosen(wanted), lost), settings, max_static)
    if counts["clips"] == counts["rejected"]:
        raise ValueError(f"none of {counts['clips']} videos under {root} can be used: see {out / 'rejected.csv'}")
    return counts | {"resumed": resumed}


def _key(path: Path, settings: str) -> str:
    """Changes with the file and with the settings."""
    try:
        state = path.stat()
        identity = f"{state.st_size}|{state.st_mtime_ns}"
    except OSError as error:
        identity = f"missing: {error.strerror}"
    return hashlib.sha256(os.fsencode(f"{path.absolute()}|{identity}|{settings}")).hexdigest()[:16]


def _write_results(
    out: Path, root: Path, records: Iterator[dict], settings: Settings, max_static: int
) -> dict[str, int]:
    counts: Counter[str] = Counter(clips=0, static=0, moving=0, rejected=0, joined=0)
    reasons: Counter[str] = Counter()
    static: list[tuple[int, str]] = []
    strengths = array("d")
    longer, left_out = 0, 0.0
    with (
        atomic_path(out / "index.jsonl") as index,
        atomic_path(out / "rejected.csv") as rejected,
        open(index, "w", encoding="utf-8") as clips,
        open(rejected, "w", encoding="utf-8", newline="") as unusable,
    ):
        table = csv.writer(unusable)
        table.writerow(("path", "reason"))
        for record in records:
            counts["clips"] += 1
            if "reason" in record:
                counts["rejected"] += 1
                reasons[record["reason"].split(":")[0]] += 1
                table.writerow((printable(root / record["name"]), record["reason"]))
                continue
            counts["static" if record["static"] else "moving"] += 1
            counts["joined"] += bool(record["borders"])
            clips.write(json.dumps(record) + "\n")
            if record["motion_strength"] is not None:
                strengths.append(record["motion_strength"] / settings.width)
            longer += record["seconds_left_out"] > 0
            left_out += record["seconds_left_out"]
            if record["static"]:
                # The lowest stay: a heap has its smallest first, and the highest is to go.
                heapq.heappush(static, (-digest(record["key"]), record["name"]))
                if len(static) > max_static:
                    heapq.heappop(static)
    chosen = sorted(name for _, name in static)
    with atomic_path(out / "static.txt") as path:
        path.write_text("".join(f"{name}\n" for name in chosen), encoding="utf-8")
    lines = [
        f"# Videos under {root}",
        "",
        "| what | clips |",
        "|---|---|",
        *(f"| {k} | {v} |" for k, v in counts.items()),
    ]
    lines.append(f"| in static.txt | {len(chosen)} |")
    if strengths:
        lines += [
            "",
            f"Median motion strength, share of the width per frame: scale.median_strength={median(strengths):.4g}",
        ]
    if longer:
        note = (
            f"Of {longer} clips only the first {settings.max_frames} frames will be used for training, and "
            f"{left_out:.0f} s are left out: raise settings.max_frames to use more, or cut the files"
        )
        logger.warning(note)
        lines += ["", note + "."]
    lines += ["", "| rejected because it | clips |", "|---|---|"]
    lines += [f"| {reason} | {count} |" for reason, count in reasons.most_common()]
    with atomic_path(out / "report.md") as path:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return dict(counts)


@command
@hydra.main(config_path=str(CONF), config_name="prepare", version_base="1.3")
@one_line_errors
def main(config: DictConfig) -> None:
    """Prepare `root`: see conf/prepare.yaml."""
    root = check_root(config.root).absolute()
    out = Path(config.out)
    names = folder_names(root) if config.jsonl is None else hdvila_names(root, jsonl=config.jsonl)
    counts = prepare(
        root=root,
        names=names,
        out=out,
        cache=Path(config.flow_cache).absolute(),
        settings=Settings(**config.settings),
        flow_estimator=hydra.utils.instantiate(config.flow_estimator),
        engine=hydra.utils.instantiate(config.engine),
        max_static=config.max_static,
    )
    print((out / "report.md").read_text(encoding="utf-8"))
    print(f"{counts['resumed']} clips were done before; results are in {out}")


if __name__ == "__main__":
    # By its name: worker processes would look for what they are sent in their own __main__.
    from motionanim.data.prepare import main

    main()
