"""What the page shows before a video is made: motion fields, regions grown from a stroke, and T's proposal."""

import json
import math
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from motionanim.animation.drawn import is_refined
from motionanim.animation.moving_photo import looped
from motionanim.media.image_io import Fit, from_uint8
from motionanim.models.flow_refiner import FlowRefiner
from motionanim.motion.controls import Fields, at_strength, fit_controls, motion_field
from motionanim.motion.drawing import Controls, parse_controls
from motionanim.motion.kinds import doubts
from motionanim.motion.regions import grow_region
from motionanim.page.outline import outlined
from motionanim.page.photos import Photo, Photos
from motionanim.page.settings import Settings

SIDE = 512  # px of the longer side at which regions are proposed
GRID = 256  # points of the longer side of a field that is sent
SIDES = 64, 1024  # px, limits of the side at which a field is computed
MOVES = 0.1  # share of the peak speed above which T proposes that a pixel moves


class Preview:
    """Computes fields as the job of `motionanim.animate` will. All calls must come from one thread.

    Args:
        config: conf/animate.yaml as the jobs compose it.
        photos: Of the working folder.
    """

    def __init__(self, config: DictConfig, photos: Photos) -> None:
        # Resolved once: an interpolation takes milliseconds each time.
        self._photos, self._config = photos, OmegaConf.create(OmegaConf.to_container(config, resolve=True))
        self._options = {key: each for key, each in self._config.controls.items() if not key.startswith("_")}
        self._refiner = None if config.refiner is None else FlowRefiner.load(str(config.refiner)).eval()

    def field(self, photo: Photo, drawing: Any, settings: Settings, side: int) -> bytes:
        """The motion of a drawing, in the format of the page: the length of a JSON text, the text, and arrays.

        Args:
            side: Longer side in px at which the field is computed.

        Raises:
            ValueError: If the drawing or the side cannot be used.
        """
        start = time.perf_counter()
        if not isinstance(side, int) or not SIDES[0] <= side <= SIDES[1]:
            raise ValueError(f"side={str(side)[:40]}: must be a whole number from {SIDES[0]} to {SIDES[1]} px")
        mapping = _working(photo, side)
        controls, notes = self._read(photo, drawing, mapping, settings["strength"])
        fields = self._fields(photo, controls, mapping, settings)
        parts = looped(fields.parts, settings["frames"]) if settings["loop"] else fields.parts
        scale = np.array(mapping.scale)
        grid = _sized(photo, min(GRID, max(mapping.width, mapping.height)))
        arrays = bytearray()

        def stored(array: np.ndarray) -> int:
            arrays.extend(array.tobytes())
            return len(arrays) - array.nbytes

        def vectors(field: Tensor) -> int:
            pixels = cv2.resize(field.permute(1, 2, 0).numpy(), grid, interpolation=cv2.INTER_AREA)
            return stored((pixels / scale).astype(np.float16))

        def region(mask: Tensor) -> int:
            return stored(np.uint8(255) * (cv2.resize(mask[0].numpy(), grid, interpolation=cv2.INTER_AREA) > 0.5))

        # First all of two bytes, then all of one, so that each begins at a multiple of its size.
        told = {"width": grid[0], "height": grid[1], "flow": vectors(parts.flow)}
        told["sways"] = [
            {"offset": vectors(sway.amplitude), "period": sway.period, "phase": sway.phase} for sway in parts.sways
        ]
        told["turns"] = [
            {"offset": region(turn.region), "center": _from_working(turn.center, mapping), "angle": turn.angle}
            for turn in parts.turns
        ]
        told["moves"] = [
            {"offset": region(move.region), "offsets": (move.offsets.numpy() / scale).round(2).tolist()}
            for move in parts.moves
        ]
        told["notes"] = notes
        told["seconds"] = round(time.perf_counter() - start, 4)
        text = json.dumps(told).encode()
        text += b" " * (-(4 + len(text)) % 8)
        return len(text).to_bytes(4, "little") + text + bytes(arrays)

    def magic(self, photo: Photo, brush: Any, radius: Any, pins: Any) -> dict[str, Any]:
        """The region that a stroke marks, and its share of the photo.

        Raises:
            ValueError: If the stroke or the pins are no points of the photo.
        """
        mapping = _working(photo, SIDE)
        stroke = {"arrows": [], "pins": pins, "regions": {"stroke": {"brush": brush, "radius": radius}}}
        # The whole drawing is checked in the photo's pixels, so that messages name them.
        self.parsed(photo, stroke)
        line, points = (
            mapping.points(torch.tensor(each, dtype=torch.float64).view(-1, 2)).tolist() for each in (brush, pins or [])
        )
        region = grow_region(self._image(photo, mapping), line, radius * math.sqrt(math.prod(mapping.scale)), points)
        return _region(region, photo)

    def proposal(self, photo: Photo, drawing: Any, settings: Settings) -> dict[str, Any]:
        """The region that T would move, given the free flow arrows of a drawing, and its share of the photo.

        Raises:
            ValueError: If the drawing cannot be used, or has no such arrow.
        """
        mapping = _working(photo, SIDE)
        controls, _ = self._read(photo, drawing, mapping, settings["strength"])
        free = tuple(arrow for arrow in controls.arrows if arrow.kind == "flow" and arrow.region is None)
        asked = Controls(free, controls.pins, torch.ones_like(controls.mask))
        if not is_refined(self._config, asked):
            raise ValueError("the flow refiner needs a flow arrow without a region: draw one, or remove its region")
        fields = self._fields(photo, asked, mapping, settings)
        speed = torch.linalg.vector_norm(fields.refined, dim=0)
        return _region((speed > MOVES * speed.max())[None].float(), photo)

    def check(self, photo: Photo, drawing: Any, settings: Settings) -> None:
        """Raises ValueError if a job could not use the drawing on the photo: before it waits in the queue."""
        controls, _ = self._read(photo, drawing, _working(photo, SIDE), None)
        if settings["renderer"] == "eulerian" and not controls.arrows:
            raise ValueError("no arrows: draw what moves and which way")
        if settings["loop"] and any(arrow.kind == "move" for arrow in controls.arrows):
            raise ValueError("a loop cannot hold kind=move, which does not come back: use loop=false, or kind=sway")

    def parsed(self, photo: Photo, drawing: Any) -> Controls:
        """The drawing in the photo's pixels. Raises ValueError if a job could not use it."""
        drawing = in_folder(drawing, self._photos.folder)
        return parse_controls(drawing, torch.ones(1, photo.height, photo.width))

    def _fields(self, photo: Photo, controls: Controls, mapping: Fit, settings: Settings) -> Fields:
        """The fields of a drawing in working pixels."""
        refined = is_refined(self._config, controls)
        return motion_field(
            controls, num_frames=settings["frames"], strength=settings["strength"],
            image=self._image(photo, mapping) if refined else None, refiner=self._refiner if refined else None,
            stepwise=False, **self._options,
        )  # fmt: skip

    def _read(self, photo: Photo, drawing: Any, mapping: Fit, strength: float | None) -> tuple[Controls, list[str]]:
        """The drawing in working pixels, and notes on what looks wrong in it.

        The masks of a photo of 12 megapixels take seconds. So a drawing is read at the working size if it can be used,
        else in the photo's pixels, which the error names.
        """
        try:
            shrunk = _shrunk(drawing, photo, mapping)
            controls = parse_controls(shrunk, torch.ones(1, mapping.height, mapping.width))
            # A start that was moved into its region may be too far outside it in the photo's pixels.
            if [arrow.path[0] for arrow in controls.arrows] != [tuple(arrow["path"][0]) for arrow in shrunk["arrows"]]:
                raise ValueError("a start outside its region")
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError, OverflowError):
            controls = fit_controls(self.parsed(photo, drawing), mapping)
        return controls, self._notes(controls, mapping, strength)

    def _notes(self, controls: Controls, mapping: Fit, strength: float | None) -> list[str]:
        span = self._config.controls.span
        if strength is not None:
            median = self._config.scale.median_strength
            controls = at_strength(controls, strength, span=span, median_strength=median)
        return doubts(controls, span=span, crossings=True, scale=1 / mapping.scale[0])

    def _image(self, photo: Photo, mapping: Fit) -> Tensor:
        """The photo (3, h, w) in [-1, 1] at the working size."""
        size = mapping.width, mapping.height
        pixels = cv2.resize(self._photos.pixels(photo), size, interpolation=cv2.INTER_AREA)
        return from_uint8(torch.from_numpy(pixels).permute(2, 0, 1))


def in_folder(drawing: Any, folder: Path) -> dict[str, Any]:
    """A drawing as `parse_controls` takes it, its mask files in `folder`.

    Raises:
        ValueError: If it is no drawing, or a mask file lies elsewhere.
    """
    drawing = {"arrows": drawing} if isinstance(drawing, list) else drawing
    named = (drawing.get("regions") or {}) if isinstance(drawing, dict) else None
    if not isinstance(named, dict):
        raise ValueError(f"drawing={str(drawing)[:80]}: must be an object with arrows, pins and regions")
    arrows = drawing.get("arrows") or []

    def placed(region: Any) -> Any:
        if not isinstance(region, str):
            return region
        if Path(region).name != region:
            raise ValueError(f"region={region[:80]}: must be a mask file in the working folder, or a name from regions")
        return str(folder / region)

    def opened(arrow: Any) -> Any:
        region = arrow.get("region") if isinstance(arrow, dict) else None
        return {**arrow, "region": placed(region)} if isinstance(region, str) and region not in named else arrow

    arrows = [opened(arrow) for arrow in arrows] if isinstance(arrows, list) else arrows
    return {**drawing, "arrows": arrows, "regions": {name: placed(region) for name, region in named.items()}}


def _sized(photo: Photo, side: int) -> tuple[int, int]:
    """Width and height of a photo whose longer side is at most `side` px."""
    scale = min(1.0, side / max(photo.width, photo.height))
    return max(1, round(photo.width * scale)), max(1, round(photo.height * scale))


def _working(photo: Photo, side: int) -> Fit:
    """The mapping to the size at which fields are computed."""
    width, height = _sized(photo, side)
    return Fit((width / photo.width, height / photo.height), 0, 0, height, width)


def _region(region: Tensor, photo: Photo) -> dict[str, Any]:
    share = float(region.mean())
    return {"region": outlined(region[0].numpy() > 0, photo.width, photo.height), "share": share}


def _from_working(point: tuple[float, float], mapping: Fit) -> list[float]:
    return [round((x + 0.5) / scale - 0.5, 2) for x, scale in zip(point, mapping.scale, strict=True)]


def _shrunk(drawing: Any, photo: Photo, mapping: Fit) -> dict[str, Any]:
    """A drawing in working pixels, each arrow as a mapping.

    Raises:
        One of Python's or PyTorch's errors: If `parse_controls` might refuse it, or reads mask files.
    """
    drawing = in_folder(drawing, Path())
    if set(drawing) - {"arrows", "pins", "regions"}:
        raise ValueError("an unknown key")
    scale = math.sqrt(math.prod(mapping.scale))
    border = torch.tensor([photo.width - 1, photo.height - 1])
    most = torch.tensor([mapping.width - 1, mapping.height - 1], dtype=torch.float64)

    def around(points: Any) -> Tensor:
        given = torch.tensor(points, dtype=torch.float64)
        if given.ndim != 2 or given.shape[1] != 2:
            raise ValueError("no points")
        return mapping.points(given)

    def inside(points: Any) -> list[list[float]]:
        given = torch.tensor(points, dtype=torch.float64)
        if not bool(((given >= 0) & (given <= border)).all()):
            raise ValueError("a point outside")
        # The photo's outermost pixels lie up to half a pixel outside the outermost working pixels.
        return torch.minimum(around(points).clamp(min=0), most).tolist()

    def part(given: Any) -> Any:
        if not isinstance(given, dict):
            return around(given).tolist()
        sized = {"radius": given["radius"] * scale} if "radius" in given else {}
        return {**given, **{key: around(given[key]).tolist() for key in given.keys() & {"brush", "erase"}}, **sized}

    def region(given: Any) -> Any:
        if given is None or (isinstance(given, str) and given in drawing["regions"]):
            return given
        if isinstance(given, str):
            raise ValueError("a mask file")
        return part(given) if isinstance(given, dict) else [part(each) for each in given]

    def arrow(given: Any) -> dict[str, Any]:
        if not isinstance(given, dict):
            ends, speed = [given[:2], given[2:4]], given[4:]
            if len(speed) > 1:
                raise ValueError("too many numbers")
            given = {"path": ends, **({"speed": speed[0]} if speed else {})}
        center = {"center": around([given["center"]])[0].tolist()} if given.get("center") is not None else {}
        return {**given, "path": inside(given["path"]), "region": region(given.get("region")), **center}

    return {
        "arrows": [arrow(each) for each in drawing["arrows"]],
        "pins": inside(drawing["pins"]) if drawing.get("pins") else [],
        "regions": {name: region(each) for name, each in drawing["regions"].items()},
    }
