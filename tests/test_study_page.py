"""The script of a study's page, in node: who is asked what, and what of a kept sheet is taken up."""

import json
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from scipy.stats import binomtest

LOGIC = Path(__file__).resolve().parents[1] / "motionanim" / "assets" / "study" / "logic.js"

node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node, to run the page's script")


def run_script(code, **values):
    """The value of an expression in JavaScript, with logic.js loaded."""
    lines = [LOGIC.read_text(), *(f"const {name} = {json.dumps(value)};" for name, value in values.items())]
    lines.append(f"console.log(JSON.stringify({code}));")
    done = subprocess.run(["node", "-e", "\n".join(lines)], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def small_page(per_participant, trials=9, always=1):
    return {
        "schema": 1,
        "study": "s",
        "perParticipant": per_participant,
        "questions": [{"id": "q", "text": ""}, {"id": "r", "text": ""}],
        "trials": [{"id": f"t{k}", "image": None, "videos": [f"a{k}", f"b{k}"]} for k in range(trials)],
        "always": [{"id": f"c{k}", "image": None, "videos": [f"x{k}", f"y{k}"]} for k in range(always)],
    }


@node
def test_slots_share_the_comparisons_evenly_and_everyone_gets_the_checks():
    sheets = run_script("[...Array(9).keys()].map((k) => logic.start(study, `p${k}`, k, 'now'))", study=small_page(4))
    given = Counter(entry["trial"] for sheet in sheets for entry in sheet["trials"])
    assert given == {f"t{k}": 4 for k in range(9)} | {"c0": 9}
    for sheet in sheets:
        assert len({entry["trial"] for entry in sheet["trials"]}) == 5


@node
def test_order_and_sides_come_from_the_participant_alone_and_are_even():
    code = "Array.from({length: 300}, (_, k) => logic.start(study, `p${k}`, 0, 'now'))"
    sheets = run_script(code, study=small_page(9, always=0))
    assert sheets == run_script(code, study=small_page(9, always=0))
    orders = {tuple(entry["trial"] for entry in sheet["trials"]) for sheet in sheets}
    assert len(orders) == 300
    first = Counter(entry["shown"][0][0] for sheet in sheets for entry in sheet["trials"])
    assert binomtest(first["a"], 2700).pvalue > 1e-4
    places = Counter(sheet["trials"][0]["trial"] for sheet in sheets)
    assert len(places) == 9
    assert max(places.values()) < 60


@node
def test_a_kept_sheet_is_taken_up_where_it_was_left_and_a_strange_one_is_not():
    study = small_page(2, always=0)
    sheet = run_script("logic.start(study, 'p', 0, 'now')", study=study)
    kept = [json.dumps(sheet), json.dumps(sheet | {"study": "other"}), "{", "null", None, "[]"]
    restored = run_script("kept.map((text) => logic.restore(study, text))", study=study, kept=kept)
    assert restored == [sheet, None, None, None, None, None]
    partly = json.loads(json.dumps(sheet))
    partly["trials"][0]["answers"] = {"q": "tie", "r": "a0"}
    full = json.loads(json.dumps(partly))
    full["trials"][1]["answers"] = {"q": "tie", "r": "tie"}
    assert run_script("sheets.map(logic.next)", sheets=[sheet, partly, full]) == [0, 1, 2]
    places = ["", "?p=3", "?p=03&x=1", "?p=", "?p=-1", "?p=1e3"]
    assert run_script("places.map((p) => logic.slot(p, () => 77))", places=places) == [77, 3, 3, None, None, None]
