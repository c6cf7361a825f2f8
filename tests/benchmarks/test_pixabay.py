"""Choosing clips, and the whole command, with a server on this machine."""

import importlib.util
import json
import logging
import sys
import time
from collections.abc import Callable
from email.utils import formatdate
from pathlib import Path

import pytest
from api import candidate, confirm_terms
from download import ATTEMPTS, HttpError
from fetch import spares_path
from pixabay_site import KEY, NEEDS, Site, answer, build, client, failing, hit, served, six_videos, stock

from motionanim.evaluation.manifest import read_manifest

ROOT = Path(__file__).resolve().parents[2]

site = pytest.fixture(served)
videos = pytest.fixture(six_videos, scope="session")


def test_all_pages_up_to_500_hits_are_asked_for(site, tmp_path):
    site.hits["nature"] = [hit(number) for number in range(700)]
    found = list(client(site, tmp_path).search(category="nature", min_width=80))
    assert [h["id"] for h in found] == list(range(500))
    assert [(q["page"], q["per_page"]) for q in site.queries()] == [("1", "200"), ("2", "200"), ("3", "200")]
    assert {(q["category"], q["min_width"], q["key"]) for q in site.queries()} == {("nature", "80", KEY)}
    assert list(client(site, tmp_path).search(category="music")) == []


@pytest.mark.parametrize(("on_a_page", "hits"), [(200, 500), (100, 300)])
def test_a_server_that_promises_more_than_500_is_not_believed(site, tmp_path, on_a_page, hits):
    body = json.dumps({"total": 900, "totalHits": 900, "hits": [hit(n) for n in range(on_a_page)]}).encode()
    site.next["/api/videos/"] = [lambda handler: answer(handler, 200, body)] * 9
    assert len(list(client(site, tmp_path).search(category="nature"))) == hits
    assert len(site.asked) == 3


def test_hits_that_vanish_between_pages_end_the_list(site, tmp_path):
    site.hits["nature"] = [hit(number) for number in range(250)]
    hits = client(site, tmp_path).search(category="nature")
    first = [next(hits) for _ in range(200)]
    site.hits["nature"] = site.hits["nature"][:150]
    assert len(first) == 200
    assert list(hits) == []


def test_the_rate_limit_is_honoured(site, tmp_path):
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
        ([lambda handler: failing(429, Retry_After=formatdate(time.time() + 200, usegmt=True))(handler)], [200]),
        ([failing(429, Retry_After="20"), failing(429)], [20, 2]),
        ([failing(503), failing(500), failing(502)], [1, 2, 4]),
        ([lambda handler: answer(handler, 200, b"{", {"Content-Length": "9"})], [1]),
        ([lambda handler: handler.connection.close()], [1]),
    ],
    ids=["429 with reset", "429 with a date", "429 with Retry-After", "5xx", "broke off", "hung up"],
)
def test_passing_troubles_are_waited_out(site, tmp_path, answers, expected, caplog):
    site.hits["nature"] = [hit(1)]
    site.next["/api/videos/"] = list(answers)
    waits: list[float] = []
    found = list(client(site, tmp_path, waits).search(category="nature"))
    assert [h["id"] for h in found] == [1]
    assert [wait for wait in waits if wait != 0.6] == pytest.approx(expected, abs=3 if expected[0] > 60 else 0)
    assert "again in" in caplog.text
    assert KEY not in caplog.text


def test_lasting_troubles_end_in_one_line(site, tmp_path):
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


def test_a_refused_key_is_not_repeated(site, tmp_path):
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


def test_answers_are_kept_for_a_day_without_the_key(site, tmp_path):
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


def test_the_smallest_file_that_is_large_enough_is_taken():
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
def test_what_cannot_serve_is_left_out(changes, reason):
    found = candidate(hit(7, **changes), category="nature", query="", needs=NEEDS)
    assert isinstance(found, str)
    assert reason in found


def test_the_choice_is_the_same_in_every_run(site, tmp_path):
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


def test_too_few_clips_are_counted(site, tmp_path):
    site.hits["nature"] = [hit(1), hit(2, duration=0), hit(3, isAiGenerated=True)]
    site.hits["travel"] = [hit(1), hit(4)]
    with pytest.raises(ValueError, match="2 videos can be used, needed are 3; found 1 in nature, 2 in travel; left out "
                       "1 marked.*, 1 too short"):  # fmt: skip
        build(site, tmp_path, 3)
    with pytest.raises(ValueError, match="category='seas': must be one or more of backgrounds"):
        build(site, tmp_path, 3, categories=["seas"])
    with pytest.raises(ValueError, match="at most 100 characters"):
        build(site, tmp_path, 3, queries=["x" * 101])


def test_queries_are_asked_within_each_category(site, tmp_path):
    site.hits["naturesea"], site.hits["naturesky"] = [hit(1), hit(2)], [hit(2), hit(3)]
    entries = read_manifest(build(site, tmp_path, 3, categories=["nature"], queries=["sea", "sky"]))
    assert {e.id: e.query for e in entries} == {"1": "sea", "2": "sea", "3": "sky"}
    assert {(q["q"], q["video_type"], q["safesearch"]) for q in site.queries()} == {
        ("sea", "film", "true"),
        ("sky", "film", "true"),
    }


def test_the_terms_are_shown_and_must_be_accepted(capsys, monkeypatch):
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
    """Runs benchmarks/pixabay/build.py with the site; waits take no time."""
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


def test_the_command_from_nothing_to_a_locked_benchmark(site, tmp_path, videos, command, monkeypatch, capsys, caplog):
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


def test_the_command_locks_a_folder_without_network(site, tmp_path, videos, command, capsys):
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


def test_a_run_that_misses_clips_says_so_in_its_exit_code(site, tmp_path, videos, command, capsys, monkeypatch):
    monkeypatch.setenv("PIXABAY_API_KEY", KEY)
    stock(site, videos[:2])
    site.files["/1_small.mp4"] = b"no video"
    for wrong in ("--n", "--frames", "--workers"):
        with pytest.raises(ValueError, match="must be above 0"):
            command("--accept-terms", wrong, "0")
    assert command("--n", "2", "--accept-terms") == 1
    assert "failed: 1: is not a video file" in capsys.readouterr().out
