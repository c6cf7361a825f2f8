"""Animate a photo: python -m motionanim.animate image=photo.jpg arrows="[[120,200,180,200]]" out=out.mp4"""

import hashlib
import os
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from motionanim.controls import Fields, at_strength, strength_to_px
from motionanim.drawing import Controls, crop_controls, fit_controls, parse_controls
from motionanim.entry import one_line_errors, quiet
from motionanim.flow import resize_flow
from motionanim.images import fit, load_image, load_mask, model_size, stretched
from motionanim.motion_kinds import Parts, doubts, velocity
from motionanim.regions import example_arrow, propose_region
from motionanim.renderers import eulerian
from motionanim.renderers.kinds import Photo, looped
from motionanim.renderers.output import drawn, output_files, write_files

CONF = Path(__file__).parents[1] / "conf"
VERSIONS = ("torch", "diffusers", "motionanim")

# Videos of more are in their file only: Python callers would need 12 bytes for each, twice while they are put together.
MAX_PIXELS = 150_000_000


class Animation(NamedTuple):
    """What `animate` made."""

    frames: Tensor | None  # (N, 3, H, W) in [-1, 1], a strength sweep side by side; None above MAX_PIXELS in all
    files: list[Path]
    record: dict[str, Any]  # what the JSON file holds


def animate(overrides: Sequence[str] = (), **settings: Any) -> Animation:
    """The command as a function: `animate(image="photo.jpg", arrows=[[120, 200, 180, 200]], out="out.mp4")`.

    Args:
        overrides: Hydra overrides for whole groups, such as "long_video=continuous" or "scale=svd".
        settings: Keys of conf/animate.yaml and their values.

    Raises:
        ValueError: If an input is unusable; nothing is then written.
    """
    with hydra.initialize_config_dir(config_dir=str(CONF), version_base="1.3"):
        config = hydra.compose("animate", list(overrides))
    unknown = sorted(set(settings) - set(config))
    if unknown:
        raise ValueError(f"animate knows no {', '.join(unknown)}: see the keys of conf/animate.yaml")
    for name, value in settings.items():
        config[name] = str(value) if isinstance(value, os.PathLike) else value
    return run(config, keep=True)


def run(config: DictConfig, *, keep: bool) -> Animation:
    """Animate as a composed conf/animate.yaml says; without `keep` the result holds no frames."""
    strengths = _check_numbers(config)
    make = {"diffusion": _diffusion, "eulerian": _eulerian}.get(config.renderer)
    if make is None:
        raise ValueError(f"renderer={config.renderer}: must be diffusion or eulerian")
    files = _files(config)
    photo = load_image(config.image)
    controls, notes = _read_drawing(config, photo)
    for note in notes:
        warnings.warn(note, stacklevel=2)
    record = {
        "command": OmegaConf.to_container(config, resolve=True),
        "image_sha256": hashlib.sha256(Path(config.image).read_bytes()).hexdigest(),
        "versions": {name: version(name) for name in VERSIONS} | {"python": sys.version.split()[0]},
        "notes": notes,
    }
    start = time.perf_counter()
    image, controls = _at_size(config, photo, controls)
    videos, shown, details = make(config, image, controls, strengths)
    pixels = config.frames * len(videos) * shown[0].image[0].numel()
    kept: list[Tensor] | None = [] if keep and pixels <= MAX_PIXELS else None
    record |= details

    def timed() -> Iterator[Tensor]:
        yield from videos[0]
        record["seconds"] = time.perf_counter() - start

    write_files(
        files, [timed(), *videos[1:]], num_frames=config.frames, fps=config.fps, overview=drawn(*shown[0]),
        record=record, kept=kept,
    )  # fmt: skip
    return Animation(None if kept is None else torch.stack(kept), list(files.values()), record)


def _read_drawing(config: DictConfig, photo: Tensor) -> tuple[Controls, list[str]]:
    """What was drawn, in the photo's pixels, and what a user should know of it, a line each."""
    drawn = OmegaConf.to_container(config.arrows) if OmegaConf.is_config(config.arrows) else config.arrows
    mask, notes = torch.ones_like(photo[:1]), []
    if config.mask == "auto":
        # The drawing is read twice, because the mask that it has to fit is made from it.
        free = parse_controls(drawn, mask)
        _undrawn(config, free)
        mask = propose_region(photo, [arrow.path for arrow in free.arrows if arrow.region is None], free.pins)
        regions = [arrow.region for arrow in free.arrows if arrow.region is not None]
        mask = torch.stack([mask, *regions]).amax(0)
        picture = Path(config.out).with_suffix(".png")
        notes.append(
            f"mask=auto: GrabCut proposes that {float(mask.mean()):.0%} of the photo may move; {picture} shows it: "
            "paint a mask if it is wrong"
        )
    elif config.mask is not None:
        mask = load_mask(config.mask, *photo.shape[1:])
    controls = parse_controls(drawn, mask)
    notes += _undrawn(config, controls)
    span, shown = config.controls.span, controls
    strengths = list(config.strength) if OmegaConf.is_list(config.strength) else [config.strength]
    if None not in strengths:
        shown = at_strength(controls, max(strengths), span=span, median_strength=config.scale.median_strength)
    return controls, notes + doubts(shown, span=span, crossings=config.controls.field == "eulerian")


def _undrawn(config: DictConfig, controls: Controls) -> list[str]:
    """What a user should know who has drawn no arrows, a line each.

    Raises ValueError, with an arrow to copy, where nothing would come of it that is worth a look: a base of one's own,
    or SVD, moves a photo by itself, but the embedded one turns it into blotches, so that an explicit `arrows=[]` asks.
    """
    if controls.arrows:
        return []
    embedded = Path(config.scale.base).is_relative_to(config.paths.assets)
    asked = OmegaConf.is_list(config.arrows) and len(config.arrows) == 0
    method, reason = config.long_video._target_.rpartition(".")[2], None
    if config.renderer == "eulerian":
        reason = "renderer=eulerian moves along them and nowhere else"
    elif config.mask == "auto":
        reason = "mask=auto proposes what they may move"
    elif embedded and not asked:
        reason = "left alone, the embedded base turns a photo into blotches (arrows=[] shows it; scale=svd needs none)"
    if reason is not None:
        height, width = controls.mask.shape[1:]
        raise ValueError(
            f"no arrows: {reason}; draw what moves and which way, [[x0,y0,x1,y1], ...] in the photo's {width}x{height} "
            f'px, such as arrows="[{str(example_arrow(controls.mask)).replace(" ", "")}]"'
        )
    if config.frames > config.scale.num_frames and method in ("continuous", "loop"):
        return [
            f"no arrows: after the first {config.scale.num_frames} frames long_video={method} moves little at a low "
            "long_video.sigma; long_video=direct keeps moving"
        ]
    return []


def _at_size(config: DictConfig, photo: Tensor, controls: Controls) -> tuple[Tensor, Controls]:
    """Photo and drawing at the video's size, whose sides are even, as H.264 demands."""
    if OmegaConf.is_list(config.size):
        image, way = fit(photo, *config.size)
        return image, fit_controls(controls, way)
    height, width = (side - side % 2 for side in photo.shape[1:])
    if min(height, width) < 2:
        raise ValueError(
            f"{config.image} is {photo.shape[2]}x{photo.shape[1]} px: a video needs at least 2x2; give size=[h,w]"
        )
    return photo[:, :height, :width], crop_controls(controls, height, width)


class Shown(NamedTuple):
    """What the overview shows of a video: its image, drawing and field, of one size."""

    image: Tensor
    controls: Controls
    fields: Fields


# Videos as frames (3, H, W) one at a time, what the overview shows of each, and what the record says.
Made = tuple[Sequence[Iterable[Tensor]], Sequence[Shown], dict[str, Any]]


def _fields(
    config: DictConfig, image: Tensor, controls: Controls, strengths: list[float | None], *, stepwise: bool
) -> list[Fields]:
    """The motion field at each strength."""
    make = partial(hydra.utils.instantiate(config.controls), num_frames=config.frames)
    if config.refiner is None or not config.conditioning.refiner:
        return [make(controls, strength=each, stepwise=stepwise) for each in strengths]
    from motionanim.models.flow_refiner import FlowRefiner

    # T knows pictures of the model's size.
    small, way = stretched(image, *model_size(*image.shape[1:], area=config.height * config.width, multiple=16))
    fitted, refine = fit_controls(controls, way), FlowRefiner.load(config.refiner).refine
    made = []
    for strength in strengths:
        of_small = make(fitted, strength=strength, image=small, refiner=refine, stepwise=stepwise)
        if small.shape == image.shape:
            made.append(of_small)
            continue
        fields = make(controls, strength=strength, stepwise=False)
        refined = resize_flow(of_small.refined, *image.shape[1:]) * controls.mask
        parts = fields.parts._replace(flow=refined)
        steps = velocity(parts, config.frames) if stepwise else fields.per_step
        made.append(fields._replace(refined=refined, parts=parts, per_step=steps))
    return made


def _eulerian(config: DictConfig, image: Tensor, controls: Controls, strengths: list[float | None]) -> Made:
    """Videos of the image's own size."""
    eulerian.check(field=config.controls.field, loras=config.loras)
    made = _fields(config, image, controls, strengths, stepwise=False)
    options = {"num_frames": config.frames, "loop": config.eulerian.loop, "progress": config.progress}
    flowing = hydra.utils.instantiate(config.eulerian)
    videos = [eulerian.render(image, controls, fields, flowing=flowing, **options) for fields in made]
    return videos, [Shown(image, controls, fields) for fields in made], {}


def _diffusion(config: DictConfig, image: Tensor, controls: Controls, strengths: list[float | None]) -> Made:
    """Videos by the model, at its own size or enlarged to the image's."""
    from motionanim.generate import Generator, pick_device  # seconds, which a mistake in the settings need not wait for
    from motionanim.renderers import diffusion

    quiet()
    settings = OmegaConf.to_container(config, resolve=True)
    generator, base_fingerprint = Generator.load(
        base=config.scale.base, motion=settings["motion"], sampling=settings["sampling"],
        loras=[(str(path), float(weight)) for path, weight in (settings["loras"] or {}).items()],
        window=config.scale.num_frames, device=pick_device(),
    )  # fmt: skip
    area = config.height * config.width
    small, way = stretched(image, *model_size(*image.shape[1:], area=area, multiple=generator.multiple))
    fitted, loop = fit_controls(controls, way), config.long_video._target_.endswith(".loop")
    # A field that is drawn anew for each step has no flow map, and no picture at full size.
    steady = config.controls.field == "eulerian"
    flowing = hydra.utils.instantiate(config.eulerian, loop=loop) if steady else None
    full = _fields(config, image, controls, strengths, stepwise=False) if steady and config.size != "model" else []
    if not generator.denoiser.steerable:
        full = [fields._replace(parts=Parts(torch.zeros_like(fields.parts.flow))) for fields in full]
    videos, shown, records = [], [], []
    for number, fields in enumerate(_fields(config, small, fitted, strengths, stepwise=True)):
        strength = strengths[number]
        if strength is not None:
            px = strength_to_px(strength, median_strength=config.scale.median_strength, width=small.shape[2])
            strength = torch.tensor([px])
        rendered = diffusion.render(
            generator, diffusion.Small(small, fitted, fields), num_frames=config.frames, fps=config.fps,
            strength=strength, long_video=hydra.utils.instantiate(config.long_video), flowing=flowing, loop=loop,
            seed=config.seed, progress=config.progress,
        )  # fmt: skip
        records.append(rendered.record._asdict())
        if full:
            parts = looped(full[number].parts, config.frames) if loop else full[number].parts
            videos.append(
                diffusion.at_photo_size(
                    Photo(image, controls.mask, parts),
                    rendered,
                    flowing=flowing,
                    num_frames=config.frames,
                    progress="frames" if config.progress else None,
                )
            )
            shown.append(Shown(image, controls, full[number]))
        else:
            enlarge = config.size != "model" and small.shape != image.shape
            videos.append(diffusion.enlarged(rendered.sample, image.shape[1:]) if enlarge else rendered.sample)
            if enlarge:
                flow = resize_flow(fields.dense, *image.shape[1:])
                fields = fields._replace(dense=flow, refined=flow, parts=Parts(flow))
            shown.append(Shown(image, controls, fields) if enlarge else Shown(small, fitted, fields))
    return videos, shown, {"base_fingerprint": base_fingerprint, "runs": records, "model_size": list(small.shape[1:])}


def _check_numbers(config: DictConfig) -> list[float | None]:
    """The strengths; raises ValueError for a number that is none or out of range."""
    for name, least in (("frames", 2), ("height", 1), ("width", 1), ("seed", 0)):
        if not isinstance(config[name], int) or config[name] < least:
            raise ValueError(f"{name}={config[name]}: must be a whole number of at least {least}")
    if not isinstance(config.fps, int | float) or not 0.1 <= config.fps <= 1000:
        raise ValueError(f"fps={config.fps}: must be from 0.1 to 1000 frames a second")
    size = OmegaConf.to_container(config.size) if OmegaConf.is_list(config.size) else config.size
    sides = size if isinstance(size, list) else []
    even = len(sides) == 2 and all(isinstance(side, int) and side > 1 and side % 2 == 0 for side in sides)
    if size not in ("photo", "model") and not even:
        raise ValueError(f"size={size}: must be photo, model, or [height,width], even numbers of pixels")
    strengths = list(config.strength) if OmegaConf.is_list(config.strength) else [config.strength]
    for strength in strengths or [()]:
        if strength is not None and not isinstance(strength, int | float):
            raise ValueError(f"strength={config.strength}: must be a number such as 200, or a list of them")
    return strengths


def _files(config: DictConfig) -> dict[str, Path]:
    """What will be written; raises ValueError before any work if it cannot be."""
    if OmegaConf.is_missing(config, "image"):
        raise ValueError("no image given: pass image=photo.jpg")
    inputs = [Path(str(config[name])) for name in ("image", "mask", "arrows", "refiner") if config[name]]
    return output_files(Path(config.out), gif=config.gif, png=config.png, inputs=inputs)


@hydra.main(config_path=str(CONF), config_name="animate", version_base="1.3")
@one_line_errors
def main(config: DictConfig) -> None:
    quiet(networks=False)
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    made = run(config, keep=False)
    for cost in made.record.get("runs", []):
        split = "" if cost["split_sigma"] is None else f", segments part at sigma {cost['split_sigma']:.3g}"
        print(f"{cost['calls']:g} denoiser calls{split}")
    print(f"{config.frames} frames in {made.record['seconds']:.0f} s:", *made.files)


if __name__ == "__main__":
    main()
