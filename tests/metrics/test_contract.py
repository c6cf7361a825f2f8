"""The contract of every metric: batches, merging, ranks, precision, arguments, protocol and columns."""

import copy
import json
import math
import os

import forked
import pytest
import torch
import torch.distributed as dist
from small_networks import Encoder, random_alexnet
from torch import Tensor
from torch.nn.functional import interpolate

from motionanim.evaluation.report.columns import known_columns
from motionanim.metrics.base import ClipMetric
from motionanim.metrics.control import Control, PointTracks
from motionanim.metrics.drift import ClipDrift, Drift
from motionanim.metrics.edges import NewEdges
from motionanim.metrics.frame import PSNR, SSIM
from motionanim.metrics.fvd import FVD
from motionanim.metrics.perceptual import LPIPS, ClipConsistency
from motionanim.metrics.temporal import Consistency, Temporal
from motionanim.models.flow_estimator import DisFlow
from motionanim.models.point_tracker import LucasKanade

COUNT, LENGTH, SIDE = 5, 4, 40


def dis() -> DisFlow:
    return DisFlow(preset="medium", min_side=64)


METRICS = {
    "psnr": lambda: PSNR(cap=100.0),
    "ssim": SSIM,
    "lpips": lambda: LPIPS(net="alex", backbone=random_alexnet(), batch=3),
    "clip": lambda: ClipConsistency(encoder=Encoder(), batch=3),
    "control": lambda: Control(flow_estimator=dis()),
    "consistency": lambda: Consistency(flow_estimator=dis()),
    "temporal": Temporal,
    "tracks": lambda: PointTracks(tracker=LucasKanade(min_side=64, window=9, levels=2, tolerance=0.5)),
    "new_edges": NewEdges,
    "drift": Drift,
    "clip_drift": lambda: ClipDrift(encoder=Encoder(), batch=3),
}


@pytest.fixture(params=METRICS)
def metric(request: pytest.FixtureRequest) -> ClipMetric:
    return METRICS[request.param]()


def arguments(metric: ClipMetric) -> tuple:
    """A batch for `metric.score`: smooth clips that move, noisy copies, and their motion."""
    generator = torch.Generator().manual_seed(0)
    canvas = interpolate(torch.rand(COUNT, 3, 8, 10, generator=generator), size=(SIDE, SIDE + 20), mode="bicubic")
    real = torch.stack([canvas[..., 3 * t : SIDE + 3 * t] for t in range(LENGTH)], dim=1).clamp(0, 1) * 2 - 1
    flow = torch.zeros(COUNT, LENGTH - 1, 2, SIDE, SIDE)
    flow[:, :, 0, 10:30, 10:30] = -3.0
    values = {
        "frames": (real + 0.1 * torch.randn(real.shape, generator=generator)).clamp(-1, 1), "real": real, "flow": flow,
        "mask": (flow[:, 0, :1] != 0).float(), "segment_starts": (2,), "period": 2, "loop": True,
    }  # fmt: skip
    return tuple(values[name] for name in metric.needs)


def each(change, given: tuple) -> tuple:
    """`given` with `change` applied to its tensors."""
    return tuple(change(part) if isinstance(part, Tensor) else part for part in given)


def test_a_batch_scores_as_its_clips_again_and_again_and_changes_no_argument(metric: ClipMetric) -> None:
    given = arguments(metric)
    before = each(torch.clone, given)
    together = metric.score(*given)
    assert together.shape == (COUNT, len(metric.keys))
    assert together.dtype == torch.float64
    assert not together.requires_grad
    single = torch.cat([metric.score(*each(lambda part, k=k: part[k : k + 1], given)) for k in range(COUNT)])
    torch.testing.assert_close(single, together, equal_nan=True, atol=1e-6, rtol=1e-5)
    assert torch.equal(metric.score(*given).nan_to_num(-9), together.nan_to_num(-9))
    assert all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in zip(given, before))


def test_half_precision_is_measured_in_float32_also_inside_autocast(metric: ClipMetric) -> None:
    half = each(Tensor.half, arguments(metric))
    expected, tf32 = metric.score(*each(Tensor.float, half)), torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(metric.score(*half), expected, equal_nan=True)
        assert torch.is_autocast_enabled("cpu")
    assert torch.backends.cudnn.allow_tf32 == tf32


def test_the_mean_is_over_clips_however_they_come(metric: ClipMetric) -> None:
    given = arguments(metric)
    expected = metric.score(*given).nanmean(0)
    first, second, empty = (copy.deepcopy(metric) for _ in range(3))
    if not hasattr(first, "network"):
        first.to(torch.bfloat16)  # as training in bfloat16 does; the sums must stay in float64
    for part in (slice(0, 1), slice(1, 4)):
        first.update(*each(lambda whole, part=part: whole[part], given))
    first.compute()  # merging must not return this value again
    second.update(*each(lambda whole: whole[4:], given))
    first.merge_state(second)
    first.merge_state(empty)
    found = first.compute()
    assert tuple(found) == metric.keys
    torch.testing.assert_close(torch.stack(list(found.values())), expected, equal_nan=True, atol=1e-6, rtol=1e-5)
    with pytest.raises(ValueError, match="no clip was scored"):
        empty.compute()


@pytest.mark.parametrize("bad", [math.nan, math.inf, 255.0, -1.1])
def test_frames_out_of_range_are_an_error(metric: ClipMetric, bad: float) -> None:
    frames, *rest = arguments(metric)
    frames[0, 1, 2, 3, 4] = bad
    with pytest.raises(ValueError, match=r"frames: values from .* in \[-1, 1\]"):
        metric.score(frames, *rest)


@pytest.mark.parametrize("shape", [(1, 1, 3, SIDE, SIDE), (1, 2, 1, SIDE, SIDE), (2, 3, SIDE, SIDE), (0, 2, 3, 8, 8)])
def test_frames_of_another_shape_are_an_error(metric: ClipMetric, shape: tuple[int, ...]) -> None:
    _, *rest = arguments(metric)
    with pytest.raises(ValueError, match=r"frames of shape .* T of at least 2"):
        metric.score(torch.zeros(shape), *rest)


def test_the_protocol_is_plain_and_reports_know_the_columns(metric: ClipMetric) -> None:
    assert json.loads(json.dumps(metric.protocol)) == json.loads(json.dumps(copy.deepcopy(metric).protocol))
    for column in metric.columns:
        assert known_columns()[column.key] == column


def filled_fvd(fake: Tensor, real: Tensor) -> FVD:
    fvd = FVD(dim=fake.shape[1], groups=32, ddof=1)
    for features, true in ((fake, False), (real, True)):
        fvd.update(features, torch.arange(len(fake)) % 32, real=true)
    return fvd


def process(rank: int, folder: str, fake: Tensor, real: Tensor) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    found = {}
    for cast in (False, True):  # a module that one process casts still adds up
        fvd = filled_fvd(fake, real) if rank == 0 else FVD(dim=fake.shape[1], groups=32, ddof=1)
        psnr = PSNR(cap=100.0)
        if rank == 0:
            psnr.update(*arguments(psnr))
        if cast and rank == 1:
            fvd.to(torch.bfloat16)
        found[cast] = (fvd.compute(), psnr.compute())
    torch.save(found, os.path.join(folder, f"{rank}.pt"))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_of_which_one_has_no_clip_agree_with_one_process(tmp_path) -> None:
    generator = torch.Generator().manual_seed(0)
    fake, real = torch.randn(2, 45, 6, generator=generator, dtype=torch.float64)
    forked.call(process, str(tmp_path), fake, real, ranks=2)
    whole = filled_fvd(fake, real).compute()
    psnr = PSNR(cap=100.0)
    psnr.update(*arguments(psnr))
    for rank in range(2):
        for fvd, other in torch.load(tmp_path / f"{rank}.pt", weights_only=True).values():
            torch.testing.assert_close(fvd, whole, equal_nan=True)
            torch.testing.assert_close(other, psnr.compute())
