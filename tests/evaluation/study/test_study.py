"""Making a study: a page that gives no method away, videos that look alike, and balanced comparisons."""

import json
import re
import shutil
from collections import Counter
from itertools import combinations

import av
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from study_runs import CLIPS, METHODS, make, page_data, write_clip

from motionanim.data.video import Video, VideoError
from motionanim.evaluation.study import media
from motionanim.evaluation.study.__main__ import main, named
from motionanim.evaluation.study.make import QUESTIONS, balanced, round_robin
from motionanim.evaluation.study.media import Look, choose_looks, damage, find_videos
from motionanim.evaluation.templates import render


def test_nothing_handed_out_names_a_method_or_a_clip(study):
    files = [path for path in (study / "page").rglob("*") if path.is_file()]
    assert len(files) == 1 + 6 + 1 + 2
    for path in files:
        for secret in (*METHODS, *CLIPS, "key.json"):
            assert secret not in path.name
            assert secret.encode() not in path.read_bytes().lower()
    assert sorted(p.name for p in study.iterdir()) == ["key.json", "page"]
    key = json.loads((study / "key.json").read_text())
    assert {(v["method"], v["clip"]) for v in key["videos"].values()} == {(m, c) for m in METHODS for c in CLIPS}


def test_all_videos_look_alike_in_codec_size_rate_and_length(study):
    looks = set()
    for path in (study / "page" / "media").glob("*.mp4"):
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            assert container.metadata.keys() <= {"major_brand", "minor_version", "compatible_brands", "encoder"}
            codec, size = stream.codec_context, (stream.width, stream.height)
            looks.add((codec.name, codec.pix_fmt, size, stream.average_rate, stream.frames, len(container.streams)))
    assert looks == {("h264", "yuv420p", (96, 64), 60, 12, 1)}
    photos = list((study / "page" / "media").glob("*.png"))
    assert {Image.open(path).size for path in photos} == {(96, 64)}


def test_the_page_needs_no_network_and_names_only_files_that_are_there(study):
    page = study / "page" / "index.html"
    text = page.read_text()
    assert not re.search(r"https?:|src=|@import|url\(", text)
    assert "{{" not in text
    data = page_data(page)
    used = {f"{video}.mp4" for t in data["trials"] + data["always"] for video in t["videos"]}
    used |= {f"{t['image']}.png" for t in data["trials"] + data["always"]}
    assert used == {path.name for path in (study / "page" / "media").iterdir()}
    assert [q["id"] for q in data["questions"]] == list(QUESTIONS)
    text = render("study/page.html", data=data | {"x": "</script>"})
    assert "<" not in re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_the_inputs_are_part_of_the_seed(folders, study, tmp_path):
    def content(folder):
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    options = ("--image-folder", folders / "photos", "--checks", 1)
    make(folders, tmp_path / "same", *options, "--seed", 3)
    assert content(tmp_path / "same") == content(study)
    with pytest.raises(SystemExit):  # votes belong to the study that they were given in
        make(folders, tmp_path / "same")
    assert content(tmp_path / "same") == content(study)
    other = make(folders, tmp_path / "other", "--pairs", 4, "--seed", 4)
    assert len(other["trials"]) == other["trials_per_participant"] == 4
    assert set(Counter(trial["clip"] for trial in other["trials"].values()).values()) == {2}
    met = Counter(other["videos"][v]["method"] for trial in other["trials"].values() for v in trial["videos"])
    assert max(met.values()) - min(met.values()) <= 1
    key = json.loads((study / "key.json").read_text())
    assert other["study"] != key["study"]
    assert not other["videos"].keys() & key["videos"].keys()
    changed = tmp_path / "changed"
    shutil.copytree(folders, changed)
    write_clip(changed / METHODS[0] / f"{CLIPS[0]}.mp4", frames=7)
    assert not make(changed, tmp_path / "third", "--pairs", 2, "--seed", 3)["videos"].keys() & key["videos"].keys()


def test_a_frame_is_held_for_its_time_and_a_faster_video_is_thinned(folders):
    look = Look(height=64, width=96, fps=6, seconds=1)
    shown = []
    for method, fps in zip(METHODS, (6, 6, 7)):
        shot = media.read(folders / method / f"{CLIPS[0]}.mp4", look)
        assert shot.frames.shape == (60, 3, 64, 96)
        assert (shot.rate, shot.fps) == (60, pytest.approx(fps, rel=1e-3))
        grey = (shot.frames.float().mean((1, 2, 3)) + 1) * 127.5
        shown.append(((grey - 20) / 12).round().int().tolist())
    assert shown[0] == [tick // 10 for tick in range(60)]
    assert shown[1] == [2 * (tick // 10) for tick in range(60)]  # 12 a second: every other frame
    assert shown[2] == [int(tick * 7 / 60 + 1e-6) for tick in range(60)]


def test_options_choose_the_look_and_as_they_are_keeps_it(folders):
    videos = find_videos({m: folders / m for m in METHODS})
    common = {"as_they_are": False, "height": None, "fps": None, "seconds": None}
    (look,) = set(choose_looks(videos, **common).values())
    assert look == pytest.approx((64, 96, 6, 1))
    asked = choose_looks(videos, **common | {"height": 96, "fps": 3.0, "seconds": 0.5})
    assert set(asked.values()) == {Look(96, 144, 3.0, 0.5)}
    own = choose_looks(videos, **common | {"as_they_are": True})
    assert own["quokka", CLIPS[0]][:2] == (96, 128)
    shot = media.read(videos["quokka", CLIPS[0]], own["quokka", CLIPS[0]])
    assert (len(shot.frames), shot.rate) == (15, pytest.approx(12, rel=1e-3))
    for wrong, message in (
        ({"height": 33}, "even number"),
        ({"fps": 0.0}, "above 0"),
        ({"seconds": 1.2}, r"longer than .*zebrafish/glacier_42.mp4 \(1 s\)"),
        ({"as_they_are": True, "fps": 6.0}, "leaves no room"),
    ):
        with pytest.raises(ValueError, match=message):
            choose_looks(videos, **common | wrong)


def test_a_damaged_video_is_coarse_out_of_order_and_repeats():
    frames = torch.linspace(-1, 1, 60).view(60, 1, 1, 1) + torch.linspace(-0.1, 0.1, 48).view(1, 1, 1, 48)
    frames = frames.expand(60, 3, 24, 48).clamp(-1, 1)
    broken = damage(frames, torch.Generator().manual_seed(0))
    assert broken.shape == frames.shape
    assert torch.equal(broken, damage(frames, torch.Generator().manual_seed(0)))
    assert (broken[:, 0, 0].diff() != 0).sum(1).max() == 23  # 2 px blocks
    times = broken.mean((1, 2, 3))
    assert times.diff().min() < 0
    torch.testing.assert_close(times.sort().values, frames.mean((1, 2, 3)), atol=1e-4, rtol=0)


@given(methods=st.integers(2, 9), clips=st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_every_pair_meets_once_on_every_clip_in_a_balanced_order(methods, clips):
    names, scenes = [f"m{k}" for k in range(methods)], [f"c{k}" for k in range(clips)]
    pairs = round_robin(names)
    assert sorted(map(sorted, pairs)) == sorted(map(list, combinations(names, 2)))
    for first in range(0, len(pairs), methods // 2):
        met = [name for pair in pairs[first : first + methods // 2] for name in pair]
        assert len(met) == len(set(met)) == methods // 2 * 2
    order = balanced(scenes, pairs)
    assert len(order) == len(set(order)) == len(scenes) * len(pairs)
    for first in range(0, len(order), clips):
        assert [clip for clip, _ in order[first : first + clips]] == scenes


def test_best_of_all_shows_every_method_at_once(folders, tmp_path, capsys):
    key = make(folders, tmp_path / "s", "--choose", "best-of-all", "--per-participant", 1)
    assert key["choose_best"]
    shown = [sorted(key["videos"][v]["method"] for v in t["videos"]) for t in key["trials"].values()]
    assert shown == [sorted(METHODS)] * 2
    printed = capsys.readouterr().out
    assert "3 methods, 2 comparisons of which a participant sees 1, and 0 attention checks" in printed
    assert "96x64 px, 0.2 s, 2 frames at 6/s" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--pairs", 0), "pairs=0: must lie between 1 and 6"),
        (("--pairs", 7), "pairs=7: must lie between 1 and 6"),
        (("--pairs", 1), r"pairs=1: too few to show \w+ even once"),
        (("--per-participant", 7), "per_participant=7: must lie between 1 and 6"),
        (("--checks", 7), "checks=7: must lie between 0 and 6"),
        (("--image-folder", "nowhere"), "no image for clip glacier_42"),
    ],
)
def test_bad_options_are_one_line_and_leave_nothing(folders, tmp_path, capsys, options, message):
    with pytest.raises(SystemExit) as exit_:
        make(folders, tmp_path / "s", *options)
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert re.match(f"error: .*{message}", error)
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_folders_that_do_not_match_are_refused(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    for folder, names in ((a, ["x.mp4", "y.mp4", ".z.mp4", "log.txt"]), (b, ["x.webm", "w.mp4"])):
        folder.mkdir()
        for name in names:
            (folder / name).touch()
    with pytest.raises(ValueError, match=r"clip w is in b but not in a; clip y is in a but not in b$"):
        find_videos({"a": a, "b": b})
    (b / "w.mp4").rename(b / "y.mp4")
    assert list(find_videos({"b": b, "a": a})) == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
    with pytest.raises(VideoError, match=r"x.mp4 is empty"):
        choose_looks(find_videos({"a": a, "b": b}), as_they_are=False, height=None, fps=None, seconds=None)
    (b / "x.mp4").touch()
    (tmp_path / "empty").mkdir()
    for folders, message in (
        ({"a": a, "b": b}, "x.mp4 and x.webm are both clip x"),
        ({"a": a, "c": tmp_path / "nowhere"}, "no such folder"),
        ({"a": a, "c": tmp_path / "empty"}, "no video"),
        ({"a": a}, "needs two or more"),
    ):
        with pytest.raises(ValueError, match=message):
            find_videos(folders)


def test_methods_are_named_after_folders_or_by_hand(tmp_path):
    odd = tmp_path / "gamma=0.8"
    odd.mkdir()
    assert named([f"ours={tmp_path}/x/out", str(tmp_path / "y" / "out"), str(odd)]) == {
        "ours": tmp_path / "x" / "out",
        "out": tmp_path / "y" / "out",
        "gamma=0.8": odd,
    }
    with pytest.raises(ValueError, match="a second method named out"):
        named(["x/out", "y/out"])


@pytest.mark.slow
def test_published_videos_become_a_study(shared, tmp_path):
    root = shared / "published" / "short"
    methods = ("paper", "ground_truth", "genmo")
    if not all((root / method).is_dir() for method in methods):
        pytest.skip("needs the published videos")
    folders = [str(root / method) for method in methods]
    main(["make", *folders, "--out", str(tmp_path / "s"), "--height", "128", "--seconds", "0.5"])
    key = json.loads((tmp_path / "s" / "key.json").read_text())
    assert len(key["trials"]) == 9
    infos = [Video(path).info for path in (tmp_path / "s" / "page" / "media").iterdir()]
    assert {(info.num_frames, round(info.fps, 3)) for info in infos} == {(30, 60.0)}
    for path in (tmp_path / "s" / "page").rglob("*.*"):
        assert not any(method.encode() in path.read_bytes() for method in methods)
