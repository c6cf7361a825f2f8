"""From a checked config to the written files: the part of `animate` that needs PyTorch, whose import takes seconds."""

import json
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from motionanim.animation.drawn import is_refined, plain, read_drawing
from motionanim.animation.loaded import Loaded
from motionanim.animation.moving_photo import PIXEL, Scene, photo_frames
from motionanim.animation.output import overview, write_files
from motionanim.cli.command import quiet
from motionanim.cli.progress import Progress, Watch
from motionanim.cli.settings import lora_weights, quoted
from motionanim.data.video import check_video_size
from motionanim.files import check_kept, file_sha256
from motionanim.media.image_io import fit, load_image, model_size, stretched
from motionanim.models.flow_refiner import FlowRefiner
from motionanim.models.svd.bases import network_motion
from motionanim.motion.controls import crop_controls, fit_controls
from motionanim.motion.drawing import Controls, inlined, region_files
from motionanim.motion.flow import resize_flow, strength_to_px
from motionanim.motion.kinds import Parts

VERSIONS = ("torch", "diffusers", "motionanim")

# Larger videos are only written, not returned: each pixel takes 12 bytes, twice while the frames are stacked.
MAX_PIXELS = 150_000_000


def make(
    config: DictConfig, *, strengths: list[float | None], files: dict[str, Path], repeat: Sequence[str], keep: bool,
    watch: Watch | None, loaded: Loaded | None,
) -> tuple[Tensor | None, dict[str, Any]]:  # fmt: skip
    """Animate as a composed conf/animate.yaml says, and write the files.

    Args:
        strengths: One video each, side by side.
        files: From `files.output_files`.
        repeat: Hydra overrides of the run, without arrows and out, for the record.
        keep: Return the frames too.
        watch: Told of the progress instead of the bar.
        loaded: Keeps the model for the caller's next job; None loads it for this one.

    Returns:
        The frames (N, 3, H, W) in [-1, 1], None without `keep` or above MAX_PIXELS in all; and the record.
    """
    photo = load_image(config.image)
    _check_size(config, *photo.shape[1:], videos=len(strengths))
    controls, notes = read_drawing(config, photo)
    arrows = plain(config.arrows)
    masks = region_files(arrows)
    check_kept(files, masks)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    arrows = inlined(arrows) if isinstance(arrows, str) else arrows
    drawing = None if arrows is None else json.dumps(arrows, ensure_ascii=False)
    again = [*repeat, f"arrows={quoted(drawing)}", f"out={quoted(config.out)}"]
    read = [config.image, *([] if config.mask in (None, "auto") else [config.mask]), *masks]
    record: dict[str, Any] = {
        "repeat": shlex.join(["python", "-m", "motionanim.animate", *again]),
        "command": OmegaConf.to_container(config, resolve=True) | {"arrows": arrows},
        "versions": {name: version(name) for name in VERSIONS} | {"python": sys.version.split()[0]},
        "notes": notes,
    }
    start = time.perf_counter()
    image, controls = _at_size(config, photo, controls)
    refiner = _refiner(config, controls)
    if refiner is not None:
        read.append(config.refiner)
        notes.append(_proposal(config, image, controls, refiner, files["picture"]))
        warnings.warn(notes[-1], stacklevel=2)
    with Progress(shown=config.progress and watch is None, runs=len(strengths), watch=watch) as progress:
        progress.expect("frames", config.frames, seconds=PIXEL * image[0].numel())
        scenes = partial(_scenes, config, strengths, refiner)
        if config.renderer == "eulerian":
            videos, shown, details = _eulerian(config, image, controls, scenes)
        else:
            videos, shown, details = _diffusion(
                config, image, controls, scenes, strengths, progress=progress, loaded=loaded or Loaded()
            )
        pixels = config.frames * len(videos) * shown[0].image[0].numel()
        kept: list[Tensor] | None = [] if keep and pixels <= MAX_PIXELS else None
        record |= details
        read += [path for path, _ in lora_weights(config.loras)]
        record["sha256"] = {str(path): file_sha256(Path(path)) for path in read}

        def timed() -> Iterator[Tensor]:
            yield from videos[0]
            record["seconds"] = time.perf_counter() - start

        write_files(
            files, [timed(), *videos[1:]], num_frames=config.frames, fps=config.fps, overview=overview(shown[0]),
            record=record, kept=kept, progress=progress,
        )  # fmt: skip
    return None if kept is None else torch.stack(kept), record


def _check_size(config: DictConfig, height: int, width: int, *, videos: int) -> None:
    """Raises ValueError if a photo of that size gives no legal video."""
    listed = OmegaConf.is_list(config.size)
    if min(height, width) < 2 and not listed:
        raise ValueError(f"{config.image} is {width}x{height} px: a video needs at least 2x2; give size=[h,w]")
    if config.size == "model" and config.renderer == "diffusion":
        return
    height, width = config.size if listed else (height, width)
    try:
        check_video_size(height, width * videos)
    except ValueError as error:
        beside = f", {videos} videos side by side" if videos > 1 else ""
        raise ValueError(f"size={config.size}{beside}: {error}, such as size=[1080,1920]") from error


def _at_size(config: DictConfig, photo: Tensor, controls: Controls) -> tuple[Tensor, Controls]:
    """Photo and drawing at the video's size; its sides are even, because H.264 requires it."""
    if OmegaConf.is_list(config.size):
        image, mapping = fit(photo, *config.size)
        return image, fit_controls(controls, mapping)
    height, width = (side - side % 2 for side in photo.shape[1:])
    return photo[:, :height, :width], crop_controls(controls, height, width)


Scenes = Callable[..., list[Scene]]  # `_scenes` with all but picture and drawing bound
# Videos as frames (3, H, W) one at a time, the scene of each, and entries of the record.
Made = tuple[Sequence[Iterable[Tensor]], Sequence[Scene], dict[str, Any]]


def _scenes(
    config: DictConfig, strengths: list[float | None], refiner: FlowRefiner | None, image: Tensor, controls: Controls,
    *, stepwise: bool,
) -> list[Scene]:  # fmt: skip
    """The drawing with its motion field at each strength."""
    make = partial(hydra.utils.instantiate(config.controls), num_frames=config.frames, stepwise=stepwise)
    fields = [make(controls, strength=each, image=image, refiner=refiner) for each in strengths]
    return [Scene(image, controls, each) for each in fields]


def _refiner(config: DictConfig, controls: Controls) -> FlowRefiner | None:
    """T, if it will be used."""
    if not is_refined(config, controls):
        return None
    try:
        return FlowRefiner.load(str(config.refiner)).eval()
    except FileNotFoundError as error:
        raise ValueError(f"refiner={config.refiner}: no such file; refiner=null animates without it") from error


def _proposal(config: DictConfig, image: Tensor, controls: Controls, refiner: FlowRefiner, picture: Path) -> str:
    """A note on how much of the photo T moves, made before the video so that a user can stop."""
    small, mapping = stretched(image, *model_size(*image.shape[1:], area=refiner.side**2, multiple=1))
    free = tuple(arrow for arrow in controls.arrows if arrow.kind == "flow" and arrow.region is None)
    asked = fit_controls(Controls(free, controls.pins, torch.ones_like(image[:1])), mapping)
    field = hydra.utils.instantiate(config.controls)(
        asked, num_frames=config.frames, image=small, refiner=refiner, stepwise=False
    ).refined
    speed = torch.linalg.vector_norm(field, dim=0)
    share = float((speed > 0.1 * speed.max()).float().mean())
    return (
        f"T proposes that {share:.0%} of the photo move; {picture} shows it: with mask=FILE you decide, refiner=null "
        "takes the arrows as they are"
    )


def _eulerian(config: DictConfig, image: Tensor, controls: Controls, scenes_of: Scenes) -> Made:
    """The photo in motion, without a network."""
    if config.loras or config.controls.field != "eulerian":
        raise ValueError("renderer=eulerian takes no loras, and one steady field: controls.field=eulerian")
    flowing, count = hydra.utils.instantiate(config.eulerian), config.frames
    scenes = scenes_of(image, controls, stepwise=False)
    photos = [scene.photo(loop=config.eulerian.loop, num_frames=count) for scene in scenes]
    return [photo_frames(photo, num_frames=count, flowing=flowing) for photo in photos], scenes, {}


def _diffusion(
    config: DictConfig, image: Tensor, controls: Controls, scenes_of: Scenes, strengths: list[float | None], *,
    progress: Progress, loaded: Loaded,
) -> Made:  # fmt: skip
    """Videos of the model, at its own size or at the image's."""
    # Imported here: this takes seconds, and mistakes in the settings are found before.
    from motionanim.animation import diffusion
    from motionanim.sampling.animator import pick_device
    from motionanim.sampling.moving.release import Release

    quiet()
    settings, count = OmegaConf.to_container(config, resolve=True), config.frames
    release = Release(**settings["release"]) if config.control == "warp" else None
    animator, base_fingerprint = loaded.animator(
        base=config.scale.base, motion=network_motion(config.scale.base, settings["motion"], config.control),
        sampling=settings["sampling"],
        loras=lora_weights(settings["loras"]),
        context_length=config.scale.num_frames, device=pick_device(),
    )  # fmt: skip
    area = config.height * config.width
    small, mapping = stretched(image, *model_size(*image.shape[1:], area=area, multiple=animator.multiple))
    fitted, loop = fit_controls(controls, mapping), config.long_video._target_.endswith(".loop")
    # An advected field has no flow map, and so no photo in motion at full size.
    steady = config.controls.field == "eulerian"
    flowing = hydra.utils.instantiate(config.eulerian, loop=loop) if steady else None
    full = scenes_of(image, controls, stepwise=False) if steady and config.size != "model" else []
    if release is None and not animator.denoiser.steerable:
        full = [_with_flow(scene, torch.zeros_like(scene.fields.parts.flow)) for scene in full]
    videos, shown, records = [], [], []
    for number, scene in enumerate(scenes_of(small, fitted, stepwise=True)):
        strength = strengths[number]
        if strength is not None:
            px = strength_to_px(strength, median_strength=config.scale.median_strength, width=small.shape[2])
            strength = torch.tensor([px])
        rendered = diffusion.render(
            animator, scene, num_frames=count, fps=config.fps, strength=strength,
            long_video=hydra.utils.instantiate(config.long_video), flowing=flowing, loop=loop, compared=bool(full),
            seed=config.seed, release=release, progress=progress,
        )  # fmt: skip
        records.append(rendered.record._asdict())
        if full:
            photo = full[number].photo(loop=loop, num_frames=count)
            videos.append(diffusion.at_photo_size(photo, rendered, flowing=flowing, num_frames=count))
            shown.append(full[number])
        elif config.size != "model" and small.shape != image.shape:
            flow = resize_flow(scene.fields.dense, *image.shape[1:])
            videos.append(diffusion.enlarged(rendered.sample, image.shape[1:]))
            fields = scene.fields._replace(dense=flow, refined=flow)
            shown.append(_with_flow(Scene(image, controls, fields), flow))
        else:
            videos.append(rendered.sample)
            shown.append(scene)
    return videos, shown, {"base_fingerprint": base_fingerprint, "runs": records, "model_size": list(small.shape[1:])}


def _with_flow(scene: Scene, flow: Tensor) -> Scene:
    """The scene with flow as its only motion."""
    return scene._replace(fields=scene.fields._replace(parts=Parts(flow)))
