"""The manifest: reading, writing, choosing, and holding files to their hash."""

import hashlib
import json
import os
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from motionanim.evaluation.manifest import (
    FIELDS,
    ManifestEntry,
    manifest_clips,
    read_manifest,
    select,
    verify,
    write_manifest,
)

EMPTY = ManifestEntry("1", "1.mp4", "", "", "", "", None, None, None, None, None, None, "", "", "")


def entry(number: int, **changes: object) -> ManifestEntry:
    return EMPTY._replace(id=str(number), file=f"{number}.mp4", **changes)


def locked(root: Path, contents: list[bytes]) -> list[ManifestEntry]:
    """Files 0.mp4, 1.mp4 ... under `root` and their entries."""
    entries = []
    for number, content in enumerate(contents):
        (root / f"{number}.mp4").write_bytes(content)
        entries.append(entry(number, sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)))
    return entries


@settings(max_examples=60)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"])).map(lambda text: " ".join(text.split())),
    fps=st.none() | st.floats(1e-3, 1e3),
    size=st.none() | st.integers(1, 2**40),
)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, text: str, fps: float, size: int) -> None:
    path = tmp_path_factory.mktemp("m") / "manifest.csv"
    entries = [entry(2, author=text, query=text, fps=fps, bytes=size), entry(1, url="https://x.org/a?b=c,d")]
    write_manifest(path, entries)
    assert read_manifest(path) == entries


def test_the_order_of_columns_and_a_byte_order_mark_do_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    row = entry(7, author="Ünal, A.")._asdict()
    names = sorted(FIELDS, reverse=True)
    cells = [f'"{"" if row[name] is None else row[name]}"' for name in names]
    path.write_text(",".join(names) + "\r\n" + ",".join(cells) + "\r\n\r\n", encoding="utf-8-sig")
    assert read_manifest(path) == [entry(7, author="Ünal, A.")]


def written(tmp_path: Path, **cells: str) -> Path:
    """A manifest of a good row, and of one with these cells."""
    path = tmp_path / "manifest.csv"
    good = dict.fromkeys(FIELDS, "") | {"id": "1", "file": "1.mp4", "sha256": "a" * 64}
    rows = [good, good | {"id": "2", "file": "2.mp4", "sha256": ""} | cells]
    path.write_text("\n".join([",".join(FIELDS), *(",".join(row[name] for name in FIELDS) for row in rows)]))
    return path


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({"id": "1"}, "line 3: id='1' repeats .* line 2"),
        ({"file": "1.mp4"}, "line 3: file='1.mp4' repeats"),
        ({"sha256": "a" * 64}, "line 3: sha256='a+' repeats"),
        ({"sha256": "A" * 64}, "line 3: sha256=.* 64 hex digits"),
        ({"file": "../2.mp4"}, "line 3: file='../2.mp4' must be a relative path"),
        ({"file": "/etc/passwd"}, "line 3: file="),
        ({"file": "a//b"}, "line 3: file="),
        ({"file": "a/.b"}, "line 3: file="),
        ({"file": ""}, "line 3: file="),
        ({"author": '"a\nb"'}, r"line 4: author='a\\nb' must be one line"),
        ({"id": ".."}, "line 3: id="),
        ({"url": "file:///etc/passwd"}, "line 3: url=.*http"),
        ({"url": "https://x.org/a b"}, "line 3: url="),
        ({"width": "wide"}, "line 3: width='wide' must be a number"),
        ({"fps": "nan"}, "line 3: fps=nan must be above 0"),
        ({"frames": "-4"}, "line 3: frames=-4"),
        ({"author": "a,b"}, "line 3: 16 columns, the header has 15"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, cells: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_manifest(written(tmp_path, **cells))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such manifest"),
        (b"", "unknown columns .*missing .*'sha256'"),
        ((",".join(FIELDS) + "\n").encode(), "has no clips"),
        ((",".join(FIELDS) + ",note\n").encode(), r"unknown columns \['note'\]"),
        ((",".join(FIELDS[1:]) + "\n").encode(), r"missing \['id'\]"),
        ((",".join([*FIELDS, "id"]) + "\n").encode(), "each once"),
        (b"\xff\xfe\x00", "no CSV file in UTF-8"),
        ((",".join(FIELDS) + '\n"open').encode(), "no CSV file"),
    ],
)
def test_a_bad_file_is_told_apart(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "manifest.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_manifest(path)


def test_a_bad_entry_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "manifest.csv"
    write_manifest(path, [entry(1)])
    before = path.read_bytes()
    with pytest.raises(ValueError, match="repeats"):
        write_manifest(path, [entry(1), entry(1)])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 12), min_size=1, max_size=5),
    n=st.integers(1, 40),
    seed=st.integers(0, 3),
    order=st.randoms(use_true_random=False),
)
def test_the_choice_is_balanced_and_depends_on_the_seed_only(sizes: list[int], n: int, seed: int, order) -> None:
    candidates = [
        entry(100 * category + number, category=f"c{category}")
        for category, size in enumerate(sizes)
        for number in range(size)
    ]
    chosen = select(candidates, n=n, seed=seed)
    assert len(chosen) == len({e.id for e in chosen}) == min(n, sum(sizes))
    counts = Counter(e.category for e in chosen)
    for category, size in enumerate(sizes):
        # A category has fewer than another only if it has no more clips to give.
        assert counts[f"c{category}"] == size or counts[f"c{category}"] >= max(counts.values()) - 1
    order.shuffle(candidates)
    assert select(candidates, n=n, seed=seed) == chosen
    assert select(candidates, n=max(1, n // 2), seed=seed) == chosen[: max(1, n // 2)]


def test_a_clip_of_two_categories_is_used_once_and_seeds_differ() -> None:
    both = [entry(n, category=c) for n in range(20) for c in ("a", "b")]
    chosen = select(both, n=20, seed=0)
    assert sorted(int(e.id) for e in chosen) == list(range(20))
    assert Counter(e.category for e in chosen) == {"a": 10, "b": 10}
    assert [e.id for e in select(both, n=20, seed=1)] != [e.id for e in chosen]
    with pytest.raises(ValueError, match="n=0"):
        select(both, n=0, seed=0)


def test_verified_clips_come_in_order(tmp_path: Path) -> None:
    entries = locked(tmp_path, [b"one", b"two", b"three"])
    manifest = tmp_path / "manifest.csv"
    write_manifest(manifest, entries[::-1])
    assert manifest_clips(manifest, tmp_path) == [(n, tmp_path / f"{n}.mp4") for n in "210"]
    assert manifest_clips(manifest, tmp_path, n=1) == [("2", tmp_path / "2.mp4")]
    for n in (0, 4):
        with pytest.raises(ValueError, match=f"n={n}: .* has 3 clips"):
            manifest_clips(manifest, tmp_path, n=n)
    with pytest.raises(ValueError, match="is no folder"):
        manifest_clips(manifest, tmp_path / "nowhere")


def test_each_way_a_clip_can_be_wrong_is_named(tmp_path: Path) -> None:
    entries = locked(tmp_path, [b"one", b"two", b"three", b"four", b"five"])
    (tmp_path / "0.mp4").unlink()
    (tmp_path / "1.mp4").write_bytes(b"tw")
    (tmp_path / "2.mp4").write_bytes(b"THREE")
    entries[3] = entries[3]._replace(sha256="")
    problems = verify(entries, tmp_path)
    assert len(problems) == 4
    for problem, words in zip(
        problems, ("0.mp4 is missing", "has 2 bytes, locked are 3", "another hash", "not locked")
    ):
        assert words in problem
    write_manifest(tmp_path / "m.csv", entries)
    with pytest.raises(ValueError, match="4 of 5 clips .*0.mp4 is missing") as error:
        manifest_clips(tmp_path / "m.csv", tmp_path)
    assert "\n" not in str(error.value)


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if three seconds had passed since files were written."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 3_000_000_000)


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = locked(tmp_path, [b"one", b"two"])
    read: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: (read.append(file.name), digest(file, name))[1])
    assert verify(entries, tmp_path) == []
    assert verify(entries, tmp_path) == []
    assert len(read) == 4, "files changed a moment ago are hashed again"
    later(monkeypatch)
    assert verify(entries, tmp_path) == []
    assert len(read) == 6
    assert verify(entries, tmp_path) == []
    assert len(read) == 6
    times = os.stat(tmp_path / "0.mp4")
    (tmp_path / "0.mp4").write_bytes(b"ONE")
    os.utime(tmp_path / "0.mp4", ns=(times.st_atime_ns, times.st_mtime_ns))
    problems = verify(entries, tmp_path)
    assert len(problems) == 1
    assert "another hash" in problems[0], "same size and same time set back by hand"
    assert len(read) == 7


@pytest.mark.parametrize("content", ["", "[]", '{"0.mp4": "x"}', '{"0.mp4": [1, 2, 3]}', "\0"])
def test_a_damaged_memory_is_not_believed(tmp_path: Path, content: str) -> None:
    entries = locked(tmp_path, [b"one"])
    (tmp_path / ".sha256.json").write_text(content)
    assert verify(entries, tmp_path) == []


def test_a_folder_that_cannot_be_written_to_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = locked(tmp_path, [b"one"])
    later(monkeypatch)
    (tmp_path / ".sha256.json").mkdir()  # no file can take its place
    assert verify(entries, tmp_path) == []
    (tmp_path / ".sha256.json").rmdir()
    assert verify(entries, tmp_path) == []
    assert json.loads((tmp_path / ".sha256.json").read_text())["0.mp4"][3] == entries[0].sha256
