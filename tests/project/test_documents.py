"""The documents: every link, path, command and choice of settings that they name is there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from configs import CONF, ROOT, _fresh_hydra, choices, composed  # noqa: F401  the fixture is for all tests
from omegaconf import OmegaConf

GUIDES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
DOCUMENTS = [*GUIDES, *sorted((ROOT / "experiments").rglob("*.md")), *sorted((ROOT / "benchmarks").rglob("*.md"))]
PROGRAMS = {
    "train.py": "train", "evaluate.py": "evaluate", "motionanim.animate": "animate",
    "motionanim.data.prepare": "prepare", "motionanim.data.encode": "encode", "motionanim.export": "export",
    "motionanim.page": "page",
}  # fmt: skip
ELIDED = {  # a choice that "..." can stand for
    "train.py": ("experiment=motion_lora",),
    "motionanim.animate": ("image=photo.jpg",),
    "motionanim.data.encode": ("data=folder", "data.root=my_videos"),
}


def anchors(document: Path) -> set[str]:
    """Names under which a code host links to the headings."""
    headings = re.findall(r"^#+ (.*)$", document.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not link.startswith(("http://", "https://")):
            path, _, anchor = link.partition("#")
            target = document.parent / path if path else document
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("document", GUIDES, ids=lambda path: path.name)
def test_paths_exist(document: Path) -> None:
    for path in re.findall(r"`((?:\w+/)+[\w.]*)`", document.read_text()):
        if not path.startswith(("runs/", "exports/", "samples/", "pipeline/", "checkpoints/", "conf/local/")):
            assert any((root / path).exists() for root in (ROOT, ROOT / "motionanim", CONF)), path


def test_the_readme_is_short_and_has_one_figure_in_a_cell() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 130
    for name in ("README.md", "docs/results.md"):
        assert not re.search(r"\|[^|\n]*\d[^|\n]* / [^|\n]*\d[^|\n]*\|", (ROOT / name).read_text()), name


def test_every_choice_of_every_group_is_in_the_table() -> None:
    table, group = {}, ""
    for first, choice in re.findall(
        r"^\| (`[\w/]+`[^|]*)?\| `(\w+)` \|", (ROOT / "docs/configuration.md").read_text(), flags=re.M
    ):
        group = first.split("`")[1] if first else group
        table.setdefault(group, []).append(choice)
    groups = {str(path.parent.relative_to(CONF)) for path in CONF.glob("*/**/*.yaml")} - {"local"}
    assert {name: sorted(names) for name, names in table.items()} == {name: choices(name) for name in groups}


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """Of all blocks and lines of code, and of run.py: program, and its arguments as bash hands them over."""
    listed = subprocess.run(
        [sys.executable, ROOT / "experiments" / "run.py", "--list"], capture_output=True, text=True, check=True
    ).stdout
    found = []
    for text in [*(document.read_text() for document in DOCUMENTS), f"```bash\n{listed}```\n"]:
        lines = re.findall(r"`(python [^`]+)`", text)
        for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S):
            lines += block.replace("\\\n", " ").splitlines()
        for line in lines:
            words = shlex.split(re.sub(r"<\w+>", "NAME", line), comments=True)
            for place, word in enumerate(words):
                given = tuple(words[place + 1 :])
                if word in PROGRAMS and given:
                    elided = ELIDED.get(word, ()) if "..." in given else ()
                    found.append((word, (*elided, *(each for each in given if each != "..."))))
    return found


def test_the_documents_show_commands() -> None:
    shown = commands()
    assert {program for program, _ in shown} == set(PROGRAMS)
    assert len(shown) > 60


@pytest.mark.slow
@pytest.mark.parametrize(("program", "words"), sorted(set(commands())), ids=str)
def test_every_command_composes(program: str, words: tuple[str, ...]) -> None:
    settings = [word for word in words if not word.startswith(("hydra/", "hydra."))]  # of a plugin
    if "-m" in words:  # of each axis of a sweep its first value
        settings = [re.sub(r"=([^,\[{\"']+),.*", r"=\1", word) for word in settings if word != "-m"]
    assert not OmegaConf.missing_keys(composed(*settings, config=PROGRAMS[program]))
