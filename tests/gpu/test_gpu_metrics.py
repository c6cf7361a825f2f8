"""Metrics, feature networks and motion fields: a CUDA device gives the CPU's results."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from flow_runs import drifting, raft
from gpu_cases import FLOW, clips, cloud, i3d, metric, moments, smooth_flow
from on_device import FLOAT32, close, moved
from torch import Tensor, nn
from torchvision.models import alexnet

from motionanim.metrics.frame import psnr, ssim
from motionanim.metrics.frechet import frechet_distance
from motionanim.metrics.perceptual import LPIPS
from motionanim.models.flow_estimator import DisFlow
from motionanim.models.video_features import FeatureNetwork, VideoFeatures

FLOAT64 = 1e-9  # 2^-53 a rounding; the root of a covariance of condition 10 loses some digits


@pytest.mark.slow
def test_i3d(device: str, record_property: Callable, tmp_path: Path) -> None:
    features, frames = i3d(tmp_path), clips(1, 9, 32)
    got = moved(features, device)(frames.to(device))
    close(got, features(frames), tolerance=FLOAT32, record_property=record_property)


def test_embedded_features(device: str, record_property: Callable) -> None:
    torch.manual_seed(0)
    network, frames = FeatureNetwork(channels=[8, 8, 8], hidden=16, dim=4, size=32), clips(2, 8, 48)
    for weight in network.parameters():
        if weight.ndim > 1:
            nn.init.kaiming_normal_(weight)  # keeps the size of signals: else the answers are the last bias
    embedded = VideoFeatures(network)
    got = moved(embedded, device)(frames.to(device))
    close(got, embedded(frames), tolerance=FLOAT32, record_property=record_property)


def test_raft(raft_weights: Path, device: str, record_property: Callable) -> None:
    frames = drifting(64, (1.5, -0.6), 3)
    got, expected = raft(raft_weights, device=device)(frames.to(device)), raft(raft_weights)(frames)
    close(got, expected, tolerance=FLOAT32, record_property=record_property)


def test_dis_takes_frames_from_the_device(device: str, record_property: Callable) -> None:
    """It runs on the CPU wherever the frames are."""
    frames, estimate = drifting(64, (1.5, -0.6), 3), DisFlow(preset="fast", min_side=128)
    close(estimate(frames.to(device)), estimate(frames), tolerance=0.0, record_property=record_property)


def test_frechet_distance(device: str, record_property: Callable) -> None:
    given = [*moments(cloud(200, 24, seed=0)), *moments(cloud(200, 24, seed=1, shift=0.3, scale=1.4))]
    got = frechet_distance(*(value.to(device) for value in given))
    close(got, frechet_distance(*given), tolerance=FLOAT64, record_property=record_property)


def test_fvd(device: str, record_property: Callable) -> None:
    fake, real, group = cloud(64, 6, seed=0), cloud(64, 6, seed=1, shift=0.3), torch.arange(64) % 32

    def score(device: str) -> list[Tensor]:
        fvd = metric().to(device)
        for features, true in ((fake, False), (real, True)):
            fvd.update(features.to(device), group.to(device), real=true)
        return list(fvd.compute().values())

    close(score(device), score("cpu"), tolerance=FLOAT64, record_property=record_property)


@pytest.mark.parametrize("score", [psnr, ssim])
def test_frame_metrics(score: Callable, device: str, record_property: Callable) -> None:
    made, real = clips(2, 3, 16), clips(2, 3, 16, seed=1)
    got = score(made.to(device), real.to(device))
    close(got, score(made, real), tolerance=FLOAT32, record_property=record_property)


def test_lpips(device: str, record_property: Callable) -> None:
    torch.manual_seed(0)
    lpips = LPIPS(net="alex", backbone=alexnet(weights=None).features.eval(), batch=4)
    made, real = clips(1, 2, 32), clips(1, 2, 32, seed=1)
    got = moved(lpips, device).score(made.to(device), real.to(device))
    close(got, lpips.score(made, real), tolerance=FLOAT32, record_property=record_property)


@pytest.mark.parametrize("function", FLOW)
def test_flow(function: str, device: str, record_property: Callable) -> None:
    got, expected = FLOW[function](smooth_flow().to(device)), FLOW[function](smooth_flow())
    assert got.device.type == device
    close(got, expected, tolerance=FLOAT32, record_property=record_property)
