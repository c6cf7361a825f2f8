"""Training data of the video features: clips damaged to a known degree, their motion and their look."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter
from synthetic_clips import clips

from motionanim.motion.flow import warp
from motionanim.training.video_features import CORRUPTIONS, clean_and_corrupted, corrupt, look_summary, motion_summary


def damaged(name, frames, severity):
    return CORRUPTIONS[name](frames, severity, torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_grow_from_almost_nothing_and_leave_their_input(name):
    frames = clips(18).frames[1, :, :, :40]
    before = frames.clone()
    damage = [(damaged(name, frames, level) - frames).abs().mean().item() for level in (0.02, 0.5, 1)]
    assert damage[0] < damage[1] < damage[2]
    # Frames change places or stop wholly; the other corruptions have an amplitude that starts from 0.
    assert damage[0] < (0.02 if name == "shuffle" else 0.002)
    assert torch.equal(frames, before)
    assert damaged(name, frames, 1.0).shape == frames.shape


def test_blur_is_scipys():
    frames = clips(18).frames[0]
    true = gaussian_filter(frames.numpy(), (0, 0, 1.6, 1.6), mode="mirror", truncate=6)
    assert torch.allclose(damaged("blur", frames, 0.5**0.5), torch.from_numpy(true), atol=5e-3)


def test_noise_and_flicker_have_their_deviation():
    frames = torch.zeros(400, 3, 32, 32)
    assert damaged("noise", frames, 0.5).std().item() == pytest.approx(0.1, rel=0.01)
    flat = damaged("flicker", frames, 1.0)
    assert torch.equal(flat, flat[:, :1, :1, :1].expand_as(flat))
    assert flat[:, 0, 0, 0].std().item() == pytest.approx(0.3, rel=0.1)


def test_blocks_and_smear_end_at_means():
    frames = clips(18).frames[0]
    whole = damaged("blocks", frames, 1.0)
    assert torch.allclose(whole[..., ::4, ::4], F.avg_pool2d(frames, 4), atol=1e-6)
    assert torch.equal(whole[..., ::4, ::4], whole[..., 3::4, 3::4])
    assert torch.allclose(damaged("smear", frames, 1.0)[7], frames[5:10].mean(0), atol=1e-6)


@pytest.mark.parametrize("severity", [0.02, 0.5, 1.0])
def test_shuffle_moves_its_share_of_the_frames(severity):
    frames = torch.arange(16.0).view(16, 1, 1, 1).expand(16, 3, 32, 32)
    order = damaged("shuffle", frames, severity)[:, 0, 0, 0]
    assert sorted(order.tolist()) == list(range(16))
    assert (order != torch.arange(16)).sum() == max(2, round(16 * severity))


def test_freeze_repeats_the_frame_before_and_at_1_stops_time():
    frames = torch.arange(16.0).view(16, 1, 1, 1).expand(16, 3, 32, 32)
    order = damaged("freeze", frames, 0.5)[:, 0, 0, 0]
    assert order[0] == 0
    assert all(now in (place, before) for place, (before, now) in enumerate(pairwise(order.tolist()), start=1))
    assert damaged("freeze", frames, 1.0).unique().tolist() == [0.0]


def test_a_seam_is_one_shift_of_an_eighth_of_the_width():
    frames = torch.zeros(6, 3, 64, 64)
    frames[..., 32:] = 1.0
    frames[..., 40:, :] += 2.0
    made = damaged("seam", frames, 1.0)
    changed = [bool((made[t] != made[t - 1]).any()) for t in range(1, 6)]
    assert sum(changed) == 1
    centroid = [(made[t, 0] - frames[t, 0]).sum((0, 1)) for t in (0, 5)]
    assert centroid[0] == 0
    shifts = 8 * torch.tensor([[np.cos(a), np.sin(a)] for a in np.linspace(0, 2 * np.pi, 721)], dtype=torch.float32)
    candidates = warp(frames[:1].expand(721, -1, -1, -1), shifts[..., None, None].expand(721, 2, 64, 64))
    assert (candidates - made[5]).abs().mean((1, 2, 3)).min() < 5e-3


def test_wobble_moves_pixels_by_its_share_of_the_width():
    ramp = torch.linspace(-1, 1, 65)[:64].expand(200, 3, 64, 64)  # 1/32 a px
    moved = (damaged("wobble", ramp, 0.5) - ramp)[..., 16:48] * 32
    assert 0.3 < moved.std().item() < 0.64, "0.64 px at the nodes of the field, less between them"


def test_corruption_is_a_function_of_seed_and_position():
    frames = clips(18).frames[0]
    made, kind, severity = corrupt(frames, 13, seed=0)
    assert kind == 13 % 9
    again = corrupt(frames, 13, seed=0)
    assert torch.equal(made, again[0])
    assert severity == again[2]
    assert severity != corrupt(frames, 13, seed=1)[2]
    assert severity != corrupt(frames, 14, seed=0)[2]
    assert made.abs().max() <= 1


def test_targets_say_what_was_done_and_which_motion_is_still_seen():
    batch = clips(18)
    frames, targets = clean_and_corrupted(batch, seed=0)
    assert torch.equal(frames[:18], batch.frames)
    assert not targets.damage[:18].any()
    assert ((targets.damage[18:] > 0).sum(1) == 1).all()
    for clip, position in enumerate(batch.position.tolist()):
        made, kind, severity = corrupt(batch.frames[clip], position, seed=0)
        assert torch.equal(frames[18 + clip], made)
        assert targets.damage[18 + clip, kind].item() == pytest.approx(severity)
        assert targets.moves[18 + clip].item() == (
            list(CORRUPTIONS)[kind] not in ("shuffle", "freeze", "seam", "wobble")
        )
    assert targets.moves[:18].all()
    assert torch.equal(targets.motion[:18], targets.motion[18:])
    assert torch.equal(targets.look, look_summary(frames))


def test_motion_summary_of_a_known_flow():
    flow = torch.zeros(1, 3, 2, 50, 100)
    flow[:, :, 0, :25, :50] = 4.0
    flow[:, :, 1, 25:, 50:] = -2.0
    expected = [2, 0, 0, 0, 0, 0, 0, -1, (4 + 2) / 4 / 2, 0.5]
    assert motion_summary(flow)[0].tolist() == pytest.approx(expected)


def test_look_summary_of_a_known_picture():
    frames = torch.zeros(1, 2, 3, 32, 32)
    frames[:, :, 0, :16, :16] = 0.9
    frames[0, :, :, 16:, 16::2] = 0.5
    frames[0, 1] -= 0.3
    look = look_summary(frames)[0]
    assert look[:4].tolist() == pytest.approx([0.75, -0.15, -0.15, 0.1], abs=1e-6)
    assert look[15].item() == pytest.approx(np.log(0.251 / 0.22), abs=1e-4), "contrast of stripes of 0 and 0.5"
    assert look[20].item() == pytest.approx(np.log(0.301 / 0.03), abs=1e-4)
