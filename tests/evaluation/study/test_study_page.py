"""The script of a study's page, in node and in a browser, and that its files are counted."""

import copy
import csv
import json
import re
import shutil
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from scipy.stats import binomtest
from study_runs import page_data

from motionanim.evaluation.study.make import QUESTIONS
from motionanim.evaluation.study.report import count_study
from motionanim.evaluation.study.votes import read_key, read_sheets

LOGIC = Path(__file__).resolve().parents[3] / "motionanim" / "assets" / "study" / "logic.js"

node = pytest.mark.skipif(shutil.which("node") is None, reason="needs node, to run the page's script")


def run_script(code, **values):
    """The value of an expression in JavaScript, with logic.js loaded."""
    lines = [LOGIC.read_text(), *(f"const {name} = {json.dumps(value)};" for name, value in values.items())]
    lines.append(f"console.log(JSON.stringify({code}));")
    done = subprocess.run(["node", "-e", "\n".join(lines)], capture_output=True, text=True, check=True, timeout=60)
    return json.loads(done.stdout)


def small_page(per_participant, trials=9, always=1):
    return {
        "schema": 1, "study": "s", "perParticipant": per_participant,
        "questions": [{"id": "q", "text": ""}, {"id": "r", "text": ""}],
        "trials": [{"id": f"t{k}", "image": None, "videos": [f"a{k}", f"b{k}"]} for k in range(trials)],
        "always": [{"id": f"c{k}", "image": None, "videos": [f"x{k}", f"y{k}"]} for k in range(always)],
    }  # fmt: skip


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
    partly = copy.deepcopy(sheet)
    partly["trials"][0]["answers"] = {"q": "tie", "r": "a0"}
    full = copy.deepcopy(partly)
    full["trials"][1]["answers"] = {"q": "tie", "r": "tie"}
    assert run_script("sheets.map(logic.next)", sheets=[sheet, partly, full]) == [0, 1, 2]
    places = ["", "?p=3", "?p=03&x=1", "?p=", "?p=-1", "?p=1e3"]
    assert run_script("places.map((p) => logic.slot(p, () => 77))", places=places) == [77, 3, 3, None, None, None]


@node
def test_what_the_script_writes_is_what_count_reads(study, tmp_path):
    """Two participants: one prefers the alphabetically first method, the other stops after a tie."""
    key = read_key(study / "key.json")
    data = page_data(study / "page" / "index.html")
    names = ["0123456789abcdef", "fedcba9876543210"]
    sheets = run_script("names.map((p) => logic.start(study, p, 0, new Date().toISOString()))", study=data, names=names)
    for entry in sheets[0]["trials"]:
        check = key["checks"].get(entry["trial"])
        best = check["intact"] if check else min(entry["shown"], key=lambda v: key["videos"][v]["method"])
        entry["answers"] = dict.fromkeys(QUESTIONS, best)
    next(e for e in sheets[1]["trials"] if e["trial"] in key["trials"])["answers"]["vi_co"] = "tie"
    files = [tmp_path / "full.json", tmp_path / "part.json"]
    for file, sheet in zip(files, sheets):
        file.write_text(json.dumps(sheet))
    notes = count_study(study / "key.json", files, tmp_path / "result", exclude_failed=True)
    assert notes == [
        "votes: 19 (one of two); participants: 2; clips: 2 of 2; comparisons: 6 of 6",
        "part.json: half-filled, 1 of 21 answers, all counted",
        "participants who answered no attention check: 1",
    ]
    rows = list(csv.DictReader((tmp_path / "result" / "shares.csv").open()))
    shown = {row["method"]: (row["share"], row["wins"]) for row in rows if row["question"] == "mo_coor"}
    assert shown == {"axolotl": ("1.0", "4"), "quokka": ("0.5", "2"), "zebrafish": ("0.0", "0")}
    assert sum(int(row["ties"]) for row in rows) == 2
    assert len((tmp_path / "result" / "votes.csv").read_text().splitlines()) == 20
    assert Image.open(tmp_path / "result" / "shares.png").size[0] > 800


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
def test_a_browser_walks_through_the_page(study, tmp_path):
    shutil.copytree(study / "page", tmp_path / "page")
    page = tmp_path / "page" / "index.html"
    driver = """<script>
      find("begin").click();
      while (find("end").hidden) {
        for (const set of document.querySelectorAll("fieldset")) set.querySelectorAll("input")[current % 3].click();
        find("next").click();
      }
      const again = kept();
      document.body.replaceChildren(element("pre", {textContent: JSON.stringify({file: JSON.parse(votes()), again})}));
    </script>"""
    page.write_text(page.read_text().replace("</body>", driver + "</body>"))
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    done = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120)
    found = json.loads(re.search(r"<pre>(.*)</pre>", done.stdout, re.DOTALL)[1])
    assert found["again"] == found["file"] | {"saved": None}
    assert all(entry["opened"] <= entry["answered"] for entry in found["file"]["trials"])
    (tmp_path / "votes.json").write_text(json.dumps(found["file"]))
    (sheet,) = read_sheets([tmp_path / "votes.json"], read_key(study / "key.json"))
    assert sheet.answered == sheet.asked == 21
    chosen = Counter(entry["answers"]["mo_coor"] == "tie" for entry in found["file"]["trials"])
    assert chosen == {True: 2, False: 5}
