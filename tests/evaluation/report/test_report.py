"""Reports of small run folders: which runs are compared, and which are refused."""

from pathlib import Path

import numpy as np
import pytest
from report_runs import CLIPS, around, column, edit, fvd_entry, loaded, make_three, paired, run, scores
from scipy import stats

from motionanim.evaluation.report import write_report
from motionanim.evaluation.report.__main__ import main
from motionanim.evaluation.report.blocks import rank
from motionanim.evaluation.report.columns import column_of
from motionanim.evaluation.report.comparisons import compare, difference
from motionanim.evaluation.report.runs import names, read_run, read_runs
from motionanim.evaluation.report.strength import curves
from motionanim.evaluation.report.tables import score_tables


def test_broken_folders_are_named_in_one_line(tmp_path: Path) -> None:
    good = run(tmp_path, "good", {"psnr": around(24)})
    broken = {  # the message, a file, and what stands in it; None: it is missing
        "unfinished": ("no result.json", "result.json", None),
        "torn": ("cut short", "clips.jsonl", (good / "clips.jsonl").read_text() + '{"clip": "000009", "met'),
        "short": ("holds 0 clips", "clips.jsonl", ""),
        "garbled": ("no result", "result.json", '{"format": 2, "lab'),
        "older": ("has format 1", "result.json", '{"format": 1}'),
        "poor": ("misses", "result.json", '{"format": 2, "metrics": {}}'),
        "bare": ("no clips.jsonl", "clips.jsonl", None),
        "damaged": ("no row", "clips.jsonl", '{"clip": 3}\n'),
    }
    for name, (message, file, content) in broken.items():
        folder = run(tmp_path, name, {"psnr": around(24)})
        (folder / file).unlink()
        if content is not None:
            (folder / file).write_text(content)
        with pytest.raises(ValueError, match=message) as caught:
            read_run(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="--skip-unfinished"):
        read_runs([tmp_path], skip_unfinished=False)
    runs, left_out = read_runs([tmp_path], skip_unfinished=True)
    assert [found.folder for found in runs] == [good]
    assert len(left_out) == len(broken)
    assert main([str(tmp_path), "--skip-unfinished"]) == 0
    page = (tmp_path / "report" / "report.html").read_text()
    assert all(str(tmp_path / name) in page for name in broken)


def test_rows_of_a_resumed_run_are_read_as_the_harness_means_them(tmp_path: Path) -> None:
    folder = run(tmp_path, "a", {"psnr": [1.0, 2.0]})
    lines = (folder / "clips.jsonl").read_text().splitlines()
    again = lines[0].replace("1.0}", "9.0}")
    beyond = lines[1].replace(CLIPS[1], CLIPS[5]).replace('"k1"', '"k5"')
    anew = lines[1].replace("2.0}", "7.0}").replace('"p1"', '"p2"')  # half of a run that measures otherwise
    rows = [lines[0], lines[1][:20], lines[1], beyond, again, anew]
    (folder / "clips.jsonl").write_text("\n".join(rows) + "\n")
    assert read_run(folder).clips == {CLIPS[0]: {"psnr": 9.0}, CLIPS[1]: {"psnr": 2.0}}


def test_names_tell_runs_of_one_label_apart(tmp_path: Path) -> None:
    for gamma in (0.2, 0.8):
        axes = {"gamma": gamma, "sigma": 1 / gamma}
        run(tmp_path, f"g{gamma}", {"psnr": around(20)}, label="ours", sweep="gamma", axes=axes)
    run(tmp_path, "x", {"psnr": around(20)}, label="twin")
    run(tmp_path, "y", {"psnr": around(20)}, label="twin")
    runs, _ = read_runs([tmp_path], skip_unfinished=False)
    assert list(names(runs).values()) == ["ours (gamma=0.2)", "ours (gamma=0.8)", "twin [x]", "twin [y]"]
    listed = run(tmp_path, "z", {"psnr": around(20)}, sweep="table1", axes={"sigma": 0.1})
    assert read_run(listed).sweep is None, "a sweep over a list is no axis"


@pytest.mark.parametrize("label", ["phased, gamma 0.8", "phased (x), gamma 0.8", "phased gamma=0.8", "phased"])
def test_runs_of_a_sweep_share_a_series(tmp_path: Path, label: str) -> None:
    folder = run(tmp_path, "a", {"psnr": around(20)}, label=label, sweep="gamma", axes={"gamma": 0.8})
    assert read_run(folder).series == ("phased (x)" if "(x)" in label else "phased")


def bold(table, header: str) -> list[str]:
    return [name for name, cell in column(table, header).items() if cell.bold]


def test_the_best_is_bold_and_reference_rows_are_not(tmp_path: Path) -> None:
    three = make_three(tmp_path)
    table = scores(three)
    assert [bold(table, header) for header in ("FVD", "PSNR", "LPIPS")] == [["a"], ["a"], ["b"]]
    assert [row.name for row in table.parts["reference rows"]] == ["c"]
    assert column(paired(three), "PSNR")["c"].verdict == ""
    run(three, "d", {"psnr": around(40)}, saw_motion=True)
    assert bold(scores(three), "PSNR") == ["a", "d*"], "the best of those without the motion too"


@pytest.mark.parametrize("other", [{"protocol": "p2"}, {"n": 4}, {"missing": 1}])
def test_other_protocol_or_n_is_never_ranked(tmp_path: Path, other: dict) -> None:
    three = make_three(tmp_path)
    values = around(26, other.get("n", 6))
    if other.pop("missing", 0):
        values[-1] = None
    run(three, "d", {"psnr": values}, **other)
    (block,), called = loaded(three)
    table = score_tables(block, called)[0]
    assert not bold(table, "PSNR")
    assert bold(table, "LPIPS"), "d has no LPIPS, so the others stay comparable"
    header = next(cell for cell in table.columns if cell.text.startswith("PSNR"))
    note = table.notes[header.notes[0] - 1]
    assert "Not ranked" in note
    assert "d" in note.split(": ")[-1]
    with pytest.raises(ValueError, match="--rank-by .*protocol or n differ"):
        rank([block], "psnr", called)
    assert main([str(three), "--rank-by", "psnr"]) == 2
    assert not (three / "report").exists()


def test_rows_can_be_ordered_by_a_key(tmp_path: Path) -> None:
    three = make_three(tmp_path)
    run(three, "d", {"lpips": around(0.1, seed=1)})
    (block,), called = loaded(three)
    (ranked,) = rank([block], "psnr", called)
    assert [found.label for found in ranked.runs] == ["a", "b", "d", "c"], "no score goes last, reference rows apart"
    (ranked,) = rank([block], "lpips", called)
    assert [found.label for found in ranked.methods] == ["d", "b", "a"]
    with pytest.raises(ValueError, match="no run has it"):
        rank([block], "ssim", called)
    assert main([str(three), "--rank-by", "calls"]) == 2


def test_missing_scores_and_intervals_have_their_reason(tmp_path: Path) -> None:
    run(tmp_path, "a", {"psnr": around(24), "ssim": [None] * 6, "odd": [None] * 6}, fvd={"fvd_embedded": 300})
    run(tmp_path, "b", {"psnr": around(22), "ssim": around(0.5)})
    (block,), called = loaded(tmp_path)
    table = score_tables(block, called)[0]
    cell = column(table, "SSIM")["a"]
    assert (cell.text, [table.notes[number - 1] for number in cell.notes]) == ("–", ["the mask is empty"])
    remarks = [remark for found in score_tables(block, called) for remark in found.remarks]
    assert any("odd" in remark and "the mask is empty" in remark for remark in remarks)


def test_frame_0_has_a_table_of_its_own_and_unknown_keys_are_never_ranked(tmp_path: Path) -> None:
    for name, mean in (("a", 24), ("b", 22)):
        run(tmp_path, name, {"psnr": around(mean), "psnr_with_frame0": around(mean + 5), "new_key": around(mean)})
    (block,), called = loaded(tmp_path)
    assert [cell.text for cell in paired(tmp_path).columns] == ["PSNR (dB) ↑"], "once, without frame 0"
    by_title = {table.title.split(": ")[1]: table for table in score_tables(block, called)}
    for title in ("Quality", "Counting frame 0, the condition image"):
        assert [cell.text for cell in by_title[title].columns] == ["clips", "PSNR (dB) ↑"]
    assert not bold(by_title["Other numbers, not ranked"], "new_key")


def test_sweeps_and_benchmarks_stand_apart_and_all_have_the_reference_rows(tmp_path: Path) -> None:
    three = make_three(tmp_path)
    for gamma in (0.9, 0.2):
        run(three, f"g{gamma}", {"psnr": around(60)}, label=f"x, gamma {gamma}", sweep="gamma", axes={"gamma": gamma})
    run(three, "other", {"psnr": around(90)}, benchmark="pixabay16")
    found, _ = loaded(three)
    assert {block.title: [each.label for each in block.runs] for block in found} == {
        "synthetic16": ["a", "b", "c"],
        "synthetic16: sweep over gamma": ["x, gamma 0.2", "x, gamma 0.9", "c"],
        "pixabay16": ["other"],
    }


def test_differences_are_paired_by_clip(tmp_path: Path) -> None:
    shared = np.array([3.0, 9.0, 20.0, 1.0, 7.0, 30.0, 2.0, 8.0, 11.0, 14.0])
    own = np.array([0.4, 1.1, 0.5, -0.2, 0.7, 0.5, 1.2, 0.1, 0.9, 0.3])
    run(tmp_path, "a", {"psnr": list(20 + shared)})
    run(tmp_path, "b", {"psnr": list(20 + shared + own)[::-1]})
    rows = (tmp_path / "b" / "clips.jsonl").read_text().replace("00000", "-0000")
    for index in range(10):  # the same clips in another order
        rows = rows.replace(f"-0000{index}", f"00000{9 - index}")
    (tmp_path / "b" / "clips.jsonl").write_text(rows)
    (block,), _ = loaded(tmp_path)
    found = difference(block, block.methods[1], column_of("psnr"))
    test = stats.ttest_rel(20 + shared + own, 20 + shared)
    expected = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert (found.p, found.effect) == pytest.approx((test.pvalue, own.mean() / own.std(ddof=1)))
    assert column(paired(tmp_path), "PSNR")["b"].verdict == "better"
    assert column(paired(tmp_path, against="b"), "PSNR")["a"].verdict == "worse"


def test_the_nearest_to_the_true_clips_is_best_not_the_nearest_to_1(tmp_path: Path) -> None:
    """True clips have a gain below 1, because the estimator does not see all of the motion."""
    steady = np.random.default_rng(3).normal(0, 0.01, 10)
    for name, gain, reference in (("near", 0.85, False), ("one", 1.0, False), ("real", 0.87, True)):
        run(tmp_path, name, {"speed_gain": list(gain + steady)}, reference=reference)
    run(tmp_path, "uneven", {"speed_gain": [0.47, 1.27] * 5})  # right on average, in no clip
    (block,), called = loaded(tmp_path, against="one")
    assert bold(scores(tmp_path), "Speed gain") == ["near"]
    (ranked,) = rank([block], "speed_gain", called)
    assert [found.label for found in ranked.methods] == ["near", "one", "uneven"]
    distances = column(paired(tmp_path, against="one"), "Speed gain: distance to real")
    assert (distances["near"].verdict, distances["uneven"].verdict) == ("better", "worse")
    assert distances["near"].value == pytest.approx(0.02 - 0.13)


def test_true_clips_that_were_measured_otherwise_are_no_scale(tmp_path: Path) -> None:
    run(tmp_path, "real, old", {"speed_gain": around(0.5)}, reference=True, protocol="p0")
    run(tmp_path, "a", {"speed_gain": around(0.8)})
    run(tmp_path, "b", {"speed_gain": around(0.9, seed=1)})
    assert not bold(scores(tmp_path), "Speed gain")
    assert "no reference row" in " ".join(scores(tmp_path).notes)
    assert column(paired(tmp_path), "Speed gain")["b"].text == "–"
    run(tmp_path, "real", {"speed_gain": around(0.9, seed=1)}, reference=True)
    (block,), called = loaded(tmp_path)
    assert bold(score_tables(block, called)[0], "Speed gain") == ["b"]
    assert block.real(block.methods[0], "speed_gain").label == "real"


def test_sets_that_are_no_pairs_have_no_paired_differences(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = run(tmp_path, name, {"flicker": around(24)}, fvd={"fvd_i3d_ours": 300.0})
        edit(folder, reading=read_run(folder).record["reading"] | {"paired": False})
    assert paired(tmp_path) is None


def test_fvd_is_compared_by_the_jackknife_of_the_difference(tmp_path: Path) -> None:
    """Both FVDs vary by tens between groups of clips, together; their difference is known to 1.

    Only that of the FVDs without bias is a verdict.
    """
    common, own = (np.random.default_rng(seed).normal(0, scale, 12) for seed, scale in ((4, 30), (5, 0.1)))
    own -= own.mean()
    for name, mean, left_out in (("a", 300.0, 300 + common), ("b", 310.0, 310 + common + own)):
        entry = fvd_entry(mean, 12, left_out=list(left_out))
        run(tmp_path, name, {"psnr": around(24, 12)}, entries={"fvd_i3d_ours": entry})
    cell = column(paired(tmp_path), "FVD")["b"]
    assert (cell.text, cell.verdict) == ("+10.00", ""), "as published, with a bias"
    for folder in (tmp_path / "a", tmp_path / "b"):
        metrics = read_run(folder).record["metrics"]
        plain = {key: value for key, value in metrics["fvd_i3d_ours"].items() if key not in ("left_out", "share")}
        edit(folder, metrics=metrics | {"fvd_i3d_ours_corrected": plain})
    cell = column(paired(tmp_path), "FVD")["b"]
    assert (cell.text, cell.verdict) == ("+10.00", "worse")
    assert "+3 %" in cell.interval
    error = np.sqrt((own**2).sum() * 11 / 12)  # of the delete-one jackknife
    low, high = map(float, cell.interval[1:].split("]")[0].split(", "))
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 11) * error, rel=0.01)


def test_many_rows_need_more_than_one_row_does(tmp_path: Path) -> None:
    run(tmp_path, "a", {"psnr": around(24, 12, seed=9)})
    rows = {f"m{index}": around(24, 12, seed=70 + index) for index in range(30)}
    for name, values in rows.items():
        run(tmp_path, name, {"psnr": values})
    (block,), _ = loaded(tmp_path, against="a")
    found = compare(block, column_of("psnr"))
    raw = [each.difference.p for each in found.values()]
    assert min(raw) < 0.05, "one of thirty differs by chance"
    assert not any(each.verdict for each in found.values())
    steps = {p: min(1, p * sum(other >= p for other in raw)) for p in raw}
    assert [each.p for each in found.values()] == pytest.approx([max(steps[q] for q in raw if q <= p) for p in raw])


def test_what_a_row_was_given_is_marked_and_each_level_has_a_best(tmp_path: Path) -> None:
    run(tmp_path, "motion", {"psnr": around(30)}, saw_motion=True)
    run(tmp_path, "mask", {"psnr": around(28)}, saw_mask=True)
    run(tmp_path, "arrows", {"psnr": around(25)})
    run(tmp_path, "theirs", {"psnr": around(24)}, lossless=False)
    table = scores(tmp_path)
    assert [row.name for row in table.rows] == ["arrows", "mask†", "motion*", "theirs‡"]
    assert bold(table, "PSNR") == ["arrows", "mask†", "motion*"]


def test_numbers_that_mean_nothing_here_are_not_ranked(tmp_path: Path) -> None:
    for name, mean in (("a", 3.0), ("b", 9.0)):
        entry = fvd_entry(mean, unranked="its features mean nothing for real videos")
        run(tmp_path, name, {"psnr": around(24)}, entries={"fvd_embedded": entry})
    assert not bold(scores(tmp_path), "FVD")
    assert column(paired(tmp_path), "FVD")["b"].text == "–"
    (block,), called = loaded(tmp_path)
    with pytest.raises(ValueError, match="mean nothing for real videos"):
        rank([block], "fvd_embedded", called)


def test_differences_keep_to_common_clips_and_protocols(tmp_path: Path) -> None:
    run(tmp_path, "a", {"psnr": [*around(24)[:5], None]})
    run(tmp_path, "b", {"psnr": around(22)[:4]})
    run(tmp_path, "c", {"psnr": around(22)}, protocol="p2")
    run(tmp_path, "d", {"psnr": [None] * 5 + [20.0]})
    table = paired(tmp_path)
    cells = column(table, "PSNR")
    assert cells["b"].interval.endswith("n=4")
    assert cells["c"].text == "–"
    assert table.notes[cells["c"].notes[0] - 1] == "protocol p2, the baseline has p1"
    assert "common clips" in table.notes[cells["d"].notes[0] - 1]
    run(tmp_path, "e", {"psnr": [None] * 6})
    table = paired(tmp_path)
    assert table.notes[column(table, "PSNR")["e"].notes[0] - 1] == "this row: the mask is empty", "the true reason"


def test_the_baseline_can_be_chosen(tmp_path: Path) -> None:
    three = make_three(tmp_path)
    assert list(column(paired(three, against="b"), "PSNR")) == ["a", "c"]
    with pytest.raises(ValueError, match="must be one of a, b, c"):
        loaded(three, against="z")
    run(three, "d", {"psnr": around(1)}, label="b")
    with pytest.raises(ValueError, match="choose one"):
        loaded(three, against="b")


def strength_runs(root: Path, levels: tuple[int, ...]) -> None:
    for level in levels:
        asked = [level / 100 * (1 + index / 10) for index in range(6)]
        made = [value * (0.9 if index else -0.5) for index, value in enumerate(asked)]
        values = {"requested_strength": asked, "realised_strength": made, "flow_epe": around(1)}
        run(root, f"s{level}", values, label=f"ours, strength {level}", sweep="strength", axes={"strength": level})


@pytest.mark.slow
def test_strength_curves_correlate_clip_by_clip(tmp_path: Path) -> None:
    strength_runs(tmp_path, (100, 175, 250, 325))
    assert curves(loaded(tmp_path)[0][0].methods)[0].correlation is None
    write_report([tmp_path], None)
    assert "at least 5 levels" in (tmp_path / "report" / "report.md").read_text()
    strength_runs(tmp_path, (400,))
    (block,), called = loaded(tmp_path)
    (curve,) = curves(block.methods)
    assert (curve.label, curve.levels, len(curve.clips)) == ("ours", 5, 6)
    assert curve.correlation.mean == pytest.approx((5 * 1 - 1) / 6)
    assert curve.mean[0][0] == pytest.approx(1.25)
    assert paired(tmp_path) is None, "different motion was requested of its rows"
    assert not any(cell.bold for table in score_tables(block, called) for row in table.rows for cell in row.cells)
    write_report([tmp_path], None)
    assert "0.667" in (tmp_path / "report" / "report.md").read_text()
