"""A photo in motion at its own size, without a network: all kinds of motion of a drawing.

Each kind looks each pixel up in the photo itself, so that nothing is interpolated twice. Frame 0 is the photo.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from motionanim.media.image_io import from_uint8, to_pixels
from motionanim.motion.controls import Fields
from motionanim.motion.drawing import Controls
from motionanim.motion.flow import Area, area_grid, area_of, sample
from motionanim.motion.kinds import Move, Parts, Sway, Turn, sway_wave, turn_displacement, with_rim

INPAINT = 5.0  # px, the radius of cv2.inpaint
SEARCHES = 3  # fixed-point steps that find the content which sways to a pixel
PIXEL = 2e-7  # seconds that a pixel of a frame takes: the progress bar's guess before the first frame

# `flow_map.frames` or `eulerian.frames` with bound options. The caller may change the frames in place.
Flowing = Callable[..., Iterator[Tensor]]


class Photo(NamedTuple):
    """A picture and all motion in it."""

    image: Tensor  # (3, H, W) in [-1, 1]
    mask: Tensor  # (1, H, W) in {0, 1}; 1 where flow may be
    parts: Parts


class Scene(NamedTuple):
    """A picture, its drawing and the motion fields of the drawing, at one size."""

    image: Tensor  # (3, H, W) in [-1, 1]
    controls: Controls
    fields: Fields

    def photo(self, *, loop: bool, num_frames: int) -> Photo:
        """The picture with all its motion; a loop gives its periods as in `looped`."""
        parts = looped(self.fields.parts, num_frames) if loop else self.fields.parts
        return Photo(self.image, self.controls.mask, parts)


def looped(parts: Parts, num_frames: int) -> Parts:
    """The same motion with periods that fit a loop of `num_frames`: sways and turns make the nearest whole number of
    turns.

    Raises:
        ValueError: If a region travels, because it does not come back.
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
    """Frames (3, H, W) in [-1, 1] with all kinds of motion; frame 0 is the photo.

    Args:
        num_frames: N; a travelling region rests after the last of its offsets.
        flowing: Renders the flow.
    """
    parts, image = photo.parts, photo.image
    rigid = [*(move.region for move in parts.moves), *(turn.region for turn in parts.turns)]
    mask = photo.mask if not rigid else photo.mask * (1 - torch.stack(rigid).amax(0))
    ground = _uncovered(image, parts.moves)
    stream = flowing(ground, parts.flow, num_frames=num_frames, mask=mask)
    swaying = [(sway, (sway.amplitude != 0).any(0)) for sway in parts.sways]
    turning = [(turn, turn.region[0] > 0) for turn in parts.turns]
    moving = [(kind, where, area_of(where)) for kind, where in (*swaying, *turning) if where.any()]
    seen = None if parts.flow_only else _pixels(ground)
    carried = _pixels(image) if parts.moves else None
    for t, frame in enumerate(stream):
        if t == 0 or parts.flow_only:
            yield image if t == 0 else frame
            continue
        for kind, where, (rows, columns) in moving:
            from_there = swayed_from if isinstance(kind, Sway) else turned_from
            found = _looked_up(seen, area_grid((rows, columns)) + from_there(kind, t, (rows, columns)))
            frame[:, rows, columns] = torch.where(where[rows, columns], found, frame[:, rows, columns])
        for move in parts.moves:
            _paste(frame, carried, move, t)
        yield frame


def swayed_from(sway: Sway, frame: int, area: Area) -> Tensor:
    """Backward offsets (2, h, w) px of a sway: where the content of each pixel of an area was in the photo."""
    wave = float(sway_wave(sway, torch.tensor(frame)))
    grid, back = area_grid(area), -wave * sway.amplitude[:, *area]
    for _ in range(SEARCHES):
        back = -wave * sample(sway.amplitude[None], (grid + back)[None])[0]
    return back


def turned_from(turn: Turn, frame: int, area: Area) -> Tensor:
    """Backward offsets (2, h, w) px of a turn, exact."""
    return turn_displacement(turn, -frame, area)


def _pixels(image: Tensor) -> np.ndarray:
    """(C, H, W) as OpenCV takes it: (H, W, C)."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy())


def _looked_up(pixels: np.ndarray, places: Tensor) -> Tensor:
    """The picture (C, h, w) at places (2, h, w), by Lanczos interpolation, which keeps it sharp; mirrored outside."""
    x, y = places.numpy()
    found = cv2.remap(pixels, x, y, cv2.INTER_LANCZOS4, borderMode=cv2.BORDER_REFLECT_101)
    return torch.from_numpy(found.reshape(*x.shape, -1)).permute(2, 0, 1).clamp(-1, 1)


def _uncovered(image: Tensor, moves: tuple[Move, ...]) -> Tensor:
    """The photo with travelling regions removed and inpainted from their surroundings (Telea 2004)."""
    if not moves:
        return image
    holes = torch.stack([with_rim(move.region) for move in moves]).amax(0)[0].numpy().astype(np.uint8)
    filled = torch.from_numpy(cv2.inpaint(to_pixels(image), holes, INPAINT, cv2.INPAINT_TELEA)).permute(2, 0, 1)
    return torch.where(torch.from_numpy(holes) > 0, from_uint8(filled), image)


def _paste(frame: Tensor, pixels: np.ndarray, move: Move, t: int) -> None:
    """Draw a travelling region over a frame in place, antialiased at its edge."""
    offset = move.offsets[min(t, len(move.offsets) - 1)].float()
    height, width = frame.shape[-2:]
    home = area_of(move.region[0] > 0, margin=2)
    # Only the pixels that the region covers by now, and its edge.
    rows, columns = (
        slice(max(math.floor(side.start + way), 0), min(math.ceil(side.stop + way), most))
        for side, way, most in zip(home, offset.flip(0).tolist(), (height, width))
    )
    if rows.start >= rows.stop or columns.start >= columns.stop:
        return
    places = area_grid((rows, columns)) - offset.view(2, 1, 1)
    cover = sample(move.region[None], places[None])[0]
    # Nothing comes from outside the picture: the border is not repeated.
    x, y = places
    cover = cover * ((x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1))
    frame[:, rows, columns] = torch.lerp(frame[:, rows, columns], _looked_up(pixels, places), cover)
