"""The files of `animate`: video, picture, record, and on request a GIF, a WebP and PNG files; all of them or none."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from motionanim.animation.moving_photo import Scene
from motionanim.cli.progress import Progress
from motionanim.data.video import write_video
from motionanim.files import atomic_path, content_sha256, made_before
from motionanim.media.image_io import to_pixels
from motionanim.media.visualize import (
    draw_controls,
    flow_to_rgb,
    gif_picture,
    panels,
    write_gif,
    write_picture,
    write_webp,
)
from motionanim.motion.kinds import peak_velocity


def write_files(
    files: Mapping[str, Path],
    videos: Sequence[Iterable[Tensor]],
    *,
    num_frames: int,
    fps: float,
    overview: Sequence[Tensor],
    record: Mapping[str, Any],
    kept: list[Tensor] | None,
    progress: Progress,
) -> None:
    """Write all files or, on an error such as a full disk, none.

    Args:
        files: From `files.output_files`.
        videos: Their frames (3, H, W) in [-1, 1], one at a time; several videos stand side by side.
        overview: The first panels of the overview picture, from `overview`; five frames of the first video follow.
        record: Content of the JSON file, read after the last frame. "files" is added to it: names and SHA-256 of all
            files that runs left under this name, by which a later run knows which files it may replace.
        kept: Collects the frames too.
        progress: Counts each frame of each video, as its stage "frames".
    """
    with ExitStack() as stack, _naming(files["video"]):
        paths = {name: stack.enter_context(atomic_path(file)) for name, file in files.items() if name != "frames"}
        if "frames" in files:
            folder = files["frames"]
            made = stack.enter_context(TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}."))
            paths["frames"] = Path(made) / "new"
        shown = _write_frames(paths, videos, num_frames, fps, kept, progress)
        write_picture(paths["picture"], panels([*overview, *shown]))
        made = {files[name].name: content_sha256(path) for name, path in paths.items() if name != "record"}
        text = json.dumps({**record, "files": made_before(files["record"]) | made}, indent=2)
        paths["record"].write_text(text + "\n", encoding="utf-8")
        if "frames" in files:
            shutil.rmtree(folder, ignore_errors=True)  # checked before: it holds an earlier run's frames only
            paths["frames"].rename(folder)


@contextmanager
def _naming(out: Path) -> Iterator[None]:
    """Adds the name of the video to an OSError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"out={out} is not written ({reason}): free some space or choose another folder") from error


def overview(scene: Scene) -> list[Tensor]:
    """Panels of input, arrows, dense field, refined field if T made one, and all kinds of motion if there are any."""
    image, controls, fields = scene
    steps = [fields.dense] if fields.refined is fields.dense else [fields.dense, fields.refined]
    if not fields.parts.flow_only:
        steps = [*(step for step in steps if step.any()), peak_velocity(fields.parts)]
    largest = max(*(float(torch.linalg.vector_norm(step, dim=0).max()) for step in steps), 1e-6)
    arrows = draw_controls(image, [arrow.path for arrow in controls.arrows], controls.pins, controls.mask)
    return [panels([picture]) for picture in (image, arrows, *(flow_to_rgb(step, largest) for step in steps))]


def _write_frames(
    paths: Mapping[str, Path], videos: Sequence[Iterable[Tensor]], num_frames: int, fps: float,
    kept: list[Tensor] | None, progress: Progress,
) -> list[Tensor]:  # fmt: skip
    """Write video, GIF, WebP and PNG files; returns panels of five frames."""
    chosen, shown, coloured = torch.linspace(0, num_frames - 1, 5).round().int().tolist(), [], []
    exact: list[Image.Image] = []  # of the WebP: 3 bytes per pixel of the video

    def passing() -> Iterator[Tensor]:
        for number, parts in enumerate(zip(*videos, strict=True)):
            frame = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
            shown.extend([panels(parts[:1])] * chosen.count(number))
            if "frames" in paths:
                write_picture(paths["frames"] / f"{number:05}.png", frame)
            if "gif" in paths:
                coloured.append(gif_picture(frame))
            if "webp" in paths:
                exact.append(Image.fromarray(to_pixels(frame)))
            if kept is not None:
                kept.append(frame)
            yield frame
            progress.done("frames", len(parts))  # encoded

    write_video(paths["video"], passing(), fps)
    if "gif" in paths:
        write_gif(paths["gif"], coloured, fps)
    if "webp" in paths:
        write_webp(paths["webp"], exact, fps)
    return shown
