"""Fixtures and a call for tests of animate, in no conftest.py, since tests import another module of that name."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

from motionanim.animate import Animation, animate

ARROW = [[20, 12, 26, 12]]


@pytest.fixture(autouse=True)
def _fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without what an earlier test left in Hydra, in a folder of its own."""
    GlobalHydra.instance().clear()
    monkeypatch.chdir(tmp_path)
    yield
    GlobalHydra.instance().clear()


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """48 x 36 px, under a name that needs quoting."""
    small = np.random.default_rng(0).integers(0, 255, (9, 12, 3), dtype=np.uint8)
    path = tmp_path / "été (1), a=b #2 it's.png"
    Image.fromarray(small).resize((48, 36), Image.Resampling.BICUBIC).save(path)
    return path


@pytest.fixture
def tiny(base: Path) -> list[str]:
    """Overrides for the tiny random base."""
    return [
        f"scale.base={base}", "scale.height=16", "scale.width=16", "scale.num_frames=5", "scale.num_steps=3",
        "scale.motion_channels=8", "scale.median_strength=0.01", "long_video.overlap=2",
    ]  # fmt: skip


def quick(photo: Path, **settings: Any) -> Animation:
    """Without a network."""
    given = {"image": photo, "arrows": ARROW, "renderer": "eulerian", "refiner": None, "frames": 3, "out": "o.mp4"}
    return animate(**given | settings)
