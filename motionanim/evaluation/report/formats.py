"""A report as Markdown, LaTeX, CSV and HTML."""

import base64
import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from motionanim.evaluation.report.blocks import Block, Names, row_name
from motionanim.evaluation.report.columns import column_of
from motionanim.evaluation.report.comparisons import compare, paired_columns
from motionanim.evaluation.report.document import Document
from motionanim.evaluation.report.paper import FOR_A_PAPER
from motionanim.evaluation.report.runs import Run, Score
from motionanim.evaluation.report.tables import Cell, Table
from motionanim.evaluation.templates import render

# Larger strips shrink to this width and become JPEG: with frames of 1024 x 576 px a page would take hundreds of MB.
_LARGE_BYTES, _WIDEST = 300_000, 1800
_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\to$", "–": "--", "−": "$-$",
    "°": r"$^\circ$", "Δ": r"$\Delta$", "²": r"$^2$", "×": r"$\times$", "≥": r"$\geq$", "…": r"\dots{}",
    "†": r"$\dagger$", "‡": r"$\ddagger$", "γ": r"$\gamma$", "ω": r"$\omega$", "σ": r"$\sigma$",
}  # fmt: skip


def markdown(document: Document, plots: dict[str, str]) -> str:
    """The report as Markdown; `plots` are the paths of the plots' files by "SECTION TITLE/PLOT NAME"."""
    lines = [f"# {document.title}", "", *(f"- {_md(line)}" for line in document.legend), ""]
    if document.left_out:
        lines += ["Left out:", "", *(f"- {_md(line)}" for line in document.left_out), ""]
    for section in document.sections:
        lines += [f"## {_md(section.title)}", ""]
        for text in section.text:
            lines += [_md(text), ""]
        for table in section.tables:
            lines += [*_md_table(table), ""]
        for plot in section.plots:
            lines += [f"![{_md(plot.caption)}]({plots[f'{section.title}/{plot.name}']})", "", _md(plot.caption), ""]
    return "\n".join(lines).rstrip() + "\n"


def _md(text: str) -> str:
    for mark in "\\|*_`[]!#~":
        text = text.replace(mark, "\\" + mark)
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())


def _md_cell(cell: Cell) -> str:
    text = f"**{_md(cell.text)}**" if cell.bold else _md(cell.text)
    notes = f"<sup>{','.join(map(str, cell.notes))}</sup>" if cell.notes else ""
    return " ".join(filter(None, (text + notes, _md(cell.interval), cell.verdict)))


def _md_table(table: Table) -> list[str]:
    lines = [f"### {_md(table.title)}", ""]
    if table.rows:
        lines.append("| | " + " | ".join(map(_md_cell, table.columns)) + " |")
        lines.append("|---|" + "---:|" * len(table.columns))
        for part, rows in table.parts.items():
            if part:
                lines.append(f"| *{_md(part)}* |" + " |" * len(table.columns))
            lines += [f"| {_md(row.name)} | " + " | ".join(map(_md_cell, row.cells)) + " |" for row in rows]
        lines.append("")
    lines += [f"<sup>{number}</sup> {_md(note)}  " for number, note in enumerate(table.notes, start=1)]
    return lines + [f"{_md(remark)}  " for remark in table.remarks]


def latex(document: Document) -> str:
    """The tables as LaTeX, for a document in UTF-8 with the package booktabs."""
    lines = [r"% needs \usepackage{booktabs}"]
    for section in document.sections:
        for table in section.tables:
            lines += _tex_table(table)
    return "\n".join(lines) + "\n"


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in " ".join(text.split()))


def _tex_cell(cell: Cell) -> str:
    text = rf"\textbf{{{_tex(cell.text)}}}" if cell.bold else _tex(cell.text)
    if cell.notes:
        text += rf"$^{{{','.join(map(str, cell.notes))}}}$"
    return text + (rf" {{\scriptsize {_tex(cell.interval)}}}" if cell.interval else "")


def _tex_table(table: Table) -> list[str]:
    lines = ["", r"\begin{table}", r"\centering\small", rf"\caption{{{_tex(table.title)}}}"]
    if table.rows:
        lines.append(rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}")
        lines += [r"\toprule", " & ".join(["", *map(_tex_cell, table.columns)]) + r" \\", r"\midrule"]
        for place, (part, rows) in enumerate(table.parts.items()):
            lines += [r"\midrule"] if place else []
            if part:
                lines.append(rf"\multicolumn{{{len(table.columns) + 1}}}{{l}}{{\textit{{{_tex(part)}}}}} \\")
            # {} first: after the end of a line, LaTeX would read a name that begins with [ or * as an option.
            lines += ["{}" + " & ".join([_tex(row.name), *map(_tex_cell, row.cells)]) + r" \\" for row in rows]
        lines += [r"\bottomrule", r"\end{tabular}"]
    for number, note in enumerate(table.notes, start=1):
        lines.append(rf"\par\footnotesize $^{{{number}}}$ {_tex(note)}")
    lines += [rf"\par\footnotesize {_tex(remark)}" for remark in table.remarks]
    return [*lines, r"\end{table}"]


def comma_separated(blocks: Sequence[Block], names: Names, keys: Sequence[str]) -> str:
    """All numbers at full precision as CSV: a line for each run and key, and one for each paired difference.

    `against` names the baseline of a difference and is empty for a score. Where the true clips' score is best, a
    difference is between distances to it. `p` is adjusted by Holm. A text that a spreadsheet would take for a formula
    begins with an apostrophe.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    who = ["benchmark", "sweep", "run", "label", "reference", "saw_motion", "saw_mask", "lossless"]
    writer.writerow([*who, "key", *Score._fields, "against", "p", "effect", "verdict", "folder"])
    written = set()  # reference rows are in several blocks
    for block in blocks:
        found = {column.key: compare(block, column) for column in paired_columns(block)}
        for run in block.runs:
            if run.folder not in written:
                for key in keys:
                    score = run.score(key)
                    writer.writerow(_texts([*_who(run, names), key, *score, "", None, None, "", run.folder]))
            written.add(run.folder)
            pair = (run.folder, block.baseline.folder)
            if run.folder == block.baseline.folder or pair in written:
                continue
            written.add(pair)
            for key, rows in found.items():
                compared, score = rows[run.folder], run.score(key)
                values = [None, None, None, 0] if compared.difference is None else list(compared.difference[:4])
                effect = None if compared.difference is None else compared.difference.effect
                told = [*values, score.protocol, compared.reason or None, score.unranked, names[block.baseline.folder]]
                told += [compared.p, effect, compared.verdict, run.folder]
                writer.writerow(_texts([*_who(run, names), key, *told]))
    return buffer.getvalue()


def _who(run: Run, names: Names) -> list[object]:
    marks = [int(run.reference), int(run.saw_motion), int(run.saw_mask), int(run.lossless)]
    return [run.benchmark, run.sweep, names[run.folder], run.label, *marks]


def _texts(row: list[object]) -> list[object]:
    row = [str(value) if isinstance(value, Path) else value for value in row]
    return [f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")) else value
            for value in row]  # fmt: skip


def for_a_paper(document: Document) -> tuple[str, str]:
    """The tables for a paper alone, as Markdown and as LaTeX."""
    tables = [table for section in document.sections for table in section.tables if table.title.endswith(FOR_A_PAPER)]
    return tuple("\n".join(line for table in tables for line in kind(table)) + "\n" for kind in (_md_table, _tex_table))


def html(document: Document, strips: int) -> str:
    """The report as one page, with style, script and pictures inside, so that it needs no server.

    It shows at most `strips` strips of frames for each run; all runs of a benchmark show the same clips.
    """
    clips, settings = [], []
    for run in document.runs:
        if shown := list(run.strips.items())[:strips]:
            pictures = [(_picture(path), _caption(run, clip)) for clip, path in shown]
            clips.append((f"{run.benchmark}: {row_name(run, document.names)}", pictures))
        title = f"Settings of {document.names[run.folder]} ({run.folder.name})"
        settings.append((title, json.dumps(run.record.get("settings"), indent=2, sort_keys=True)))
    return render("report/page.html", document=document, clips=clips, settings=settings, data_uri=_data_uri)


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _caption(run: Run, clip: str) -> str:
    """A clip's id and its scores of the quality table."""
    scores = [(column_of(key), value) for key, value in run.clips.get(clip, {}).items() if value is not None]
    text = ", ".join(f"{column.name} {column.print(value)}" for column, value in scores if column.group == "quality")
    return f"{clip}: {text}" if text else clip


def _picture(path: Path) -> str:
    content = path.read_bytes()
    if len(content) <= _LARGE_BYTES:
        return _data_uri(content, "png")
    with Image.open(io.BytesIO(content)) as picture:
        small = picture.convert("RGB")
    small.thumbnail((_WIDEST, _WIDEST))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return _data_uri(buffer.getvalue(), "jpeg")
