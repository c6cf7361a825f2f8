import argparse
import collections
import json
import os

import hydra
import numpy as np
import pytest
import torch
from configs import _fresh_hydra, composed  # noqa: F401  the fixture clears Hydra's global state
from evaluation_runs import Mean, run, scorer
from published_reference import (
    DIM,
    FILE,
    HEADS,
    ITERATIONS,
    PACKAGES,
    features,
    points,
    tracks,
    videomae_weights,
    videos,
    vjepa_weights,
    weights,
)
from safetensors.torch import save_file

from motionanim.evaluation.scores.scoring import from_text
from motionanim.media.image_io import from_uint8
from motionanim.metrics.fvd import FVD
from motionanim.metrics.published.content_debiased import VideoMAEFeatures
from motionanim.metrics.published.fvmd import FVMDFeatures, fvmd, motion_histograms
from motionanim.metrics.published.jedi import VJEPAFeatures, jedi
from motionanim.metrics.published.pips import PIPs
from motionanim.models.pretrained import MissingWeights
from motionanim.models.weights.checkpoint import read_part


@pytest.fixture(scope="module")
def expected():
    """What the packages computed; `published_reference` says how."""
    return np.load(FILE)


@pytest.fixture(scope="module")
def videomae_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("videomae") / "ft.pth"
    torch.save({"module": videomae_weights()}, path)  # under a key, as the published file
    return path


@pytest.fixture(scope="module")
def videomae(videomae_file):
    return VideoMAEFeatures(videomae_file, heads=HEADS, batch=1)


@pytest.fixture(scope="module")
def vjepa(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vjepa")
    encoder, probe = vjepa_weights()
    torch.save({"target_encoder": encoder, "encoder": {}, "epoch": 300}, folder / "vith16.pth.tar")
    torch.save({"classifier": probe, "epoch": 20}, folder / "probe.pth.tar")
    return VJEPAFeatures(folder / "vith16.pth.tar", folder / "probe.pth.tar", heads=HEADS, batch=2)


@pytest.fixture(scope="module")
def pips_state():
    with torch.device("meta"):
        shapes = {name: tuple(value.shape) for name, value in PIPs().state_dict().items()}
    return weights(shapes) | {"norm.weight": torch.ones(128), "norm.bias": torch.zeros(128)}  # published and unused


def distance(between, ddof=1):
    """Of the generated and the real features of `published_reference`."""
    metric = FVD(dim=6, groups=2, ddof=ddof, between=between)
    sums = []
    for side in (1, 0):
        each = torch.from_numpy(features(side))
        sums.append((torch.tensor(float(len(each))).double(), each.sum(0), each.T @ each))
    return metric.between(*sums).item()


@pytest.mark.parametrize("frames", [16, 21])
def test_videomae_features_are_those_of_cd_fvd(videomae, expected, frames):
    found = videomae(from_uint8(videos(frames, 40, 56)))
    assert found.shape == (2, DIM)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected[f"videomae_{frames}"], atol=2e-6)


def test_content_debiased_fvd_divides_by_n_as_cd_fvd_does(videomae, expected):
    found = distance(None, ddof=videomae.protocol["ddof"])
    assert found == pytest.approx(expected["cdfvd"], rel=1e-6)  # it rounds to float32
    assert distance(None, ddof=1) != pytest.approx(expected["cdfvd"], rel=1e-3)


def test_jedis_features_are_those_of_vjepa_and_its_probe(vjepa, expected):
    found = vjepa(from_uint8(videos(16, 32, 32)))
    np.testing.assert_allclose(found.numpy(), expected["vjepa"], atol=2e-6)


def test_jedi_is_that_of_videojedi(expected):
    assert distance(jedi) == pytest.approx(expected["jedi"], rel=1e-12)


def test_jedi_of_equal_sets_is_0_and_of_one_clip_is_missing():
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sums, one = ((torch.tensor(len(y)), y.sum(0), y.T @ y) for y in (x, x[:1]))
    assert jedi(sums, sums) == 0
    assert jedi(sums, one).isnan()
    assert fvmd(sums, one).isnan()


@pytest.mark.slow
def test_tracks_are_those_of_fvmds_pips(pips_state, expected):
    network = PIPs.of(pips_state)
    found = network(videos(16, 128, 128)[:1].float(), points(128), iterations=ITERATIONS)
    assert (found[:, 0] == points(128)).all()
    assert (found - found[:, :1]).abs().amax() > 2  # px; they move, so the test sees how
    np.testing.assert_allclose(found.numpy(), expected["pips"], atol=0.02)  # five iterations multiply rounding errors


def test_histograms_are_those_of_fvmd(expected):
    np.testing.assert_array_equal(motion_histograms(tracks()).numpy(), expected["histograms"])


def test_fvmd_is_that_of_the_package_with_its_offset(expected):
    assert distance(fvmd) == pytest.approx(expected["fvmd"], rel=1e-9)
    assert distance(None) != pytest.approx(expected["fvmd"], rel=1e-7)


def test_histograms_of_known_motion():
    still = torch.zeros(1, 16, 400, 2)
    assert not motion_histograms(still).any()
    time = torch.arange(16.0)[:, None]
    moving = still.clone()
    moving[..., 0] = 3 * time  # 3 px a frame to the right, at a steady speed
    velocity, acceleration = motion_histograms(moving).view(2, 4, 16, 8).unbind()
    assert not acceleration.any()
    assert (velocity[1:].sum(-1) == 4 * 25 * 2 / 8).all()  # 4 frames, 25 points, log2(1 + 3) of 8
    assert (velocity[0].sum(-1) == 3 * 25 * 2 / 8).all()  # the first frame has no velocity
    assert (velocity.count_nonzero(-1) == 1).all()


@pytest.mark.parametrize("shape", [(1, 3, 400, 2), (1, 16, 399, 2), (1, 16, 16, 2), (1, 16, 400, 3), (16, 400, 2)])
def test_tracks_of_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="tracks"):
        motion_histograms(torch.zeros(shape))


def test_fvmd_features_are_the_histograms_of_16_iterations_of_tracks_at_256_px(pips_state, tmp_path, monkeypatch):
    path = tmp_path / "pips2_weights.pth"
    torch.save({"model_state_dict": pips_state}, path)
    extractor = FVMDFeatures(path, batch=1)
    state = extractor.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in pips_state.items() if name in state)
    frames = videos(16, 256, 256)[:1]
    along = torch.linspace(8, 248, 20)
    grid = torch.stack(torch.meshgrid(along, along, indexing="xy"), -1).view(400, 2)
    moved = grid + torch.randn(1, 16, 400, 2, generator=torch.Generator().manual_seed(0)).cumsum(1)

    def tracked(pictures, points, *, iterations):
        torch.testing.assert_close(pictures, frames.float(), atol=1e-3, rtol=0)
        torch.testing.assert_close(points, grid)
        assert iterations == 16
        return moved

    monkeypatch.setattr(extractor.network, "forward", tracked)
    found = extractor(from_uint8(frames))
    assert found.shape == (1, extractor.dim) == (1, 1024)
    assert torch.equal(found, motion_histograms(moved).to(found))
    assert found.any()


def test_a_clips_features_do_not_depend_on_its_batch_or_on_training(videomae):
    frames = from_uint8(videos(16, 40, 56))
    videomae.train()
    assert not videomae.training
    torch.testing.assert_close(videomae(frames[1:])[0], videomae(frames)[1], rtol=0, atol=0)


def test_frames_and_options_that_an_extractor_cannot_take_are_refused(videomae, vjepa, videomae_file):
    frames = from_uint8(videos(16, 40, 56))
    for extractor, bad, message in (
        (vjepa, torch.cat([frames, frames], 1), "exactly 16"),
        (videomae, frames[:, :1], "at least 2"),
        (videomae, frames * 2, r"in \[-1, 1\]"),
        (videomae, videos(16, 40, 56), "must be"),
    ):
        with pytest.raises(ValueError, match=message):
            extractor(bad)
    for wrong, message in (({"batch": 0}, "batch=0"), ({"heads": 7}, "heads=7")):  # 24 is no multiple of 7
        with pytest.raises(ValueError, match=message):
            VideoMAEFeatures(videomae_file, **{"heads": HEADS, "batch": 1} | wrong)


def test_protocols_tell_weights_apart_and_are_plain(videomae, videomae_file, tmp_path):
    json.dumps(videomae.protocol)
    assert VideoMAEFeatures(videomae_file, heads=HEADS, batch=2).fingerprint == videomae.fingerprint
    other = tmp_path / "other.safetensors"
    save_file(videomae_weights() | {"fc_norm.bias": torch.ones(DIM)}, other)
    assert VideoMAEFeatures(other, heads=HEADS, batch=1).fingerprint != videomae.fingerprint


def test_missing_weights_name_the_file_and_where_it_goes(tmp_path, monkeypatch):
    monkeypatch.setenv("MOTIONANIM_WEIGHTS", str(tmp_path))
    for make in (VideoMAEFeatures, VJEPAFeatures, FVMDFeatures):
        with pytest.raises(MissingWeights, match=r"fetch https://") as caught:
            make(batch=1)
        assert str(tmp_path) in str(caught.value)
        assert caught.value.short.startswith("no weights: ")


@pytest.mark.parametrize(
    "change",
    [
        {"blocks.1.mlp.fc2.bias": None}, {"blocks.0.gamma_1": torch.ones(DIM)}, {"fc_norm.weight": torch.ones(DIM + 1)},
        {"blocks.0.attn.v_bias": None}, dict.fromkeys(videomae_weights()) | {"blocks.0.norm1.weight": torch.ones(1)},
    ],
    ids=["missing", "more", "shape", "value bias", "no blocks"],
)  # fmt: skip
def test_weights_of_another_layout_are_refused(tmp_path, change):
    path = tmp_path / "weights.safetensors"
    save_file({name: value for name, value in (videomae_weights() | change).items() if value is not None}, path)
    with pytest.raises(ValueError, match="VideoMAE-v2"):
        VideoMAEFeatures(path, heads=HEADS, batch=1)


@pytest.mark.parametrize("parts", [("model", "module"), ("target_encoder",), ("classifier",)])
def test_a_file_without_a_state_dict_is_refused(tmp_path, parts):
    path = tmp_path / "weights.pth"
    for content in ({}, [torch.ones(1)], {parts[0]: {"a": 1}}, {parts[0]: {}}):
        torch.save(content, path)
        with pytest.raises(ValueError, match=f"no state dict.*{parts[-1]}"):
            read_part(path, parts)
    for suffix in (".pth", ".safetensors"):
        path.with_suffix(suffix).write_bytes(b"no checkpoint")
        with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
            read_part(path.with_suffix(suffix), parts)


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_training_state_beside_the_weights_is_left_out_and_its_code_never_runs(tmp_path):
    state, trap = videomae_weights(), tmp_path / "trapped"
    extra = {
        "trap": Trap(trap), "args": argparse.Namespace(lr=1e-3), "step": np.float64(3), "method": "".join,
        "history": collections.deque([1, 2]), "counts": collections.Counter("aab"),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
    }  # fmt: skip
    path = tmp_path / "weights.pth"
    torch.save({"model": state, **extra}, path)
    found = read_part(path, ("model",))
    assert not trap.exists()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    torch.save({"model": state, **extra}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match="cannot be read"):
        read_part(path, ("model",))
    assert not trap.exists()


def test_the_harness_uses_the_distance_that_the_features_name(tmp_path):
    class Named(Mean):
        name, fingerprint, between = "jedi", "named-v1", staticmethod(jedi)

    done = run(tmp_path, score=scorer(tmp_path, Named()))
    sums = []
    for side in ("fake", "real"):
        each = torch.stack([from_text(row["features"]["jedi"][side]) for row in done.rows]).double()
        sums.append((torch.tensor(float(len(each))), each.sum(0), each.T @ each))
    assert done.result["metrics"]["fvd_jedi"]["mean"] == pytest.approx(jedi(*sums).item())


@pytest.mark.slow
def test_metrics_published_names_extractors_that_are_null_without_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("MOTIONANIM_WEIGHTS", str(tmp_path))
    nodes = composed("metrics=published", config="evaluate").metrics.features
    assert {"i3d_ours", "embedded", "videomae", "jedi", "fvmd"} == set(nodes)
    for name in ("videomae", "jedi", "fvmd"):
        assert hydra.utils.get_class(nodes[name]["_target_"]).name == name
        with pytest.raises(hydra.errors.InstantiationException, match="fetch https://"):
            hydra.utils.instantiate(nodes[name])


@pytest.mark.parametrize("package", PACKAGES)
def test_the_stored_numbers_are_those_of_the_packages(expected, package):
    pytest.importorskip(package)
    for name, values in PACKAGES[package]().items():
        np.testing.assert_allclose(values, expected[name], rtol=1e-5, atol=1e-5, err_msg=name)
