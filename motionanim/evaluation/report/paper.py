"""The table for a paper and the tables for its referee."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from motionanim.evaluation.report.blocks import Block, Names, best, row_name
from motionanim.evaluation.report.columns import column_of
from motionanim.evaluation.report.plots.figure import main_fvd
from motionanim.evaluation.report.runs import Run
from motionanim.evaluation.report.tables import DASH, PRINTED, Cell, Notes, Row, Table, header, part_of, score_cell

PAPER = Path(__file__).parents[2] / "assets" / "paper.json"
FOR_A_PAPER = "for a paper"  # end of the title of its table
LONG = 32  # frames from which Table 2 stands beside a benchmark, not Table 1
# The columns of the paper's tables by key, and those without which they crown a frozen or a broken video.
_COLUMNS = ("psnr", "ssim", "lpips", "clip_consistency", "seconds")
_BESIDE = ("direction_error", "speed_gain", "flicker")
_BESIDE_LONG = ("direction_error", "speed_gain", "seam_ratio", "drift_100", "flicker")


def paper_table(block: Block, names: Names) -> Table | None:
    """One figure a cell, to be copied into a paper, with the paper's own numbers underneath; None without figures."""
    long = frames_of(block.runs) >= LONG
    printed = json.loads(PAPER.read_text(encoding="utf-8"))["tables"][1 if long else 0]
    fvd = main_fvd(block.runs)
    keys = [*([fvd] if fvd else []), *_COLUMNS, *(_BESIDE_LONG if long else _BESIDE)]
    columns = [column_of(key) for key in keys if any(run.score(key).mean is not None for run in block.runs)]
    if not columns:
        return None
    notes, bold = Notes(), {each.key: best(block, each, names) for each in columns}
    rows = []
    for run in block.runs:
        cells = [score_cell(run.score(each.key), each, run.folder in bold[each.key], notes) for each in columns]
        rows.append(Row(row_name(run, names), [cell._replace(interval="") for cell in cells], part_of(run)))
    # Another network's FVD has another scale, so the paper's does not stand in its column.
    keys_printed = ["fvd" if column.key.startswith("fvd_i3d") else column.key for column in columns]
    for row in printed["rows"]:
        values = dict(zip(printed["keys"], row["values"]))
        rows.append(Row(row["name"], [Cell(values.get(key, DASH)) for key in keys_printed], PRINTED))
    n = ", ".join(sorted({str(run.n) for run in block.runs}, key=int))
    remarks = [f"n = {n} clips of {frames_of(block.runs)} frames. {printed['source']}"]
    headers = [header(each, block, names, notes) for each in columns]
    return Table(f"{block.title}: {FOR_A_PAPER}", headers, rows, notes, remarks)


def frames_of(runs: Sequence[Run]) -> int:
    """Frames of the longest video."""
    return max(int(run.record["reading"]["num_frames"]) for run in runs)


def referee_table(runs: Sequence[Run], names: Names) -> Table:
    """What every row was given, how its videos were read and made, and by which code on which machine.

    What all rows share is told once, in a remark.
    """
    told = [{name: _plain(value) for name, value in _facts(run).items()} for run in runs]
    shared = {name: text for name, text in told[0].items() if len(told) > 1 and all(t[name] == text for t in told)}
    columns = [name for name in told[0] if name not in shared]
    rows = [
        Row(row_name(run, names), [Cell(facts[name]) for name in columns], part_of(run))
        for run, facts in zip(runs, told, strict=True)
    ]
    known = "; ".join(f"{name}: {text}" for name, text in shared.items() if text != DASH)
    remarks = [f"The same in all rows: {known}."] if known else []
    return Table("Runs", [Cell(name) for name in columns], rows, [], remarks)


def _facts(run: Run) -> dict[str, Any]:
    record, reading = run.record, run.record["reading"]
    identity = record.get("identity") or {}
    told = identity.get("side", identity)  # by a method.json, or by the method
    made = {} if run.given_videos else record
    return {
        "benchmark": run.benchmark, "n": run.n, "frames": reading["num_frames"],
        "size, px": ", ".join(reading.get("sizes") or [f"{reading['width']} x {reading['height']}"]),
        "frames a second": reading.get("taken") or reading["fps"] or "each file's own",
        "another aspect ratio": reading["shape"], "given": _given(run),
        "pixels": "lossless" if run.lossless else "compressed files", "seed": record["seed"],
        "source": told.get("source"), "weights": told.get("weights"), "made on": run.made_on,
        "made with": made.get("made_with"), "made by commit": made.get("commit"),
        "scored by commit": record.get("scored_commit"), "written": record.get("time"), "folder": run.folder.name,
    }  # fmt: skip


def _given(run: Run) -> str | None:
    if run.reference:
        return "the true clip"
    if run.given_videos and not run.given:
        return None
    return ("the first frame, and arrows if it takes them", "first frame, arrows and true mask", "true motion")[
        run.given
    ]


def protocol_table(runs: Sequence[Run], names: Names) -> Table:
    """The settings of every metric and feature extractor, weights included; several rows where runs differ."""
    found: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for name, protocol in (run.record.get("measures") or {}).items():
            found.setdefault((name, _plain(protocol)), []).append(names[run.folder])
    several = [name for name, _ in found]
    rows = []
    for (name, protocol), who in sorted(found.items()):
        told = "all" if several.count(name) == 1 else ", ".join(who)
        rows.append(Row(name, [Cell(protocol), Cell(told)]))
    return Table("Metrics", [Cell("settings"), Cell("of rows")], rows, [], [])


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, value))
    return DASH if value is None else str(value)
