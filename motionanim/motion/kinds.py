"""Kinds of motion as exact functions of time: displacements for renderers, and velocities for the model.

- flow: a steady velocity field moves texture for as long as the video lasts (water, clouds, smoke).
- move: a rigid region travels along a path, rests at its end, and uncovers the ground behind it.
- sway: each pixel swings about its place (leaves, flags); nothing is uncovered, and a whole period is a loop.
- turn: a region rotates about a point (wheels).

Frame 0 is the photo: all displacements are 0 there. Displacements are in px and velocities in px per frame; channel 0
is x to the right, channel 1 is y down.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from motionanim.motion.drawing import Arrow, Controls, path_length, turn_angle, unclaimed
from motionanim.motion.flow import Area, area_grid
from motionanim.motion.sparse_to_dense import along_path

RIM = 2  # px around a region that travels
EDGE = 2  # px that a path may lie outside its region: drawing by hand is no more exact
FASTEST = 1 / 16  # of the height per frame: faster flow arrows get a warning; nine times the training set's median


class Move(NamedTuple):
    """A rigid region that travels."""

    region: Tensor  # (1, H, W) in {0, 1}, where it is in frame 0
    offsets: Tensor  # (N, 2) px float64: displacement in each frame


class Sway(NamedTuple):
    """Pixels that swing about their places: the displacement is amplitude * `sway_wave`."""

    amplitude: Tensor  # (2, H, W) px, from rest to the farthest point
    period: float  # frames
    phase: float  # radians


class Turn(NamedTuple):
    """A region that rotates."""

    region: Tensor  # (1, H, W) in {0, 1}
    center: tuple[float, float]  # px
    angle: float  # radians per frame; positive from x to y, clockwise on the screen


class Parts(NamedTuple):
    """All motion of a drawing by kind. No two parts share a pixel in frame 0, except sways of one region."""

    flow: Tensor  # (2, H, W) px per frame, steady
    moves: tuple[Move, ...] = ()
    sways: tuple[Sway, ...] = ()
    turns: tuple[Turn, ...] = ()

    @property
    def flow_only(self) -> bool:
        return not (self.moves or self.sways or self.turns)


def move_offsets(arrow: Arrow, *, num_frames: int, span: int) -> Tensor:
    """Displacement of a move arrow's region in each frame: (N, 2) px, float64.

    It rests until frame `start`, follows the path until frame `end` (default: `start` + (span - 1) / speed), and rests
    there. Easing "linear" has constant speed; "ease" starts and stops gently: at share s of the time it has travelled
    the share 3 s² - 2 s³ of the path.
    """
    duration = (span - 1) / arrow.speed if arrow.end is None else arrow.end - arrow.start
    share = ((torch.arange(num_frames, dtype=torch.float64) - arrow.start) / duration).clamp(0, 1)
    if arrow.easing == "ease":
        share = share**2 * (3 - 2 * share)
    path = torch.tensor(arrow.path, dtype=torch.float64)
    return along_path(path, share) - path[0]


def sway_wave(sway: Sway, frames: Tensor) -> Tensor:
    """sin(2 pi t / period + phase) - sin(phase) at frames t of any shape: 0 at frame 0 and after each period."""
    half = math.pi * frames.double() / sway.period
    return 2 * torch.sin(half) * torch.cos(half + sway.phase)  # unlike the difference exactly 0 at frame 0


def turn_displacement(turn: Turn, frames: float, area: Area | None = None) -> Tensor:
    """R(p - center) - (p - center) inside the region, (2, H, W) px, where R is the rotation of that many frames.

    Negative `frames` give backward offsets: content at p in frame t was at p + turn_displacement(turn, -t) in frame 0.

    Args:
        area: Compute only these pixels, (2, h, w); None: all.
    """
    height, width = turn.region.shape[-2:]
    rows, columns = area or (slice(0, height), slice(0, width))
    dx, dy = area_grid((rows, columns)) - torch.tensor(turn.center, dtype=torch.float32).view(2, 1, 1)
    cos, sin = math.cos(turn.angle * frames), math.sin(turn.angle * frames)
    return torch.stack([cos * dx - sin * dy - dx, sin * dx + cos * dy - dy]) * turn.region[:, rows, columns]


def shifted(region: Tensor, offset: Sequence[float]) -> Tensor:
    """A region (1, H, W) moved by (x, y) px, rounded to whole pixels; parts outside the picture are cut off."""
    across, down = (math.floor(each + 0.5) for each in offset)
    height, width = region.shape[-2:]
    made = torch.zeros_like(region)
    if abs(across) < width and abs(down) < height:
        made[:, max(down, 0) : height + min(down, 0), max(across, 0) : width + min(across, 0)] = region[
            :, max(-down, 0) : height + min(-down, 0), max(-across, 0) : width + min(-across, 0)
        ]
    return made


def velocity(parts: Parts, num_frames: int, *, flow: Tensor | None = None) -> Tensor:
    """The motion of each pixel from each frame to the next: (N-1, 2, H, W) px per frame, float32.

    A swaying pixel moves by the difference of its displacements, a turning pixel by its exact rotation. All pixels that
    a moved region covers in a frame have the region's velocity, whatever else moves there; the ground that it uncovers
    stands still.

    Args:
        flow: (N-1, 2, H, W) instead of the steady flow of `parts`.

    Returns:
        The field; steady flow alone is one piece of memory, expanded.
    """
    steps = parts.flow.expand(num_frames - 1, -1, -1, -1) if flow is None else flow
    if parts.flow_only:
        return steps
    steps = steps + sum(turn_displacement(turn, 1) for turn in parts.turns)  # a copy, changed in place below
    frames = torch.arange(num_frames)
    for sway in parts.sways:
        steps += sway.amplitude * sway_wave(sway, frames).diff().float().view(-1, 1, 1, 1)
    for move in parts.moves:
        for step, (here, there) in zip(steps, pairwise(move.offsets)):
            vector = (there - here).float().view(2, 1, 1)
            torch.where(shifted(move.region, here.tolist()) > 0, vector, step, out=step)
    return steps


def peak_velocity(parts: Parts) -> Tensor:
    """The fastest motion of each pixel of frame 0, (2, H, W) px per frame: one picture of all kinds."""
    peak = parts.flow + sum(turn_displacement(turn, 1) for turn in parts.turns)
    for sway in parts.sways:
        peak = peak + sway.amplitude * (2 * math.pi / sway.period)
    for move in parts.moves:
        steps = move.offsets.diff(dim=0)
        vector = steps[torch.linalg.vector_norm(steps, dim=1).argmax()].float().view(2, 1, 1)
        peak = torch.where(move.region > 0, vector, peak)
    return peak


def swept(mask: Tensor, parts: Parts) -> Tensor:
    """All pixels that move at any time, (1, H, W): the mask, and all places that moved regions come to."""
    reached = mask
    for move in parts.moves:
        rim = with_rim(move.region)
        for offset in move.offsets.tolist():
            reached = torch.maximum(reached, shifted(rim, offset))
    return reached


def with_rim(region: Tensor) -> Tensor:
    """A region (1, H, W) and the `RIM` px around it, which mix the colours of both sides."""
    return _grown(region, RIM)


def _grown(region: Tensor, px: int) -> Tensor:
    return torch.nn.functional.max_pool2d(region[None], 2 * px + 1, stride=1, padding=px)[0]


def rigid_parts(controls: Controls, *, num_frames: int, span: int) -> tuple[tuple[Move, ...], tuple[Turn, ...]]:
    """The moves and turns of a drawing.

    A turn arrow of speed 1 rotates by its own angle in `span` - 1 steps, and goes on at that speed.
    """
    moves = tuple(
        Move(arrow.region, move_offsets(arrow, num_frames=num_frames, span=span))
        for arrow in controls.arrows
        if arrow.kind == "move"
    )
    turns = tuple(
        Turn(arrow.region, arrow.center, turn_angle(arrow) * arrow.speed / (span - 1))
        for arrow in controls.arrows
        if arrow.kind == "turn"
    )
    return moves, turns


def doubts(controls: Controls, *, span: int, crossings: bool, scale: float = 1.0) -> list[str]:
    """Warnings about parts of a drawing that probably look bad, one line each.

    Args:
        span: Frames that an arrow of speed 1 takes.
        crossings: Whether the field is steady, so that a path cannot cross itself.
        scale: Pixels that the warnings name for each pixel of the drawing: that of a photo from which it was shrunk.
    """
    height, found = controls.mask.shape[1], []
    rest = unclaimed(controls)
    for i, arrow in enumerate(controls.arrows):
        left = _leaves(arrow.path, rest if arrow.region is None else arrow.region) if arrow.kind == "flow" else None
        if left is not None:
            place = "what may move" if arrow.region is None else "its region"
            x, y = scale * left[0], scale * left[1]
            found.append(
                f"arrows[{i}] leaves {place} at ({x:.0f}, {y:.0f}): nothing moves outside; draw the "
                f"{'mask' if arrow.region is None else 'region'} along all of its path, or end the arrow inside"
            )
        length = path_length(arrow)
        speed = length * arrow.speed / (span - 1)
        if arrow.kind == "flow" and (length > height or speed > FASTEST * height):
            found.append(
                f"arrows[{i}] is {scale * length:.0f} px long and moves {scale * speed:.1f} px per frame, "
                f"{speed / height:.0%} of the height: such motion smears; make it shorter, or its speed at most "
                f"{arrow.speed * FASTEST * height / speed:.2g}"
            )
        if crossings and arrow.kind == "flow" and crosses_itself(arrow.path):
            found.append(
                f"arrows[{i}] crosses itself: a steady field has one direction there, so what moves may take the other "
                "way; use controls.field=advected, or two arrows"
            )
    return found


def _leaves(path: Sequence[tuple[float, float]], region: Tensor) -> tuple[float, float] | None:
    """The first point (x, y) of a path that is more than `EDGE` px outside a region (1, H, W), if any."""
    corners = torch.tensor(path, dtype=torch.float64)
    steps = corners.diff(dim=0)
    counts = torch.linalg.vector_norm(steps, dim=1).ceil().long().clamp(min=1)  # a place every px
    share = torch.cat([torch.arange(1, count + 1) / count for count in counts.tolist()])
    places = corners[:-1].repeat_interleave(counts, 0) + share[:, None] * steps.repeat_interleave(counts, 0)
    x, y = places.round().long().unbind(1)
    outside = region[0, y, x] == 0
    if outside.any():
        outside = _grown(region, EDGE)[0, y, x] == 0
    first = outside.nonzero()
    return None if len(first) == 0 else tuple(places[int(first[0])].tolist())


def crosses_itself(path: Sequence[tuple[float, float]]) -> bool:
    """Whether two parts of a path that are not neighbours meet in their inner points."""
    points = torch.tensor(path, dtype=torch.float64)
    start, way = points[:-1], points.diff(dim=0)

    def cross(a: Tensor, b: Tensor) -> Tensor:
        return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]

    between = start[None] - start[:, None]  # [i, j]: from i's start to j's
    turn = cross(way[:, None], way[None])
    share = cross(between, way[None]) / turn  # of i; infinite or NaN for parallel parts, which fail the test below
    return bool(((share > 0) & (share < 1) & (share.T > 0) & (share.T < 1)).triu(2).any())
