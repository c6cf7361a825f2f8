"""Reads the folders that evaluations leave: result.json and clips.jsonl."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from motionanim.evaluation.report.columns import column_of, place
from motionanim.evaluation.scores.statistics import mean_interval
from motionanim.evaluation.vbench.scores import scores_of

FORMAT = 2


class Score(NamedTuple):
    """A number of a run; None where there is none."""

    mean: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    protocol: str | None = None
    reason: str | None = None  # why there is no number
    unranked: str | None = None  # why the number must not be ranked

    @property
    def terms(self) -> tuple[str | None, int]:
        """Scores can be compared if these are equal."""
        return self.protocol, self.n


class Run(NamedTuple):
    """A method on a benchmark."""

    folder: Path
    label: str
    benchmark: str
    n: int  # clips
    reference: bool  # a reference row, never ranked
    saw_motion: bool  # was given the true motion
    saw_mask: bool  # was given the true mask
    lossless: bool  # its frames were never in a compressed file
    sweep: str | None  # the axis of `axes` that its sweep varies
    axes: dict[str, Any]
    scores: dict[str, Score]
    cost: dict[str, float | None]  # per clip
    clips: dict[str, dict[str, float | None]]  # scores of each clip, by clip and key
    record: dict[str, Any]  # all of result.json

    def score(self, key: str) -> Score:
        """A score by key: of a metric, of `cost`, or of `axes` as axes/NAME."""
        if key in self.scores:
            return self.scores[key]
        if key.startswith("axes/"):
            return Score(_number(self.axes.get(key.removeprefix("axes/"))), n=self.n, reason="")
        if key in self.cost:
            return Score(self.cost[key], n=self.n, reason="not measured")
        return Score(None, reason="not among the metrics of this run")

    def by_clip(self, key: str) -> dict[str, float]:
        """The scores of the clips that have one."""
        return {clip: row[key] for clip, row in self.clips.items() if row.get(key) is not None}

    @property
    def given(self) -> int:
        """What of the true clip it was given: 2 its motion, 1 its mask, 0 neither."""
        return 2 if self.saw_motion else int(self.saw_mask)

    @property
    def paired(self) -> bool:
        """Whether a clip and a true clip of one name belong together."""
        return bool(self.record["reading"].get("paired", True))

    @property
    def given_videos(self) -> bool:
        """Whether it is a folder of videos, of which only its method.json tells how they were made."""
        return "side" in (self.record.get("identity") or {})

    @property
    def made_on(self) -> str | None:
        """The machine that made the videos; None if that is not known."""
        return None if self.given_videos else self.record.get("hardware")

    @property
    def kind(self) -> str | None:
        """Which reference row it is: "real", "static_copy" ...; None for methods."""
        return self.record["settings"].get("kind") if self.reference else None

    @property
    def series(self) -> str:
        """The label without the value of the swept axis, which the runs of one sweep have in common."""
        if self.sweep is None:
            return self.label
        value = r"[,;]?\s*\b" + re.escape(self.sweep) + r"\b\s*[=:]?\s*[-+]?[\d.]+(e[-+]?\d+)?"
        return re.sub(value, "", self.label).strip() or self.label

    @property
    def strips(self) -> dict[str, Path]:
        """Pictures by clip, the true frames above the made ones. Those of an earlier run may lie beside them."""
        places = {clip: self.folder / "strips" / f"{name}.png" for clip, name in self.record["pictures"].items()}
        return {clip: place for clip, place in places.items() if place.is_file()}


def _number(value: Any) -> float | None:
    """The value as a float; None if it is NaN or no number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        return None
    return float(value)


def _score(entry: dict[str, Any]) -> Score:
    numbers = (_number(entry[part]) for part in ("mean", "low", "high"))
    return Score(*numbers, int(entry["n"]), entry["protocol"], entry["reason"], entry.get("unranked"))


def _read_clips(path: Path, keys: list[str], protocols: dict[str, str]) -> dict[str, dict[str, float | None]]:
    """Scores by clip, from the rows with the summary's keys and protocols; the later of two rows of a clip counts.

    Other rows are of earlier runs, or of a run that is measuring again.
    """
    n, wanted = len(keys), set(keys)
    lines = path.read_bytes().split(b"\n")
    if lines[-1]:
        raise ValueError(f"{path}: its last line is cut short; run the evaluation again to resume it")
    clips: dict[str, dict[str, float | None]] = {}
    for number, line in enumerate(lines[:-1], start=1):
        try:
            row = json.loads(line)
            values = {key: _number(value) for key, value in row["metrics"].items()}
            if row["key"] in wanted and protocols.items() <= row["protocols"].items():
                clips[str(row["clip"])] = values
        except (ValueError, KeyError, TypeError, AttributeError):
            if line == b"" or not line.endswith(b"}"):
                continue  # cut short by a kill; if the clip was not made again, the count below tells
            raise ValueError(f"{path} line {number} is no row of an evaluation: evaluate again") from None
    if len(clips) != n:
        raise ValueError(f"{path} holds {len(clips)} clips and result.json counts {n}: evaluate again")
    return clips


def read_run(folder: Path) -> Run:
    """Read a finished run.

    Raises:
        ValueError: If the folder is unfinished, damaged or of another format. The message is one line and names it.
    """
    path = folder / "result.json"
    if not path.is_file():
        raise ValueError(f"{folder} has no result.json: not an evaluation's folder, or one that has not finished")
    try:
        record = json.loads(path.read_bytes())
        found = record["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of an evaluation: run it again") from error
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r} and this version reads {FORMAT}: evaluate again")
    try:
        scores = {key: _score(entry) for key, entry in record["metrics"].items()}
        clips = _read_clips(folder / "clips.jsonl", record["keys"], record["protocols"])
        for key, (protocol, values, reason) in scores_of(folder, record["keys"]).items():
            found = mean_interval(values.values(), column_of(key).range)
            scores[key] = Score(*map(_number, found[:3]), n=found.n, protocol=protocol, reason=reason)
            for clip, value in values.items():
                clips[clip][key] = value
        return Run(
            folder=folder,
            label=str(record["label"]),
            benchmark=str(record["benchmark"]),
            n=int(record["n"]),
            reference=bool(record["reference"]),
            saw_motion=bool(record["saw_motion"]),
            saw_mask=bool(record["saw_mask"]),
            lossless=bool(record["lossless"]),
            sweep=record["sweep"] if record["sweep"] in record["axes"] else None,  # a sweep over a list has no axis
            axes=dict(record["axes"]),
            scores=dict(sorted(scores.items(), key=lambda item: place(item[0]))),
            cost={key: _number(value) for key, value in record["cost"].items()},
            clips=clips,
            record=record,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} misses or misspells {error}: evaluate again") from error
    except FileNotFoundError as error:
        raise ValueError(f"{folder} has no clips.jsonl: evaluate again") from error


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """The run folders among `folders`; a folder that is no run is replaced by the runs inside it.

    Raises:
        ValueError: If a folder does not exist.
    """
    found: list[Path] = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; give folders that evaluate.py left")
        inside = sorted(child for child in folder.iterdir() if _is_run(child))
        found += [folder] if _is_run(folder) or not inside else inside
    return list({folder.resolve(): folder for folder in found}.values())


def _is_run(folder: Path) -> bool:
    return (folder / "result.json").is_file() or (folder / "clips.jsonl").is_file()


def read_runs(folders: Sequence[Path], *, skip_unfinished: bool) -> tuple[list[Run], list[str]]:
    """Read runs.

    Args:
        folders: As in `find_runs`.
        skip_unfinished: Leave out runs that cannot be read instead of raising.

    Returns:
        The runs, and a line for each that was left out.

    Raises:
        ValueError: As `read_run`, or if no run is left.
    """
    runs, left_out = [], []
    for folder in find_runs(folders):
        try:
            runs.append(read_run(folder))
        except ValueError as error:
            if not skip_unfinished:
                raise ValueError(f"{error}; --skip-unfinished leaves it out") from error
            left_out.append(str(error))
    if not runs:
        raise ValueError("no finished run: " + ("; ".join(left_out) or "give folders that evaluate.py left"))
    return runs, left_out


def names(runs: Sequence[Run]) -> dict[Path, str]:
    """A unique name for each run, by folder: its label, followed by its axes or folder if others have that label."""
    found = {}
    for run in runs:
        same = [
            each for each in runs if (each.label, each.benchmark, each.sweep) == (run.label, run.benchmark, run.sweep)
        ]
        axes = [axis for axis in run.axes if any(other.axes.get(axis) != run.axes[axis] for other in same)]
        axes = [run.sweep] if run.sweep in axes else axes
        told = [
            f"{axis}={run.axes[axis]:g}" if _number(run.axes[axis]) is not None else f"{axis}={run.axes[axis]}"
            for axis in axes
        ]
        found[run.folder] = run.label + (f" ({', '.join(told)})" if told else "")
    for run in runs:
        twins = [
            other for other in runs if other.benchmark == run.benchmark and found[other.folder] == found[run.folder]
        ]
        if len(twins) > 1:
            found |= {other.folder: f"{found[other.folder]} [{other.folder.name}]" for other in twins}
    return found
