"""Compare arrows without a mask, and T, with the true field. Writes errors.json and examples.png beside this file.

python experiments/flow_refiner/compare.py "T=FILE" "T, no image=FILE" --clips FOLDER ...
FILE is exported by experiment=flow_refiner. FOLDER holds real videos, whose mean optical flow is taken as true; without
folders the figures of the earlier clips stay.
"""

import argparse
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from tqdm import tqdm

from motionanim.data.folder import folder_names
from motionanim.data.stream import as_float, rng
from motionanim.data.synthetic.clips import SyntheticFlowPairs
from motionanim.data.video import Video
from motionanim.evaluation.scores.statistics import mean_interval
from motionanim.media.image_io import model_size, stretched
from motionanim.media.visualize import flow_to_rgb, write_picture
from motionanim.models.flow_estimator import DisFlow
from motionanim.models.flow_refiner import FlowRefiner
from motionanim.motion.example_arrows import sample_hint
from motionanim.motion.flow import resize_flow
from motionanim.types import Hint

HERE = Path(__file__).resolve().parent
ERRORS = HERE / "errors.json"
HINT = partial(sample_hint, max_arrows=4, sigma=170 / 512, normalized="exact")
DRAWINGS = 4  # of each real clip
MOVES = 0.2  # a pixel of a real clip moves if it is faster than this share of the clip's fast ones


class Pair(NamedTuple):
    """An image with arrows and its true motion: a `types.FlowPairBatch` without the batch dimension."""

    image: Tensor
    hint: Hint
    mask: Tensor
    flow: Tensor


def world(count: int, side: int) -> Iterator[Pair]:
    """Held-out scenes."""
    scenes = SyntheticFlowPairs(
        seed=1, length=count, height=side, width=side, split="val", hint=partial(HINT, max_frames=32)
    )
    for position in tqdm(range(count), desc="scenes"):
        item = scenes[position]
        yield Pair(item.image, item.hint, item.mask, item.flow * item.mask)


def clips(folder: Path, side: int) -> Iterator[tuple[str, list[Pair]]]:
    """Name and drawings of real clips, with the mean flow of their first two seconds; still clips are left out."""
    estimate = DisFlow(preset="medium", min_side=1)
    for name in tqdm(folder_names(folder), desc=folder.name):
        video = Video(folder / name)
        large = model_size(*video.size(), area=(4 * side) ** 2, multiple=1)
        chosen = video.grid(fps=8, stride=None)[0][:16]
        if len(chosen) < 2:
            continue
        read = torch.from_numpy(video.read(chosen, height=large[0], width=large[1]))
        frames = torch.stack([stretched(frame, *large)[0] for frame in as_float(read)])
        small = model_size(*large, area=side**2, multiple=1)
        flow = resize_flow(estimate(frames).mean(0), *small)
        speed = torch.linalg.vector_norm(flow, dim=0, keepdim=True)
        mask = (speed > MOVES * speed.quantile(0.98)).float()
        if speed.quantile(0.98) < 0.003 * small[1]:
            continue
        image = stretched(frames[0], *small)[0]
        drawings = [HINT(flow * mask, mask, rng(0, seed), max_frames=24) for seed in range(DRAWINGS)]
        yield f"{folder.name}/{name}", [Pair(image, hint, mask, flow * mask) for hint in drawings]


@torch.no_grad()
def fields(pair: Pair, refiners: dict[str, FlowRefiner]) -> dict[str, tuple[Tensor, Tensor]]:
    """Flow (2, H, W) of each method, and the pixels (1, H, W) that it takes to be moving."""
    soft, ones = pair.hint.reach.clamp(max=1), torch.ones_like(pair.mask)
    made = {
        "no motion": (torch.zeros_like(pair.flow), torch.zeros_like(pair.mask) > 0),
        "soft hint": (pair.hint.flow * soft, soft > 0.5),
        "hint cut by the true mask": (pair.hint.flow * pair.mask, pair.mask > 0),
    }
    hint = Hint(*(each[None] for each in pair.hint))
    for label, refiner in refiners.items():
        for suffix, mask in (("", ones), (" and the true mask", pair.mask)):
            if suffix and label != next(iter(refiners)):
                continue
            asked = pair.image[None], hint, mask[None]
            made[label + suffix] = refiner.refine(*asked)[0], (refiner(*asked).moves[0] > 0) & (mask > 0)
    return made


def score(flow: Tensor, moves: Tensor, pair: Pair) -> tuple[float, float]:
    """Mean end-point error over all pixels, px per frame, and intersection over union of the moving pixels."""
    true = pair.mask > 0
    union = int((moves | true).sum())
    error = float(torch.linalg.vector_norm(flow - pair.flow, dim=0).mean())
    return error, int((moves & true).sum()) / union if union else 1.0


def row(pair: Pair, made: dict[str, tuple[Tensor, Tensor]], refiners: dict[str, FlowRefiner], side: int) -> Tensor:
    """Image, arrows, soft hint, each T, truth, side by side."""
    shown = [pair.hint.arrows[:2], made["soft hint"][0], *(made[label][0] for label in refiners), pair.flow]
    pictures = torch.stack([pair.image, *flow_to_rgb(torch.stack(shown))])
    height, width = pair.image.shape[1:]
    return torch.cat(list(interpolate(pictures, (round(side * height / width), side), mode="nearest")), dim=-1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("refiners", nargs="*", metavar="LABEL=FILE")
    parser.add_argument("--clips", nargs="*", type=Path, default=[], metavar="FOLDER", help="of real videos")
    parser.add_argument("--clips-picture", type=Path, default=Path("runs/flow_refiner/clips.png"))
    parser.add_argument("--n", type=int, default=256, help="held-out scenes")
    parser.add_argument("--side", type=int, default=64, help="px")
    parser.add_argument("--examples", type=int, default=8)
    args = parser.parse_args()
    refiners = {label: FlowRefiner.load(file).eval() for label, file in (each.split("=", 1) for each in args.refiners)}
    scores: dict[str, list[tuple[float, float]]] = {}
    rows = []
    for pair in world(args.n, args.side):
        made = fields(pair, refiners)
        for label, each in made.items():
            scores.setdefault(label, []).append(score(*each, pair))
        if len(rows) < args.examples and pair.mask.any():
            rows.append(row(pair, made, refiners, 128))
    write_picture(HERE / "examples.png", torch.cat(rows, dim=-2))
    table = {"world": {label: _intervals(values) for label, values in scores.items()}, "clips": {}}
    if not args.clips and ERRORS.exists():
        table["clips"] = json.loads(ERRORS.read_text())["clips"]
    rows = []
    for folder in args.clips:
        for name, pairs in clips(folder, args.side):
            made = [fields(pair, refiners) for pair in pairs]
            rows.append(row(pairs[0], made[0], refiners, 160))
            still = [score(*each["no motion"], pair)[0] for each, pair in zip(made, pairs)]
            table["clips"][name] = {
                label: [float(np.mean(values)) for values in zip(*(
                    (error / rest, iou) for (error, iou), rest in zip(
                        (score(*each[label], pair) for each, pair in zip(made, pairs)), still, strict=True)
                ))]
                for label in made[0]
            }  # fmt: skip
    if rows:
        write_picture(args.clips_picture, torch.cat(rows, dim=-2))
    ERRORS.write_text(json.dumps(table, indent=1) + "\n")
    print(f"{'':32} error, px per frame       IoU of what moves")
    for label, each in table["world"].items():
        print("{:32} {:.3f} [{:.3f}, {:.3f}]    {:.2f}".format(label, *each["error"][:3], each["iou"][0]))
    if args.clips and table["clips"]:
        print(f"{len(table['clips'])} real clips: median of error over that of no motion, mean IoU")
        for label in next(iter(table["clips"].values())):
            errors, ious = zip(*(each[label] for each in table["clips"].values()))
            print(f"{label:32} {np.median(errors):.2f}    {np.mean(ious):.2f}")


def _intervals(values: list[tuple[float, float]]) -> dict[str, tuple[float, ...]]:
    errors, ious = (np.array(each) for each in zip(*values))
    return {"error": mean_interval(errors), "iou": mean_interval(ious)}


if __name__ == "__main__":
    main()
