"""Paired differences of each row to a baseline on the same clips, and what they say."""

import math
from pathlib import Path
from typing import NamedTuple

from motionanim.evaluation.report.blocks import Block, Names, distances_to_real, row_name
from motionanim.evaluation.report.columns import column_of, place
from motionanim.evaluation.report.runs import Run
from motionanim.evaluation.report.tables import DASH, Cell, Notes, Row, Table, part_of
from motionanim.evaluation.scores.statistics import LEVEL, Difference, fvd_difference, holm, paired_difference
from motionanim.metrics.base import Column
from motionanim.metrics.fvd import fvd_of, is_fvd


class Compared(NamedTuple):
    """A row against the baseline in one column."""

    difference: Difference | None
    reason: str  # why there is no difference; "" if there is one
    p: float  # adjusted by Holm for all rows of the column; NaN for reference rows
    verdict: str  # "better", "worse", or "" if undecided or not asked


def paired_columns(block: Block) -> list[Column]:
    """Columns with a better end in which rows differ from the baseline clip by clip.

    None if different motion was requested of the rows, or their clips are no pairs. An FVD whose bias was removed takes
    the place of the one as published.
    """
    if not block.one_request or not all(run.paired for run in block.runs):
        return []
    others = [run for run in block.runs if run.folder != block.baseline.folder]

    def keys(run: Run) -> set[str]:
        of_clips = {key for row in run.clips.values() for key, value in row.items() if value is not None}
        return of_clips | {key for key, score in run.scores.items() if fvd_of(key) and score.mean is not None}

    shared = keys(block.baseline) & set().union(*map(keys, others)) if others else set()
    shared -= {fvd_of(key) for key in shared if fvd_of(key) != key}
    columns = map(column_of, sorted(shared, key=place))
    return [column for column in columns if column.direction and column.group != "frame0"]


def difference(block: Block, run: Run, column: Column) -> Difference | str:
    """Run minus the block's baseline over their common clips; or why there is none.

    Where the best is the score of the true clips, both count by their distance to it.
    """
    baseline = block.baseline
    ours, theirs = run.score(column.key), baseline.score(column.key)
    for who, score in (("this row", ours), ("the baseline", theirs)):
        if score.mean is None and score.reason:
            return f"{who}: {score.reason}"
    if ours.protocol != theirs.protocol:
        return f"protocol {ours.protocol}, the baseline has {theirs.protocol}"
    if fvd := fvd_of(column.key):
        if ours.unranked or ours.mean is None or theirs.mean is None:
            return ours.unranked or "no FVD"
        if ours.n != theirs.n:
            return f"n={ours.n}, the baseline has n={theirs.n}"
        mine, other = (one.record["metrics"][fvd] for one in (run, baseline))
        numbers = [[math.nan if value is None else value for value in one["left_out"]] for one in (mine, other)]
        found = fvd_difference(
            mine["mean"], numbers[0], other["mean"], numbers[1], mine["share"], ours.n, corrected=fvd != column.key
        )
        return "fewer than 3 groups of clips" if math.isnan(found.low) else found
    real = block.real(run, column.key)
    if column.direction == "real":
        if real is None:
            return "no reference row `real` was measured alike, and its score is the best"
        values, other_values = (distances_to_real(one, real, column) for one in (run, baseline))
    else:
        values, other_values = (one.by_clip(column.key) for one in (run, baseline))
    found = paired_difference(value - other_values[clip] for clip, value in values.items() if clip in other_values)
    return "fewer than 2 common clips with finite scores" if math.isnan(found.low) else found


def compare(block: Block, column: Column) -> dict[Path, Compared]:
    """Every other row against the baseline, by folder.

    A row is better or worse if its p, adjusted for all methods of the column, is below `LEVEL`. Reference rows and FVDs
    with their bias get no verdict.
    """
    others = [run for run in block.runs if run.folder != block.baseline.folder]
    found = {run.folder: difference(block, run, column) for run in others}
    asked = [run.folder for run in others if not (run.reference or block.baseline.reference)]
    p = [math.nan if isinstance(found[folder], str) else found[folder].p for folder in asked]
    adjusted, compared = dict(zip(asked, holm(p))), {}
    for folder, result in found.items():
        if isinstance(result, str):
            compared[folder] = Compared(None, result, math.nan, "")
            continue
        p_value = adjusted.get(folder, math.nan)
        higher = (result.mean > 0) == (column.direction == "higher")
        verdict = ("better" if higher else "worse") if p_value < LEVEL and not is_fvd(column.key) else ""
        compared[folder] = Compared(result, "", p_value, verdict)
    return compared


def paired_table(block: Block, names: Names) -> Table | None:
    """Differences of each row to the block's baseline; None if there is nothing to compare."""
    baseline, notes = block.baseline, Notes()
    columns = paired_columns(block)
    if not columns:
        return None
    compared = {column.key: compare(block, column) for column in columns}
    rows = []
    for run in block.runs:
        if run.folder != baseline.folder:
            cells = [_cell(run, baseline, each, compared[each.key][run.folder], notes) for each in columns]
            rows.append(Row(row_name(run, names), cells, part_of(run)))
    headers = [
        Cell(f"{each.name}: distance to real ↓" if each.direction == "real" else each.header) for each in columns
    ]
    remarks = [
        "Row minus baseline on the same clips [95 % interval: Student's t; for FVD, the jackknife of the difference]. "
        "d: mean difference over its standard deviation; for FVD, the difference as a share of the baseline's.",
        f"Better or worse stands where p, adjusted by Holm for the rows of a column, is below {LEVEL:g}. Without any "
        f"difference a column shows a verdict in at most {100 * LEVEL:g} of 100 evaluations.",
    ]
    if any(is_fvd(column.key) for column in columns):
        remarks.append("FVD as published gets no verdict: with few clips its bias depends on the method.")
    return Table(f"{block.title}: paired differences to {row_name(baseline, names)}", headers, rows, notes, remarks)


def _cell(run: Run, baseline: Run, column: Column, compared: Compared, notes: Notes) -> Cell:
    found = compared.difference
    if found is None:
        return Cell(DASH, notes=notes.number(compared.reason))
    mean, low, high = (column.print(value, sign=True) for value in found[:3])
    count = "" if found.n == run.n == baseline.n else f", n={found.n}"
    effect = ""
    if math.isfinite(found.effect):
        effect = f", {100 * found.effect:+.0f} %" if fvd_of(column.key) else f", d={found.effect:+.2f}"
    return Cell(mean, f"[{low}, {high}]{effect}{count}", bool(compared.verdict), compared.verdict, value=found.mean)
