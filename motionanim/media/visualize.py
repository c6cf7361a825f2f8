"""Picture files, GIFs, animated WebP files, and pictures of flow fields and drawings."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from motionanim.files import atomic_path
from motionanim.media.image_io import from_uint8, to_pixels

# Segments of the Middlebury colour wheel, each a ramp between neighbours of red, yellow, green, cyan, blue, magenta
# (Baker et al., "A Database and Evaluation Methodology for Optical Flow", 2011).
_SEGMENTS = (15, 6, 4, 11, 13, 6)
_CORNERS = ((1, 0, 0), (1, 1, 0), (0, 1, 0), (0, 1, 1), (0, 0, 1), (1, 0, 1))


def _wheel(like: Tensor) -> Tensor:
    """(55, 3) colours in [0, 1]; entry 0 is red."""
    corners = like.new_tensor(_CORNERS)
    ramps = []
    for index, steps in enumerate(_SEGMENTS):
        share = torch.arange(steps, dtype=like.dtype, device=like.device)[:, None] / steps
        ramps.append(torch.lerp(corners[index], corners[(index + 1) % len(_SEGMENTS)], share))
    return torch.cat(ramps)


def flow_to_rgb(flow: Tensor, largest: float | None = None) -> Tensor:
    """Colour a flow by the Middlebury wheel: the direction is the hue, the length the saturation, zero is white.

    Right is red, down is yellow, left is cyan-blue, up is violet.

    Args:
        flow: (..., 2, H, W) px per frame.
        largest: Length of flow that gets full colour, above 0; longer flow gets it too. None takes the longest of
            `flow`, so that separate pictures are not comparable.

    Returns:
        (..., 3, H, W) float32 in [-1, 1], as frames are.

    Raises:
        ValueError: If `largest` is not above 0.
    """
    if largest is not None and largest <= 0:
        raise ValueError(f"largest={largest}: must be above 0 px per frame")
    flow = flow.detach().float()
    length = torch.linalg.vector_norm(flow, dim=-3)
    if largest is None:
        largest = max(float(length.max()), torch.finfo(torch.float32).tiny)
    wheel = _wheel(flow)
    turn = torch.atan2(flow[..., 1, :, :], flow[..., 0, :, :]) / (2 * torch.pi)
    place = turn.remainder(1) * len(wheel)
    low = place.floor()
    hue = torch.lerp(
        wheel[low.long() % len(wheel)], wheel[(low.long() + 1) % len(wheel)], (place - low)[..., None]
    ).movedim(-1, -3)
    saturation = (length / largest).clamp(max=1).unsqueeze(-3)
    return 2 * (1 - saturation * (1 - hue)) - 1


def sheet(rows: list[Tensor], columns: int = 6) -> Tensor:
    """Videos (T, 3, H, W) as rows of one picture (3, rows * H, columns * W), with frames evenly spread over time."""
    chosen = torch.linspace(0, len(rows[0]) - 1, min(columns, len(rows[0]))).round().long()
    return torch.cat([torch.cat(list(row[chosen]), dim=-1) for row in rows], dim=-2)


def write_picture(path: Path | str, picture: Tensor) -> None:
    """Write (3, H, W) float in [-1, 1], RGB, in the format that the suffix names. An error leaves the earlier file."""
    encoded = cv2.imencode(Path(path).suffix, cv2.cvtColor(to_pixels(picture), cv2.COLOR_RGB2BGR))[1]
    with atomic_path(path) as temporary:
        temporary.write_bytes(encoded.tobytes())  # cv2.imwrite does not report a full disk


LEAST_HEIGHT, MOST_HEIGHT, MOST_WIDTH, GAP = 192, 256, 2048, 4  # px, of `panels`


def panels(pictures: Sequence[Tensor]) -> Tensor:
    """Pictures (3, H, W) of one size in a row, with white gaps; small ones enlarged by whole factors, large ones
    shrunk.

    Returns:
        (3, H', W') in [-1, 1] with H' up to 256 px for large pictures, and at least 192 px unless a picture would be
        wider than 2048 px then.
    """
    height, width = pictures[0].shape[1:]
    scale = min(MOST_HEIGHT / height, MOST_WIDTH / width)
    if scale < 1:
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        height, width = size
        pictures = [F.interpolate(picture[None], size=size, mode="bilinear", antialias=True)[0] for picture in pictures]
    times = max(1, min(-(-LEAST_HEIGHT // height), MOST_WIDTH // width))
    row: list[Tensor] = []
    for picture in pictures:
        large = picture.repeat_interleave(times, 1).repeat_interleave(times, 2)
        row += [large, large.new_ones(3, large.shape[1], GAP)]
    return torch.cat(row[:-1], dim=2)


def draw_controls(
    image: Tensor, paths: Sequence[Sequence[tuple[float, float]]], pins: Sequence[tuple[float, float]], mask: Tensor
) -> Tensor:
    """Draw arrows (red) and pins (blue) over an image (3, H, W) in [-1, 1], darkened outside the mask."""
    shade = torch.where(mask > 0, 1.0, 0.35)
    pixels = ((image + 1) * shade * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy()
    thickness = max(1, round(min(pixels.shape[:2]) / 150))
    for path in paths:
        corners = [(round(x), round(y)) for x, y in path]
        for start, end in pairwise(corners[:-1]):
            cv2.line(pixels, start, end, (255, 40, 40), thickness, cv2.LINE_AA)
        cv2.arrowedLine(pixels, *corners[-2:], (255, 40, 40), thickness, cv2.LINE_AA, tipLength=0.3)
    for x, y in pins:
        cv2.circle(pixels, (round(x), round(y)), 2 * thickness, (40, 80, 255), -1, cv2.LINE_AA)
    return from_uint8(torch.from_numpy(pixels).permute(2, 0, 1))


def gif_picture(frame: Tensor) -> Image.Image:
    """A frame (3, H, W) in [-1, 1] with 256 colours of its own, one byte per pixel."""
    return Image.fromarray(to_pixels(frame)).convert("P", palette=Image.Palette.ADAPTIVE)


def write_gif(path: Path | str, pictures: Sequence[Image.Image], fps: float) -> None:
    """Write pictures of one size as a GIF that repeats for ever, at the speed of `fps`.

    GIF times are in hundredths of a second, and browsers slow down pictures that are shown for less than two. So each
    picture begins at the hundredth nearest to its time, and a picture less than two after the last one is left out.
    """
    starts = [round(100 * number / fps) for number in range(len(pictures) + 1)]
    kept = [0]
    for number in range(1, len(pictures)):
        if min(starts[number] - starts[kept[-1]], starts[-1] - starts[number]) >= 2:
            kept.append(number)
    ends = [*(starts[number] for number in kept[1:]), max(starts[-1], starts[kept[-1]] + 2)]
    durations = [10 * (end - starts[number]) for number, end in zip(kept, ends, strict=True)]
    first, *rest = (pictures[number] for number in kept)
    with atomic_path(path) as temporary:
        first.save(temporary, save_all=True, append_images=rest, duration=durations, loop=0)


def write_webp(path: Path | str, pictures: Sequence[Image.Image], fps: float) -> None:
    """Write pictures of one size as a WebP file that repeats for ever; each begins at the millisecond nearest its time.

    The quality is 90 of 100; the same pictures give the same bytes.
    """
    starts = [round(1000 * number / fps) for number in range(len(pictures) + 1)]
    with atomic_path(path) as temporary:
        pictures[0].save(
            temporary, save_all=True, append_images=pictures[1:], loop=0, quality=90,
            duration=[end - start for start, end in pairwise(starts)],
        )  # fmt: skip
