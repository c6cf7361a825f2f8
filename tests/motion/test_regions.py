"""Regions: polygons, brush strokes, mask files, and GrabCut's proposal."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from motionanim.media.image_io import load_image, load_mask
from motionanim.motion.regions import centroid, nearest_inside, propose_region, read_region

HERE = Path()


def read(value, height=40, width=60, folder=HERE):
    return read_region("r", value, height, width, folder)


def test_a_rectangle_is_its_pixels():
    region = read([[[10, 5], [20, 5], [20, 15], [10, 15]]])
    expected = torch.zeros(1, 40, 60)
    expected[:, 5:16, 10:21] = 1
    assert torch.equal(region, expected)
    assert centroid(region) == (15, 10)


def test_a_triangle_equals_the_pixels_whose_centres_it_holds():
    corners = np.array([[5.3, 3.1], [50.2, 12.4], [20.6, 36.7]])
    region = read([corners.tolist()])[0].bool().numpy()
    y, x = np.mgrid[:40, :60]
    signed = []
    for start, end in zip(corners, np.roll(corners, -1, 0)):
        way = end - start
        signed.append((way[0] * (y - start[1]) - way[1] * (x - start[0])) / np.hypot(*way))  # px inside each side
    depth = np.min(signed, axis=0)
    assert region[depth > 1].all()
    assert not region[depth < -1].any()


def test_a_stroke_holds_what_is_within_its_radius():
    region = read({"brush": [[10, 10], [30, 20], [30, 20], [30, 35]], "radius": 4.5})[0].bool().numpy()
    y, x = np.mgrid[:40, :60]
    samples = np.concatenate([np.linspace((10, 10), (30, 20), 400), np.linspace((30, 20), (30, 35), 400)])
    distance = np.min(np.hypot(x[..., None] - samples[:, 0], y[..., None] - samples[:, 1]), axis=-1)
    assert region[distance < 4.48].all()
    assert not region[distance > 4.52].any()
    dot = read({"brush": [[7, 8]], "radius": 0.5})
    assert dot.sum() == dot[0, 8, 7] == 1


def test_a_region_is_the_union_of_its_parts_and_may_leave_the_picture():
    polygon, stroke = [[-20, -10], [20, -10], [20, 10], [-20, 10]], {"brush": [[40, 20]], "radius": 3}
    assert torch.equal(read([polygon, stroke]), torch.maximum(read([polygon]), read(stroke)))
    assert read([polygon]).sum() == 11 * 21


def test_an_erased_part_removes_what_was_drawn_before_it():
    polygon = [[10, 5], [50, 5], [50, 35], [10, 35]]
    line, hole = {"erase": [[20, 20], [40, 20]], "radius": 3}, [[25, 10], [30, 10], [30, 15], [25, 15]]
    stroke = {"brush": line["erase"], "radius": 3}
    assert torch.equal(read([polygon, line]), read([polygon]) * (1 - read(stroke)))
    assert torch.equal(read([polygon, {"erase": hole}]), read([polygon]) * (1 - read([hole])))
    assert torch.equal(read([polygon, line, stroke]), read([polygon])), "in order: drawn again"
    assert torch.equal(read([line, {"erase": hole}, polygon]), read([polygon]))


def test_a_mask_file_is_relative_to_its_drawing(tmp_path):
    pixels = np.zeros((40, 60), dtype=np.uint8)
    pixels[:10] = 255
    Image.fromarray(pixels).save(tmp_path / "r.png")
    assert torch.equal(read("r.png", folder=tmp_path), load_mask(tmp_path / "r.png", 40, 60))
    with pytest.raises(ValueError, match=r"^r: .*r.png is 60x40 px and the image 60x41"):
        read("r.png", height=41, folder=tmp_path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("gone.png", "r: gone.png cannot be opened"),
        (3, "r=3: a region is a mask file, or a list"),
        ([], r"r=\[\]: a region is"),
        ([[1, 2], [3, 4], [5, 6]], r"r\[0\]=\[1, 2\]: needs a list of at least 3 points"),
        ([[[1, 2], [3, 4]]], "at least 3 points"),
        ([[[1, 2], [3, 4], [5, "6"]]], r"r\[0\]: 6 must be a finite number"),
        ([[[1, 2], [3, 4], [500, 6]]], r"\(500, 6\) is too far outside the image: x must be from -60 to 119"),
        ([[[70, 2], [80, 2], [80, 9]]], "r: no pixel is inside: draw it larger, and inside the image of 60x40"),
        ({"brush": [[1, 2]]}, "r has brush: a stroke has brush and radius"),
        ({"brush": [[1, 2]], "radius": 0}, "radius=0 must be above 0"),
        ({"brush": [], "radius": 2}, "at least 1 points"),
        ({"erase": [[1, 2]], "radius": 3}, "r: no pixel is inside"),
        ([{"erase": [[1, 2], [3, 4]]}], r"r\[0\]: erase=.*: needs a list of at least 3 points"),
        ([{"erase": [[1, 2]], "radius": -1}], r"r\[0\]: radius=-1 must be above 0"),
        ([{"erase": [[1, 2]], "brush": [[1, 2]], "radius": 1}], "has erase, brush, radius: a stroke has erase and rad"),
    ],
)
def test_a_mistake_is_one_line(value, message):
    with pytest.raises(ValueError, match=message) as caught:
        read(value)
    assert "\n" not in str(caught.value)


def test_the_nearest_pixel_of_a_region():
    region = read([[[10, 5], [20, 5], [20, 15], [10, 15]]])
    assert nearest_inside(region, (12.3, 6.4)) == ((12.3, 6.4), 0)
    assert nearest_inside(region, (23, 19)) == ((20, 15), 5)


def blob() -> torch.Tensor:
    """An orange disc on noisy blue, 3 px a block."""
    generator = torch.Generator().manual_seed(0)
    image = torch.tensor([-0.6, -0.4, 0.6]).view(3, 1, 1) + 0.1 * torch.randn(3, 90, 120, generator=generator)
    y, x = torch.meshgrid(torch.arange(90), torch.arange(120), indexing="ij")
    disc = (x - 50) ** 2 + (y - 45) ** 2 < 20**2
    orange = torch.tensor([0.8, 0.1, -0.7]).view(3, 1, 1) + 0.1 * torch.randn(3, 90, 120, generator=generator)
    return torch.where(disc, orange, image).clamp(-1, 1), disc[None].float()


def test_grabcut_finds_the_thing_under_the_arrow_and_is_deterministic():
    image, disc = blob()
    kept = image.clone()
    found = propose_region(image, [[(45, 45), (60, 45)]], [(110, 10)])
    assert float((found * disc).sum() / torch.maximum(found, disc).sum()) > 0.95
    np.random.seed(1)
    assert torch.equal(found, propose_region(image, [[(45, 45), (60, 45)]], [(110, 10)]))
    assert torch.equal(image, kept)


def test_grabcut_always_holds_the_starts_of_arrows_and_only_what_is_connected_with_them():
    image, _ = blob()
    image[:, :20, 90:] = image[:, 45:46, 50:51]  # as orange, elsewhere
    found = propose_region(image, [[(45, 45), (60, 45)], [(10, 80), (14, 80)]], [(10, 81)])
    assert found[0, 45, 45] == found[0, 80, 10] == 1
    assert found[0, 5:15, 95:115].sum() == 0
    flat = propose_region(torch.zeros(3, 8, 8), [[(3, 3), (5, 3)]], [])
    assert flat[0, 3, 3] == 1
    with pytest.raises(ValueError, match="mask=auto needs arrows"):
        propose_region(image, [], [(3, 3)])


@pytest.mark.slow
def test_grabcut_on_a_real_waterfall(shared):
    photo = load_image(shared / "photos" / "waterfall.png")[:, ::4, ::4]
    mask = load_mask(shared / "photos" / "waterfall_mask.png", 720, 1280)[:, ::4, ::4]
    found = propose_region(photo, [[(160, 72), (160, 105)]], [(20, 20)])
    assert float((found * mask).sum() / found.sum()) > 0.8, "most of what it proposes is water"
