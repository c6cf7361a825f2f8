"""Run the project's commands in the process of the tests."""

import runpy

import pytest
from configs import ROOT
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra

import motionanim.animate
import motionanim.data.encode
import motionanim.data.prepare.__main__
import motionanim.evaluation.report.__main__
import motionanim.evaluation.study.__main__


def run(program: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int | None:
    """Run a command; its exit code."""
    monkeypatch.setattr("sys.argv", [program, *arguments])
    # Hydra would compose once more only to look for a setting hydra.mode, which is as slow as the command itself.
    monkeypatch.setattr(Hydra, "get_mode", lambda *_, **__: None)
    try:
        if program in ("train", "evaluate"):
            runpy.run_path(str(ROOT / f"{program}.py"), run_name="__main__")
        elif program == "study":
            motionanim.evaluation.study.__main__.main(arguments)
        elif program == "report":
            return motionanim.evaluation.report.__main__.main(arguments)
        else:
            module = {"prepare": motionanim.data.prepare.__main__, "encode": motionanim.data.encode}
            module.get(program, motionanim.animate).main()
    except SystemExit as end:
        return end.code
    finally:
        GlobalHydra.instance().clear()
    return None
