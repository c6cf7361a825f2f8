"""The tables of a report, made of cells, with the scores of the compared runs."""

from collections.abc import Sequence
from typing import NamedTuple

from motionanim.evaluation.report.blocks import Block, Names, best, row_name, why_not_ranked
from motionanim.evaluation.report.columns import GROUPS, column_of, place
from motionanim.evaluation.report.runs import Run, Score
from motionanim.metrics.base import Column

DASH = "–"
PRINTED = "as printed in the paper: other clips, other protocol"


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
    part: str = ""  # rows of one part stand together under this title; "" for the methods, which come first


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

    @property
    def parts(self) -> dict[str, list[Row]]:
        """The rows by part."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row.part, []).append(row)
        return found


class Notes(list[str]):
    def number(self, text: str) -> tuple[int, ...]:
        """The number of a note, which is added if it is new."""
        if text not in self:
            self.append(text)
        return (self.index(text) + 1,)


def part_of(run: Run) -> str:
    return "reference rows" if run.reference else ""


def score_cell(score: Score, column: Column, bold: bool, notes: Notes) -> Cell:
    if score.mean is None:
        return Cell(DASH, notes=notes.number(score.reason or "no reason given"))
    interval = ""
    if score.low is not None and score.high is not None:
        interval = f"[{column.print(score.low)}, {column.print(score.high)}]"
    return Cell(column.print(score.mean), interval, bold, value=score.mean)


def score_tables(block: Block, names: Names) -> list[Table]:
    """A table for each group of columns that has a number. The last one says why other groups have none.

    Where no group has a number, one table without rows says why.
    """
    axes = [f"axes/{axis}" for axis in dict.fromkeys(axis for run in block.methods for axis in run.axes)]
    costs = dict.fromkeys(key for run in block.runs for key in run.cost)
    keys = sorted(dict.fromkeys(key for run in block.runs for key in run.scores), key=place)
    tables, without = [], []

    def cell(run: Run, column: Column, bold: bool, notes: Notes) -> Cell:
        axis = column.key.removeprefix("axes/")
        if axis != column.key and not isinstance(run.axes.get(axis), int | float):
            return Cell(str(run.axes.get(axis, "")))  # a word, or an axis that the method does not have
        return score_cell(run.score(column.key), column, bold, notes)

    for group, title in GROUPS.items():
        here = [column_of(key) for key in keys if column_of(key).group == group]
        if group == "cost":
            here += [column_of(key) for key in (*axes, *costs)]
        notes, remarks = Notes(), []
        if not block.one_request:
            remarks.append("Not ranked: different motion was requested of the rows.")
        shown = [column for column in here if _has_number(column, block)]
        remarks += _lacking([column for column in here if column not in shown], block)
        bold = {column.key: best(block, column, names) for column in shown}
        columns = [Cell("clips"), *(header(column, block, names, notes) for column in shown)]
        rows = []
        for run in block.runs:
            cells = [cell(run, column, run.folder in bold[column.key], notes) for column in shown]
            rows.append(Row(row_name(run, names), [Cell(str(run.n), value=run.n), *cells], part_of(run)))
        if group == "cost" and len({run.made_on for run in block.runs} - {None}) > 1:
            remarks.append("Times are from different hardware: compare the calls.")
        if shown:
            tables.append(Table(f"{block.title}: {title}", columns, rows, notes, remarks))
        else:
            without.extend(here)
    if not tables:
        tables.append(Table(f"{block.title}: no numbers", [Cell("clips")], [], [], []))
    tables[-1].remarks.extend(_lacking(without, block))
    return tables


def _has_number(column: Column, block: Block) -> bool:
    return column.key.startswith("axes/") or any(run.score(column.key).mean is not None for run in block.runs)


def _lacking(columns: Sequence[Column], block: Block) -> list[str]:
    """A line for each reason why no row has a column."""
    found: dict[str, list[str]] = {}
    for column in columns:
        reasons = dict.fromkeys(run.score(column.key).reason for run in block.runs)
        found.setdefault("; ".join(filter(None, reasons)) or "no reason given", []).append(column.name)
    return [f"No row has {', '.join(missing)}: {reason}." for reason, missing in found.items()]


def header(column: Column, block: Block, names: Names, notes: Notes) -> Cell:
    reasons = []
    if column.direction is not None and (reason := why_not_ranked(block, column.key, names)):
        reasons.append(f"Not ranked, {reason}.")
    if column.remark:
        reasons.append(f"{column.name}: {column.remark}.")
    return Cell(column.header, notes=sum((notes.number(reason) for reason in reasons), ()))
