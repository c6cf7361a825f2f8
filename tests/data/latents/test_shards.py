"""Shards give back what was written, in an order that does not depend on batch size or world size."""

import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import shard_runs
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load
from shard_runs import made, numbers_of, prepared, sample
from torch.utils.data import DataLoader

from motionanim.data.latents.shards import ShardLayout, Shards, finished_shard, shard_name, shard_ranges, write_shard
from motionanim.data.order import shuffled_index
from motionanim.data.stream import PositionSampler, StreamData, collate
from motionanim.data.synthetic.clips import SyntheticClips


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "latents")


# The order.


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 60), shard=st.integers(1, 9), block=st.integers(1, 9), seed=st.integers(0, 5))
def test_every_epoch_is_a_permutation_that_reads_few_shards_at_a_time(length, shard, block, seed):
    for epoch in (0, 3):
        positions = range(epoch * length, (epoch + 1) * length)
        order = [shuffled_index(seed, p, length, shard=shard, block=block) for p in positions]
        assert sorted(order) == list(range(length))
        groups = [[]]
        for index in order:  # cut into runs of at most `block` shards; a shard is never met again later
            if index // shard not in groups[-1]:
                if len(groups[-1]) == block:
                    groups.append([])
                groups[-1].append(index // shard)
        met = [number for group in groups for number in group]
        assert len(met) == len(set(met))


def test_the_order_is_shuffled_and_differs_by_epoch_and_seed():
    epochs = [range(60), range(60, 120)]
    orders = {tuple(shuffled_index(s, p, 60, shard=4, block=3) for p in e) for s in (0, 1) for e in epochs}
    assert len(orders | {tuple(range(60))}) == 5


@pytest.mark.slow
def test_any_world_size_batch_size_and_start_reads_the_same_clips_in_the_same_order(folder):
    data = prepared(folder)
    whole = numbers_of(data, range(48))
    assert sorted(whole[:23]) == list(range(23))
    for world, batch, workers in ((1, 4, 0), (2, 2, 1), (3, 2, 0), (4, 1, 2)):
        start = 5  # clips that were trained on before, with another batch size
        by_rank = []
        for rank in range(world):
            sampler = PositionSampler(start=start, batch_size=batch, rank=rank, world_size=world)
            loader = iter(DataLoader(data, batch, sampler=sampler, num_workers=workers, collate_fn=collate))
            by_rank.append([next(loader) for _ in range(4)])
        seen = [int(b.image[row, 0, 0, 0]) for step in zip(*by_rank) for b in step for row in range(batch)]
        assert seen == whole[start : start + len(seen)]


def test_a_resumed_run_keeps_what_decides_its_clips(folder, tmp_path):
    def rendered(seed: int) -> SyntheticClips:
        size = {"num_frames": 2, "height": 16, "width": 16}
        return SyntheticClips(seed=seed, length=1, fps=7, moving_camera=0, split="train", **size)

    def stream(train: Sequence) -> StreamData:
        return StreamData(train=train, val=[], batch_size=1, num_workers=0)

    data = prepared(folder)
    fast, slow = (SimpleNamespace(flow_estimator=SimpleNamespace(name=f"raft-{number}")) for number in (1, 2))
    state = {"clips": 7, "dataset": data.fingerprint}
    stream(prepared(folder, seed=5)).load_state_dict(state)  # of an earlier version, which did not store the order
    for train in ([], fast):
        stream(train).load_state_dict({"clips": 3, "dataset": None})
    state |= {"seed": 0, "shuffle_shards": 2}
    assert {"clips": 7, **stream(data)._identity()} == state
    stream(prepared(folder, cache_gb=3)).check_state(state)
    latents = f"prepared latents {data.fingerprint}"
    for began, now, named in (
        (data, prepared(made(tmp_path / "other", 24)), f"{latents} .* resume with the data.latents"),
        (data, [], f"{latents} and would go on with prepared latents None"),
        (data, prepared(folder, seed=1), "seed=0 .* would go on with seed=1 .*: set data.seed .* to 0, or"),
        (data, prepared(folder, shuffle_shards=3), "shuffle_shards=2 .*=3, .*: set reading.shuffle_shards to 2"),
        (fast, slow, "flow by raft-1 and would go on with flow by raft-2"),
        (rendered(3), rendered(4), "seed=3 .* would go on with seed=4 .*: set data.seed .*data.train.seed. to 3, or"),
    ):
        with pytest.raises(ValueError, match=f"the run began with {named}"):
            stream(now).check_state({"clips": 7, **stream(began)._identity()})


# The files.


def test_a_shard_is_a_plain_tar_that_webdataset_reads(folder):
    path = folder / shard_name(range(20, 23))
    assert path.name == "000000020-000000023.tar"
    with tarfile.open(path) as tar:
        assert tar.getnames() == [f"{number:09}.safetensors" for number in (20, 21, 22)]
    read = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [item["__key__"] for item in read] == ["000000020", "000000021", "000000022"]
    for number, item in zip(range(20, 23), read):
        for name, value in load(item["safetensors"]).items():
            assert torch.equal(value, sample(number)[name])


def test_the_bytes_depend_on_the_samples_only(folder, tmp_path):
    again = made(tmp_path / "again")
    assert [p.read_bytes() for p in sorted(folder.iterdir())] == [p.read_bytes() for p in sorted(again.iterdir())]
    assert prepared(folder).fingerprint == prepared(again).fingerprint != prepared(made(again, 24)).fingerprint


def test_samples_of_different_sizes_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="sizes must agree"):
        write_shard(tmp_path, range(2), iter([{"a": torch.zeros(3)}, {"a": torch.zeros(4)}]))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shard_runs, "sample", lambda number: {"a": torch.zeros(number // 4 + 1)})  # shards of 4
    with pytest.raises(ValueError, match="latents holds clips of different sizes: delete it"):
        made(tmp_path / "latents")


def test_a_missing_cut_or_wrong_shard_is_named_with_its_repair_and_only_it_is_made_again(folder):
    before = {path: path.read_bytes() for path in sorted(folder.glob("*.tar"))}
    kept, one, two, *_ = before
    written = kept.stat().st_mtime_ns
    opened = prepared(folder)

    def refused(words: str, read: Callable[[], object]) -> None:
        with pytest.raises(ValueError, match=rf"{words}.* run motionanim.data.encode again"):
            read()

    one.unlink()
    refused(f"{one} is missing", lambda: prepared(folder))
    refused(f"{one} is missing", lambda: numbers_of(opened, range(23)))
    made(folder)
    two.write_bytes(before[two][:700])
    refused(f"{two} is truncated: 700 bytes, 10240 are right", lambda: prepared(folder))
    refused(rf"{two} is truncated: sample \d+ ends at byte", lambda: numbers_of(opened, range(23)))
    made(folder)
    assert {path: path.read_bytes() for path in before} == before
    assert kept.stat().st_mtime_ns == written
    two.write_bytes(b"\0" * len(before[two]))
    refused(rf"{two} is damaged at sample \d+", lambda: numbers_of(opened, range(23)))


def test_a_shard_killed_before_its_new_checksum_is_unfinished(folder, monkeypatch):
    numbers = range(4, 8)
    assert finished_shard(folder, numbers) is not None
    path = folder / shard_name(numbers)
    path.write_bytes(path.read_bytes()[:700])

    monkeypatch.setattr(Path, "write_text", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        write_shard(folder, numbers, [sample(number + 50) for number in numbers])
    assert path.stat().st_size == 10240
    assert finished_shard(folder, numbers) is None


def test_layout_is_the_one_that_tarfile_writes(tmp_path):
    for count in (1, 5, 9, 10):
        write_shard(tmp_path, range(count), map(sample, range(count)))
        path = tmp_path / shard_name(range(count))
        layout = ShardLayout(count, count, np.array(finished_shard(tmp_path, range(count))[1]))
        assert path.stat().st_size == layout.shard_bytes(range(count))
        with tarfile.open(path) as tar:
            assert [m.offset for m in tar.getmembers()] == layout.starts(range(count))[:-1].tolist()
    assert shard_ranges(5, 2) == [range(0, 2), range(2, 4), range(4, 5)]
    with pytest.raises(ValueError, match="cache_gb=-1"):
        Shards("", layout, [], cache="", cache_gb=-1, retries=0)
