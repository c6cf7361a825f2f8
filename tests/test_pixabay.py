"""Choosing, fetching and locking clips, against a server on this machine that speaks the API's documented JSON."""

import csv
import fcntl
import hashlib
import importlib.util
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from motionanim.data.download import ATTEMPTS, HttpError, download
from motionanim.data.fetch import Needs, fetch, lock_folder, rejected_path, spares_path
from motionanim.data.manifest import manifest_clips, read_manifest, verify, write_manifest
from motionanim.data.pixabay import PixabayClient, candidate, choose, confirm_terms
from motionanim.data.video import write_video

ROOT = Path(__file__).resolve().parents[1]
KEY = "12345678-0123456789abcdef0123456789"
NEEDS = Needs(frames=5, fps=5, min_width=80, min_height=48)


class Site:
    """The server: what it has, what it is told to do next, and what it was asked.

    Attributes:
        hits: For each category its hits.
        files: For each path the bytes.
        next: For each path, answers to give first: a function that gets the handler.
        asked: (path, parameters, headers) of each request.
        headers: Added to each answer of the API.
    """

    def __init__(self) -> None:
        self.hits: dict[str, list[dict]] = defaultdict(list)
        self.files: dict[str, bytes] = {}
        self.next: dict[str, list[Callable[[BaseHTTPRequestHandler], None]]] = defaultdict(list)
        self.asked: list[tuple[str, dict[str, str], dict[str, str]]] = []
        self.headers: dict[str, str] = {}
        self.url = self.api = ""
        self.go_on = threading.Event()  # ends a stalled answer

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        address = urllib.parse.urlsplit(handler.path)
        params = dict(urllib.parse.parse_qsl(address.query))
        self.asked.append((address.path, params, dict(handler.headers)))
        if self.next[address.path]:
            self.next[address.path].pop(0)(handler)
        elif address.path == "/api/videos/":
            self.search(handler, params)
        elif address.path in self.files:
            self.file(handler, self.files[address.path])
        else:
            answer(handler, 404, b"no such file")

    def search(self, handler: BaseHTTPRequestHandler, params: dict[str, str]) -> None:
        if params.get("key") != KEY:
            answer(handler, 400, b"[ERROR 400] Invalid or missing API key " + params["key"].encode())
            return
        found = self.hits[params.get("category", "") + params.get("q", "")]
        allowed = found[:500]
        page, size = int(params["page"]), int(params["per_page"])
        if page > 1 and (page - 1) * size >= len(allowed):
            answer(handler, 400, b'[ERROR 400] "page" is out of valid range.')
            return
        body = {"total": len(found), "totalHits": len(allowed), "hits": allowed[(page - 1) * size : page * size]}
        answer(handler, 200, json.dumps(body).encode(), {"Content-Type": "application/json", **self.headers})

    def file(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
        etag, span = f'"{hashlib.sha256(content).hexdigest()[:8]}"', handler.headers.get("Range")
        headers = {"Content-Type": "video/mp4", "ETag": etag}
        if span and handler.headers.get("If-Range", etag) == etag:
            start = int(span.removeprefix("bytes=").removesuffix("-"))
            if start >= len(content):
                answer(handler, 416, b"", {"Content-Range": f"bytes */{len(content)}"})
                return
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            answer(handler, 206, content[start:], headers)
        else:
            answer(handler, 200, content, headers)

    def queries(self) -> list[dict[str, str]]:
        return [params for path, params, _ in self.asked if path == "/api/videos/"]

    def downloads(self) -> list[str]:
        return [path for path, _, _ in self.asked if path != "/api/videos/"]


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
    headers = {"Content-Type": "text/plain", "Content-Length": str(len(body)), **(headers or {})}
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)


def failing(status: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: answer(handler, status, b"API rate limit exceeded", named)


def cut(content: bytes, at: int, etag: str | None = None) -> Callable[[BaseHTTPRequestHandler], None]:
    """Promise the whole, send a part, hang up."""
    etag = etag or f'"{hashlib.sha256(content).hexdigest()[:8]}"'
    headers = {"Content-Type": "video/mp4", "Content-Length": str(len(content)), "ETag": etag}
    return lambda handler: answer(handler, 200, content[:at], headers)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    made = Site()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.handle(self)

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    made.api = f"{made.url}/api/videos/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.go_on.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Six different videos of 80 x 48 px, 6 frames, 5 a second."""
    made = []
    for number in range(6):
        generator = torch.Generator().manual_seed(number)
        path = tmp_path_factory.mktemp("videos") / "video.mp4"
        write_video(path, torch.rand(6, 3, 48, 80, generator=generator) * 2 - 1, 5)
        made.append(path.read_bytes())
    return made


def hit(number: int, url: str = "https://cdn.example.org", **changes: Any) -> dict[str, Any]:
    """As the API documents one."""
    sizes = {
        "large": {"url": "", "width": 0, "height": 0, "size": 0},
        "medium": {"url": f"{url}/{number}_medium.mp4", "width": 160, "height": 96, "size": 9},
        "small": {"url": f"{url}/{number}_small.mp4", "width": 80, "height": 48, "size": 9},
        "tiny": {"url": f"{url}/{number}_tiny.mp4", "width": 40, "height": 24, "size": 9},
    }
    return {
        "id": number, "pageURL": f"https://pixabay.com/videos/id-{number}/", "type": "film", "tags": "sea, sky",
        "duration": 12, "videos": sizes, "user_id": 1, "user": "Jö, \n\"Doe\"",
    } | changes  # fmt: skip


def stock(site: Site, videos: list[bytes], categories: tuple[str, ...] = ("nature", "travel")) -> None:
    """Give the site one clip a video, alternating between categories."""
    for number, content in enumerate(videos):
        site.hits[categories[number % len(categories)]].append(hit(number, site.url))
        site.files[f"/{number}_small.mp4"] = content


def client(site: Site, tmp_path: Path, waits: list[float] | None = None, **changes: Any) -> PixabayClient:
    waits = [] if waits is None else waits
    settings = {"key": KEY, "cache": tmp_path / "cache", "api": site.api, "sleep": waits.append}
    return PixabayClient(**(settings | changes))


def build(site: Site, tmp_path: Path, n: int, **changes: Any) -> Path:
    settings = {"categories": ["nature", "travel"], "queries": [""], "n": n, "seed": 0, "needs": NEEDS}
    entries, spares = choose(client(site, tmp_path), **(settings | changes))
    manifest = tmp_path / "manifest.csv"
    write_manifest(manifest, entries)
    if spares:
        write_manifest(spares_path(manifest), spares)
    return manifest


def test_all_pages_up_to_500_hits_are_asked_for(site: Site, tmp_path: Path) -> None:
    site.hits["nature"] = [hit(number) for number in range(700)]
    found = list(client(site, tmp_path).search(category="nature", min_width=80))
    assert [h["id"] for h in found] == list(range(500))
    assert [(q["page"], q["per_page"]) for q in site.queries()] == [("1", "200"), ("2", "200"), ("3", "200")]
    assert {(q["category"], q["min_width"], q["key"]) for q in site.queries()} == {("nature", "80", KEY)}
    assert list(client(site, tmp_path).search(category="music")) == []


@pytest.mark.parametrize(("on_a_page", "hits"), [(200, 500), (100, 300)])
def test_a_server_that_promises_more_than_500_is_not_believed(
    site: Site, tmp_path: Path, on_a_page: int, hits: int
) -> None:
    body = json.dumps({"total": 900, "totalHits": 900, "hits": [hit(n) for n in range(on_a_page)]}).encode()
    site.next["/api/videos/"] = [lambda handler: answer(handler, 200, body)] * 9
    assert len(list(client(site, tmp_path).search(category="nature"))) == hits
    assert len(site.asked) == 3


def test_hits_that_vanish_between_pages_end_the_list(site: Site, tmp_path: Path) -> None:
    site.hits["nature"] = [hit(number) for number in range(250)]
    hits = client(site, tmp_path).search(category="nature")
    first = [next(hits) for _ in range(200)]
    site.hits["nature"] = site.hits["nature"][:150]
    assert len(first) == 200
    assert list(hits) == []


def test_the_rate_limit_is_honoured(site: Site, tmp_path: Path) -> None:
    site.hits["nature"] = [hit(number) for number in range(600)]
    waits: list[float] = []
    site.headers = {"X-RateLimit-Limit": "100", "X-RateLimit-Remaining": "7", "X-RateLimit-Reset": "50"}
    list(client(site, tmp_path, waits).search(category="nature"))
    assert waits == [0.6, 0.6], "100 requests a minute"
    waits.clear()
    site.headers["X-RateLimit-Remaining"] = "0"
    list(client(site, tmp_path, waits, cache=tmp_path / "other").search(category="nature"))
    assert waits == [50, 50]


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([failing(429, X_RateLimit_Reset="33")], [33]),
        ([failing(429, Retry_After="20"), failing(429)], [20, 2]),
        ([failing(503), failing(500), failing(502)], [1, 2, 4]),
        ([lambda handler: answer(handler, 200, b"{", {"Content-Length": "9"})], [1]),
        ([lambda handler: handler.connection.close()], [1]),
    ],
    ids=["429 with reset", "429 with Retry-After", "5xx", "broke off", "hung up"],
)
def test_passing_troubles_are_waited_out(
    site: Site, tmp_path: Path, answers: list, expected: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    site.hits["nature"] = [hit(1)]
    site.next["/api/videos/"] = list(answers)
    waits: list[float] = []
    found = list(client(site, tmp_path, waits).search(category="nature"))
    assert [h["id"] for h in found] == [1]
    assert [wait for wait in waits if wait != 0.6] == expected
    assert "again in" in caplog.text
    assert KEY not in caplog.text


def test_retry_after_may_be_a_date(site: Site, tmp_path: Path) -> None:
    site.hits["nature"] = [hit(1)]
    site.next["/api/videos/"] = [failing(429, Retry_After=formatdate(time.time() + 90, usegmt=True))]
    waits: list[float] = []
    list(client(site, tmp_path, waits).search(category="nature"))
    assert waits[0] == pytest.approx(90, abs=3)


def test_lasting_troubles_end_in_one_line(site: Site, tmp_path: Path) -> None:
    site.next["/api/videos/"] = [failing(503)] * 20
    with pytest.raises(HttpError, match="answers 503") as error:
        list(client(site, tmp_path).search(category="nature"))
    assert len(site.asked) == ATTEMPTS
    assert KEY not in str(error.value)
    site.next["/api/videos/"] = [failing(429, Retry_After="86400")]
    with pytest.raises(HttpError, match="asks to wait 86400 s"):
        list(client(site, tmp_path).search(category="nature"))
    site.next["/api/videos/"] = [lambda handler: answer(handler, 200, b"<html>")]
    with pytest.raises(ValueError, match="something else than Pixabay's JSON: '<html>'"):
        list(client(site, tmp_path).search(category="nature"))
    with pytest.raises(HttpError, match="cannot be reached"):
        list(client(site, tmp_path, api="http://127.0.0.1:9/").search(category="nature"))
    assert not (tmp_path / "cache").exists(), "failures are not kept"


def test_a_refused_key_is_not_repeated(site: Site, tmp_path: Path) -> None:
    with pytest.raises(HttpError, match=r"answers 400 .*Invalid or missing API key") as error:
        list(client(site, tmp_path, key="wrong-key-000").search(category="nature"))
    assert "wrong-key-000" not in str(error.value)
    assert len(site.asked) == 1
    for key in ("", "short", "with a blank in it"):
        with pytest.raises(ValueError, match="the API key must be") as error:
            client(site, tmp_path, key=key)
        assert not key or key not in str(error.value)
    for api in ("http://pixabay.com/api/videos/", "ftp://x.org", "https://x.org/?a=b", "pixabay.com"):
        with pytest.raises(ValueError, match="https address"):
            client(site, tmp_path, api=api)


def test_answers_are_kept_for_a_day_without_the_key(site: Site, tmp_path: Path) -> None:
    # A server that repeats the request's key in its answer.
    site.hits["nature"] = [hit(1, pageURL=f"https://pixabay.com/?key={KEY}")]
    clock = [1e9]
    for hours, requests in ((0, 1), (23.9, 1), (24.1, 2), (0, 3)):
        clock[0] = 1e9 + hours * 3600
        found = list(client(site, tmp_path, now=lambda: clock[0]).search(category="nature"))
        assert found[0]["id"] == 1
        assert len(site.asked) == requests, "an answer from the future is not believed either"
    (kept,) = (tmp_path / "cache").iterdir()
    assert KEY not in kept.read_text() + kept.name
    list(client(site, tmp_path, key="another-key-1", now=lambda: clock[0]).search(category="nature"))
    assert len(site.asked) == 3, "another key finds the same answer"
    kept.write_text(kept.read_text()[:50])
    list(client(site, tmp_path, now=lambda: clock[0]).search(category="nature"))
    assert len(site.asked) == 4, "a damaged answer is asked for anew"


def test_the_smallest_file_that_is_large_enough_is_taken() -> None:
    entry = candidate(hit(7), category="nature", query="sea", needs=NEEDS)
    assert (entry.id, entry.file, entry.url) == ("7", "7.mp4", "https://cdn.example.org/7_small.mp4")
    assert (entry.width, entry.height, entry.duration, entry.sha256) == (80, 48, 12.0, "")
    assert (entry.category, entry.query, entry.page_url) == ("nature", "sea", "https://pixabay.com/videos/id-7/")
    assert entry.author == 'Jö, "Doe"'
    assert "Pixabay Content License" in entry.licence
    larger = candidate(hit(7), category="nature", query="", needs=NEEDS._replace(min_height=49))
    assert larger.url.endswith("7_medium.mp4")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"duration": 0}, "too short"),
        ({"duration": 0.7}, "too short"),
        ({"duration": None}, "too short"),
        ({"id": "../7"}, "without an id"),
        ({"isAiGenerated": True}, "marked"),
        ({"noAiTraining": True}, "marked"),
        ({"videos": None}, "without a file"),
        ({"videos": {"large": {"url": "", "width": 800, "height": 480}}}, "without a file"),
        ({"videos": {"large": {"url": "file:///etc/passwd", "width": 800, "height": 480}}}, "without a file"),
        ({"videos": {"large": {"url": "https://x/a.mp4", "width": 480, "height": 800}}}, "not landscape"),
        ({"videos": {"large": {"url": "https://x/a.mp4", "width": 480, "height": 480}}}, "not landscape"),
        ({"videos": {"large": {"url": "https://x/a.mp4", "width": 79, "height": 48}}}, "too small"),
    ],
)
def test_what_cannot_serve_is_left_out(changes: dict[str, Any], reason: str) -> None:
    found = candidate(hit(7, **changes), category="nature", query="", needs=NEEDS)
    assert isinstance(found, str)
    assert reason in found


def test_the_choice_is_the_same_in_every_run(site: Site, tmp_path: Path) -> None:
    site.hits["nature"] = [hit(number) for number in range(90)]
    site.hits["travel"] = [hit(number) for number in range(60, 130)]
    first = build(site, tmp_path, 40)
    content, requests = first.read_bytes(), len(site.asked)
    assert requests == 2
    entries = read_manifest(first)
    assert len({e.id for e in entries}) == 40
    assert sum(e.category == "nature" for e in entries) == 20
    spares = read_manifest(spares_path(first))
    assert len(spares) == 5
    assert not {e.id for e in spares} & {e.id for e in entries}
    assert build(site, tmp_path, 40).read_bytes() == content
    assert len(site.asked) == requests, "all answers were kept"
    # Another order of the same hits, asked for anew.
    site.hits["nature"].reverse()
    (tmp_path / "again").mkdir()
    assert build(site, tmp_path / "again", 40).read_bytes() == content
    assert build(site, tmp_path, 40, seed=1).read_bytes() != content


def test_too_few_clips_are_counted(site: Site, tmp_path: Path) -> None:
    site.hits["nature"] = [hit(1), hit(2, duration=0), hit(3, isAiGenerated=True)]
    site.hits["travel"] = [hit(1), hit(4)]
    with pytest.raises(ValueError, match="2 videos can be used, needed are 3; found 1 in nature, 2 in travel; left out "
                       "1 marked.*, 1 too short"):  # fmt: skip
        build(site, tmp_path, 3)
    with pytest.raises(ValueError, match="category='seas': must be one or more of backgrounds"):
        build(site, tmp_path, 3, categories=["seas"])
    with pytest.raises(ValueError, match="at most 100 characters"):
        build(site, tmp_path, 3, queries=["x" * 101])


def test_queries_are_asked_within_each_category(site: Site, tmp_path: Path) -> None:
    site.hits["naturesea"], site.hits["naturesky"] = [hit(1), hit(2)], [hit(2), hit(3)]
    entries = read_manifest(build(site, tmp_path, 3, categories=["nature"], queries=["sea", "sky"]))
    assert {e.id: e.query for e in entries} == {"1": "sea", "2": "sea", "3": "sky"}
    assert {(q["q"], q["video_type"], q["safesearch"]) for q in site.queries()} == {
        ("sea", "film", "true"),
        ("sky", "film", "true"),
    }


def test_fetched_clips_are_locked(site: Site, tmp_path: Path, videos: list[bytes]) -> None:
    stock(site, videos)
    manifest, root = build(site, tmp_path, 6), tmp_path / "videos"
    report = fetch(manifest, root, needs=NEEDS, workers=2)
    assert report == (6, [], [])
    entries = read_manifest(manifest)
    for entry in entries:
        content = videos[int(entry.id)]
        assert (root / entry.file).read_bytes() == content
        assert entry.sha256 == hashlib.sha256(content).hexdigest()
        assert (entry.bytes, entry.width, entry.height, entry.frames) == (len(content), 80, 48, 6)
        assert entry.fps == pytest.approx(5, rel=1e-3)
        assert entry.duration == pytest.approx(1.2, rel=1e-2)
    assert manifest_clips(manifest, root) == [(e.id, root / e.file) for e in entries]
    assert sorted(p.name for p in root.iterdir()) == [".fetch.lock", *(f"{n}.mp4" for n in range(6))]
    before, asked = manifest.read_bytes(), len(site.asked)
    assert fetch(manifest, root, needs=NEEDS, workers=2) == (6, [], [])
    assert manifest.read_bytes() == before
    assert len(site.asked) == asked, "nothing is fetched twice"


def test_a_locked_clip_is_fetched_by_its_hash_only(site: Site, tmp_path: Path, videos: list[bytes]) -> None:
    stock(site, videos[:2])
    manifest, root = build(site, tmp_path, 2), tmp_path / "videos"
    fetch(manifest, root, needs=NEEDS, workers=1)
    write_manifest(spares_path(manifest), [candidate(hit(5, site.url), category="nature", query="", needs=NEEDS)])
    before = manifest.read_bytes()
    (root / "0.mp4").unlink()
    site.files["/0_small.mp4"] = videos[2]
    report = fetch(manifest, root, needs=NEEDS, workers=1)
    assert report.locked == 1
    ((clip, reason),) = report.failed
    assert clip == "0"
    assert "another hash" in reason
    assert "the server has another file now" in reason
    assert not list(root.glob("0.mp4*")), "neither the file nor a part of it stays"
    # A wrong file in its place is neither accepted nor replaced.
    (root / "0.mp4").write_bytes(videos[3])
    report = fetch(manifest, root, needs=NEEDS, workers=1)
    assert "remove it" in report.failed[0][1]
    assert (root / "0.mp4").read_bytes() == videos[3]
    with pytest.raises(ValueError, match="1 of 2 clips"):
        manifest_clips(manifest, root)
    site.files.clear()
    (root / "0.mp4").unlink()
    report = fetch(manifest, root, needs=NEEDS, workers=1)
    assert "404" in report.failed[0][1]
    assert report.rejected == [], "a locked clip is never replaced"
    assert manifest.read_bytes() == before


def test_a_download_that_is_cut_goes_on_where_it_stopped(site: Site, tmp_path: Path, videos: list[bytes]) -> None:
    stock(site, videos[:1])
    content, waits = videos[0], []
    manifest, root = build(site, tmp_path, 1), tmp_path / "videos"
    site.next["/0_small.mp4"] = [cut(content, 100), failing(500)]
    assert fetch(manifest, root, needs=NEEDS, workers=1, sleep=waits.append) == (1, [], [])
    spans = [headers.get("Range") for path, _, headers in site.asked if path == "/0_small.mp4"]
    assert spans == [None, "bytes=100-", "bytes=100-"]
    assert waits == [1, 2]
    assert (root / "0.mp4").read_bytes() == content


def test_what_a_cut_run_left_is_taken_up(site: Site, tmp_path: Path, videos: list[bytes]) -> None:
    stock(site, videos[:1])
    content = videos[0]
    manifest, root = build(site, tmp_path, 1), tmp_path / "videos"
    site.next["/0_small.mp4"] = [cut(content, 100), *[failing(503)] * (ATTEMPTS - 1)]
    report = fetch(manifest, root, needs=NEEDS, workers=1, sleep=lambda seconds: None)
    assert (report.locked, len(report.failed)) == (0, 1)
    assert not (root / "0.mp4").exists()
    assert (root / "0.mp4.part").read_bytes() == content[:100]
    assert read_manifest(manifest)[0].sha256 == ""
    asked = len(site.asked)
    assert fetch(manifest, root, needs=NEEDS, workers=1).locked == 1
    assert [headers["Range"] for _, _, headers in site.asked[asked:]] == ["bytes=100-"]


def test_parts_of_two_files_are_never_joined(site: Site, tmp_path: Path) -> None:
    part, stop, old, new = tmp_path / "a.part", threading.Event(), b"1" * 300, b"2" * 300
    site.files["/a"] = new
    site.next["/a"] = [cut(old, 100)]
    download(f"{site.url}/a", part, sleep=lambda seconds: None, stop=stop)
    assert part.read_bytes() == new, "the ETag had changed"
    site.next["/a"] = [cut(old, 100, etag='W/"weak"')]
    part.unlink()
    download(f"{site.url}/a", part, sleep=lambda seconds: None, stop=stop)
    assert part.read_bytes() == new
    assert "Range" not in site.asked[-1][2], "a weak ETag says nothing of the bytes"
    # Complete already, but not yet renamed when the run was killed: no byte is left to ask for.
    download(f"{site.url}/a", part, sleep=lambda seconds: None, stop=stop)
    assert part.read_bytes() == new


def test_a_server_without_ranges_starts_anew(site: Site, tmp_path: Path) -> None:
    part, content = tmp_path / "a.part", bytes(range(200))
    whole = {"Content-Type": "video/mp4", "ETag": '"x"'}
    wrong = {**whole, "Content-Range": "bytes 0-199/200"}
    site.next["/a"] = [
        cut(content, 50, etag='"x"'),
        lambda handler: answer(handler, 206, content, wrong),
        cut(content, 60, etag='"x"'),
        lambda handler: answer(handler, 200, content, whole),
    ]
    download(f"{site.url}/a", part, sleep=lambda seconds: None, stop=threading.Event())
    assert part.read_bytes() == content
    assert [headers.get("Range") for _, _, headers in site.asked] == [None, "bytes=50-", None, "bytes=60-"]


def test_an_always_cut_download_says_so(site: Site, tmp_path: Path) -> None:
    site.next["/a"] = [cut(bytes(100), 10, etag='W/"x"')] * 99
    with pytest.raises(HttpError, match="cut off at 10 of 100 bytes"):
        download(f"{site.url}/a", tmp_path / "a.part", sleep=lambda seconds: None, stop=threading.Event())
    assert len(site.asked) == ATTEMPTS


def test_unusable_clips_are_named_and_replaced_by_spares(
    site: Site, tmp_path: Path, videos: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    stock(site, videos)
    manifest, root = build(site, tmp_path, 4), tmp_path / "videos"
    entries = read_manifest(manifest)
    extra, _ = choose(client(site, tmp_path), categories=["nature", "travel"], queries=[""], n=6, seed=0, needs=NEEDS)
    write_manifest(spares_path(manifest), extra[:3:-1])
    gone, broken = entries[0], entries[3]
    del site.files[f"/{gone.id}_small.mp4"]
    site.files[f"/{broken.id}_small.mp4"] = b"this is no video" * 99
    report = fetch(manifest, root, needs=NEEDS, workers=1)
    assert (report.locked, report.failed) == (4, [])
    assert {clip for clip, _ in report.rejected} == {gone.id, broken.id}
    reasons = dict(report.rejected)
    assert "404" in reasons[gone.id]
    assert "not a video file" in reasons[broken.id]
    now = read_manifest(manifest)
    assert [e.id for e in now[1:3]] == [e.id for e in entries[1:3]]
    assert {now[0].id, now[3].id} == {e.id for e in extra[4:]}
    assert [e.category for e in now] == [e.category for e in entries], "a spare of the same category"
    assert not spares_path(manifest).exists()
    with rejected_path(manifest).open(newline="") as file:
        assert {row["id"]: row["reason"] for row in csv.DictReader(file)} == reasons
    assert verify(now, root) == []


def test_without_a_spare_the_clip_fails_by_name(site: Site, tmp_path: Path, videos: list[bytes]) -> None:
    stock(site, videos[:2])
    site.files["/1_small.mp4"] = b"no video"
    manifest, root = build(site, tmp_path, 2), tmp_path / "videos"
    report = fetch(manifest, root, needs=NEEDS, workers=2)
    assert (report.locked, report.rejected) == (1, [])
    ((clip, reason),) = report.failed
    assert clip == "1"
    assert "no spare is left" in reason
    assert {e.id: bool(e.sha256) for e in read_manifest(manifest)} == {"0": True, "1": False}


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        (NEEDS._replace(frames=7), "too short: 6 frames in 1.20 s, needed 7"),
        (NEEDS._replace(fps=2), "too short"),
        (NEEDS._replace(frames=7, fps=7), "too short: 6 frames in 1.20 s, needed 7 and 0.86 s"),
        (NEEDS._replace(min_width=81), "too small: 80x48 px, needed 81x48"),
    ],
)
def test_a_file_that_is_less_than_the_api_said_is_rejected(
    site: Site, tmp_path: Path, videos: list[bytes], needs: Needs, reason: str
) -> None:
    stock(site, videos[:1])
    report = fetch(build(site, tmp_path, 1), tmp_path / "videos", needs=needs, workers=1)
    assert reason in report.failed[0][1]


def test_the_same_video_under_two_ids_is_used_once(site: Site, tmp_path: Path, videos: list[bytes]) -> None:
    stock(site, [videos[0], videos[0]])
    report = fetch(build(site, tmp_path, 2), tmp_path / "videos", needs=NEEDS, workers=1)
    assert report.locked == 1
    assert "the same content as" in report.failed[0][1]


def test_a_page_in_place_of_a_video_does_not_use_up_spares(site: Site, tmp_path: Path, videos: list[bytes]) -> None:
    stock(site, videos)
    manifest = build(site, tmp_path, 4)
    before = manifest.read_bytes(), spares_path(manifest).read_bytes()
    for path in list(site.files):
        site.next[path] = [lambda handler: answer(handler, 200, b"<html>", {"Content-Type": "text/html; x=y"})]
    report = fetch(manifest, tmp_path / "videos", needs=NEEDS, workers=2)
    assert (report.locked, report.rejected) == (0, [])
    assert all("text/html" in reason for _, reason in report.failed)
    for path in list(site.files):
        site.next[path] = [lambda handler: answer(handler, 403, b"go away")]
    assert len(fetch(manifest, tmp_path / "videos", needs=NEEDS, workers=2).failed) == 4
    assert (manifest.read_bytes(), spares_path(manifest).read_bytes()) == before


FETCH = """
import sys
from pathlib import Path
from motionanim.data.fetch import Needs, fetch
fetch(Path(sys.argv[1]), Path(sys.argv[2]), needs=Needs(5, 5, 80, 48), workers=2)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on(site: Site, tmp_path: Path, videos: list[bytes]) -> None:
    videos = [content + bytes(2**20) for content in videos]  # bytes after the end of an mp4 do no harm
    stock(site, videos)
    manifest, root = build(site, tmp_path, 6), tmp_path / "videos"
    for number in range(2, 6):
        site.next[f"/{number}_small.mp4"] = [stalled(site, videos[number], 600_000)]
    process = subprocess.Popen([sys.executable, "-c", FETCH, str(manifest), str(root)], cwd=ROOT)
    try:
        for _ in range(2400):
            if sum(part.stat().st_size >= 2**19 for part in root.glob("*.part")) == 2:
                break
            assert process.poll() is None, "the run ended by itself"
            time.sleep(0.1)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait(timeout=60)
    site.go_on.set()
    for queue in site.next.values():
        queue.clear()
    locked = [e for e in read_manifest(manifest) if e.sha256]
    assert all((root / e.file).read_bytes() == videos[int(e.id)] for e in locked)
    asked = len(site.asked)
    assert fetch(manifest, root, needs=NEEDS, workers=2) == (6, [], [])
    again = [path for path, _, _ in site.asked[asked:]]
    assert not {f"/{e.id}_small.mp4" for e in locked} & set(again)
    assert sum("Range" in headers for _, _, headers in site.asked[asked:]) == 2, "both parts are taken up"
    assert verify(read_manifest(manifest), root) == []


def stalled(site: Site, content: bytes, at: int) -> Callable[[BaseHTTPRequestHandler], None]:
    def send(handler: BaseHTTPRequestHandler) -> None:
        cut(content, at)(handler)
        handler.wfile.flush()
        site.go_on.wait(300)

    return send


def test_one_fetch_at_a_time(site: Site, tmp_path: Path, videos: list[bytes]) -> None:
    stock(site, videos[:1])
    manifest, root = build(site, tmp_path, 1), tmp_path / "videos"
    root.mkdir()
    with (root / ".fetch.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another fetch into .* is running"):
            fetch(manifest, root, needs=NEEDS, workers=1)
    assert fetch(manifest, root, needs=NEEDS, workers=1).locked == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("full", ["video", "manifest"])
def test_a_full_disk_leaves_all_readable(site: Site, tmp_path: Path, videos: list[bytes], full: str) -> None:
    stock(site, videos[:3])
    manifest, root = build(site, tmp_path, 3), tmp_path / "videos"
    before = manifest.read_bytes()
    root.mkdir()
    # Writing to /dev/full fails as on a full disk.
    name = root / "1.mp4.part" if full == "video" else tmp_path / f".manifest.{os.getpid()}.csv"
    name.symlink_to("/dev/full")
    with pytest.raises(ValueError, match="cannot be written: No space left on device; what was fetched is kept"):
        fetch(manifest, root, needs=NEEDS, workers=1)
    if full == "manifest":
        assert manifest.read_bytes() == before
    else:
        assert not (root / "1.mp4").exists()
        assert not {entry.id: entry for entry in read_manifest(manifest)}["1"].sha256
    name.unlink(missing_ok=True)
    assert fetch(manifest, root, needs=NEEDS, workers=1) == (3, [], [])
    assert verify(read_manifest(manifest), root) == []


def test_a_folder_of_ones_own_videos_is_locked(tmp_path: Path, videos: list[bytes]) -> None:
    root = tmp_path / "mine"
    for name, content in {
        "sea/a.mp4": videos[0], "sea/b.mp4": videos[1], "sky/c.mp4": videos[2], "d.mp4": videos[3],
        "sky/twin.mp4": videos[0], "sky/c.mov": videos[4], "sky/broken.mp4": b"no video", "sky/.x.mp4": b"",
        "readme.txt": b"",
    }.items():  # fmt: skip
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    entries, rejected = lock_folder(root, n=None, seed=0, needs=NEEDS, licence="CC0")
    assert {e.file: e.category for e in entries} == {
        "sea/a.mp4": "sea", "sea/b.mp4": "sea", "sky/c.mov": "sky", "d.mp4": "",
    }  # fmt: skip
    reasons = dict(rejected)
    assert set(reasons) == {"sky/twin.mp4", "sky/c.mp4", "sky/broken.mp4"}
    assert "same content as sea/a.mp4" in reasons["sky/twin.mp4"]
    assert "same name without suffix as sky/c.mov" in reasons["sky/c.mp4"]
    manifest = tmp_path / "manifest.csv"
    write_manifest(manifest, entries)
    assert dict(manifest_clips(manifest, root))["sea/a"] == root / "sea" / "a.mp4"
    assert {(e.licence, e.url, e.bytes, e.frames) for e in entries} >= {("CC0", "", len(videos[0]), 6)}
    two, _ = lock_folder(root, n=2, seed=0, needs=NEEDS, licence="CC0")
    assert two == entries[:2]
    with pytest.raises(ValueError, match=r"has 4 videos that can be used, needed are 5; sky/broken.mp4 is not a video"):
        lock_folder(root, n=5, seed=0, needs=NEEDS, licence="CC0")
    (root / "d.mp4").unlink()
    report = fetch(manifest, root, needs=NEEDS, workers=1)
    assert report.locked == 3
    assert "put the file back" in report.failed[0][1]


def test_the_terms_are_shown_and_must_be_accepted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    confirm_terms(accepted=True)
    shown = capsys.readouterr().out
    for words in ("https://pixabay.com/service/license-summary/", "https://pixabay.com/api/docs/", "mass downloads"):
        assert words in shown
    with pytest.raises(ValueError, match="--accept-terms"):
        confirm_terms(accepted=False, ask=lambda question: "yes")  # nobody is at the terminal
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    confirm_terms(accepted=False, ask=lambda question: " Yes\n")
    with pytest.raises(ValueError, match="not accepted"):
        confirm_terms(accepted=False, ask=lambda question: "y")


@pytest.fixture
def command(site: Site, tmp_path: Path) -> Callable[..., int]:
    """benchmarks/pixabay/build.py against the site; its waits take no time."""
    spec = importlib.util.spec_from_file_location("pixabay_build", ROOT / "benchmarks" / "pixabay" / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fixed = [
        "--api", site.api, "--manifest", str(tmp_path / "manifest.csv"), "--root", str(tmp_path / "videos"),
        "--cache", str(tmp_path / "cache"), "--frames", "5", "--fps", "5", "--min-width", "80", "--min-height", "48",
    ]  # fmt: skip
    return lambda *more: module.main(module.arguments().parse_args([*fixed, *more]), sleep=lambda seconds: None)


def everything_under(folder: Path) -> str:
    return "".join(str(path) + path.read_bytes().decode("latin-1") for path in folder.rglob("*") if path.is_file())


def test_the_command_from_nothing_to_a_locked_benchmark(
    site: Site, tmp_path: Path, videos: list[bytes], command: Callable[..., int], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level(logging.DEBUG)
    stock(site, videos)
    with pytest.raises(ValueError, match="not accepted"):
        command("--n", "4", "--key", KEY)
    assert site.asked == []
    assert list(tmp_path.iterdir()) == [], "nothing is asked for, and nothing is written, before the terms are accepted"
    monkeypatch.delenv("PIXABAY_API_KEY", raising=False)
    with pytest.raises(ValueError, match="set PIXABAY_API_KEY"):
        command("--n", "4", "--accept-terms")
    monkeypatch.setenv("PIXABAY_API_KEY", KEY)
    assert command("--n", "4", "--accept-terms", "--list-only") == 0
    assert len(site.queries()) == 20, "one for each category"
    assert site.downloads() == []
    with pytest.raises(ValueError, match="not accepted"):
        command()
    assert site.downloads() == []
    with pytest.raises(ValueError, match="--n 5: .* has 4 clips"):
        command("--n", "5", "--accept-terms")
    with pytest.raises(ValueError, match="is no folder"):
        command("--check")
    site.next["/0_small.mp4"] = [failing(500)]
    assert command("--accept-terms") == 0
    assert command() == 0, "with all clips there is nothing to accept"
    assert command("--check") == 0
    assert len(site.queries()) == 20
    with pytest.raises(ValueError, match="exists and would be replaced"):
        command("--from-folder", str(tmp_path / "videos"))
    out = capsys.readouterr()
    assert "4 of 4 clips are there and locked" in out.out
    assert KEY not in everything_under(tmp_path) + out.out + out.err + caplog.text


def test_the_command_locks_a_folder_without_network(
    site: Site, tmp_path: Path, videos: list[bytes], command: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    for number, content in enumerate([*videos[:3], b"no video"]):
        path = tmp_path / "mine" / f"{number}.mp4"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    assert command("--from-folder", str(tmp_path / "mine"), "--licence", "CC BY 4.0") == 0
    assert "left out: 3.mp4 is not a video file" in capsys.readouterr().out
    assert {e.licence for e in read_manifest(tmp_path / "manifest.csv")} == {"CC BY 4.0"}
    assert command("--check", "--root", str(tmp_path / "mine")) == 0
    (tmp_path / "mine" / "1.mp4").write_bytes(videos[4])
    with pytest.raises(ValueError, match="1 of 3 clips"):
        command("--check", "--root", str(tmp_path / "mine"))
    assert site.asked == []


def test_a_run_that_misses_clips_says_so_in_its_exit_code(
    site: Site, tmp_path: Path, videos: list[bytes], command: Callable[..., int], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setenv("PIXABAY_API_KEY", KEY)
    stock(site, videos[:2])
    site.files["/1_small.mp4"] = b"no video"
    assert command("--n", "2", "--accept-terms") == 1
    assert "failed: 1: is not a video file" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--n", "0"], ["--frames", "0"], ["--workers", "0"]])
def test_numbers_out_of_range_are_refused(command: Callable[..., int], arguments: list[str]) -> None:
    with pytest.raises(ValueError, match="must be"):
        command("--accept-terms", "--key", KEY, *arguments)
