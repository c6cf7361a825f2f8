"""The motion field that a drawing asks for (Sec. 3.2, Eq. 5-8).

The order: `parse_controls` in the photo's pixels, `fit_controls` to the model's, `motion_field`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from motionanim.media.image_io import model_size, stretched
from motionanim.motion.drawing import Arrow, Controls, fit_controls, parse_controls, path_length, unclaimed
from motionanim.motion.flow import resize_flow
from motionanim.motion.kinds import Parts, Sway, rigid_parts, velocity
from motionanim.motion.paths import path_flow, path_hint
from motionanim.motion.sparse_to_dense import Edge, Normalized, along_path, arrow_vectors, bounded_flow
from motionanim.types import Hint

__all__ = [
    "Arrow", "Controls", "Fields", "at_strength", "fit_controls", "motion_field", "parse_controls", "strength_to_px",
    "with_strength",
]  # fmt: skip

# The strength of Fig. 7's scale that stands for the training set's median: the middle of SVD's motion buckets.
_MEDIAN_ID = 127


class Refiner(Protocol):
    """T: `models.flow_refiner.FlowRefiner`."""

    side: int  # root of the number of pixels of the pictures that it knows

    def refine(self, image: Tensor, hint: Hint, mask: Tensor) -> Tensor: ...


class Fields(NamedTuple):
    """The motion field and what it was made from, px per frame."""

    dense: Tensor  # (2, H, W) Eq. 5-7 of the flow arrows, at the first frame
    refined: Tensor  # (2, H, W) what T makes of the same arrows; `dense` itself where it is not asked
    per_step: Tensor  # (N-1, 2, H, W) of all kinds; flow alone is steady: one piece of memory seen N-1 times
    parts: Parts  # the same by kind, for renderers; its flow is `refined`


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
    entries: Literal["path", "start"] = "path",
    median_strength: float | None = None,
    strength: float | None = None,
    image: Tensor | None = None,
    refiner: Refiner | None = None,
    stepwise: bool = True,
) -> Fields:
    """The motion field of a clip from a drawing: Eq. 5 to 7, or T instead of Eq. 7; and the motion of all other kinds.

    A flow arrow of speed 1 carries what starts at its tail to its tip in `span` - 1 steps, at constant speed along its
    path. Outside the mask nothing moves. Arrows of one region share it, by Eq. 6; regions know nothing of each other.

    Args:
        controls: In the pixels of the field; its mask gives H and W.
        num_frames: N of the clip, at least 2.
        span: Frames that an arrow of speed 1 takes, at least 2; the clip's own number is the paper's Eq. 5, the
            model's window keeps the motion as fast when a user asks for a longer clip.
        field: "eulerian": one steady field. "advected": the field of the flow arrows is drawn anew for each step, about
            the points that moved along their paths and go straight on after them.
        entries: Of a steady field. "path": all of an arrow's path is its entry, so that what it carries arrives
            (`motion.paths.path_flow`). "start": every straight part of a path is an entry at its start, as in Eq. 5.
        sigma, threshold, threshold_on, normalized, edge: As in `sparse_to_dense.bounded_flow`; pins need "exact".
        median_strength, strength: As in `at_strength`; a strength needs both.
        image: (3, H, W) in [-1, 1], which `refiner` wants.
        refiner: T, which decides how far the flow arrows reach where neither a region nor a mask says it. It works on
            the image at its own size. Elsewhere it is not asked, nor where `may_refine` says that it knows no such
            arrows.
        stepwise: False leaves `per_step` empty, (0, 2, H, W): of a large photo it can take gigabytes.

    Returns:
        The fields, float32; all zero without arrows.

    Raises:
        ValueError: If an option is not as above, or there are arrows and none of them moves anything.
    """
    if num_frames < 2 or span < 2:
        raise ValueError(f"num_frames={num_frames}, span={span}: motion needs at least 2 frames")
    for name, value, known in (("field", field, ("eulerian", "advected")), ("entries", entries, ("path", "start"))):
        if value not in known:
            raise ValueError(f"{name}={value!r}: must be {known[0]!r} or {known[1]!r}")
    if controls.pins and normalized != "exact":
        raise ValueError(f"normalized={normalized}: {len(controls.pins)} pins need 'exact', else they would be moved")
    if refiner is not None and image is None:
        raise ValueError("image=None: a refiner needs the image that the arrows are drawn on")
    if strength is not None:
        controls = at_strength(controls, strength, span=span, median_strength=median_strength)
    options = {
        "edge": edge, "sigma": sigma, "threshold": threshold, "threshold_on": threshold_on, "normalized": normalized,
    }  # fmt: skip
    pins = torch.tensor(controls.pins, dtype=torch.float64).view(-1, 2)

    def at_points(points: Tensor, vectors: Tensor, mask: Tensor) -> Tensor:
        points, vectors = torch.cat([points, pins]).float(), torch.cat([vectors, torch.zeros_like(pins)]).float()
        return bounded_flow(points, vectors, mask, **options)

    def steady(arrows: Sequence[Arrow], mask: Tensor) -> Tensor:
        if entries == "start":
            return at_points(*_starts(arrows, span), mask)
        speeds = [path_length(arrow) * arrow.speed / (span - 1) for arrow in arrows]
        return path_flow(_paths(arrows), speeds, pins, mask, **options)

    def swinging(arrows: Sequence[Arrow], mask: Tensor) -> Tensor:
        return path_flow(_paths(arrows), [path_length(arrow) for arrow in arrows], pins, mask, **options)

    def carried(arrows: Sequence[Arrow], mask: Tensor) -> Tensor:
        return torch.stack([at_points(*step, mask) for step in zip(*_moving(arrows, span, num_frames - 1))])

    flowing = [arrow for arrow in controls.arrows if arrow.kind == "flow" and arrow.speed > 0]
    steps = None if field == "eulerian" else _by_region(flowing, controls, carried, num_frames - 1)
    dense = _by_region(flowing, controls, steady) if steps is None else steps[0]
    if flowing and not (dense if steps is None else steps).any():
        raise ValueError(
            f"the arrows move nothing: start them in or near the mask's movable region, or make them longer (faster "
            f"motion passes threshold={threshold} on the {threshold_on})"
        )
    refined = dense
    free = [arrow for arrow in flowing if arrow.region is None]
    asked = refiner is not None and may_refine(field, entries, normalized)
    if asked and free and bool((controls.mask > 0).all()):
        refined = _refined(refiner, image, free, pins, span=span, sigma=sigma, normalized=normalized)
        refined *= unclaimed(controls)
        refined += _by_region([arrow for arrow in flowing if arrow.region is not None], controls, steady)
    swaying = [arrow for arrow in controls.arrows if arrow.kind == "sway"]
    sways = tuple(
        Sway(_by_region([a for a in swaying if (a.period, a.phase) == wave], controls, swinging), *wave)
        for wave in dict.fromkeys((arrow.period, arrow.phase) for arrow in swaying)
    )
    moves, turns = rigid_parts(controls, num_frames=num_frames, span=span)
    parts = Parts(refined, moves, sways, turns)
    per_step = velocity(parts, num_frames, flow=steps) if stepwise else dense.new_empty(0, *dense.shape)
    return Fields(dense, refined, per_step, parts)


def may_refine(field: str, entries: str, normalized: Normalized) -> bool:
    """Whether T knows such arrows: it has learned from whole paths that are met exactly, in a steady field."""
    return field == "eulerian" and entries == "path" and normalized == "exact"


def _refined(
    refiner: Refiner, image: Tensor, arrows: Sequence[Arrow], pins: Tensor, *, span: int, sigma: float,
    normalized: Normalized,
) -> Tensor:  # fmt: skip
    """What T makes of arrows on an image of any size: (2, H, W) px per frame."""
    height, width = image.shape[1:]
    small, way = stretched(image, *model_size(height, width, area=refiner.side**2, multiple=1))
    paths = [way.points(path) for path in _paths(arrows)]
    speeds = [
        float(torch.linalg.vector_norm(path.diff(dim=0), dim=1).sum()) * arrow.speed / (span - 1)
        for path, arrow in zip(paths, arrows, strict=True)
    ]
    hint = path_hint(paths, speeds, way.points(pins), *small.shape[1:], sigma=sigma, normalized=normalized)
    flow = refiner.refine(small[None], Hint(*(each[None] for each in hint)), torch.ones_like(small[None, :1]))[0]
    return resize_flow(flow, height, width)


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


def at_strength(controls: Controls, strength: float, *, span: int, median_strength: float) -> Controls:
    """Flow arrows at a motion strength: their mean speed becomes `strength_to_px(strength)`, their ratios stay.

    A strength is the speed of what an arrow moves, because that is what a viewer sees; so it is the same with and
    without a mask, for an object and for a whole sky, and a field that is carried along travels at it. Eq. 8's mean is
    over the whole frame: in a small region the same number would be a much faster motion, up to leaving the picture;
    and without a mask a mean over what moves would count the far, slow surroundings of an arrow. What the model is told
    is Eq. 8 of the field that comes of it. The other kinds keep what was drawn: they say themselves where they end.

    Args:
        strength, median_strength: As in `strength_to_px`.
        span: Frames that an arrow of speed 1 takes.
    """
    wanted = strength_to_px(strength, median_strength=median_strength, width=controls.mask.shape[-1])
    speeds = [path_length(each) * each.speed / (span - 1) for each in controls.arrows if each.kind == "flow"]
    if not speeds:
        return controls
    ratio = wanted / (sum(speeds) / len(speeds))
    arrows = (each._replace(speed=each.speed * ratio) if each.kind == "flow" else each for each in controls.arrows)
    return controls._replace(arrows=tuple(arrows))


def with_strength(flow: Tensor, strength: float | None, *, median_strength: float) -> Tensor:
    """Scale a measured field to a motion strength; fields of arrows come at one by `at_strength`.

    The speed of what moves becomes `strength_to_px(strength)`: the mean of |F| in which every pixel counts by its own
    |F|, sum |F|² / sum |F|. Where all that moves has one speed this is that speed, however little of the frame moves;
    slow surroundings and the noise of an estimate count for little.

    Args:
        flow: (N-1, 2, H, W) px per frame.
        strength: As in `strength_to_px`; None keeps the field's own.
        median_strength: As in `strength_to_px`.

    Returns:
        (N-1, 2, H, W) px per frame; a zero field stays zero.
    """
    if strength is None:
        return flow
    wanted = strength_to_px(strength, median_strength=median_strength, width=flow.shape[-1])
    speed = torch.hypot(*flow.double().unbind(-3))
    total = float(speed.sum())
    return flow * (wanted * total / float(speed.square().sum())) if total > 0 else flow


def _by_region(
    arrows: Sequence[Arrow], controls: Controls, spread: Callable[[Sequence[Arrow], Tensor], Tensor], *steps: int
) -> Tensor:
    """The sum (*steps, 2, H, W) of what `spread` makes of the arrows of each region: their own pixels only."""
    made = torch.zeros(*steps, 2, *controls.mask.shape[1:])
    for region in {id(arrow.region): arrow.region for arrow in arrows}.values():
        own = [arrow for arrow in arrows if arrow.region is region]
        made += spread(own, controls.mask) * unclaimed(controls) if region is None else spread(own, region)
    return made


def _paths(arrows: Sequence[Arrow]) -> list[Tensor]:
    return [torch.tensor(arrow.path, dtype=torch.float64) for arrow in arrows]


def _starts(arrows: Sequence[Arrow], span: int) -> tuple[Tensor, Tensor]:
    """The entries of the sparse flow (Eq. 5): points (M, 2) and vectors (M, 2) float64, one a straight part."""
    points, vectors = [], []
    for arrow, path in zip(arrows, _paths(arrows), strict=True):
        lengths = torch.linalg.vector_norm(path.diff(dim=0), dim=1)
        # Each part has its share of the time, by its length, and so all parts have one speed.
        faster = arrow.speed * (lengths.sum() / lengths)[:, None]
        points.append(path[:-1])
        vectors.append(arrow_vectors(path[:-1], path[1:], span) * faster)
    return torch.cat(points), torch.cat(vectors)


def _moving(arrows: Sequence[Arrow], span: int, steps: int) -> tuple[Tensor, Tensor]:
    """Where each arrow's point is before each step, and how it moves: (steps, M, 2) float64 twice."""
    share = torch.arange(steps + 1, dtype=torch.float64) / (span - 1)
    pairs = zip(arrows, _paths(arrows), strict=True)
    places = torch.stack([along_path(path, share * arrow.speed) for arrow, path in pairs], dim=1)
    return places[:-1], places.diff(dim=0)
