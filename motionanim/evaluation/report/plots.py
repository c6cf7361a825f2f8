"""Plots of evaluation runs as PNG, in Okabe and Ito's colours, which the colour-blind can tell apart."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from motionanim.evaluation.report.columns import column_of, place
from motionanim.evaluation.report.runs import Run, Score
from motionanim.evaluation.report.strength import Curve
from motionanim.evaluation.report.tables import Block, Names, row_name, why_not_ranked
from motionanim.metrics.fvd import is_fvd

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
GREY = "#767676"
_BETTER = {"lower": ", less is better", "higher": ", more is better", "one": ", 1 is best", None: ""}
_AXES = {"gamma": "γ, share of the steps inherited", "omega": "ω, weight of the fresh noise"}


class Plot(NamedTuple):
    name: str  # of its file
    title: str
    caption: str
    png: bytes


def _figure(columns: int, rows: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
        ax.set_axisbelow(True)
    return figure, axes


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without version and date, so that the same runs give the same bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def _reach(score: Score) -> tuple[float, float]:
    """Length of the interval below and above the mean."""
    if score.mean is None or score.low is None or score.high is None:
        return 0.0, 0.0
    return max(score.mean - score.low, 0), max(score.high - score.mean, 0)


def main_fvd(runs: Sequence[Run]) -> str | None:
    """Key of the FVD that most runs have, I3D's before others; None if no run has one."""
    keys = dict.fromkeys(
        key for run in runs for key, score in run.scores.items() if is_fvd(key) and score.mean is not None
    )
    count = {key: sum(run.score(key).mean is not None for run in runs) for key in keys}
    return min(keys, key=lambda key: (-count[key], "i3d" not in key, key), default=None)


def forest(block: Block, names: Names, group: str) -> Plot | None:
    """Means with their intervals: a panel for each column of a group, a line for each row."""
    keys = sorted({key for run in block.runs for key, score in run.scores.items() if score.mean is not None}, key=place)
    numbers = [column_of(key) for key in keys if column_of(key).group == group]
    if not numbers:
        return None
    rows, count = block.runs, len(numbers)
    columns = min(count, 4)
    lines = -(-count // columns)
    name_width = 0.085 * max(len(row_name(run, names)) for run in rows) + 0.4
    height = lines * (0.9 + 0.27 * len(rows))
    figure, axes = _figure(columns, lines, name_width + 2.6 * columns, max(height, 1.8))
    for index, (ax, column) in enumerate(zip(axes, numbers)):
        for y, run in enumerate(rows):
            score = run.score(column.key)
            if score.mean is not None:
                colour = GREY if run.reference else COLOURS[0]
                ax.errorbar(
                    score.mean, y, xerr=np.array(_reach(score))[:, None], color=colour, capsize=3,
                    marker="D" if run.reference else "o", markersize=5, linestyle="none",
                )  # fmt: skip
        if block.methods and block.references:
            ax.axhline(len(block.methods) - 0.5, color=GREY, linewidth=0.8)
        if column.direction == "one":
            ax.axvline(1, color=GREY, linewidth=0.8, linestyle="--")
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.set_yticks(range(len(rows)), [row_name(run, names) for run in rows] if index % columns == 0 else [])
        ax.tick_params(axis="y", length=0)
        ax.margins(x=0.12)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        unlike = "protocol or n differ" if why_not_ranked(block, column.key, names) else ""
        ax.set_title(column.label, fontsize=10)
        ax.set_xlabel(
            unlike or _BETTER[column.direction].strip(", "), fontsize=8.5, color="#B00020" if unlike else "#444444"
        )
    for ax in axes[count:]:
        ax.set_visible(False)
    return Plot(
        f"forest-{group}",
        f"{block.title}: means",
        "Means with 95 % intervals. Grey diamonds: reference rows.",
        _png(figure),
    )


def sweep_plot(block: Block, keys: Sequence[str]) -> Plot | None:
    """Numbers against the swept axis, a panel for each key; a sweep over gamma also shows the sigma of the split.

    The points of a line share series, protocol and n.
    """
    axis = block.sweep or ""
    runs = [run for run in block.methods if run.score(f"axes/{axis}").mean is not None]
    numbers = [column_of(key) for key in keys if any(run.score(key).mean is not None for run in runs)]
    if len(runs) < 2 or not numbers:
        return None
    figure, axes = _figure(len(numbers), 1, 4.6 * len(numbers) + 0.4, 4.0)
    labels = list(dict.fromkeys(run.series for run in runs))
    for ax, column in zip(axes, numbers):
        lines: dict[tuple[str, str | None, int], list[tuple[float, Score]]] = {}
        for run in runs:
            score = run.score(column.key)
            if score.mean is not None:
                lines.setdefault((run.series, *score.terms), []).append((float(run.axes[axis]), score))
        for (label, protocol, n), points in lines.items():
            points.sort(key=lambda point: point[0])
            colour = labels.index(label)
            several = sum(key[0] == label for key in lines) > 1
            ax.errorbar(
                [x for x, _ in points],
                [score.mean for _, score in points],
                yerr=np.array([_reach(score) for _, score in points]).T,
                label=label + (f" (protocol {protocol}, n={n})" if several else ""),
                color=COLOURS[colour % len(COLOURS)],
                marker=MARKERS[colour % len(MARKERS)],
                capsize=3,
            )
        ax.set_xlabel(_AXES.get(axis, axis))
        ax.set_ylabel(column.label + _BETTER[column.direction])
        if max(len(labels), len(lines)) > 1:
            ax.legend(fontsize=8, frameon=False)
        if column.group == "cost" and min(score.mean for points in lines.values() for _, score in points) >= 0:
            ax.set_ylim(bottom=0)
        if axis == "gamma":
            _sigma_axis(ax, runs)
    caption = f"Against {axis}, with 95 % intervals where there are any."
    if axis == "gamma":
        caption += " The paper's Fig. 8. Above: the noise level σ at which later segments part from the first."
    return Plot(f"sweep-{axis}", block.title, caption, _png(figure))


def _sigma_axis(ax: Axes, runs: Sequence[Run]) -> None:
    sigmas: dict[float, set[float]] = {}
    for run in runs:
        if (sigma := run.score("axes/sigma").mean) is not None:
            sigmas.setdefault(float(run.axes["gamma"]), set()).add(sigma)
    if sigmas and all(len(found) == 1 for found in sigmas.values()):
        above = ax.secondary_xaxis("top")
        above.set_xticks(
            list(sigmas), [f"{next(iter(found)):.3g}" for found in sigmas.values()], fontsize=8, rotation=45
        )
        above.set_xlabel("σ where segments part", fontsize=9)


def pareto(found: Sequence[Block], names: Names) -> Plot | None:
    """Quality against cost, for the methods of a benchmark whose quality has the same protocol and n."""
    runs = list({run.folder: run for block in found if block.one_request for run in block.methods}.values())
    quality = main_fvd(runs) or next(
        (key for key in ("lpips", "psnr") if any(run.score(key).mean is not None for run in runs)), None
    )
    if quality is None:
        return None
    column = column_of(quality)
    alike = len({str(run.record.get("hardware")) for run in runs}) == 1
    cost = column_of("seconds" if alike else "calls")
    runs = [run for run in runs if run.score(quality).mean is not None and run.score(cost.key).mean is not None]
    terms = [run.score(quality).terms for run in runs]
    most = max(terms, key=terms.count, default=None)
    shown = [run for run in runs if run.score(quality).terms == most]
    if len(shown) < 2:
        return None
    figure, (ax,) = _figure(1, 1, 7.6, 5.0)
    lines: dict[tuple[str, str | None], list[Run]] = {}
    for run in shown:
        lines.setdefault((run.series, run.sweep), []).append(run)
    for index, ((label, sweep), group) in enumerate(lines.items()):
        group.sort(key=lambda run: run.score(f"axes/{sweep}").mean or 0.0)
        ax.errorbar(
            [run.score(cost.key).mean for run in group],
            [run.score(quality).mean for run in group],
            yerr=np.array([_reach(run.score(quality)) for run in group]).T,
            label=f"{label}, over {sweep}" if sweep else None,
            color=COLOURS[index % len(COLOURS)],
            marker=MARKERS[index % len(MARKERS)],
            markersize=4 if sweep else 8,
            linewidth=1 if sweep else 0,
            elinewidth=0.6 if sweep else 1.4,
            capsize=2 if sweep else 3,
            alpha=0.75 if sweep else 1,
        )
        for run in group:
            ax.annotate(
                f"{run.score(f'axes/{sweep}').mean or 0:g}" if sweep else row_name(run, names),
                (run.score(cost.key).mean, run.score(quality).mean),
                xytext=(6, 5),
                textcoords="offset points",
                fontsize=7 if sweep else 9,
                color="#333333",
            )
    points = [(run.score(cost.key).mean or 0.0, run.score(quality).mean or 0.0) for run in shown]
    costs = [x for x, _ in points]
    front, best = [], np.inf
    for x, y in sorted(points, key=lambda point: (point[0], column.loss(point[1]))):
        if column.loss(y) < best:
            best = column.loss(y)
            front.append((x, y))
    front.append((max(costs), front[-1][1]))
    ax.step(*zip(*front), where="post", color=GREY, linestyle="--", linewidth=1, zorder=0, label="best for its cost")
    if min(costs) > 0 and max(costs) > 10 * min(costs):
        ax.set_xscale("log")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter("")
    ax.margins(x=0.18, y=0.12)
    ax.set_xlabel(cost.label + ", less is better")
    ax.set_ylabel(column.label + _BETTER[column.direction])
    ax.legend(fontsize=8, frameon=False)
    caption = f"{column.name} against {cost.name.lower()}, with 95 % intervals."
    if not alike:
        caption += " Calls, not seconds, because the runs are from different hardware."
    if unlike := [row_name(run, names) for run in runs if run not in shown]:
        caption += f" Left out, for another protocol or n: {', '.join(unlike)}."
    return Plot("pareto", f"{found[0].benchmark}: quality against cost", caption, _png(figure))


def strength_plot(block: Block, found: Sequence[Curve]) -> Plot | None:
    """Realised against requested strength: a panel for each method, thin lines for clips, a thick one for the mean."""
    if not found:
        return None
    columns = min(len(found), 3)
    lines = -(-len(found) // columns)
    figure, axes = _figure(columns, lines, 4.2 * columns + 0.3, 4.0 * lines)
    most = max(value for curve in found for points in curve.clips.values() for point in points for value in point)
    for index, (ax, curve) in enumerate(zip(axes, found)):
        ax.plot([0, most], [0, most], color=GREY, linestyle="--", linewidth=1, label="as requested")
        for points in curve.clips.values():
            ax.plot(*zip(*points), color=COLOURS[5], linewidth=0.8, alpha=0.6)
        if curve.mean:
            ax.plot(*zip(*curve.mean), color=COLOURS[0], linewidth=2.2, marker="o", markersize=5, label="mean of clips")
        title = curve.label
        if curve.correlation is not None and curve.correlation.n:
            title += f"\nrank correlation {curve.correlation.mean:.2f}, {curve.correlation.n} clips"
        ax.set_title(title, fontsize=10)
        ax.set_xlim(0, most * 1.05)
        ax.set_ylim(0, most * 1.05)
        ax.set_xlabel("requested (px/frame)")
        if index % columns == 0:
            ax.set_ylabel("realised (px/frame)")
        ax.legend(fontsize=8, frameon=False, loc="upper left")
    for ax in axes[len(found) :]:
        ax.set_visible(False)
    caption = "Realised against requested motion strength; thin lines are clips. The paper's Fig. 7."
    return Plot("strength", block.title, caption, _png(figure))
