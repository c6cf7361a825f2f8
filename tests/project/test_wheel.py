"""A wheel holds all files that its commands need: they run outside the checkout."""

import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_every_part_of_the_package_is_packaged() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "motionanim").rglob("*.py")}
    assert set(settings["packages"]) == {str(folder).replace("/", ".") for folder in folders} | {"motionanim.conf"}
    assert all((ROOT / folder / "__init__.py").exists() for folder in folders)
    assert settings["package-dir"] == {"motionanim.conf": "conf"}


END = "--- end of a help ---"
HELP = f"""
import runpy, sys
for module in sys.argv[1:]:
    sys.argv = [module, "--help"]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise
    print("{END}")
import motionanim.cli.command
print(motionanim.cli.command.CONF)
"""


@pytest.mark.long
@pytest.mark.slow
def test_a_wheel_runs_outside_the_checkout(tmp_path: Path) -> None:
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", tmp_path]
    clean = subprocess.run(["git", "-C", ROOT, "archive", "HEAD"], capture_output=True, check=True).stdout
    (tmp_path / "source").mkdir()  # the build leaves folders behind
    subprocess.run(["tar", "-x", "-C", tmp_path / "source"], input=clean, check=True)
    subprocess.run([*wheel, tmp_path / "source"], check=True)
    (path,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        file.extractall(tmp_path / "site")
        packed = {name.removeprefix("motionanim/") for name in file.namelist() if name.endswith(".yaml")}
    settings = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    assert packed == {name for name in settings if not name.startswith("conf/local/")}  # git ignores those
    (tmp_path / "work").mkdir()
    modules = ["animate", "data.prepare", "data.encode", "evaluation.study", "interchange", "page"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", HELP, *(f"motionanim.{module}" for module in modules)], check=True,
        cwd=tmp_path / "work", env=os.environ | {"PYTHONPATH": str(tmp_path / "site")}, capture_output=True, text=True,
    )  # fmt: skip
    *helps, where = done.stdout.split(END)
    assert len(helps) == len(modules)
    assert all("usage" in text or "Powered by Hydra" in text for text in helps)
    assert where.strip() == str(tmp_path / "site" / "motionanim" / "conf")
