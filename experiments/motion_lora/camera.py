"""Measure the effect of a static-camera LoRA on camera and objects. Writes NAME.json, NAME.png, NAME_clips.png here.

python experiments/motion_lora/camera.py NAME --base FOLDER "LABEL=FILE" ...    (FILE: of experiment=motion_lora)

It samples held-out clips of the procedural world with a still camera, from the same noise for every weight of every
LoRA; weight 0 is the base without a LoRA. Without motion field and strength the base chooses the camera motion itself;
steered, it is given the clip's own field, and no mask holds anything still.
"""

import argparse
import json
import shlex
import sys
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import Tensor
from tqdm import tqdm

import motionanim.cli.command
from motionanim.data.stream import collate
from motionanim.data.synthetic.clips import SyntheticClip, SyntheticClips
from motionanim.evaluation.scores.statistics import mean_interval
from motionanim.files import atomic_path
from motionanim.media.visualize import sheet, write_picture
from motionanim.metrics.motion import field_direction_error, field_gain
from motionanim.motion.camera import camera_residual
from motionanim.motion.flow import motion_strength
from motionanim.sampling.animator import Animator
from motionanim.sampling.chained import direct

HERE = Path(__file__).resolve().parent
CONF = HERE.parents[1] / "conf"
BATCH, SHOWN = 8, 4
BOOTSTRAPS = 10_000
BASE = "without a LoRA"


def background_of(clip: SyntheticClip) -> Tensor:
    """(H, W) bool: where nothing can move."""
    return clip.mask[0] == 0


def object_motion(flow: Tensor, background: Tensor) -> float:
    """Mean speed of the movable part relative to the background, px per frame."""
    still = flow[:, :, background].median(dim=-1).values[:, :, None]
    return float((flow[:, :, ~background] - still).norm(dim=1).mean())


def pan(flow: Tensor, background: Tensor) -> float:
    """Speed of the mean motion of the background, as a share of the diagonal per frame; trembling averages out."""
    travelled = flow[:, :, background].mean(dim=(0, -1))
    return float(travelled.norm() / np.hypot(*flow.shape[-2:]))


def tremble(flow: Tensor) -> float:
    """Camera residual after each pixel's mean over time, which holds pan, zoom and rotation, is subtracted."""
    return camera_residual(flow - flow.mean(0, keepdim=True), None)


def measure(video: Tensor, clip: SyntheticClip, estimate, *, has_flow: bool) -> dict[str, float]:
    """Scores of one video; NaN if too little of the clip moves, or too little stands still."""
    flow, background = estimate(video), background_of(clip)
    both = bool(0.05 < clip.mask.mean() < 0.8)
    if has_flow:
        return {
            "background": camera_residual(flow, background) if both else float("nan"),
            "gain": field_gain(flow, clip.flow) if both else float("nan"),
            "direction": field_direction_error(flow, clip.flow) if both else float("nan"),
        }
    return {
        "camera": camera_residual(flow, None),
        "tremble": tremble(flow),
        "pan": pan(flow, background) if background.float().mean() > 0.05 else float("nan"),
        "objects": object_motion(flow, background) if both else float("nan"),
    }


def ratio(scores: np.ndarray, of: np.ndarray) -> tuple[float, float, float]:
    """Ratio of two means over the clips with both scores, and its 95 % interval by bootstrap over clips."""
    scores, of = np.stack([scores, of])[:, ~np.isnan(scores + of)]
    drawn = np.random.default_rng(0).integers(len(scores), size=(BOOTSTRAPS, len(scores)))
    low, high = np.quantile(scores[drawn].mean(1) / of[drawn].mean(1), (0.025, 0.975))
    return float(scores.mean() / of.mean()), float(low), float(high)


def plot(path: Path, table: dict[str, dict], true: dict) -> None:
    """Plot camera residual and pan over the weight, one line per LoRA."""
    figure = Figure(figsize=(8, 3.2), dpi=130, layout="constrained")
    what = {"camera": "camera residual, left alone", "pan": "its steady part, the pan"}
    for ax, (name, title) in zip(figure.subplots(1, 2, sharey=True), what.items(), strict=True):
        for label in dict.fromkeys(row["lora"] for row in table.values() if row["lora"] != BASE):
            rows = sorted(
                (row["weight"], *row[name][:3]) for row in table.values() if row["lora"] in (label, BASE)
            )  # fmt: skip
            weight, mean, low, high = (np.array(column) for column in zip(*rows, strict=True))
            ax.errorbar(weight, mean, yerr=[mean - low, high - mean], marker="o", capsize=3, label=label)
        base = next(row[name][0] for row in table.values() if row["lora"] == BASE)
        ax.axhline(base / 3, color="grey", linestyle=":", label="a third of the base's")
        ax.axhline(true[name].mean, color="black", linestyle="--", linewidth=1, label="true clips, still camera")
        ax.set(xlabel="weight of the LoRA", title=title, ylim=(0, None))
        ax.set_ylabel("share of the diagonal per frame" if name == "camera" else "")
        ax.legend(fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png")


def main() -> None:
    motionanim.cli.command.quiet()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", help="of the files that are written")
    parser.add_argument("loras", nargs="+", metavar="LABEL=FILE")
    parser.add_argument("--base", required=True, help="the pipeline folder that they were trained on")
    parser.add_argument("--weights", nargs="+", type=float, default=[1.0])
    parser.add_argument("--n", type=int, default=64, help="held-out clips")
    parser.add_argument("--seed", type=int, default=1, help="of the clips: 1, of validation too | 2, of the benchmark")
    parser.add_argument("--side", type=int, default=64, help="px")
    parser.add_argument("--dtype", default="float32", help="of the denoiser, as sampling.dtype")
    args = parser.parse_args()
    loras = dict(each.split("=", 1) for each in args.loras)
    overrides = [f"scale.base={args.base}", f"scale.height={args.side}", f"scale.width={args.side}"]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("train", ["experiment=motion_lora", *overrides])
    estimate = instantiate(config.callbacks.camera.flow_estimator)
    motion, sampling = (OmegaConf.to_container(part, resolve=True) for part in (config.model.motion, config.sampling))
    world = SyntheticClips(
        seed=args.seed, length=args.n, num_frames=config.scale.num_frames, height=args.side, width=args.side,
        fps=config.scale.fps, moving_camera=0.0, split="val",
    )  # fmt: skip
    clips = [world.clip(position) for position in tqdm(range(args.n), desc="true clips")]
    own = [measure(clip.frames, clip, estimate, has_flow=False) for clip in clips]

    variants = [(BASE, None, 0.0), *((label, file, weight) for label, file in loras.items() for weight in args.weights)]
    table, raw, pictures = {}, {}, {}
    for label, file, weight in variants:
        animator, _ = Animator.load(
            base=args.base, motion=motion, sampling={**sampling, "dtype": args.dtype},
            loras=[] if file is None else [(file, weight)], context_length=config.scale.num_frames,
            device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
        )  # fmt: skip
        key = label if file is None else f"{label}, weight {weight:g}"
        scores: dict[str, list[float]] = {}
        for first in tqdm(range(0, args.n, BATCH), desc=key):
            batch = collate([world[position] for position in range(first, min(first + BATCH, args.n))])
            for has_flow in (False, True):
                videos = animator(
                    batch.image, batch.flow, num_frames=config.scale.num_frames, fps=batch.fps,
                    strength=motion_strength(batch.flow) if has_flow else None, use_flow=has_flow,
                    mask=torch.ones_like(batch.image[:, :1]), long_video=direct, seed=first, progress=None,
                )[0].cpu()  # fmt: skip
                for video, clip in zip(videos, clips[first:], strict=False):
                    for name, score in measure(video, clip, estimate, has_flow=has_flow).items():
                        scores.setdefault(name, []).append(score)
                if first == 0:
                    pictures[key, has_flow] = videos[:SHOWN]
        raw[key] = {name: np.array(values) for name, values in scores.items()}
        table[key] = {"lora": label, "weight": weight} | {n: mean_interval(values) for n, values in scores.items()}
        for name in ("camera", "pan", "tremble"):
            table[key][f"{name}_ratio"] = ratio(raw[key][name], raw[BASE][name])
        table[key]["less"] = {n: mean_interval(raw[BASE][n] - values) for n, values in raw[key].items()}
    result = {
        "command": shlex.join(["python", *sys.argv]),
        "true": {name: mean_interval([scores[name] for scores in own]) for name in own[0]},
        "rows": table,
    }
    with atomic_path(HERE / f"{args.name}.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n")
    plot(HERE / f"{args.name}.png", table, result["true"])
    last = key
    rows = [row for i in range(min(SHOWN, args.n)) for row in (pictures[BASE, False][i], pictures[last, False][i])]
    write_picture(HERE / f"{args.name}_clips.png", sheet(rows))
    print("true clips:", *(f"{name} {score.mean:.4f}" for name, score in result["true"].items()))
    for key, row in table.items():
        parts = [
            "{} {:.4f} [{:.4f}, {:.4f}], {:.2f} [{:.2f}, {:.2f}] of the base's".format(
                name, *row[name][:3], *row[f"{name}_ratio"]
            )
            for name in ("camera", "pan", "tremble")
        ]
        print(
            f"{key:28} {'; '.join(parts)}; objects {row['objects'].mean:.3f} px; "
            f"steered: background {row['background'].mean:.4f}, gain {row['gain'].mean:.2f}, "
            f"direction {row['direction'].mean:.0f} degrees"
        )


if __name__ == "__main__":
    main()
