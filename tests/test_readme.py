"""Every command that the documents show is one that its program takes: the settings exist, quotes and all."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf, open_dict

import motionanim.entry  # noqa: F401  the configs' resolvers

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "experiments").rglob("*.md"))]
PROGRAMS = {
    "train.py": "train", "evaluate.py": "evaluate", "motionanim.animate": "animate",
    "motionanim.data.prepare": "prepare", "motionanim.data.encode": "encode",
}  # fmt: skip
ELIDED = {  # a choice that "..." can stand for
    "train.py": ("experiment=motion_lora",),
    "evaluate.py": (),
    "motionanim.animate": ("image=photo.jpg",),
    "motionanim.data.encode": ("data=folder", "data.root=my_videos"),
}


def commands() -> list[tuple[str, tuple[str, ...]]]:
    """Of all blocks and lines of code: program, and its arguments as bash hands them over."""
    found = []
    for document in DOCUMENTS:
        text = document.read_text()
        lines = re.findall(r"`(python [^`]+)`", text)
        for block in re.findall(r"^```bash\n(.*?)^```", text, flags=re.M | re.S):
            lines += block.replace("\\\n", " ").splitlines()
        for line in lines:
            words = shlex.split(re.sub(r"<\w+>", "NAME", line), comments=True)
            for place, word in enumerate(words):
                given = tuple(words[place + 1 :])
                if word in PROGRAMS and given:
                    elided = ELIDED[word] if "..." in given else ()
                    found.append((word, (*elided, *(each for each in given if each != "..."))))
    return found


def test_the_documents_show_commands() -> None:
    shown = commands()
    assert {program for program, _ in shown} == set(PROGRAMS)
    assert len(shown) > 40


@pytest.mark.parametrize(("program", "words"), sorted(set(commands())), ids=str)
def test_every_command_composes(program: str, words: tuple[str, ...]) -> None:
    settings = [word for word in words if not word.startswith(("hydra/", "hydra."))]  # of a plugin
    if "-m" in words:  # of each axis of a sweep its first value
        settings = [re.sub(r"=([^,\[{\"']+),.*", r"=\1", word) for word in settings if word != "-m"]
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = compose(PROGRAMS[program], overrides=settings, return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        config.hydra = None
    assert not OmegaConf.missing_keys(config)
