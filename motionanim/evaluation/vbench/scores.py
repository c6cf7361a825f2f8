"""Scores of a run that another program measured later, in a file beside its result: VBench's."""

import json
from pathlib import Path
from typing import Any

FILE, FORMAT = "vbench.json", 1
_STALE = "VBench saw other clips than the run has now: write and score them again"


def scores_of(folder: Path, keys: list[str]) -> dict[str, tuple[str, dict[str, float], str | None]]:
    """The protocol and the scores by clip of each key, and why there are none; empty if there is no file.

    Args:
        folder: Of the run.
        keys: Of the rows that the run's result counts. Scores of other rows are left out, with the reason.

    Raises:
        ValueError: If the file is damaged.
    """
    path = folder / FILE
    if not path.exists():
        return {}
    try:
        content: Any = json.loads(path.read_bytes())
        found = {
            str(key): (str(each["protocol"]), {str(clip): float(value) for clip, value in each["clips"].items()})
            for key, each in content["scores"].items()
        }
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']!r}")
        stale = content["keys"] != keys
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read: remove it, or read VBench's results again") from error
    if stale:
        return {key: (protocol, {}, _STALE) for key, (protocol, _) in found.items()}
    return {key: (protocol, values, None) for key, (protocol, values) in found.items()}
