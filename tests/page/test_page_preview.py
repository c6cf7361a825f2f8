"""Fields, grown regions and T's proposal, against the code that makes videos."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from configs import _fresh_hydra  # noqa: F401  the fixture clears Hydra's global state
from PIL import Image

from motionanim.animate import composed
from motionanim.animation.moving_photo import looped
from motionanim.motion.controls import motion_field
from motionanim.motion.drawing import parse_controls
from motionanim.motion.regions import read_region
from motionanim.page.outline import outlined
from motionanim.page.photos import Photo, Photos
from motionanim.page.preview import Preview
from motionanim.page.settings import checked

DISC = [{"brush": [[130, 100]], "radius": 40}, {"erase": [[130, 100]], "radius": 10}]
STALK = {"brush": [[210, 90], [210, 120]], "radius": 12}
ALL = {
    "arrows": [
        {"path": [[20, 20], [60, 30]], "region": "sky"},
        {"path": [[130, 65], [150, 75]], "kind": "turn", "region": DISC},
        {"path": [[210, 100], [216, 100]], "kind": "sway", "period": 7, "phase": 0.5, "region": [STALK]},
    ],
    "regions": {"sky": [[[0, 0], [239, 0], [239, 50], [0, 50]]]},
    "pins": [[5, 45]],
}
BOAT = {"path": [[40, 120], [80, 120]], "kind": "move", "region": [[[30, 110], [60, 110], [60, 130], [30, 130]]]}


@pytest.fixture(scope="module")
def preview(tmp_path_factory: pytest.TempPathFactory) -> Preview:
    """On a folder with an orange disc on blue, 240 x 160 px."""
    folder = tmp_path_factory.mktemp("work")
    y, x = np.mgrid[:160, :240]
    noise = np.random.default_rng(0).normal(0, 8, (160, 240, 3))
    disc = (np.hypot(x - 130, y - 100) < 40)[..., None]
    pixels = np.where(disc, (230, 140, 40), (50, 80, 200)) + noise
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / "disc.png")
    Image.fromarray(np.uint8(255) * disc[..., 0]).save(folder / "mask.png")
    return Preview(composed([]), Photos(folder))


@pytest.fixture(scope="module")
def photo(preview: Preview) -> Photo:
    photos = preview._photos
    return photos.add("disc.png", (photos.folder / "disc.png").read_bytes())


def read(content: bytes) -> tuple[dict[str, Any], Any]:
    """The JSON of a field, and a function that reads an array of it."""
    length = int.from_bytes(content[:4], "little")
    assert (4 + length) % 8 == 0
    told, arrays = json.loads(content[4 : 4 + length]), content[4 + length :]

    def array(offset: int, kind: Any, *shape: int) -> np.ndarray:
        assert offset % np.dtype(kind).itemsize == 0
        count = int(np.prod((told["height"], told["width"], *shape)))
        return np.frombuffer(arrays, kind, count, offset).reshape(told["height"], told["width"], *shape)

    return told, array


@pytest.mark.parametrize("loop", [False, True])
def test_a_field_is_that_of_the_video(preview: Preview, photo: Photo, loop: bool) -> None:
    settings = checked({"frames": 20, "strength": 150, "loop": loop})
    told, array = read(preview.field(photo, ALL, settings, 512))
    assert (told["width"], told["height"]) == (240, 160), "not larger than the photo"
    controls = parse_controls(ALL, torch.ones(1, 160, 240))
    parts = motion_field(controls, num_frames=20, strength=150, stepwise=False, **preview._options).parts
    parts = looped(parts, 20) if loop else parts
    flow = array(told["flow"], np.float16, 2)
    assert np.allclose(flow, parts.flow.permute(1, 2, 0).numpy(), atol=2e-3)
    assert np.abs(flow).max() > 0.1
    (sway,), (turn,) = told["sways"], told["turns"]
    assert (sway["period"], sway["phase"]) == (20 / 3 if loop else 7, 0.5)
    amplitude = parts.sways[0].amplitude.permute(1, 2, 0).numpy()
    assert np.allclose(array(sway["offset"], np.float16, 2), amplitude, atol=5e-3)
    assert turn["angle"] == pytest.approx(parts.turns[0].angle)
    assert turn["center"] == pytest.approx(parts.turns[0].center, abs=0.01)
    assert np.array_equal(array(turn["offset"], np.uint8), 255 * parts.turns[0].region[0].numpy())
    assert told["moves"] == [] == told["notes"]


def test_a_region_travels_in_the_photos_pixels(preview: Preview, photo: Photo) -> None:
    told, _ = read(preview.field(photo, {"arrows": [BOAT]}, checked({"frames": 16}), 120))
    assert (told["width"], told["height"]) == (120, 80)
    offsets = np.array(told["moves"][0]["offsets"])
    assert offsets.shape == (16, 2)
    assert np.allclose(offsets[[0, -1]], [[0, 0], [40, 0]], atol=0.1)
    with pytest.raises(ValueError, match="a loop cannot hold kind=move"):
        preview.field(photo, {"arrows": [BOAT]}, checked({"loop": True}), 120)


def test_a_smaller_field_has_the_same_speeds(preview: Preview, photo: Photo) -> None:
    whole, half = (read(preview.field(photo, ALL, checked({}), side)) for side in (240, 120))
    flow, small = (array(told["flow"], np.float16, 2).astype(float) for told, array in (whole, half))
    reduced = flow.reshape(80, 2, 120, 2, 2).mean((1, 3))
    assert np.abs(reduced[5:20] - small[5:20]).mean() < 0.05 * np.abs(reduced[5:20]).mean()
    assert half[0]["turns"][0]["angle"] == pytest.approx(whole[0]["turns"][0]["angle"], rel=0.02)


def test_free_flow_is_refined_by_t_and_no_arrows_give_none(preview: Preview, photo: Photo) -> None:
    told, array = read(preview.field(photo, [[120, 90, 140, 100]], checked({}), 512))
    flow = array(told["flow"], np.float16, 2)
    controls = parse_controls([[120, 90, 140, 100]], torch.ones(1, 160, 240))
    plain = motion_field(controls, num_frames=16, stepwise=False, **preview._options).dense
    assert np.abs(flow).max() > 0.3
    assert np.abs(flow - plain.permute(1, 2, 0).numpy()).max() > 0.1
    for drawing in ({}, {"arrows": []}, []):
        told, array = read(preview.field(photo, drawing, checked({}), 512))
        assert not array(told["flow"], np.float16, 2).any()


@pytest.mark.parametrize(
    ("drawing", "message"),
    [
        ("photo.json", "drawing=photo.json: must be an object with arrows"),
        ({"arows": []}, "the drawing has arows: its keys may be arrows, pins, regions"),
        ({"arrows": [[0, 0, 500, 0]]}, r"\(500, 0\) is outside the image: x must be from 0 to 239"),
        ({"arrows": [[9, 9, 9, 9]]}, r"arrows\[0\] has no length at \(9, 9\)"),
        ({"arrows": [[9, 9, 20, 9, 1, 7]]}, "an arrow is"),
        ({"arrows": [{"path": [[1, 2, 3], [3, 4, 5]]}]}, r"must be a point \[x, y\]"),
        ({"arrows": [{"path": "abc"}]}, "must be a list"),
        ({"arrows": 7}, "arrows=7: must be a list"),
        ({"arrows": [[9, 9, float("nan"), 9]]}, "must be a finite number"),
        ({"arrows": [BOAT | {"region": [[1, 2, 3, 4, 5, 6]]}]}, r"must be a point \[x, y\]"),
        ({"arrows": [BOAT | {"region": "../../secret.png"}]}, "must be a mask file in the working folder"),
        ({"arrows": [BOAT | {"region": "gone.png"}]}, "cannot be opened"),
        ({"arrows": [BOAT | {"path": [[5, 5], [40, 5]]}]}, r"starts at \(5, 5\), 108 px outside its region"),
        ({"arrows": [], "regions": {"a": "/etc/hosts"}}, "must be a mask file in the working folder"),
        ({"arrows": [], "pins": [[1]]}, "must be a point"),
    ],
)
def test_a_mistake_names_the_photos_pixels(preview: Preview, photo: Photo, drawing: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        preview.field(photo, drawing, checked({}), 64)
    assert "\n" not in str(caught.value)


NOTES = (r"leaves its region at \((\d+), (\d+)\)", r"is (\d+) px long")


def test_notes_name_the_photos_pixels(preview: Preview, photo: Photo) -> None:
    sky = {"path": [[120, 4], [120, 158]], "region": [[[0, 0], [239, 0], [239, 50], [0, 50]]]}
    for side in (64, 512):
        told, _ = read(preview.field(photo, {"arrows": [sky]}, checked({}), side))
        (x, y), length = (re.search(pattern, " ".join(told["notes"])).groups() for pattern in NOTES)
        assert abs(int(x) - 120) <= 2
        assert abs(int(y) - 53) <= 10, "four pixels of the photo for each at which the field is computed"
        assert abs(int(length[0]) - 154) <= 2


def test_a_mask_file_of_the_folder_is_read(preview: Preview, photo: Photo) -> None:
    drawing = {"arrows": [DISC_ARROW | {"region": "mask.png"}]}
    told, array = read(preview.field(photo, drawing, checked({}), 240))
    mask = np.asarray(Image.open(preview._photos.folder / "mask.png"))
    assert np.array_equal(array(told["turns"][0]["offset"], np.uint8), mask)


DISC_ARROW = {"path": [[130, 65], [150, 70]], "kind": "turn"}


def test_a_stroke_grows_to_its_thing(preview: Preview, photo: Photo) -> None:
    found = preview.magic(photo, [[115, 100], [145, 104], [145, 104]], 6, [[10, 10]])
    assert found == preview.magic(photo, [[115, 100], [145, 104], [145, 104]], 6, [[10, 10]])
    region = read_region("r", found["region"], 160, 240, Path())[0].numpy() > 0
    y, x = np.mgrid[:160, :240]
    disc = np.hypot(x - 130, y - 100) < 40
    assert (region & disc).sum() / (region | disc).sum() > 0.93
    assert found["share"] == pytest.approx(disc.mean(), rel=0.05)
    with pytest.raises(ValueError, match=r"regions\.stroke: radius=0 must be above 0"):
        preview.magic(photo, [[115, 100]], 0, [])
    with pytest.raises(ValueError, match=r"pins\[0\]: the point \(900, 1\) is outside"):
        preview.magic(photo, [[115, 100]], 3, [[900, 1]])


def test_t_proposes_a_region_for_free_flow_arrows(preview: Preview, photo: Photo) -> None:
    drawing = {"arrows": [[120, 95, 145, 105], BOAT]}
    found = preview.proposal(photo, drawing, checked({}))
    region = read_region("r", found["region"], 160, 240, Path())
    assert 0 < found["share"] < 1
    assert float(region.mean()) == pytest.approx(found["share"], abs=0.02)
    with pytest.raises(ValueError, match="the flow refiner needs a flow arrow without a region"):
        preview.proposal(photo, {"arrows": [BOAT]}, checked({}))


def test_an_outline_keeps_holes_and_what_lies_in_them() -> None:
    y, x = np.mgrid[:200, :300]
    far = np.hypot(x - 150, y - 100)
    region = ((far < 90) & (far > 50)) | (far < 20) | ((np.abs(x - 20) < 10) & (np.abs(y - 30) < 10))
    parts = outlined(region, 300, 200)
    assert [isinstance(part, dict) for part in parts] == [False, False, True, False]
    again = read_region("r", parts, 200, 300, Path())[0].numpy() > 0
    assert (again != region).sum() < 0.01 * region.size
    large = read_region("r", outlined(region, 1500, 1000), 1000, 1500, Path())[0].numpy() > 0
    assert (large[2::5, 2::5] != region).sum() < 0.01 * region.size
    with pytest.raises(ValueError, match="nothing is found there"):
        outlined(np.zeros((9, 9), dtype=bool), 90, 90)
