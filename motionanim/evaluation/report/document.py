"""The content of a report, before it becomes Markdown, LaTeX or HTML."""

from collections.abc import Sequence
from typing import NamedTuple

from motionanim.evaluation.report.blocks import MARKS, Block, Names
from motionanim.evaluation.report.columns import GROUPS, place
from motionanim.evaluation.report.comparisons import paired_table
from motionanim.evaluation.report.paper import LONG, frames_of, paper_table, protocol_table, referee_table
from motionanim.evaluation.report.plots.costs import pareto, sweep_plot
from motionanim.evaluation.report.plots.figure import Plot, main_fvd
from motionanim.evaluation.report.plots.means import differences_plot, forest
from motionanim.evaluation.report.plots.strength import strength_plot
from motionanim.evaluation.report.plots.time import drift_plot
from motionanim.evaluation.report.runs import Run
from motionanim.evaluation.report.strength import curves, strength_table
from motionanim.evaluation.report.tables import DASH, Table, score_tables

LEGEND = (
    "Means over clips, with 95 % intervals in brackets: Student's t over clips within the metric's range, Wilson's "
    "for shares that are equal in all clips, and the jackknife for FVD.",
    "Bold: the best mean among methods of equal benchmark, protocol and number of clips n; also the best of those that "
    "were not given the true motion, and of those that were not given its mask either. Whether a difference is real is "
    "told by the paired differences, not by bold print.",
    "→ real: the nearer to the true clips, clip by clip, the better. Reference rows are never ranked.",
    *(f"{mark}: {told}." for mark, told in MARKS.items()),
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
    """All content of a report except the strips of frames; `left_out` as in `Document`."""
    sections = [_section(block, [b for b in blocks if b.benchmark == block.benchmark], names) for block in blocks]
    runs = list({run.folder: run for block in blocks for run in block.runs}.values())
    tables = [referee_table(runs, names), protocol_table(runs, names)]
    sections.append(Section("For a referee: how everything was measured", tables, [], []))
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
    if block.one_request and (for_paper := paper_table(block, names)) is not None:
        tables.append(for_paper)
    if (paired := paired_table(block, names)) is not None:
        tables.append(paired)
    tables += score_tables(block, names)
    text += [
        f"{names[run.folder]}: {count} of {run.n} {what} have a lower frame rate than is read, so that some frames are "
        "repeated."
        for run in block.runs
        for what, count in (run.record.get("repeated") or {}).items()
        if count
    ]
    if frames_of(block.runs) >= LONG:
        plots.append(drift_plot(block, names))
    plots.append(differences_plot(block, names))
    plots += [forest(block, names, group) for group in GROUPS if group in ("quality", "control", "long")]
    return Section(block.title, tables, [plot for plot in plots if plot is not None], text)


def all_keys(runs: Sequence[Run]) -> list[str]:
    """Every key of the runs' scores, costs and axes, in the order of the tables."""
    keys = {key for run in runs for key in run.scores} | {key for run in runs for key in run.cost}
    return sorted(keys | {f"axes/{axis}" for run in runs for axis in run.axes}, key=place)
