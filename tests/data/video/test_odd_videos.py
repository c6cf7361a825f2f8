"""Odd files are read as ffmpeg reads them, or refused with the reason."""

import multiprocessing
import os
from pathlib import Path

import fuzz
import numpy as np
import pytest
import torch
from odd_videos import make
from reading import compare

from motionanim.data.video import Video, VideoError, write_video
from motionanim.data.video import frames as video_frames
from motionanim.data.video import index as video_index

REJECTED = {"pause_of_an_hour.mkv", "turned_30.mp4", *(f"truncated_{part}.mp4" for part in range(10, 99, 20))}


QUICK = [
    "h264.mp4", "h264_open_gop.mp4", "h264_sar.mp4", "mpeg4_b_frames.avi", "mid_gop.mkv", "turned_90.mp4",
    "turned_sar.mp4", "edit_list.mp4",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd")
    make(folder, [*QUICK, "turned_30.mp4", "pause_of_an_hour.mkv", "truncated_70.mp4"])
    return folder


@pytest.mark.parametrize(
    "names", [QUICK, pytest.param(None, marks=(pytest.mark.slow, pytest.mark.long))], ids=["quick", "all"]
)
def test_what_is_read_is_what_ffmpeg_writes(folder, names):
    rows = [compare(path) for path in make(folder, names)]
    assert [row for row in rows if not row.right or (row.result != "equal" and row.name not in REJECTED)] == []


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("h264_sar.mp4", (112, 384)),  # pixels twice as wide as high
        ("turned_sar.mp4", (384, 112)),
        ("turned_90.mp4", (192, 112)),
    ],
)
def test_sizes_are_those_of_square_pixels_as_shown(folder, name, shown):
    assert Video(folder / name).size() == shown


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("pause_of_an_hour.mkv", "shows frame 36 for 3600 s: cut the file there"),
        ("turned_30.mp4", "it is turned by an angle that is no multiple of 90 degrees"),
        ("truncated_70.mp4", "is truncated: its index points past its end"),
    ],
)
def test_what_cannot_be_read_says_why(folder, name, reason):
    with pytest.raises(VideoError, match=f"{name} .*{reason}"):
        Video(folder / name).size()


def test_any_name_is_read_or_refused_by_name(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("20:15.mp4", "http:a.mp4", "%d [v2].mp4", "川.mp4"):
        Path(name).write_bytes((folder / "h264.mp4").read_bytes())
        video = Video(name)
        assert (video.size(), video.uses_decord) == ((112, 192), True)
        write_video(name, torch.zeros(2, 3, 64, 64), 10)
        assert Video(name).size() == (64, 64)
    name = os.fsdecode(b"a\xff.mp4")
    Path(name).write_bytes((folder / "h264.mp4").read_bytes())
    with pytest.raises(VideoError, match="has a name that is not UTF-8: rename it"):
        Video(name)


@pytest.fixture
def no_index(monkeypatch):
    """Forgets the indices of earlier tests."""
    monkeypatch.setattr(video_index, "_kept", video_index._Kept())


def test_a_large_file_is_not_read_to_learn_its_times(tmp_path, monkeypatch):
    path, read = str(tmp_path / "a.mp4"), []
    write_video(path, torch.rand(40, 3, 128, 128, generator=torch.Generator().manual_seed(0)) * 2 - 1, 10)
    usual = video_index.read_index(path)
    monkeypatch.setattr(video_index, "DECORD_BYTES", 0)
    monkeypatch.setattr(video_index, "_kept", video_index._Kept())

    class Counted(video_index.WithoutPayload):
        def read(self, length):
            data = super().read(length)
            read.append(len(data) if any(data) else 0)
            return data

    monkeypatch.setattr(video_index, "WithoutPayload", Counted)
    seen = video_index.read_index(path)
    assert all(np.array_equal(a, b) for a, b in zip(seen[:4], usual[:4]))
    assert not seen.plain  # decord would read the whole file
    assert 0 < sum(read) < os.path.getsize(path) / 4
    assert Video(path).read(np.array([0, 30]), height=128, width=128).shape == (2, 128, 128, 3)


@pytest.mark.parametrize(
    ("name", "place"),
    [("h264.mp4", 60), ("h264_open_gop.mp4", 59)],  # the second is shown before its key frame
)
def test_a_frame_of_a_large_file_is_decoded_from_the_key_frame_before_it(folder, no_index, monkeypatch, name, place):
    decoded, after_seek = [], video_frames._after_seek

    def counted(*arguments):
        for frame in after_seek(*arguments):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(video_frames, "_after_seek", counted)
    monkeypatch.setattr(video_frames, "decoded", None)  # decodes from the beginning
    monkeypatch.setattr(video_index, "DECORD_BYTES", 0)
    assert Video(folder / name).read(np.array([place]), height=112, width=192).shape == (1, 112, 192, 3)
    assert 0 < len(decoded) <= 24, "of 72 frames, at least every 24th a key frame"


@pytest.mark.parametrize("times", [lambda number: None, lambda number: 9 - number])
def test_frames_without_times_in_order_are_shown_at_the_files_rate(folder, no_index, monkeypatch, times):
    """FFmpeg gives such times for some AVI files."""
    decoded = video_index.decoded

    def timed(container, stream):
        for number, frame in enumerate(decoded(container, stream)):
            frame.pts = times(number)
            yield frame

    monkeypatch.setattr(video_index, "decoded", timed)
    video = Video(folder / "mpeg4_b_frames.avi")
    assert (video.info.num_frames, video.info.fps, video.info.seconds) == (72, pytest.approx(24), 3)


def test_frames_that_would_fill_the_memory_are_refused(folder, monkeypatch):
    """A damaged header can claim any size."""
    monkeypatch.setattr(video_frames, "MOST_PIXELS", 192 * 112 - 1)
    with pytest.raises(VideoError, match="mpeg4_b_frames.avi cannot be decoded: its frames have 192x112 px"):
        Video(folder / "mpeg4_b_frames.avi").size()


def test_an_index_is_read_once_and_anew_when_the_file_changes(tmp_path, monkeypatch):
    path, read = tmp_path / "a.mp4", []
    reader = video_index._from_packets
    monkeypatch.setattr(video_index, "_from_packets", lambda *file: read.append(file) or reader(*file))
    for count in (4, 5):
        write_video(path, torch.zeros(count, 3, 64, 64), 10)
        assert [Video(path).info.num_frames for _ in range(3)] == [count] * 3
    assert len(read) == 2
    kept = video_index._Kept()
    for number in range(3):
        times = np.arange(900_000)
        kept.keep((number,), video_index.VideoIndex(times, 1.0, times, None, 1, True, 1))
    assert list(kept) == [(1,), (2,)]


@pytest.mark.long
@pytest.mark.slow
def test_damaged_files_end_no_process(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(fuzz, "make", lambda _: make(folder))
    server = multiprocessing.get_context("forkserver")  # one process imports all, and each reader is a fork of it
    server.set_forkserver_preload(["fuzz"])
    monkeypatch.setattr(fuzz.multiprocessing, "get_context", lambda _: server)
    found = fuzz.fuzz(tmp_path / "out.jsonl", {"video": 12, "picture": 18, "arrows": 12}, seed=1)
    assert sum(found.values()) == 42
    assert [what for what in found if "FAULT" in what] == []
