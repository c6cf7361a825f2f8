import math
import zlib

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from motionanim.metrics.i3d import I3D, PROTOCOLS, I3DFeatures, _Pool, resize, same_padding

MIXED = ["3b", "3c", "4b", "4c", "4d", "4e", "4f", "5b", "5c"]
BRANCHES = ["b0", "b1a", "b1b", "b2a", "b2b", "b3b"]
NORM = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]


def video(num_frames):
    """The input of the stored outputs: (1, 3, T, 224, 224) in [-1, 1]."""
    pixels = np.random.default_rng(num_frames).random((1, num_frames, 224, 224, 3), dtype=np.float32) * 2 - 1
    return torch.from_numpy(pixels).permute(0, 4, 1, 2, 3)


def off(actual, expected):
    """Relative L2 distance."""
    return (torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected)).item()


@pytest.fixture(scope="module")
def state():
    """Random weights by the recipe of the stored outputs: each depends on its name and shape alone."""
    weights = {}
    for key, value in I3D(eps=1e-3, padding="dynamic").state_dict().items():
        generator, shape = np.random.default_rng(zlib.crc32(key.encode())), list(value.shape)
        if key.endswith("running_var"):
            values = generator.uniform(0.1, 1.5, shape)
        elif key.endswith("bn.weight"):
            values = np.ones(shape)
        elif len(shape) == 5:
            values = generator.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
        elif shape:
            values = generator.standard_normal(shape) * 0.1
        else:
            values = np.zeros(shape)
        weights[key] = torch.from_numpy(np.asarray(values)).to(value.dtype)
    return weights


@pytest.fixture(scope="module")
def weights(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("i3d") / "i3d.pt"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def features(weights):
    return I3DFeatures(weights, protocol="ours", batch=2)


def network(state, **changes):
    model = I3D(**{"eps": 1e-3, "padding": "dynamic", **changes})
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def tensorflow(shared):
    path = shared / "fixtures" / "i3d_tf_logits.npz"
    if not path.exists():
        pytest.skip("needs the stored outputs of the TensorFlow graph")
    return np.load(path)


@pytest.mark.parametrize(
    "num_frames", [9, *(pytest.param(num_frames, marks=pytest.mark.slow) for num_frames in (16, 25, 125))]
)
def test_logits_are_those_of_the_tensorflow_graph(features, tensorflow, num_frames):
    with torch.no_grad():
        logits = features.network(video(num_frames))
    assert off(logits, torch.from_numpy(tensorflow[f"T{num_frames}"])) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("trap", [{"eps": 1e-5}, {"padding": "static"}])
def test_the_known_traps_are_seen_by_that_test(state, tensorflow, trap):
    with torch.no_grad():
        assert off(network(state, **trap)(video(9)), torch.from_numpy(tensorflow["T9"])) > 0.01


@pytest.mark.slow
def test_static_padding_differs_unless_the_length_is_a_multiple_of_8(features, state):
    static = network(state, padding="static")
    with torch.no_grad():
        assert off(static(video(16)), features.network(video(16))) < 1e-5
        assert off(static(video(25)), features.network(video(25))) > 0.01


def test_folding_batch_norm_into_the_convolutions_changes_rounding_only(state):
    unit = network(state).Mixed_4b
    x = torch.rand(1, 480, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = unit(x)
        fused = network(state).fuse().Mixed_4b
        assert not any(isinstance(module, torch.nn.BatchNorm3d) for module in fused.modules())
        assert 0 < off(fused(x), expected) < 1e-6


def test_blocks_keep_channels_last_which_makes_pooling_ten_times_as_fast(features):
    x = torch.rand(1, 480, 3, 14, 14, generator=torch.Generator().manual_seed(0))
    for block in ("Mixed_4b", "Mixed_4c"):
        x = getattr(features.network, block)(x.contiguous(memory_format=torch.channels_last_3d))
        assert x.is_contiguous(memory_format=torch.channels_last_3d)


def test_the_layout_is_videogpts(state):
    units = ["Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"]
    units += [f"Mixed_{block}.{branch}" for block in MIXED for branch in BRANCHES]
    expected = {f"{unit}.conv3d.weight" for unit in units} | {f"{unit}.bn.{name}" for unit in units for name in NORM}
    expected |= {"logits.conv3d.weight", "logits.conv3d.bias"}
    assert set(state) == expected
    assert state["Conv3d_1a_7x7.conv3d.weight"].shape == (64, 3, 7, 7, 7)
    assert state["Mixed_5c.b2b.conv3d.weight"].shape == (128, 48, 3, 3, 3)
    assert state["logits.conv3d.weight"].shape == (400, 1024, 1, 1, 1)


@settings(deadline=None)
@given(size=st.integers(1, 300), kernel=st.integers(1, 7), stride=st.integers(1, 3))
def test_same_padding_is_tensorflows(size, kernel, stride):
    before, after = same_padding(size, kernel, stride)
    windows = -(-size // stride)
    needed = (windows - 1) * stride + kernel
    assert before + after == max(needed - size, 0) == max(kernel - (size % stride or stride), 0)  # as in VideoGPT
    assert after - before in (0, 1)


SHAPES = [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)), ((3, 3, 3), (1, 1, 1))]


@settings(max_examples=40, deadline=None)
@given(sizes=st.tuples(*[st.integers(2, 9)] * 3), shape=st.sampled_from(SHAPES))
def test_pooling_is_over_the_windows_of_same_padding(sizes, shape):
    kernel, stride = shape
    x = torch.rand(1, 2, *sizes, generator=torch.Generator().manual_seed(0))
    pads = [same_padding(*axis) for axis in zip(sizes, kernel, stride)]
    padded = F.pad(x, [pad for pair in reversed(pads) for pad in pair], value=-1)
    pooled = _Pool(kernel, stride, padding="dynamic")(x)
    assert torch.equal(pooled, F.max_pool3d(padded, kernel, stride))
    assert pooled.shape[2:] == tuple(-(-size // step) for size, step in zip(sizes, stride))


def test_static_pooling_pads_as_if_sizes_were_even():
    x = torch.arange(1.0, 8).view(1, 1, 7, 1, 1).expand(1, 1, 7, 2, 2)
    dynamic, static = (_Pool((3, 3, 3), (2, 2, 2), padding=padding)(x) for padding in ("dynamic", "static"))
    assert dynamic.flatten().tolist() == [2, 4, 6, 7]
    assert static.flatten().tolist() == [3, 5, 7, 7]


def bilinear(picture, width, height):
    """By scipy at half-pixel centres, without antialias."""
    y, x = ((np.arange(new) + 0.5) * old / new - 0.5 for new, old in zip((height, width), picture.shape[1:]))
    at = np.meshgrid(y, x, indexing="ij")
    return np.stack(
        [scipy.ndimage.map_coordinates(channel, at, order=1, mode="nearest") for channel in picture.numpy()]
    )


@pytest.mark.parametrize(("height", "width"), [(256, 256), (120, 300), (500, 90), (224, 224)])
def test_resizing_is_bilinear_without_antialias(height, width):
    picture = torch.rand(3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1
    stretched = resize(picture[None], "stretch")[0].numpy()
    np.testing.assert_allclose(stretched, bilinear(picture, 224, 224), atol=2e-4)
    cropped = resize(picture[None], "crop")[0].numpy()
    scale = 224 / min(height, width)
    wide, high = (224 if side == min(height, width) else math.ceil(side * scale) for side in (width, height))
    left, top = (wide - 224) // 2, (high - 224) // 2
    expected = bilinear(picture, wide, high)[:, top : top + 224, left : left + 224]
    np.testing.assert_allclose(cropped, expected, atol=2e-4)


@pytest.mark.slow
def test_protocols_differ_in_what_the_network_sees(weights):
    frames = torch.rand(1, 9, 3, 60, 90, generator=torch.Generator().manual_seed(2)) * 2 - 1
    seen, fingerprints = {}, set()
    for name, protocol in PROTOCOLS.items():
        extractor = I3DFeatures(weights, protocol=name, batch=1)
        seen[name] = extractor.prepare(frames)
        fingerprints.add(extractor.fingerprint)
        assert extractor.name == f"i3d_{name}"
        assert extractor.protocol.items() >= protocol._asdict().items()
        assert seen[name].shape == (1, 3, 9, 224, 224)
        pooled = [module for module in extractor.network if isinstance(module, _Pool)]
        assert {pool.static for pool in pooled} == {protocol.padding == "static"}
    assert len(fingerprints) == len(PROTOCOLS) == 6
    assert all(torch.equal(seen[name], seen["ours"]) for name in ("styleganv", "tats", "cdfvd"))
    assert torch.equal(seen["videogpt"], seen["common_styleganv"])
    torch.testing.assert_close(seen["videogpt"], resize(frames[0], "crop").transpose(0, 1)[None])


@pytest.mark.slow
def test_features_do_not_depend_on_the_batch_autocast_or_tf32(features):
    frames = torch.rand(3, 9, 3, 32, 32, generator=torch.Generator().manual_seed(3)) * 2 - 1
    before, seen = frames.clone(), []
    hook = features.network.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    with torch.autocast("cpu", torch.bfloat16):
        together = features(frames)  # a CPU takes one clip a pass
    hook.remove()
    assert seen == [False] * 3
    assert (together.shape, together.dtype, together.requires_grad) == ((3, features.dim), torch.float32, False)
    with torch.no_grad():
        assert off(together[1:2], features.network(features.prepare(frames[1:2]))) < 1e-5
    assert off(together[2:], together[1:2]) > 1e-3
    assert torch.equal(frames, before)


@pytest.mark.slow
def test_it_stays_in_eval_and_refuses_a_cast(weights):
    extractor = I3DFeatures(weights, protocol="ours", batch=1)
    assert not any(module.training for module in extractor.train().modules())
    frames = torch.rand(1, 9, 3, 32, 32).bfloat16()
    assert torch.equal(extractor.prepare(frames), extractor.prepare(frames.float()))
    with pytest.raises(ValueError, match=r"cast to torch.bfloat16.*float32"):
        extractor.to(torch.bfloat16)(frames)


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(1, 8, 3, 32, 32), torch.zeros(9, 3, 32, 32), torch.zeros(1, 3, 9, 32, 32),
        torch.zeros(0, 9, 3, 32, 32), torch.zeros(1, 9, 3, 32, 32, dtype=torch.uint8),
        torch.full((1, 9, 3, 32, 32), 255.0), torch.full((1, 9, 3, 32, 32), math.nan),
    ],
    ids=["8 frames", "no batch", "channels first", "no clip", "uint8", "255", "nan"],
)  # fmt: skip
def test_bad_frames_are_an_error(features, frames):
    with pytest.raises(ValueError, match=r"at least 9|must be"):
        features(frames)


def test_the_network_takes_its_size_only(features):
    for shape in ((1, 3, 9, 256, 224), (3, 9, 224, 224)):
        with pytest.raises(ValueError, match=r"needs \(B, 3, T, 224, 224\)"):
            features.network(torch.zeros(shape))


@pytest.mark.slow
def test_the_fingerprint_follows_the_weights_in_whichever_file(state, features, tmp_path):
    # A file of another maker may lack the counters, or have others.
    save_file({key: value for key, value in state.items() if "num_batches" not in key}, tmp_path / "i3d.safetensors")
    extractor = I3DFeatures(tmp_path / "i3d.safetensors", protocol="ours", batch=1)
    assert torch.equal(extractor.network.Mixed_4b.b1b.conv3d.weight, features.network.Mixed_4b.b1b.conv3d.weight)
    assert extractor.fingerprint == features.fingerprint
    changed = {key: value + 1 if "num_batches" in key else value for key, value in state.items()}
    torch.save(changed, tmp_path / "i3d.pt")
    assert I3DFeatures(tmp_path / "i3d.pt", protocol="ours", batch=1).fingerprint == features.fingerprint
    changed["logits.conv3d.bias"] = state["logits.conv3d.bias"] + 1e-3
    torch.save(changed, tmp_path / "i3d.pt")
    assert I3DFeatures(tmp_path / "i3d.pt", protocol="ours", batch=1).fingerprint != features.fingerprint


def small(state, **changes):
    """Weights of the same shapes in a small file; None leaves one out."""
    zeros = {name: value.new_zeros(()).expand(value.shape) for name, value in state.items()} | changes
    return {name: value for name, value in zeros.items() if value is not None}


@pytest.mark.parametrize(
    "other",
    [
        lambda state: small(state, **{"logits.conv3d.bias": None}),
        lambda state: small(state, **{"Mixed_6a.b0.conv3d.weight": torch.zeros(1)}),
        lambda state: small(state, **{"logits.conv3d.weight": torch.zeros(600, 1024, 1, 1, 1)}),
        lambda state: {"state_dict": small(state)},
        lambda state: torch.zeros(3),
    ],
    ids=["missing", "extra", "shape", "nested", "tensor"],
)
def test_weights_of_another_layout_are_refused(state, tmp_path, other):
    torch.save(other(state), tmp_path / "other.pt")
    with pytest.raises(ValueError, match="other.pt do not have the layout"):
        I3DFeatures(tmp_path / "other.pt", protocol="ours", batch=1)


class Code:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize("kind", ["torchscript", "pickle", "text", "safetensors"])
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore:.*TorchScript archive.*:UserWarning")
def test_files_that_hold_code_or_nothing_are_not_loaded(tmp_path, capsys, kind):
    path = tmp_path / ("file.safetensors" if kind == "safetensors" else "file.pt")
    if kind == "torchscript":
        torch.jit.script(torch.nn.Linear(1, 1)).save(str(path))
    elif kind == "pickle":
        torch.save({"logits.conv3d.bias": Code()}, path)
    else:
        path.write_text("this is no archive")
    with pytest.raises(ValueError, match="cannot be read as a state dict.*TorchScript"):
        I3DFeatures(path, protocol="ours", batch=1)
    assert "must not run" not in capsys.readouterr().out


def test_bad_arguments_are_an_error(weights, tmp_path):
    for path, options, message in (
        (weights, {"protocol": "tf", "batch": 1}, "protocol='tf'.*ours, styleganv, .*, cdfvd"),
        (weights, {"protocol": "ours", "batch": 0}, "batch=0"),
        (tmp_path / "none.pt", {"protocol": "ours", "batch": 1}, "none.pt do not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            I3DFeatures(path, **options)
    with pytest.raises(ValueError, match="padding='same'"):
        I3D(eps=1e-3, padding="same")
