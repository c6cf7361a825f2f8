"""Fetching and locking clips from a server on this machine, with kills, cuts, full disks and wrong files."""

import csv
import fcntl
import hashlib
import os
import re
import signal
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import forked
import pytest
from api import candidate, choose
from download import ATTEMPTS, HttpError, Limits, download, may_redirect, shown
from fetch import FetchReport, Needs, fetch, lock_folder, rejected_path, spares_path
from interrupted import wait_until
from pixabay_site import NEEDS, Site, answer, build, client, cut, failing, hit, served, six_videos, stock

from motionanim.evaluation.manifest import manifest_clips, read_manifest, verify, write_manifest

site = pytest.fixture(served)
videos = pytest.fixture(six_videos, scope="session")


@pytest.fixture
def fetched(site: Site, tmp_path: Path) -> Callable[..., FetchReport]:
    """Fetches into `tmp_path / "videos"` by `tmp_path / "manifest.csv"`; waits take no time."""

    def run(needs: Needs = NEEDS, workers: int = 1, sleep: Callable[[float], object] = lambda seconds: None):
        return fetch(tmp_path / "manifest.csv", tmp_path / "videos", needs=needs, workers=workers, sleep=sleep)

    return run


def test_fetched_clips_are_locked(site, tmp_path, videos, fetched):
    stock(site, videos)
    manifest, root = build(site, tmp_path, 6), tmp_path / "videos"
    assert fetched(workers=2) == (6, [], [])
    entries = read_manifest(manifest)
    for entry in entries:
        content = videos[int(entry.id)]
        assert (root / entry.file).read_bytes() == content
        assert entry.sha256 == hashlib.sha256(content).hexdigest()
        assert (entry.bytes, entry.width, entry.height, entry.frames) == (len(content), 80, 48, 6)
        assert (entry.fps, entry.duration) == (pytest.approx(5, rel=1e-3), pytest.approx(1.2, rel=1e-2))
    assert manifest_clips(manifest, root) == [(e.id, root / e.file) for e in entries]
    assert sorted(p.name for p in root.iterdir()) == [".fetch.lock", *(f"{n}.mp4" for n in range(6))]
    before, asked = manifest.read_bytes(), len(site.asked)
    assert fetched(workers=2) == (6, [], [])
    assert manifest.read_bytes() == before
    assert len(site.asked) == asked, "nothing is fetched twice"


def test_a_locked_clip_is_fetched_by_its_hash_only(site, tmp_path, videos, fetched):
    stock(site, videos[:2])
    manifest, root = build(site, tmp_path, 2), tmp_path / "videos"
    fetched()
    write_manifest(spares_path(manifest), [candidate(hit(5, site.url), category="nature", query="", needs=NEEDS)])
    before = manifest.read_bytes()
    (root / "0.mp4").unlink()
    site.files["/0_small.mp4"] = videos[2]
    report = fetched()
    assert (report.locked, report.failed[0][0]) == (1, "0")
    assert re.search("another hash.*the server has another file now", report.failed[0][1])
    assert not list(root.glob("0.mp4*")), "neither the file nor a part of it stays"
    # A wrong file in its place is neither accepted nor replaced.
    (root / "0.mp4").write_bytes(videos[3])
    assert "remove it" in fetched().failed[0][1]
    assert (root / "0.mp4").read_bytes() == videos[3]
    with pytest.raises(ValueError, match="1 of 2 clips"):
        manifest_clips(manifest, root)
    site.files.clear()
    (root / "0.mp4").unlink()
    report = fetched()
    assert "404" in report.failed[0][1]
    assert report.rejected == [], "a locked clip is never replaced"
    assert manifest.read_bytes() == before


def test_a_download_that_is_cut_goes_on_where_it_stopped(site, tmp_path, videos, fetched):
    stock(site, videos[:1])
    build(site, tmp_path, 1)
    waits: list[float] = []
    site.next["/0_small.mp4"] = [cut(videos[0], 100), failing(500)]
    assert fetched(sleep=waits.append) == (1, [], [])
    spans = [headers.get("Range") for path, _, headers in site.asked if path == "/0_small.mp4"]
    assert spans == [None, "bytes=100-", "bytes=100-"]
    assert waits == [1, 2]
    assert (tmp_path / "videos" / "0.mp4").read_bytes() == videos[0]


def test_what_a_cut_run_left_is_taken_up(site, tmp_path, videos, fetched):
    stock(site, videos[:1])
    manifest, root = build(site, tmp_path, 1), tmp_path / "videos"
    site.next["/0_small.mp4"] = [cut(videos[0], 100), *[failing(503)] * (ATTEMPTS - 1)]
    report = fetched()
    assert (report.locked, len(report.failed)) == (0, 1)
    assert {path.name for path in root.glob("0.mp4*")} == {"0.mp4.part", "0.mp4.part.tag"}
    assert (root / "0.mp4.part").read_bytes() == videos[0][:100]
    assert read_manifest(manifest)[0].sha256 == ""
    asked = len(site.asked)
    assert fetched().locked == 1
    assert [headers["Range"] for _, _, headers in site.asked[asked:]] == ["bytes=100-"]


@pytest.fixture
def got(site: Site, tmp_path: Path) -> Callable[[], bytes]:
    """Downloads the site's /a into one part and returns its bytes."""

    def run() -> bytes:
        download(f"{site.url}/a", tmp_path / "a.part", sleep=lambda seconds: None, stop=threading.Event())
        return (tmp_path / "a.part").read_bytes()

    return run


def test_parts_of_two_files_are_never_joined(site, tmp_path, got):
    old, new = b"1" * 300, b"2" * 300
    site.files["/a"] = new
    site.next["/a"] = [cut(old, 100)]
    assert got() == new, "the ETag had changed"
    (tmp_path / "a.part").unlink()
    site.next["/a"] = [cut(old, 100, etag='W/"weak"')]
    assert got() == new
    assert "Range" not in site.asked[-1][2], "a weak ETag says nothing of the bytes"
    assert got() == new, "it was complete, but not yet renamed: no byte is left to ask for"


def test_a_server_without_ranges_starts_anew(site, got):
    content, whole = bytes(range(200)), {"Content-Type": "video/mp4", "ETag": '"x"'}
    wrong = {**whole, "Content-Range": "bytes 0-199/200"}
    site.next["/a"] = [
        cut(content, 50, etag='"x"'),
        lambda handler: answer(handler, 206, content, wrong),
        cut(content, 60, etag='"x"'),
        lambda handler: answer(handler, 200, content, whole),
    ]
    assert got() == content
    assert [headers.get("Range") for _, _, headers in site.asked] == [None, "bytes=50-", None, "bytes=60-"]
    site.next["/a"] = [cut(bytes(100), 10, etag='W/"x"')] * 99
    with pytest.raises(HttpError, match="cut off at 10 of 100 bytes"):
        got()
    assert len(site.asked) == 4 + ATTEMPTS


def test_unusable_clips_are_named_and_replaced_by_spares(site, tmp_path, videos, fetched):
    stock(site, videos)
    manifest, root = build(site, tmp_path, 4), tmp_path / "videos"
    entries = read_manifest(manifest)
    extra, _ = choose(client(site, tmp_path), categories=["nature", "travel"], queries=[""], n=6, seed=0, needs=NEEDS)
    write_manifest(spares_path(manifest), extra[:3:-1])
    gone, broken = entries[0], entries[3]
    del site.files[f"/{gone.id}_small.mp4"]
    site.files[f"/{broken.id}_small.mp4"] = b"this is no video" * 99
    report = fetched()
    assert (report.locked, report.failed) == (4, [])
    reasons = dict(report.rejected)
    assert set(reasons) == {gone.id, broken.id}
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


def redirect(url: str) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: answer(handler, 302, b"", {"Location": url})


def announcing(size: int) -> Callable[[BaseHTTPRequestHandler], None]:
    return lambda handler: answer(handler, 200, b"x", {"Content-Type": "video/mp4", "Content-Length": str(size)})


def endless(handler: BaseHTTPRequestHandler) -> None:
    """Sends a megabyte, and does not say how much it is."""
    handler.send_response(200)
    handler.send_header("Content-Type", "video/mp4")
    handler.end_headers()
    handler.wfile.write(bytes(10**6))


@pytest.mark.parametrize("answer_", [announcing(10**6), endless], ids=["announced", "not announced"])
def test_a_file_above_the_limit_is_not_kept(site, tmp_path, videos, fetched, answer_):
    stock(site, videos[:2])
    manifest, root = build(site, tmp_path, 1), tmp_path / "videos"
    path = f"/{read_manifest(manifest)[0].id}_small.mp4"
    site.next[path] = [answer_] * ATTEMPTS
    report = fetch(manifest, root, needs=NEEDS, workers=1, limits=Limits(bytes=300_000), sleep=lambda seconds: None)
    assert (report.locked, len(report.rejected), report.failed) == (1, 1, []), "a spare takes its place"
    assert "is larger than the limit of 0.3 MB; --max-megabytes raises it" in report.rejected[0][1]
    assert sum(asked == path for asked, _, _ in site.asked) == 1
    assert not list(root.glob("*.part*"))
    # A locked clip may have its locked size whatever the limit.
    (locked,) = read_manifest(manifest)
    (root / locked.file).unlink()
    again = fetch(manifest, root, needs=NEEDS, workers=1, limits=Limits(bytes=10), sleep=lambda seconds: None)
    assert again == (1, [], [])


def test_redirects_stay_with_the_host_and_its_secrets_out_of_messages(site, tmp_path, got):
    site.files["/b"] = b"0" * 99
    site.next["/a"] = [redirect(f"{site.url}/b")]
    assert got() == b"0" * 99
    (tmp_path / "a.part").unlink()
    for target in (
        site.url.replace("127.0.0.1", "localhost") + "/b?token=5ecret", "https://user:5ecret@elsewhere.example/b?x=5ecret",
        "http://cdn.pixabay.com/b?5ecret",
    ):  # fmt: skip
        site.next["/a"] = [redirect(target)]
        with pytest.raises(HttpError, match="which is not followed.*--allow-host") as error:
            got()
        assert "5ecret" not in str(error.value)
    with pytest.raises(HttpError, match="file:///etc/passwd is no http"):
        download("file:///etc/passwd", tmp_path / "p", sleep=lambda seconds: None, stop=threading.Event())


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("https://pixabay.com/a", "https://cdn.pixabay.com/a", True),
        ("https://pixabay.com/a", "https://notpixabay.com/a", False),
        ("https://pixabay.com/a", "https://pixabay.com.evil.example/a", False),
        ("https://pixabay.com/a", "http://pixabay.com/a", False),
        ("http://pixabay.com/a", "https://pixabay.com/a", True),
        ("https://a.example/x", "https://cdn.a.example/y", True),
        ("https://cdn.a.example/x", "https://a.example/y", False),
        ("https://a.example/x", "https://video.other.example/y", True),
        ("https://a.example/x", "https://127.0.0.1/y", False),
        ("https://a.example/x", "ftp://a.example/y", False),
    ],
)
def test_where_a_server_may_send_us(old, new, expected):
    assert may_redirect(old, new, ("pixabay.com", "other.example")) is expected


def test_addresses_are_shown_without_query_and_password():
    assert shown("https://me:pass@a.example:81/v/1.mp4?token=1#x") == "https://a.example:81/v/1.mp4"


def test_no_message_shows_a_query(site, tmp_path, videos, fetched):
    stock(site, videos[:1])
    manifest = build(site, tmp_path, 1)
    (entry,) = read_manifest(manifest)
    write_manifest(manifest, [entry._replace(url=f"{entry.url}?token=5ecret")])
    html = {"Content-Type": "text/html"}
    for bad in ([lambda handler: answer(handler, 200, b"", html)], [cut(videos[0], 9)] * 6, [failing(403)]):
        site.next["/0_small.mp4"] = list(bad)
        report = fetched()
        assert "127.0.0.1" in report.failed[0][1]
        assert "5ecret" not in report.failed[0][1]
    write_manifest(manifest, [entry._replace(url=f"{entry.url}?token=5ecret", sha256="0" * 64)])
    assert "5ecret" not in fetched().failed[0][1]


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        (NEEDS._replace(frames=7), "too short: 6 frames in 1.20 s, needed 7"),
        (NEEDS._replace(fps=2), "too short"),
        (NEEDS._replace(frames=7, fps=7), "too short: 6 frames in 1.20 s, needed 7 and 0.86 s"),
        (NEEDS._replace(min_width=81), "too small: 80x48 px, needed 81x48"),
    ],
)
def test_a_file_that_is_less_than_promised_fails_where_no_spare_is_left(site, tmp_path, videos, needs, reason, fetched):
    stock(site, videos[:1])
    manifest = build(site, tmp_path, 1)
    report = fetched(needs)
    assert (report.locked, report.rejected) == (0, [])
    assert reason in report.failed[0][1]
    assert "no spare is left" in report.failed[0][1]
    assert read_manifest(manifest)[0].sha256 == ""


def test_the_same_video_under_two_ids_is_used_once(site, tmp_path, videos, fetched):
    stock(site, [videos[0], videos[0]])
    build(site, tmp_path, 2)
    report = fetched()
    assert report.locked == 1
    assert "the same content as" in report.failed[0][1]


def test_a_page_in_place_of_a_video_does_not_use_up_spares(site, tmp_path, videos, fetched):
    stock(site, videos)
    manifest = build(site, tmp_path, 4)
    before = manifest.read_bytes(), spares_path(manifest).read_bytes()
    for status, kind, reason in ((200, "text/html; x=y", "text/html"), (403, "text/plain", "403")):
        for path in list(site.files):
            site.next[path] = [lambda handler: answer(handler, status, b"<html>", {"Content-Type": kind})]  # noqa: B023
        report = fetched(workers=2)
        assert (report.locked, report.rejected) == (0, [])
        assert [reason in why for _, why in report.failed] == [True] * 4
    assert (manifest.read_bytes(), spares_path(manifest).read_bytes()) == before


def fetch_all(manifest: Path, root: Path) -> None:
    fetch(manifest, root, needs=Needs(5, 5, 80, 48), workers=2)


@pytest.mark.slow
def test_a_killed_run_goes_on(site, tmp_path, videos, fetched):
    videos = [content + bytes(2**20) for content in videos]  # bytes after the end of an mp4 do no harm
    stock(site, videos)
    manifest, root = build(site, tmp_path, 6), tmp_path / "videos"
    for number in range(2, 6):
        site.next[f"/{number}_small.mp4"] = [stalled(site, videos[number], 600_000)]
    with forked.calling(fetch_all, manifest, root) as process:
        wait_until(lambda: sum(part.stat().st_size >= 2**19 for part in root.glob("*.part")) == 2, process)
        os.kill(process.pid, signal.SIGKILL)
    site.go_on.set()
    for queue in site.next.values():
        queue.clear()
    locked = [e for e in read_manifest(manifest) if e.sha256]
    assert all((root / e.file).read_bytes() == videos[int(e.id)] for e in locked)
    asked = len(site.asked)
    assert fetched(workers=2) == (6, [], [])
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


def test_one_fetch_at_a_time(site, tmp_path, videos, fetched):
    stock(site, videos[:1])
    build(site, tmp_path, 1)
    (tmp_path / "videos").mkdir()
    with (tmp_path / "videos" / ".fetch.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="another fetch into .* is running"):
            fetched()
    assert fetched().locked == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("full", ["video", "manifest"])
def test_a_full_disk_leaves_all_readable(site, tmp_path, videos, full, fetched):
    stock(site, videos[:3])
    manifest, root = build(site, tmp_path, 3), tmp_path / "videos"
    before = manifest.read_bytes()
    root.mkdir()
    # Writing to /dev/full fails as on a full disk.
    name = root / "1.mp4.part" if full == "video" else tmp_path / f".manifest.{os.getpid()}.csv"
    name.symlink_to("/dev/full")
    with pytest.raises(ValueError, match="cannot be written: No space left on device; what was fetched is kept"):
        fetched()
    if full == "manifest":
        assert manifest.read_bytes() == before
    else:
        assert not (root / "1.mp4").exists()
        assert not {entry.id: entry for entry in read_manifest(manifest)}["1"].sha256
    name.unlink(missing_ok=True)
    assert fetched() == (3, [], [])
    assert verify(read_manifest(manifest), root) == []


def test_a_folder_of_ones_own_videos_is_locked(tmp_path, videos):
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
