"""`prepare` examines videos, keeps the results, and examines files again after a kill or a change."""

import json
import os
from pathlib import Path
from unittest.mock import Mock

import cv2
import forked
import numpy as np
import pytest
import torch
from layouts import write_hdvila
from omegaconf import OmegaConf

from motionanim.data.clips import VideoClips
from motionanim.data.engine import ProcessEngine
from motionanim.data.folder import folder_names
from motionanim.data.hdvila import hdvila_names, hdvila_static_clips
from motionanim.data.prepare import collect
from motionanim.data.prepare.collect import prepare
from motionanim.data.prepare.examine import Settings, camera_speed
from motionanim.data.prepare.journal import opened_journal
from motionanim.data.rejections import Rejections
from motionanim.data.stream import as_float
from motionanim.data.video import Video, write_video
from motionanim.models.flow_estimator import DisFlow

REPOSITORY = Path(__file__).parents[2]
CONFIGURED = OmegaConf.load(REPOSITORY / "conf" / "prepare.yaml").settings
LIMIT = CONFIGURED.max_camera_speed
SETTINGS = Settings(
    num_frames=4, height=64, width=64, fps=5, stride=None, max_frames=6,
    camera_fps=4, camera_pairs=2, camera_short_side=96, max_camera_speed=LIMIT, cache_moving=True,
)  # fmt: skip
DIS = DisFlow(preset="medium", min_side=96)


def scene(pan, count=16, size=96):
    """A textured scene with a small moving square, seen through a window that moves by `pan` px per frame."""
    generator = torch.Generator().manual_seed(0)
    texture = torch.rand(1, 3, 24, 60, generator=generator) * 2 - 1
    texture = torch.nn.functional.interpolate(texture, size=(size, 240), mode="bicubic").clamp(-1, 1)[0]
    frames = torch.stack([texture[:, :, round(pan * k) : round(pan * k) + size] for k in range(count)])
    for k in range(count):
        frames[k, :, 40:60, 20 + k : 40 + k] = 1.0
    return frames


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "still.mp4", scene(0), 10)
    write_video(root / "pan.mp4", scene(1.5), 10)
    (root / "empty.mp4").write_bytes(b"")
    write_video(root / "short.mp4", scene(0, count=3), 10)
    return root


def run(root, out, settings=SETTINGS, names=None, estimator=DIS, workers=0, max_static=10):
    return prepare(
        root=root, names=names or folder_names(root), out=out, cache=out / "flow", settings=settings,
        flow_estimator=estimator, engine=ProcessEngine(workers=workers), max_static=max_static,
    )  # fmt: skip


def index(out):
    return {record["name"]: record for record in map(json.loads, (out / "index.jsonl").read_text().splitlines())}


def test_results_say_what_was_found(videos, tmp_path):
    counts = run(videos, tmp_path)
    assert counts == {"clips": 4, "static": 1, "moving": 1, "rejected": 2, "joined": 0, "resumed": 0}
    records = index(tmp_path)
    assert (tmp_path / "static.txt").read_text() == "still.mp4\n"
    assert records["still.mp4"]["camera_speed"] < LIMIT / 3
    # 15 px/s over a diagonal of 96 sqrt 2.
    assert records["pan.mp4"]["camera_speed"] == pytest.approx(15 / (96 * 2**0.5), rel=0.1)
    assert records["pan.mp4"]["motion_strength"] > 1
    assert (records["pan.mp4"]["height"], records["pan.mp4"]["width"], records["pan.mp4"]["num_frames"]) == (96, 96, 16)
    rejected, report = ((tmp_path / name).read_text() for name in ("rejected.csv", "report.md"))
    for words in ("empty.mp4,is empty", 'short.mp4,"is too short: 2 frames'):
        assert words in rejected
    note = "Of 2 clips only the first 6 frames will be used for training, and 1 s are left out: raise settings."
    for words in ("| rejected | 2 |", "| in static.txt | 1 |", "| is empty (0 bytes) | 1 |", note):
        assert words in report
    flows = list((tmp_path / "flow").rglob("*.npy"))
    assert len(flows) == 2
    assert {np.load(flow).shape for flow in flows} == {(5, 2, 64, 64)}


@pytest.mark.slow
def test_a_run_killed_at_any_moment_resumes_and_what_is_done_is_not_done_again(videos, tmp_path):
    first = run(videos, tmp_path)
    journal, expected = (tmp_path / "journal.jsonl").read_bytes(), index(tmp_path)
    before = {
        name: (tmp_path / name).read_bytes() for name in ("index.jsonl", "static.txt", "rejected.csv", "report.md")
    }
    # A journal cut by a kill, a whole one, and one that two runs wrote together before there was a lock.
    cut = (journal[:size] for size in (0, 1, len(journal) // 2, len(journal) - 1))
    for content in (*cut, journal, journal + b"{torn\n" + journal):
        (tmp_path / "journal.jsonl").write_bytes(content)
        estimator = Mock(wraps=DIS)
        estimator.name = DIS.name
        counts = run(videos, tmp_path, estimator=estimator)
        assert {**counts, "resumed": 0} == first
        assert index(tmp_path) == expected
        assert len(set((tmp_path / "journal.jsonl").read_bytes().splitlines()) - {b"{torn"}) == 4
        if len(content) >= len(journal):
            assert (counts["resumed"], estimator.call_count) == (4, 0)
            assert {name: (tmp_path / name).read_bytes() for name in before} == before


@pytest.mark.slow
def test_changed_files_settings_and_readers_are_done_anew(videos, tmp_path, monkeypatch):
    root = tmp_path / "copy"
    root.mkdir()
    for name in ("still.mp4", "pan.mp4"):
        (root / name).write_bytes((videos / name).read_bytes())
    assert run(root, tmp_path / "out")["resumed"] == 0
    os.utime(root / "pan.mp4", (1, 1))
    assert run(root, tmp_path / "out")["resumed"] == 1
    monkeypatch.setattr(collect, "READER", collect.READER + 1)
    assert run(root, tmp_path / "out")["resumed"] == 0
    assert run(root, tmp_path / "out", settings=SETTINGS._replace(num_frames=5))["resumed"] == 0
    assert len(index(tmp_path / "out")) == 2


def test_moving_clips_need_not_be_cached(videos, tmp_path):
    run(videos, tmp_path, settings=SETTINGS._replace(cache_moving=False))
    assert index(tmp_path)["pan.mp4"]["motion_strength"] is None
    assert len(list((tmp_path / "flow").rglob("*.npy"))) == 1


@pytest.mark.slow
def test_hdvila_gives_the_static_subset(tmp_path):
    clips = {f"v{k}": [scene(0), scene(1.5)] for k in range(3)}
    jsonl, root = write_hdvila(tmp_path / "hd", clips, fps=10)
    run(root, tmp_path / "out", names=hdvila_names(root, jsonl=jsonl), max_static=2)
    chosen = (tmp_path / "out" / "static.txt").read_text().split()
    assert len(chosen) == 2
    assert all(name.endswith(".0.mp4") for name in chosen)
    train, val = hdvila_static_clips(root, names=tmp_path / "out" / "static.txt", val_share=0.5)
    assert sorted([*train, *val]) == chosen


@pytest.mark.slow
def test_shots_are_told_apart_and_no_clip_crosses_a_border(tmp_path):
    root, bright = tmp_path / "videos", scene(0).flip(-1) * 0.5 + 0.5
    write_video(root / "joined.mp4", torch.cat([scene(0), bright]), 10)
    write_video(root / "still.mp4", scene(0, count=32), 10)
    write_video(root / "short.mp4", torch.cat([scene(0)[:6], bright[:6]]), 10)
    counts = run(root, tmp_path, settings=SETTINGS._replace(max_frames=99))
    assert counts == {"clips": 3, "static": 1, "moving": 1, "rejected": 1, "joined": 1, "resumed": 0}
    assert (tmp_path / "static.txt").read_text() == "still.mp4\n", "two still scenes are no still scene"
    joined, still = (index(tmp_path)[name] for name in ("joined.mp4", "still.mp4"))
    assert (joined["borders"], still["borders"]) == ([[15, 16]], [])
    assert joined["motion_strength"] < 2 * still["motion_strength"], "without the step across the border"
    assert "has no shot of 4 frames: each of its 2 is shorter" in (tmp_path / "rejected.csv").read_text()
    root = root.rename(tmp_path / "moved")  # its flow and its borders are still found
    options = {"flow_cache": tmp_path / "flow", "seed": 0, "num_frames": 4, "fps": 5, "stride": None}
    for estimator in (DIS, DisFlow(preset="fast", min_side=96)):  # with a cached flow and without
        clips = VideoClips(
            root=root, names=["joined.mp4"], random=True, height=64, width=64, flow_estimator=estimator,
            rejections=Rejections(tmp_path / "r.csv", total=9, max_share=1), **options,
        )  # fmt: skip
        means = torch.stack([clips[position].frames.float().mean((1, 2, 3)) for position in range(24)])
        assert (means.amax(1) - means.amin(1)).max() < 20
        assert means.max() - means.min() > 40, "clips of both shots"


def test_two_runs_cannot_write_one_folder(videos, tmp_path):
    with opened_journal(tmp_path), pytest.raises(ValueError, match=rf"is being written by process {os.getpid()} on "):
        run(videos, tmp_path)


def test_a_clip_whose_reader_was_killed_is_asked_again(videos, tmp_path):
    options = {"root": videos, "names": ["pan.mp4", "still.mp4", "pan.mp4"], "out": tmp_path}
    options |= {"cache": tmp_path / "flow", "settings": SETTINGS, "flow_estimator": DIS, "max_static": 9}

    def engine(function, tasks, lost):
        return (lost(*task) if task[0] == killed else function(*task) for task in tasks)

    for killed, rejected, resumed in (("pan.mp4", 1, 0), (None, 0, 1)):  # noqa: B007  `engine` reads it
        counts = prepare(engine=engine, **options)
        assert (counts["clips"], counts["rejected"], counts["resumed"]) == (2, rejected, resumed)
        assert ("pan.mp4,ends the process" in (tmp_path / "rejected.csv").read_text()) == bool(rejected)


def test_a_disk_that_goes_away_stops_the_run_and_costs_nothing(videos, tmp_path, monkeypatch):
    names = [f"{k}.mp4" for k in range(300)]
    for name in names:
        os.link(videos / "empty.mp4", tmp_path / name)
    seen = []

    def gone_after(name, *rest):
        seen.append(name)
        reason = "cannot be opened: Stale file handle" if len(seen) >= 50 else "is empty (0 bytes)"
        return {"name": name, "key": rest[0], "reason": reason}

    monkeypatch.setattr(collect, "examine", gone_after)
    with pytest.raises(ValueError, match="100 clips in a row cannot be opened, the last: .*148.mp4: see whether"):
        run(tmp_path, tmp_path / "out", names=names)
    assert len((tmp_path / "out" / "journal.jsonl").read_text().splitlines()) == 49, "the others are asked again"


@pytest.mark.long
@pytest.mark.slow
def test_the_command_works_with_worker_processes(videos, tmp_path):
    command = ["-m", "motionanim.data.prepare", f"root={videos}", f"out={tmp_path / 'out'}",
               f"flow_cache={tmp_path / 'flow'}", "settings.num_frames=4", "engine.workers=1"]  # fmt: skip
    done = forked.run(*command, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr
    assert "| static | 1 |" in done.stdout


def panned(path, source, speed):
    """Write 1 s of a video, 360 px high, through a window of 0.8 of its size that moves by `speed` of the file's px."""
    video = Video(source)
    height, width = video.size()
    rate = video.info.fps
    count = min(video.info.num_frames, int(rate), int(0.2 * width / speed))
    side = min(360, height, width)
    speed *= side / min(height, width)
    frames = video.read(np.arange(count), height=side, width=side)
    height, width = frames.shape[1:3]
    tall, wide = int(height * 0.8) // 2 * 2, int(width * 0.8) // 2 * 2
    moved, flags = np.float32([[0, 0, speed], [0, 0, 0]]), cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    views = [cv2.warpAffine(f, np.eye(2, 3) + k * moved, (wide, tall), flags=flags) for k, f in enumerate(frames)]
    write_video(path, as_float(torch.from_numpy(np.stack(views))), rate)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["bottles_static_camera", "person_static_camera", "calm_river", "flower_cc0", "rain_on_leaves", "reeds_in_wind",
     "stream_90frames"],
)  # fmt: skip
def test_real_static_clips_are_static_and_panned_copies_are_not(shared, tmp_path, name):
    estimator, source = DisFlow(preset="medium", min_side=256), shared / "clips" / f"{name}.mp4"
    camera = {name: CONFIGURED[f"camera_{name}"] for name in ("fps", "pairs", "short_side")}
    assert camera_speed(Video(source), estimator, **camera) < LIMIT
    panned(tmp_path / "panned.mp4", source, 1.0)
    assert camera_speed(Video(tmp_path / "panned.mp4"), estimator, **camera) > 1.2 * LIMIT


@pytest.mark.parametrize(
    "wrong", [{"num_frames": 1}, {"max_frames": 3}, {"stride": 0}, {"camera_fps": 0}, {"camera_pairs": 0}]
)
def test_settings_out_of_range_and_folders_without_a_usable_video_are_refused(tmp_path, wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"settings.{name}={value}: must be"):
        run(tmp_path, tmp_path / "out", settings=SETTINGS._replace(**wrong))
    Path(tmp_path, os.fsdecode(b"\xff.mp4")).write_bytes(b"")
    with pytest.raises(ValueError, match="none of 1 videos"):
        run(tmp_path, tmp_path / "out")
    assert "/\\xff.mp4,has a name that is not UTF-8" in (tmp_path / "out" / "rejected.csv").read_text()
