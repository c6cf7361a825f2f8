"""How videos follow arrow, strength and mask: python benchmarks/control.py [--clips 32] [--report FILE] [overrides]

The inputs are held-out scenes of the procedural world under a still camera. Each gets an arrow of random direction in
its movable region, the same arrow reversed, the world's own mask, and strengths from 100 to 400 (Fig. 7). The realised
flow is DIS on the generated frames. Reference rows are the image warped along the field without any network, and the
same after a pass through the autoencoder. Overrides are those of conf/animate.yaml.
"""

import argparse
import math
import os
import platform
import time
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torchmetrics.functional import spearman_corrcoef
from tqdm import tqdm

import motionanim.cli.command
from motionanim.data.stream import rng
from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.metrics.motion import direction_error, region_flow, speed_gain, static_drift
from motionanim.models.svd.bases import network_motion
from motionanim.motion.drawing import Arrow, Controls
from motionanim.motion.flow import motion_strength, trace_back, warp
from motionanim.sampling.animator import Animator
from motionanim.sampling.moving.release import Release

CONF = Path(__file__).resolve().parents[1] / "conf"
STRENGTHS = (100, 175, 250, 325, 400)
BATCH = 4


def scenes(clips: SyntheticClips, count: int) -> list[tuple[Tensor, Tensor]]:
    """First frames and masks of the first `count` scenes in which 5 to 80 % of the picture may move."""
    found: list[tuple[Tensor, Tensor]] = []
    for position in range(10 * count):
        clip = clips.clip(position)
        if 0.05 < clip.mask.mean() < 0.8:
            found.append((clip.frames[0], clip.mask))
        if len(found) == count:
            break
    return found


def arrow_in(mask: Tensor, generator: np.random.Generator, length: float) -> tuple[Arrow, Arrow]:
    """An arrow from a random movable point in a random direction, and its reverse from the same point."""
    y, x = torch.nonzero(mask[0])[generator.integers(int(mask.sum()))].tolist()
    angle = generator.uniform(0, 2 * math.pi)
    step = (length * math.cos(angle), length * math.sin(angle))
    return tuple(Arrow(((x, y), (x + sign * step[0], y + sign * step[1])), 1.0) for sign in (1, -1))


def main() -> None:
    motionanim.cli.command.quiet()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--report", type=Path)
    parser.add_argument("overrides", nargs="*", default=[])
    args = parser.parse_args()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("animate", ["image=none", *args.overrides])
        estimate = instantiate(compose("animate", ["image=none", "+flow_estimator=dis"]).flow_estimator)
    settings, frames = OmegaConf.to_container(config, resolve=True), config.scale.num_frames
    animator, _ = Animator.load(
        base=config.scale.base, motion=network_motion(config.scale.base, settings["motion"], config.control),
        sampling=settings["sampling"], loras=[], context_length=frames,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )  # fmt: skip
    release = Release(**settings["release"]) if config.control == "warp" else None
    width = config.width
    clips = SyntheticClips(
        seed=1, length=64, num_frames=2, height=config.height, width=width, fps=7, moving_camera=0.0, split="val"
    )
    field_of = instantiate(config.controls)

    def made(images: Tensor, flows: Tensor, masks: Tensor, strength: Tensor) -> Tensor:
        return animator(
            images, flows, num_frames=frames, fps=config.fps, strength=strength, use_flow=True, mask=masks,
            long_video=instantiate(config.long_video), seed=0, progress=None, release=release,
        )[0].cpu()  # fmt: skip

    def warped(images: Tensor, flows: Tensor) -> Tensor:
        where = trace_back(flows)
        moved = warp(images.repeat_interleave(frames, 0), where.flatten(0, 1))
        return moved.unflatten(0, (len(images), frames))

    jobs, drawn = [], []
    for index, (image, mask) in enumerate(scenes(clips, args.clips)):
        for arrow in arrow_in(mask, rng(0, index), 0.02 * width * (frames - 1)):
            field = field_of(Controls((arrow,), (), mask), num_frames=frames)
            requested = torch.tensor(arrow.path[1]) - torch.tensor(arrow.path[0])
            jobs.append((image, mask, field.per_step, requested / (frames - 1)))
            drawn.append(Controls((arrow,), (), mask))
    rows: dict[str, list[tuple[float, float, float]]] = {"generated": [], "warp": [], "warp, autoencoder": []}
    for first in tqdm(range(0, len(jobs), BATCH), desc="arrows"):
        images, masks, flows, requests = (torch.stack(part) for part in zip(*jobs[first : first + BATCH], strict=True))
        free = warped(images, flows)
        videos = {
            "generated": made(images, flows, masks, motion_strength(flows)),
            "warp": free,
            "warp, autoencoder": animator.codec.decode(animator.codec.encode(free)),
        }
        for name, batch in videos.items():
            for video, mask, flow, request in zip(batch, masks, flows, requests, strict=True):
                seen = estimate(video)
                # The arrow's region, where the field is at least half as fast as the arrow.
                speed = torch.linalg.vector_norm(flow[0], dim=0, keepdim=True)
                mean = region_flow(seen, (speed > 0.5 * speed.max()).float())
                rows[name].append((direction_error(mean, request), speed_gain(mean, request), static_drift(seen, mask)))
    ranks: dict[str, list[float]] = {"generated": [], "warp": []}
    scaled = range(0, 2 * min(args.clips, 16, len(jobs) // 2), 2)
    for job in tqdm(scaled, desc="strengths"):
        image, mask = jobs[job][:2]
        fields = [field_of(drawn[job], num_frames=frames, strength=strength) for strength in STRENGTHS]
        flows = torch.stack([field.per_step for field in fields])
        asked = motion_strength(flows)
        images, masks = (x.expand(len(asked), -1, -1, -1) for x in (image, mask))
        for name, videos in (("generated", made(images, flows, masks, asked)), ("warp", warped(images, flows))):
            realised = torch.stack([motion_strength(estimate(video)[None])[0] for video in videos])
            ranks[name].append(spearman_corrcoef(realised, asked).item())
    lines = [
        "# Control on the embedded base",
        "",
        f"{len(jobs)} arrows of 2 % of the width per frame, half of them reversed copies of the other half, on "
        f"{len(jobs) // 2} held-out scenes, {frames} frames of {config.height}x{width} by "
        f"`{config.long_video._target_.rpartition('.')[2]}`, "
        f"{config.sampling.num_steps} denoising steps, flow by {estimate.name}. {platform.machine()}, "
        f"{os.cpu_count()} cores, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}.",
        "",
        "| video | within 30° of the arrow | both the arrow and its reverse | median error | median speed gain "
        "| drift outside the mask, px/frame |",
        "|---|---|---|---|---|---|",
    ]
    for name, values in rows.items():
        errors, gains, drifts = (torch.tensor(column) for column in zip(*values, strict=True))
        hit = errors <= 30
        lines.append(
            f"| {name} | {hit.float().mean():.0%} | {(hit[::2] & hit[1::2]).float().mean():.0%} | "
            f"{errors.median():.0f}° | {gains.median():.2f} | {drifts.nanmean():.4f} |"
        )
    spread = {name: torch.tensor(values) for name, values in ranks.items()}
    lines += [
        "",
        f"Strength {STRENGTHS[0]} to {STRENGTHS[-1]} in {len(STRENGTHS)} levels on {len(scaled)} scenes: Spearman of "
        "requested and realised strength, "
        + "; ".join(f"{name} {each.mean():.3f} on average, {each.min():.2f} at worst" for name, each in spread.items())
        + ".",
        "",
    ]
    print("\n".join(lines))
    if args.report:
        args.report.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
