import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.metrics.edges import FARTHEST, NewEdges, new_edges, reach


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


def test_a_plain_picture_has_no_share_and_bad_input_is_an_error():
    """Faint noise over it would have a million times its contours."""
    plain, mask = torch.zeros(3, 20, 20), torch.ones(1, 20, 20)
    noisy = plain + 0.01 * torch.randn(plain.shape, generator=torch.Generator().manual_seed(0))
    assert new_edges([plain, noisy], plain, mask, 0.0).isnan().all()
    for region, displacement, message in ((mask, -1, "max_displacement=-1"), (0 * mask, 1, "nothing is left")):
        with pytest.raises(ValueError, match=message):
            new_edges([plain], plain, region, displacement)


def test_the_reach_is_the_farthest_way_of_what_may_move():
    flow = torch.zeros(6, 2, 40, 60)
    flow[:, 0, :20], flow[:, 1, 20:] = 2.0, -9.0
    mask = torch.zeros(1, 40, 60)
    mask[:, 4:16, 10:30] = 1
    assert reach(flow, mask).tolist() == pytest.approx([0, 2, 4, 6, 8, 10, 12], abs=1e-4)
    back = torch.cat([flow[:3], -flow[:3]])
    assert reach(back, mask).tolist() == pytest.approx([0, 2, 4, 6, 6, 6, 6], abs=1e-4)
    mask = torch.zeros(1, 40, 60)
    mask[:, 4:16, 50:] = 1
    assert reach(flow, mask).tolist() == pytest.approx([0, 2, 4, 6, 8, 9, 9], abs=1e-4)  # up to the picture's edge
    assert reach(flow, 0 * mask).tolist() == [0] * 7


def test_the_class_scores_each_frame_by_the_reach_until_then():
    image, mask = smooth(64, 80), torch.ones(1, 64, 80)
    flow = torch.full((5, 2, 64, 80), 0.5)
    seam = image.clone()
    seam[:, :, 40:] -= 0.4
    frames = torch.stack([image, image, seam, image, seam.roll(3, 1), image]).clamp(-1, 1)
    far = reach(flow, mask).clamp(max=FARTHEST * 64).ceil()
    each = [new_edges(frames[t : t + 1], image, mask, float(far[t])).item() for t in range(1, 6)]
    assert each[1] > each[0] == each[2] == 0
    mean, worst = NewEdges().score(frames[None], flow[None], mask[None])[0].tolist()
    assert (mean, worst) == (pytest.approx(sum(each) / 5), pytest.approx(max(each)))
    assert NewEdges().score(frames[None], flow[None], 0 * mask[None]).isnan().all()


def test_a_long_video_that_falls_apart_has_new_edges_however_far_its_flow_goes():
    half, mask = 0.3 * smooth(64, 80), torch.ones(1, 64, 80)
    wide = torch.cat([half, half.flip(2)], dim=2)  # goes on without a seam
    flow = torch.zeros(24, 2, 64, 80)
    flow[:, 0] = 4.0
    true = torch.stack([wide.roll(4 * t, 2)[..., :80] for t in range(25)])
    coarse = torch.rand(1, 3, 8, 10, generator=torch.Generator().manual_seed(2)) - 0.5
    broken = true.clone()
    broken[12:] += F.interpolate(coarse, size=(64, 80), mode="nearest")[0]
    scores = NewEdges().score(torch.stack([true, broken]), flow.expand(2, -1, -1, -1, -1), mask.expand(2, -1, -1, -1))
    assert scores[0, 0] < 0.1
    assert scores[1, 0] > 3 * scores[0, 0]
    still = true[:1].expand(25, -1, -1, -1)
    assert NewEdges().score(still[None], flow[None], mask[None])[0].tolist() == [0, 0]


def test_true_clips_have_few_new_edges_and_a_pasted_rectangle_more():
    world = SyntheticClips(seed=2, length=4, num_frames=9, height=64, width=64, fps=7, moving_camera=0.0, split="val")
    clip = world.clip(1)
    pasted = clip.frames.clone()
    y, x = (int(side.float().mean()) for side in (clip.mask[0] > 0).nonzero().unbind(1))
    pasted[5:, :, y - 6 : y + 6, x - 6 : x + 6] = 1.0
    true, wrong = (
        NewEdges().score(frames[None], clip.flow[None], clip.mask[None])[0] for frames in (clip.frames, pasted)
    )
    assert true[1] < 0.02
    assert (wrong > true + 0.05).all()
