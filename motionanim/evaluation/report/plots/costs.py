"""Quality against cost, and numbers against the axis of a sweep."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from motionanim.evaluation.report.blocks import Block, Names, row_name
from motionanim.evaluation.report.columns import column_of
from motionanim.evaluation.report.plots.figure import (
    AXES,
    BETTER,
    COLOURS,
    GREY,
    MARKERS,
    Plot,
    main_fvd,
    panels,
    plain_text,
    png,
    reach,
    short_name,
)
from motionanim.evaluation.report.runs import Run, Score


@plain_text
def sweep_plot(block: Block, keys: Sequence[str]) -> Plot | None:
    """Numbers against the swept axis, a panel for each key; a sweep over gamma also shows the sigma of the split.

    The points of a line share series, protocol and n.
    """
    axis = block.sweep or ""
    runs = [run for run in block.methods if run.score(f"axes/{axis}").mean is not None]
    numbers = [column_of(key) for key in keys if any(run.score(key).mean is not None for run in runs)]
    if len(runs) < 2 or not numbers:
        return None
    figure, axes = panels(len(numbers), len(numbers), 4.6 * len(numbers) + 0.4, 4.0)
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
                [x for x, _ in points], [score.mean for _, score in points],
                yerr=np.array([reach(score) for _, score in points]).T,
                label=short_name(label) + (f" (protocol {protocol}, n={n})" if several else ""),
                color=COLOURS[colour % len(COLOURS)], marker=MARKERS[colour % len(MARKERS)], capsize=3,
            )  # fmt: skip
        ax.set_xlabel(AXES.get(axis, axis))
        ax.set_ylabel(column.label + BETTER[column.direction])
        if max(len(labels), len(lines)) > 1:
            ax.legend(fontsize=8, frameon=False)
        if column.group == "cost" and min(score.mean for points in lines.values() for _, score in points) >= 0:
            ax.set_ylim(bottom=0)
        if axis == "gamma":
            _sigma_axis(ax, runs)
    caption = f"Against {axis}, with 95 % intervals where there are any."
    if axis == "gamma":
        caption += " The paper's Fig. 8. Above: the noise level σ at which later segments part from the first."
    return Plot(f"sweep-{axis}", block.title, caption, png(figure))


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


@plain_text
def pareto(found: Sequence[Block], names: Names) -> Plot | None:
    """Quality against cost, for the methods of a benchmark whose quality has the same protocol and n."""
    runs = list({run.folder: run for block in found if block.one_request for run in block.methods}.values())
    quality = main_fvd(runs) or next(
        (key for key in ("lpips", "psnr") if any(run.score(key).mean is not None for run in runs)), None
    )
    if quality is None:
        return None
    column = column_of(quality)
    alike = len({run.made_on for run in runs} - {None}) <= 1
    cost = column_of("seconds" if alike else "calls")
    runs = [run for run in runs if run.score(quality).mean is not None and run.score(cost.key).mean is not None]
    terms = [run.score(quality).terms for run in runs]
    most = max(terms, key=terms.count, default=None)
    shown = [run for run in runs if run.score(quality).terms == most]
    if len(shown) < 2:
        return None
    figure, (ax,) = panels(1, 1, 7.6, 5.0)
    lines: dict[tuple[str, str | None], list[Run]] = {}
    for run in shown:
        lines.setdefault((run.series, run.sweep), []).append(run)
    for index, ((label, sweep), group) in enumerate(lines.items()):
        group.sort(key=lambda run: run.score(f"axes/{sweep}").mean or 0.0)
        looks = (
            {"markersize": 4, "linewidth": 1, "elinewidth": 0.6, "capsize": 2, "alpha": 0.75}
            if sweep
            else {"markersize": 8, "linewidth": 0, "elinewidth": 1.4, "capsize": 3}
        )
        ax.errorbar(
            [run.score(cost.key).mean for run in group], [run.score(quality).mean for run in group],
            yerr=np.array([reach(run.score(quality)) for run in group]).T,
            label=short_name(f"{label}, over {sweep}") if sweep else None,
            color=COLOURS[index % len(COLOURS)], marker=MARKERS[index % len(MARKERS)], **looks,
        )  # fmt: skip
        for run in group:
            ax.annotate(
                f"{run.score(f'axes/{sweep}').mean or 0:g}" if sweep else short_name(row_name(run, names)),
                (run.score(cost.key).mean, run.score(quality).mean), xytext=(6, 5), textcoords="offset points",
                fontsize=7 if sweep else 9, color="#333333",
            )  # fmt: skip
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
    ax.set_ylabel(column.label + BETTER[column.direction])
    ax.legend(fontsize=8, frameon=False)
    caption = f"{column.name} against {cost.name.lower()}, with 95 % intervals."
    if not alike:
        caption += " Calls, not seconds, because the runs are from different hardware."
    if unlike := [row_name(run, names) for run in runs if run not in shown]:
        caption += f" Left out, for another protocol or n: {', '.join(unlike)}."
    return Plot("pareto", f"{found[0].benchmark}: quality against cost", caption, png(figure))
