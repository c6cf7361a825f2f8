"""Turns runs into tables: which runs are compared, which value is best, and paired differences."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from motionanim.evaluation.report.columns import GROUPS, column_of, place
from motionanim.evaluation.report.runs import Run, Score
from motionanim.evaluation.statistics import Interval, mean_interval
from motionanim.metrics.base import Column
from motionanim.metrics.fvd import is_fvd

Names = Mapping[Path, str]

DASH = "–"
_NO_INTERVAL = "no interval, no correction: with so few clips the bias is unknown, and the order may be chance"


class Cell(NamedTuple):
    text: str
    interval: str = ""
    bold: bool = False
    verdict: str = ""  # of a difference: better or worse
    notes: tuple[int, ...] = ()  # numbers of the table's notes, from 1
    value: float | None = None  # to sort by


class Row(NamedTuple):
    name: str
    cells: list[Cell]
    reference: bool = False  # a reference row


class Table(NamedTuple):
    title: str
    columns: list[Cell]
    rows: list[Row]
    notes: list[str]
    remarks: list[str]  # notes on the whole table

    @property
    def numeric(self) -> list[bool]:
        """Whether each column has a number, by which rows can be sorted."""
        return [any(row.cells[place].value is not None for row in self.rows) for place in range(len(self.columns))]


class Block(NamedTuple):
    """The runs of one table."""

    benchmark: str
    sweep: str | None
    methods: list[Run]
    references: list[Run]  # the reference rows
    baseline: Run  # paired differences are to this run

    @property
    def title(self) -> str:
        return self.benchmark + (f": sweep over {self.sweep}" if self.sweep else "")

    @property
    def runs(self) -> list[Run]:
        return self.methods + self.references

    @property
    def one_request(self) -> bool:
        """Whether the same motion was requested of all rows."""
        return self.sweep != "strength"


class _Notes(list[str]):
    def number(self, text: str) -> tuple[int, ...]:
        """The number of a note, which is added if it is new."""
        if text not in self:
            self.append(text)
        return (self.index(text) + 1,)


def blocks(runs: Sequence[Run], names: Names, against: str | None) -> list[Block]:
    """A block for each benchmark and for each sweep on it, all with the benchmark's reference rows.

    Args:
        runs: In the order of the rows.
        names: Of the runs, by folder.
        against: Name or label of the baseline of paired differences; None takes the first method of each block.

    Raises:
        ValueError: If no run is called `against`, or several of a block's benchmark.
    """
    found = []
    for benchmark in dict.fromkeys(run.benchmark for run in runs):
        here = [run for run in runs if run.benchmark == benchmark]
        references = [run for run in here if run.reference]
        chosen = [run for run in here if names[run.folder] == against] or [run for run in here if run.label == against]
        if len(chosen) > 1:
            raise ValueError(
                f"--against {against!r} names {', '.join(names[run.folder] for run in chosen)}: choose one"
            )
        sweeps = dict.fromkeys(run.sweep for run in here if not run.reference)
        for sweep in sorted(sweeps, key=lambda sweep: (sweep is not None, sweep)) or [None]:
            methods = [run for run in here if not run.reference and run.sweep == sweep]
            if sweep is not None:
                methods.sort(key=lambda run: (run.series, run.score(f"axes/{run.sweep}").mean or 0.0))
            found.append(Block(benchmark, sweep, methods, references, (chosen or methods or references)[0]))
    if against is not None and all(against not in (names[run.folder], run.label) for run in runs):
        raise ValueError(f"--against {against!r}: must be one of {', '.join(names.values())}")
    return found


def why_not_ranked(block: Block, key: str, names: Names) -> str | None:
    """Why the methods' scores cannot be ranked; None if they can."""
    terms: dict[tuple[str | None, int], list[str]] = {}
    for run in block.methods:
        score = run.score(key)
        if score.mean is not None:
            terms.setdefault(score.terms, []).append(names[run.folder])
    if len(terms) > 1:
        told = (f"protocol {protocol}, n={n}: {', '.join(who)}" for (protocol, n), who in terms.items())
        return "protocol or n differ: " + "; ".join(told)
    return None


def rank(found: Sequence[Block], key: str, names: Names) -> list[Block]:
    """The blocks with their methods ordered by `key`, the best first, those without a score last.

    Raises:
        ValueError: If the scores cannot be compared, the key has no better end, or no run has it.
    """
    column = column_of(key)
    if all(run.score(key).mean is None for block in found for run in block.methods):
        known = dict.fromkeys(key for block in found for run in block.methods for key in run.scores)
        raise ValueError(f"--rank-by {key}: no run has it; choose one of {', '.join(known)}")
    ranked = []
    for block in found:
        if not block.one_request:
            ranked.append(block)
            continue
        if reason := why_not_ranked(block, key, names):
            raise ValueError(f"--rank-by {key}: {block.title}: {reason}; evaluate them alike, or leave --rank-by out")
        scores = {run.folder: run.score(key).mean for run in block.methods}
        losses = {folder: (1, 0.0) if mean is None else (0, column.loss(mean)) for folder, mean in scores.items()}
        ranked.append(block._replace(methods=sorted(block.methods, key=lambda run: losses[run.folder])))
    return ranked


def _best(block: Block, column: Column, names: Names) -> set[Path]:
    """Folders of the runs with the best mean, overall and among those that did not see the true motion."""
    if column.direction is None or not block.one_request or why_not_ranked(block, column.key, names):
        return set()
    losses = [
        (column.loss(score.mean), run) for run in block.methods if (score := run.score(column.key)).mean is not None
    ]
    best: set[Path] = set()
    if len(losses) > 1:
        for some in (losses, [pair for pair in losses if not pair[1].saw_motion]):
            best |= {run.folder for loss, run in some if loss == min(pair[0] for pair in some)}
    return best


def row_name(run: Run, names: Names) -> str:
    return names[run.folder] + ("*" if run.saw_motion else "")


def _cell(score: Score, column: Column, bold: bool, notes: _Notes) -> Cell:
    if score.mean is None:
        return Cell(DASH, notes=notes.number(score.reason or "no reason given"))
    interval = ""
    if score.low is not None and score.high is not None:
        interval = f"[{column.print(score.low)}, {column.print(score.high)}]"
    known = () if interval or not is_fvd(column.key) else notes.number(_NO_INTERVAL)
    return Cell(column.print(score.mean), interval, bold, notes=known, value=score.mean)


def score_tables(block: Block, names: Names) -> list[Table]:
    """One table for each group of columns, with the rows of the block."""
    axes = [f"axes/{axis}" for axis in dict.fromkeys(axis for run in block.methods for axis in run.axes)]
    costs = dict.fromkeys(key for run in block.runs for key in run.cost)
    keys = sorted(dict.fromkeys(key for run in block.runs for key in run.scores), key=place)
    tables = []

    def cell(run: Run, column: Column, bold: bool, notes: _Notes) -> Cell:
        axis = column.key.removeprefix("axes/")
        if axis != column.key and not isinstance(run.axes.get(axis), int | float):
            return Cell(str(run.axes.get(axis, "")))  # a word, or an axis that the method does not have
        return _cell(run.score(column.key), column, bold, notes)

    for group, title in GROUPS.items():
        here = [column_of(key) for key in keys if column_of(key).group == group]
        if group == "cost":
            here += [column_of(key) for key in (*axes, *costs)]
        notes, remarks, shown = _Notes(), [], []
        if not block.one_request:
            remarks.append("Not ranked: different motion was requested of the rows.")
        for column in here:
            scores = [run.score(column.key) for run in block.runs]
            if column.key.startswith("axes/") or any(score.mean is not None for score in scores):
                shown.append(column)
            else:
                reasons = dict.fromkeys(score.reason for score in scores if score.reason)
                remarks.append(f"No row has {column.name}: {'; '.join(reasons)}.")
        best = {column.key: _best(block, column, names) for column in shown}
        columns = [Cell("clips"), *(_header(column, block, names, notes) for column in shown)]
        rows = [
            Row(
                row_name(run, names),
                [
                    Cell(str(run.n), value=run.n),
                    *(cell(run, column, run.folder in best[column.key], notes) for column in shown),
                ],
                run.reference,
            )
            for run in block.runs
        ]
        if group == "cost" and len({str(run.record.get("hardware")) for run in block.runs}) > 1:
            remarks.append("Times are from different hardware: compare the calls.")
        if here:
            tables.append(Table(f"{block.title}: {title}", columns, rows if shown else [], notes, remarks))
    return tables


def _header(column: Column, block: Block, names: Names, notes: _Notes) -> Cell:
    reasons = []
    if column.direction is not None and (reason := why_not_ranked(block, column.key, names)):
        reasons.append(f"Not ranked, {reason}.")
    if column.remark:
        reasons.append(f"{column.name}: {column.remark}.")
    return Cell(column.header, notes=sum((notes.number(reason) for reason in reasons), ()))


def difference(run: Run, baseline: Run, column: Column) -> Interval | str:
    """Mean of run minus baseline over their common clips, with its 95 % interval; or why there is none.

    A score that is best at 1 counts by its distance to 1.
    """
    ours, theirs = run.score(column.key).protocol, baseline.score(column.key).protocol
    if ours != theirs:
        return f"protocol {ours}, the baseline has {theirs}"
    scale = column.loss if column.direction == "one" else float
    common = ((row.get(column.key), baseline.clips.get(clip, {}).get(column.key)) for clip, row in run.clips.items())
    found = mean_interval(
        scale(mine) - scale(other) for mine, other in common if mine is not None and other is not None
    )
    return "fewer than 2 common clips with finite scores" if math.isnan(found.low) else found


def verdict(run: Run, baseline: Run, column: Column, found: Interval) -> str:
    """Returns "better" or "worse" if 0 is outside the interval and neither run is a reference row; else ""."""
    if run.reference or baseline.reference or found.low <= 0 <= found.high:
        return ""
    return "better" if (found.mean > 0) == (column.direction == "higher") else "worse"


def paired_columns(block: Block) -> list[Column]:
    """Columns with a better end that the block's clips have; none if different motion was requested of the rows."""
    if not block.one_request:
        return []
    others = [run for run in block.runs if run.folder != block.baseline.folder]
    theirs = {key for run in others for row in run.clips.values() for key in row}
    keys = {key for row in block.baseline.clips.values() for key in row} & theirs
    columns = map(column_of, sorted(keys, key=place))
    return [column for column in columns if column.direction and column.group != "frame0"]


def paired_table(block: Block, names: Names) -> Table | None:
    """Differences of each row to the block's baseline; None if there is nothing to compare."""
    baseline, notes, rows = block.baseline, _Notes(), []
    columns = paired_columns(block)
    if not columns:
        return None
    for run in block.runs:
        if run.folder != baseline.folder:
            cells = [_difference_cell(run, baseline, column, notes) for column in columns]
            rows.append(Row(row_name(run, names), cells, run.reference))
    headers = [Cell(each.header if each.direction != "one" else f"|{each.name} − 1| ↓") for each in columns]
    remarks = [
        "Row minus baseline: mean over their common clips [95 % interval by Student's t]. Better or worse stands where "
        "the interval does not contain 0; without any difference, this happens in 1 of 20 intervals."
    ]
    return Table(f"{block.title}: paired differences to {row_name(baseline, names)}", headers, rows, notes, remarks)


def _difference_cell(run: Run, baseline: Run, column: Column, notes: _Notes) -> Cell:
    found = difference(run, baseline, column)
    if isinstance(found, str):
        return Cell(DASH, notes=notes.number(found))
    mean, low, high = (column.print(value, sign=True) for value in found[:3])
    count = "" if found.n == run.n == baseline.n else f", n={found.n}"
    said = verdict(run, baseline, column, found)
    return Cell(mean, f"[{low}, {high}]{count}", bool(said), said, value=found.mean)
