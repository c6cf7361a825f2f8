"""A server on this machine that speaks the documented JSON of Pixabay's API, for tests."""

import hashlib
import json
import threading
import urllib.parse
from collections import defaultdict
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from api import PixabayClient, choose
from fetch import Needs, spares_path

from motionanim.data.video import write_video
from motionanim.evaluation.manifest import write_manifest

KEY = "12345678-0123456789abcdef0123456789"
NEEDS = Needs(frames=5, fps=5, min_width=80, min_height=48)


class Site:
    """The server, and what it was asked.

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
    """Promises the whole content, sends a part, and hangs up."""
    etag = etag or f'"{hashlib.sha256(content).hexdigest()[:8]}"'
    headers = {"Content-Type": "video/mp4", "Content-Length": str(len(content)), "ETag": etag}
    return lambda handler: answer(handler, 200, content[:at], headers)


def served(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A fixture: a server on this machine."""
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


def six_videos(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """A fixture: six different videos of 80 x 48 px, 6 frames, 5 a second."""
    path, made = tmp_path_factory.mktemp("videos") / "a.mp4", []
    for number in range(6):
        generator = torch.Generator().manual_seed(number)
        write_video(path, torch.rand(6, 3, 48, 80, generator=generator) * 2 - 1, 5)
        made.append(path.read_bytes())
    return made


def hit(number: int, url: str = "https://cdn.example.org", **changes: Any) -> dict[str, Any]:
    """A hit as the API documents it."""
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
    """Give the site one clip per video, alternating between categories."""
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
