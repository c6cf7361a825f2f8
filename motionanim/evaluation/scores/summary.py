"""The summary of a run: from its rows, one per clip, to a number of every key with its interval and protocol."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from motionanim.evaluation.benchmark import TrueClips, digest
from motionanim.evaluation.scores.code import code_of
from motionanim.evaluation.scores.scoring import Missing, Scorer, from_text
from motionanim.evaluation.scores.statistics import Interval, mean_interval
from motionanim.metrics.fvd import CORRECTED, FVD, VARIANTS, fvd_key, group_of

GROUPS = 32  # of FVD's jackknife
FEW_GROUPS, MANY_DIMENSIONS = 8, 1000  # of features so long that 32 sums of their products would fill the memory
PROCEDURAL = "its features were trained on the procedural world and mean nothing for real videos"


def summarise(
    rows: Sequence[dict[str, Any]],
    scorer: Scorer,
    clips: Sequence[str],
    window: int,
    *,
    procedural: bool,
    truth: TrueClips | None,
) -> dict[str, dict[str, Any]]:
    """Mean, 95 % interval, n and protocol of every key; null with a reason where there is none.

    An entry with `unranked` is a number that must not be ranked, for that reason.

    Args:
        rows: One per clip.
        clips: The identities of the clips, which are part of the protocol of each number, as is the window.
        procedural: Whether the clips are of the procedural world.
        truth: The true clips that all clips together are compared with, if they are not paired. Their identities then
            replace those of the clips.
    """
    summary: dict[str, dict[str, Any]] = {}
    what = (clips if truth is None else truth.identities, window)
    protocols = {key: digest(protocol, what) for key, protocol in scorer.protocol_of().items()}
    for metric in scorer.metrics.values():
        if isinstance(metric, Missing):
            summary |= {key: _nothing(metric.reason) for key in metric.keys}
            continue
        for column in metric.columns:
            known = [row["metrics"][column.key] for row in rows if row["metrics"].get(column.key) is not None]
            reason = next((row["reasons"][column.key] for row in rows if column.key in row["reasons"]), None)
            found = mean_interval(known, column.range)
            summary[column.key] = _entry(found, protocols.get(column.key), None if known else reason)
    for name, extractor in scorer.features.items():
        key = fvd_key(name)
        if isinstance(extractor, Missing):
            summary[key] = _nothing(extractor.reason)
            continue
        count = GROUPS if extractor.dim < MANY_DIMENSIONS else FEW_GROUPS
        protocol = digest(scorer.fingerprints[name], what, code_of(FVD), count)
        pairs = [row["features"].get(name) for row in rows]
        if None in pairs:
            summary[key] = _nothing("no true clips of the requested motion", protocol)
            continue
        if len(pairs) < 2 or (truth is not None and len(truth.ids) < 2):
            few = "FVD needs n >= 2 clips" if len(pairs) < 2 else "FVD needs at least 2 true clips"
            summary[key] = _nothing(few, protocol, len(pairs))
            continue
        between = getattr(extractor, "between", None)
        distance = FVD(dim=extractor.dim, groups=count, ddof=extractor.protocol["ddof"], between=between)
        names = [row["clip"] for row in rows]
        _add(distance, names, [from_text(pair["fake"]) for pair in pairs], real=False)
        if truth is None:
            _add(distance, names, [from_text(pair["real"]) for pair in pairs], real=True)
        else:
            _add(distance, truth.ids, truth.features(extractor, scorer.cache.get), real=True)
        entries = fvd_entries(key, distance, protocol, n=len(pairs))
        if extractor.protocol.get("domain") == "procedural" and not procedural:
            entries = {key: {**entry, "unranked": PROCEDURAL} for key, entry in entries.items()}
        summary |= entries
    return summary


def _add(distance: FVD, clips: Sequence[str], features: Iterable[Tensor], *, real: bool) -> None:
    """Add clips with one vector of features each, or one for each frame, which is then in its clip's group."""
    for clip, each in zip(clips, features, strict=True):
        rows = each.view(-1, distance.dim)
        distance.update(rows, torch.full((len(rows),), group_of(clip, distance.groups)), real=real)


def fvd_entries(key: str, distance: FVD, protocol: str, *, n: int) -> dict[str, dict[str, Any]]:
    """The entries of an FVD: as published under `key`, corrected with its interval, and the variants.

    The entry of `key` has `left_out` and `share`, from which the report takes paired differences.

    Args:
        n: Generated clips. Features of frames count as their clips do, because frames of one clip are much alike.
    """
    found = distance.compute()
    numbers = {part: float(value) for part, value in found.items() if value.ndim == 0}
    nan = math.nan
    groups = {part: [_finite(value) for value in found[part].tolist()] for part in ("left_out", "share")}
    entries = {key: _entry(Interval(numbers["value"], nan, nan, n), protocol, None) | groups}
    interval, why = Interval(numbers["corrected"], numbers["low"], numbers["high"], n), None
    if math.isnan(numbers["low"]) or n <= distance.dim:
        why = f"no correction with n={n}: without any group, more clips must remain than features, {distance.dim}"
        interval = interval._replace(mean=nan)
    entries[f"{key}_{CORRECTED}"] = _entry(interval, protocol, why)
    for suffix, variant in VARIANTS.items():
        why = None if math.isfinite(numbers[variant.part]) else "half of the clips are fewer than 2"
        entries[f"{key}_{suffix}"] = _entry(Interval(numbers[variant.part], nan, nan, n), protocol, why)
    return entries


def _nothing(reason: str, protocol: str | None = None, n: int = 0) -> dict[str, Any]:
    return _entry(Interval(math.nan, math.nan, math.nan, n), protocol, reason)


def _entry(found: Interval, protocol: str | None, reason: str | None) -> dict[str, Any]:
    values = {name: _finite(value) for name, value in found._asdict().items() if name != "n"}
    return {**values, "n": found.n, "protocol": protocol, "reason": reason}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
