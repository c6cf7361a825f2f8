"""What all plots share: colours, axes and PNG. Okabe and Ito's colours, which the colour-blind can tell apart."""

import io
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from motionanim.evaluation.report.runs import Run, Score
from motionanim.metrics.fvd import is_fvd

# Decorates functions that draw: names of methods may have dollar signs, which would begin a formula.
plain_text = matplotlib.rc_context({"text.parse_math": False})
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
GREY = "#767676"
LONGEST = 48  # letters of a name in a plot
BETTER = {"lower": ", less is better", "higher": ", more is better", "real": ", nearest to real is best", None: ""}
AXES = {"gamma": "γ, share of the steps inherited", "omega": "ω, weight of the fresh noise"}


class Plot(NamedTuple):
    name: str  # of its file
    title: str
    caption: str
    png: bytes


def panels(count: int, across: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure of some panels, at most `across` side by side; width and height in inches."""
    across = min(count, across)
    drawn = Figure(figsize=(width, height), layout="constrained")
    axes = drawn.subplots(-(-count // across), across, squeeze=False).ravel().tolist()
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(alpha=0.25)
        ax.set_axisbelow(True)
    for ax in axes[count:]:
        ax.set_visible(False)
    return drawn, axes[:count]


def png(drawn: Figure) -> bytes:
    buffer = io.BytesIO()
    # Without version and date, so that the same runs give the same bytes.
    drawn.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def reach(score: Score) -> tuple[float, float]:
    """Length of the interval below and above the mean."""
    if score.mean is None or score.low is None or score.high is None:
        return 0.0, 0.0
    return max(score.mean - score.low, 0), max(score.high - score.mean, 0)


def main_fvd(runs: Sequence[Run]) -> str | None:
    """Key of the FVD that most runs have, TensorFlow's I3D before others; None if no run has one."""
    keys = dict.fromkeys(
        key
        for run in runs
        for key, score in run.scores.items()
        if is_fvd(key) and score.mean is not None and score.unranked is None
    )
    count = {key: sum(run.score(key).mean is not None for run in runs) for key in keys}
    order = ("fvd_i3d_ours", "fvd_i3d", "fvd_", "")
    return min(
        keys, key=lambda key: (-count[key], [key.startswith(name) for name in order].index(True), key), default=None
    )


def short_name(name: str) -> str:
    """A name that plots have room for and that legends show: they leave out names that begin with an underscore."""
    name = name if len(name) <= LONGEST else name[: LONGEST - 1] + "…"
    return f" {name}" if name.startswith("_") else name
