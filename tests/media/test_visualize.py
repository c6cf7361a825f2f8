"""Colours of flow, the drawing over its photo, and the pair between floats and bytes."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from motionanim.media.image_io import from_uint8, to_pixels, to_uint8
from motionanim.media.visualize import draw_controls, flow_to_rgb, panels, sheet, write_gif, write_webp


def colour(x, y, **options):
    return flow_to_rgb(torch.tensor([x, y], dtype=torch.float32).view(2, 1, 1), **options)[:, 0, 0]


def test_colours_follow_the_direction_and_zero_is_white():
    right, down, left, up = colour(1, 0), colour(0, 1), colour(-1, 0), colour(0, -1)
    torch.testing.assert_close(right, torch.tensor([1.0, -1.0, -1.0]))  # red
    assert (down[:2] > 0).all(), "yellow: red and green without blue"
    assert down[2] == left[0] == up[1] == -1
    assert left[2] > 0.9, "cyan to blue"
    assert up[2] > 0.5, "violet"
    assert flow_to_rgb(torch.zeros(3, 2, 4, 4)).eq(1).all()


def test_the_length_is_the_saturation_on_a_stated_scale():
    torch.testing.assert_close(colour(1, 0, largest=2.0), torch.tensor([1.0, 0.0, 0.0]))
    torch.testing.assert_close(colour(2, 0, largest=2.0), torch.tensor([1.0, -1.0, -1.0]))
    assert torch.equal(colour(4, 0, largest=2.0), colour(2, 0, largest=2.0))
    with pytest.raises(ValueError, match="largest=0"):
        colour(1, 0, largest=0)


def test_the_colour_wheel_is_continuous_and_in_range():
    angles = torch.linspace(0, 2 * math.pi, 721)
    picture = flow_to_rgb(torch.stack([angles.cos(), angles.sin()])[:, None], largest=1.0)
    assert picture.abs().max() <= 1
    assert picture.diff(dim=-1).abs().max() < 0.1


def test_bytes_come_back_and_floats_are_rounded_and_clamped():
    levels = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(from_uint8(levels)), levels)
    assert to_uint8(torch.tensor([-1.5, -1.0, 0.001, 1.0, 7.0])).tolist() == [0, 0, 128, 255, 255]
    picture = torch.zeros(3, 4, 5)
    picture[0, 1, 2] = 1.0
    assert to_pixels(picture).shape == (4, 5, 3)
    assert to_pixels(picture)[1, 2].tolist() == [255, 128, 128]
    assert picture.sum() == 1, "the argument is left alone"


def test_a_drawing_darkens_what_may_not_move_and_shows_arrows_and_pins():
    mask = torch.ones(1, 60, 80)
    mask[:, 40:] = 0
    made = draw_controls(torch.zeros(3, 60, 80), [[(10, 10), (30, 10), (30, 30)]], [(60, 20)], mask)
    assert (made[0, 10, 12:30] > 0.8).all(), "red"
    assert made[2, 20, 60] > 0.8, "blue"
    assert made[0, 5, 5] == pytest.approx(0, abs=0.01)
    assert made[0, 50, 5] == pytest.approx(0.35 - 1, abs=0.01)


def test_panels_and_sheets_place_pictures_side_by_side():
    small = torch.zeros(3, 48, 64)
    assert panels([small, small]).shape == (3, 192, 2 * 256 + 4)
    assert panels([torch.zeros(3, 512, 1024)]).shape == (3, 256, 512)
    video = torch.arange(10.0).view(10, 1, 1, 1).expand(-1, 3, 2, 2)
    assert sheet([video, video], columns=4)[0, ::2, ::2].tolist() == [[0, 3, 6, 9]] * 2


@pytest.mark.parametrize("fps", [7, 24, 50, 60, 120])
def test_a_gif_has_the_speed_of_its_video(fps, tmp_path):
    """Browsers slow down pictures that are shown for less than 20 ms."""
    write_gif(tmp_path / "a.gif", [Image.new("L", (8, 8), 6 * k).convert("P") for k in range(40)], fps)
    with Image.open(tmp_path / "a.gif") as gif:
        times = [picture.info["duration"] for picture in ImageSequence.Iterator(gif)]
    assert min(times) >= 20
    assert sum(times) == pytest.approx(40_000 / fps, abs=5)
    assert len(times) == 40 if fps <= 50 else len(times) < 40


@pytest.mark.parametrize("fps", [7, 24, 60])
def test_a_webp_holds_all_frames_at_the_speed_of_the_video(fps, tmp_path):
    pictures = [Image.new("RGB", (16, 8), (6 * k, 255 - 6 * k, 90)) for k in range(40)]
    for name in ("a.webp", "b.webp"):
        write_webp(tmp_path / name, pictures, fps)
    assert (tmp_path / "a.webp").read_bytes() == (tmp_path / "b.webp").read_bytes()
    with Image.open(tmp_path / "a.webp") as webp:
        assert (webp.n_frames, webp.size, webp.info["loop"]) == (40, (16, 8), 0)
        times = []
        for k, picture in enumerate(ImageSequence.Iterator(webp)):
            off = np.abs(np.asarray(picture.convert("RGB"), int) - np.asarray(pictures[k], int))
            assert off.max() <= 8
            times.append(picture.info["duration"])
    assert sum(times) == round(40_000 / fps)
