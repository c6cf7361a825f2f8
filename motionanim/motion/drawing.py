"""An artist's drawing on a photo: arrows, pins, regions and a mask, read and checked.

Points are (x, y) in pixels, origin at the first pixel centre.
"""

import json
import math
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from motionanim.motion.regions import centroid, nearest_inside, number, point, read_region

Point = tuple[float, float]
Kind = Literal["flow", "move", "sway", "turn"]
Easing = Literal["linear", "ease"]

# An arrow whose start is at most this far outside its region is moved into it, px.
SNAP = 2.0

# Limit of a path's points: each part of a path costs a pass over the picture.
_MOST_POINTS = 1000

_ARROW_FORM = "[x0, y0, x1, y1], [x0, y0, x1, y1, speed] or {path: [[x, y], [x, y], ...], speed: 1}"
_KEYS: dict[str, set[str]] = {
    "flow": {"speed"}, "move": {"speed", "easing", "start", "end"}, "sway": {"period", "phase"},
    "turn": {"speed", "center"},
}  # fmt: skip


class Arrow(NamedTuple):
    """One motion; `motion.kinds` defines each kind."""

    path: tuple[Point, ...]  # start, any corners, end; no two neighbours equal
    speed: float = 1.0  # above 0; 1 arrives with the last frame of the span, 2 in half of it
    kind: Kind = "flow"
    region: Tensor | None = None  # (1, H, W) in {0, 1}, shared by identity; None: the mask less all regions
    easing: Easing = "linear"  # of move
    start: int = 0  # of move: the frame it leaves at
    end: int | None = None  # of move: the frame it arrives at; None: by speed
    period: float | None = None  # of sway, frames
    phase: float = 0.0  # of sway, radians
    center: Point | None = None  # of turn


class Controls(NamedTuple):
    """A whole drawing, in the pixels of its mask."""

    arrows: tuple[Arrow, ...]
    pins: tuple[Point, ...]  # these stand still
    mask: Tensor  # (1, H, W) float32 in {0, 1}; 1 where pixels may move


def parse_controls(value: Any, mask: Tensor) -> Controls:
    """Read arrows, pins and regions and check them.

    An arrow without a region moves the mask, less the regions of all other arrows. Where two regions overlap, the
    region of the later arrow lies on top, and the other loses those pixels. Regions are cut to the mask. If the mask
    lets everything move and each arrow has a region, only the regions may move. A path may cross itself.

    Args:
        value: A list of arrows. An arrow is [x0, y0, x1, y1], [x0, y0, x1, y1, speed] or a mapping with `path`: [[x,
            y], ...], and optionally `kind`: flow (default), move, sway or turn; `region`: a name from `regions`, or as
            in `read_region`; and the keys of its kind: `speed` (default 1) of flow, move and turn; `easing` (linear or
            ease), `start` and `end` (frames) of move; `period` (frames, required) and `phase` (radians) of sway;
            `center` ([x, y], default the region's centroid) of turn. Or {"arrows": that list, "pins": [[x, y], ...],
            "regions": {name: region}}. Or either of the two as JSON text, or the path of a .json file that holds it;
            mask files in it are relative to it. None means no arrows.
        mask: (1, H, W) in {0, 1} of the photo; points must lie inside its size. Ones let everything move.

    Raises:
        ValueError: If `value` is not as above; a number is not finite, a point is outside the image, an arrow or a part
            of it has no length; a region has no pixel left; an arrow starts more than `SNAP` px outside its region
            (nearer ones are moved to its nearest pixel); a kind lacks a key; or arrows that exclude each other share a
            region.
    """
    folder = Path()
    if isinstance(value, str | os.PathLike):
        value, folder = _from_json(value)
    if not isinstance(value, Mapping):
        value = {"arrows": [] if value is None else value}
    _check_keys("the drawing", value, {"arrows", "pins", "regions"})
    height, width = mask.shape[1:]
    named = {} if value.get("regions") is None else value["regions"]
    if not isinstance(named, Mapping):
        raise ValueError(f"regions={str(named)[:80]}: must be a mapping of names to regions")
    regions = {str(name): read_region(f"regions.{name}", each, height, width, folder) for name, each in named.items()}

    known = list(regions.values())

    def region_of(name: str, given: Any) -> Tensor | None:
        if given is None:
            return None
        if isinstance(given, str) and given in regions:
            return regions[given]
        made = read_region(f"{name}: region", given, height, width, folder)
        for each in known:
            if torch.equal(each, made):
                return each  # arrows that draw one region twice share it
        known.append(made)
        return made

    arrows = [_arrow(f"arrows[{i}]", item, height, width, region_of) for i, item in enumerate(_items("arrows", value))]
    pins = [point(f"pins[{i}]", item, height, width) for i, item in enumerate(_items("pins", value))]
    return _placed(arrows, tuple(pins), mask)


def inlined(value: Any) -> dict[str, Any]:
    """A drawing for `parse_controls`, read from its file if it is one; mask files relative to the working folder."""
    folder = Path()
    if isinstance(value, str | os.PathLike):
        value, folder = _from_json(value)
    drawing = dict(value) if isinstance(value, Mapping) else {"arrows": value}
    named = drawing.get("regions") or {}

    def placed(arrow: Any) -> Any:
        region = arrow.get("region") if isinstance(arrow, Mapping) else None
        return {**arrow, "region": str(folder / region)} if isinstance(region, str) and region not in named else arrow

    drawing["regions"] = {k: str(folder / each) if isinstance(each, str) else each for k, each in named.items()}
    return drawing | {"arrows": [placed(arrow) for arrow in _items("arrows", drawing)]}


def region_files(value: Any) -> list[Path]:
    """The mask files that a drawing names. `parse_controls` must accept the drawing."""
    drawing = inlined(value)
    used = [arrow.get("region") for arrow in drawing["arrows"] if isinstance(arrow, Mapping)]
    named, used = drawing["regions"], [each for each in used if isinstance(each, str)]
    regions = [*named.values(), *(each for each in used if each not in named)]
    return [Path(each) for each in regions if isinstance(each, str)]


def unclaimed(controls: Controls) -> Tensor:
    """The mask less all regions, (1, H, W): the pixels that arrows without a region may move."""
    regions = [arrow.region for arrow in controls.arrows if arrow.region is not None]
    return controls.mask * (1 - torch.stack(regions).amax(0)) if regions else controls.mask


def path_length(arrow: Arrow) -> float:
    """Length of an arrow's path, px."""
    return sum(math.dist(start, end) for start, end in pairwise(arrow.path))


def turn_angle(arrow: Arrow) -> float:
    """Angle of a turn arrow's path around its center, radians; positive from x to y, clockwise on the screen."""
    cx, cy = arrow.center
    spokes = [(x - cx, y - cy) for x, y in arrow.path]
    return sum(math.atan2(a * d - b * c, a * c + b * d) for (a, b), (c, d) in pairwise(spokes))


def _placed(arrows: Sequence[Arrow], pins: tuple[Point, ...], mask: Tensor) -> Controls:
    """The drawing with regions cut to the mask and to the regions on top, arrows inside them, and centers filled in."""
    free = bool((mask > 0).all())
    cut: dict[int, Tensor] = {}
    above = torch.zeros_like(mask)
    for i, arrow in reversed(list(enumerate(arrows))):
        if arrow.region is None or id(arrow.region) in cut:
            continue
        left = arrow.region * mask * (1 - above)
        if not left.any():
            over = "the mask leaves"
            if (arrow.region * mask).any():
                over = "the regions of later arrows, which lie on top, leave"
            raise ValueError(f"arrows[{i}]: region: {over} no pixel of it: draw them apart")
        cut[id(arrow.region)] = left
        above = torch.maximum(above, left)
    rest = mask * (1 - above)
    users: dict[int, tuple[int, Arrow]] = {}
    placed = []
    for i, arrow in enumerate(arrows):
        name = f"arrows[{i}]"
        if arrow.region is None and free and arrow.kind in ("move", "turn"):
            raise ValueError(f"{name}: kind={arrow.kind} needs a region: draw what {arrow.kind}s, or give a mask")
        first, other = users.setdefault(id(arrow.region), (i, arrow))
        if first != i and (arrow.kind != other.kind or arrow.kind in ("move", "turn")):
            raise ValueError(
                f"{name}: kind={arrow.kind} and arrows[{first}]: kind={other.kind} share a region: give each its own "
                "(only flow with flow and sway with sway can share one)"
            )
        home = rest if arrow.region is None else cut[id(arrow.region)]
        if arrow.region is not None or (arrow.kind != "flow" and not free):
            arrow = arrow._replace(region=home)
        placed.append(_inside(name, arrow, home))
    if free and placed and all(arrow.region is not None for arrow in placed):
        mask = above
    return Controls(tuple(placed), pins, mask)


def _inside(name: str, arrow: Arrow, home: Tensor) -> Arrow:
    """The arrow, its start moved to the nearest pixel of `home` if it is just outside."""
    if not home.any():
        raise ValueError(f"{name}: the regions of other arrows leave nothing for it: give it a region of its own")
    (x, y), (start, distance) = arrow.path[0], nearest_inside(home, arrow.path[0])
    if distance > SNAP:
        place = "what may move" if arrow.region is None else "its region"
        raise ValueError(
            f"{name} starts at ({x:g}, {y:g}), {distance:.0f} px outside {place}: start it inside, such as at "
            f"({start[0]:g}, {start[1]:g}), or draw the {'mask' if arrow.region is None else 'region'} there too"
        )
    if arrow.kind == "turn":
        arrow = arrow._replace(center=arrow.center or centroid(home))
        if min(math.dist(corner, arrow.center) for corner in arrow.path) < 1 or abs(turn_angle(arrow)) < 1e-3:
            raise ValueError(
                f"{name}: kind=turn does not go round its center ({arrow.center[0]:g}, {arrow.center[1]:g}): draw it "
                "along the rim, at least 1 px from the center"
            )
    elif distance > 0 and start != arrow.path[1]:
        arrow = arrow._replace(path=(start, *arrow.path[1:]))
    return arrow


def _from_json(value: str | os.PathLike[str]) -> tuple[Any, Path]:
    """The Python values of JSON text or of a .json file, and the folder that file names in it are relative to."""
    name, text, folder = "arrows", str(value), Path()
    if not text.lstrip().startswith(("[", "{")):
        name = text
        try:
            text, folder = Path(value).read_text(encoding="utf-8-sig"), Path(value).parent
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ValueError(
                f"arrows={name!r} cannot be read ({reason}): give [[x0, y0, x1, y1], ...] or a .json file"
            ) from error
    try:
        return json.loads(text), folder
    except json.JSONDecodeError as error:
        where = f"line {error.lineno} column {error.colno}"
        raise ValueError(f"{name}: no valid JSON at {where}: {error.msg}") from error
    except (ValueError, RecursionError) as error:  # a number of thousands of digits, thousands of brackets
        raise ValueError(f"{name}: no usable JSON: {error}") from error


def _check_keys(name: str, value: Mapping[str, Any], known: set[str]) -> None:
    unknown = {str(key) for key in value} - known
    if unknown:
        raise ValueError(f"{name} has {', '.join(sorted(unknown))}: its keys may be {', '.join(sorted(known))}")


def _items(name: str, value: Mapping[str, Any]) -> Sequence[Any]:
    items = [] if value.get(name) is None else value[name]
    if isinstance(items, str) or not isinstance(items, Sequence):
        raise ValueError(f"{name}={items!r}: must be a list")
    return items


def _arrow(name: str, value: Any, height: int, width: int, region_of: Any) -> Arrow:
    kind, region, options = "flow", None, {}
    if isinstance(value, Mapping):
        kind = value.get("kind", "flow")
        if kind not in get_args(Kind):
            raise ValueError(f"{name}: kind={str(kind)[:40]}: must be {', '.join(get_args(Kind))}")
        _check_keys(name if kind == "flow" else f"{name}: kind={kind}", value, {"path", "kind", "region"} | _KEYS[kind])
        ends, region = _items("path", value), region_of(name, value.get("region"))
        options = {key: each for key, each in value.items() if key in _KEYS[kind] and each is not None}
        if not 2 <= len(ends) <= _MOST_POINTS:
            raise ValueError(f"{name}: a path needs from 2 to {_MOST_POINTS} points [x, y], not {len(ends)}")
    elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) in (4, 5):
        ends = value[:2], value[2:4]
        options = {"speed": value[4]} if len(value) == 5 else {}
    else:
        raise ValueError(f"{name}={str(value)[:80]}: an arrow is {_ARROW_FORM}")
    path = tuple(point(name, corner, height, width) for corner in ends)
    for start, end in pairwise(path):
        if start == end:
            raise ValueError(
                f"{name} has no length at ({start[0]:g}, {start[1]:g}): use a pin for a point that must stand still"
            )
    return Arrow(path, kind=kind, region=region, **_options(name, kind, options, path, height, width))


def _options(
    name: str, kind: str, given: dict[str, Any], path: Sequence[Point], height: int, width: int
) -> dict[str, Any]:
    """The keys of an arrow's kind, checked."""
    made = dict(given)
    for key in given.keys() & {"speed", "period", "phase"}:
        made[key] = number(f"{name}: {key}", given[key])
    if made.get("speed", 1) <= 0:
        raise ValueError(f"{name}: speed={made['speed']:g} must be above 0; swap the ends to turn an arrow round")
    if kind == "sway":
        if len(path) != 2:
            raise ValueError(f"{name}: kind=sway has a path of 2 points, rest and farthest reach, not {len(path)}")
        if not made.get("period", 0) >= 2:
            raise ValueError(f"{name}: kind=sway needs period, the frames of one swing to and fro, at least 2")
    if "center" in given:
        made["center"] = point(f"{name}: center", given["center"], height, width, around=1)
    for key in given.keys() & {"start", "end"}:
        if isinstance(given[key], bool) or not isinstance(given[key], int) or not 0 <= given[key] < 10**9:
            raise ValueError(f"{name}: {key}={str(given[key])[:40]} must be a frame number, 0 or more")
    if given.get("easing", "linear") not in get_args(Easing):
        raise ValueError(f"{name}: easing={str(given['easing'])[:40]}: must be {' or '.join(get_args(Easing))}")
    if "end" in given and given["end"] <= given.get("start", 0):
        raise ValueError(f"{name}: end={given['end']} must be after start={given.get('start', 0)}")
    if "end" in given and "speed" in given:
        raise ValueError(f"{name} has speed and end: give one, for either decides when it arrives")
    return made
