"""Which runs are compared with each other, and how well each does."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from motionanim.evaluation.report.columns import column_of
from motionanim.evaluation.report.runs import Run
from motionanim.evaluation.scores.statistics import mean_interval
from motionanim.metrics.base import Column

Names = Mapping[Path, str]
MARKS = {
    "*": "was given the true motion",
    "†": "was given the mask of what moves in the true clip",
    "‡": "was read from compressed video files, and coding costs PSNR",
}


class Block(NamedTuple):
    """The runs of one table."""

    benchmark: str
    sweep: str | None
    methods: list[Run]
    references: list[Run]  # the reference rows
    baseline: Run  # paired differences are to this run

    @property
    def title(self) -> str:
        return self.benchmark + (f": sweep over {self.sweep}" if self.sweep else "")

    @property
    def runs(self) -> list[Run]:
        return self.methods + self.references

    def real(self, run: Run, key: str) -> Run | None:
        """The reference row of the true clips that was measured as a run was; None if there is none."""
        protocol = run.score(key).protocol
        rows = (row for row in self.references if row.kind == "real" and row.score(key).mean is not None)
        return next((row for row in rows if row.score(key).protocol == protocol), None)

    @property
    def one_request(self) -> bool:
        """Whether the same motion was requested of all rows."""
        return self.sweep != "strength"


def blocks(runs: Sequence[Run], names: Names, against: str | None) -> list[Block]:
    """A block for each benchmark and for each sweep on it, all with the benchmark's reference rows.

    Args:
        runs: In the order of the rows.
        names: Of the runs, by folder.
        against: Name or label of the baseline of paired differences; None takes the first method of each block.

    Raises:
        ValueError: If no run is called `against`, or several of a block's benchmark.
    """
    found = []
    for benchmark in dict.fromkeys(run.benchmark for run in runs):
        here = [run for run in runs if run.benchmark == benchmark]
        references = [run for run in here if run.reference]
        chosen = [run for run in here if names[run.folder] == against] or [run for run in here if run.label == against]
        if len(chosen) > 1:
            raise ValueError(
                f"--against {against!r} names {', '.join(names[run.folder] for run in chosen)}: choose one"
            )
        sweeps = dict.fromkeys(run.sweep for run in here if not run.reference)
        for sweep in sorted(sweeps, key=lambda sweep: (sweep is not None, sweep)) or [None]:
            methods = [run for run in here if not run.reference and run.sweep == sweep]
            if sweep is not None:
                methods.sort(key=lambda run: (run.series, run.score(f"axes/{run.sweep}").mean or 0.0))
            found.append(Block(benchmark, sweep, methods, references, (chosen or methods or references)[0]))
    if against is not None and all(against not in (names[run.folder], run.label) for run in runs):
        raise ValueError(f"--against {against!r}: must be one of {', '.join(names.values())}")
    return found


def why_not_ranked(block: Block, key: str, names: Names) -> str | None:
    """Why the methods' scores cannot be ranked; None if they can."""
    told = next((score.unranked for run in block.methods if (score := run.score(key)).unranked), None)
    if told is not None:
        return told
    scored = [run for run in block.methods if run.score(key).mean is not None]
    if column_of(key).direction == "real" and any(block.real(run, key) is None for run in scored):
        return "the best is the score of the true clips, and no reference row `real` was measured alike"
    terms: dict[tuple[str | None, int], list[str]] = {}
    for run in scored:
        terms.setdefault(run.score(key).terms, []).append(names[run.folder])
    if len(terms) > 1:
        told = (f"protocol {protocol}, n={n}: {', '.join(who)}" for (protocol, n), who in terms.items())
        return "protocol or n differ: " + "; ".join(told)
    return None


def rank(found: Sequence[Block], key: str, names: Names) -> list[Block]:
    """The blocks with their methods ordered by `key`, the best first, those without a score last.

    Raises:
        ValueError: If the scores cannot be compared, the key has no better end, or no run has it.
    """
    column = column_of(key)
    if all(run.score(key).mean is None for block in found for run in block.methods):
        known = dict.fromkeys(key for block in found for run in block.methods for key in run.scores)
        raise ValueError(f"--rank-by {key}: no run has it; choose one of {', '.join(known)}")
    ranked = []
    for block in found:
        if not block.one_request:
            ranked.append(block)
            continue
        if column.direction is None:
            raise ValueError(f"--rank-by {key}: no end of it is the better one; choose another")
        if reason := why_not_ranked(block, key, names):
            raise ValueError(f"--rank-by {key}: {block.title}: {reason}; evaluate them alike, or leave --rank-by out")
        found_losses = {run.folder: loss(run, block, column) for run in block.methods}
        losses = {folder: (found is None, found or 0.0) for folder, found in found_losses.items()}
        ranked.append(block._replace(methods=sorted(block.methods, key=lambda run: losses[run.folder])))
    return ranked


def loss(run: Run, block: Block, column: Column) -> float | None:
    """A run's score on a scale where less is better; None without a score, or where the best is not known.

    Where the best is the score of the true clips, it is the mean over clips of the distance to it: a method that is too
    fast in half of the clips and too slow in the others is not right on average.
    """
    mean = run.score(column.key).mean
    if mean is None or column.direction is None:
        return None
    if column.direction != "real":
        return column.loss(mean)
    real = block.real(run, column.key)
    if real is None:
        return None
    found = mean_interval(distances_to_real(run, real, column).values()).mean
    return found if found == found else None


def distances_to_real(run: Run, real: Run, column: Column) -> dict[str, float]:
    """The distance of each clip's score to that of the true clip, where both have one."""
    true = real.by_clip(column.key)
    return {clip: column.loss(mine, true[clip]) for clip, mine in run.by_clip(column.key).items() if clip in true}


def best(block: Block, column: Column, names: Names) -> set[Path]:
    """Folders of the runs with the best mean: of all, of those without the true motion, and without its mask."""
    if column.direction is None or not block.one_request or why_not_ranked(block, column.key, names):
        return set()
    losses = [(found, run) for run in block.methods if (found := loss(run, block, column)) is not None]
    found: set[Path] = set()
    if len(losses) > 1:
        for level in range(3):
            some = [pair for pair in losses if pair[1].given <= level]
            found |= {run.folder for least, run in some if least == min(pair[0] for pair in some)}
    return found


def row_name(run: Run, names: Names) -> str:
    """The name with its `MARKS`."""
    if run.reference:
        return names[run.folder]
    return names[run.folder] + ("", "†", "*")[run.given] + ("" if run.lossless else "‡")
