"""Animate a photo: python -m motionanim.animate image=photo.jpg arrows="[[120,200,180,200]]" out=out.mp4"""

import hashlib
import json
import os
import re
import shutil
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from motionanim.controls import Fields, at_strength, strength_to_px
from motionanim.data.video import write_video
from motionanim.drawing import Controls, crop_controls, fit_controls, parse_controls
from motionanim.entry import one_line_errors, quiet
from motionanim.files import atomic_path
from motionanim.flow import motion_strength
from motionanim.generate import Generator, pick_device
from motionanim.images import fit, load_image, load_mask
from motionanim.models.flow_refiner import FlowRefiner
from motionanim.motion_kinds import doubts, fastest, swept
from motionanim.pictures import draw_controls, flow_to_rgb, gif_picture, panels, write_gif, write_picture
from motionanim.regions import propose_region

CONF = Path(__file__).parents[1] / "conf"
VERSIONS = ("torch", "diffusers", "motionanim")
NUMBERED = re.compile(r"\d{5}\.png")

# Videos of more are in their file only: Python callers would need 12 bytes for each, twice while they are put together.
MAX_PIXELS = 600_000_000


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
    files = _check_files(config)
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
    videos, image, fitted, fields, details = make(config, photo, controls, strengths)
    kept: list[Tensor] | None = [] if keep and config.frames * len(videos) * image[0].numel() <= MAX_PIXELS else None
    with ExitStack() as stack:  # all files or, on a full disk, none
        paths = {name: stack.enter_context(atomic_path(file)) for name, file in files.items() if name != "frames"}
        if "frames" in files:
            folder = files["frames"]
            made = stack.enter_context(TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}."))
            paths["frames"] = Path(made) / "new"
        shown = _write_frames(paths, config, videos, kept)
        record |= {"seconds": time.perf_counter() - start, **details}
        paths["record"].write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        write_picture(paths["picture"], _overview(image, fitted, fields, shown))
        if "frames" in files:
            shutil.rmtree(folder, ignore_errors=True)  # checked before: it holds an earlier video's frames only
            paths["frames"].rename(folder)
    return Animation(None if kept is None else torch.stack(kept), list(files.values()), record)


def _read_drawing(config: DictConfig, photo: Tensor) -> tuple[Controls, list[str]]:
    """What was drawn, in the photo's pixels, and what a user should know of it, a line each."""
    drawn = OmegaConf.to_container(config.arrows) if OmegaConf.is_config(config.arrows) else config.arrows
    mask, notes = torch.ones_like(photo[:1]), []
    if config.mask == "auto":
        # The drawing is read twice, because the mask that it has to fit is made from it.
        free = parse_controls(drawn, mask)
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
    span, shown = config.controls.span, controls
    strengths = list(config.strength) if OmegaConf.is_list(config.strength) else [config.strength]
    if None not in strengths:
        shown = at_strength(controls, max(strengths), span=span, median_strength=config.scale.median_strength)
    return controls, notes + doubts(shown, span=span, crossings=config.controls.field == "eulerian")


def _fields(config: DictConfig, controls: Controls, image: Tensor, strengths: list[float | None]) -> list[Fields]:
    """The motion field at each strength."""
    refine = None if config.refiner is None else FlowRefiner.load(config.refiner).refine
    make = hydra.utils.instantiate(config.controls)
    return [make(controls, num_frames=config.frames, image=image, refiner=refine, strength=each) for each in strengths]


# Videos as frames (3, H, W), one at a time or as tensors (N, 3, H, W).
Made = tuple[Sequence[Iterable[Tensor]], Tensor, Controls, Fields, dict[str, Any]]


def _diffusion(config: DictConfig, photo: Tensor, controls: Controls, strengths: list[float | None]) -> Made:
    """Videos of a size that the model can take, one for each strength."""
    settings = OmegaConf.to_container(config, resolve=True)
    image, way = fit(photo, config.height, config.width)
    fitted = fit_controls(controls, way)
    made = _fields(config, fitted, image, strengths)
    median = config.scale.median_strength
    generator, base_fingerprint = Generator.load(
        base=config.scale.base, motion=settings["motion"], sampling=settings["sampling"],
        loras=[(str(path), float(weight)) for path, weight in (settings["loras"] or {}).items()],
        window=config.scale.num_frames, device=pick_device(),
    )  # fmt: skip
    videos, records = [], []
    for strength, fields in zip(strengths, made, strict=True):
        flow, asked = fields.per_step, None
        if fitted.arrows:
            asked = motion_strength(flow[None])
        elif strength is not None:
            asked = torch.tensor([strength_to_px(strength, median_strength=median, width=config.width)])
        video, cost = generator(
            image[None], flow[None], num_frames=config.frames, fps=config.fps, strength=asked,
            use_flow=bool(fitted.arrows), mask=swept(fitted.mask, fields.parts)[None],
            long_video=hydra.utils.instantiate(config.long_video), seed=config.seed, progress=config.progress,
        )  # fmt: skip
        videos.append(video[0].cpu())
        records.append(cost._asdict())
    return videos, image, fitted, made[0], {"base_fingerprint": base_fingerprint, "runs": records}


def _eulerian(config: DictConfig, photo: Tensor, controls: Controls, strengths: list[float | None]) -> Made:
    """Videos of the photo's own size, less an odd last row or column, which H.264 cannot hold."""
    height, width = (side - side % 2 for side in photo.shape[1:])
    image, mask = photo[:, :height, :width], controls.mask[:, :height, :width]
    if not controls.arrows:
        raise ValueError("renderer=eulerian needs arrows: it moves along them and nowhere else")
    if config.loras or config.controls.field != "eulerian":
        raise ValueError("renderer=eulerian takes no loras, and one steady field: controls.field=eulerian")
    made = _fields(config, crop_controls(controls, height, width), image, strengths)
    if not made[0].parts.flow_only:
        raise ValueError("renderer=eulerian moves kind=flow only: use renderer=diffusion for move, sway and turn")
    render, videos = hydra.utils.instantiate(config.eulerian), []
    for fields in made:
        flow = fields.parts.flow
        videos.append(
            render(image, flow, num_frames=config.frames, mask=mask, progress="frames" if config.progress else None)
        )
    return videos, image, crop_controls(controls, height, width), made[0], {}


def _check_numbers(config: DictConfig) -> list[float | None]:
    """The strengths; raises ValueError for a number that is none or out of range."""
    for name, least in (("frames", 2), ("height", 1), ("width", 1), ("seed", 0)):
        if not isinstance(config[name], int) or config[name] < least:
            raise ValueError(f"{name}={config[name]}: must be a whole number of at least {least}")
    if not isinstance(config.fps, int | float) or not 0.1 <= config.fps <= 1000:
        raise ValueError(f"fps={config.fps}: must be from 0.1 to 1000 frames a second")
    strengths = list(config.strength) if OmegaConf.is_list(config.strength) else [config.strength]
    for strength in strengths or [()]:
        if strength is not None and not isinstance(strength, int | float):
            raise ValueError(f"strength={config.strength}: must be a number such as 200, or a list of them")
    return strengths


def _check_files(config: DictConfig) -> dict[str, Path]:
    """What will be written; raises ValueError before any work if it cannot be, or would replace an input."""
    if OmegaConf.is_missing(config, "image"):
        raise ValueError("no image given: pass image=photo.jpg")
    out = Path(config.out)
    if out.suffix.lower() != ".mp4":
        raise ValueError(f"out={out}: must end in .mp4")
    files = {"video": out, "record": out.with_suffix(".json"), "picture": out.with_suffix(".png")}
    if config.gif:
        files["gif"] = out.with_suffix(".gif")
    inputs = {Path(str(config[name])).resolve() for name in ("image", "mask", "arrows", "refiner") if config[name]}
    for path in files.values():
        if path.resolve() in inputs:
            raise ValueError(f"out={out} would replace the input {path}: choose another name")
        if path.is_dir():
            raise ValueError(f"out={out}: {path} is a folder, choose another name")
    if config.png:
        folder = files["frames"] = out.with_suffix("")
        if folder.exists() and not (folder.is_dir() and all(NUMBERED.fullmatch(p.name) for p in folder.iterdir())):
            raise ValueError(f"out={out}: frames would go to {folder}, which holds other files: choose another name")
    existing = next(parent for parent in out.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"out={out}: {existing} cannot be written: choose another folder")
    return files


def _overview(image: Tensor, controls: Controls, fields: Fields, shown: list[Tensor]) -> Tensor:
    """Input | arrows | dense field | refined field, if T made one | five frames, as the paper's Fig. 1."""
    steps = [fields.dense] if fields.refined is fields.dense else [fields.dense, fields.refined]
    if not fields.parts.flow_only:
        steps = [*(step for step in steps if step.any()), fastest(fields.per_step)]
    largest = max(*(float(torch.linalg.vector_norm(step, dim=0).max()) for step in steps), 1e-6)
    drawn = draw_controls(image, [arrow.path for arrow in controls.arrows], controls.pins, controls.mask)
    pictures = chain([image, drawn], (flow_to_rgb(flow, largest) for flow in steps))
    return panels([*(panels([picture]) for picture in pictures), *shown])


def _write_frames(
    paths: dict[str, Path], config: DictConfig, videos: Sequence[Iterable[Tensor]], kept: list[Tensor] | None
) -> list[Tensor]:
    """Every frame to the video, and where asked to a GIF, to PNG files and to `kept`; five of them as panels."""
    chosen, shown, coloured = torch.linspace(0, config.frames - 1, 5).round().int().tolist(), [], []

    def passing() -> Iterator[Tensor]:
        for number, parts in enumerate(zip(*videos, strict=True)):
            frame = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
            shown.extend([panels(parts[:1])] * chosen.count(number))
            if "frames" in paths:
                write_picture(paths["frames"] / f"{number:05}.png", frame)
            if "gif" in paths:
                coloured.append(gif_picture(frame))
            if kept is not None:
                kept.append(frame)
            yield frame

    write_video(paths["video"], passing(), config.fps)
    if "gif" in paths:
        write_gif(paths["gif"], coloured, config.fps)
    return shown


@hydra.main(config_path=str(CONF), config_name="animate", version_base="1.3")
@one_line_errors
def main(config: DictConfig) -> None:
    quiet()
    warnings.showwarning = lambda message, *_: print(f"note: {message}", file=sys.stderr)
    made = run(config, keep=False)
    for cost in made.record.get("runs", []):
        split = "" if cost["split_sigma"] is None else f", segments part at sigma {cost['split_sigma']:.3g}"
        print(f"{cost['calls']:g} denoiser calls{split}")
    print(f"{config.frames} frames in {made.record['seconds']:.0f} s:", *made.files)


if __name__ == "__main__":
    main()
