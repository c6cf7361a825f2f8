"""The drawing page in a real browser: a server process of its own, and Debian's Chromium without a window."""

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from photo_page import Photo, Site, river

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
SOFTWARE_GL = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("page")
    river(folder / "river.png")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "motionanim.page", "image=river.png", f"port={port}", "open=false"]
    with open(folder / "server.log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}/"
    try:
        for _ in range(300):
            try:
                urlopen(url, timeout=5).close()
                break
            except (URLError, OSError):
                assert process.poll() is None, (folder / "server.log").read_text()
                time.sleep(0.2)
        yield Site(url, folder, process)
    finally:
        process.terminate()
        process.wait(timeout=20)


@pytest.fixture(scope="module")
def browser() -> Iterator["object"]:
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as api:
        made = api.chromium.launch(executable_path=CHROMIUM, args=SOFTWARE_GL)
        yield made
        made.close()


@pytest.fixture
def photo(browser, site: Site) -> Iterator[Photo]:
    context = browser.new_context(viewport={"width": 1280, "height": 720}, color_scheme="dark")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    made = Photo(context.new_page()).open(site.url)
    yield made
    context.close()
    assert made.errors == []
