import pickle

import numpy as np
import pytest
import torch
from flow_runs import drifting, raft
from torchvision.models.optical_flow import raft_small

from motionanim.files import file_sha256 as digest
from motionanim.models.flow_estimator import DisFlow, RaftFlow, steady_field
from motionanim.models.pretrained import WEIGHTS


@pytest.mark.parametrize(
    ("velocity", "height"), [((1.5, 0.0), 64), ((-0.7, 0.4), 64), ((0.0, 0.0), 64), ((1.0, -0.5), 48)]
)
def test_dis_finds_a_drift_at_64_px(velocity, height):
    flow = DisFlow(preset="medium", min_side=256)(drifting(64, velocity, 3)[..., :height, :])
    assert flow.shape == (2, 2, height, 64)
    assert flow.dtype == torch.float32
    error = torch.linalg.vector_norm(flow - torch.tensor(velocity).view(2, 1, 1), dim=1)
    assert error[:, 8:-8, 8:-8].mean() < 0.1


def test_enlarging_is_what_makes_dis_exact_on_small_frames():
    frames, truth = drifting(64, (1.5, -0.6), 2), torch.tensor([1.5, -0.6]).view(2, 1, 1)

    def error(min_side: int) -> float:
        flow = DisFlow(preset="medium", min_side=min_side)(frames)
        return float(torch.linalg.vector_norm(flow - truth, dim=1)[:, 8:-8, 8:-8].mean())

    assert error(256) < 0.5 * error(1)


def test_dis_is_picklable_deterministic_and_named():
    frames = drifting(32, (0.5, 0.5), 2)
    kept = frames.clone()
    estimate = DisFlow(preset="fast", min_side=128)
    again = pickle.loads(pickle.dumps(estimate))
    assert torch.equal(estimate(frames), again(frames))
    assert torch.equal(frames, kept)
    assert again.name == "dis-fast-128"


@pytest.mark.parametrize("lag", [1, 4])
def test_a_steady_field_is_the_drift_per_frame_whatever_the_lag(lag):
    frames, truth = drifting(64, (0.6, -0.4), 5), torch.tensor([0.6, -0.4]).view(2, 1, 1)
    field = steady_field(frames, DisFlow(preset="medium", min_side=256), lag=lag)
    assert field.shape == (2, 64, 64)
    assert torch.linalg.vector_norm(field - truth, dim=0)[8:-8, 8:-8].mean() < 0.06


@pytest.mark.parametrize("lag", [1, 3, 4])
def test_a_steady_field_takes_every_pair_of_its_lag_once(lag):
    # Frame k is filled with k^2, and this "estimator" reports the difference of the values: pair (k, k + lag).
    frames = (torch.arange(5.0) ** 2).view(5, 1, 1, 1).expand(5, 3, 4, 4)
    field = steady_field(frames, lambda clip: (clip[1:] - clip[:-1])[:, :2], lag=lag)
    expected = np.mean([((k + lag) ** 2 - k**2) / lag for k in range(5 - lag)])
    torch.testing.assert_close(field, torch.full((2, 4, 4), float(expected)))


def test_bad_options_and_frames_are_named():
    estimate = DisFlow(preset="fast", min_side=1)
    for lag in (0, 3):
        with pytest.raises(ValueError, match=f"lag={lag}: must be from 1 to 2"):
            steady_field(torch.zeros(3, 3, 16, 16), estimate, lag=lag)
    with pytest.raises(ValueError, match="preset='best'"):
        DisFlow(preset="best", min_side=64)
    with pytest.raises(ValueError, match="min_side=0"):
        DisFlow(preset="fast", min_side=0)
    for shape in [(1, 3, 32, 32), (2, 1, 32, 32), (3, 32, 32)]:
        with pytest.raises(ValueError, match="T of at least 2"):
            estimate(torch.zeros(shape))


def test_raft_runs_at_any_size_and_in_parts(raft_weights):
    frames = drifting(52, (1.0, 0.0), 4)[..., :44, :]
    estimate = raft(raft_weights)
    flow = estimate(frames)
    assert flow.shape == (3, 2, 44, 52)
    assert flow.dtype == torch.float32
    assert flow.isfinite().all()
    torch.testing.assert_close(raft(raft_weights, pairs=1)(frames), flow, atol=1e-3, rtol=1e-3)
    assert estimate.name == f"raft-small-{digest(raft_weights)[:8]}"


def test_raft_flow_is_the_model_s_own_at_a_size_that_it_takes(raft_weights):
    frames = drifting(128, (2.0, 1.0), 2)
    model = raft_small(weights=None)
    model.load_state_dict(torch.load(raft_weights, weights_only=True))
    with torch.no_grad():
        expected = model.eval()(frames[:1], frames[1:], num_flow_updates=2)[-1]
    torch.testing.assert_close(raft(raft_weights)(frames), expected, atol=1e-4, rtol=1e-4)


def test_raft_is_picklable(raft_weights):
    frames = drifting(128, (1.0, 0.0), 2)
    estimate = raft(raft_weights, updates=1)
    sent = pickle.dumps(estimate)
    assert str(raft_weights.resolve()).encode() in sent
    assert len(sent) < 2000  # not the weights, which would go with each task
    assert torch.equal(pickle.loads(sent)(frames), estimate(frames))
    assert pickle.loads(sent) is pickle.loads(sent)


def test_raft_takes_only_the_weights_that_were_meant(raft_weights, tmp_path):
    for changes, message in (
        ({"weights": tmp_path / "none.pth"}, r"none\.pth does not exist.*flow_estimator\.weights"),
        ({"sha256": None}, rf"not {WEIGHTS['raft-small'].sha256}.*flow_estimator\.sha256.*=dis"),
        ({"variant": "large"}, "do not fit variant='large'"),
        ({"variant": "huge"}, "variant='huge'"),
        ({"updates": 0}, "updates=0"),
    ):
        with pytest.raises(ValueError, match=message):
            raft(**{"weights": raft_weights} | changes)
    assert raft(raft_weights, sha256=digest(raft_weights)[:8]).name == f"raft-small-{digest(raft_weights)[:8]}"


def test_raft_downloads_into_the_folder_of_weights_and_only_once(tmp_path, raft_weights, monkeypatch):
    monkeypatch.setenv("MOTIONANIM_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    # A port where nothing answers.
    weights = WEIGHTS["raft-small"]._replace(url="http://127.0.0.1:9/raft.pth", sha256=digest(raft_weights))
    monkeypatch.setitem(WEIGHTS, "raft-small", weights)
    download = {"variant": "small", "weights": "download", "sha256": None, "device": "cpu", "updates": 2, "pairs": 2}
    with pytest.raises(ValueError, match=r"raft\.pth cannot be downloaded.*flow_estimator\.weights=PATH.*=dis"):
        RaftFlow(**download)
    (tmp_path / weights.file).write_bytes(raft_weights.read_bytes())
    # The name tells the weights, not the way that they came.
    assert RaftFlow(**download).name == raft(raft_weights).name
    with pytest.raises(ValueError, match="not 00000000"):
        RaftFlow(**download | {"sha256": "00000000"})
