"""Show the results of benchmarks/gpu.py as a Markdown report and as a short summary."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpu_parts.results import read_rows, show
from motionanim.files import atomic_path

Rows = Mapping[str, Mapping[str, Any]]
UNITS = {
    "s": "s", "floor_s": "floor, s", "of_floor": "floor / measured", "tflop": "TFLOP", "gib": "peak, GiB",
    "s_per_segment": "s a segment", "s_per_clip": "s a clip",
}  # fmt: skip


def report(out: Path, notes: Mapping[str, str]) -> None:
    """Write `out`/report.md from the files of the parts; `notes` holds the failures by part."""
    machine, tests, scale, train = (
        read_rows(out / f"{part}.json") for part in ("machine", "tests", "full_scale", "train")
    )
    found = machine.get("machine", {})
    lines = [f"# {found.get('card', 'GPU')}", "", f"By `python benchmarks/gpu.py`, {time.strftime('%Y-%m-%d')}.", ""]
    lines += [f"- {part}: {failed}" for part, failed in notes.items()]
    lines += ["", "## Machine", "", "| what | value |", "|---|---|"]
    lines += [f"| {name} | {show(value)} |" for name, value in found.items()]
    lines += [f"| {line[0]} | {line[1]} |" for line in _ceilings(machine)]
    lines += ["", f"## Tests: {_outcomes(tests)}", "", "| test | outcome | error | tolerance |", "|---|---|---|---|"]
    lines += [
        f"| {name.rpartition('/')[2]} | {row.get('outcome', '')} {row.get('failed', '')} | {_cell(row, 'error')} "
        f"| {_cell(row, 'tolerance')} |"
        for name, row in tests.items()
    ]
    attention = {name: row for name, row in scale.items() if name.startswith("attention")}
    sizes = {name: row for name, row in scale.items() if name not in attention}
    size = "Stable Video Diffusion's size" if "multiprocessors" in found else "the embedded base's size, on a CPU"
    lines += ["", f"## Full scale: {size}, random weights", "", *_table(sizes)]
    lines += ["", "| attention | ms | error |", "|---|---|---|"]
    lines += [
        f"| {name.removeprefix('attention, ')} | {row.get('failed') or show(1e3 * row['seconds'])} "
        f"| {_cell(row, 'error')} |"
        for name, row in attention.items()
    ]
    lines += ["", "## Training of the embedded base", "", "| what | value |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in _training(train)]
    with atomic_path(out / "report.md") as path:
        path.write_text("\n".join([*lines, ""]), encoding="utf-8")


def summary(out: Path, notes: Mapping[str, str], *, minutes: float) -> list[str]:
    """The summary, at most 40 lines."""
    machine, tests, scale, train = (
        read_rows(out / f"{part}.json") for part in ("machine", "tests", "full_scale", "train")
    )
    rows: list[tuple[str, str]] = [
        ("machine", str(machine.get("machine", {}).get("card", "not measured"))), *_ceilings(machine),
        ("tests", _outcomes(tests)),
    ]  # fmt: skip
    plain = [(name, row) for name, row in scale.items() if not name.startswith("attention")]
    rows += [(name, _figure(row)) for name, row in plain[:22]]
    failed = [name for name, row in scale.items() if name.startswith("attention") and "failed" in row]
    rows.append(("attention", f"{len(failed)} of {len(scale) - len(plain)} calls failed"))
    rows += _training(train)[:8]
    rows = [*notes.items(), *rows]
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {value}"[:160] for name, value in rows[:37]]
    return ["", f"{minutes:.1f} minutes; everything is in {out / 'report.md'}", *lines]


def _ceilings(machine: Rows) -> list[tuple[str, str]]:
    lines = []
    for name, row in machine.items():
        if "bytes_per_s" in row:
            lines.append(("copy, read and written", f"{row['bytes_per_s'] / 1e9:.0f} GB/s"))
        elif "flop_per_s" in row:
            lines.append((f"matrix product, {name.removeprefix('matmul ')}", f"{row['flop_per_s'] / 1e12:.3g} TFLOP/s"))
    return lines


def _outcomes(tests: Rows) -> str:
    outcomes = [row.get("outcome") for row in tests.values()]
    text = ", ".join(f"{outcomes.count(kind)} {kind}" for kind in ("passed", "failed", "skipped") if kind in outcomes)
    return (text or "none ran") + (f"; {tests['cut']['failed']}" if "cut" in tests else "")


def _figure(row: Mapping[str, Any]) -> str:
    if "failed" in row:
        return row["failed"]
    text = f"{row['s']:.3g} s"
    if "floor_s" in row:
        text += f", floor {row['floor_s']:.3g} s ({row['floor_s'] / row['s']:.2f})"
    return text + (f", {row['gib']:.1f} GiB" if "gib" in row else "")


def _table(rows: Rows) -> list[str]:
    lines = ["| what | " + " | ".join(UNITS.values()) + " | else |", "|---" * (len(UNITS) + 2) + "|"]
    for name, row in rows.items():
        values = dict(row)
        if values.get("s") and "floor_s" in values:
            values["of_floor"] = values["floor_s"] / values["s"]
        rest = ", ".join(f"{key} {show(value)}" for key, value in values.items() if key not in (*UNITS, "failed"))
        cells = " | ".join(_cell(values, key) for key in UNITS)
        lines.append(f"| {name} | {cells} | {values.get('failed') or rest} |")
    return lines


def _cell(row: Mapping[str, Any], key: str) -> str:
    return show(row[key]) if key in row else ""


def _training(train: Rows) -> list[tuple[str, str]]:
    lines: list[tuple[str, str]] = []
    if held_out := train.get("held-out loss"):
        lines.append(("held-out loss, shipped weights", f"{held_out['shipped']:.4f}"))
        for when in ("before", "after"):
            of = held_out[when]
            free = f"; {of['without_field']:.4f} without a field" if "without_field" in of else ""
            lines.append((f"held-out loss, {when}", f"{of['loss']:.4f} on {of['clips']} clips{free}"))
    if total := train.get("total"):
        lines.append(
            (
                "trained",
                f"{total['steps']} steps, {total['clips']} clips, {total['minutes']:.1f} min, {total['calls']} calls",
            )
        )
    for name, value in train.get("speed", {}).items():
        shown = ", ".join(f"{k}: {show(v)}" for k, v in value.items()) if isinstance(value, dict) else show(value)
        if shown:
            lines.append((name.replace("_", " "), shown))
    return lines
