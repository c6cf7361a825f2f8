"""Run folders as evaluate.py leaves them, for tests of reports."""

import json
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import stats

from motionanim.evaluation.report.blocks import blocks
from motionanim.evaluation.report.comparisons import paired_table
from motionanim.evaluation.report.runs import names, read_runs
from motionanim.evaluation.report.tables import Table, score_tables

CLIPS = [f"{index:06}" for index in range(64)]


def run(root: Path, name: str, values: dict[str, list[float | None]], **changes) -> Path:
    """A run folder as evaluate.py leaves it: `values` a list over clips by key, `entries` of the summary as given."""
    folder = root / name
    (folder / "strips").mkdir(parents=True)
    n = len(next(iter(values.values())))
    metrics = {}
    for key, column in values.items():
        known = [value for value in column if value is not None]
        mean = float(np.mean(known)) if known else None
        reach = float(stats.sem(known) * stats.t.ppf(0.975, len(known) - 1)) if len(known) > 1 else None
        low, high = (None, None) if reach is None else (mean - reach, mean + reach)
        reason = None if known else "the mask is empty"
        metrics[key] = {"mean": mean, "low": low, "high": high, "n": len(known), "protocol": "p1", "reason": reason}
    metrics |= {key: fvd_entry(mean, n) for key, mean in changes.pop("fvd", {}).items()}
    metrics |= changes.pop("entries", {})
    settings = {"seed": 0} | ({"kind": "real"} if changes.get("reference") else {})
    result = {
        "format": 2, "label": name, "benchmark": "synthetic16", "n": n, "reference": False, "saw_motion": False,
        "saw_mask": False, "lossless": True, "window": 16, "pictures": {CLIPS[0]: CLIPS[0]},
        "reading": {"num_frames": 16, "height": 64, "width": 96, "fps": 7.0, "shape": "stretch", "slower": "repeat"},
        "measures": {"psnr": {"metric": "psnr", "cap_db": 100.0}}, "scored_commit": "7be769a", "seed": 0,
        "sweep": None, "axes": {}, "settings": settings, "metrics": metrics, "cost": {"calls": 56.0, "seconds": 3.2},
        "made_with": "torch 2", "identity": {},
        "hardware": "2 cores", "commit": "7be769a", "time": "2026-11-22T14:00:00",
        "keys": [f"k{index}" for index in range(n)], "protocols": {"psnr": "p1"},
    }  # fmt: skip
    protocol = changes.pop("protocol", None)
    for key in metrics if protocol else ():
        metrics[key]["protocol"] = protocol
    result |= changes
    rows = [
        {"clip": CLIPS[index], "key": f"k{index}", "index": index, "seconds": 1.0, "calls": 56,
         "protocols": {"psnr": "p1"}, "metrics": {key: column[index] for key, column in values.items()}}
        for index in range(n)
    ]  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.new("RGB", (32, 16), (200, 30, 30)).save(folder / "strips" / f"{CLIPS[0]}.png")
    return folder


def fvd_entry(mean: float, n: int = 6, **changes) -> dict:
    """An FVD in a summary: each clip is a group of its own."""
    left_out = [mean + step for step in np.random.default_rng(2).normal(0, 1, n)]
    shared = {"mean": mean, "low": None, "high": None, "n": n, "protocol": "f1", "reason": None}
    return shared | {"left_out": left_out, "share": [1 / n] * n} | changes


def edit(folder: Path, **changes) -> None:
    """Change fields of a run's summary."""
    record = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(record | changes))


def around(mean: float, n: int = 6, seed: int = 0) -> list[float]:
    return list(mean + np.random.default_rng(seed).normal(0, 1, n))


def loaded(root: Path, against: str | None = None):
    runs, _ = read_runs([root], skip_unfinished=False)
    called = names(runs)
    return blocks(runs, called, against), called


def scores(root: Path) -> Table:
    """The first table of scores of the only block."""
    (block,), called = loaded(root)
    return score_tables(block, called)[0]


def paired(root: Path, against: str | None = None) -> Table | None:
    """The paired differences of the only block."""
    (block,), called = loaded(root, against)
    return paired_table(block, called)


def column(table, header: str) -> dict[str, object]:
    place_ = next(index for index, cell in enumerate(table.columns) if cell.text.startswith(header))
    return {row.name: row.cells[place_] for row in table.rows}


def make_three(tmp_path: Path) -> Path:
    run(tmp_path, "a", {"psnr": around(24), "lpips": around(0.5, seed=1)}, fvd={"fvd_embedded": 300})
    run(tmp_path, "b", {"psnr": around(22), "lpips": around(0.2, seed=1)}, fvd={"fvd_embedded": 320})
    run(tmp_path, "c", {"psnr": around(30), "lpips": around(0.9, seed=1)}, fvd={"fvd_embedded": 90}, reference=True)
    return tmp_path


def gamma_runs(root: Path) -> None:
    for gamma, sigma in ((0.2, 20.0), (0.6, 3.9), (0.8, 0.157)):
        run(
            root, f"g{gamma}", {"psnr": around(20), "seam_ratio": around(2)}, fvd={"fvd_embedded": 300 + 100 * gamma},
            label=f"phased, gamma {gamma}", sweep="gamma", axes={"gamma": gamma, "sigma": sigma},
            cost={"calls": 125 - 100 * gamma, "seconds": 9 - 8 * gamma},
        )  # fmt: skip
