"""Runs to tables: what is compared with what, where a best value may be named, and paired differences."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from motionanim.evaluation.report.keys import GROUPS, Key, describe, is_fvd, place
from motionanim.evaluation.report.runs import Run, Score
from motionanim.evaluation.statistics import Interval, mean_interval

Names = Mapping[Path, str]

DASH = "–"
_NO_INTERVAL = "no interval, no correction: with so few clips the bias is unknown, and the order may be chance"


class Cell(NamedTuple):
    text: str
    interval: str = ""
    bold: bool = False
    verdict: str = ""  # better or worse, of a difference
    notes: tuple[int, ...] = ()  # from 1, places in the table's notes
    value: float | None = None  # to sort by


class Row(NamedTuple):
    name: str
    cells: list[Cell]
    control: bool = False


class Table(NamedTuple):
    title: str
    columns: list[Cell]
    rows: list[Row]
    notes: list[str]
    remarks: list[str]  # notes on the whole


class Block(NamedTuple):
    """Runs that stand in one table."""

    benchmark: str
    sweep: str | None
    methods: list[Run]
    controls: list[Run]
    reference: Run  # paired differences are to this run

    @property
    def title(self) -> str:
        return self.benchmark + (f": sweep over {self.sweep}" if self.sweep else "")

    @property
    def runs(self) -> list[Run]:
        return self.methods + self.controls

    @property
    def one_request(self) -> bool:
        """Whether all rows were asked for the same motion."""
        return self.sweep != "strength"


class _Notes(list[str]):
    def number(self, text: str) -> tuple[int, ...]:
        if text not in self:
            self.append(text)
        return (self.index(text) + 1,)


def blocks(runs: Sequence[Run], names: Names, against: str | None) -> list[Block]:
    """A block for each benchmark and one for each sweep on it, all with the benchmark's control rows.

    Args:
        runs: In the order of the rows.
        names: Of the runs, by folder.
        against: Name or label of the run that differences are to; None takes the first method of each block.

    Raises:
        ValueError: If no run is called `against`, or several of a block's benchmark.
    """
    found = []
    for benchmark in dict.fromkeys(run.benchmark for run in runs):
        here = [run for run in runs if run.benchmark == benchmark]
        controls = [run for run in here if run.control]
        chosen = [run for run in here if names[run.folder] == against] or [run for run in here if run.label == against]
        if len(chosen) > 1:
            raise ValueError(
                f"--against {against!r} names {', '.join(names[run.folder] for run in chosen)}: choose one"
            )
        sweeps = dict.fromkeys(run.sweep for run in here if not run.control)
        for sweep in sorted(sweeps, key=lambda sweep: (sweep is not None, sweep)) or [None]:
            methods = [run for run in here if not run.control and run.sweep == sweep]
            if sweep is not None:
                methods.sort(key=lambda run: (run.series, run.score(f"axes/{run.sweep}").mean or 0.0))
            found.append(Block(benchmark, sweep, methods, controls, (chosen or methods or controls)[0]))
    if against is not None and all(against not in (names[run.folder], run.label) for run in runs):
        raise ValueError(f"--against {against!r}: must be one of {', '.join(names.values())}")
    return found


def why_not_ranked(block: Block, key: str, names: Names) -> str | None:
    """Why no best value may be named among the methods' scores, or None if one may."""
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
        ValueError: If some methods' scores cannot be compared, the key has no better end, or nobody has it.
    """
    entry = describe(key)
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
        losses = {folder: (1, 0.0) if mean is None else (0, entry.loss(mean)) for folder, mean in scores.items()}
        ranked.append(block._replace(methods=sorted(block.methods, key=lambda run: losses[run.folder])))
    return ranked


def _best(block: Block, entry: Key, names: Names) -> set[Path]:
    """Runs with the best mean, and with the best of those that did not see the true motion."""
    if entry.direction is None or not block.one_request or why_not_ranked(block, entry.key, names):
        return set()
    losses = [
        (entry.loss(score.mean), run) for run in block.methods if (score := run.score(entry.key)).mean is not None
    ]
    best: set[Path] = set()
    if len(losses) > 1:
        for some in (losses, [pair for pair in losses if not pair[1].saw_motion]):
            best |= {run.folder for loss, run in some if loss == min(pair[0] for pair in some)}
    return best


def row_name(run: Run, names: Names) -> str:
    return names[run.folder] + ("*" if run.saw_motion else "")


def _cell(score: Score, entry: Key, bold: bool, notes: _Notes) -> Cell:
    if score.mean is None:
        return Cell(DASH, notes=notes.number(score.reason or "no reason given"))
    interval = ""
    if score.low is not None and score.high is not None:
        interval = f"[{entry.print(score.low)}, {entry.print(score.high)}]"
    known = () if interval or not is_fvd(entry.key) else notes.number(_NO_INTERVAL)
    return Cell(entry.print(score.mean), interval, bold, notes=known, value=score.mean)


def score_tables(block: Block, names: Names) -> list[Table]:
    """One table for each group of keys, rows as in the block."""
    axes = [f"axes/{axis}" for axis in dict.fromkeys(axis for run in block.methods for axis in run.axes)]
    costs = dict.fromkeys(key for run in block.runs for key in run.cost)
    keys = sorted(dict.fromkeys(key for run in block.runs for key in run.scores), key=place)
    tables = []

    def cell(run: Run, entry: Key, bold: bool, notes: _Notes) -> Cell:
        axis = entry.key.removeprefix("axes/")
        if axis != entry.key and not isinstance(run.axes.get(axis), int | float):
            return Cell(str(run.axes.get(axis, "")))  # a word, or an axis that the method does not have
        return _cell(run.score(entry.key), entry, bold, notes)

    for group, title in GROUPS.items():
        here = [describe(key) for key in keys if describe(key).group == group]
        if group == "cost":
            here += [describe(key) for key in (*axes, *costs)]
        notes, remarks, shown = _Notes(), [], []
        if not block.one_request:
            remarks.append("Not ranked: the rows were asked for different motion.")
        for entry in here:
            scores = [run.score(entry.key) for run in block.runs]
            if entry.key.startswith("axes/") or any(score.mean is not None for score in scores):
                shown.append(entry)
            else:
                reasons = dict.fromkeys(score.reason for score in scores if score.reason)
                remarks.append(f"No row has {entry.name}: {'; '.join(reasons)}.")
        best = {entry.key: _best(block, entry, names) for entry in shown}
        columns = [Cell("clips"), *(_header(entry, block, names, notes) for entry in shown)]
        rows = [
            Row(
                row_name(run, names),
                [
                    Cell(str(run.n), value=run.n),
                    *(cell(run, entry, run.folder in best[entry.key], notes) for entry in shown),
                ],
                run.control,
            )
            for run in block.runs
        ]
        if group == "cost" and len({str(run.record.get("hardware")) for run in block.runs}) > 1:
            remarks.append("Times are from different hardware: compare the calls.")
        if here:
            tables.append(Table(f"{block.title}: {title}", columns, rows if shown else [], notes, remarks))
    return tables


def _header(entry: Key, block: Block, names: Names, notes: _Notes) -> Cell:
    reasons = []
    if entry.direction is not None and (reason := why_not_ranked(block, entry.key, names)):
        reasons.append(f"Not ranked, {reason}.")
    if entry.remark:
        reasons.append(f"{entry.name}: {entry.remark}.")
    return Cell(entry.header, notes=sum((notes.number(reason) for reason in reasons), ()))


def difference(run: Run, reference: Run, entry: Key) -> Interval | str:
    """Mean of run minus reference over the clips that both have, with its 95 % interval; or why there is none.

    A score near 1 where 1 is best counts by its distance to 1.
    """
    ours, theirs = run.score(entry.key).protocol, reference.score(entry.key).protocol
    if ours != theirs:
        return f"protocol {ours}, the reference has {theirs}"
    apart = entry.loss if entry.direction == "one" else float
    common = ((row.get(entry.key), reference.clips.get(clip, {}).get(entry.key)) for clip, row in run.clips.items())
    found = mean_interval(
        apart(mine) - apart(other) for mine, other in common if mine is not None and other is not None
    )
    return "fewer than 2 common clips with finite scores" if math.isnan(found.low) else found


def verdict(run: Run, reference: Run, entry: Key, found: Interval) -> str:
    """Better or worse where 0 is outside the interval and neither run is a control row; else nothing."""
    if run.control or reference.control or found.low <= 0 <= found.high:
        return ""
    return "better" if (found.mean > 0) == (entry.direction == "higher") else "worse"


def paired_entries(block: Block) -> list[Key]:
    """Keys with a better end that single clips of the block have; none where rows were asked for different motion."""
    if not block.one_request:
        return []
    others = [run for run in block.runs if run.folder != block.reference.folder]
    theirs = {key for run in others for row in run.clips.values() for key in row}
    keys = {key for row in block.reference.clips.values() for key in row} & theirs
    entries = map(describe, sorted(keys, key=place))
    return [entry for entry in entries if entry.direction and entry.group != "frame0"]


def paired_table(block: Block, names: Names) -> Table | None:
    """Differences of each row to the block's reference; None where there is nothing to compare."""
    reference, notes, rows = block.reference, _Notes(), []
    entries = paired_entries(block)
    for run in block.runs:
        if run.folder != reference.folder:
            cells = [_difference_cell(run, reference, entry, notes) for entry in entries]
            rows.append(Row(row_name(run, names), cells, run.control))
    if not entries:
        return None
    columns = [Cell(entry.header if entry.direction != "one" else f"|{entry.name} − 1| ↓") for entry in entries]
    remarks = [
        "Row minus reference: mean over the clips that both have [95 % interval by Student's t]. An interval without 0 "
        "says better or worse; of 20 intervals around no difference, one does so too."
    ]
    return Table(f"{block.title}: paired differences to {row_name(reference, names)}", columns, rows, notes, remarks)


def _difference_cell(run: Run, reference: Run, entry: Key, notes: _Notes) -> Cell:
    found = difference(run, reference, entry)
    if isinstance(found, str):
        return Cell(DASH, notes=notes.number(found))
    mean, low, high = (entry.print(value, sign=True) for value in found[:3])
    count = "" if found.n == run.n == reference.n else f", n={found.n}"
    said = verdict(run, reference, entry, found)
    return Cell(mean, f"[{low}, {high}]{count}", bool(said), said, value=found.mean)
