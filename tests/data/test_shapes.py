"""Clips in several shapes: which there are, which a video gets, and batches of one shape at exact positions."""

import math
import os
import shutil
from collections import Counter
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from mixed_videos import SHAPES, SIZES, Steady, copied, mixed_data, shapes_32, write_videos
from odd_videos import make

from motionanim.data.clips import flow_path
from motionanim.data.engine import ProcessEngine
from motionanim.data.order import buckets
from motionanim.data.prepare.collect import prepare
from motionanim.data.prepare.examine import Settings
from motionanim.data.stream import StreamData
from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.data.video import Video, VideoError
from motionanim.data.video import sizes as video_sizes
from motionanim.data.video.index import content_key
from motionanim.data.video.sizes import known_sizes, shown_size


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("mixed")
    write_videos(root, 24)
    return root


def test_shapes_fill_the_budget_at_svds_stride() -> None:
    found = buckets(used=True, height=512, width=512, multiple=64, row=16)
    half = [(512, 512), (448, 576), (384, 640), (320, 768), (256, 1024)]
    assert found.shapes == (*((w, h) for h, w in reversed(half[1:])), *half)
    assert found.shapes[found.own] == (512, 512)
    assert buckets(used=False, height=512, width=512, multiple=64, row=16) is None
    for height, width, multiple in ((576, 1024, 64), (320, 512, 64), (128, 128, 16), (64, 1024, 64)):
        found = buckets(used=True, height=height, width=width, multiple=multiple, row=1)
        assert found.shapes[found.own] == (height, width)
        for h, w in found.shapes:
            assert h % multiple == w % multiple == 0
            assert h * w <= height * width < min((h + multiple) * w, h * (w + multiple))


def test_a_video_gets_the_shape_nearest_to_its_own() -> None:
    found = buckets(used=True, height=512, width=512, multiple=64, row=1)
    generator = np.random.default_rng(0)
    sizes = np.concatenate([generator.integers(1, 3000, (500, 2)), [[1080, 1920], [10, 4000], [0, 0]]])
    for (height, width), number in zip(sizes, found.numbers(sizes)):
        if height == 0:
            assert number == found.own, "of a file that cannot be read"
            continue
        distances = [abs(math.log(width / height) - math.log(w / h)) for h, w in found.shapes]
        assert distances[number] == pytest.approx(min(distances))
        assert found.shape_of(height, width) == found.shapes[number]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"multiple": 24}, r"scale.height=32, scale.width=32: must be multiples of scale.bucket_multiple=24"),
        ({"multiple": 0}, "bucket_multiple=0, .*: both must be at least 1"),
        ({"row": 0}, "bucket_clips=0: both must be at least 1"),
        ({"used": "maybe"}, "scale.buckets=maybe: must be true or false"),
    ],
)
def test_shapes_that_cannot_be_are_one_line(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        buckets(**{"used": True, "height": 32, "width": 32, "multiple": 8, "row": 4} | changes)


@pytest.mark.slow
def test_a_size_is_known_from_the_first_frame(tmp_path: Path) -> None:
    names = ["h264.mp4", "h264_sar.mp4", "turned_90.mp4", "turned_sar.mp4", "mpeg4_b_frames.avi", "animated.gif"]
    for path in make(tmp_path, names):
        assert shown_size(path) == Video(path).size(), path
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(VideoError, match="is not a video file"):
        shown_size(tmp_path / "text.mp4")


def test_sizes_are_looked_up_once_until_a_file_changes(folder, tmp_path, monkeypatch):
    root = copied(folder, tmp_path / "root")
    (root / "broken.mp4").write_bytes(b"x")
    paths, kept = [*sorted(root.iterdir()), root / "missing.mp4"], tmp_path / "new" / "sizes.txt"
    monkeypatch.setattr(video_sizes, "shown_size", asked := Mock(side_effect=shown_size))
    sizes = known_sizes(paths, len(paths), kept)
    assert [tuple(size) for size in sizes] == [SIZES[int(path.stem) % 3] if path.stem.isdigit() else (0, 0)
                                              for path in paths]  # fmt: skip
    assert asked.call_count == len(paths) - 1
    with open(kept, "a") as file:
        file.write("0123456789")  # of a run that was killed
    copied_one = root / "0.mp4"
    copied_one.write_bytes((root / "1.mp4").read_bytes())
    asked.reset_mock()
    again = known_sizes(paths, len(paths), kept)
    asked.assert_called_once_with(copied_one)
    assert tuple(again[paths.index(copied_one)]) == SIZES[1]


@pytest.mark.slow
def test_every_row_has_one_shape_and_every_clip_that_of_its_video(folder: Path, tmp_path: Path) -> None:
    train = mixed_data(folder, tmp_path).train
    counts = Counter()
    for row in range(9):
        items = [train[position] for position in range(4 * row, 4 * row + 4)]
        assert len({item.frames.shape for item in items}) == 1
        for position, item in enumerate(items, 4 * row):
            name = train.names[train.order.item(position)]
            assert tuple(item.frames.shape[1:3]) == SHAPES[SIZES[int(Path(name).stem) % 3]]
            assert tuple(item.flow.shape[2:]) == tuple(item.frames.shape[1:3])
        counts[tuple(items[0].frames.shape[1:3])] += 1
    assert set(counts) == set(SHAPES.values())


def test_the_nearest_shape_crops_least(folder: Path, tmp_path: Path) -> None:
    """A clip of 32 x 48 px at 24 x 40 shows 90 % of the picture, at 32 x 32 it would show 67 %."""
    data = mixed_data(folder, tmp_path)
    position = next(p for p in range(99) if data.train[p].frames.shape[2] == 40)
    name = data.train.names[data.train.order.item(position)]
    shown = Video(folder / name).read(np.arange(1), height=24, width=40)
    assert shown.shape[1:3] == (27, 40)


@pytest.mark.slow
def test_loader_processes_read_the_same_batches(folder: Path, tmp_path: Path) -> None:
    batches = []
    for workers in (0, 2):
        data = mixed_data(folder, tmp_path, num_workers=workers)
        data.trainer = one_process()
        loader = iter(data.train_dataloader())
        batches.append([next(loader) for _ in range(6)])
    for alone, shared in zip(*batches):
        assert all(torch.equal(a, b) for a, b in zip(alone, shared))
    assert len({batch.frames.shape for batch in batches[0]}) > 1


def one_process(rank: int = 0, world: int = 1) -> SimpleNamespace:
    progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    strategy = SimpleNamespace(
        root_device=torch.device("cpu"), broadcast=lambda value: value, reduce_boolean_decision=bool
    )
    return SimpleNamespace(
        global_rank=rank, world_size=world, accelerator=None, strategy=strategy, accumulate_grad_batches=1,
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(batch_progress=progress)),
    )  # fmt: skip


def test_a_broken_file_is_replaced_by_one_of_its_shape(folder: Path, tmp_path: Path) -> None:
    root = copied(folder, tmp_path / "root")
    sound = mixed_data(root, tmp_path).train
    assert len(sound.numbers) == len(sound.names)
    wide = [name for name in sound.names if int(Path(name).stem) % 3 == 0]
    broken, left = wide[:2], wide[2:]
    for name in broken:  # damaged after its size was looked up
        state = (root / name).stat()
        (root / name).write_bytes(bytes(state.st_size))
        os.utime(root / name, ns=(state.st_atime_ns, state.st_mtime_ns))
    train = mixed_data(root, tmp_path).train
    place = next(p for p in range(99) if train.names[train.order.item(p)] == broken[0])
    item = train[place]
    assert tuple(item.frames.shape[1:3]) == (24, 40)
    videos = [Video(root / name).read(np.arange(8), height=24, width=40) for name in left]
    crops = [frame[top : top + 24] for video in videos for frame in video for top in range(len(frame) - 23)]
    assert any(np.array_equal(item.frames[0].numpy(), crop) for crop in crops)
    assert broken[0] in train.rejections.path.read_text()


def test_batches_never_cross_rows(folder: Path, tmp_path: Path) -> None:
    data = mixed_data(folder, tmp_path)
    data.trainer = one_process(world=2)
    with pytest.raises(ValueError, match="batch_size=4 times 2 processes must divide scale.bucket_clips=4.* set .*=8"):
        data.train_dataloader()
    data = mixed_data(folder, tmp_path, batch_size=4)
    data.load_state_dict({"clips": 2, "dataset": None, **data._identity()})
    data.trainer = one_process()
    with pytest.raises(ValueError, match="goes on at clip 2, which is no multiple of 4.* a smaller batch"):
        data.train_dataloader()
    data.batch_size = 2
    assert next(iter(data.train_dataloader())).position.tolist() == [2, 3]


def test_a_run_resumes_with_its_shapes_and_weights_only(folder: Path, tmp_path: Path) -> None:
    def state(data: StreamData) -> dict:
        return {"clips": 4, **data._identity()}

    half = copied(folder, tmp_path / "half")
    mixed, plain = mixed_data(folder, tmp_path), mixed_data(folder, tmp_path, shapes=None)
    pool = {str(folder): 2, str(half): 1}
    weighted, other = mixed_data(pool, tmp_path), mixed_data({**pool, str(half): 2}, tmp_path)
    for data in (mixed, plain, weighted):
        data.check_state(state(data))
    moved = copied(folder, tmp_path / "moved")
    mixed_data({str(moved): 2, str(half): 1}, tmp_path).check_state(state(weighted))
    for began, now, message in (
        (mixed, plain, r"shapes of clips 5 in rows of 4 \(\w+\) and would go on with shapes of clips None"),
        (plain, mixed, "shapes of clips None and would go on with shapes of clips 5 in rows of 4"),
        (mixed, mixed_data(folder, tmp_path, shapes=shapes_32(row=8)), "set scale.buckets, bucket_clips"),
        (weighted, other, r"weights \[2, 1\] of its folders and would go on with weights \[2, 2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            now.check_state(state(began))
    assert {"buckets", "weights"}.isdisjoint(state(plain))


def test_validation_is_in_batches_of_one_shape(folder: Path, tmp_path: Path) -> None:
    data = mixed_data(folder, tmp_path, names=(["0.mp4"], [f"{k}.mp4" for k in (0, 1, 2, 3, 4, 6, 7, 9)]))
    for world in (1, 2):
        seen = []
        for rank in range(world):
            data.trainer = one_process(rank, world)
            seen += [batch.position.tolist() for batch in data.val_dataloader()]
        assert sorted(chain(*seen)) == list(range(8))
        assert sorted(map(tuple, seen)) == [(0, 3, 5, 7), (1, 4, 6), (2,)]
    data.trainer = one_process(world=4)
    with pytest.raises(ValueError, match="8 validation clips in batches of one shape are fewer than 4 processes"):
        data.val_dataloader()
    shown = data.first_val(3)
    assert (shown.position.tolist(), tuple(shown.frames.shape[-2:])) == ([0, 3, 5], (24, 40))


def test_roots_are_drawn_from_by_their_weights(folder: Path, tmp_path: Path) -> None:
    few = shutil.copytree(folder, tmp_path / "few", ignore=shutil.ignore_patterns("??.*", "[4-9].*"))
    data = mixed_data({str(folder): 1, str(few): 2}, tmp_path, shapes=None)
    order = data.train.order
    names = [data.train.names[order.item(position)] for position in range(order.length)]
    assert Counter(name[0] for name in names) == {"0": order.length // 3, "1": order.length // 3 * 2}
    assert data.train.path("1/3.mp4") == few / "3.mp4"
    assert data.train[5].frames.shape == (5, 32, 32, 3)
    assert len(data.val) == len({data.val.path(name) for name in data.val.names})
    for root, message in (
        ({str(folder): 0.5}, "has the weight 0.5: must be a whole number from 1 to 1000, such as 7 and 3"),
        ({}, "give folders with their weights"),
        ({str(tmp_path / "gone"): 1}, "is not a folder"),
    ):
        with pytest.raises(ValueError, match=message):
            mixed_data(root, tmp_path)


@pytest.mark.slow
def test_the_procedural_world_takes_turns_in_shape(tmp_path: Path) -> None:
    options = {
        "seed": 3, "length": 4, "num_frames": 3, "height": 32, "width": 32, "moving_camera": 0.5, "split": "train",
        "fps": 7,
    }  # fmt: skip
    mixed = SyntheticClips(shapes=shapes_32(row=2), **options)
    shapes = [tuple(mixed[position].frames.shape[-2:]) for position in range(20)]
    assert shapes[::2] == shapes[1::2]
    for first in (0, 10):
        assert sorted(shapes[first : first + 10 : 2]) == sorted(mixed.shapes.shapes), "each once in so many rows"
    plain = SyntheticClips(**options)
    place = shapes.index((32, 32))
    assert torch.equal(mixed[place].frames, plain[place].frames)


@pytest.mark.slow
def test_prepare_caches_the_flow_that_training_in_shapes_reads(folder: Path, tmp_path: Path) -> None:
    settings = Settings(
        num_frames=5, height=32, width=32, fps=7, stride=None, max_frames=8, camera_fps=4, camera_pairs=1,
        camera_short_side=32, max_camera_speed=1.0, cache_moving=True,
    )  # fmt: skip
    cache = tmp_path / "flow"
    options = {
        "root": folder, "names": ["0.mp4", "1.mp4", "2.mp4"], "out": tmp_path, "cache": cache, "settings": settings,
        "flow_estimator": Steady(), "engine": ProcessEngine(workers=0), "max_static": 9,
    }  # fmt: skip
    assert prepare(**options, shapes=shapes_32())["resumed"] == 0
    for number, size in enumerate(SIZES):
        where = {"estimator": "steady", "fps": 7, "stride": None, **dict(zip(("height", "width"), SHAPES[size]))}
        flow = np.load(flow_path(cache, content_key(folder / f"{number}.mp4"), **where))
        assert flow.shape[2] >= SHAPES[size][0]
        assert flow.shape[3] >= SHAPES[size][1]
    assert prepare(**options, shapes=shapes_32(row=8))["resumed"] == 3, "the row does not matter"
    assert prepare(**options)["resumed"] == 0, "without shapes flow is cached at 32 x 32"
    unasked = SimpleNamespace(name="steady")
    data = mixed_data(folder, cache, names=(["0.mp4", "1.mp4", "2.mp4"], ["3.mp4"]), flow_estimator=unasked)
    assert {tuple(data.train[position].flow.shape[-2:]) for position in range(24)} == set(SHAPES.values())
