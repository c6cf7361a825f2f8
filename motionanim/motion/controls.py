"""The motion field that a drawing asks for (Sec. 3.2, Eq. 5-8).

Steps: `drawing.parse_controls` reads it in the photo's pixels, `fit_controls` brings it to the model's pixels, and
`motion_field` computes the field.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

from motionanim.media.image_io import Fit, model_size, stretched
from motionanim.motion.drawing import Arrow, Controls, Point, path_length, unclaimed
from motionanim.motion.flow import resize_flow, strength_to_px
from motionanim.motion.kinds import Parts, Sway, rigid_parts, velocity
from motionanim.motion.paths import path_flow, path_hint
from motionanim.motion.sparse_to_dense import Edge, Normalized, along_path, arrow_vectors, bounded_flow
from motionanim.types import Hint


class Refiner(Protocol):
    """T, the flow refiner: `models.flow_refiner.FlowRefiner`."""

    side: int  # square root of the number of pixels of its training pictures

    def refine(self, image: Tensor, hint: Hint, mask: Tensor) -> Tensor: ...


class Fields(NamedTuple):
    """The motion field and the fields it was made from, px per frame."""

    dense: Tensor  # (2, H, W) Eq. 5-7 of the flow arrows, at the first frame
    refined: Tensor  # (2, H, W) T's flow of the same arrows; `dense` itself where T is not used
    per_step: Tensor  # (N-1, 2, H, W) of all kinds; steady flow alone is one piece of memory, expanded
    parts: Parts  # the same by kind, for renderers; its flow is `refined`


def fit_controls(controls: Controls, fit: Fit) -> Controls:
    """Bring a drawing from the photo's pixels to the model's.

    Raises:
        ValueError: If a point is outside the part of the photo that the model sees, or no pixel of the mask or of a
            region is inside it.
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
        return moved(points)

    def moved(points: Sequence[Point]) -> tuple[Point, ...]:
        return tuple((x, y) for x, y in fit.points(torch.tensor(points, dtype=torch.float64)).tolist())

    fitted: dict[int, Tensor] = {}  # arrows that share a region still share it
    arrows = []
    for i, arrow in enumerate(controls.arrows):
        if arrow.region is not None and id(arrow.region) not in fitted:
            try:
                fitted[id(arrow.region)] = fit.mask(arrow.region)
            except ValueError as error:
                raise ValueError(f"arrows[{i}]: region: {error}") from error
        region = None if arrow.region is None else fitted[id(arrow.region)]
        center = None if arrow.center is None else moved([arrow.center])[0]
        arrows.append(arrow._replace(path=move(f"arrows[{i}]", arrow.path), region=region, center=center))
    pins = tuple(move(f"pins[{i}]", [pin])[0] for i, pin in enumerate(controls.pins))
    return Controls(tuple(arrows), pins, fit.mask(controls.mask))


def crop_controls(controls: Controls, height: int, width: int) -> Controls:
    """Cut the mask and all regions to their upper left height x width px."""
    cut = {id(arrow.region): arrow.region[:, :height, :width] for arrow in controls.arrows if arrow.region is not None}
    arrows = tuple(arrow._replace(region=cut.get(id(arrow.region))) for arrow in controls.arrows)
    return controls._replace(arrows=arrows, mask=controls.mask[:, :height, :width])


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
    """The motion field of a clip from a drawing: Eq. 5-7, or T instead of Eq. 7, and the motion of all other kinds.

    A flow arrow of speed 1 moves content from its tail to its tip in `span` - 1 steps, at constant speed along its
    path. Nothing moves outside the mask. Arrows that share a region share it by Eq. 6; regions do not influence each
    other.

    Args:
        controls: In the pixels of the field; its mask gives H and W.
        num_frames: N of the clip, at least 2.
        span: Frames that an arrow of speed 1 takes, at least 2. The clip's own number is the paper's Eq. 5; the model's
            window keeps the speed when a user asks for a longer clip.
        field: "eulerian": one steady field. "advected": the field of the flow arrows is computed anew for each step,
            around the points that moved along their paths; after their tips they go straight on.
        entries: Of a steady field. "path": the whole path of an arrow is its entry, so that moved content arrives at
            the tip (`motion.paths.path_flow`). "start": each straight part of a path is an entry at its start, as in
            Eq. 5.
        sigma, threshold, threshold_on, normalized, edge: As in `sparse_to_dense.bounded_flow`; pins need "exact".
        median_strength, strength: As in `at_strength`; a strength needs both.
        image: (3, H, W) in [-1, 1]; `refiner` needs it.
        refiner: T. It decides how far flow arrows reach where no region and no mask bounds them, and works on the image
            at its own size. It is not used elsewhere, nor where `may_refine` is False.
        stepwise: False leaves `per_step` empty, (0, 2, H, W): for a large photo it can take gigabytes.

    Returns:
        The fields, float32; all zero without arrows.

    Raises:
        ValueError: If an option is not as above, or there are flow arrows and none of them moves anything.
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
    """Whether T can use such arrows: it was trained on whole paths with exact weights, in a steady field."""
    return field == "eulerian" and entries == "path" and normalized == "exact"


def _refined(
    refiner: Refiner, image: Tensor, arrows: Sequence[Arrow], pins: Tensor, *, span: int, sigma: float,
    normalized: Normalized,
) -> Tensor:  # fmt: skip
    """The flow that T makes of arrows on an image of any size: (2, H, W) px per frame."""
    height, width = image.shape[1:]
    small, mapping = stretched(image, *model_size(height, width, area=refiner.side**2, multiple=1))
    paths = [mapping.points(path) for path in _paths(arrows)]
    speeds = [
        float(torch.linalg.vector_norm(path.diff(dim=0), dim=1).sum()) * arrow.speed / (span - 1)
        for path, arrow in zip(paths, arrows, strict=True)
    ]
    hint = path_hint(paths, speeds, mapping.points(pins), *small.shape[1:], sigma=sigma, normalized=normalized)
    flow = refiner.refine(small[None], Hint(*(each[None] for each in hint)), torch.ones_like(small[None, :1]))[0]
    return resize_flow(flow, height, width)


def at_strength(controls: Controls, strength: float, *, span: int, median_strength: float) -> Controls:
    """Scale flow arrows to a motion strength: their mean speed becomes `strength_to_px(strength)`, their ratios stay.

    A strength is the speed of the content that an arrow moves, because that is what a viewer sees. So it is the same
    with and without a mask, for an object and for a whole sky, and an advected field travels at it. Eq. 8 is the mean
    over the whole frame: in a small region the same number would be a much faster motion, up to leaving the picture.
    Without a mask a mean over all moving pixels would count the slow surroundings of an arrow. The model is told Eq. 8
    of the resulting field. The other kinds of motion keep their speed: they define their own ends.

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


def _by_region(
    arrows: Sequence[Arrow], controls: Controls, spread: Callable[[Sequence[Arrow], Tensor], Tensor], *steps: int
) -> Tensor:
    """The sum (*steps, 2, H, W) over regions of `spread` applied to the arrows of each region and its pixels."""
    made = torch.zeros(*steps, 2, *controls.mask.shape[1:])
    for region in {id(arrow.region): arrow.region for arrow in arrows}.values():
        own = [arrow for arrow in arrows if arrow.region is region]
        made += spread(own, controls.mask) * unclaimed(controls) if region is None else spread(own, region)
    return made


def _paths(arrows: Sequence[Arrow]) -> list[Tensor]:
    return [torch.tensor(arrow.path, dtype=torch.float64) for arrow in arrows]


def _starts(arrows: Sequence[Arrow], span: int) -> tuple[Tensor, Tensor]:
    """The entries of the sparse flow (Eq. 5), one for each straight part: points and vectors, (M, 2) float64 each."""
    points, vectors = [], []
    for arrow, path in zip(arrows, _paths(arrows), strict=True):
        lengths = torch.linalg.vector_norm(path.diff(dim=0), dim=1)
        # Each part takes a share of the time in proportion to its length, so that all parts have one speed.
        faster = arrow.speed * (lengths.sum() / lengths)[:, None]
        points.append(path[:-1])
        vectors.append(arrow_vectors(path[:-1], path[1:], span) * faster)
    return torch.cat(points), torch.cat(vectors)


def _moving(arrows: Sequence[Arrow], span: int, steps: int) -> tuple[Tensor, Tensor]:
    """Place of each arrow's point before each step, and its motion in that step: (steps, M, 2) float64 each."""
    share = torch.arange(steps + 1, dtype=torch.float64) / (span - 1)
    pairs = zip(arrows, _paths(arrows), strict=True)
    places = torch.stack([along_path(path, share * arrow.speed) for arrow, path in pairs], dim=1)
    return places[:-1], places.diff(dim=0)
