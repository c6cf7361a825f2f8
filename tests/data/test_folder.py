import csv
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import default_collate

from motionanim.data.clips import VideoClips, clip_data, flow_path
from motionanim.data.file_lists import Names, split_names
from motionanim.data.folder import folder_clips, folder_names
from motionanim.data.prepare.examine import cached_flow
from motionanim.data.rejections import Rejections
from motionanim.data.stream import as_float, as_floats, collate
from motionanim.data.video import Video, write_video
from motionanim.data.video import index as video_index
from motionanim.data.video.index import content_key


class Brightness:
    """A flow that identifies its frames: to the right by their difference of brightness, down by 1."""

    name = "brightness"

    def __call__(self, frames):
        change = (frames[1:] - frames[:-1]).mean(1) * 10
        return torch.stack([change, torch.ones_like(change)], dim=1)


def moving(seed, count=12, height=48, width=64):
    generator = torch.Generator().manual_seed(seed)
    picture = torch.rand(1, 3, 4, 6, generator=generator) * 2 - 1
    picture = torch.nn.functional.interpolate(picture, size=(height, width), mode="bicubic").clamp(-1, 1)
    return torch.cat([picture.roll(k, dims=-1) * (1 - 0.02 * k) for k in range(count)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    for k in range(5):
        write_video(root / f"sub{k % 2}" / f"{k}.mp4", moving(k), 10)
    write_video(root / "tall.MP4", moving(9, height=96, width=64), 10)
    return root


def dataset(root, tmp_path, names=None, random=True, **changes):
    names = names or Names(folder_names(root))
    options = {
        "num_frames": 4, "height": 16, "width": 16, "fps": 10, "stride": None, "seed": 3,
        "flow_estimator": Brightness(), "flow_cache": tmp_path / "flow",
        "rejections": Rejections(tmp_path / "rejected.csv", total=len(names), max_share=0.5),
    }  # fmt: skip
    return VideoClips(root=root, names=names, random=random, **options | changes)


def test_a_folder_lists_all_videos_below_it_linked_ones_once_and_what_is_left_out_is_said(tmp_path, caplog):
    names = ("z.MP4", "sub1/1.mp4", "sub0/9.mp4", "b.flv", "c.gif", "notes.txt", ".no.mp4", ".no/a.mp4")
    for name in (*names, "../elsewhere/d.mp4"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).touch()
    (tmp_path / "root/linked").symlink_to("../elsewhere")
    (tmp_path / "elsewhere/back").symlink_to("../root")
    with caplog.at_level("INFO"):
        found = list(folder_names(tmp_path / "root"))
    assert found == ["b.flv", "c.gif", "z.MP4", "linked/d.mp4", "sub0/9.mp4", "sub1/1.mp4"]
    assert "left out as no videos by their suffix: 1 .txt" in caplog.text


def test_a_folder_without_videos_is_one_line(tmp_path):
    with pytest.raises(ValueError, match="has no video: files ending in .3g2"):
        folder_clips(tmp_path, val_share=0.1)


@settings(max_examples=25, deadline=None)
@given(st.sets(st.text(max_size=4), min_size=2, max_size=9), st.floats(0.01, 0.99))
def test_the_split_is_complete_and_has_two_sides(names, share):
    names = {name.encode(errors="replace").decode() + "x" for name in names} | {"a", "\udcff"}  # or no UTF-8
    train, val = split_names(((name, name) for name in sorted(names)), val_share=share)
    assert sorted([*train, *val]) == sorted(names)
    assert min(len(train), len(val)) >= 1


def test_a_group_is_on_one_side_whatever_else_is_listed_and_the_share_is_kept():
    def split(count):
        return split_names(((f"{v}.{c}", str(v)) for v in range(count) for c in range(2)), val_share=0.1)

    groups = [{name.split(".")[0] for name in side} for side in split(2000)]
    assert not groups[0] & groups[1]
    assert 0.07 < len(groups[1]) / 2000 < 0.13
    assert set(split(1000)[1]) < set(split(2000)[1])
    with pytest.raises(ValueError, match="at least 2 videos"):
        split_names([("a", "x"), ("b", "x")], val_share=0.5)


SIZE = {"height": 16, "width": 16}


def keep_flow(cache, path, count=None):
    """Cache the flow of the first `count` frames of a video's grid; returns the flow and its file."""
    video = Video(path)
    where = flow_path(cache, content_key(path), estimator="brightness", fps=10, stride=None, **SIZE)
    return cached_flow(video, video.grid(fps=10, stride=None)[0][:count], Brightness(), where, **SIZE), where


def test_items_have_the_documented_shapes_and_repeat(folder, tmp_path):
    clips = dataset(folder, tmp_path)
    item, again = clips[7], clips[7]
    assert item.frames.shape == (4, 16, 16, 3)
    assert item.flow.shape == (3, 2, 16, 16)
    assert (item.frames.dtype, item.flow.dtype) == (torch.uint8, torch.float16)
    assert item.fps == pytest.approx(10, rel=1e-3)
    assert item.position == 7
    assert all(torch.equal(a, b) for a, b in zip(item, again))
    assert not torch.equal(item.frames, clips[8].frames)
    # The flow of the crop belongs to the frames of the crop.
    assert torch.equal(item.flow, Brightness()(as_float(item.frames)).half())
    with pytest.raises(IndexError):
        dataset(folder, tmp_path, random=False)[6]


def test_the_device_gets_floats(folder, tmp_path):
    clips = dataset(folder, tmp_path)
    stored = collate([clips[3], clips[4]])
    assert all(torch.equal(a, b) for a, b in zip(stored, default_collate([clips[3], clips[4]])))
    batch = as_floats(stored)
    assert batch.frames.shape == (2, 4, 3, 16, 16)
    assert batch.frames.dtype == batch.flow.dtype == torch.float32
    assert torch.equal(((batch.frames + 1) * 127.5).round().byte().movedim(2, -1), stored.frames)
    assert batch.frames.is_contiguous()
    assert batch.frames.abs().max() <= 1
    assert torch.equal(batch.flow.half(), stored.flow)
    assert torch.equal(batch.position, stored.position)


def make_data(folder, tmp_path, **changes):
    options = {
        "items": "clips", "latents": None, "reading": {}, "root": folder, "val_clips": 9,
        "names": folder_clips(folder, val_share=0.1), "rejected": tmp_path / "r.csv", "max_rejected_share": 0.1,
        "batch_size": 2, "num_workers": 1, "num_frames": 4, "height": 16, "width": 16, "fps": 10, "stride": None,
        "seed": 0, "flow_estimator": Brightness(), "flow_cache": tmp_path,
    }  # fmt: skip
    return clip_data(**options | changes)


def test_a_long_list_is_validated_on_in_part(folder, tmp_path):
    names = ["a"], [f"{number}" for number in range(10)]
    assert make_data(folder, tmp_path, names=names, val_clips=4).val.names == ["0", "2", "5", "7"]
    assert list(make_data(folder, tmp_path, names=names, val_clips=10).val.names) == names[1]
    with pytest.raises(ValueError, match="val_clips=0: must be at least 1"):
        make_data(folder, tmp_path, names=names, val_clips=0)


def test_cached_flow_equals_the_estimated_one(folder, tmp_path):
    clips = dataset(folder, tmp_path)
    estimated = [clips[k] for k in range(6)]
    for name in clips.names:
        keep_flow(tmp_path / "flow", folder / name)
    clips.flow_estimator = SimpleNamespace(name="brightness")
    for position, before in enumerate(estimated):
        assert all(torch.equal(one, other) for one, other in zip(clips[position], before))


def test_the_cache_changes_with_file_settings_and_reader(folder, tmp_path, monkeypatch):
    options = {"estimator": "a", "height": 16, "width": 16, "fps": 10, "stride": None}
    changes = ({}, {"estimator": "b"}, {"height": 8}, {"fps": 5}, {"stride": 2})
    copy, content = tmp_path / "copy.mp4", (folder / "tall.MP4").read_bytes()
    key = content_key(folder / "tall.MP4")
    paths = [flow_path(tmp_path, key, **options | change) for change in changes]
    copy.write_bytes(content)
    os.utime(copy, (1, 1))
    assert content_key(copy) == key, "moved or copied it keeps its flow and its shots"
    for other in (b"\1" + content[1:], content[:-1] + b"\1", content + b"0"):
        copy.write_bytes(other)
        paths.append(flow_path(tmp_path, content_key(copy), **options))
    monkeypatch.setattr(video_index, "READER", video_index.READER + 1)
    paths.append(flow_path(tmp_path, content_key(folder / "tall.MP4"), **options))
    assert len(set(paths)) == len(paths)


def test_flow_of_fewer_frames_than_needed_is_estimated_anew(folder, tmp_path):
    clips = dataset(folder, tmp_path, names=["tall.MP4"], num_frames=6)
    for count, kept in ((4, 4), (8, 8), (6, 8)):
        flow, where = keep_flow(tmp_path / "flow", folder / "tall.MP4", count)
        assert (len(flow), len(np.load(where))) == (count - 1, kept - 1)
        assert len(clips[0].frames) == 6, "of a longer video, whatever is kept"


def test_a_flow_that_is_not_in_the_cache_is_told_once(folder, tmp_path, caplog):
    clips = dataset(folder, tmp_path)
    caplog.clear()
    for position in range(4):
        clips[position]
    assert [record.message.split(" of ")[0] for record in caplog.records] == ["no flow"]
    assert "motionanim.data.prepare" in caplog.records[0].message


@pytest.fixture
def damaged(folder, tmp_path):
    """Six good videos and two that cannot be used."""
    root = shutil.copytree(folder, tmp_path / "damaged")
    (root / "empty.mp4").write_bytes(b"")
    write_video(root / "short.mp4", moving(1, count=3), 10)
    return root


def test_unusable_videos_are_named_and_replaced(damaged, tmp_path, caplog):
    clips = dataset(damaged, tmp_path)
    items = [clips[k] for k in range(8)]  # one epoch: every file once
    assert all(item.frames.shape == (4, 16, 16, 3) for item in items)
    assert torch.equal(items[3].frames, dataset(damaged, tmp_path)[3].frames)
    with open(tmp_path / "rejected.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["path", "reason"]
    assert {Path(path).name: reason for path, reason in rows[1:]} == {
        "empty.mp4": "is empty (0 bytes)",
        "short.mp4": "is too short: 3 frames at 10 a second, 4 are needed",
    }
    assert sum("rejected" in record.message for record in caplog.records) == 2
    fewer = dataset(damaged, tmp_path, rejections=Rejections(tmp_path / "r.csv", total=8, max_share=0.2))
    with pytest.raises(ValueError, match=r"2 of 8 clips cannot be used.*max_rejected_share=0\.2"):
        [fewer[k] for k in range(8)]


def test_plain_videos_hold_no_pairs():
    with pytest.raises(ValueError, match="these videos give clips, the experiment reads pairs: use data=synthetic"):
        clip_data(items="pairs", latents=None, reading={})
