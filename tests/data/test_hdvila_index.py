"""The index of clips holds the same clips as the plain reader, in bounded memory, whole or not at all."""

import gc
import json
import multiprocessing
import os
import pickle
import shutil
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from layouts import six_videos
from torch.utils.data import DataLoader

from motionanim.data import hdvila, hdvila_index
from motionanim.data.file_lists import split_names
from motionanim.data.hdvila import hdvila_clips, hdvila_names, video_of
from motionanim.data.hdvila_index import changes, split_index, write_index
from motionanim.data.order import shuffled_index
from motionanim.data.stream import StreamData, list_fingerprint


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return six_videos(tmp_path_factory.mktemp("hdvila"))


@pytest.mark.parametrize(("rows", "val_share"), [(1, 0.001), (5, 0.4), (4096, 0.999)])
def test_the_index_gives_the_clips_of_the_plain_reader(layout, tmp_path, monkeypatch, rows, val_share):
    monkeypatch.setattr(hdvila_index, "ROWS", rows)
    jsonl, root = layout
    plain = split_names(((name, video_of(name)) for name in hdvila_names(root, jsonl=jsonl)), val_share=val_share)
    indexed = hdvila_clips(root, jsonl=jsonl, val_share=val_share, index=tmp_path)
    for one, other in zip(plain, indexed):
        assert len(one) == len(other) >= 1
        assert list(one) == list(other) == [other[k] for k in range(len(other))]
        for outside in (len(other), -1):
            with pytest.raises(IndexError):
                other[outside]
    assert not set(map(video_of, indexed[0])) & set(map(video_of, indexed[1]))


def test_names_of_any_bytes_survive(tmp_path):
    names = ["ü/ö.mp4", "a b.mp4", b"\xff\xfe.mp4".decode(errors="surrogateescape"), ""]
    write_index(tmp_path / "i.arrow", ((name, name) for name in names))
    train, val = split_index(tmp_path / "i.arrow", val_share=0.5)
    assert sorted([*train, *val]) == sorted(names)


@pytest.mark.slow
def test_other_processes_are_sent_its_path_alone(tmp_path):
    write_index(tmp_path / "i.arrow", (("n" * k, str(k)) for k in range(1, 40)))
    train, _ = split_index(tmp_path / "i.arrow", val_share=0.1)
    sent = pickle.dumps(train)
    assert len(sent) < 500
    assert list(pickle.loads(sent)) == list(train)
    options = {"num_workers": 2, "multiprocessing_context": "fork", "collate_fn": lambda names: names[0]}
    assert list(DataLoader(train, 1, **options)) == list(train), "forks share its open file"


def test_a_list_is_read_once_and_anew_when_it_changes(layout, tmp_path, monkeypatch, caplog):
    source, root = layout
    jsonl = tmp_path / "meta.jsonl"
    jsonl.write_text(source.read_text())
    reads, read = [], hdvila._videos
    monkeypatch.setattr(hdvila, "_videos", lambda path: reads.append(path) or read(path))
    options = {"jsonl": jsonl, "index": tmp_path / "index"}
    first = hdvila_clips(root, val_share=0.4, **options)
    with caplog.at_level("INFO"):
        again = hdvila_clips(root, val_share=0.8, **options)
    assert caplog.text.count(f"the list of clips in {again[0].path} is used") == 1
    assert len(reads) == 1, "another split needs no other index"
    assert sorted([*first[0], *first[1]]) == sorted([*again[0], *again[1]])
    assert caplog.text.count("is made: there is none yet") == 1
    jsonl.write_text("".join(source.read_text().splitlines(keepends=True)[:3]))
    shorter = hdvila_clips(root, val_share=0.4, **options)
    assert len(reads) == 2
    assert len(shorter[0]) + len(shorter[1]) == 6


def toggle(file: Path) -> None:
    if file.exists():
        file.unlink()
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


@pytest.mark.parametrize(
    ("changed", "count", "why"),
    [
        ("vid-9/vid-9.0.mp4", 4, "came or went"), ("vid-1/vid-1.1.mp4", 4, "vid-1 changed"),
        ("vid-0/vid-0.0.mp4", 2, "vid-0.0.mp4 is gone"),
    ],
)  # fmt: skip
def test_a_stale_index_is_made_anew(tmp_path, caplog, changed, count, why):
    root, jsonl, index = tmp_path / "clips", tmp_path / "meta.jsonl", tmp_path / "index"
    lines = [{"video_id": f"vid-{k}", "clip": [{"clip_id": f"vid-{k}.{n}.mp4"} for n in (0, 1)]} for k in (0, 1, 2, 9)]
    jsonl.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for k in range(3):
        toggle(root / f"vid-{k}" / f"vid-{k}.0.mp4")
    assert sum(map(len, hdvila_clips(root, jsonl=jsonl, val_share=0.4, index=index))) == 3
    time.sleep(0.02)  # longer than a tick of the disk's clock
    toggle(root / changed)
    caplog.clear()
    assert sum(map(len, hdvila_clips(root, jsonl=jsonl, val_share=0.4, index=index))) == count
    assert why in caplog.text


def test_a_run_goes_on_with_the_list_that_it_began_with(layout, tmp_path):
    jsonl, root = layout[0], shutil.copytree(layout[1], tmp_path / "clips")
    options = {"jsonl": jsonl, "index": tmp_path / "index", "val_share": 0.4}

    def data() -> StreamData:
        clips = SimpleNamespace(names=hdvila_clips(root, **options)[0])
        return StreamData(train=clips, val=[], batch_size=1, num_workers=0)

    began = data()
    state = {"clips": 3, **began._identity()}
    shutil.rmtree(root / began.train.names[0].split("/")[0])
    now = data()
    assert len(now.train.names) < len(began.train.names)
    now.load_state_dict(state)
    assert list(now.train.names) == list(began.train.names)
    with pytest.raises(ValueError, match="the run began with the list of files 0 and would go on"):
        now.load_state_dict(state | {"files": "0"})


def in_a_fork(function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    with multiprocessing.get_context("fork").Pool(1) as pool:
        return pool.apply(function, arguments, options)


def test_a_process_takes_the_list_of_the_one_that_started_it(layout, tmp_path):
    jsonl, root = layout[0], shutil.copytree(layout[1], tmp_path / "clips")
    options = {"jsonl": jsonl, "index": tmp_path / "index", "val_share": 0.4}
    began = hdvila_clips(root, **options)[0]
    shutil.rmtree(root / began[0].split("/")[0])
    assert len(in_a_fork(hdvila_clips, root, **options)[0]) == len(began)
    assert len(hdvila_clips(root, **options)[0]) < len(began), "as of now: this process asks anew"


def test_processes_of_one_run_have_one_list(layout, tmp_path, monkeypatch):
    _, root = layout
    write_index(tmp_path / "i.arrow", [("a/a.0.mp4", "a")], root=root)
    assert "a.0.mp4 is gone" in changes(tmp_path / "i.arrow", root)
    for started, said in ((-60, "None"), (60, "is gone")):
        monkeypatch.setattr(hdvila_index, "_STARTED", time.time() + started)
        assert said in str(in_a_fork(changes, tmp_path / "i.arrow", root))


def test_an_index_that_is_interrupted_leaves_nothing(layout, tmp_path):
    jsonl, root = layout
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text(jsonl.read_text() + "{not json\n")
    index = tmp_path / "index"
    with pytest.raises(ValueError, match=r"wrong.jsonl, line 7: not JSON"):
        hdvila_clips(root, jsonl=wrong, val_share=0.4, index=index)
    assert [path.suffix for path in index.iterdir()] == [".lock"]
    wrong.write_text(jsonl.read_text())
    assert len(hdvila_clips(root, jsonl=wrong, val_share=0.4, index=index)[0]) > 0


def test_a_damaged_index_and_too_few_videos_are_refused_in_words(layout, tmp_path):
    jsonl, root = layout
    hdvila_clips(root, jsonl=jsonl, val_share=0.4, index=tmp_path)
    (path,) = tmp_path.glob("*.arrow")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=rf"{path} is damaged: delete it"):
        hdvila_clips(root, jsonl=jsonl, val_share=0.4, index=tmp_path)
    write_index(path, [("a/v.1.mp4", "v"), ("a/v.2.mp4", "v")])
    with pytest.raises(ValueError, match="2 clips, all of one video"):
        split_index(path, val_share=0.4)
    write_index(path, [("a", "a"), ("b", "b")])
    with pytest.raises(ValueError, match="val_share=1: must be between 0 and 1"):
        split_index(path, val_share=1)


def peak(root: Path, lines: int) -> tuple[int, int]:
    """Most bytes that Python held, and bytes that Arrow holds, after a list was indexed, split and read."""
    jsonl = root / f"{lines}.jsonl"
    with jsonl.open("w") as file:
        for k in range(lines):
            file.write(json.dumps({"video_id": f"v{k:07}", "clip": [{"clip_id": f"v{k:07}.0.mp4"}]}) + "\n")
    gc.collect()
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    train, _ = hdvila_clips(root, jsonl=jsonl, val_share=0.1, index=root / "index")
    for position in range(20):
        assert train[len(train) // 20 * position].endswith(".0.mp4")
    arrow = pa.total_allocated_bytes() - before
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(train) > 0.85 * lines
    return most, arrow


@pytest.mark.slow
def test_memory_does_not_grow_with_the_list(tmp_path, monkeypatch):
    # 24 000 clips on disk
    monkeypatch.setattr(hdvila, "_files", lambda folder: {f"{os.path.basename(folder)}.0.mp4"})
    monkeypatch.setattr(os.path, "isfile", lambda path: True)
    peak(tmp_path, 1_000)  # allocates what is allocated once
    small, large = peak(tmp_path, 8_000), peak(tmp_path, 24_000)
    assert large[0] < 1.1 * small[0] < 8e6
    assert large[1] < 1.1 * small[1] + 1e5, "8 bytes a clip would be 1.3e5 more"


def test_a_hundred_million_items_are_shuffled_in_little_memory():
    length = 100_000_000
    tracemalloc.start()
    indices = [shuffled_index(0, position, length) for position in range(500)]
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 50e6
    assert len(set(indices)) == 500
    assert max(indices) - min(indices) > length / 2


def test_processes_that_found_other_lists_do_not_train():
    data = StreamData(train=SimpleNamespace(names=["a", "b"]), val=[], batch_size=1, num_workers=0)
    for first, world_size in ((["a", "b"], 2), (["a"], 1)):
        files = list_fingerprint(first)
        strategy = SimpleNamespace(broadcast=lambda _: [files, None], reduce_boolean_decision=bool)  # noqa: B023
        data.trainer = SimpleNamespace(world_size=world_size, strategy=strategy)
        data._check_one_list()
    data.trainer.world_size = 2
    with pytest.raises(ValueError, match="found other lists of files"):
        data._check_one_list()
