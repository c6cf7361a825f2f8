"""Measure an animated photo: python benchmarks/flow_map.py PHOTO ARROWS [--mask MASK] [--frames 125] [--loop].

ARROWS is JSON as `animate` takes it. PHOTO may be scene:N, a held-out scene of the procedural world with its own mask;
ARROWS is then `true`, for up to four arrows of its own motion. The frames are made by the flow map alone, or with
--method NAME by `animate` with that long-video method. No true clip is needed. It measures on the frames, before they
are encoded, the speed at the arrows as DIS sees it, the sharpness, new edges, and whether the rest equals the photo.
It prints a row of Markdown; flow_map.md names the columns.
"""

import argparse
import json
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from motionanim.animate import animate
from motionanim.evaluation.benchmark import Request, SyntheticBenchmark
from motionanim.evaluation.reading import Reading
from motionanim.media.image_io import load_image, load_mask
from motionanim.media.visualize import sheet, write_picture
from motionanim.metrics.edges import new_edges
from motionanim.models.flow_estimator import DisFlow
from motionanim.models.flow_refiner import FlowRefiner
from motionanim.motion.controls import motion_field
from motionanim.motion.drawing import parse_controls

CONF = Path(__file__).resolve().parents[1] / "conf"
T = str(CONF.parent / "motionanim" / "assets" / "flow-refiner" / "flow_refiner.safetensors")
SPAN, HALF = 16, 12  # frames of an arrow; px around its start in which DIS measures the speed
SIDE, MOST_ARROWS = 256, 4  # of a scene of the procedural world
HINT = ("sigma", "threshold", "threshold_on", "edge", "normalized")


def sharpness(frame: Tensor, where: Tensor) -> float:
    """Mean gradient magnitude of the grey over `where` (1, H, W)."""
    grey = frame.mean(0)
    magnitude = torch.hypot(grey.diff(dim=0)[:, 1:], grey.diff(dim=1)[1:])
    return float((magnitude * where[0, 1:, 1:]).sum() / where[0, 1:, 1:].sum())


def scene(number: int, folder: Path) -> tuple[Path, str, Path]:
    """A held-out scene: first frame, arrows of its own motion that end inside the frame, mask."""
    reading = Reading(num_frames=2, height=SIDE, width=SIDE, fps=7, shape="stretch")
    request = Request(max_arrows=16, span=SPAN, strength=None, reverse=False, median_strength=0.0067, seed=0)
    world = {"seed": 1, "moving_camera": 0.0, "split": "val"}
    clip = SyntheticBenchmark(name="scenes", n=number + 1, reading=reading, world=world, request=request).clip(number)
    picture, mask = folder / f"scene_{number}.png", folder / "mask.png"
    write_picture(picture, clip.frames[0])
    write_picture(mask, clip.mask.expand(3, -1, -1) * 2 - 1)
    inside = [arrow for arrow in clip.arrows if all(0 <= value <= SIDE - 1 for point in arrow.path for value in point)]
    spread = inside[:: max(1, len(inside) // MOST_ARROWS)][:MOST_ARROWS]
    drawn = [
        {"path": [[round(value, 2) for value in point] for point in arrow.path], "speed": arrow.speed}
        for arrow in spread
    ]
    return picture, json.dumps(drawn), mask


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photo")
    parser.add_argument("arrows")
    parser.add_argument("--mask", type=Path)
    parser.add_argument("--frames", type=int, default=125)
    parser.add_argument("--loop", action="store_true")
    parser.add_argument("--method", help="of conf/long_video: the frames of `animate`, the network included")
    parser.add_argument("--refiner", default=T, help="T, which decides what moves where there is no mask; none")
    parser.add_argument("--sheet", type=Path, help="write twelve frames here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(row(options, Path(folder)), flush=True)


def row(options: argparse.Namespace, folder: Path) -> str:
    """The figures of one video; `folder` holds temporary files."""
    photo, arrows, outline = Path(options.photo), options.arrows, options.mask
    if options.photo.startswith("scene:"):
        photo, arrows, outline = scene(int(options.photo.removeprefix("scene:")), folder)
    image = load_image(photo)
    height, width = image.shape[1:]
    mask = torch.ones(1, height, width) if outline is None else load_mask(outline, height, width)
    controls = parse_controls(arrows, mask)
    hint = OmegaConf.load(CONF / "hint" / "default.yaml")
    refiner = None if outline or options.refiner == "none" else FlowRefiner.load(options.refiner).eval()
    field = motion_field(
        controls, num_frames=options.frames, span=SPAN, field="eulerian", **{name: hint[name] for name in HINT},
        image=image, refiner=refiner, stepwise=False,
    ).refined  # fmt: skip
    render = instantiate(OmegaConf.merge(OmegaConf.load(CONF / "eulerian" / "flow_map.yaml"), {"seed": 0}))
    start = time.perf_counter()
    if options.method:
        settings: dict[str, Any] = {"image": photo, "arrows": arrows, "mask": outline, "frames": options.frames}
        settings |= {"refiner": None if options.refiner == "none" else options.refiner, "progress": False}
        settings |= {"out": folder / "out.mp4"}
        made = list(animate([f"long_video={options.method}"], **settings).frames)
    else:
        made = list(render(image, field, num_frames=options.frames, loop=options.loop, mask=mask))
    seconds = time.perf_counter() - start
    moves = mask * field.ne(0).any(0)
    usual = sharpness(image, moves)
    sharp = [sharpness(frame, moves) / usual for frame in made]
    farthest = max(float((frame - image).abs().mul(1 - moves).max()) for frame in made)
    edges = new_edges(made, image, moves, render.keywords["reach"] * height)
    estimate, gains = DisFlow(preset="medium", min_side=1), []
    for first, second in pairwise(made):
        seen, shares = estimate(torch.stack([first, second]))[0], []
        for arrow in controls.arrows:
            x, y = (round(value) for value in arrow.path[0])
            area = (slice(max(y - HALF, 0), y + HALF), slice(max(x - HALF, 0), x + HALF))
            asked, got = (flow[:, *area].mean((1, 2)) for flow in (field, seen))
            shares.append(float(asked @ got / (asked @ asked)))
        gains.append(np.mean(shares))
    change = [float((a - b).square().mean().sqrt()) for a, b in pairwise(made)]
    if options.sheet:
        middle = len(made) // 2
        write_picture(options.sheet, sheet([torch.stack(made[:middle]), torch.stack(made[middle : 2 * middle])]))
    way = options.method or ("loop" if options.loop else "")
    kind = "".join(f", {part}" for part in ("mask" if outline else "", way) if part)
    return (
        f"| {photo.stem} {width}x{height}{kind} "
        f"| {edges.mean():.5f} | {edges.max():.5f} | {min(sharp):.3f} | {max(sharp):.3f} "
        f"| {np.mean(gains[:24]):.2f} | {np.mean(gains[-24:]):.2f} | {min(gains):.2f} | {farthest:.1g} "
        f"| {float((made[-1] - made[0]).square().mean().sqrt()) / max(np.median(change), 1e-9):.2f} "
        f"| {seconds / len(made):.2f} |"
    )


if __name__ == "__main__":
    main()
