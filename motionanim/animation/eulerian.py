"""The photo in motion at its own size, without a network."""

from collections.abc import Iterator

from torch import Tensor

from motionanim.animation.moving_photo import Flowing, Photo, looped, photo_frames
from motionanim.motion.controls import Fields
from motionanim.motion.drawing import Controls


def check(*, field: str, loras: object) -> None:
    """Raises ValueError if a setting asks for what this renderer has not."""
    if loras or field != "eulerian":
        raise ValueError("renderer=eulerian takes no loras, and one steady field: controls.field=eulerian")


def render(
    image: Tensor, controls: Controls, fields: Fields, *, num_frames: int, flowing: Flowing, loop: bool
) -> Iterator[Tensor]:
    """Frames (3, H, W) in [-1, 1] of an image (3, H, W) and its drawing; see `photo_frames`."""
    parts = looped(fields.parts, num_frames) if loop else fields.parts
    return photo_frames(Photo(image, controls.mask, parts), num_frames=num_frames, flowing=flowing)
