"""Borders of shots on synthetic joins, flashes and pans; benchmarks/shots.md has the same on real clips."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from motionanim.data.prepare import shots
from motionanim.data.prepare.shots import Border, borders_of, crossed, find_borders, starts_within


def picture(seed: int, width: int = 400) -> np.ndarray:
    random = np.random.default_rng(seed)
    sizes = ((9, width // 8), (22, width // 3))
    octaves = [cv2.resize(random.random((*size, 3)), (width, 64), interpolation=cv2.INTER_CUBIC) for size in sizes]
    return (np.mean(octaves, 0) * 255).clip(0, 255).astype(np.float32)


def scene(seed: int, count: int, speed: float = 0.0) -> np.ndarray:
    """(count, 64, 96, 3) float: a window that moves by `speed` px a frame."""
    image = picture(seed, 400)
    views = [np.float32([[1, 0, speed * k], [0, 1, 0]]) for k in range(count)]
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.stack([cv2.warpAffine(image, view, (96, 64), flags=flags) for view in views])


def mixed(one: np.ndarray, other: np.ndarray, count: int) -> np.ndarray:
    share = np.linspace(0, 1, count + 2)[1:-1, None, None, None]
    return one[-1] * (1 - share) + other[0] * share


A, B, BLACK = scene(1, 30), scene(2, 30), np.zeros((3, 64, 96, 3))
FLASH = scene(1, 30, speed=1)
FLASH[12:15] = FLASH[12:15] * 0.2 + 204
JOINS: dict[str, tuple[np.ndarray, Border]] = {
    "cut": (np.concatenate([A, B]), (29, 30)),
    "dissolve": (np.concatenate([A, mixed(A, B, 12), B]), (29, 42)),
    "through black": (np.concatenate([A, mixed(A, BLACK, 8), BLACK, mixed(BLACK, B, 8), B]), (29, 49)),
}
ONE_SHOT = {
    "still": A, "pan": scene(3, 25, speed=8), "flash": FLASH,
    "darker": A * np.linspace(1, 0.4, 30)[:, None, None, None],
}  # fmt: skip


@pytest.mark.parametrize("name", JOINS)
def test_a_join_is_found_with_all_frames_that_mix_its_shots(name):
    frames, (last, begin) = JOINS[name]
    found = borders_of(frames.round().astype(np.uint8), 25.0)
    covered = {k for border in found for k in range(border[0] + 1, border[1])}
    assert set(range(last + 3, begin - 2)) <= covered
    assert all(last - 20 <= border[0] < border[1] <= begin + 20 for border in found)
    if name == "cut":
        assert found == [(29, 30)]


@pytest.mark.parametrize("name", ONE_SHOT)
def test_a_pan_a_flash_and_a_change_of_light_are_no_border(name):
    assert borders_of(ONE_SHOT[name].round().astype(np.uint8), 25.0) == []


@pytest.mark.parametrize("at", [60 - 30, 60 - 1, 60, 60 + 1, 60 + 40])
def test_a_long_video_is_looked_at_in_parts(at, monkeypatch):
    monkeypatch.setattr(shots, "_CHUNK", 60)
    frames = np.concatenate([scene(1, 1).repeat(at, 0), scene(2, 1).repeat(90, 0)]).astype(np.uint8)
    read = lambda indices, height, width: frames[indices]  # noqa: E731
    video = SimpleNamespace(info=SimpleNamespace(fps=25.0), read=read)
    assert find_borders(video, len(frames)) == [(at - 1, at)]
    assert find_borders(video, at) == []


def test_clips_begin_where_they_stay_in_a_shot():
    ticks = np.array([0, 2, 4, 6, 8, 10, 12])
    assert starts_within(ticks, 3, []).tolist() == [0, 1, 2, 3, 4]
    assert starts_within(ticks, 3, [(5, 6)]).tolist() == [0, 3, 4]
    assert starts_within(ticks, 3, [(3, 9)]).tolist() == [], "frames of the mix are of no shot"
    assert starts_within(ticks[:2], 3, []).tolist() == []
    assert crossed(ticks[:-1], ticks[1:], [(5, 6)]).tolist() == [False, False, True, False, False, False]


def test_borders_are_kept_by_the_file_and_added_to(tmp_path):
    shots.keep_borders(tmp_path / "cache", "a", [])
    assert not (tmp_path / "cache").exists(), "no file for the many videos of one shot"
    for borders in ([(5, 6)], [(20, 24)], []):  # of runs that looked at different parts
        shots.keep_borders(tmp_path / "cache", "a", borders)
    assert shots.kept_borders(tmp_path / "cache", "a") == [(5, 6), (20, 24)]
    assert shots.kept_borders(tmp_path / "cache", "b") == []
