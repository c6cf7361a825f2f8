"""experiments/run.py: what ended well is not run again, what failed is."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "run.py"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, with its list of finished commands in a folder that does not exist yet, and two experiments."""
    spec = importlib.util.spec_from_file_location("experiments_run", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    note = "-c \"import sys; open(sys.argv[1], 'a').write(sys.argv[2])\" " + str(tmp_path / "seen")
    fail = f'-c "import sys, pathlib; sys.exit(0 if pathlib.Path(sys.argv[1]).exists() else 3)" {tmp_path / "mended"}'
    monkeypatch.setattr(module, "DONE", tmp_path / "runs" / "done.txt")
    monkeypatch.setattr(module, "COMMANDS", {"one": [f"{note} 1"], "two": [f"{note} 2", fail, f"{note} 3"]})
    return module


def call(run: ModuleType, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *arguments])
    run.main()


def test_it_stops_at_a_failure_and_goes_on_there(run: ModuleType, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(SystemExit) as stopped:
        call(run, monkeypatch)
    assert stopped.value.code == 3
    assert (tmp_path / "seen").read_text() == "12"
    (tmp_path / "mended").touch()
    call(run, monkeypatch)
    assert (tmp_path / "seen").read_text() == "123"
    call(run, monkeypatch, "one")
    assert (tmp_path / "seen").read_text() == "123"


def test_a_list_runs_nothing_and_an_unknown_name_is_named(run: ModuleType, tmp_path: Path, monkeypatch, capsys) -> None:
    call(run, monkeypatch, "--list", "one")
    assert not (tmp_path / "seen").exists()
    assert not run.DONE.exists()
    assert capsys.readouterr().out.startswith("$ python -c")
    with pytest.raises(SystemExit):
        call(run, monkeypatch, "three")
    assert "no experiment three: choose of one, two" in capsys.readouterr().err
