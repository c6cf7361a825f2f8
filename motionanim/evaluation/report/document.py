"""The content of a report, before it becomes Markdown, LaTeX or HTML."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from motionanim.evaluation.report.columns import GROUPS, place
from motionanim.evaluation.report.plots import Plot, forest, main_fvd, pareto, strength_plot, sweep_plot
from motionanim.evaluation.report.runs import Run
from motionanim.evaluation.report.strength import curves, strength_table
from motionanim.evaluation.report.tables import (
    DASH,
    Block,
    Cell,
    Names,
    Row,
    Table,
    paired_table,
    row_name,
    score_tables,
)
from motionanim.metrics.fvd import is_fvd

PAPER = Path(__file__).parents[2] / "assets" / "paper.json"
LEGEND = (
    "Means over clips, with 95 % intervals in brackets: Student's t over clips, the jackknife for FVD.",
    "Bold: the best mean among methods of equal benchmark, protocol and number of clips n. If that method saw the true "
    "motion, the best of those that did not is bold too. If protocol or n differ, nothing is bold and a note says so. "
    "The paired differences, not bold print, tell whether a difference is real.",
    "*: the method was given the true motion. Reference rows stand apart and are never ranked.",
    f"{DASH}: no score, for the reason in the note.",
)


class Section(NamedTuple):
    title: str
    tables: list[Table]
    plots: list[Plot]
    text: list[str]


class Document(NamedTuple):
    title: str
    legend: Sequence[str]
    left_out: list[str]  # a line for each run that could not be read
    sections: list[Section]
    runs: list[Run]
    names: Names


def build(blocks: Sequence[Block], names: Names, left_out: list[str]) -> Document:
    """All content of a report except the strips of frames.

    Args:
        blocks: From `tables.blocks`.
        names: Of the runs, by folder.
        left_out: A line for each run that could not be read.
    """
    sections = []
    for benchmark in dict.fromkeys(block.benchmark for block in blocks):
        here = [block for block in blocks if block.benchmark == benchmark]
        sections += [_section(block, here, names) for block in here]
    runs = list({run.folder: run for block in blocks for run in block.runs}.values())
    sections.append(_paper())
    sections.append(_runs(runs, names))
    return Document("Evaluation", LEGEND, left_out, sections, runs, names)


def _section(block: Block, of_benchmark: Sequence[Block], names: Names) -> Section:
    tables: list[Table] = []
    plots: list[Plot | None] = []
    text = []
    if block.sweep == "strength":
        found = curves(block.methods)
        tables.append(strength_table(block, found))
        plots.append(strength_plot(block, found))
    elif block.sweep:
        fvd = main_fvd(block.methods)
        if fvd is None:
            text.append("No run of this sweep has an FVD: the plot shows other numbers.")
        keys = (fvd or "lpips", "seconds" if block.sweep == "gamma" else "flicker", "seam_ratio")
        plots.append(sweep_plot(block, keys))
    elif block is of_benchmark[0]:
        plots.append(pareto(of_benchmark, names))
    tables += score_tables(block, names)
    paired = paired_table(block, names)
    if paired is not None:
        tables.insert(1, paired)
        if any(is_fvd(key) for run in block.runs for key in run.scores):
            text.append("FVD is a number of all clips together and has no paired difference: compare its intervals.")
    for run in block.runs:
        for what, count in (run.record.get("repeated") or {}).items():
            if count:
                text.append(
                    f"{names[run.folder]}: {count} of {run.n} {what} have a lower frame rate than is read, so that "
                    "some frames are repeated."
                )
    plots += [forest(block, names, group) for group in GROUPS if group in ("quality", "control", "long")]
    return Section(block.title, tables, [plot for plot in plots if plot is not None], text)


def _paper() -> Section:
    paper = json.loads(PAPER.read_text(encoding="utf-8"))
    tables = [
        Table(
            f"{table['title']}, as printed in the paper; other data and protocol",
            [Cell(column) for column in table["columns"]],
            [Row(row["name"], [Cell(value or DASH) for value in row["values"]]) for row in table["rows"]],
            [],
            [table["source"]],
        )
        for table in paper["tables"]
    ]
    text = [f"{paper['title']}: not comparable with the tables above.", paper["absent"]]
    return Section("The paper's own numbers", tables, [], text)


def _runs(runs: Sequence[Run], names: Names) -> Section:
    columns = ["folder", "commit", "time", "hardware", "versions"]
    rows = []
    for run in runs:
        versions = run.record.get("versions") or {}
        told = [run.folder.name, *(_plain(run.record.get(key)) for key in columns[1:4]), _plain(versions)]
        rows.append(Row(row_name(run, names), [Cell(text) for text in told], run.reference))
    return Section(
        "Runs", [Table("Folders, versions and hardware", [Cell(column) for column in columns], rows, [], [])], [], []
    )


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    return DASH if value is None else str(value)


def all_keys(runs: Sequence[Run]) -> list[str]:
    """Every key of the runs' scores, costs and axes, in the order of the tables."""
    keys = {key for run in runs for key in run.scores} | {key for run in runs for key in run.cost}
    return sorted(keys | {f"axes/{axis}" for run in runs for axis in run.axes}, key=place)
