"""Writes a report as one HTML page, with style, script and pictures inside, so that it needs no server."""

import base64
import io
import json
from pathlib import Path

from PIL import Image

from motionanim.evaluation.report.columns import column_of
from motionanim.evaluation.report.document import Document
from motionanim.evaluation.report.runs import Run
from motionanim.evaluation.report.tables import row_name
from motionanim.evaluation.templates import render

# Larger strips shrink to this width and become JPEG: with frames of 1024 x 576 px a page would take hundreds of MB.
_LARGE_BYTES, _WIDEST = 300_000, 1800


def html(document: Document, strips: int) -> str:
    """The page.

    Args:
        document: The report.
        strips: The most strips of frames for each run; all runs of a benchmark show the same clips.
    """
    clips = [
        (
            f"{run.benchmark}: {row_name(run, document.names)}",
            [(_picture(path), _caption(run, path.stem)) for path in run.strips[:strips]],
        )
        for run in document.runs
        if run.strips[:strips]
    ]
    settings = [
        (
            f"Settings of {document.names[run.folder]} ({run.folder.name})",
            json.dumps(run.record.get("settings"), indent=2, sort_keys=True),
        )
        for run in document.runs
    ]
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
