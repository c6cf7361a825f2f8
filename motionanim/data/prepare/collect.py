"""Examine every file once and write what training reads.

`journal.jsonl` gets a line per file, so that a killed run resumes. The results are written at the end, each in one
step: `index.jsonl`, `static.txt` (the fixed-lens subset, Sec. 4.1), `rejected.csv` and `report.md`.
"""

import csv
import heapq
import json
import logging
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from tqdm import tqdm

from motionanim.data.clips import FlowEstimator
from motionanim.data.engine import Engine
from motionanim.data.order import Buckets
from motionanim.data.prepare.examine import LOST, Settings, examine, lost
from motionanim.data.prepare.journal import digest, opened_journal
from motionanim.data.prepare.shots import VERSION
from motionanim.data.rejections import MOST_IN_A_ROW
from motionanim.data.video.index import READER
from motionanim.files import atomic_path, check_own, printable, text_sha256

logger = logging.getLogger(__name__)


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
    shapes: Buckets | None = None,
) -> dict[str, int]:
    """Examine every file that is not yet in the journal, then write the results.

    Args:
        root: Folder that `names` are relative to.
        names: Video files; consumed as a stream.
        out: Folder of the results and the journal.
        cache: Folder of the cached flow and shots.
        settings: What decides the result for a file.
        flow_estimator: As `VideoClips` takes it; sent to the workers.
        engine: Does the work; with many machines, `root` and `cache` are on a disk that they share.
        max_static: Most clips in `static.txt`; those with the lowest hash are taken, a random but repeatable choice.
        shapes: Flow is cached for clips in the nearest of these shapes; None for height x width of the settings.

    Returns:
        Counts: clips, static, moving, rejected, joined (of several shots, which count as moving), resumed.

    Raises:
        ValueError: If a setting is out of range, `out` holds files that no `prepare` left, another run writes to it,
            the engine fails, the videos' disk goes away, or no clip is usable.
    """
    settings.check()
    check_own(out, ("index.jsonl", "static.txt", "rejected.csv", "report.md"), ("journal.jsonl",), option="out=")
    wanted: set[int] = set()
    resumed = 0
    about = f"{settings}|{flow_estimator.name}|shots {VERSION}|{READER}" + (f"|{shapes.shapes}" if shapes else "")
    with opened_journal(out) as journal, tqdm(desc="prepare", unit="clip") as progress:
        done = {digest(record["key"]) for record in journal.records()}

        def missing() -> Iterator[tuple[Any, ...]]:
            nonlocal resumed
            for name in names:
                key = _key(root / name, about)
                if digest(key) in wanted:
                    continue  # listed twice
                wanted.add(digest(key))
                if digest(key) in done:
                    resumed += 1
                else:
                    yield name, key, root, cache, settings, flow_estimator, shapes

        unread: list[dict] = []  # files whose reader died, perhaps for lack of memory: the journal leaves them out
        held: list[dict] = []  # files that cannot be opened, until one can be: their disk may have gone away
        for record in engine(examine, missing(), lost):
            progress.update()
            if "reason" in record:
                logger.warning("rejected: %s %s", printable(root / record["name"]), record["reason"])
            if record.get("reason") == LOST:
                unread.append(record)
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
        counts = _write_results(out, root, chain(journal.chosen(wanted), unread), settings, max_static)
    if counts["clips"] == counts["rejected"]:
        raise ValueError(f"none of {counts['clips']} videos under {root} can be used: see {out / 'rejected.csv'}")
    return counts | {"resumed": resumed}


def _key(path: Path, settings: str) -> str:
    """Key of a file's record: it changes with the file's path, size, time and settings."""
    try:
        state = path.stat()
        identity = f"{state.st_size}|{state.st_mtime_ns}"
    except OSError as error:
        identity = f"missing: {error.strerror}"
    return text_sha256(f"{path.absolute()}|{identity}|{settings}")[:16]


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
                strengths.append(record["motion_strength"] / record.get("clip_width", settings.width))
            longer += record["seconds_left_out"] > 0
            left_out += record["seconds_left_out"]
            if record["static"]:
                # Negated, because a heap gives its smallest element and the highest digest is to go.
                heapq.heappush(static, (-digest(record["key"]), record["name"]))
                if len(static) > max_static:
                    heapq.heappop(static)
    chosen = sorted(name for _, name in static)
    with atomic_path(out / "static.txt") as path:
        path.write_text("".join(f"{name}\n" for name in chosen), encoding="utf-8")
    lines = [f"# Videos under {root}", "", "| what | clips |", "|---|---|"]
    lines += [f"| {name} | {count} |" for name, count in {**counts, "in static.txt": len(chosen)}.items()]
    if strengths:
        strength = f"scale.median_strength={median(strengths):.4g}"
        lines += ["", f"Median motion strength, share of the width per frame: {strength}"]
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
