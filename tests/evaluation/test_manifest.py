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


@settings(max_examples=40, deadline=None)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"])).map(lambda text: " ".join(text.split())),
    fps=st.none() | st.floats(1e-3, 1e3),
    size=st.none() | st.integers(1, 2**40),
)
def test_a_written_manifest_is_read(tmp_path_factory: pytest.TempPathFactory, text: str, fps: float, size: int) -> None:
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


@pytest.mark.parametrize(
    "cells",
    [
        {"id": "1"}, {"file": "1.mp4"}, {"sha256": "a" * 64}, {"sha256": "A" * 64}, {"file": "../2.mp4"},
        {"file": "/etc/passwd"}, {"file": "a//b"}, {"file": "a/.b"}, {"file": ""}, {"author": '"a\nb"'}, {"id": ".."},
        {"url": "file:///etc/passwd"}, {"url": "https://x.org/a b"}, {"width": "wide"}, {"fps": "nan"},
        {"frames": "-4"}, {"author": "a,b"},
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_row_is_named_by_its_line(tmp_path: Path, cells: dict[str, str]) -> None:
    good = dict.fromkeys(FIELDS, "") | {"id": "1", "file": "1.mp4", "sha256": "a" * 64}
    rows = [good, good | {"id": "2", "file": "2.mp4", "sha256": ""} | cells]
    path = tmp_path / "manifest.csv"
    path.write_text("\n".join([",".join(FIELDS), *(",".join(row[name] for name in FIELDS) for row in rows)]))
    with pytest.raises(ValueError, match=f"line [34]: ({next(iter(cells))}=|16 columns)"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such manifest"),
        (b"", "missing .*'sha256'"),
        ((",".join(FIELDS) + "\n").encode(), "has no clips"),
        ((",".join(FIELDS) + ",note\n").encode(), r"unknown columns \['note'\]"),
        ((",".join([*FIELDS, "id"]) + "\n").encode(), "each once"),
        (b"\xff\xfe\x00", "no CSV file in UTF-8"),
        ((",".join(FIELDS) + '\n"open').encode(), "no CSV file"),
    ],
)
def test_a_bad_file_is_an_error(tmp_path: Path, content: bytes | None, message: str) -> None:
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


@settings(max_examples=40, deadline=None)
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
    for root, n, message in ((tmp_path, 0, "n=0"), (tmp_path, 4, "has 3 clips"), (tmp_path / "no", 1, "is no folder")):
        with pytest.raises(ValueError, match=message):
            manifest_clips(manifest, root, n=n)


def test_each_way_a_clip_can_be_wrong_is_named(tmp_path: Path) -> None:
    entries = locked(tmp_path, [b"one", b"two", b"three", b"four", b"five"])
    (tmp_path / "0.mp4").unlink()
    (tmp_path / "1.mp4").write_bytes(b"tw")
    (tmp_path / "2.mp4").write_bytes(b"THREE")
    entries[3] = entries[3]._replace(sha256="")
    words = ("0.mp4 is missing", "has 2 bytes, locked are 3", "another hash", "not locked")
    for problem, expected in zip(verify(entries, tmp_path), words, strict=True):
        assert expected in problem
    write_manifest(tmp_path / "m.csv", entries)
    with pytest.raises(ValueError, match="^4 of 5 clips .*0.mp4 is missing.*$"):
        manifest_clips(tmp_path / "m.csv", tmp_path)


def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if three seconds had passed since files were written."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + 3_000_000_000)


def test_a_hash_is_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = locked(tmp_path, [b"one", b"two"])
    read: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda file, name: (read.append(file.name), digest(file, name))[1])

    def hashed() -> int:
        read.clear()
        assert verify(entries, tmp_path) == []
        return len(read)

    assert [hashed(), hashed()] == [2, 2], "files changed a moment ago are hashed again"
    later(monkeypatch)
    assert [hashed(), hashed()] == [2, 0]
    times = os.stat(tmp_path / "0.mp4")
    (tmp_path / "0.mp4").write_bytes(b"ONE")
    os.utime(tmp_path / "0.mp4", ns=(times.st_atime_ns, times.st_mtime_ns))
    (problem,) = verify(entries, tmp_path)
    assert "another hash" in problem, "same size, and its time set back"
    assert len(read) == 1


@pytest.mark.parametrize("content", ["", "[]", '{"0.mp4": "x"}', '{"0.mp4": [1, 2, 3]}', "\0", None])
def test_a_damaged_cache_is_ignored_and_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content) -> None:
    entries, cache = locked(tmp_path, [b"one"]), tmp_path / ".sha256.json"
    later(monkeypatch)
    cache.mkdir() if content is None else cache.write_text(content)  # no file can replace a folder
    assert verify(entries, tmp_path) == []
    if content is None:
        cache.rmdir()
        assert verify(entries, tmp_path) == []
    assert json.loads(cache.read_text())["0.mp4"][3] == entries[0].sha256
