"""The command: its mistakes, and a real server until Ctrl-C."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
from configs import ROOT, _fresh_hydra  # noqa: F401  the fixture clears Hydra's global state
from page_runs import ARROW, QUICK, draw_photo

from motionanim.page import __main__ as command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["folder=gone"], "error: folder=gone: must be a folder that can be written"),
        (["image=gone.jpg"], "error: image=gone.jpg cannot be opened: No such file or directory; give an image file"),
        (["port=http"], "error: port=http: must be a whole number"),
        (["port=70000"], "error: port=70000: must be a whole number from 0 to 65535; 0 takes a free one"),
        (["prot=1"], "error: prot: no such setting; did you mean port"),
        (["frames=1"], "error: frames=1: must be a whole number from 2"),
        (["renderer=gan"], "error: renderer=gan: must be one of eulerian, diffusion"),
        (["scale=hugs"], "scale"),
        (["scale.hight=3"], "no such setting; did you mean scale.height"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["page", "open=false", *words])
    with pytest.raises(SystemExit, match="2"):
        command.main()
    told = capsys.readouterr().err
    assert message in told
    assert told.count("\n") == 1


def test_a_port_in_use_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr("sys.argv", ["page", "open=false", f"port={port}"])
        with pytest.raises(SystemExit, match="2"):
            command.main()
    told = capsys.readouterr().err
    assert told == f"error: port={port}: 127.0.0.1 cannot be listened to (Address already in use): give another port\n"


@pytest.mark.long
@pytest.mark.slow
def test_it_serves_until_ctrl_c_and_leaves_no_process(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    words = [f"image={draw_photo(tmp_path / 'cat.png')}", f"folder={folder}", "port=0", "open=false"]
    page = subprocess.Popen(
        [sys.executable, "-m", "motionanim.page", *words], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        url = page.stdout.readline().split()[0]
        with httpx.Client(base_url=url, timeout=60) as client:
            photo = client.get("/api/state").json()["photo"]["id"]
            client.post("/api/jobs", json={"photo": photo, "drawing": ARROW, "settings": QUICK | {"frames": 5000}})
            while client.get("/api/jobs").json()["jobs"][0]["stage"] != "frames":
                time.sleep(0.05)
            children = subprocess.run(["pgrep", "-P", str(page.pid)], capture_output=True, text=True).stdout.split()

            def pieces() -> Iterator[bytes]:
                yield from (bytes(2**20) for _ in range(200))

            for headers in ({}, {"Content-Length": str(200 * 2**20)}):
                with suppress(httpx.TransportError):  # the connection may be closed while the body is sent
                    assert client.post("/api/photos", content=pieces(), headers=headers).status_code == 413
            assert client.get("/api/photos/" + photo).status_code == 200
        page.send_signal(signal.SIGINT)
        _, told = page.communicate(timeout=20)
        assert page.returncode == 0, told
        assert told == ""
    finally:
        page.kill()
    assert children
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    assert sorted(path.name for path in folder.iterdir()) == ["cat-1.arrows.json", "cat.png"]
