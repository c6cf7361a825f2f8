import os
import subprocess
import sys
import threading
from fractions import Fraction

import av
import numpy as np
import pytest
import torch

from motionanim.data.stream import as_float
from motionanim.data.video import Video, VideoError, cover_size, write_video
from motionanim.media.image_io import to_pixels


def ramp(count, height=48, width=64):
    """Frame k is grey of value 4 k + 20, so that its brightness tells its number."""
    return (torch.arange(count).float() * 4 + 20).view(-1, 1, 1, 1).expand(-1, 3, height, width) / 127.5 - 1


def which(pixels):
    return ((pixels.astype(float).mean((1, 2, 3)) - 20) / 4).round().astype(int).tolist()


def write_timed(path, milliseconds):
    """A variable-rate file: frame k is shown from milliseconds[k] on."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, options={"crf": "5"})
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for picture, time in zip(ramp(len(milliseconds)), milliseconds):
            frame = av.VideoFrame.from_ndarray(to_pixels(picture), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def smooth(count, height, width, seed=0):
    """Random frames without fine detail."""
    small = torch.rand(count, 3, height // 8, width // 8, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    return torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic").clamp(-1, 1)


def test_written_frames_come_back(tmp_path):
    frames = smooth(5, 48, 64)
    write_video(tmp_path / "deep" / "a.mp4", frames, 7.5)
    video = Video(tmp_path / "deep" / "a.mp4")
    assert video.info == (5, pytest.approx(7.5, rel=1e-3), pytest.approx(5 / 7.5, rel=1e-2))
    assert video.size() == (48, 64)
    back = as_float(torch.from_numpy(video.read(np.arange(5), height=48, width=64)))
    # Only luma, because yuv420p halves the resolution of colour.
    luma = torch.tensor([0.2126, 0.7152, 0.0722]).view(3, 1, 1)
    assert ((back - frames) * luma).sum(1).abs().mean() < 0.02
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.mp4"]


@pytest.mark.slow
def test_the_same_frames_are_the_same_bytes_whatever_else_the_process_does(tmp_path):
    frames, done = smooth(7, 76, 100), threading.Event()

    def busy():
        while not done.is_set():  # writes and frees other memory meanwhile
            torch.rand(300, 300) @ torch.rand(300, 300)

    other = threading.Thread(target=busy)
    other.start()
    try:
        found = set()
        for _ in range(20):
            write_video(tmp_path / "a.mp4", frames, 7)
            found.add((tmp_path / "a.mp4").read_bytes())
    finally:
        done.set()
        other.join()
    assert len(found) == 1


def test_a_failed_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "a.mp4"
    write_video(path, ramp(3), 7)
    before = path.read_bytes()
    for frames, fps in ((ramp(3)[..., :63], 7), (ramp(3), 0), (ramp(3)[:0], 7)):
        with pytest.raises(ValueError, match=r"must be"):
            write_video(path, frames, fps)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("rate", "fps", "stride", "expected", "actual"),
    [
        (30, 7, None, [0, 4, 8, 12, 16], 7.5),
        (10, 7, None, list(range(20)), 10),
        (5, 7, None, list(range(20)), 5),
        (30, 7, 5, [0, 5, 10, 15], 6),
    ],
)
def test_the_grid_takes_whole_steps(tmp_path, rate, fps, stride, expected, actual):
    write_video(tmp_path / "a.mp4", ramp(20), rate)
    video = Video(tmp_path / "a.mp4")
    indices, got = video.grid(fps=fps, stride=stride)
    assert indices.tolist() == expected
    assert got == pytest.approx(actual, rel=1e-3)
    assert which(video.read(indices, height=48, width=64)) == expected


def test_variable_rate_follows_the_clock(tmp_path):
    """Frames every 40 ms with a pause of 400 ms, which would vanish if frames were taken by number."""
    times = [40 * k for k in range(10)] + [760 + 40 * k for k in range(10)]
    write_timed(tmp_path / "a.mp4", times)
    video = Video(tmp_path / "a.mp4")
    assert video.info.fps == pytest.approx(25, rel=1e-2)
    indices, fps = video.grid(fps=12.5, stride=None)
    assert fps == pytest.approx(12.5, rel=1e-2)
    ticks = np.arange(len(indices)) * 80
    assert ticks[-1] == 1120
    away = np.abs(np.array(times)[None] - ticks[:, None])
    assert away[range(len(ticks)), indices].tolist() == away.min(1).tolist()
    assert which(video.read(indices, height=48, width=64)) == indices.tolist()
    assert len(set(indices.tolist())) < len(indices)  # the pause repeats a frame


def test_the_rate_of_few_uneven_frames_is_one_that_occurs(tmp_path):
    write_timed(tmp_path / "a.mp4", [0, 40, 240])
    video = Video(tmp_path / "a.mp4")
    assert video.info.fps == pytest.approx(25, rel=1e-2)
    assert video.grid(fps=5, stride=None)[0].tolist() == [0, 2]


def test_resize_covers_and_keeps_the_shape(tmp_path):
    assert cover_size(1080, 1920, height=64, width=64) == (64, 114)
    assert cover_size(1024, 576, height=64, width=64) == (114, 64)
    assert cover_size(32, 32, height=64, width=48) == (64, 64)
    checks = torch.ones(2, 3, 96, 64)
    checks[..., ::2] = -1
    write_video(tmp_path / "portrait.mp4", checks, 7)
    pixels = Video(tmp_path / "portrait.mp4").read(np.arange(2), height=16, width=16)
    assert pixels.shape == (2, 24, 16, 3)
    assert np.ptp(pixels.astype(int)) < 16  # stripes of one pixel average to grey; without antialiasing they alias


def test_a_reader_that_has_seen_the_end_still_reads(tmp_path):
    write_video(tmp_path / "a.mp4", ramp(40), 10)
    video = Video(tmp_path / "a.mp4")
    for indices in ([38, 39], [0, 1], [39], [20, 39], [5]):
        assert which(video.read(np.array(indices), height=48, width=64)) == indices


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "good.mp4"
    generator = torch.Generator().manual_seed(0)
    write_video(path, torch.rand(20, 3, 48, 64, generator=generator) * 2 - 1, 10)
    return path.read_bytes()


def without_middle(content):
    third = len(content) // 3
    return content[:third] + bytes(third) + content[2 * third :]


def write_audio(path):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        for _ in range(8):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate = 16000
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path, good: None, "cannot be opened"),
        (lambda path, good: path.touch(), "is empty"),
        (lambda path, good: path.write_bytes(b"not a video" * 500), "not a video file"),
        (lambda path, good: path.write_bytes(good[:-4000]), "truncated"),
        (lambda path, good: path.write_bytes(good[:100]), "no video stream"),
        (lambda path, good: path.write_bytes(without_middle(good)), ""),
        (lambda path, good: write_audio(path), "no video stream"),
    ],
)
def test_unusable_files_are_named(tmp_path, good, write, reason):
    path = tmp_path / "broken.mp4"
    write(path, good)
    with pytest.raises(VideoError, match=f"broken.mp4 .*{reason}"):
        Video(path).read(np.arange(20), height=48, width=64)


def test_the_nearest_frame_does_not_depend_on_rounding(tmp_path):
    # 8 a second of 30: every second time lies halfway between two frames, of which the earlier is taken.
    write_video(tmp_path / "a.mp4", ramp(60), 30)
    halfway_down = [-(-(tick * 30 - 4) // 8) for tick in range(16)]
    assert Video(tmp_path / "a.mp4").nearest(np.arange(16) / 8).tolist() == halfway_down
    # The last time lies half an interval after the last frame, and is still its own.
    write_video(tmp_path / "b.mp4", ramp(118), 25)
    places = Video(tmp_path / "b.mp4").nearest(np.arange(48) / 10)
    assert (len(places), places[-1]) == (48, 117)


def test_a_crop_is_that_part_of_the_whole(tmp_path):
    write_video(tmp_path / "a.mp4", ramp(5) + torch.linspace(0, 0.3, 64), 7)
    video, places = Video(tmp_path / "a.mp4"), np.array([0, 2, 2, 3])
    whole = video.read(places, height=20, width=20)
    crop = video.read(places, height=20, width=20, crop=(slice(0, 20), slice(4, 24)))
    np.testing.assert_array_equal(crop, whole[:, :20, 4:24])


@pytest.mark.slow
def test_torch_computes_as_ever_in_a_process_that_imports_videos_first():
    code = "import motionanim.data.video, torch; print((torch.ones(9999, 4) @ torch.ones(4, 48)).sum().item())"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == f"{9999 * 48 * 4:.1f}\n", done.stderr[-2000:]
