import functools
import os
import pickle

import lz4.frame
import numpy as np
import pytest
import torch
from configs import _fresh_hydra, composed  # noqa: F401  the fixture clears Hydra's global state
from hydra.utils import instantiate
from layouts import write_holynski

from motionanim.data.holynski import holynski_clips, holynski_data, read_motion
from motionanim.data.video import VideoError
from motionanim.motion.example_arrows import sample_hint
from motionanim.motion.flow import resize_flow

HINT = functools.partial(sample_hint, max_arrows=4, max_frames=16, sigma=0.3, normalized="exact")


CLIPS = ("00001_00000", "00979_00120", "00980_00000", "01010_00030")


def field():
    flow = torch.zeros(2, 24, 48)
    flow[0, :, 24:], flow[1, :, 24:] = 1.5, -0.5
    return flow


@pytest.fixture
def root(tmp_path):
    for clip in CLIPS:
        frames = torch.full((3, 3, 48, 96), -0.5)
        frames[:, :, :, 48:] = 0.5
        write_holynski(tmp_path, clip, frames, field(), fps=30)
    return tmp_path


def still(frames):
    return torch.zeros(len(frames) - 1, 2, *frames.shape[2:])


still.name = "still"


def data(root, **changes):
    options = {
        "items": "pairs", "root": root, "latents": None, "reading": {},
        "rejected": root / "rejected.csv", "max_rejected_share": 0.3, "val_clips": 9, "batch_size": 1, "num_workers": 0,
        "height": 32, "width": 32, "seed": 0, "min_speed": 0.05, "hint": HINT,
        "clips": {"num_frames": 3, "fps": 30, "stride": None, "flow_estimator": still, "flow_cache": root / "flow"},
    }  # fmt: skip
    return holynski_data(**options | changes)


def write(path, value):
    with lz4.frame.open(path, "wb") as file:
        file.write(value if isinstance(value, bytes) else pickle.dumps(value))
    return path


def test_the_official_split(root, tmp_path_factory):
    with pytest.raises(ValueError, match="official split"):
        holynski_clips(tmp_path_factory.mktemp("empty"), suffix="_gt.mp4")
    train, val = holynski_clips(root, suffix="_motion.pth")
    assert list(train) == ["00001_00000_motion.pth", "00979_00120_motion.pth"]
    assert list(val) == ["00980_00000_motion.pth", "01010_00030_motion.pth"]
    assert list(holynski_clips(root, suffix="_gt.mp4")[0]) == ["00001_00000_gt.mp4", "00979_00120_gt.mp4"]
    (root / "00002_motion.pth").write_bytes(b"")  # as in copies with one clip a video
    assert len(holynski_clips(root, suffix="_motion.pth")[0]) == 3
    (root / "extra_motion.pth").write_bytes(b"")
    with pytest.raises(ValueError, match="extra_motion.pth: must be named by its video and first frame, such as 00001"):
        holynski_clips(root, suffix="_motion.pth")


@pytest.mark.slow
@pytest.mark.parametrize("frames", [16, 25])
def test_a_clip_of_the_real_length_holds_the_frames_of_either_scale(tmp_path, frames):
    for clip in CLIPS[1:3]:
        write_holynski(tmp_path, clip, torch.zeros(60, 3, 32, 64), field(), fps=30)
    size = (f"scale.num_frames={frames}", "scale.height=32", "scale.width=32")
    cfg = composed("experiment=diffusion", "data=holynski", f"data.root={tmp_path}", *size)
    assert cfg.scale.fps == 7, "which alone would leave 15 of the 60 frames"
    clip = instantiate(cfg.data, _convert_="all").val[0]
    assert (len(clip.frames), clip.fps) == (frames, 15)


@pytest.mark.parametrize(("protocol", "dtype"), [(2, "f4"), (3, "f8"), (4, "f4"), (5, "f8")])
def test_flow_comes_back(tmp_path, protocol, dtype):
    array = field()[None].numpy().astype(dtype)
    path = write(tmp_path / "a.pth", pickle.dumps(array, protocol=protocol))
    assert torch.equal(read_motion(path), field())


def test_a_pair_is_resized_with_its_values(root):
    pair = data(root).val[0]
    expected = resize_flow(field(), 32, 64)[:, :, 16:48]
    moving = expected.norm(dim=0) > 0.05
    assert torch.allclose(pair.flow, expected * moving, atol=1e-5)
    assert pair.flow[0, 16, 31] == pytest.approx(1.5 * 64 / 48, rel=1e-4)
    assert torch.equal(pair.mask[0], moving.float())
    assert pair.image.shape == (3, 32, 32)
    assert pair.image[:, :, :14].mean() == pytest.approx(-0.5, abs=0.02)
    assert pair.image[:, :, 18:].mean() == pytest.approx(0.5, abs=0.02)
    assert pair.hint.flow.shape == (2, 32, 32)
    assert pair.hint.flow.abs().max() > 0.5
    train = data(root).train
    first, again = train[12345], train[12345]
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    assert first.position == 12345


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


class Indirect:
    def __reduce__(self):
        return getattr, (np.ndarray, "tofile")


@pytest.mark.parametrize("value", [Attack(), Indirect(), [Attack()], {"a": np.dtype, "b": Attack()}])
def test_a_malicious_file_runs_nothing(tmp_path, monkeypatch, value):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(VideoError, match="is not part of a numpy array; nothing was run"):
        read_motion(write(tmp_path / "bad.pth", value))
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"\x80\x04garbage", "no flow that can be read"),
        (pickle.dumps(np.zeros((1, 2, 4, 4), np.float32))[:-20], "no flow that can be read"),
        ([1, 2], "holds list"),
        (np.zeros((1, 2, 4, 4), np.int64), "must be a float array"),
        (np.array([[Ellipsis]], dtype=object), "is not part of|must be a float array"),
        (np.full((1, 2, 4, 4), np.nan, np.float32), "not finite"),
        (np.zeros((1, 2, 0, 4), np.float32), "empty"),
    ],
)
def test_other_contents_are_named(tmp_path, value, message):
    with pytest.raises(VideoError, match=message):
        read_motion(write(tmp_path / "bad.pth", value))
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(np.zeros((1, 2, 4, 4))))
    for name in ("plain.pth", "none.pth"):
        with pytest.raises(VideoError, match=name):
            read_motion(tmp_path / name)


def test_an_unusable_pair_is_replaced_and_named(root):
    (root / "00980_00000_motion.pth").write_bytes(b"broken")
    pairs = data(root)
    assert torch.equal(pairs.val[0].image, pairs.val[1].image)
    assert "00980_00000_motion.pth" in (root / "rejected.csv").read_text()
    (root / "00001_00000_input.jpg").unlink()
    with pytest.raises(ValueError, match="2 of 4 clips cannot be used"):
        [pairs.train[k] for k in range(2)]
