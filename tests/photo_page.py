"""The drawing page driven by a real browser, addressed in the pixels of its photo."""

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image


class Site(NamedTuple):
    url: str
    folder: Path
    process: subprocess.Popen


def river(path: Path, width: int = 320, height: int = 240) -> Path:
    """A photo with texture everywhere."""
    noise = np.random.default_rng(0).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC).save(path)
    return path


class Photo:
    """The page with its photo, addressed in the photo's pixels."""

    def __init__(self, page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.refusals = False  # expected: the browser reports refused requests at any later time
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", self._console)

    def _console(self, message) -> None:
        if message.type == "error" and not (self.refusals and "400 (Bad Request)" in message.text):
            self.errors.append(message.text)

    def open(self, url: str) -> "Photo":
        self.page.goto(url)
        self.page.locator("#welcome").wait_for(state="hidden")
        return self

    def at(self, x: float, y: float) -> tuple[float, float]:
        """The place in the window of a point of the photo."""
        view = self.page.eval_on_selector(
            "#stage", "e => ({...e.dataset, left: e.getBoundingClientRect().left, top: e.getBoundingClientRect().top})"
        )
        scale = float(view["scale"])
        return (x + 0.5) * scale + float(view["x"]) + view["left"], (y + 0.5) * scale + float(view["y"]) + view["top"]

    def drag(self, *points: tuple[float, float]) -> None:
        mouse = self.page.mouse
        mouse.move(*self.at(*points[0]))
        mouse.down()
        for point in points[1:]:
            mouse.move(*self.at(*point), steps=4)
        mouse.up()

    def click(self, x: float, y: float) -> None:
        self.page.mouse.click(*self.at(x, y))

    def choose(self, path: Path) -> None:
        """Open a photo by the button."""
        with self.page.expect_file_chooser() as chooser:
            self.page.click("#open")
        chooser.value.set_files(path)
        width, height = Image.open(path).size
        self.page.wait_for_timeout(200)
        self.page.locator("#stage").and_(self.page.locator(f"[data-photo^='{width}x{height} ']")).wait_for()

    def saved(self, path: Path) -> dict:
        """The drawing as the page saves it."""
        with self.page.expect_download() as download:
            self.page.click("#save")
        download.value.save_as(path)
        return json.loads(path.read_text())
