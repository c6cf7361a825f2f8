"""Control and Consistency on clips of the procedural world: real clips, and those they must be told apart from."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.evaluation.scores.statistics import strength_spearman
from motionanim.metrics.control import Control, background_residual
from motionanim.metrics.temporal import Consistency
from motionanim.models.flow_estimator import DisFlow
from motionanim.motion.camera import camera_residual

NAN = float("nan")


def dis() -> DisFlow:
    return DisFlow(preset="medium", min_side=256)


def clips(*positions: int, length: int):
    """Held-out clips (frames, flow, mask) under a still camera, batched."""
    world = SyntheticClips(
        seed=2, length=8, num_frames=length, height=64, width=64, fps=7, moving_camera=0.0, split="val"
    )
    found = [world.clip(position) for position in positions]
    frames = torch.stack([clip.frames for clip in found])
    return frames, torch.stack([clip.flow for clip in found]), torch.stack([clip.mask for clip in found])


class Known:
    """A flow estimator that returns the true flow."""

    name = "known"

    def __init__(self, flow: Tensor) -> None:
        self.flow = flow

    def __call__(self, frames: Tensor) -> Tensor:
        return self.flow


def row(metric: Control | Consistency, *args: Tensor) -> dict[str, Tensor]:
    return dict(zip(metric.keys, metric.score(*args).T))


@pytest.mark.slow
def test_real_still_shuffled_and_flipped_clips_are_told_apart() -> None:
    frames, flow, mask = clips(1, 2, 4, length=6)  # a river, bodies adrift, a sky
    control, consistency = Control(flow_estimator=dis()), Consistency(flow_estimator=dis())
    still = frames[:, :1].expand_as(frames)
    shuffled = frames[:, [0, 4, 2, 5, 1, 3]]
    real, smooth = row(control, frames, flow, mask), row(consistency, frames)
    assert real["direction_error"].median() < 5
    assert real["within_30"].mean() == 1
    assert 0.8 < real["speed_gain"].median() < 1.05
    assert real["moved_precision"].median() > 0.9
    assert real["moved_recall"].median() > 0.9
    assert (real["flow_epe"] < real["requested_strength"]).all()
    assert real["camera_residual"].max() < 5e-4
    assert real["static_drift"].max() < 0.05
    copied = row(control, still, flow, mask)
    for key in ("speed_gain", "moved_recall", "within_30", "realised_strength", "static_drift", "static_change"):
        assert (copied[key] == 0).all(), key
    assert (copied["direction_error"] == 90).all()
    assert copied["moved_precision"].isnan().all()
    assert consistency.score(still).max() < 1e-6
    mixed, rough = row(control, shuffled, flow, mask), row(consistency, shuffled)
    assert mixed["direction_error"].mean() > 60
    assert mixed["within_30"].sum() == 0
    assert (rough["flicker"] > 1.5 * smooth["flicker"]).all()
    assert rough["warp_error"].mean() > smooth["warp_error"].mean()  # of single clips, disorder may hide as occlusion
    flipped = row(control, frames[:1], -flow[:1], mask[:1])
    torch.testing.assert_close(flipped["direction_error"], 180 - real["direction_error"][:1], atol=1e-3, rtol=0)
    torch.testing.assert_close(flipped["speed_gain"], -real["speed_gain"][:1])


def test_the_true_flow_scores_perfectly() -> None:
    frames, flow, mask = clips(0, 1, 2, length=3)
    for clip in zip(frames[:, None], flow[:, None], mask[:, None]):
        scores = row(Control(flow_estimator=Known(clip[1][0])), *clip)
        assert scores["flow_epe"] == scores["static_drift"] == 0
        assert scores["direction_error"] < 0.05
        assert scores["speed_gain"] == pytest.approx(1)
        assert scores["moved_precision"] == scores["moved_recall"] == scores["within_30"] == 1
        assert scores["requested_strength"] == scores["realised_strength"]
        assert scores["camera_residual"] < 1e-4


def test_scores_that_a_clip_does_not_have_are_nan_and_the_rest_is_not() -> None:
    frames, flow, mask = clips(1, length=3)
    control = Control(flow_estimator=dis())
    everywhere = row(control, frames, flow, torch.ones_like(mask))
    lacking = {"static_drift", "static_change", "camera_residual"}
    assert {key for key, value in everywhere.items() if value.isnan()} == lacking
    nothing = row(control, frames, torch.zeros_like(flow), torch.zeros_like(mask))
    assert {key for key, value in nothing.items() if value.isnan()} == {
        "flow_epe", "direction_error", "within_30", "speed_gain", "requested_strength", "realised_strength",
        "moved_recall",
    }  # fmt: skip
    assert nothing["moved_precision"] == 0


def test_the_camera_is_measured_on_the_background() -> None:
    flow, movable = torch.zeros(2, 2, 32, 32), torch.ones(1, 32, 32)
    flow[:, 0] = 3.0
    flow[:, 0, :16], movable[:, :16] = 1.0, 0
    assert background_residual(flow, movable) == pytest.approx(1 / math.hypot(32, 32), rel=1e-3)
    assert background_residual(flow, movable) == camera_residual(flow, movable[0] == 0)
    few = torch.ones(1, 32, 32)
    few[0, 0, :15] = 0
    assert math.isnan(background_residual(flow, few))
    few[0, 1, 0] = 0
    assert math.isfinite(background_residual(flow, few))


def test_bad_input_is_an_error_and_the_protocol_names_the_estimator() -> None:
    frames, flow, mask = clips(1, length=3)
    control = Control(flow_estimator=Known(flow[0]))
    for given, message in (
        ((frames, flow[:, :1], mask), r"flow of shape \(1, 1, 2, 64, 64\): must be \(1, 2, 2, 64, 64\)"),
        ((frames, flow, mask[0]), r"mask of shape \(1, 64, 64\)"),
        ((frames, flow * NAN, mask), "flow is not finite"),
    ):
        with pytest.raises(ValueError, match=message):
            control.score(*given)
    assert control.protocol["flow"] == Consistency(flow_estimator=Known(flow)).protocol["flow"] == "known"


def test_strength_correlation_is_spearmans_with_ties() -> None:
    requested = [100, 175, 250, 325, 400, 400]
    for realised in ([1, 2, 3, 4, 5, 5], [3, 3, 1, 4, 4, 9], [6, 5, 4, 3, 2, 1]):
        expected = stats.pearsonr(stats.rankdata(requested), stats.rankdata(realised)).statistic
        assert strength_spearman(requested, realised) == pytest.approx(expected)
    assert math.isnan(strength_spearman(range(5), [0.0] * 5))
    with pytest.raises(ValueError, match="4 levels of strength: .* at least 5"):
        strength_spearman([1, 2, 3, 4, 4, 4], [1, 2, 3, 4, 5, 6])
    for wrong in ([1, 2, 3, 4], [1, 2, 3, 4, NAN]):
        with pytest.raises(ValueError, match="must be finite"):
            strength_spearman(range(5), wrong)
