"""Draw the screenshots of docs/page.md: python experiments/page/pictures.py [--chromium /usr/bin/chromium]

The photo is a scene of the procedural world. The page's own server makes the videos. Needs the extra `test`, for
playwright, and Chromium.
"""

import argparse
import io
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.request import urlopen

from PIL import Image

from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.media.visualize import write_picture

OUT = Path(__file__).resolve().parents[2] / "docs" / "page"
HEIGHT, WIDTH = 432, 768
WINDOW = {"width": 1280, "height": 720}
FRAMES = 60
POSITION = 18  # of the scene: a river between two banks
RIVER = (60, 200), (350, 290), (700, 330)
ARROW = (250, 220), (430, 250)
SOFTWARE_GL = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]


def scene(path: Path, position: int) -> None:
    """Write the first frame of a held-out scene."""
    clips = SyntheticClips(
        seed=1, length=64, num_frames=2, height=HEIGHT, width=WIDTH, fps=7, moving_camera=0.0, split="val"
    )
    write_picture(path, clips.clip(position).frames[0])


def serve(folder: Path, *settings: str) -> tuple[subprocess.Popen[bytes], str]:
    """Start the page in a folder; returns its process and its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "motionanim.page", f"folder={folder}", f"port={port}", "open=false", *settings]
    )
    while process.poll() is None:
        try:
            urlopen(f"http://127.0.0.1:{port}/", timeout=30).close()
            return process, f"http://127.0.0.1:{port}/"
        except OSError:
            time.sleep(0.2)
    raise RuntimeError("the page did not start")


def drag(page: Any, *points: tuple[float, float]) -> None:
    """Drag over points of the photo, in its pixels."""
    view = page.eval_on_selector("#stage", "e => ({...e.dataset, box: e.getBoundingClientRect().toJSON()})")
    scale = float(view["scale"])
    left, top = (view["box"][side] + float(view[axis]) for side, axis in (("left", "x"), ("top", "y")))
    places = [((x + 0.5) * scale + left, (y + 0.5) * scale + top) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=6)
    page.mouse.up()


def take(page: Any, name: str) -> None:
    page.wait_for_timeout(1200)
    OUT.mkdir(parents=True, exist_ok=True)
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").save(OUT / f"{name}.webp", quality=88, method=6)
    print(OUT / f"{name}.webp")


def open_photo(page: Any, path: Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.click("#open")
    chooser.value.set_files(path)
    page.locator("#welcome").wait_for(state="hidden")


def draw(page: Any) -> None:
    """The river: a magic brush stroke and an arrow with a bend."""
    page.keyboard.press("m")
    drag(page, *RIVER)
    page.locator("#region-list .pick").first.wait_for()
    page.keyboard.press("a")
    drag(page, *ARROW)


def make(page: Any, number: int, **fields: object) -> None:
    page.click("#tab-make")
    for name, value in fields.items():
        page.fill(f"#settings [name={name}]", str(value))
    page.click("#animate")
    page.locator("#job-list li:has(video)").nth(number).wait_for(timeout=300_000)


def main(chromium: str | None) -> None:
    from playwright.sync_api import sync_playwright

    with TemporaryDirectory() as work, sync_playwright() as api:
        folder = Path(work) / "holiday"
        folder.mkdir()
        scene(folder / "scene.png", POSITION)
        process, url = serve(folder)
        try:
            browser = api.chromium.launch(executable_path=chromium, args=SOFTWARE_GL)
            page = browser.new_page(viewport=WINDOW, color_scheme="dark")
            page.goto(url)
            take(page, "empty")
            open_photo(page, folder / "scene.png")
            draw(page)
            page.click("[data-view=field]")
            take(page, "drawing")
            page.click("[data-view=motion]")
            take(page, "preview")
            page.click("[data-view=drawing]")
            make(page, 0, frames=FRAMES, fps=15)
            page.click("#tab-make")
            page.check("input[value=diffusion]", force=True)
            make(page, 1, frames=min(FRAMES, 16), fps=7)
            take(page, "result")
            page.click("#show-gallery")
            take(page, "gallery")
            page.click("#gallery .close")
            page.click("#theme")
            page.click("#tab-motions")
            page.click("#arrow-list button")
            take(page, "light")
            phone = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme="dark")
            phone.goto(url)
            open_photo(phone, folder / "scene.png")
            draw(phone)
            phone.click("[data-view=field]")
            take(phone, "phone")
            browser.close()
        finally:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    main(parser.parse_args().chromium)
