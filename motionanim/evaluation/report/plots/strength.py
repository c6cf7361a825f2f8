"""Realised against requested motion strength (Fig. 7)."""

from collections.abc import Sequence

from motionanim.evaluation.report.blocks import Block
from motionanim.evaluation.report.plots.figure import COLOURS, GREY, Plot, panels, plain_text, png, short_name
from motionanim.evaluation.report.strength import Curve


@plain_text
def strength_plot(block: Block, found: Sequence[Curve]) -> Plot | None:
    """Realised against requested strength: a panel for each method, thin lines for clips, a thick one for the mean."""
    if not found:
        return None
    columns = min(len(found), 3)
    figure, axes = panels(len(found), columns, 4.2 * columns + 0.3, 4.0 * -(-len(found) // columns))
    most = max(value for curve in found for points in curve.clips.values() for point in points for value in point)
    for index, (ax, curve) in enumerate(zip(axes, found)):
        ax.plot([0, most], [0, most], color=GREY, linestyle="--", linewidth=1, label="as requested")
        for points in curve.clips.values():
            ax.plot(*zip(*points), color=COLOURS[5], linewidth=0.8, alpha=0.6)
        if curve.mean:
            ax.plot(*zip(*curve.mean), color=COLOURS[0], linewidth=2.2, marker="o", markersize=5, label="mean of clips")
        title = short_name(curve.label)
        if curve.correlation is not None and curve.correlation.n:
            title += f"\nrank correlation {curve.correlation.mean:.2f}, {curve.correlation.n} clips"
        ax.set_title(title, fontsize=10)
        ax.set_xlim(0, most * 1.05)
        ax.set_ylim(0, most * 1.05)
        ax.set_xlabel("requested (px/frame)")
        if index % columns == 0:
            ax.set_ylabel("realised (px/frame)")
        ax.legend(fontsize=8, frameon=False, loc="upper left")
    caption = "Realised against requested motion strength; thin lines are clips. The paper's Fig. 7."
    return Plot("strength", block.title, caption, png(figure))
