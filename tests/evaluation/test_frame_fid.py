"""The FID of frames, from the harness, against torchmetrics with the same feature network."""

from pathlib import Path

import pytest
import torch
from evaluation_runs import run, scorer, synthetic
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from motionanim.evaluation.methods import Reference

N = 12


class Small(nn.Module):
    """A feature network of single pictures (N, 3, H, W) to (N, 3), in float64."""

    num_features = 3

    def forward(self, pictures: Tensor) -> Tensor:
        pictures = pictures.double()
        return torch.stack(
            [pictures[:, 0].mean((1, 2)), pictures[:, 1].std((1, 2)), pictures.diff(dim=3).abs().mean((1, 2, 3))], dim=1
        )


class Frames:
    """`Small` on frames 1 and later, as a feature extractor of the harness."""

    name, dim, min_frames, fingerprint, protocol = "fid_small", 3, 2, "small-v1", {"ddof": 1}

    def __call__(self, frames: Tensor) -> Tensor:
        return Small()(frames[:, 1:].flatten(0, 1)).float().unflatten(0, (len(frames), -1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["static_copy", "real"])
def test_each_frame_is_a_row_and_the_number_is_torchmetrics(tmp_path: Path, kind: str) -> None:
    score, benchmark, method = scorer(tmp_path, Frames()), synthetic(N), Reference(label=kind, kind=kind)
    found = run(tmp_path, method, benchmark=benchmark, score=score).result["metrics"]
    reference = FrechetInceptionDistance(feature=Small()).set_dtype(torch.float64)
    for index in range(N):
        clip = benchmark.clip(index)
        for frames, real in ((clip.frames, True), (method(clip, 0).frames, False)):
            pixels = ((frames + 1) * 127.5).round() / 127.5 - 1
            reference.update(pixels[1:], real=real)
    expected = float(reference.compute())
    assert found["fid_small"]["mean"] == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert found["fid_small"]["n"] == N, "clips: frames of one are much alike"
    if kind == "static_copy":  # its interval leaves out clips with all their frames
        entry = found["fid_small_corrected"]
        assert entry["low"] < entry["mean"] < entry["high"]
    assert score.cache.computed == N
    again = scorer(tmp_path, Frames())
    other = run(tmp_path, Reference(label="shuffled", kind="shuffled"), benchmark=benchmark, score=again)
    assert again.cache.computed == 0
    # A set of frames does not know their order, which shuffling changes.
    assert abs(other.result["metrics"]["fid_small"]["mean"]) < 1e-6
