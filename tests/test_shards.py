"""Shards: what is written is read, from a folder or a store, in an order that no batch size or world size changes."""

import functools
import http.server
import logging
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load
from torch.utils.data import DataLoader

from motionanim.data import remote, shards
from motionanim.data.engine import ProcessEngine
from motionanim.data.latents import PreparedLatents, encode_clips
from motionanim.data.shards import ShardLayout, Shards, finished_shard, shard_name, shard_ranges, write_shard
from motionanim.data.stream import PositionSampler, StreamData, block_shuffled_index, collate

SIZE = {"num_frames": 3, "height": 4, "width": 4}
READING = {"shuffle_shards": 2, "cache": "unused", "cache_gb": 0, "retries": 1}


def sample(number: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {
        "latents": torch.randn(3, 4, 2, 2, generator=generator).half(),
        "flow": torch.randn(2, 2, 4, 4, generator=generator).half(),
        "image": torch.full((4, 4, 3), number, dtype=torch.uint8),
        "image_embed": torch.zeros(1, 4, dtype=torch.float16),
        "fps": torch.tensor(7.0),
    }


def make_shard(numbers: range, folder: Path) -> None:
    write_shard(folder, numbers, map(sample, numbers))


def made(folder: Path, count: int = 23, **changes) -> Path:
    options = {"shard_clips": 4, "predict": False, "vae": "v", "size": SIZE, "source": {}} | changes
    encode_clips(make_shard, count=count, folder=folder, engine=ProcessEngine(workers=0), **options)
    return folder


def prepared(folder: Path | str, **changes) -> PreparedLatents:
    return PreparedLatents(folder, seed=0, **SIZE, **READING | changes)


def numbers_of(data: PreparedLatents, positions: range) -> list[int]:
    return [int(data[position].image[0, 0, 0]) for position in positions]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "latents")


# The order.


@settings(max_examples=200, deadline=None)
@given(length=st.integers(1, 60), shard=st.integers(1, 9), block=st.integers(1, 9), seed=st.integers(0, 5))
def test_every_epoch_is_a_permutation_that_reads_few_shards_at_a_time(
    length: int, shard: int, block: int, seed: int
) -> None:
    for epoch in (0, 3):
        positions = range(epoch * length, (epoch + 1) * length)
        order = [block_shuffled_index(seed, p, length, shard=shard, block=block) for p in positions]
        assert sorted(order) == list(range(length))
        groups, seen = [], []
        for index in order:  # cut into runs of at most `block` shards; a shard is never met again later
            if index // shard not in seen and len(seen) == block:
                groups.append(seen)
                seen = []
            seen = seen if index // shard in seen else [*seen, index // shard]
        groups.append(seen)
        met = Counter(number for group in groups for number in group)
        assert set(met.values()) == {1}


def test_the_order_is_shuffled_and_differs_by_epoch_and_seed() -> None:
    orders = {
        tuple(block_shuffled_index(seed, epoch * 60 + p, 60, shard=4, block=3) for p in range(60))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(orders) == 4
    assert tuple(range(60)) not in orders


def test_any_world_size_batch_size_and_start_reads_the_same_clips_in_the_same_order(folder: Path) -> None:
    data = prepared(folder)
    whole = numbers_of(data, range(48))
    assert sorted(whole[:23]) == list(range(23))
    for world, batch, workers in ((1, 4, 0), (2, 2, 1), (3, 2, 0), (4, 1, 2)):
        start = 5  # clips that were done before, with another batch size
        by_rank = []
        for rank in range(world):
            sampler = PositionSampler(start=start, batch_size=batch, rank=rank, world_size=world)
            loader = iter(DataLoader(data, batch, sampler=sampler, num_workers=workers, collate_fn=collate))
            by_rank.append([next(loader) for _ in range(4)])
        seen = [int(b.image[row, 0, 0, 0]) for step in zip(*by_rank) for b in step for row in range(batch)]
        assert seen == whole[start : start + len(seen)]


def test_a_resumed_run_goes_on_with_the_dataset_that_it_began_with(folder: Path, tmp_path: Path) -> None:
    def stream(train: PreparedLatents | list) -> StreamData:
        return StreamData(train=train, val=[], batch_size=1, num_workers=0)

    data, other = prepared(folder), prepared(made(tmp_path / "other", 24))
    state = {"clips": 3, "dataset": data.fingerprint}
    stream(data).load_state_dict(state)
    stream([]).load_state_dict({"clips": 3, "dataset": None})
    for train, began, now in (
        (other, data.fingerprint, other.fingerprint),
        ([], data.fingerprint, None),
        (data, None, data.fingerprint),
    ):
        one, two = (f"the prepared latents {name}" if name else "no prepared latents" for name in (began, now))
        with pytest.raises(ValueError, match=f"the run began with {one} and would go on with {two}.*resume with"):
            stream(train).load_state_dict({"clips": 3, "dataset": began})


# The files.


def test_a_shard_is_a_plain_tar_that_webdataset_reads(folder: Path) -> None:
    path = folder / shard_name(range(20, 23))
    assert path.name == "000000020-000000023.tar"
    with tarfile.open(path) as tar:
        assert tar.getnames() == [f"{number:09}.safetensors" for number in (20, 21, 22)]
    read = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [item["__key__"] for item in read] == ["000000020", "000000021", "000000022"]
    for number, item in zip(range(20, 23), read):
        for name, value in load(item["safetensors"]).items():
            assert torch.equal(value, sample(number)[name])


def test_the_bytes_depend_on_the_samples_only(folder: Path, tmp_path: Path) -> None:
    again = made(tmp_path / "again")
    assert [p.read_bytes() for p in sorted(folder.iterdir())] == [p.read_bytes() for p in sorted(again.iterdir())]
    assert prepared(folder).fingerprint == prepared(again).fingerprint != prepared(made(again, 24)).fingerprint


def test_samples_of_different_sizes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="sizes must agree"):
        write_shard(tmp_path, range(2), iter([{"a": torch.zeros(3)}, {"a": torch.zeros(4)}]))
    assert list(tmp_path.iterdir()) == []


def test_a_missing_cut_or_wrong_shard_is_named_with_its_repair_and_only_it_is_made_again(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.glob("*.tar")}
    one, two = sorted(before)[1:3]
    kept = sorted(before)[0].stat().st_mtime_ns
    opened = prepared(folder)
    one.unlink()
    with pytest.raises(ValueError, match=rf"{one} is missing: run motionanim.data.encode again"):
        prepared(folder)
    with pytest.raises(ValueError, match=rf"{one} is missing: run motionanim.data.encode again"):
        numbers_of(opened, range(23))
    made(folder)
    two.write_bytes(before[two][:700])
    with pytest.raises(
        ValueError, match=rf"{two} is truncated: 700 bytes, 10240 are right; run motionanim.data.encode"
    ):
        prepared(folder)
    with pytest.raises(ValueError, match=rf"{two} is truncated: sample \d+ ends at byte \d+; run motionanim.data"):
        numbers_of(opened, range(23))
    made(folder)
    assert {path: path.read_bytes() for path in folder.glob("*.tar")} == before
    assert sorted(before)[0].stat().st_mtime_ns == kept
    two.write_bytes(b"\0" * len(before[two]))
    with pytest.raises(ValueError, match=rf"{two} is damaged at sample \d+ .* delete it; run motionanim.data.encode"):
        numbers_of(opened, range(23))


def test_a_shard_without_its_checksum_is_unfinished(folder: Path) -> None:
    numbers = range(4, 8)
    assert finished_shard(folder, numbers) is not None
    (folder / f"{shard_name(numbers)}.sha256").unlink()
    assert finished_shard(folder, numbers) is None


def test_a_shard_killed_before_its_new_checksum_has_none(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = range(4, 8)
    path = folder / shard_name(numbers)
    path.write_bytes(path.read_bytes()[:700])

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        write_shard(folder, numbers, [sample(number + 50) for number in numbers])
    assert path.stat().st_size == 10240
    assert finished_shard(folder, numbers) is None


# Object storage.


@pytest.fixture
def memory(folder: Path) -> Iterator[str]:
    store = fsspec.filesystem("memory")
    store.put(f"{folder}/", "/latents/", recursive=True)
    yield "memory://latents"
    store.rm("/latents", recursive=True)


@pytest.mark.parametrize("cache_gb", [0, 3e-5])
def test_a_url_gives_what_the_folder_gives(memory: str, folder: Path, tmp_path: Path, cache_gb: float) -> None:
    local = prepared(folder)
    remote = prepared(memory, cache=tmp_path / "cache", cache_gb=cache_gb)
    assert remote.fingerprint == local.fingerprint
    for position in range(30):
        for one, other in zip(local[position], remote[position]):
            assert torch.equal(one, other)
        kept = list((tmp_path / "cache").glob("*.tar"))
        assert sum(path.stat().st_size for path in kept) <= cache_gb * 1e9
    assert bool(kept) == bool(cache_gb)


def test_a_cached_shard_is_fetched_once_and_the_one_not_read_for_longest_goes(
    memory: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []
    request = shards.remote_request
    monkeypatch.setattr(
        shards, "remote_request", lambda url, *a, **k: (fetched.append(url[-13:-4]), request(url, *a, **k))
    )
    data = prepared(memory, cache=tmp_path, cache_gb=2.5e-5).shards  # of 10 kB each: two fit
    for number in (0, 1, 4, 2, 8, 3, 5):  # shards 0 0 1 0 2 0 1
        assert int(data.read(number)["image"][0, 0, 0]) == number
    assert fetched == ["000000004", "000000008", "000000012", "000000008"]


def test_a_cache_too_small_for_two_shards_is_refused(memory: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cache_gb=1e-05: must be 0, or hold two shards: at least 2.05e-05"):
        prepared(memory, cache=tmp_path, cache_gb=1e-5)


@pytest.mark.parametrize("cache_gb", [0, 1])
def test_a_remote_shard_that_is_missing_or_cut_is_named(memory: str, tmp_path: Path, cache_gb: float) -> None:
    data = prepared(memory, cache=tmp_path, cache_gb=cache_gb)
    upload = "run motionanim.data.encode with its settings into a local folder, and upload that"
    store, name = fsspec.filesystem("memory"), "/latents/000000004-000000008.tar"
    store.pipe(name, store.cat(name)[:600])
    with pytest.raises(ValueError, match=rf"memory:/{name} is truncated.*{upload}"):
        data.shards.read(5)
    store.rm(name)
    with pytest.raises(ValueError, match=rf"memory:/{name} is missing: {upload}"):
        data.shards.read(5)


class Server:
    """A store over HTTP that can be stopped, and that fails its first requests when told to."""

    def __init__(self, folder: Path) -> None:
        owner = self

        class Handler(http.server.SimpleHTTPRequestHandler):
            def do_GET(self) -> None:
                if owner.failing > 0:
                    owner.failing -= 1
                    self.send_error(owner.status)
                else:
                    super().do_GET()

            def log_message(self, *_: object) -> None:
                owner.requests += 1

        self.failing, self.status, self.requests = 0, 503, 0
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.http.server_port}"
        threading.Thread(target=self.http.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    yield server
    server.stop()


def test_a_store_that_fails_for_a_while_is_asked_again(
    server: Server, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    waits = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    data = prepared(server.url, cache=tmp_path / "cache", cache_gb=1, retries=3)
    server.failing = 3
    with caplog.at_level(logging.WARNING):
        assert numbers_of(data, range(23)) == numbers_of(prepared(folder), range(23))
    assert waits == [1, 2, 4]
    assert caplog.text.count("trying again") == 3


def test_a_store_that_stops_in_mid_epoch_is_one_clear_error(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    data = prepared(server.url, cache=tmp_path / "cache", cache_gb=1, retries=2)
    assert len(numbers_of(data, range(4))) == 4
    server.stop()
    message = rf"{server.url}/\d+-\d+.tar cannot be reached after 3 tries .*ckpt_path=last goes on"
    with pytest.raises(ValueError, match=message):
        numbers_of(data, range(23))
    loader = DataLoader(data, 1, sampler=range(23), num_workers=1, collate_fn=collate)
    with pytest.raises(ValueError, match=message):
        list(loader)


def test_a_server_without_byte_ranges_is_told_apart(server: Server) -> None:
    with pytest.raises(ValueError, match="ignores byte ranges: set data.reading.cache_gb above 0"):
        prepared(server.url).shards.read(5)


@pytest.mark.parametrize("cache_gb", [0, 1])
@pytest.mark.parametrize("status", [401, 403])
def test_a_store_that_refuses_access_is_asked_once(
    server: Server, tmp_path: Path, status: int, cache_gb: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: pytest.fail("asked again"))
    data = prepared(server.url, cache=tmp_path / "cache", cache_gb=cache_gb)
    server.failing, server.status = 1, status
    with pytest.raises(ValueError, match=rf"{server.url}/.*tar: the store refuses access .*{status}.*credentials"):
        data.shards.read(5)
    server.failing = 1
    with pytest.raises(ValueError, match=rf"{server.url}/latents.json: the store refuses access"):
        prepared(server.url)


class NoCredentialsError(Exception):
    """As botocore's."""


@pytest.mark.parametrize("error", [PermissionError("Access Denied"), NoCredentialsError("Unable to locate them")])
def test_a_refusal_of_an_object_store_is_told_from_a_failure(error: Exception) -> None:
    def refuse(files: object, path: str) -> None:
        raise error

    with pytest.raises(ValueError, match="memory://x: the store refuses access .*(Access Denied|Unable to locate)"):
        remote.remote_request("memory://x", refuse, retries=0)


def test_a_url_without_latents_says_so(server: Server) -> None:
    message = rf"latents={server.url}/typo holds no latents.json: give the URL of a folder that holds one, or make"
    with pytest.raises(ValueError, match=message):
        prepared(f"{server.url}/typo")


def test_an_unknown_kind_of_store_is_named() -> None:
    with pytest.raises(ValueError, match=r"nowhere://x/latents.json cannot be read: Protocol not known: nowhere"):
        prepared("nowhere://x")


def test_layout_is_the_one_that_tarfile_writes(tmp_path: Path) -> None:
    for count in (1, 5, 9, 10):
        write_shard(tmp_path, range(count), map(sample, range(count)))
        path = tmp_path / shard_name(range(count))
        layout = ShardLayout(count, count, finished_shard(tmp_path, range(count))[1])
        assert path.stat().st_size == layout.shard_bytes(count)
        with tarfile.open(path) as tar:
            assert [m.offset for m in tar.getmembers()] == [k * layout.stride() for k in range(count)]
    assert shard_ranges(5, 2) == [range(0, 2), range(2, 4), range(4, 5)]
    with pytest.raises(ValueError, match="cache_gb=-1"):
        Shards("", layout, [], cache="", cache_gb=-1, retries=0)
