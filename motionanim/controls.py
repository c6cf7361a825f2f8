"""What an artist draws on a photo, read and checked, and the motion field that it asks for (Sec. 3.2, Eq. 5-8).

The order: `parse_controls` in the photo's pixels, `fit_controls` to the model's, `motion_field`, `with_strength`.
Points are (x, y) in pixels, origin at the first pixel centre.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from motionanim.flow import motion_strength
from motionanim.hints import Edge, Normalized, along_path, arrow_vectors, bounded_flow
from motionanim.images import Fit

Point = tuple[float, float]

# The strength of Fig. 7's scale that stands for the training set's median: the middle of SVD's motion buckets.
_MEDIAN_ID = 127

_ARROW_FORM = "[x0, y0, x1, y1], [x0, y0, x1, y1, speed] or {path: [[x, y], [x, y], ...], speed: 1}"


class Arrow(NamedTuple):
    """A motion that spans a clip."""

    path: tuple[Point, ...]  # start, any corners, end; no two neighbours equal
    speed: float  # above 0; 1 arrives with the last frame of the span, 2 in half of it


class Controls(NamedTuple):
    """All that was drawn, in the pixels of the mask's picture."""

    arrows: tuple[Arrow, ...]
    pins: tuple[Point, ...]  # these stand still
    mask: Tensor  # (1, H, W) float32 in {0, 1}; 1 where pixels may move


class Fields(NamedTuple):
    """The motion field and what it was made from, px per frame."""

    dense: Tensor  # (2, H, W) Eq. 5-7 at the first frame
    refined: Tensor  # (2, H, W) `dense` after T; `dense` itself without T
    per_step: Tensor  # (N-1, 2, H, W); a steady field is one piece of memory seen N-1 times


def parse_controls(value: Any, mask: Tensor) -> Controls:
    """Read arrows and pins and check them.

    Args:
        value: A list of arrows, each [x0, y0, x1, y1], [x0, y0, x1, y1, speed] or {"path": [[x, y], [x, y], ...],
            "speed": 1} (speed may be left out); or {"arrows": that list, "pins": [[x, y], ...]}; or either as JSON
            text; or the path of a .json file that holds it. None is no arrows.
        mask: (1, H, W) in {0, 1} of the photo; its size is the range of the points. Ones let everything move.

    Raises:
        ValueError: If `value` is not as above, or a number is not finite, a point outside the image, an arrow or a
            part of it without length, or a speed not above 0.
    """
    if isinstance(value, str | os.PathLike):
        value = _from_json(value)
    if not isinstance(value, Mapping):
        value = {"arrows": [] if value is None else value}
    _check_keys("the drawing", value, {"arrows", "pins"})
    height, width = mask.shape[1:]
    arrows = [_arrow(f"arrows[{i}]", item, height, width) for i, item in enumerate(_items("arrows", value))]
    pins = [_point(f"pins[{i}]", item, height, width) for i, item in enumerate(_items("pins", value))]
    return Controls(tuple(arrows), tuple(pins), mask)


def fit_controls(controls: Controls, fit: Fit) -> Controls:
    """Bring what was drawn on the photo to the model's pixels.

    Raises:
        ValueError: If a point is outside the part of the photo that the model sees, or nothing of the mask is inside.
    """
    left, top, right, bottom = fit.visible

    def move(name: str, points: Sequence[Point]) -> tuple[Point, ...]:
        for x, y in points:
            if not (left <= x <= right and top <= y <= bottom):
                raise ValueError(
                    f"{name}: the point ({x:g}, {y:g}) is cut off when the photo is cropped to the shape "
                    f"{fit.width}x{fit.height}: keep x from {left:.1f} to {right:.1f} and y from {top:.1f} to "
                    f"{bottom:.1f}, or crop the photo yourself"
                )
        return tuple((x, y) for x, y in fit.points(torch.tensor(points, dtype=torch.float64)).tolist())

    arrows = tuple(arrow._replace(path=move(f"arrows[{i}]", arrow.path)) for i, arrow in enumerate(controls.arrows))
    pins = tuple(move(f"pins[{i}]", [pin])[0] for i, pin in enumerate(controls.pins))
    return Controls(arrows, pins, fit.mask(controls.mask))


def motion_field(
    controls: Controls,
    *,
    num_frames: int,
    span: int,
    field: Literal["eulerian", "advected"],
    sigma: float,
    threshold: float,
    threshold_on: Literal["weight", "magnitude"],
    normalized: Normalized,
    edge: Edge,
    image: Tensor | None = None,
    refiner: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
) -> Fields:
    """The motion field of a clip from arrows, pins and a mask: Eq. 5, 6, 7, then T.

    An arrow of speed 1 moves by its displacement in `span` - 1 steps, at constant speed along its path, and goes
    straight on after it. Outside the mask nothing moves.

    Args:
        controls: In the pixels of the field; its mask gives H and W.
        num_frames: N of the clip, at least 2.
        span: Frames that an arrow of speed 1 takes, at least 2; the clip's own number is the paper's Eq. 5, the
            model's window keeps the motion as fast when a user asks for a longer clip.
        field: "eulerian": one steady field, in which every straight part of a path is an entry at its start.
            "advected": the field is drawn anew for each step, about the points that moved along their paths.
        sigma, threshold, threshold_on, normalized, edge: As in `hints.bounded_flow`; pins need "exact".
        image: (3, H, W) in [-1, 1], which `refiner` wants.
        refiner: T, `FlowRefiner.refine`: image (1, 3, H, W), hint (1, 2, H, W), mask (1, 1, H, W) to (1, 2, H, W). It
            sees pins only by the hint, so it may move what a pin holds; it cannot move what the mask holds.

    Returns:
        The fields, float32; all zero without arrows.

    Raises:
        ValueError: If an option is not as above, T is asked for an advected field (it knows the first frame only), or
            there are arrows and none of them moves anything.
    """
    if num_frames < 2 or span < 2:
        raise ValueError(f"num_frames={num_frames}, span={span}: motion needs at least 2 frames")
    if field not in ("eulerian", "advected"):
        raise ValueError(f"field={field!r}: must be 'eulerian' or 'advected'")
    if controls.pins and normalized != "exact":
        raise ValueError(f"normalized={normalized}: {len(controls.pins)} pins need 'exact', else they would be moved")
    if refiner is not None and (image is None or field != "eulerian"):
        raise ValueError(f"field={field!r}: a refiner needs the image and field='eulerian'")
    options = {"edge": edge, "sigma": sigma, "threshold": threshold, "threshold_on": threshold_on}

    def dense_at(points: Tensor, vectors: Tensor) -> Tensor:
        pins = torch.tensor(controls.pins, dtype=torch.float64).view(-1, 2)
        points, vectors = torch.cat([points, pins]).float(), torch.cat([vectors, torch.zeros_like(pins)]).float()
        return bounded_flow(points, vectors, controls.mask, normalized=normalized, **options)

    if field == "eulerian":
        dense = dense_at(*_steady(controls.arrows, span))
    else:
        points, vectors = _moving(controls.arrows, span, num_frames - 1)
        steps = torch.stack([dense_at(*step) for step in zip(points, vectors)])
        dense = steps[0]
    if controls.arrows and not dense.any():
        raise ValueError(
            f"the arrows move nothing: start them in or near the mask's movable region, or make them longer (faster "
            f"motion passes threshold={threshold} on the {threshold_on})"
        )
    if field == "advected":
        return Fields(dense, dense, steps)
    refined = dense if refiner is None else refiner(image[None], dense[None], controls.mask[None])[0] * controls.mask
    return Fields(dense, refined, refined.expand(num_frames - 1, -1, -1, -1))


def strength_to_px(strength: float, *, median_strength: float, width: int) -> float:
    """The 100-400 scale of Fig. 7 to Eq. 8's px per frame at `width`; the inverse of `MotionConditioner.strength_id`.

    Args:
        strength: At least 0; 127 is the training set's median, 0 stands still.
        median_strength: That median, as a share of the width per frame.

    Raises:
        ValueError: If `strength` is not as above.
    """
    if not 0 <= strength < math.inf:
        raise ValueError(f"strength={strength}: must be at least 0; the usual range is 100 to 400, 127 the median")
    return strength / _MEDIAN_ID * median_strength * width


def with_strength(flow: Tensor, strength: float | None, *, median_strength: float) -> Tensor:
    """Scale a field to a motion strength: F' = F * strength_to_px(strength) / mean |F| over what moves.

    Eq. 8's mean is over the whole frame: in a small movable region the same number would be a much faster motion, up
    to leaving the picture. The model is told Eq. 8's value of the scaled field. A zero field stays zero: strength then
    acts by the model's strength embedding alone.

    Args:
        flow: (N-1, 2, H, W) px per frame.
        strength: As in `strength_to_px`; None keeps the field's own.
        median_strength: As in `strength_to_px`.

    Returns:
        (N-1, 2, H, W) px per frame.
    """
    if strength is None:
        return flow
    wanted = strength_to_px(strength, median_strength=median_strength, width=flow.shape[-1])
    share = float((flow != 0).any(1).float().mean())
    return flow * (wanted * share / float(motion_strength(flow[None]))) if share > 0 else flow


def _steady(arrows: Sequence[Arrow], span: int) -> tuple[Tensor, Tensor]:
    """The entries of the sparse flow (Eq. 5): points (M, 2) and vectors (M, 2) float64, one a straight part."""
    points, vectors = [torch.empty(0, 2, dtype=torch.float64)], [torch.empty(0, 2, dtype=torch.float64)]
    for arrow in arrows:
        path = torch.tensor(arrow.path, dtype=torch.float64)
        lengths = torch.linalg.vector_norm(path.diff(dim=0), dim=1)
        # Each part has its share of the time, by its length, and so all parts have one speed.
        faster = arrow.speed * (lengths.sum() / lengths)[:, None]
        points.append(path[:-1])
        vectors.append(arrow_vectors(path[:-1], path[1:], span) * faster)
    return torch.cat(points), torch.cat(vectors)


def _moving(arrows: Sequence[Arrow], span: int, steps: int) -> tuple[Tensor, Tensor]:
    """Where each arrow's point is before each step, and how it moves: (steps, M, 2) float64 twice."""
    share = torch.arange(steps + 1, dtype=torch.float64) / (span - 1)
    places = torch.empty(steps + 1, len(arrows), 2, dtype=torch.float64)
    for i, arrow in enumerate(arrows):
        places[:, i] = along_path(torch.tensor(arrow.path, dtype=torch.float64), share * arrow.speed)
    return places[:-1], places.diff(dim=0)


def _from_json(value: str | os.PathLike[str]) -> Any:
    """JSON text, or a .json file of it, as Python values."""
    name, text = "arrows", str(value)
    if not text.lstrip().startswith(("[", "{")):
        name = text
        try:
            text = Path(value).read_text(encoding="utf-8-sig")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ValueError(
                f"arrows={name!r} cannot be read ({reason}): give [[x0, y0, x1, y1], ...] or a .json file"
            ) from error
    try:
        return json.loads(text)
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


def _number(name: str, value: Any) -> float:
    # The comparison rejects NaN, infinity, and whole numbers too large for a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e300:
        raise ValueError(f"{name}: {str(value)[:40]} must be a finite number")
    return float(value)


def _point(name: str, value: Any, height: int, width: int) -> Point:
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(f"{name}={str(value)[:80]}: must be a point [x, y]")
    x, y = (_number(name, number) for number in value)
    if not (0 <= x <= width - 1 and 0 <= y <= height - 1):
        raise ValueError(
            f"{name}: the point ({x:g}, {y:g}) is outside the image: x must be from 0 to {width - 1}, y from 0 to "
            f"{height - 1}"
        )
    return x, y


def _arrow(name: str, value: Any, height: int, width: int) -> Arrow:
    if isinstance(value, Mapping):
        _check_keys(name, value, {"path", "speed"})
        ends, speed = _items("path", value), value.get("speed", 1)
        if len(ends) < 2:
            raise ValueError(f"{name}: a path needs at least 2 points [x, y], not {len(ends)}")
    elif isinstance(value, Sequence) and not isinstance(value, str) and len(value) in (4, 5):
        ends, speed = (value[:2], value[2:4]), value[4] if len(value) == 5 else 1
    else:
        raise ValueError(f"{name}={str(value)[:80]}: an arrow is {_ARROW_FORM}")
    path = tuple(_point(name, point, height, width) for point in ends)
    for start, end in pairwise(path):
        if start == end:
            raise ValueError(
                f"{name} has no length at ({start[0]:g}, {start[1]:g}): use a pin for a point that must stand still"
            )
    speed = _number(f"{name}: speed", speed)
    if speed <= 0:
        raise ValueError(f"{name}: speed={speed:g} must be above 0; swap the ends to turn an arrow round")
    return Arrow(path, speed)
