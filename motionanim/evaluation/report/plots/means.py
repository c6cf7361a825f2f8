"""Means of all rows with their intervals, and differences to the baseline."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from motionanim.evaluation.report.blocks import Block, Names, row_name, why_not_ranked
from motionanim.evaluation.report.columns import column_of, place
from motionanim.evaluation.report.comparisons import compare, paired_columns
from motionanim.evaluation.report.plots.figure import (
    BETTER,
    COLOURS,
    GREY,
    Plot,
    panels,
    plain_text,
    png,
    reach,
    short_name,
)
from motionanim.evaluation.report.runs import Run


def _panels(runs: Sequence[Run], names: Names, count: int, *, above: float, line: float) -> tuple[Figure, list[Axes]]:
    """Panels, four in a row, with a line for each run. The first panel of a row shows the names. Lengths in inches."""
    called = [short_name(row_name(run, names)) for run in runs]
    across = min(count, 4)
    width = 0.085 * max(map(len, called)) + 0.4
    height = -(-count // across) * (above + line * len(runs))
    figure, axes = panels(count, across, width + 2.6 * across, max(height, 0.9 + above))
    for index, ax in enumerate(axes):
        ax.set_ylim(len(runs) - 0.5, -0.5)
        ax.set_yticks(range(len(runs)), called if index % across == 0 else [])
        ax.tick_params(axis="y", length=0)
        ax.xaxis.set_major_locator(MaxNLocator(4))
    return figure, axes


@plain_text
def forest(block: Block, names: Names, group: str) -> Plot | None:
    """Means with their intervals: a panel for each column of a group, a line for each row."""
    keys = sorted({key for run in block.runs for key, score in run.scores.items() if score.mean is not None}, key=place)
    numbers = [column_of(key) for key in keys if column_of(key).group == group]
    if not numbers:
        return None
    figure, axes = _panels(block.runs, names, len(numbers), above=0.9, line=0.27)
    for ax, column in zip(axes, numbers):
        for y, run in enumerate(block.runs):
            score = run.score(column.key)
            if score.mean is not None:
                colour = GREY if run.reference else COLOURS[0]
                ax.errorbar(
                    score.mean, y, xerr=np.array(reach(score))[:, None], color=colour, capsize=3,
                    marker="D" if run.reference else "o", markersize=5, linestyle="none",
                )  # fmt: skip
        if block.methods and block.references:
            ax.axhline(len(block.methods) - 0.5, color=GREY, linewidth=0.8)
        real = next((real for run in block.methods if (real := block.real(run, column.key))), None)
        if column.direction == "real" and real is not None:
            ax.axvline(real.score(column.key).mean, color=GREY, linewidth=0.8, linestyle="--")
        ax.margins(x=0.12)
        unlike = "not ranked" if why_not_ranked(block, column.key, names) else ""
        ax.set_title(column.label, fontsize=10)
        ax.set_xlabel(
            unlike or BETTER[column.direction].strip(", "), fontsize=8.5, color="#B00020" if unlike else "#444444"
        )
    caption = "Means with 95 % intervals. Grey diamonds: reference rows."
    return Plot(f"forest-{group}", f"{block.title}: means", caption, png(figure))


@plain_text
def differences_plot(block: Block, names: Names) -> Plot | None:
    """Differences of the methods to the baseline: a panel for each quality and long-video column."""
    columns = [column for column in paired_columns(block) if column.group in ("quality", "long")]
    runs = [run for run in block.methods if run.folder != block.baseline.folder]
    found = {column.key: compare(block, column) for column in columns}
    columns = [c for c in columns if any(found[c.key][run.folder].difference is not None for run in runs)]
    if not runs or not columns or block.baseline.reference:
        return None
    figure, axes = _panels(runs, names, len(columns), above=1.0, line=0.3)
    for ax, column in zip(axes, columns):
        for y, run in enumerate(runs):
            compared = found[column.key][run.folder]
            if compared.difference is None:
                continue
            mean, low, high = compared.difference[:3]
            colour = {"better": COLOURS[2], "worse": COLOURS[1], "": GREY}[compared.verdict]
            ax.errorbar(mean, y, xerr=[[mean - low], [high - mean]], color=colour, marker="o", markersize=6, capsize=3)
        ax.axvline(0, color="#222222", linewidth=0.9)
        ax.margins(x=0.2)
        left, right = ax.get_xlim()
        left, right = min(left, 0), max(right, 0)
        ax.axvspan(*((left, 0) if column.direction == "higher" else (0, right)), color="#f3e4dc", zorder=0, linewidth=0)
        ax.set_xlim(left, right)
        ax.set_title(f"{column.name}\n(distance to real)" if column.direction == "real" else column.label, fontsize=9.5)
    baseline = row_name(block.baseline, names)
    caption = (
        f"Differences to {baseline} on the same clips with 95 % intervals. Green: better, orange: worse, grey: "
        "undecided. The shaded side is the worse one."
    )
    return Plot("differences", f"{block.title}: differences to {baseline}", caption, png(figure))
