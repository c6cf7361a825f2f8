"""Counting the sheets of a study: whole, half filled, broken and wrong ones."""

import csv
import json
import math
from itertools import combinations

import pytest

from motionanim.evaluation.study.__main__ import main
from motionanim.evaluation.study.make import QUESTIONS
from motionanim.evaluation.study.report import count_study


def hand_key(methods=("a", "b"), clips=("c1", "c2"), checks=1):
    """A study of all pairs without files. The video of method m on clip c is named m-c."""
    trials = {
        f"{x}{y}-{c}": {"clip": c, "videos": [f"{x}-{c}", f"{y}-{c}"]}
        for x, y in combinations(methods, 2)
        for c in clips
    }
    intact = f"{methods[0]}-{clips[0]}"
    attention = {f"check{k}": {"clip": clips[0], "videos": [intact, f"z{k}"], "intact": intact} for k in range(checks)}
    return {
        "schema": 1, "study": "5tudy", "choose_best": False, "methods": list(methods), "questions": list(QUESTIONS),
        "trials_per_participant": len(trials) + checks, "trials": trials, "checks": attention,
        "videos": {f"{m}-{c}": {"method": m, "clip": c} for m in methods for c in clips},
    }  # fmt: skip


def sheet_of(key, number, answer="first"):
    """A file as the page writes it; `answer` is "first", "second", "tie" or None, or maps trial and question to one."""
    time, entries = "2024-05-06T07:08:09.123Z", []
    for name, trial in (key["trials"] | key["checks"]).items():
        first, second = trial["videos"]
        meaning = {"first": first, "second": second, "tie": "tie", None: None}
        given = {question: answer(name, question) if callable(answer) else answer for question in key["questions"]}
        answers = {question: meaning[each] for question, each in given.items()}
        entries.append({"trial": name, "shown": [second, first], "opened": time, "answered": time, "answers": answers})
    common = {"schema": 1, "study": key["study"], "participant": f"{number:016x}", "slot": 0}
    return common | {"started": time, "saved": time, "trials": entries}


@pytest.fixture
def counted(tmp_path):
    """Writes a key and sheets, counts, and gives the lines and the tables."""

    def run(key, sheets, exclude_failed=False):
        (tmp_path / "key.json").write_text(json.dumps(key))
        files = [tmp_path / f"v{k}.json" for k in range(len(sheets))]
        for file, sheet in zip(files, sheets):
            file.write_text(sheet if isinstance(sheet, str) else json.dumps(sheet))
        notes = count_study(tmp_path / "key.json", files, tmp_path / "out", exclude_failed=exclude_failed)
        tables = {p.stem: list(csv.DictReader(p.open())) for p in (tmp_path / "out").glob("*.csv")}
        return notes, tables, (tmp_path / "out" / "report.md").read_text()

    return run


@pytest.mark.slow
def test_shares_of_hand_made_votes(counted):
    key = hand_key()
    sheets = [
        sheet_of(key, 1),
        sheet_of(key, 2, lambda trial, question: "second" if trial == "ab-c1" else "first"),
        sheet_of(key, 3, lambda trial, question: "tie" if trial == "ab-c2" else "first"),
    ]
    notes, tables, report = counted(key, sheets)
    assert notes == ["votes: 18 (one of two); participants: 3; clips: 2 of 2; comparisons: 2 of 2"]
    for question in QUESTIONS:
        a, b = (row for row in tables["shares"] if row["question"] == question)
        assert (a["method"], a["votes"], a["wins"], a["ties"]) == ("a", "6", "4", "1")
        assert float(a["share"]) == pytest.approx(4.5 / 6)
        assert float(b["share"]) == pytest.approx(1.5 / 6)
        assert float(a["low"]) < 4.5 / 6 < float(a["high"])
        assert float(a["low"]) == pytest.approx(1 - float(b["high"]), abs=1e-6)
        assert float(a["strength"]) - float(b["strength"]) == pytest.approx(math.log(4.5 / 1.5), abs=1e-5)
        against = {(row["method"], row["against"]): row for row in tables["pairwise"] if row["question"] == question}
        assert float(against["a", "b"]["share"]) == pytest.approx(0.75)
        assert float(against["b", "a"]["share"]) == pytest.approx(0.25)
    assert "| a | 75.0 |" in report
    assert "# User study 5tudy" in report


def test_half_filled_and_failed_sheets_are_said(counted):
    key = hand_key()
    sheets = [
        sheet_of(key, 1),
        sheet_of(key, 2, lambda trial, question: "first" if question == "mo_coor" and trial == "ab-c1" else None),
        sheet_of(key, 3, "tie"),
    ]
    notes, tables, report = counted(key, sheets)
    assert notes == [
        "votes: 13 (one of two); participants: 3; clips: 2 of 2; comparisons: 2 of 2",
        "v1.json: half-filled, 1 of 9 answers, all counted",
        "v2.json: failed the attention checks; counted, --exclude-failed leaves it out",
        "participants who answered no attention check: 1",
    ]
    assert all(f"- {note}" in report for note in notes)
    assert [row["votes"] for row in tables["shares"]] == ["5", "5", "4", "4", "4", "4"]
    notes, tables, _ = counted(key, sheets, exclude_failed=True)
    assert notes[0] == "votes: 7 (one of two); participants: 2; clips: 2 of 2; comparisons: 2 of 2"
    assert "v2.json: failed the attention checks; 6 votes left out" in notes
    assert {row["chosen"] for row in tables["votes"]} == {"a"}


def test_missing_numbers_are_empty_never_zero(counted):
    key = hand_key(methods=("a", "b", "c"), checks=0)
    one = sheet_of(key, 1, lambda trial, question: "first" if trial.startswith("ab") else None)
    _, tables, report = counted(key, [one])
    row = next(row for row in tables["shares"] if row["method"] == "c")
    assert (row["share"], row["low"], row["strength"], row["votes"]) == ("", "", "", "0")
    row = next(row for row in tables["shares"] if row["method"] == "a")
    assert (row["share"], row["low"]) == ("1.0", "")  # one participant tells nothing of others
    assert not [row for row in tables["pairwise"] if "c" in (row["method"], row["against"])]
    assert "| c | – | – | 0 | – | – |" in report
    assert "no finite strengths" in report


@pytest.mark.parametrize(
    ("answer", "message"), [(None, "no vote to count: 1 files, 0 left out"), ("tie", "1 left out for failed")]
)
def test_files_without_a_vote_are_refused(counted, answer, message):
    with pytest.raises(ValueError, match=message):
        counted(hand_key(), [sheet_of(hand_key(), 1, answer)], exclude_failed=True)


def edited(change):
    sheet = sheet_of(hand_key(), 1)
    change(sheet)
    return sheet


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 200_000, "is not valid JSON: maximum recursion"),
        ("[]", "holds no JSON object"),
        (json.dumps(hand_key()), "is not a file of votes"),
        (edited(lambda s: s.update(study="other")), "holds votes of study other, the key is of 5tudy"),
        (edited(lambda s: s.update(schema=2)), "schema 2, this version reads 1"),
        (edited(lambda s: s.update(participant="me")), "participant='me' is not 16"),
        (edited(lambda s: s["trials"].pop()), "has 2 comparisons, the page gives 3"),
        (edited(lambda s: s["trials"][0].pop("shown")), "a comparison lacks"),
        (edited(lambda s: s["trials"][0].update(trial="xy")), "comparison 'xy' is not in the study"),
        (edited(lambda s: s["trials"][0].update(trial=["xy"])), "is not in the study"),
        (edited(lambda s: s["trials"].__setitem__(1, s["trials"][0])), "comparison ab-c1 comes twice"),
        (edited(lambda s: s["trials"][0].update(shown=["a-c1", "a-c1"])), "comparison ab-c1 shows"),
        (edited(lambda s: s["trials"][0]["answers"].pop("vi_co")), "does not answer exactly"),
        (edited(lambda s: s["trials"][0]["answers"].update(vi_co="a-c2")), "'a-c2' is no possible choice"),
        (edited(lambda s: s["trials"][0]["answers"].update(vi_co=[])), r"\[\] is no possible choice"),
        (edited(lambda s: s["trials"][0].update(opened="noon")), "opened='noon' is not a time"),
    ],
)
def test_a_bad_file_is_named(counted, bad, message):
    good = sheet_of(hand_key(), 2)
    with pytest.raises(ValueError, match=rf"v1\.json: .*{message}") as error:
        counted(hand_key(), [good, bad])
    assert len(str(error.value)) < 500


def test_a_sheet_without_its_check_and_one_sent_twice_are_refused(counted):
    key = hand_key(checks=2)
    sheet = sheet_of(key, 1)
    with pytest.raises(ValueError, match=r"v1.json: the same participant .* as .*v0.json: give only the later"):
        counted(key, [sheet, sheet])
    shorter = hand_key(checks=2) | {"trials_per_participant": 3}
    sheet["trials"] = sheet["trials"][:3]
    with pytest.raises(ValueError, match=r"v0.json: lacks attention check check1"):
        counted(shorter, [sheet])


@pytest.mark.parametrize(
    ("key", "message"),
    [({}, "key.json: is not a study's key"), (hand_key(), "gone.json: cannot be opened: No such file")],
    ids=["key", "votes"],
)
def test_a_file_that_cannot_be_read_is_an_error_of_one_line(tmp_path, capsys, key, message):
    (tmp_path / "key.json").write_text(json.dumps(key))
    with pytest.raises(SystemExit) as exit_:
        main(["count", str(tmp_path / "key.json"), str(tmp_path / "gone.json"), "--out", str(tmp_path / "out")])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
