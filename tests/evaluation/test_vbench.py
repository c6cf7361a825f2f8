import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_runs import run as evaluated
from report_runs import around, edit, run

from motionanim.data.video import Video, write_video
from motionanim.evaluation.report.runs import read_run
from motionanim.evaluation.report.write import write_report
from motionanim.evaluation.vbench.__main__ import main
from motionanim.evaluation.vbench.layout import write
from motionanim.evaluation.vbench.results import read
from motionanim.metrics.published.vbench import DIMENSIONS, I2V

NASTY = ["a/b c-0", "a/b_c-0", "$(x) `y`", "naïve \"q\" 'q'", "-1", "[v2] 100% *?"]


def kept(folder: Path, clips=NASTY, side: int = 32) -> Path:
    """A run of `report_runs` whose clips have nasty names and kept frames."""
    rows = [json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()]
    (folder / "frames").mkdir()
    for index, (row, clip) in enumerate(zip(rows, clips)):
        row["clip"] = clip
        pixels = np.random.default_rng(index).integers(0, 256, (3, 3, side, side), np.uint8)
        np.savez(folder / "frames" / f"x-{row['key']}.npz", frames=pixels)
    (folder / "clips.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def scored(out: Path, name: str, values: dict[str, list[float]]) -> Path:
    """Results as VBench 0.1.5 writes them: `values` by dimension, in the order of the clips."""
    folder = out / name
    videos = sorted((folder / "videos").glob("*.mp4"))
    content = {}
    for dimension, column in values.items():
        scale = 100 if dimension == "imaging_quality" else 1
        listed = [
            {"video_path": f"/elsewhere/{video.name}", "video_results": value * scale, "cnt_per_video": 15}
            for video, value in zip(videos, column)
        ]
        content[dimension] = [float(np.mean(column)), listed[::-1]]  # os.listdir has any order
    path = folder / "results" / f"{name}_eval_results.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=4))
    return path


def true_videos(folder: Path) -> Path:
    for index, clip in enumerate(NASTY):
        write_video(folder / f"{clip}.mp4", torch.full((2, 3, 40, 48), index / 6), 8)
    return folder


@pytest.fixture
def written(tmp_path):
    """The folder of two runs' videos, and the runs."""
    runs = [kept(run(tmp_path / "runs", name, {"psnr": around(24)})) for name in ("ours $HOME", "theirs")]
    write(runs, tmp_path / "vb", images=true_videos(tmp_path / "true"), fps=8)
    return tmp_path / "vb", runs


def test_names_and_scores_survive_the_round_trip(written):
    out, runs = written
    values = {"subject_consistency": around(0.9), "imaging_quality": around(0.6), "dynamic_degree": [1.0, 0.0] * 3}
    scored(out, "00", values)
    assert read(out) == [runs[0]]
    ours = read_run(runs[0])
    for name, column in values.items():
        key = f"vbench/{name}"
        assert [ours.clips[clip][key] for clip in NASTY] == pytest.approx(column)
        assert ours.scores[key].mean == pytest.approx(np.mean(column))
        assert ours.scores[key].n == 6
    assert ours.scores["vbench/subject_consistency"].low < np.mean(values["subject_consistency"])
    assert "vbench/subject_consistency" not in read_run(runs[1]).scores  # which VBench did not score


def test_scores_of_two_runs_compare_in_the_report(written):
    out, runs = written
    for name, mean in (("00", 0.9), ("01", 0.7)):
        scored(out, name, {"motion_smoothness": list(np.linspace(mean, mean + 0.01, 6))})
    read(out)
    first, second = map(read_run, runs)
    assert first.scores["vbench/motion_smoothness"].terms == second.scores["vbench/motion_smoothness"].terms
    page = write_report(runs, out.parent / "report")
    assert "VBench smoothness ↑" in page.with_name("report.md").read_text()


def test_the_layout_is_vbenchs(written):
    out, _ = written
    index = json.loads((out / "index.json").read_text())
    assert [entry["clips"] for entry in index["runs"]] == [{f"{i:04}": clip for i, clip in enumerate(NASTY)}] * 2
    names = [path.name for path in sorted((out / "01" / "videos").iterdir())]
    assert names == [f"{number:04}-0.mp4" for number in range(6)]  # PROMPT-0.mp4, for both of its modes
    video = Video(out / "01" / "videos" / names[0])
    assert (video.info.num_frames, video.info.fps) == (3, pytest.approx(8))
    info = json.loads((out / "01" / "info.json").read_text())
    assert [each["prompt_en"] for each in info] == [name.removesuffix("-0.mp4") for name in names]
    assert all(Path(each["image_name"]).is_file() and Path(each["image_name"]).is_absolute() for each in info)
    assert info[0]["dimension"] == [*DIMENSIONS, *I2V]
    script = (out / "score.py").read_text()
    assert json.dumps([*DIMENSIONS, *I2V]) in script
    compile(script, "score.py", "exec")


def test_frames_of_odd_sides_lose_a_line(tmp_path):
    folder = kept(run(tmp_path, "odd", {"psnr": around(24)}), side=33)
    write([folder], tmp_path / "vb", fps=8)
    assert Video(tmp_path / "vb" / "00" / "videos" / "0000-0.mp4").size() == (32, 32)


def test_a_real_run_gives_its_rate_and_its_frames(tmp_path):
    done = evaluated(tmp_path)
    assert main(["write", str(done.folder), "--out", str(tmp_path / "vb")]) == 0
    assert Video(tmp_path / "vb" / "00" / "videos" / "0000-0.mp4").info.fps == pytest.approx(7)
    assert not (tmp_path / "vb" / "00" / "info.json").exists()


def results(names: list[str], dimension: str = "scene", mean: float = 1.0) -> str:
    return json.dumps({dimension: [mean, [{"video_path": name, "video_results": mean} for name in names]]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no results of VBench"),
        ("[]", "must hold an object"),
        ('{"scene": 3}', "not as VBench 0.1.5 writes it"),
        (results(["9-0.mp4"]), "none of"),
        (results(["0000-0.mp4"]), "1 of 6"),
        (results([f"{i:04}-0.mp4" for i in range(6)], "imaging_quality", 60.0), "mean 60, and its videos 0.6"),
        (None, "no results yet"),
        ("a second file", "keep one of them"),
    ],
)
def test_damaged_results_are_refused(written, content, message):
    out, runs = written
    path = scored(out, "00", {"scene": around(0.5)})
    if content is None:
        path.unlink()
    elif content == "a second file":
        path.with_name("again_eval_results.json").write_text(path.read_text())
    else:
        path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read(out)
    assert not (runs[0] / "vbench.json").exists()


def test_scores_of_earlier_clips_do_not_count(written):
    out, runs = written
    scored(out, "00", {"scene": around(0.5)})
    read(out)
    edit(runs[0], keys=read_run(runs[0]).record["keys"][:5], n=5)
    score = read_run(runs[0]).scores["vbench/scene"]
    assert score.mean is None
    assert "other clips" in score.reason
    with pytest.raises(ValueError, match="other clips now"):
        read(out)
    (runs[0] / "vbench.json").write_text("[]")
    with pytest.raises(ValueError, match="vbench.json cannot be read"):
        read_run(runs[0])


def test_what_cannot_be_written_is_said_before_any_work(tmp_path, capsys):
    folder = kept(run(tmp_path, "a", {"psnr": around(24)}))
    other = tmp_path / "other"
    write_video(other / "other.mp4", torch.zeros(2, 3, 32, 32), 8)
    for arguments, message in (
        ([str(folder)], "--fps"),
        ([str(folder), "--fps", "0"], "above 0"),
        ([str(folder), "--fps", "8", "--images", str(other)], "has no video of clip 'a/b c-0'"),
        ([str(run(tmp_path, "c", {"psnr": around(24)})), "--fps", "8"], "keep_frames=true"),
    ):
        assert main(["write", *arguments, "--out", str(tmp_path / "vb")]) == 2
        assert message in capsys.readouterr().err
        assert not (tmp_path / "vb").exists()
    (tmp_path / "vb").mkdir()
    assert main(["write", str(folder), "--out", str(tmp_path / "vb")]) == 2
    assert "exists" in capsys.readouterr().err


@pytest.mark.parametrize("images", [False, True])
def test_vbench_itself_reads_the_layout(tmp_path, images):
    """Its one dimension without weights: the flickering."""
    pytest.importorskip("vbench")
    pytest.importorskip("vbench2_beta_i2v")
    folder = kept(run(tmp_path, "ours $HOME", {"psnr": around(24)}))
    write([folder], tmp_path / "v b", images=true_videos(tmp_path / "true") if images else None, fps=8)
    script = tmp_path / "v b" / "score.py"
    wanted = json.dumps([*DIMENSIONS, *(I2V if images else ())])
    script.write_text(script.read_text().replace(wanted, '["temporal_flickering"]'))
    with pytest.raises(SystemExit):
        runpy.run_path(str(script), run_name="__main__")
    read(tmp_path / "v b")
    assert set(read_run(folder).clips[NASTY[0]]) == {"psnr", "vbench/temporal_flickering"}
