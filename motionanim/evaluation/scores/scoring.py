"""Scores a made clip by all metrics, and caches the features of true clips."""

import base64
import functools
import hashlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from motionanim.evaluation.benchmark import digest
from motionanim.evaluation.scores.code import code_of
from motionanim.files import atomic_path
from motionanim.media.image_io import to_uint8
from motionanim.metrics.base import ClipMetric
from motionanim.types import Sample


class Features(Protocol):
    """A video feature extractor, which maps frames (B, T, 3, H, W) to features (B, dim) of clips.

    One of frames gives (B, F, dim), as many rows of each clip. One with an attribute `between` names the distance of
    two sets of its features (see `FVD`); others have Fréchet's.
    """

    name: str
    dim: int
    min_frames: int
    fingerprint: str
    protocol: dict[str, Any]

    def __call__(self, frames: Tensor) -> Tensor: ...


class Missing(NamedTuple):
    """A metric or extractor whose weights are not here."""

    keys: tuple[str, ...]
    reason: str


class Scores(NamedTuple):
    values: dict[str, float | None]
    reasons: dict[str, str]  # why a value is None, by its key
    features: dict[str, dict[str, str]]  # by extractor: "fake" and "real", as text


# Why a field of a sample may be None.
_NO_MOTION = "no motion was requested: the videos are given"
_LACKING = {"real": "another motion than the clips' own was requested", "flow": _NO_MOTION, "mask": _NO_MOTION}
_UNPAIRED = "the videos are not paired with true clips"


class FeatureCache:
    """Features of true clips, cached in a folder by extractor and by a hash of the frames.

    Attributes:
        computed: Number of features that were not in the cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.computed = folder, 0

    def get(self, extractor: Features, frames: Tensor) -> Tensor:
        """Features of (T, 3, H, W): (dim,), or (F, dim) of frames."""
        pixels = hashlib.sha256(to_bytes(frames).numpy().tobytes())
        pixels.update(str(tuple(frames.shape)).encode())
        path = self.folder / extractor.fingerprint / f"{pixels.hexdigest()[:32]}.npy"
        try:
            found = torch.from_numpy(np.load(path, allow_pickle=False))
            if found.shape[-1:] == (extractor.dim,) and bool(torch.isfinite(found).all()):
                return found
        except (OSError, ValueError, EOFError):
            pass  # missing, or cut short by a kill
        self.computed += 1
        features = extractor(frames[None])[0].float().cpu()
        with atomic_path(path) as temporary:
            np.save(temporary, features.numpy())
        return features


class Scorer:
    """Scores clips by several metrics.

    Args:
        metrics: By name. The values of a `Missing` one are None.
        features: Video feature extractors for FVD, by name.
        cache: Of the features of true clips.

    Raises:
        ValueError: If two metrics share a key.
    """

    def __init__(
        self,
        metrics: Mapping[str, ClipMetric | Missing],
        features: Mapping[str, Features | Missing],
        cache: FeatureCache,
    ) -> None:
        self.metrics, self.features, self.cache = dict(metrics), dict(features), cache
        keys = [key for metric in self.metrics.values() for key in metric.keys]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise ValueError(f"metrics: {', '.join(twice)} would be measured twice; leave one of the two out")

    @property
    def protocols(self) -> dict[str, dict[str, Any]]:
        """The settings of each metric and extractor whose weights are here, by name."""
        return {name: part.protocol for name, part in (_here(self.metrics) | _here(self.features)).items()}

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """A hash of each metric and extractor, by name: its protocol and its code."""
        clip = {name: digest(m.protocol, code_of(m)) for name, m in _here(self.metrics).items()}
        return clip | {name: digest(f.fingerprint, code_of(f)) for name, f in _here(self.features).items()}

    def protocol_of(self) -> dict[str, str]:
        """The fingerprint of each key."""
        return {key: self.fingerprints[name] for name, m in _here(self.metrics).items() for key in m.keys}

    def leave_out_short(self, num_frames: int) -> None:
        """Make the extractors that need more frames `Missing`."""
        for name, extractor in _here(self.features).items():
            if num_frames < extractor.min_frames:
                why = f"needs {extractor.min_frames} frames, and the clips have {num_frames}"
                self.features[name] = Missing((), why)
                self.__dict__.pop("fingerprints", None)  # computed anew

    @torch.no_grad()
    def __call__(self, sample: Sample) -> Scores:
        values: dict[str, float | None] = {}
        reasons: dict[str, str] = {}
        unpaired = sample.real is None and sample.flow is None
        for metric in self.metrics.values():
            why = metric.reason if isinstance(metric, Missing) else _lacking(metric, sample, unpaired)
            if why is not None:
                values |= dict.fromkeys(metric.keys)
                reasons |= dict.fromkeys(metric.keys, why)
                continue
            given = (getattr(sample, name) for name in metric.needs)
            scored = metric.score(*(part[None] if isinstance(part, Tensor) else part for part in given))
            for key, value in zip(metric.keys, scored[0].tolist(), strict=True):
                values[key] = None if math.isnan(value) else value
                if values[key] is None:
                    reasons[key] = metric.undefined
        features = {}
        for name, extractor in _here(self.features).items():
            if sample.real is None and not unpaired:
                continue
            if unpaired:  # cached, because the true clips are scored too
                features[name] = {"fake": to_text(self.cache.get(extractor, sample.frames))}
                continue
            real = self.cache.get(extractor, sample.real)
            same = torch.equal(sample.frames, sample.real)  # as in the row `real`
            fake = real if same else extractor(sample.frames[None])[0]
            features[name] = {"fake": to_text(fake), "real": to_text(real)}
        return Scores(values, reasons, features)


def _here(parts: Mapping[str, Any]) -> dict[str, Any]:
    """The parts whose weights are here, by name."""
    return {name: part for name, part in parts.items() if not isinstance(part, Missing)}


def _lacking(metric: ClipMetric, sample: Sample, unpaired: bool) -> str | None:
    """Why a field that a metric needs is None; None if all are there."""
    name = next((name for name in metric.needs if getattr(sample, name) is None), None)
    if name is None:
        return None
    return _UNPAIRED if unpaired and name == "real" else _LACKING[name]


def to_bytes(frames: Tensor) -> Tensor:
    """Frames in [-1, 1] as uint8."""
    return to_uint8(frames).cpu()


def to_text(features: Tensor) -> str:
    return base64.b64encode(features.float().cpu().numpy().astype("<f4").tobytes()).decode()


def from_text(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), dtype="<f4").copy())
