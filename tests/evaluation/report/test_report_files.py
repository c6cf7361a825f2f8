"""Files of reports of small run folders: plots, pages and tables with every number."""

import base64
import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from report_runs import CLIPS, around, fvd_entry, gamma_runs, loaded, make_three, run, scores

from motionanim.evaluation.report import write_report
from motionanim.evaluation.report.__main__ import main
from motionanim.evaluation.report.paper import referee_table
from motionanim.evaluation.report.plots.costs import pareto, sweep_plot
from motionanim.evaluation.report.plots.figure import main_fvd
from motionanim.evaluation.report.runs import read_run
from motionanim.evaluation.report.tables import score_tables

NO_COST = {"calls": None, "seconds": None}


@pytest.mark.slow
def test_plots_are_pictures_and_leave_out_what_cannot_be_compared(tmp_path: Path) -> None:
    three = make_three(tmp_path)
    gamma_runs(three)
    run(three, "far", {"psnr": around(20)}, fvd={"fvd_embedded": 10}, protocol="p9")
    found, called = loaded(three)
    sweep = next(block for block in found if block.sweep == "gamma")
    assert main_fvd(sweep.methods) == "fvd_embedded"
    for plot in (sweep_plot(sweep, ["fvd_embedded", "seconds"]), pareto(found, called)):
        with Image.open(io.BytesIO(plot.png)) as picture:
            assert picture.format == "PNG"
            assert len(np.unique(np.asarray(picture.convert("L")))) > 20
    assert "Left out, for another protocol or n: far." in pareto(found, called).caption
    assert sweep_plot(sweep, ["never_measured"]) is None
    fvds = {"fvd_embedded": 3, "fvd_i3d_ours": 4, "fvd_i3d_ours_corrected": 5}
    assert main_fvd([read_run(run(three, "i3d", {"psnr": around(20)}, fvd=fvds))]) == "fvd_i3d_ours"


class Page(HTMLParser):
    """Tags and addresses of a page; fails where a tag is closed that is not open."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> Path:
    three = make_three(tmp_path_factory.mktemp("runs"))
    gamma_runs(three)
    run(three, "d", {"psnr": around(26, 4)}, label="<b>&_{x}| `d`", saw_motion=True)
    assert main([str(three), "--out", str(three / "out"), "--against", "a"]) == 0
    return three / "out"


def test_the_page_is_whole_and_asks_nothing_of_a_server(full: Path) -> None:
    text = (full / "report.html").read_text()
    page = Page(text)
    assert page.open == []
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert "http" not in re.sub(r"base64,[A-Za-z0-9+/=]+|http-equiv", "", text)
    assert "&lt;b&gt;&amp;_{x}| `d`*" in text
    assert "<b>&" not in text
    assert "as printed in the paper: other clips, other protocol" in text
    assert "Animating-landscape" in text, "the paper's Table 1"
    pictures = [address for address in page.addresses if address.startswith("data:")]
    for address in pictures:
        Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).verify()
    assert len(pictures) > 7 + 3, "a strip for each run, and plots"


def tables_of(markdown: str) -> list[str]:
    """The tables of a report, after a check that all rows of each have as many cells."""
    tables = re.findall(r"(?:^\|.*\n)+", markdown, re.MULTILINE)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1
    return tables


@pytest.mark.slow
def test_large_strips_are_shrunk_and_repeated_frames_are_told(tmp_path: Path) -> None:
    folder = run(tmp_path, "a", {"psnr": around(24)}, repeated={"true clips": 2, "made clips": 0})
    noise = np.random.default_rng(0).integers(0, 255, (300, 3000, 3), dtype=np.uint8)
    for clip in (CLIPS[0], CLIPS[3]):  # the second has left the benchmark
        Image.fromarray(noise).save(folder / "strips" / f"{clip}.png")
    assert list(read_run(folder).strips) == [CLIPS[0]]
    write_report([folder], tmp_path / "out")
    address = re.search(r"data:image/jpeg;base64,([^\"]+)", (tmp_path / "out" / "report.html").read_text())
    assert Image.open(io.BytesIO(base64.b64decode(address[1]))).size == (1800, 180)
    text = (tmp_path / "out" / "report.md").read_text()
    assert "a: 2 of 6 true clips have a lower frame rate" in text
    assert "made clips have" not in text
    write_report([folder], tmp_path / "out", strips=0)
    assert "image/jpeg" not in (tmp_path / "out" / "report.html").read_text()


def test_the_csv_holds_every_number(full: Path) -> None:
    rows = list(csv.DictReader((full / "report.csv").open()))
    scores = {(row["run"], row["key"]): row for row in rows if not row["against"]}
    result = json.loads((full.parent / "a" / "result.json").read_text())
    for key, score in result["metrics"].items():
        row = scores["a", key]
        assert [float(row[part]) if row[part] else None for part in ("mean", "low", "high")] == [
            score[part] for part in ("mean", "low", "high")
        ]
        assert (row["n"], row["protocol"]) == ("6", score["protocol"])
    assert scores["phased, gamma 0.2", "axes/sigma"]["mean"] == "20.0"
    assert scores["a", "seconds"]["mean"] == "3.2"
    assert scores["c", "psnr"]["reference"] == "1"
    paired = [row for row in rows if row["against"]]
    assert {row["against"] for row in paired} == {"a"}
    assert len({(row["folder"], row["key"]) for row in paired}) == len(paired), "each difference stands once"


def test_markdown_tables_are_rectangular_and_their_plots_exist(full: Path) -> None:
    text = (full / "report.md").read_text()
    assert len(tables_of(text)) > 8
    plots = re.findall(r"\]\((plots/[^)]+)\)", text)
    assert plots
    assert all((full / plot).is_file() for plot in plots)
    assert "*reference rows*" in text
    assert "**" in text


def test_latex_tables_have_as_many_cells_as_columns(full: Path) -> None:
    text = (full / "report.tex").read_text()
    tables = re.findall(r"\\begin\{tabular\}\{(lr*)\}(.*?)\\end\{tabular\}", text, re.DOTALL)
    assert len(tables) > 8
    for columns, body in tables:
        rows = [line for line in body.splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
        assert {len(re.findall(r"(?<!\\)&", row)) + 1 for row in rows} == {len(columns)}
    assert r"\textless{}b\textgreater{}\&\_\{x\}\textbar{}" in text
    assert text.count(r"\begin{table}") == text.count(r"\end{table}")
    assert "↑" not in text


@pytest.mark.slow
def test_a_report_is_repeatable_and_leaves_no_stale_plot(full: Path) -> None:
    before = {path.relative_to(full): path.read_bytes() for path in full.rglob("*") if path.is_file()}
    stale = full / "plots" / "99-old.png"
    stale.write_bytes(b"")
    write_report([full.parent], full, against="a")
    assert {path.relative_to(full): path.read_bytes() for path in full.rglob("*") if path.is_file()} == before


def test_bad_calls_are_one_line(tmp_path: Path, capsys) -> None:
    three = make_three(tmp_path)
    for arguments, message in (
        ([str(three / "nowhere")], "no such folder"),
        ([str(three), "--out", str(three / "a")], "choose another folder"),
        ([str(three), "--strips", "-1"], "at least 0"),
        ([str(three), "--against", "z"], "must be one of"),
        ([str(three / "a" / "strips")], "no result.json"),
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_the_papers_numbers_are_whole_and_stand_beside_ours(tmp_path: Path) -> None:
    path = Path(__file__).resolve().parents[3] / "motionanim" / "assets" / "paper.json"
    first, second = json.loads(path.read_text())["tables"]
    assert (len(first["rows"]), len(second["rows"])) == (12, 4)
    for table in (first, second):
        assert all(len(row["values"]) == len(table["keys"]) for row in table["rows"])
        assert all(float(value) > 0 for row in table["rows"] for value in row["values"])
    seconds = {row["name"]: float(row["values"][second["keys"].index("seconds")]) for row in second["rows"]}
    assert seconds["the paper"] / seconds["Direct"] == pytest.approx(0.464, abs=5e-4), "Sec. 4.3"
    folder = run(tmp_path, "a", {"psnr": around(24)}, fvd={"fvd_i3d_ours": 250.0})
    write_report([folder], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text().replace("<sup>1,2</sup>", "<sup>1</sup>")
    assert "| | FVD i3d ours ↓<sup>1</sup> | PSNR (dB) ↑ | Time (s/clip) |" in text
    assert "| SFS | 288.03 | 22.51 | – |" in text


def test_a_report_without_figures_has_no_table_for_a_paper_and_an_unranked_fvd_is_not_in_one(tmp_path: Path) -> None:
    unranked = {"fvd_embedded": fvd_entry(3.0, unranked="it means nothing here")}
    folder = run(tmp_path, "a", {"odd": around(1)}, entries=unranked, cost=NO_COST)
    write_report([folder], tmp_path / "out")
    assert (tmp_path / "out" / "paper.md").read_text().strip() == ""
    assert "for a paper" not in (tmp_path / "out" / "report.md").read_text()
    assert main_fvd([read_run(folder)]) is None


NASTY = [
    "cost $5 and $6", "$", r"$\frac{$ $x^$",
    "=HYPERLINK(0)", "+1", "@x", "-1", "![x](http://e.com/a.png)", "[a](javascript:0)", "a|b",
    "[v2] ours", "* ours", "ΔE 5 × 2", "a\nb", "_hidden", "<script>alert(1)</script>", "\\input{/etc/passwd}",
    "100 % & #1 {x} ~ ^",
    "猫 🐈", "a" * 300,
    " ",
]  # fmt: skip


@pytest.mark.slow
def test_nasty_names_go_through_all_formats(tmp_path: Path) -> None:
    for index, name in enumerate(NASTY):
        folder = run(
            tmp_path, f"r{index}", {"psnr": around(20 + index), "speed_gain": around(1)},
            fvd={"fvd_embedded": 9.0 + index}, label=name, benchmark=NASTY[0], pictures={name: CLIPS[0]},
            cost={"calls": 1.0 + index, "seconds": 3.0},
        )  # fmt: skip
        rows = (folder / "clips.jsonl").read_text().replace(json.dumps(CLIPS[0]), json.dumps(name))
        (folder / "clips.jsonl").write_text(rows)
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert Page(page).open == []
    assert page.count("<script>") == 1, "the page's own"
    text = (tmp_path / "out" / "report.md").read_text()
    assert len(re.findall(r"(?<!\\)!\[", text)) == text.count("](plots/"), "no picture but the plots"
    assert not re.search(r"(?<!\\)\[a(?<!\\)\]", text)
    assert tables_of(text)
    cells = [cell for row in csv.reader((tmp_path / "out" / "report.csv").open()) for cell in row]
    assert "'=HYPERLINK(0)" in cells
    assert not [
        c for c in cells if c[:1] in ("=", "@") or (c[:1] in "+-" and not re.fullmatch(r"[-+]?[\d.e+-]*(nan|inf)?", c))
    ]
    tex = (tmp_path / "out" / "report.tex").read_text()
    assert r"\textbackslash{}input\{/etc/passwd\}" in tex
    assert "{}[v2] ours" in tex
    assert "{}* ours" in tex
    assert r"$\Delta$E 5 $\times$ 2" in tex
    assert len(list((tmp_path / "out" / "plots").iterdir())) >= 4


def test_the_report_says_how_everything_was_measured(tmp_path: Path) -> None:
    folder = run(tmp_path, "a", {"psnr": around(24)}, hardware="8 cores, 2 cores", saw_mask=True, lossless=False)
    write_report([folder], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text().split("For a referee")[1]
    told = ("16", "96 x 64", "7.0", "stretch", "true mask", "compressed files", "8 cores, 2 cores", "cap\\_db 100.0")
    assert [each for each in told if each not in text] == []


def test_what_all_rows_share_is_told_once_and_given_videos_claim_nothing(tmp_path: Path) -> None:
    run(tmp_path, "ours", {"psnr": around(24)}, cost=NO_COST)
    run(tmp_path, "theirs", {"psnr": around(23)}, identity={"side": {"source": "their page"}}, cost=NO_COST)
    (block,), called = loaded(tmp_path)
    runs = block.methods
    table = referee_table(runs, called)
    assert [cell.text for cell in table.columns] == [
        "given", "source", "made on", "made with", "made by commit", "folder",
    ]  # fmt: skip
    assert [[cell.text for cell in row.cells] for row in table.rows] == [
        ["the first frame, and arrows if it takes them", "–", "2 cores", "torch 2", "7be769a", "ours"],
        ["–", "their page", "–", "–", "–", "theirs"],
    ]
    assert "size, px: 96 x 64; frames a second: 7.0" in table.remarks[0]
    [alone] = referee_table(runs[:1], called).rows
    assert "96 x 64" in [cell.text for cell in alone.cells]
    tables = score_tables(block, called)
    assert [table.title for table in tables] == ["synthetic16: Quality"]
    assert tables[-1].remarks == ["No row has Denoiser calls, Time: not measured."]


def test_a_run_without_any_number_says_why(tmp_path: Path) -> None:
    folder = run(tmp_path, "a", {"psnr": [None] * 6}, cost=NO_COST)
    table = scores(tmp_path)
    assert (table.title, table.rows) == ("synthetic16: no numbers", [])
    assert table.remarks[0] == "No row has PSNR: the mask is empty."
    write_report([folder], tmp_path / "out")
    assert "No row has PSNR: the mask is empty." in (tmp_path / "out" / "report.html").read_text()
