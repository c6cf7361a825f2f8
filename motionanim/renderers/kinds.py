"""A photo in motion at its own size, without a network: flow by the flow map, and what sways, turns and moves.

Each kind looks every pixel up in the photo itself, so that nothing is blurred more than once, and frame 0 is the photo.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from motionanim.flow import pixel_grid, warp
from motionanim.motion_kinds import Move, Parts, Sway, Turn, sway_wave, turn_displacement, with_rim

INPAINT = 5.0  # px that cv2.inpaint looks around
SEARCHES = 3  # fixed-point steps from a pixel to the place that sways there
PIXEL = 2e-7  # seconds that a pixel of a frame takes, guessed until the first frame is there

Flowing = Callable[..., Iterator[Tensor]]  # `flow_map.frames` or `eulerian.frames`, its options bound


class Photo(NamedTuple):
    """A picture and all motion in it."""

    image: Tensor  # (3, H, W) in [-1, 1]
    mask: Tensor  # (1, H, W) in {0, 1}; 1 where flow may be
    parts: Parts


def looped(parts: Parts, num_frames: int) -> Parts:
    """The same motion with periods that fit a loop of `num_frames`: sways and turns go round whole times, the nearest.

    Raises:
        ValueError: If a region travels, which leads nowhere back.
    """
    if parts.moves:
        raise ValueError("a loop cannot hold kind=move, which does not come back: use loop=false, or kind=sway")
    sways = tuple(s._replace(period=num_frames / max(1, round(num_frames / s.period))) for s in parts.sways)
    turns = tuple(t._replace(angle=_whole(t.angle * num_frames) / num_frames) for t in parts.turns)
    return parts._replace(sways=sways, turns=turns)


def _whole(angle: float) -> float:
    """The nearest whole number of turns, at least one, in radians."""
    circle = 2 * np.pi
    return float(np.copysign(max(1, round(abs(angle) / circle)) * circle, angle))


def photo_frames(photo: Photo, *, num_frames: int, flowing: Flowing) -> Iterator[Tensor]:
    """Frames (3, H, W) in [-1, 1] of all kinds of motion; frame 0 is the photo.

    Args:
        num_frames: N; a region that travels rests where its offsets end.
        flowing: What renders the flow.
    """
    parts, image = photo.parts, photo.image
    rigid = [*(move.region for move in parts.moves), *(turn.region for turn in parts.turns)]
    mask = photo.mask if not rigid else photo.mask * (1 - torch.stack(rigid).amax(0))
    ground = _uncovered(image, parts.moves)
    stream = flowing(ground, parts.flow, num_frames=num_frames, mask=mask)
    for t, frame in enumerate(stream):
        if t == 0 or parts.flow_only:
            yield image if t == 0 else frame
            continue
        for sway in parts.sways:
            moves = (sway.amplitude != 0).any(0)
            frame = torch.where(moves, _looked_up(ground, swayed_from(sway, t)), frame)
        for turn in parts.turns:
            frame = torch.where(turn.region > 0, _looked_up(ground, turned_from(turn, t)), frame)
        for move in parts.moves:
            frame = _pasted(frame, image, move, t)
        yield frame


def swayed_from(sway: Sway, frame: int) -> Tensor:
    """Where what is at each pixel of a frame was in the photo, as an offset (2, H, W) px."""
    wave = float(sway_wave(sway, torch.tensor(frame)))
    back = -wave * sway.amplitude
    for _ in range(SEARCHES):
        back = -wave * warp(sway.amplitude[None], back[None])[0]
    return back


def turned_from(turn: Turn, frame: int) -> Tensor:
    """The same for a wheel: exact."""
    return turn_displacement(turn, -frame)


def _looked_up(image: Tensor, offset: Tensor) -> Tensor:
    """The picture (C, H, W) at p + offset(p), by Lanczos' kernel, which keeps its sharpness; mirrored outside."""
    x, y = (pixel_grid(*image.shape[-2:]) + offset).numpy()
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    found = cv2.remap(pixels, x, y, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101)
    return torch.from_numpy(found.reshape(pixels.shape)).permute(2, 0, 1).clamp(-1, 1)


def _uncovered(image: Tensor, moves: tuple[Move, ...]) -> Tensor:
    """The photo without the regions that travel, filled in from what is around them (Telea 2004)."""
    if not moves:
        return image
    holes = torch.stack([with_rim(move.region) for move in moves]).amax(0)[0].numpy().astype(np.uint8)
    pixels = ((image + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy()
    filled = torch.from_numpy(cv2.inpaint(pixels, holes, INPAINT, cv2.INPAINT_TELEA)).permute(2, 0, 1).float()
    return torch.where(torch.from_numpy(holes) > 0, filled / 127.5 - 1, image)


def _pasted(frame: Tensor, image: Tensor, move: Move, t: int) -> Tensor:
    """The travelling region laid over a frame, its edge as smooth as its place between pixels makes it."""
    offset = -move.offsets[min(t, len(move.offsets) - 1)].float().view(2, 1, 1).expand(2, *image.shape[-2:])
    cover = warp(move.region[None], offset[None])[0]
    # What comes from outside the picture was not there: the border is not drawn out.
    x, y = pixel_grid(*image.shape[-2:]) + offset
    cover = cover * ((x >= 0) & (y >= 0) & (x <= image.shape[-1] - 1) & (y <= image.shape[-2] - 1))
    return torch.lerp(frame, _looked_up(image, offset), cover)
