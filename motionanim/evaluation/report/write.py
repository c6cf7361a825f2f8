"""Writes the files of a report from run folders."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from motionanim.evaluation.report.blocks import blocks, rank
from motionanim.evaluation.report.document import all_keys, build
from motionanim.evaluation.report.formats import comma_separated, for_a_paper, html, latex, markdown
from motionanim.evaluation.report.runs import find_runs, names, read_runs
from motionanim.files import atomic_path

FILES = ("report.md", "report.csv", "report.tex", "report.html", "paper.md", "paper.tex")


def write_report(
    folders: Sequence[Path],
    out: Path | None,
    *,
    against: str | None = None,
    rank_by: str | None = None,
    skip_unfinished: bool = False,
    strips: int = 4,
) -> Path:
    """Write report.md, report.csv, report.tex, report.html and plots/ into a folder, and paper.md and paper.tex.

    The last two hold the tables for a paper alone.

    Args:
        folders: Run folders, or folders of run folders.
        out: Folder to write; None takes `report` in the folder that the runs have in common.
        against: Name or label of the baseline of paired differences; None takes the first run of each table.
        rank_by: Key to order the rows by, the best first; None keeps the order of `folders`.
        skip_unfinished: Leave out runs that cannot be read, and name them in the report.
        strips: The most strips of frames for each run, at least 0.

    Returns:
        Path of report.html.

    Raises:
        ValueError: If a folder is no finished run, `out` is a file or a run, no run is called `against`, the runs
            cannot be ranked by `rank_by`, or `strips` is negative.
    """
    if strips < 0:
        raise ValueError(f"--strips {strips}: must be at least 0")
    if out is None:
        out = Path(os.path.commonpath([path.resolve().parent for path in find_runs(folders)])) / "report"
    if out.exists() and (not out.is_dir() or (out / "result.json").exists() or (out / "clips.jsonl").exists()):
        raise ValueError(f"--out {out} is a file or a run itself: choose another folder")
    runs, left_out = read_runs(folders, skip_unfinished=skip_unfinished)
    called = names(runs)
    found = blocks(runs, called, against)
    if rank_by is not None:
        found = rank(found, rank_by, called)
    document = build(found, called, left_out)

    plots = {}
    for section in document.sections:
        for plot in section.plots:
            stem = re.sub(r"[^a-z0-9]+", "-", f"{section.title} {plot.name}".lower()).strip("-")
            path = out / "plots" / f"{len(plots) + 1:02}-{stem}.png"
            plots[f"{section.title}/{plot.name}"] = path.relative_to(out).as_posix()
            with atomic_path(path) as temporary:
                temporary.write_bytes(plot.png)
    for stale in (out / "plots").glob("[0-9][0-9]-*.png"):
        if stale.relative_to(out).as_posix() not in plots.values():
            stale.unlink()
    texts = {
        "report.md": markdown(document, plots),
        "report.csv": comma_separated(found, called, all_keys(document.runs)),
        "report.tex": latex(document),
        "report.html": html(document, strips),
        **dict(zip(("paper.md", "paper.tex"), for_a_paper(document))),
    }
    for name, text in texts.items():
        with atomic_path(out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return out / "report.html"
