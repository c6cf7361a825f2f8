"""Shards in object storage are read as from a folder, through a bounded cache, and each kind of failure is named."""

import errno
import fcntl
import functools
import gc
import http.server
import multiprocessing
import os
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import fsspec
import pytest
import torch
from kill import wait_until
from shard_runs import made, numbers_of, prepared
from torch.utils.data import DataLoader

from motionanim.data.latents import remote, shard_cache, shards
from motionanim.data.stream import collate

SHARD = 10240  # bytes of a shard of these tests


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return made(tmp_path / "latents")


@pytest.fixture
def memory(folder: Path) -> Iterator[str]:
    store = fsspec.filesystem("memory")
    store.put(f"{folder}/", "/latents/", recursive=True)
    yield "memory://latents"
    store.rm("/latents", recursive=True)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Lists the last sample number of each shard that is requested."""
    asked, request = [], shards.remote_request

    monkeypatch.setattr(
        shards, "remote_request", lambda url, *a, **k: asked.append(url[-13:-4]) or request(url, *a, **k)
    )
    return asked


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Makes the waits between tries take no time; lists their seconds."""
    seconds: list[int] = []
    monkeypatch.setattr(remote.time, "sleep", seconds.append)
    return seconds


def within(cache: Path) -> tuple[int, int]:
    """Bytes in a cache, and the number of its unfinished files."""
    partial = list(cache.glob(".*.partial"))
    return sum(path.stat().st_size for path in [*partial, *cache.glob("*.tar")]), len(partial)


@pytest.mark.parametrize("cache_gb", [0, 4.2e-5])
def test_a_url_gives_what_the_folder_gives(memory, folder, cache, cache_gb):
    local, remote = prepared(folder), prepared(memory, cache=cache, cache_gb=cache_gb)
    assert remote.fingerprint == local.fingerprint
    for position in range(30):
        assert all(torch.equal(one, other) for one, other in zip(local[position], remote[position]))
        assert within(cache)[0] <= cache_gb * 1e9
    assert bool(within(cache)[0]) == bool(cache_gb)


def test_a_cached_shard_is_fetched_once_and_the_one_not_read_for_longest_goes(memory, cache, fetched):
    data = prepared(memory, cache=cache, cache_gb=2.5e-5, shuffle_shards=1).shards  # two fit
    for number in (0, 1, 4, 2, 8, 3, 5):  # shards 0 0 1 0 2 0 1
        assert int(data.read(number)["image"][0, 0, 0]) == number
    assert fetched == ["000000004", "000000008", "000000012", "000000008"]


def test_the_smallest_cache_that_is_allowed_fetches_no_shard_twice_in_an_epoch(memory, cache, fetched):
    with pytest.raises(ValueError, match=r"cache_gb=2.1e-05: must be 0, or hold the 4 shards .*: at least 4.096e-05"):
        prepared(memory, cache=cache, cache_gb=2.1e-5)
    data = prepared(memory, cache=cache, cache_gb=4.096e-5)
    for position in range(23):
        data[position]
        data[max(0, position - 5)]  # as another process that is behind
    assert len(fetched) == len(set(fetched)) == 6
    prepared(memory, cache=cache, cache_gb=6.2e-5, shuffle_shards=16)  # all shards fit


def test_what_another_process_deletes_at_once_is_read_all_the_same(memory, cache, fetched, monkeypatch):
    data = prepared(memory, cache=cache, cache_gb=1).shards
    monkeypatch.setattr(shard_cache.os, "replace", lambda partial, path: partial.unlink())
    assert int(data.read(5)["image"][0, 0, 0]) == 5
    assert len(fetched) == 1


def test_a_damaged_file_of_the_cache_is_named(memory, cache):
    data = prepared(memory, cache=cache, cache_gb=1).shards
    data.read(5)
    (kept,) = cache.glob("*.tar")
    kept.write_bytes(b"\0" * SHARD)
    with pytest.raises(ValueError, match=rf"{kept} is damaged at sample 5 .* delete it; it is fetched anew"):
        data.read(5)
    kept.unlink()
    data.read(5)


@pytest.mark.parametrize("cache_gb", [0, 1])
def test_a_remote_shard_that_is_missing_or_cut_is_named(memory, cache, cache_gb):
    data = prepared(memory, cache=cache, cache_gb=cache_gb).shards
    store, name = fsspec.filesystem("memory"), "/latents/000000004-000000008.tar"
    store.pipe(name, store.cat(name)[:600])
    with pytest.raises(ValueError, match=rf"memory:/{name} is truncated.*encode .* into a local folder, and upload"):
        data.read(5)
    store.rm(name)
    with pytest.raises(ValueError, match=rf"memory:/{name} is missing: .*upload that"):
        data.read(5)


class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self) -> None:
        store = self.server
        if store.failing > 0:
            store.failing -= 1
            self.send_error(store.status)
            return
        if self.path.endswith(".tar") and store.meeting is not None:
            store.meeting.wait(timeout=60)
        wanted = self.headers["Range"]
        if wanted is None or not store.ranges:
            super().do_GET()
            return
        first, last = map(int, wanted.removeprefix("bytes=").split("-"))
        part = Path(self.translate_path(self.path)).read_bytes()[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        self.wfile.write(part)

    def log_message(self, *_: object) -> None:
        self.server.requests += 1


class Server(http.server.ThreadingHTTPServer):
    """A store over HTTP that can be stopped."""

    failing, status = 0, 503  # so many requests still fail
    requests = 0
    ranges = False  # whether it knows byte ranges
    meeting: threading.Barrier | threading.Event | None = None  # requests for a shard wait here

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


@pytest.fixture
def server(folder: Path) -> Iterator[Server]:
    server = Server(folder)
    yield server
    server.stop()


@pytest.mark.slow
def test_a_store_that_fails_for_a_while_is_asked_again(server, folder, cache, waits):
    data = prepared(server.url, cache=cache, cache_gb=1, retries=3)
    server.failing = 3
    assert numbers_of(data, range(23)) == numbers_of(prepared(folder), range(23))
    assert waits == [1, 2, 4]


@pytest.mark.slow
def test_a_store_that_stops_in_mid_epoch_is_one_clear_error(server, cache, waits, monkeypatch):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)  # waits so long for the loader's end
    data = prepared(server.url, cache=cache, cache_gb=1, retries=2)
    assert len(numbers_of(data, range(4))) == 4
    server.stop()
    loader = DataLoader(data, 1, sampler=range(23), num_workers=1, collate_fn=collate)
    for read in (lambda: numbers_of(data, range(23)), lambda: list(loader)):
        with pytest.raises(ValueError, match=rf"{server.url}/\d+-\d+.tar cannot be reached after 3 tries .*ckpt_path"):
            read()
    gc.collect()  # ends the loader


@pytest.mark.slow
@pytest.mark.parametrize("cache_gb", [0, 1])
def test_forked_loader_processes_read_from_a_store(server, folder, cache, cache_gb):
    if not cache_gb:
        with pytest.raises(ValueError, match="ignores byte ranges: set reading.cache_gb above 0"):
            prepared(server.url).shards.read(5)
    server.ranges = True
    data = prepared(server.url, cache=cache, cache_gb=cache_gb, retries=0)
    data[0]  # opens connections, which forked processes must not use
    loader = DataLoader(data, 1, sampler=range(23), num_workers=2, collate_fn=collate, multiprocessing_context="fork")
    assert [int(batch.image[0, 0, 0, 0]) for batch in loader] == numbers_of(prepared(folder), range(23))
    assert len(list(cache.glob("*.tar"))) == (6 if cache_gb else 0)


@pytest.mark.parametrize(("status", "cache_gb"), [(401, 0), (403, 1)])
def test_a_store_that_refuses_access_is_asked_once(server, cache, status, cache_gb, waits):
    data = prepared(server.url, cache=cache, cache_gb=cache_gb)
    server.failing, server.status = 1, status
    with pytest.raises(ValueError, match=rf"{server.url}/.*tar: the store refuses access .*{status}.*credentials"):
        data.shards.read(5)
    server.failing = 1
    with pytest.raises(ValueError, match=rf"{server.url}/latents.json: the store refuses access"):
        prepared(server.url)
    assert waits == []


@pytest.mark.parametrize("error", [PermissionError("denied"), type("NoCredentialsError", (Exception,), {})("none")])
def test_a_refusal_of_an_object_store_is_told_from_a_failure(error):
    """The second is botocore's."""
    with pytest.raises(ValueError, match=f"memory://x: the store refuses access .*{error}"):
        remote.remote_request("memory://x", Mock(side_effect=error), retries=0)


def test_urls_without_latents_and_unknown_stores_are_named(server):
    with pytest.raises(ValueError, match=rf"latents={server.url}/typo holds no latents.json: give the URL of a folder"):
        prepared(f"{server.url}/typo")
    with pytest.raises(ValueError, match=r"nowhere://x/latents.json cannot be read: Protocol not known: nowhere"):
        prepared("nowhere://x")


# Several processes, one cache.


def in_processes(function: Callable[..., object], *numbers: int) -> None:
    """Call it with each of the numbers, at once."""
    with multiprocessing.get_context("fork").Pool(len(numbers)) as pool:
        pool.map_async(function, numbers, chunksize=1).get(timeout=60)


def test_two_processes_that_fetch_at_once_keep_to_the_size_of_their_cache(server, cache):
    data = prepared(server.url, cache=cache, cache_gb=2 * SHARD / 1e9, shuffle_shards=1).shards
    data.read(0)
    server.meeting = threading.Barrier(2)  # neither ends before both have begun
    in_processes(data.read, 4, 8)
    assert within(cache) == (2 * SHARD, 0)


@pytest.mark.slow
def test_processes_that_want_the_same_shard_fetch_it_once(server, cache):
    data = prepared(server.url, cache=cache, cache_gb=1).shards
    asked = server.requests
    in_processes(data.read, 4, 5, 6)
    assert server.requests == asked + 1


def test_what_a_killed_process_leaves_goes(server, cache):
    data = prepared(server.url, cache=cache, cache_gb=1).shards
    data.read(0)
    server.meeting = threading.Event()
    for _ in range(2):  # the second begins with what the first has left
        asked = multiprocessing.get_context("fork").Process(target=data.read, args=(4,))
        asked.start()
        wait_until(lambda: within(cache)[1] == 1)
        os.kill(asked.pid, signal.SIGKILL)
        asked.join()
        assert within(cache)[1] == 1
    server.meeting.set()
    data.read(8)
    assert within(cache) == (2 * SHARD, 0)


@pytest.mark.slow
def test_who_finds_no_room_waits_for_those_that_fetch(server, cache):
    data = prepared(server.url, cache=cache, cache_gb=2 * SHARD / 1e9, shuffle_shards=1).shards
    data.read(0)
    ours = data.digests[2]
    others = [digits for digits in ("00", "11", "22") if not ours.startswith(digits)][:2]
    reader = threading.Thread(target=data.read, args=(8,), daemon=True)
    asked = server.requests
    locks = [open(cache / f"lock-{digits}", "w") for digits in others]  # noqa: SIM115  closed below
    for digits, lock in zip(others, locks):
        fcntl.flock(lock, fcntl.LOCK_EX)
        (cache / f".{digits}.{SHARD}.partial").touch()
    reader.start()
    reader.join(timeout=0.5)
    assert (reader.is_alive(), server.requests) == (True, asked)
    assert len(list(cache.glob("*.tar"))) == 1, "deleting it would not have been enough"
    locks[1].close()
    reader.join(timeout=60)
    assert not reader.is_alive()
    locks[0].close()
    assert [path.stem for path in cache.glob("*.tar")] == [ours]


def test_a_disk_that_cannot_hold_a_shard_is_named_at_once(server, cache, tmp_path, waits, monkeypatch):
    data = prepared(server.url, cache=cache, cache_gb=1).shards
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (SHARD // 2, hard))  # a write past it fails as on a full disk
    try:
        with pytest.raises(ValueError, match=r"cache=.*cache: File too large: choose another folder with reading"):
            data.read(5)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert within(cache) == (0, 0)

    full = Mock(side_effect=OSError(errno.ENOSPC, "is full"))
    monkeypatch.setattr(fsspec.core.url_to_fs(server.url)[0], "get_file", full)
    with pytest.raises(ValueError, match=r"cache=.*cache: is full: choose another folder"):
        data.read(5)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"cache=.*file/cache: Not a directory: choose another folder"):
        prepared(server.url, cache=tmp_path / "file/cache", cache_gb=1).shards.read(5)
    assert waits == []
