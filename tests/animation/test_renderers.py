"""The photo in motion, of all kinds and at its own size; and where the model's picture takes its place."""

import math
from functools import partial

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from motionanim.animation.diffusion import Rendered, at_photo_size
from motionanim.animation.moving_photo import Photo, looped, photo_frames, swayed_from
from motionanim.motion import flow_map
from motionanim.motion.flow import pixel_grid
from motionanim.motion.kinds import Move, Parts, Sway, Turn, turn_displacement
from motionanim.sampling.video import Record

H, W = 64, 80
STILL = torch.zeros(2, H, W)
ONES = torch.ones(1, H, W)
FLOWING = partial(flow_map.frames, loop=False, reach=0.08, seed=0)


def texture(seed: int = 0) -> Tensor:
    """Smooth enough to be looked up between pixels, (3, H, W)."""
    small = torch.rand(1, 3, H // 4, W // 4, generator=torch.Generator().manual_seed(seed)) * 1.6 - 0.8
    return torch.nn.functional.interpolate(small, size=(H, W), mode="bicubic")[0].clamp(-1, 1)


def box(top: int, bottom: int, left: int, right: int) -> Tensor:
    region = torch.zeros(1, H, W)
    region[:, top:bottom, left:right] = 1
    return region


def disc(x: float, y: float, radius: float) -> Tensor:
    down, across = torch.meshgrid(torch.arange(float(H)) - y, torch.arange(float(W)) - x, indexing="ij")
    return (torch.hypot(across, down) <= radius).float()[None]


def made(parts: Parts, num_frames: int, image: Tensor | None = None) -> Tensor:
    photo = Photo(texture() if image is None else image, ONES, parts)
    return torch.stack(list(photo_frames(photo, num_frames=num_frames, flowing=FLOWING)))


WHEEL = Turn(disc(40, 32, 20), (40.0, 32.0), 2 * math.pi / 24)
LEAF = Sway(
    torch.stack([3 * torch.ones(H, W), STILL[0]]) * torch.exp(-(((torch.arange(W) - 40) / 30.0) ** 2)), 12.0, 0.4
)
BOX = Move(box(10, 26, 8, 24), torch.stack([torch.arange(13.0), 0.5 * torch.arange(13.0)], dim=1).double())


@pytest.mark.parametrize("parts", [Parts(STILL, (BOX,)), Parts(STILL, (), (LEAF,)), Parts(STILL, (), (), (WHEEL,))])
def test_frame_0_is_the_photo_and_the_rest_stays(parts: Parts) -> None:
    image = texture()
    video = made(parts, 5, image)
    assert torch.equal(video[0], image)
    assert not torch.equal(video[1], image)
    assert torch.equal(video[:, :, -8:], image[:, -8:].expand(5, -1, -1, -1)) or parts.sways


def test_a_wheel_turns_by_its_angle() -> None:
    """A quarter turn of a square picture is torch.rot90."""
    image = texture()[:, :, 8 : 8 + H]
    region = torch.ones(1, H, H)
    quarter = Turn(region, ((H - 1) / 2, (H - 1) / 2), math.pi / 12)
    photo = Photo(image, region, Parts(torch.zeros(2, H, H), (), (), (quarter,)))
    video = list(photo_frames(photo, num_frames=7, flowing=FLOWING))
    torch.testing.assert_close(video[6], torch.rot90(image, -1, (1, 2)), atol=1e-2, rtol=0)


def test_what_sways_is_where_its_wave_says() -> None:
    """Content displaced by A(q) w shows at p = q + A(q) w."""
    back = swayed_from(LEAF, 3, (slice(0, H), slice(0, W)))
    y, x = torch.meshgrid(torch.arange(H), torch.arange(W), indexing="ij")
    origin = torch.stack([x, y]) + back
    wave = math.sin(2 * math.pi * 3 / 12 + 0.4) - math.sin(0.4)
    there = origin[0] + 3 * torch.exp(-(((origin[0] - 40) / 30) ** 2)) * wave
    inner = slice(8, -8)
    torch.testing.assert_close(there[:, inner], x[:, inner].float(), atol=0.02, rtol=0)


@pytest.mark.parametrize("parts", [Parts(STILL, (), (LEAF,)), Parts(STILL, (), (), (WHEEL,))])
def test_sway_and_turn_loop_exactly(parts: Parts) -> None:
    count, image = 20, texture()  # neither period fits: 12 and 24
    again = made(looped(parts, count), count + 1, image)[count]
    torch.testing.assert_close(again, image, atol=2e-3, rtol=0)


def test_only_what_moves_is_looked_up_and_nothing_else_changes() -> None:
    """To the last bit what a Lanczos look-up of the whole photo gives, region by region: so it stays sharp too."""
    image, everything = texture(), (slice(0, H), slice(0, W))
    small = LEAF._replace(amplitude=LEAF.amplitude * box(30, 50, 2, 17))
    turn = Turn(disc(60.3, 20.7, 14), (60.3, 20.7), 0.173)
    for t, frame in enumerate(made(Parts(STILL, (), (small,), (turn,)), 6, image)):
        wanted, grid = image, pixel_grid(H, W)
        for where, offset in (
            ((small.amplitude != 0).any(0), swayed_from(small, t, everything)),
            (turn.region[0] > 0, turn_displacement(turn, -t)),
        ):
            x, y = (grid + offset).numpy()
            pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
            found = cv2.remap(pixels, x, y, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101)
            wanted = torch.where(where, torch.from_numpy(found).permute(2, 0, 1).clamp(-1, 1), wanted)
        assert torch.equal(frame, wanted)


@pytest.mark.parametrize("way", [(60.0, 40.0), (-30.0, 2.5), (3.25, -20.0), (500.0, 0.0)])
def test_what_travels_over_the_border_is_cut_off_there(way: tuple[float, float]) -> None:
    """As the picture with a wide border around it, cropped again."""
    image, path = texture(), torch.tensor([[0.0, 0.0], way], dtype=torch.float64)
    end = made(Parts(STILL, (Move(BOX.region, path),)), 2, image)[1]
    around = (80, 80, 80, 80)
    pad = torch.nn.functional.pad
    wide = Photo(
        pad(image, around), pad(ONES, around),
        Parts(torch.zeros(2, H + 160, W + 160), (Move(pad(BOX.region, around), path),)),
    )  # fmt: skip
    free = list(photo_frames(wide, num_frames=2, flowing=FLOWING))[1][:, 80 : 80 + H, 80 : 80 + W]
    torch.testing.assert_close(end, free, atol=2e-3, rtol=0)


def test_what_travels_uncovers_ground_and_arrives() -> None:
    image = texture()
    image[:, 10:26, 8:24] = torch.tensor([0.9, -0.9, -0.9]).view(3, 1, 1)
    video = made(Parts(STILL, (BOX,)), 13, image)
    end = video[12]
    torch.testing.assert_close(end[:, 17:31, 21:35], image[:, 11:25, 9:23], atol=1e-2, rtol=0)
    assert (end[0, 12:15, 9:12] < 0.85).all(), "the ground, not the box"
    with pytest.raises(ValueError, match="a loop cannot hold kind=move"):
        looped(Parts(STILL, (BOX,)), 12)


def rendered(video: Tensor, change: Tensor | float) -> Rendered:
    small = torch.nn.functional.interpolate(video, size=(16, 20), mode="bilinear", antialias=True)
    return Rendered((small + change).clamp(-1, 1), small, Record(0.0, {}, ()))


def test_where_the_model_agrees_the_video_is_the_photo_in_motion() -> None:
    flow = torch.zeros(2, H, W)
    flow[0] = 1.0
    photo = Photo(texture(), ONES, Parts(flow))
    video = made(photo.parts, 8)
    enlarge = partial(at_photo_size, photo, flowing=FLOWING, num_frames=8)
    torch.testing.assert_close(torch.stack(list(enlarge(rendered(video, 0.0)))), video, atol=1e-6, rtol=0)
    change = torch.zeros(8, 3, 16, 20)
    change[3:, :, 4:8, 5:10] = 0.9
    shown = torch.stack(list(enlarge(rendered(video, change))))
    assert (shown - video)[4, :, 20:28, 26:34].mean() > 0.4, "the model's picture where it made another"
    torch.testing.assert_close(shown[4, :, :, 60:], video[4, :, :, 60:], atol=1e-3, rtol=0)
    assert torch.equal(shown[0], photo.image)


def test_outside_the_region_the_photo_stays_whatever_the_model_says() -> None:
    photo = Photo(texture(), box(0, H, 0, 40), Parts(STILL))
    video = photo.image.expand(4, -1, -1, -1)
    shown = torch.stack(list(at_photo_size(photo, rendered(video, 1.0), flowing=FLOWING, num_frames=4)))
    assert torch.equal(shown[..., 40:], video[..., 40:])
    assert not torch.equal(shown[1:, ..., :40], video[1:, ..., :40])
