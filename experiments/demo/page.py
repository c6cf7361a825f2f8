"""Write one HTML page with its videos inside."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from motionanim.files import atomic_path

STYLE = """
:root { color-scheme: light dark; --ink: #1d1f21; --soft: #62686e; --line: #d9dcdf; --ground: #fbfbfa; --card: #fff; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8e9ea; --soft: #9aa1a8; --line: #33383d; --ground: #15171a; --card: #1c1f23; }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--ground); margin: 0 auto;
  max-width: 72rem; padding: 2rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; } h2 { font-size: 1.15rem; margin: 0 0 .4rem; }
p { margin: .3rem 0 .9rem; max-width: 46rem; } .soft { color: var(--soft); font-size: .9rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: .7rem; padding: 1.2rem 1.4rem;
  margin-top: 1.4rem; }
.films { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; } figcaption { color: var(--soft);
  font-size: .85rem; }
video, img { display: block; max-width: 100%; border-radius: .4rem; } video.small { width: 20rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; font-size: .9rem; margin: .9rem 0; }
dt { color: var(--soft); } dd { margin: 0; font-variant-numeric: tabular-nums; }
pre { font-size: .8rem; overflow-x: auto; padding: .6rem .8rem; border: 1px solid var(--line); border-radius: .4rem;
  margin: 0; }
"""
KINDS = {".mp4": "video/mp4", ".png": "image/png"}


class Film(NamedTuple):
    """A video with a caption."""

    caption: str
    file: Path


class Item(NamedTuple):
    """One result on the page."""

    title: str
    text: str
    films: Sequence[Film]
    figures: Mapping[str, str]
    command: str


def write(path: Path, overview: Path, items: Sequence[Item], seconds: float) -> Path:
    """Write the page; `overview` is an image of photo, arrows and field in a row."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; media-src data:; '
        "style-src 'unsafe-inline'\">",
        f"<title>motionanim</title><style>{STYLE}</style></head><body>",
        "<h1>A picture, a few arrows, a video</h1>",
        f'<p class="soft">Everything on this page was made on this machine in {seconds:.0f} s.</p>',
        "<section><h2>Input</h2><p>From the left: the picture, its arrows and what may move, the motion field "
        "(hue is the direction), five frames of the loop below.</p>"
        f'<img alt="The picture, its arrows, its motion field and frames" src="{_data(overview)}"></section>',
        *map(_section, items),
        "</body></html>",
    ]
    with atomic_path(path) as temporary:
        temporary.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path


def _section(item: Item) -> str:
    small = ' class="small"' if len(item.films) > 1 else ""
    films = "".join(
        f'<figure><video{small} src="{_data(film.file)}" autoplay loop muted playsinline controls></video>'
        f"<figcaption>{escape(film.caption)}</figcaption></figure>"
        for film in item.films
    )
    figures = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in item.figures.items())
    return (
        f'<section><h2>{escape(item.title)}</h2><p>{escape(item.text)}</p><div class="films">{films}</div>'
        f"<dl>{figures}</dl><pre>{escape(item.command)}</pre></section>"
    )


def _data(file: Path) -> str:
    return f"data:{KINDS[file.suffix]};base64,{base64.b64encode(file.read_bytes()).decode()}"
