"""A page on a folder of its own, with a small photo."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from motionanim.animate import composed
from motionanim.page.server import Page
from motionanim.page.settings import DEFAULTS

HOST = "localhost:7860"
ARROW = {"arrows": [{"path": [[20, 20], [30, 24]]}]}
DISC = {"path": [[40, 20], [44, 20]], "kind": "turn", "region": [{"brush": [[40, 28]], "radius": 10}]}
QUICK = {"renderer": "eulerian", "frames": 4}


def draw_photo(path: Path, seed: int = 0) -> Path:
    """64 x 48 px of smooth noise."""
    small = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(small).resize((64, 48), Image.Resampling.BICUBIC).save(path)
    return path


@contextmanager
def client(
    folder: Path, *, image: Path | None = None, base: tuple[str, ...] = (), **options: Any
) -> Iterator[TestClient]:
    """A client of a running page."""
    page = Page(folder, composed(base), base=base, defaults=DEFAULTS, image=image)
    with TestClient(page.app([HOST]), base_url=f"http://{HOST}") as made:
        yield made


def upload(page: TestClient, path: Path) -> dict[str, Any]:
    """The page's answer to a photo's file."""
    answer = page.post("/api/photos", params={"name": path.name}, content=path.read_bytes())
    assert answer.status_code == 200, answer.text
    return answer.json()
