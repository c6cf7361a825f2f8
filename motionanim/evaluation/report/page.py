"""A report as one HTML page that asks nothing of any server: style, script and pictures are inside."""

import base64
import io
import json
from html import escape
from pathlib import Path

from PIL import Image

from motionanim.evaluation.report.document import Document, Section
from motionanim.evaluation.report.keys import describe
from motionanim.evaluation.report.plots import Plot
from motionanim.evaluation.report.runs import Run
from motionanim.evaluation.report.tables import Cell, Table, row_name

# Larger strips are shrunk to this width and become JPEG: a page of 1024 x 576 frames would be hundreds of megabytes.
_LARGE_BYTES, _WIDEST = 300_000, 1800

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; margin: 2rem auto; max-width: 84rem; padding: 0 1.5rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.3rem; margin-top: 3rem; border-bottom: 1px solid #ccc; }
h3 { font-size: 1rem; margin: 1.8rem 0 .4rem; }
nav a { margin-right: 1.2rem; } a { color: #0b57a4; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; }
th, td { padding: .32rem .75rem; text-align: right; vertical-align: top; white-space: nowrap; }
td.words { text-align: left; white-space: normal; max-width: 34rem; }
thead th { border-top: 2px solid #222; border-bottom: 1px solid #222; }
thead th.sorts { cursor: pointer; } thead th.sorts:hover { background: #eef3f8; }
th:first-child { text-align: left; font-weight: 500; position: sticky; left: 0; background: #fff; }
tbody:last-of-type tr:last-child > * { border-bottom: 2px solid #222; }
tbody tr:hover > * { background: #f6f8fa; }
tbody.controls { color: #5a5a5a; } tbody.controls tr:first-child > * { border-top: 1px solid #222; }
.interval { display: block; color: #666; font-size: .78rem; font-weight: 400; }
.best { font-weight: 700; }
.better { color: #00624a; } .worse { color: #a33b00; } .verdict { font-size: .78rem; }
.notes, .legend, figcaption { color: #444; font-size: .83rem; } .notes { margin: .3rem 0 0; }
.paper { background: #faf6ec; border: 1px solid #e2d6b5; padding: .2rem 1.2rem 1rem; margin-top: 3rem; }
.paper h2 { margin-top: .8rem; } .paper th:first-child { background: #faf6ec; }
figure { margin: 1.2rem 0; } figure img, details img { max-width: 100%; }
details { margin: .4rem 0; } summary { cursor: pointer; } pre { font-size: .78rem; overflow-x: auto; }
"""

# A click on a column's head sorts the rows of each body, so that control rows stay apart; no number goes last.
_SCRIPT = """
document.querySelectorAll('th.sorts').forEach(head => head.addEventListener('click', () => {
  const place = head.cellIndex, sign = head.dataset.sign = head.dataset.sign === '1' ? '-1' : '1';
  const value = row => parseFloat(row.cells[place].dataset.value);
  for (const body of head.closest('table').tBodies) {
    const rows = [...body.rows].sort((a, b) => {
      const x = value(a), y = value(b);
      return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : sign * (x - y);
    });
    body.append(...rows);
  }
}));
"""


def html(document: Document, strips: int) -> str:
    """The page.

    Args:
        document: The report.
        strips: Most strips for each run; the same clips for all runs of a benchmark.
    """
    anchors = {section.title: f"s{number}" for number, section in enumerate(document.sections)}
    links = [f'<a href="#{anchor}">{escape(title)}</a>' for title, anchor in anchors.items()]
    pictures = _strips(document, strips)
    links += ['<a href="#strips">Clips</a>'] if pictures else []
    left_out = "".join(f"<li>{escape(line)}</li>" for line in document.left_out)
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        # The browser itself refuses whatever would leave the page.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'; script-src 'unsafe-inline'\">",
        f"<title>{escape(document.title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{escape(document.title)}</h1><nav>{''.join(links)}</nav>",
        f'<ul class="legend">{"".join(f"<li>{escape(line)}</li>" for line in document.legend)}</ul>',
        f"<p>Left out:</p><ul>{left_out}</ul>" if left_out else "",
        *(_section(section, anchors[section.title]) for section in document.sections),
        pictures,
        _settings(document),
        f"<script>{_SCRIPT}</script></body></html>",
    ]
    return "\n".join(filter(None, parts)) + "\n"


def _section(section: Section, anchor: str) -> str:
    parts = [f'<h2 id="{anchor}">{escape(section.title)}</h2>']
    parts += [f"<p>{escape(text)}</p>" for text in section.text]
    for plot in section.plots[:1]:  # the one made for this section goes first, forests go last
        parts.append(_figure(plot))
    parts += [_table(table) for table in section.tables]
    parts += [_figure(plot) for plot in section.plots[1:]]
    return f"<section{' class=paper' if 'paper' in section.title else ''}>{''.join(parts)}</section>"


def _figure(plot: Plot) -> str:
    caption = escape(plot.caption)
    return f'<figure><img alt="{caption}" src="{_data(plot.png, "png")}"><figcaption>{caption}</figcaption></figure>'


def _data(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _notes_of(cell: Cell) -> str:
    return f"<sup>{','.join(map(str, cell.notes))}</sup>" if cell.notes else ""


def _table_cell(cell: Cell, numeric: bool) -> str:
    kind = cell.verdict or ("best" if cell.bold else "" if numeric else "words")
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    interval = f'<span class="interval">{escape(cell.interval)}</span>' if cell.interval else ""
    said = f' <span class="verdict">{cell.verdict}</span>' if cell.verdict else ""
    return f"<td{f' class={kind}' if kind else ''}{value}>{escape(cell.text)}{_notes_of(cell)}{said}{interval}</td>"


def _table(table: Table) -> str:
    parts = [f"<h3>{escape(table.title)}</h3>"]
    if table.rows:
        numeric = [any(row.cells[place].value is not None for row in table.rows) for place in range(len(table.columns))]
        heads = "".join(
            f"<th{' class=sorts title=sort' if sorts else ''}>{escape(column.text)}{_notes_of(column)}</th>"
            for column, sorts in zip(table.columns, numeric)
        )
        bodies = {"methods": "", "controls": ""}
        for row in table.rows:
            cells = "".join(map(_table_cell, row.cells, [sorts or len(row.cells) < 4 for sorts in numeric]))
            bodies["controls" if row.control else "methods"] += f"<tr><th>{escape(row.name)}</th>{cells}</tr>"
        inside = "".join(f"<tbody class={name}>{rows}</tbody>" for name, rows in bodies.items() if rows)
        parts.append(f'<div class="scroll"><table><thead><tr><th></th>{heads}</tr></thead>{inside}</table></div>')
    notes = [f"<sup>{number}</sup> {escape(note)}" for number, note in enumerate(table.notes, start=1)]
    parts += [f'<p class="notes">{"<br>".join(notes + [escape(remark) for remark in table.remarks])}</p>']
    return "".join(parts)


def _strips(document: Document, most: int) -> str:
    parts = []
    for run in document.runs:
        chosen = run.strips[:most]
        if chosen:
            pictures = "".join(
                f'<figure><img alt="" src="{_picture(path)}"><figcaption>{escape(path.stem)}{_clip(run, path.stem)}'
                "</figcaption></figure>"
                for path in chosen
            )
            title = escape(f"{run.benchmark}: {row_name(run, document.names)}")
            parts.append(f"<details><summary>{title}</summary>{pictures}</details>")
    if not parts:
        return ""
    return f'<h2 id="strips">Clips</h2><p>The truth above the result.</p>{"".join(parts)}'


def _clip(run: Run, clip: str) -> str:
    """A clip's own numbers, as far as they have a place in the first table."""
    row = run.clips.get(clip, {})
    told = [(describe(key), value) for key, value in row.items() if value is not None]
    text = ", ".join(f"{entry.name} {entry.print(value)}" for entry, value in told if entry.group == "quality")
    return f": {escape(text)}" if text else ""


def _picture(path: Path) -> str:
    content = path.read_bytes()
    if len(content) <= _LARGE_BYTES:
        return _data(content, "png")
    with Image.open(io.BytesIO(content)) as picture:
        small = picture.convert("RGB")
    small.thumbnail((_WIDEST, _WIDEST))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=88)
    return _data(buffer.getvalue(), "jpeg")


def _settings(document: Document) -> str:
    parts = [
        f"<details><summary>Settings of {escape(document.names[run.folder])} ({escape(run.folder.name)})</summary>"
        f"<pre>{escape(json.dumps(run.record.get('settings'), indent=2, sort_keys=True))}</pre></details>"
        for run in document.runs
    ]
    return f"<h2>Settings</h2>{''.join(parts)}"
