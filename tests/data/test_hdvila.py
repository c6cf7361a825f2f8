"""HD-VILA's lists of videos: which of their clips are on disk, in which order."""

import json
import os
import shutil

import pytest
from layouts import six_videos
from omegaconf import OmegaConf

from motionanim.data import hdvila
from motionanim.data.encode import portable
from motionanim.data.hdvila import hdvila_names, hdvila_static_clips, video_of


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    return six_videos(tmp_path_factory.mktemp("hdvila"))


@pytest.fixture
def parts(layout, tmp_path):
    """The list in three files, and the folder of clips."""
    jsonl, root = layout
    lines = jsonl.read_text().splitlines(keepends=True)
    for k in range(3):
        (tmp_path / f"hdvila_part{k}.jsonl").write_text("".join(lines[2 * k : 2 * k + 2]))
    (tmp_path / "res [v2]").mkdir()
    (tmp_path / "res [v2]" / "part[0].jsonl").write_text(lines[0])
    return tmp_path, root


@pytest.mark.parametrize(
    ("given", "count"),
    [
        ("{}", 12), ("{}/hdvila_part*.jsonl", 12), ("{}/hdvila_part0.jsonl", 3), ("{}/res [v2]/part[0].jsonl", 1),
        (["{}/hdvila_part0.jsonl", "{}/*2.jsonl", "{}/hdvila_part0.jsonl"], 8), ("{}/res [v2]", 1),
        (None, 0), ("{}/none*.jsonl", 0), (["{}/hdvila_part0.jsonl", "{}/none"], 0),
    ],
)  # fmt: skip
def test_the_list_comes_in_parts(parts, given, count):
    folder, root = parts
    given = [each.format(folder) for each in given] if isinstance(given, list) else given and given.format(folder)
    if not count:
        named = given[-1] if isinstance(given, list) else given
        with pytest.raises(ValueError, match="does not exist: pass the dataset's lists of videos") as caught:
            list(hdvila_names(root, jsonl=given))
        assert f"jsonl={named} does" in str(caught.value)
        return
    names = list(hdvila_names(root, jsonl=given))
    assert len(set(names)) == len(names) == count
    assert names[0] == "vid-0/vid-0.0.mp4"
    config = OmegaConf.create({"data": {"jsonl": given}})
    assert list(portable(config).data.jsonl) == list(given), "Hydra's lists too"


def test_a_folder_is_listed_once_and_no_clip_asked_for(parts, monkeypatch):
    folder, root = parts
    listed, asked = [], []
    scandir, isfile = os.scandir, os.path.isfile
    monkeypatch.setattr(hdvila.os, "scandir", lambda path: listed.append(str(path)) or scandir(path))
    monkeypatch.setattr(hdvila.os.path, "isfile", lambda path: asked.append(str(path)) or isfile(path))
    assert len(list(hdvila_names(root, jsonl=folder))) == 12
    listed = [each for each in listed if each.startswith(str(root))]
    assert sorted(set(listed)) == sorted(listed)
    assert len(listed) == 1 + 6, "the root and each video's folder"
    assert sum(each.endswith(".mp4") for each in asked) == 1, "the last, at the end: is the disk still there?"


def test_clips_may_lie_directly_in_the_folder(parts):
    folder, root = parts
    flat = folder / "flat"
    flat.mkdir()
    for clip in root.rglob("*.mp4"):
        os.link(clip, flat / clip.name)
    assert len(list(hdvila_names(flat, jsonl=folder))) == 12


def test_a_disk_that_goes_away_leaves_no_short_list(parts):
    folder, root = parts
    copy = folder / "copy"
    shutil.copytree(root, copy)
    names = hdvila_names(copy, jsonl=folder)
    next(names)
    shutil.rmtree(copy)
    with pytest.raises(ValueError, match="went away while its clips were looked for"):
        list(names)


def test_clips_that_are_not_on_disk_are_counted(layout, tmp_path, caplog):
    jsonl, root = layout
    more = tmp_path / "more.jsonl"
    line = {"video_id": "gone", "url": "", "clip": [{"clip_id": "gone.0.mp4", "span": ["", ""]}]}
    more.write_text(jsonl.read_text() + json.dumps(line) + "\n")
    assert len(list(hdvila_names(root, jsonl=more))) == 12
    assert "1 of the 13 clips" in caplog.text
    more.write_text(json.dumps(line))
    with pytest.raises(ValueError, match="none of the 1 clips"):
        list(hdvila_names(root, jsonl=more))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{not json", "not JSON"),
        ('{"video_id": "a"}', "must be an object"),
        ('{"video_id": "a", "clip": [{"span": []}]}', "clip_id=None"),
        ('{"video_id": "a", "clip": [{"clip_id": "../../etc/passwd"}]}', "clip_id='../../etc/passwd'"),
    ],
)
def test_a_wrong_line_is_named(layout, tmp_path, line, message):
    jsonl, root = layout
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_text(jsonl.read_text().splitlines()[0] + "\n" + line + "\n")
    with pytest.raises(ValueError, match=rf"wrong.jsonl, line 2: {message}"):
        list(hdvila_names(root, jsonl=wrong))


def test_the_static_subset_takes_the_listed_clips_only(layout, tmp_path):
    _, root = layout
    listed = ["vid-1/vid-1.0.mp4", "vid-1/vid-1.1.mp4", "vid-4/vid-4.0.mp4"]
    with pytest.raises(ValueError, match=r"make it with python -m motionanim.data.prepare"):
        hdvila_static_clips(root, names=tmp_path / "static.txt", val_share=0.5)
    (tmp_path / "static.txt").write_text("".join(f"{name}\n" for name in listed))
    sides = hdvila_static_clips(root, names=tmp_path / "static.txt", val_share=0.5)
    assert sorted([*sides[0], *sides[1]]) == listed
    assert not set(map(video_of, sides[0])) & set(map(video_of, sides[1]))
    assert (video_of("x/-0kt.12.mp4"), video_of("a/b.mp4")) == ("-0kt", "a/b.mp4")
