"""The columns of a report by key: those that the metric classes declare, and the report's own."""

import importlib
import pkgutil
from functools import cache

from motionanim import metrics
from motionanim.metrics.base import ClipMetric, Column
from motionanim.metrics.fvd import fvd_column
from motionanim.metrics.published.vbench import vbench_column

# Groups become tables, in this order.
GROUPS = {
    "quality": "Quality",
    "frechet": "Fréchet video distance, other numbers",
    "control": "Controllability",
    "long": "Long video",
    "vbench": "VBench",
    "frame0": "Counting frame 0, the condition image",
    "cost": "Cost",
    "other": "Other numbers, not ranked",
}
_OWN = (
    Column("calls", "Denoiser calls", 1, None, "cost", "per clip"),
    Column("seconds", "Time", 2, None, "cost", "s/clip"),
)


@cache
def known_columns() -> dict[str, Column]:
    """All columns by key, in the order of the modules and classes of `motionanim.metrics`; the report's own last."""
    found: list[Column] = []
    for name in sorted(module.name for module in pkgutil.iter_modules(metrics.__path__)):
        module = importlib.import_module(f"{metrics.__name__}.{name}")
        for each in vars(module).values():
            if isinstance(each, type) and issubclass(each, ClipMetric) and each.__module__ == module.__name__:
                found += each.columns
    return {column.key: column for column in (*found, *_OWN)}


def column_of(key: str) -> Column:
    """The column of a key. An unknown key is named by itself and never ranked."""
    if found := known_columns().get(key) or fvd_column(key) or vbench_column(key):
        return found
    if key.startswith("axes/"):
        return Column(key, key.removeprefix("axes/"), 3, None, "cost")
    return Column(key, key, 4, None, "other")


def place(key: str) -> tuple[int, int, str]:
    """Sort key of keys: by table, FVD first, then in the order of `known_columns`."""
    known = list(known_columns())
    position = known.index(key) if key in known else -1 if fvd_column(key) else len(known)
    return list(GROUPS).index(column_of(key).group), position, key
