"""Animate a photo: python -m motionanim.animate image=photo.jpg arrows="[[120,200,180,200]]" out=out.mp4"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from motionanim.controls import Controls, Fields, fit_controls, parse_controls, strength_to_px, with_strength
from motionanim.data.video import write_video
from motionanim.entry import one_line_errors, quiet
from motionanim.files import atomic_path
from motionanim.flow import motion_strength
from motionanim.generate import Generator
from motionanim.images import fit, load_image, load_mask
from motionanim.models.flow_refiner import FlowRefiner
from motionanim.pictures import draw_controls, flow_to_rgb, panels, write_frames, write_gif, write_picture

CONF = Path(__file__).parents[1] / "conf"
VERSIONS = ("torch", "diffusers", "motionanim")


class Animation(NamedTuple):
    """What `animate` made."""

    frames: Tensor  # (N, 3, H, W) in [-1, 1]; of a strength sweep side by side
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
    return run(config)


def run(config: DictConfig) -> Animation:
    """Animate as a composed conf/animate.yaml says."""
    out = _check_out(Path(config.out))
    if not config.fps > 0:
        raise ValueError(f"fps={config.fps}: must be above 0 frames a second")
    if config.frames < 2:
        raise ValueError(f"frames={config.frames}: a video needs at least 2")
    photo = load_image(config.image)
    mask = torch.ones_like(photo[:1]) if config.mask is None else load_mask(config.mask, *photo.shape[1:])
    drawn = OmegaConf.to_container(config.arrows) if OmegaConf.is_config(config.arrows) else config.arrows
    controls = parse_controls(drawn, mask)
    strengths = list(config.strength) if OmegaConf.is_list(config.strength) else [config.strength]
    start = time.perf_counter()
    make = {"diffusion": _diffusion, "eulerian": _eulerian}.get(config.method)
    if make is None:
        raise ValueError(f"method={config.method}: must be diffusion or eulerian")
    videos, image, fitted, fields, details = make(config, photo, controls, strengths)
    frames = torch.cat(videos, dim=-1)
    record = {
        "command": OmegaConf.to_container(config, resolve=True),
        "image_sha256": hashlib.sha256(Path(config.image).read_bytes()).hexdigest(),
        "versions": {name: version(name) for name in VERSIONS} | {"python": sys.version.split()[0]},
        "seconds": time.perf_counter() - start,
        **details,
    }
    return Animation(frames, _write(out, config, frames, videos[0], image, fitted, fields, record), record)


Made = tuple[list[Tensor], Tensor, Controls, Fields, dict[str, Any]]


def _diffusion(config: DictConfig, photo: Tensor, controls: Controls, strengths: list[float | None]) -> Made:
    """Videos of a size that the model can take, one for each strength."""
    settings = OmegaConf.to_container(config, resolve=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    image, way = fit(photo, config.height, config.width)
    fitted = fit_controls(controls, way)
    refiner = None if config.refiner is None else FlowRefiner.load(config.refiner)
    fields: Fields = hydra.utils.instantiate(config.controls)(
        fitted, num_frames=config.frames, image=image, refiner=None if refiner is None else refiner.refine
    )
    median = config.scale.median_strength
    flows = [with_strength(fields.per_step, strength, median_strength=median) for strength in strengths]
    generator = Generator(
        base=config.scale.base, motion=settings["motion"], sampling=settings["sampling"],
        loras=[(str(path), float(weight)) for path, weight in settings["loras"].items()],
        window=config.scale.num_frames, device=device,
    )  # fmt: skip
    videos, records = [], []
    for strength, flow in zip(strengths, flows, strict=True):
        asked = None
        if fitted.arrows:
            asked = motion_strength(flow[None])
        elif strength is not None:
            asked = torch.tensor([strength_to_px(strength, median_strength=median, width=config.width)])
        video, cost = generator(
            image[None], flow[None], num_frames=config.frames, fps=config.fps, strength=asked,
            use_flow=bool(fitted.arrows), mask=fitted.mask[None],
            long_video=hydra.utils.instantiate(config.long_video), seed=config.seed, progress=config.progress,
        )  # fmt: skip
        videos.append(video[0].cpu())
        records.append(cost._asdict())
    return videos, image, fitted, fields, {"base_fingerprint": generator.fingerprint, "runs": records}


def _eulerian(config: DictConfig, photo: Tensor, controls: Controls, strengths: list[float | None]) -> Made:
    """Videos of the photo's own size, less an odd last row or column, which H.264 cannot hold."""
    height, width = (side - side % 2 for side in photo.shape[1:])
    image, mask = photo[:, :height, :width], controls.mask[:, :height, :width]
    if not controls.arrows:
        raise ValueError("method=eulerian needs arrows: it moves along them and nowhere else")
    controls = controls._replace(mask=mask)
    fields: Fields = hydra.utils.instantiate(config.controls)(controls, num_frames=config.frames, field="eulerian")
    median = config.scale.median_strength
    render, videos = hydra.utils.instantiate(config.eulerian), []
    for strength in strengths:
        flow = with_strength(fields.per_step[:1], strength, median_strength=median)[0]
        videos.append(
            render(image, flow, num_frames=config.frames, mask=mask, progress="frames" if config.progress else None)
        )
    return videos, image, controls, fields, {}


def _check_out(out: Path) -> Path:
    if out.suffix.lower() != ".mp4":
        raise ValueError(f"out={out}: must end in .mp4")
    if out.is_dir():
        raise ValueError(f"out={out} is a folder: give the name of an .mp4 file in it")
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out.parent, os.W_OK):
        raise ValueError(f"out={out}: the folder {out.parent} cannot be written: choose another")
    return out


def _write(
    out: Path, config: DictConfig, frames: Tensor, video: Tensor, image: Tensor, controls: Controls, fields: Fields,
    record: dict[str, Any],
) -> list[Path]:  # fmt: skip
    picture, data = out.with_suffix(".png"), out.with_suffix(".json")
    files = [out, picture, data]
    write_video(out, frames, config.fps)
    largest = max(float(torch.linalg.vector_norm(fields.dense, dim=0).max()), 1e-6)
    steps = [fields.dense] if fields.refined is fields.dense else [fields.dense, fields.refined]
    flows = [flow_to_rgb(flow, largest) for flow in steps]
    chosen = torch.linspace(0, len(video) - 1, 5).round().long()
    drawn = draw_controls(image, [arrow.path for arrow in controls.arrows], controls.pins, controls.mask)
    write_picture(picture, panels([image, drawn, *flows, *video[chosen]]))
    if config.gif:
        files.append(out.with_suffix(".gif"))
        write_gif(files[-1], frames, config.fps)
    if config.png:
        files.append(out.with_suffix(""))
        write_frames(files[-1], frames)
    with atomic_path(data) as path:
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return files


@hydra.main(config_path=str(CONF), config_name="animate", version_base="1.3")
@one_line_errors
def main(config: DictConfig) -> None:
    quiet()
    made = run(config)
    for cost in made.record.get("runs", []):
        split = "" if cost["split_sigma"] is None else f", segments part at sigma {cost['split_sigma']:.3g}"
        print(f"{cost['calls']:g} denoiser calls{split}")
    print(f"{len(made.frames)} frames in {made.record['seconds']:.0f} s:", *made.files)


if __name__ == "__main__":
    main()
