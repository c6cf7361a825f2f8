"""The page's settings as arguments of animate, and back."""

import shlex
from pathlib import Path

import pytest
from configs import _fresh_hydra  # noqa: F401  the fixture clears Hydra's global state
from omegaconf import OmegaConf

from motionanim.animate import composed
from motionanim.cli.settings import readable
from motionanim.page.settings import DEFAULTS, METHODS, arguments, checked, command, of_command

CASES = [
    {},
    {"frames": 60, "fps": 12.5, "loop": True, "seed": 7, "gif": True, "webp": True, "strength": 250},
    {"renderer": "diffusion", "method": "phased", "size": "model", "strength": 0.5},
    {"renderer": "diffusion", "loop": True, "size": [36, 48], "loras": {"a.safetensors": 0.8, "b-2.safetensors": 1}},
    {"renderer": "diffusion", "loras": {"it's (1), a=b.safetensors": -0.25}},
]


@pytest.mark.parametrize("given", CASES, ids=str)
@pytest.mark.parametrize("photo", ["cat.jpg", "été (1), a=b #2 it's.png"])
def test_the_command_composes_to_the_settings(given: dict, photo: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(photo).touch()
    settings, stem = checked(given), Path(photo).stem
    words = arguments(settings, image=photo, name=f"{stem}-1", base=["scale=svd"])
    shown = shlex.split(command(words))
    assert shown[:3] == ["python", "-m", "motionanim.animate"]
    config = composed([readable(word) for word in shown[3:]])
    assert (config.image, config.arrows, config.out) == (photo, f"{stem}-1.arrows.json", f"{stem}-1.mp4")
    assert config.scale.num_frames == 25
    config.scale.base, config.motion = "none", {}
    assert of_command(OmegaConf.to_container(config, resolve=True)) == settings | (
        {"loras": {}} if settings["renderer"] == "eulerian" else {}
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], r"settings=\[\]: must be an object"),
        ({"speling": 1}, "settings have speling: their keys are renderer"),
        ({"renderer": "gan"}, "renderer=gan: must be one of eulerian, diffusion"),
        ({"method": "loop"}, "method=loop: must be one of continuous, phased"),
        ({"method": ["phased"]}, "method=.*must be one of"),
        ({"frames": 1}, "frames=1: must be a whole number from 2 to 10000"),
        ({"frames": True}, "frames=True"),
        ({"frames": 10**9}, "frames=1000000000"),
        ({"fps": float("nan")}, "fps=nan: must be from 0.1"),
        ({"strength": -1}, "strength=-1: must be at least 0"),
        ({"strength": "9"}, "strength=9"),
        ({"loop": 1}, "loop=1: must be true or false"),
        ({"seed": -1}, "seed=-1: must be a whole number from 0"),
        ({"size": [35, 48]}, r"size=\[35, 48\]: must be photo, model, or \[height, width\]"),
        ({"size": {}}, "size={}: must be photo"),
        ({"loras": ["a"]}, "loras=.*must be {file: weight"),
        ({"loras": {"../a.safetensors": 1}}, "is no LoRA of the working folder"),
        ({"loras": {"a.bin": 1}}, "is no LoRA of the working folder"),
        ({"loras": {"a.safetensors": float("inf")}}, "numbers as weights"),
    ],
)
def test_a_mistake_is_one_line(given: object, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        checked(given)
    assert "\n" not in str(caught.value)


def test_the_methods_begin_with_the_default() -> None:
    assert METHODS[:2] == ["continuous", "phased"]
    assert "loop" not in METHODS
    assert DEFAULTS["method"] == "continuous"
