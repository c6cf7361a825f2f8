"""The strength curve (Fig. 7): realised against requested motion strength."""

from collections.abc import Sequence
from typing import NamedTuple

from motionanim.evaluation.report.blocks import Block
from motionanim.evaluation.report.runs import Run
from motionanim.evaluation.report.tables import DASH, Cell, Row, Table
from motionanim.evaluation.scores.statistics import LEAST_LEVELS, Interval, mean_interval, strength_spearman
from motionanim.metrics.base import Column

REQUESTED, REALISED = "requested_strength", "realised_strength"
CORRELATION = Column("strength_spearman", "Strength, rank correlation", 3, "higher", "control", range=(-1, 1))


class Curve(NamedTuple):
    """A method at several requested strengths, px per frame."""

    label: str
    levels: int
    clips: dict[str, list[tuple[float, float]]]  # by clip: requested and realised strength at each level, ascending
    correlation: Interval | None  # mean of the clips' rank correlations; None below `LEAST_LEVELS` levels

    @property
    def mean(self) -> list[tuple[float, float]]:
        """Mean requested and realised strength at each level, over the clips that have all levels."""
        whole = [points for points in self.clips.values() if len(points) == self.levels]
        return [(mean_interval(x).mean, mean_interval(y).mean) for x, y in (zip(*level) for level in zip(*whole))]


def curves(runs: Sequence[Run]) -> list[Curve]:
    """A curve for each series of the runs of a strength sweep, if it has scored clips."""
    found = []
    for label in dict.fromkeys(run.series for run in runs):
        here = [run for run in runs if run.series == label]
        clips: dict[str, list[tuple[float, float]]] = {}
        for run in here:
            for clip, row in run.clips.items():
                requested, realised = row.get(REQUESTED), row.get(REALISED)
                if requested is not None and realised is not None:
                    clips.setdefault(clip, []).append((requested, realised))
        clips = {clip: sorted(points) for clip, points in clips.items()}
        enough = [points for points in clips.values() if len({level for level, _ in points}) >= LEAST_LEVELS]
        correlations = [strength_spearman(*zip(*points)) for points in enough]
        correlation = mean_interval(correlations, CORRELATION.range) if enough else None
        if clips:
            found.append(Curve(label, len(here), clips, correlation))
    return found


def strength_table(block: Block, found: Sequence[Curve]) -> Table:
    """Table of the rank correlation of each method."""
    rows = []
    for curve in found:
        cell = Cell(DASH, notes=(1,))
        if curve.correlation is not None and curve.correlation.n:
            mean, low, high, _ = curve.correlation
            interval = f"[{CORRELATION.print(low)}, {CORRELATION.print(high)}]" if low == low else ""
            cell = Cell(CORRELATION.print(mean), interval, value=mean)
        clips, levels = (Cell(str(count), value=count) for count in (len(curve.clips), curve.levels))
        rows.append(Row(curve.label, [clips, levels, cell]))
    missing = any(row.cells[2].notes for row in rows)
    return Table(
        f"{block.title}: realised against requested strength",
        [Cell("clips"), Cell("levels"), Cell(CORRELATION.header)],
        rows,
        [f"needs clips with at least {LEAST_LEVELS} levels that do not all move alike"] if missing else [],
        ["Spearman's rank correlation of each clip, mean over clips."],
    )
