"""Writes a report as Markdown, LaTeX and CSV."""

import csv
import io
from collections.abc import Sequence

from motionanim.evaluation.report.document import Document
from motionanim.evaluation.report.runs import Run, Score
from motionanim.evaluation.report.tables import Block, Cell, Names, Table, difference, paired_columns

_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", "↑": r"$\uparrow$", "↓": r"$\downarrow$", "→": r"$\to$", "–": "--", "−": "$-$",
    "°": r"$^\circ$", "γ": r"$\gamma$", "ω": r"$\omega$", "σ": r"$\sigma$",
}  # fmt: skip


def markdown(document: Document, plots: dict[str, str]) -> str:
    """The report as Markdown.

    Args:
        document: The report.
        plots: Path of each plot's file, by "SECTION TITLE/PLOT NAME".
    """
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
    for mark in "\\|*_`":
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
        apart = False
        for row in table.rows:
            if row.reference and not apart:
                lines.append("| *reference rows* |" + " |" * len(table.columns))
                apart = True
            lines.append(f"| {_md(row.name)} | " + " | ".join(map(_md_cell, row.cells)) + " |")
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
    return "".join(_TEX.get(letter, letter) for letter in text)


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
        for index, row in enumerate(table.rows):
            if row.reference and index and not table.rows[index - 1].reference:
                lines.append(r"\midrule")
            name = rf"\textit{{{_tex(row.name)}}}" if row.reference else _tex(row.name)
            lines.append(" & ".join([name, *map(_tex_cell, row.cells)]) + r" \\")
        lines += [r"\bottomrule", r"\end{tabular}"]
    for number, note in enumerate(table.notes, start=1):
        lines.append(rf"\par\footnotesize $^{{{number}}}$ {_tex(note)}")
    lines += [rf"\par\footnotesize {_tex(remark)}" for remark in table.remarks]
    return [*lines, r"\end{table}"]


def comma_separated(blocks: Sequence[Block], names: Names, keys: Sequence[str]) -> str:
    """All numbers at full precision as CSV: a line for each run and key, and one for each paired difference.

    `against` names the baseline of a difference and is empty for a score. Where 1 is best, a difference is between
    distances to 1.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    who = ["benchmark", "sweep", "run", "label", "reference", "saw_motion"]
    writer.writerow([*who, "key", *Score._fields, "against", "folder"])
    written = set()  # reference rows are in several blocks
    for block in blocks:
        for run in block.runs:
            if run.folder not in written:
                for key in keys:
                    score = run.score(key)
                    writer.writerow([*_who(run, names), key, *score, "", run.folder])
            written.add(run.folder)
            pair = (run.folder, block.baseline.folder)
            if run.folder == block.baseline.folder or pair in written:
                continue
            written.add(pair)
            for column in paired_columns(block):
                found = difference(run, block.baseline, column)
                values, reason = ([None, None, None, 0], found) if isinstance(found, str) else (list(found), None)
                protocol, against = run.score(column.key).protocol, names[block.baseline.folder]
                writer.writerow([*_who(run, names), column.key, *values, protocol, reason, against, run.folder])
    return buffer.getvalue()


def _who(run: Run, names: Names) -> list[object]:
    return [run.benchmark, run.sweep, names[run.folder], run.label, int(run.reference), int(run.saw_motion)]
