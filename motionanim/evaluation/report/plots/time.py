"""Numbers of the quarters of a video against time."""

from motionanim.evaluation.report.blocks import Block, Names, row_name
from motionanim.evaluation.report.columns import column_of
from motionanim.evaluation.report.plots.figure import (
    BETTER,
    COLOURS,
    GREY,
    MARKERS,
    Plot,
    panels,
    plain_text,
    png,
    reach,
    short_name,
)
from motionanim.metrics.drift import QUARTERS

_CURVES = {"drift": "Texture drift", "clip_to_first": "CLIP similarity to frame 0"}


@plain_text
def drift_plot(block: Block, names: Names) -> Plot | None:
    """How far each row is from its frame 0 in each quarter of the time, with intervals; reference rows are grey."""
    found = {name: [f"{name}_{end}" for end in QUARTERS] for name in _CURVES}
    shown = [name for name, keys in found.items() if any(run.score(keys[0]).mean is not None for run in block.methods)]
    if not shown:
        return None
    figure, axes = panels(len(shown), len(shown), 7.2 * len(shown), 4.4)
    for ax, name in zip(axes, shown):
        for index, run in enumerate(block.runs):
            scores = [run.score(key) for key in found[name]]
            points = [(end, score) for end, score in zip(QUARTERS, scores) if score.mean is not None]
            if not points or (run.reference and run.kind != "real"):
                continue
            means = [score.mean for _, score in points]
            ends = list(zip(*(reach(score) for _, score in points)))
            place, mark = index % len(COLOURS), (index + index // len(COLOURS)) % len(MARKERS)
            ax.errorbar(
                [end + 0.6 * (index - len(block.runs) / 2) for end, _ in points], means, yerr=ends,
                color=GREY if run.reference else COLOURS[place], marker=MARKERS[mark], capsize=2, elinewidth=0.7,
                linestyle="--" if run.reference else "-", linewidth=2.2 if run.reference else 1.4,
                label=short_name(row_name(run, names)),
            )  # fmt: skip
        ax.set_xticks(QUARTERS, [f"{end} %" for end in QUARTERS])
        ax.set_xlabel("quarter of the video that ends at this share of its time")
        ax.set_ylabel(_CURVES[name] + BETTER[column_of(found[name][0]).direction])
        ax.legend(fontsize=8, frameon=False)
    return Plot(
        "drift",
        f"{block.title}: drift against time",
        "Distance from frame 0 in each quarter of the time, with 95 % intervals. Dashed: the true clips.",
        png(figure),
    )
