import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from motionanim.metrics.edges import new_edges


def smooth(height, width, seed=0):
    coarse = torch.randn(1, 3, 12, 16, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)[0].clamp(-1, 1)


@given(across=st.integers(-6, 6), down=st.integers(-6, 6))
@settings(max_examples=20, deadline=None)
def test_what_only_moves_has_none(across, down):
    image, mask = smooth(60, 80), torch.zeros(1, 60, 80)
    mask[:, 15:45, 15:65] = 1
    moved = image.roll((down, across), (1, 2))
    assert new_edges([image, moved], image, mask, math.hypot(across, down)).tolist() == [0, 0]


def test_a_rectangle_pasted_on_a_plain_part_has_what_its_sides_sum_to():
    # A plain picture with one edge, far from where a rectangle of 20 x 10 px comes in.
    image, mask = torch.zeros(3, 60, 80), torch.ones(1, 60, 80)
    image[..., :10] = -0.5
    frame = image.clone()
    frame[:, 20:30, 40:60] = 0.25
    # Sobel answers a step h by 4 h in each of the two columns beside it: 60 rows of it in the picture.
    before = 2 * 60 * 4 * 0.5
    # Along a side 4 h in two rows; at each corner, by hand, (1, 1), (3, 3), (3, 1) and (1, 3) times h in 2 x 2 px.
    sides = 2 * (2 * (20 - 2) + 2 * (10 - 2)) * 4
    corners = 4 * (math.hypot(1, 1) + math.hypot(3, 3) + 2 * math.hypot(3, 1))
    expected = 0.25 * (sides + corners) / before
    assert new_edges([frame], image, mask, 3.0).item() == pytest.approx(expected, rel=1e-5)


def test_the_margin_of_the_region_is_left_out_and_the_pictures_border_is_not():
    image, mask = smooth(40, 40), torch.zeros(1, 40, 40)
    mask[:, :, 20:] = 1
    seam, inside, border = image.clone(), image.clone(), image.clone()
    seam[:, :, :21] = -1
    inside[:, 15:25, 28:32] = 5
    border[:, 15:25, 39:] = 5
    values = new_edges(iter([seam, inside, border]), image, mask, 1.0)
    assert values[0] == 0
    assert (values[1:] > 0.01).all()


def test_a_plain_picture_has_none_and_bad_input_is_an_error():
    plain, mask = torch.zeros(3, 20, 20), torch.ones(1, 20, 20)
    assert new_edges([plain], plain, mask, 0.0).tolist() == [0]
    for region, displacement, message in ((mask, -1, "max_displacement=-1"), (0 * mask, 1, "nothing is left")):
        with pytest.raises(ValueError, match=message):
            new_edges([plain], plain, region, displacement)
