"""Reads the results that VBench left for `layout.write`, and puts them into the runs' folders, where reports find them.

VBench writes NAME_eval_results.json: {DIMENSION: [mean, [{"video_path": ..., "video_results": ...}, ...]]}.
"""

import json
import math
from pathlib import Path
from typing import Any

from motionanim.evaluation.benchmark import digest
from motionanim.evaluation.vbench.layout import FORMAT, INDEX
from motionanim.evaluation.vbench.scores import FILE
from motionanim.evaluation.vbench.scores import FORMAT as SCORES_FORMAT
from motionanim.files import atomic_path
from motionanim.metrics.published.vbench import DIMENSIONS, I2V, PREFIX

_TOLERANCE = 1e-3  # between VBench's mean and the mean of its videos


def read(out: Path) -> list[Path]:
    """Put VBench's scores of the videos in `out` into the folders of their runs.

    Returns:
        The run folders that got scores, as vbench.json.

    Raises:
        ValueError: If `out` is no folder of `layout.write`, there are no results, a run has gone or has other clips
            now, or a result is not of these videos or not as VBench writes it.
    """
    index = _load(out / INDEX, "no folder that `vbench write` made")
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise ValueError(f"{out / INDEX} has another format than {FORMAT}: write the folder again")
    done = []
    for entry in index["runs"]:
        results = sorted((out / entry["name"] / "results").glob("*_eval_results.json"))
        if results:
            done.append((_scores(results, entry), entry))
    if not done:
        raise ValueError(f"{out} has no results yet: run `python {out / 'score.py'}` where VBench is installed")
    for _, entry in done:  # before anything is written
        record = _load(Path(entry["run"]) / "result.json", "no finished run")
        if record.get("keys") != entry["keys"]:
            raise ValueError(f"{entry['run']} has other clips now than VBench saw: write and score again")
    for scores, entry in done:
        version = out / entry["name"] / "results" / "version.json"
        about = [_load(version, "no JSON") if version.exists() else None, index["images"], entry["fps"]]
        kept = {
            PREFIX + name: {"protocol": digest(name, about, sorted(clips)), "clips": clips}
            for name, clips in scores.items()
        }
        content = {"format": SCORES_FORMAT, "keys": entry["keys"], "scores": kept}
        with atomic_path(Path(entry["run"]) / FILE) as path:
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return [Path(entry["run"]) for _, entry in done]


def _scores(paths: list[Path], entry: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Each dimension's values by clip."""
    found: dict[str, dict[str, float]] = {}
    for path in paths:
        content = _load(path, "no results of VBench")
        if not isinstance(content, dict):
            raise ValueError(f"{path} is no results of VBench: it must hold an object of dimensions")
        for name, result in content.items():
            if name in found:
                raise ValueError(f"{path} has {name}, and so has an earlier file beside it: keep one of them")
            found[name] = _values(path, name, result, entry["clips"])
    return found


def _values(path: Path, name: str, result: Any, clips: dict[str, str]) -> dict[str, float]:
    scale = (DIMENSIONS | I2V)[name].scale if name in DIMENSIONS | I2V else 1.0
    values = {}
    try:
        mean, videos = result
        for video in videos:
            stem = Path(video["video_path"]).stem.removesuffix("-0")
            if stem not in clips or clips[stem] in values:
                raise ValueError(f"{path}: {name} has {video['video_path']!r} twice, or it is none of these videos")
            values[clips[stem]] = float(video["video_results"]) / scale
        mean = float(mean)
    except (TypeError, KeyError) as error:
        raise ValueError(f"{path}: {name} is not as VBench 0.1.5 writes it") from error
    if len(values) != len(clips):
        raise ValueError(f"{path}: {name} has {len(values)} of {len(clips)} videos; score again")
    own = sum(values.values()) / len(values)
    if not all(map(math.isfinite, values.values())) or not abs(own - mean) <= _TOLERANCE * max(1, abs(mean)):
        raise ValueError(f"{path}: {name} has the mean {mean:g}, and its videos {own:g}: another version of VBench?")
    return values


def _load(path: Path, otherwise: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is {otherwise}, or cannot be read") from error
