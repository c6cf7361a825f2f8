"""Benchmarks and runs that the tests of the harness share."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from motionanim.evaluation.benchmark import EvalClip, Request, SyntheticBenchmark, VideoBenchmark
from motionanim.evaluation.harness import Finished, Options, evaluate
from motionanim.evaluation.methods import MethodOutput
from motionanim.evaluation.reading import Reading
from motionanim.evaluation.scores.scoring import FeatureCache, Scorer
from motionanim.metrics.frame import PSNR

SIDE = 32
READING = Reading(num_frames=5, height=SIDE, width=SIDE, fps=7, shape="stretch")


def request(**changes) -> Request:
    options = {"max_arrows": 3, "span": 5, "strength": None, "reverse": False, "median_strength": 0.0067, "seed": 0}
    return Request(**options | changes)


def synthetic(n: int = 3, *, kind=SyntheticBenchmark, reading: Reading = READING, **changes) -> SyntheticBenchmark:
    world = {"seed": 5, "moving_camera": 0.0, "split": "val"}
    return kind(name="tiny", n=n, reading=reading, world=world, request=request(**changes))


class Still:
    """A flow estimator for which everything moves alike."""

    name = "still"

    def __call__(self, frames: Tensor) -> Tensor:
        return torch.full((len(frames) - 1, 2, *frames.shape[2:]), 0.5)


def folder_benchmark(root: Path, **changes) -> VideoBenchmark:
    options = {"name": "folder", "root": str(root), "manifest": None, "n": None, "reading": READING,
               "flow_estimator": Still(), "min_motion": 0.002, "request": request()}  # fmt: skip
    return VideoBenchmark(**options | changes)


class Mean:
    """Real, if plain, features: what FVD is told of a clip is its mean colour and its change over time."""

    name, dim, min_frames, fingerprint, protocol = "mean", 4, 2, "mean-v1", {"ddof": 1}

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, frames: Tensor) -> Tensor:
        self.calls += len(frames)
        return torch.cat([frames.mean((1, 3, 4)), frames.diff(dim=1).abs().mean((1, 2, 3, 4))[:, None]], dim=1)


class Noisy:
    """A method: the true clip with noise. `spread` is its only setting."""

    reference, saw_motion, saw_mask, lossless, timed, repeated = False, False, False, True, True, 0
    files: Mapping[str, str] = {}
    place = ""

    def __init__(self, spread: float = 0.2, label: str = "noisy") -> None:
        self.spread, self.label, self.identity = spread, label, {"spread": spread}

    def __call__(self, clip: EvalClip, seed: int) -> MethodOutput:
        noise = torch.randn(clip.frames.shape, generator=torch.Generator().manual_seed(seed))
        return MethodOutput((clip.frames + self.spread * noise).clamp(-1, 1))


def scorer(folder: Path, *extractors, **metrics) -> Scorer:
    """PSNR and the extractor `Mean` if no others are given."""
    features = {each.name: each for each in extractors or (Mean(),)}
    return Scorer(metrics or {"psnr": PSNR(cap=100.0)}, features, FeatureCache(folder / "features"))


def run(folder: Path, method=None, *, benchmark=None, score=None, keep_frames: bool = True, **changes) -> Finished:
    return evaluate(
        benchmark or synthetic(), method or Noisy(), score or scorer(folder),
        root=folder / "runs", seed=0, window=5, settings=changes.get("settings", {}), about={"sweep": None, "axes": {}},
        options=Options(keep_frames=keep_frames, show=1, progress=False),
    )  # fmt: skip


def numbers(done: Finished) -> dict:
    """All of a summary that must not depend on when and how often it was made."""
    return {key: done.result[key] for key in ("label", "n", "metrics", "axes", "identity")}
