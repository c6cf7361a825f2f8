"""Finds the videos of several methods, brings them to one look and writes them."""

from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from motionanim.data.stream import as_float
from motionanim.data.video import Video, write_video
from motionanim.files import file_sha256
from motionanim.media.image_io import fit, load_image
from motionanim.media.visualize import write_picture

_VIDEOS = {".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm"}
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")

_HEIGHT = 512  # px; two or three videos of this size fit side by side on a screen
_CLOCK = 60  # frames per second of written videos, as of most screens
_DAMAGE = 12  # blocks along the short side of a damaged video


class Look(NamedTuple):
    """How a video is shown."""

    height: int  # px, even
    width: int
    fps: float  # every round(own rate / fps)-th frame is shown; inf shows all
    seconds: float  # shown from the start; inf shows all, at the video's own rate


def find_videos(folders: dict[str, Path]) -> dict[tuple[str, str], Path]:
    """The videos of each method; a clip's id is its file's name without the suffix.

    Args:
        folders: Method -> folder. Hidden files and files without the suffix of a video are ignored.

    Returns:
        (method, clip) -> file, sorted.

    Raises:
        ValueError: If there are fewer than two methods, a folder is missing or has no video, two files have the same
            clip, or a clip is not in every folder.
    """
    if len(folders) < 2:
        raise ValueError(f"{len(folders)} method folder(s): a comparison needs two or more")
    found: dict[tuple[str, str], Path] = {}
    for method, folder in sorted(folders.items()):
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; give one folder of videos for each method")
        files = [p for p in sorted(folder.iterdir()) if p.suffix.lower() in _VIDEOS and not p.name.startswith(".")]
        if not files:
            raise ValueError(f"{folder}: no video ({', '.join(sorted(_VIDEOS))}) in it")
        for file in files:
            other = found.setdefault((method, file.stem), file)
            if other != file:
                raise ValueError(f"{folder}: {other.name} and {file.name} are both clip {file.stem}: keep one of them")
    owners: dict[str, set[str]] = defaultdict(set)
    for method, clip in found:
        owners[clip].add(method)
    uneven = [
        f"clip {clip} is in {', '.join(sorted(have))} but not in {', '.join(sorted(folders.keys() - have))}"
        for clip, have in sorted(owners.items())
        if have != folders.keys()
    ]
    if uneven:
        more = f"; and {len(uneven) - 10} clips more" if len(uneven) > 10 else ""
        raise ValueError(f"every method needs the same clips: {'; '.join(uneven[:10])}{more}")
    return found


def find_images(folder: Path, clips: list[str]) -> dict[str, Path]:
    """The photo of each clip, by name. Other files are ignored.

    Raises:
        ValueError: If a clip has none.
    """
    found = {}
    for clip in clips:
        fitting = [folder / f"{clip}{suffix}" for suffix in _PICTURES if (folder / f"{clip}{suffix}").is_file()]
        if not fitting:
            raise ValueError(f"{folder}: no image for clip {clip}: {clip}.png is missing (or {', '.join(_PICTURES)})")
        found[clip] = fitting[0]
    return found


def choose_looks(
    videos: dict[tuple[str, str], Path],
    *,
    as_they_are: bool,
    height: int | None,
    fps: float | None,
    seconds: float | None,
) -> dict[tuple[str, str], Look]:
    """One look for all videos, because their size, rate or length would reveal the method.

    All videos get the same height, rate and length. The videos of a clip get the width of the median aspect ratio
    among the methods; the others are cropped to it at the centre.

    Args:
        as_they_are: True shows every video in its own size (less an odd last row or column), rate and length.
        height: px, even; None takes 512, or less so that no video is enlarged.
        fps: Frames per second, as in `Look`; None takes the lowest rate among the videos.
        seconds: Length; None takes that of the shortest video.

    Raises:
        ValueError: If an option is out of range, or a video is shorter than `seconds`.
        motionanim.data.video.VideoError: If a file cannot be read.
    """
    if as_they_are and (height, fps, seconds) != (None, None, None):
        raise ValueError("as-they-are: leaves no room for height, fps or seconds; drop one or the other")
    if height is not None and (height < 64 or height % 2):
        raise ValueError(f"height={height}: must be an even number of px, 64 or more")
    for name, value in (("fps", fps), ("seconds", seconds)):
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{name}={value}: must be above 0")
    infos, sizes = {}, {}
    for key, path in videos.items():
        video = Video(path)
        infos[key], sizes[key] = video.info, video.size()
    if as_they_are:
        return {key: Look(h // 2 * 2, w // 2 * 2, float("inf"), float("inf")) for key, (h, w) in sizes.items()}
    shapes = {
        clip: median(w / h for (_, other), (h, w) in sizes.items() if other == clip) for _, clip in sizes
    }  # width over height
    # The height of each video after cropping to the clip's aspect ratio.
    heights = [min(h, w / shapes[clip]) for (_, clip), (h, w) in sizes.items()]
    height = height or int(min([_HEIGHT, *heights])) // 2 * 2
    fps = fps or min(info.fps for info in infos.values())
    lengths = {key: info.num_frames / info.fps for key, info in infos.items()}
    if seconds is not None:
        short = [f"{videos[key]} ({length:.3g} s)" for key, length in lengths.items() if length < seconds - 0.01]
        if short:
            raise ValueError(f"seconds={seconds}: longer than {', '.join(short[:10])}: give less, or drop the option")
    seconds = seconds or min(lengths.values())
    return {key: Look(height, round(height * shapes[key[1]] / 2) * 2, fps, seconds) for key in videos}


class Shot(NamedTuple):
    """A video as it will be written."""

    frames: Tensor  # (T, 3, H, W) in [-1, 1]
    rate: float  # frames per second
    sources: int  # different frames among them
    fps: float  # the rate at which they change


def read(path: Path, look: Look) -> Shot:
    """Read a video with a look.

    Unless the look is the video's own, each frame is repeated until the next one on a clock of 60 ticks a second, so
    that methods with 7, 7.5 and 8 frames a second keep their speed in files of one rate and length. These frames are
    float16: a second of 512 x 910 px takes 170 MB.
    """
    video = Video(path)
    indices, fps = video.grid(fps=look.fps, stride=None)
    held = look.seconds < float("inf")
    ticks = np.arange(max(1, round(look.seconds * _CLOCK))) if held else np.arange(len(indices))
    places = (ticks * fps / _CLOCK + 1e-6).astype(int).clip(max=len(indices) - 1) if held else ticks
    pixels = video.read(indices[: places[-1] + 1], height=look.height, width=look.width)
    top, left = (pixels.shape[1] - look.height) // 2, (pixels.shape[2] - look.width) // 2
    frames = as_float(torch.from_numpy(pixels[:, top : top + look.height, left : left + look.width]))
    if not held:
        return Shot(frames, fps, len(frames), fps)
    return Shot(frames.half()[torch.from_numpy(places)], _CLOCK, len(frames), fps)


def damage(frames: Tensor, generator: torch.Generator) -> Tensor:
    """A damaged copy of frames (T, 3, H, W) for attention checks: coarse blocks, tenths of a second in random order.

    Anyone who looks prefers the intact video on every question. Two identical videos would be no check, because
    attentive participants may prefer either.
    """
    height, width = frames.shape[-2:]
    cell = max(1, min(height, width) // _DAMAGE)
    coarse = F.interpolate(frames.float(), size=(max(1, height // cell), max(1, width // cell)), mode="area")
    # Single frames in random order would only flicker at 60 frames a second.
    runs = torch.arange(len(frames)).split(_CLOCK // 10)
    order = torch.cat([runs[k] for k in torch.randperm(len(runs), generator=generator)])
    return F.interpolate(coarse[order].to(frames.dtype), size=(height, width), mode="nearest")


def write(path: Path, frames: Tensor, rate: float) -> str:
    """Encode as H.264, which all browsers play, without the source's metadata.

    Returns:
        The SHA-256 of the file.
    """
    write_video(path, frames, rate)
    return file_sha256(path)


def write_image(path: Path, source: Path, look: Look) -> str:
    """Write a photo, resized and cropped to the look's size; returns the SHA-256 of the file."""
    write_picture(path, fit(load_image(source), look.height, look.width)[0])
    return file_sha256(path)
