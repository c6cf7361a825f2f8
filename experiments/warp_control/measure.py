"""Left and right arrows on the embedded base with and without motion weights: experiments/warp_control/measure.py

It writes figures.json and arrows.png beside this file. The scenes are those of benchmarks/control.py.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from plain import ROOT, bases
from torch import Tensor
from tqdm import tqdm

import motionanim.cli.command
from benchmarks.control import scenes
from motionanim.cli.command import CONF
from motionanim.data.stream import rng
from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.files import atomic_path
from motionanim.media.visualize import sheet, write_picture
from motionanim.metrics.motion import direction_error, region_flow, speed_gain, static_drift
from motionanim.models.svd.bases import network_motion
from motionanim.motion.drawing import Arrow, Controls
from motionanim.motion.flow import motion_strength
from motionanim.sampling.animator import Animator
from motionanim.sampling.moving.release import Release

HERE = Path(__file__).resolve().parent
BATCH = 4
SHOWN = ("motion weights, continuous", "plain base, control=warp, continuous")
SHARE = 0.02  # of the width a frame: an arrow's speed
RUNS = {  # overrides of conf/animate.yaml, and the share of the scenes
    "motion weights, continuous": ((), 1),
    "plain base, control=warp, continuous": (("base=plain",), 1),
    "plain base, control=warp, direct": (("base=plain", "long_video=direct"), 1 / 4),
    "plain base, control=warp, phased": (("base=plain", "long_video=phased"), 1 / 4),
    "plain base, control=warp, loop": (("base=plain", "long_video=loop"), 1 / 4),
    "plain base, control=warp, gen_l_video": (("base=plain", "long_video=gen_l_video"), 1 / 4),
    "plain base, control=warp, freenoise": (("base=plain", "long_video=freenoise"), 1 / 4),
    "plain base, control=warp, freelong": (("base=plain", "long_video=freelong"), 1 / 4),
    "plain base, control=warp, zigzag": (("base=plain", "long_video=zigzag"), 1 / 4),
    "plain base, control=warp, fifo": (("base=plain", "long_video=fifo"), 1 / 4),
    "plain base, control=motion, phased": (
        ("base=plain", "control=motion", "long_video=phased", "conditioning.warped_latent=false"), 1 / 4,
    ),
    "stripped base, control=warp, continuous": (("base=stripped",), 1 / 4),
}  # fmt: skip


class Job(NamedTuple):
    image: Tensor
    mask: Tensor
    flow: Tensor  # (T-1, 2, H, W)
    asked: Tensor  # (2,) px per frame


def jobs(config: Any, count: int) -> list[Job]:
    """A left and a right arrow from one movable point of each scene."""
    frames, width = config.scale.num_frames, config.width
    clips = SyntheticClips(
        seed=1, length=64, num_frames=2, height=config.height, width=width, fps=7, moving_camera=0.0, split="val"
    )
    field_of, made = instantiate(config.controls), []
    for index, (image, mask) in enumerate(scenes(clips, count)):
        y, x = torch.nonzero(mask[0])[rng(0, index).integers(int(mask.sum()))].tolist()
        for way in (-1, 1):
            asked = torch.tensor([way * SHARE * width, 0.0])
            arrow = Arrow(((x, y), (x + float(asked[0]) * (frames - 1), y)), 1.0)
            field = field_of(Controls((arrow,), (), mask), num_frames=frames)
            made.append(Job(image, mask, field.per_step, asked))
    return made


def score(videos: Sequence[Tensor], jobs: Sequence[Job], estimate: Any) -> dict[str, Any]:
    """Figures of the videos, one of each job; left and right take turns."""
    rows = []
    for video, job in zip(videos, jobs, strict=True):
        seen = estimate(video)
        speed = torch.linalg.vector_norm(job.flow[0], dim=0, keepdim=True)
        mean = region_flow(seen, (speed > 0.5 * speed.max()).float())  # where the field is at least half as fast
        rows.append((direction_error(mean, job.asked), speed_gain(mean, job.asked), static_drift(seen, job.mask)))
    errors, gains, drifts = torch.tensor(rows).unbind(1)
    hit = errors <= 30
    return {
        "arrows": len(rows), "within_30": hit.float().mean().item(),
        "both": (hit[::2] & hit[1::2]).float().mean().item(), "direction_error": errors.median().item(),
        "speed_gain": gains.median().item(), "drift": drifts.nanmean().item(),
    }  # fmt: skip


def main() -> None:
    motionanim.cli.command.quiet()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=32)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "warp_control")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    bases(args.runs)
    file = args.out / "figures.json"
    figures: dict[str, Any] = {}
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        configs = {}
        for name, (given, _) in RUNS.items():
            words = [word.replace("base=", "scale.base=" + str(args.runs) + "/") for word in given]
            configs[name] = compose("animate", ["image=none", *words])
        estimate = instantiate(compose("animate", ["image=none", "+flow_estimator=dis"]).flow_estimator)
    todo = jobs(next(iter(configs.values())), args.scenes)
    shown = []
    for name, config in configs.items():
        settings, frames = OmegaConf.to_container(config, resolve=True), config.scale.num_frames
        animator, _ = Animator.load(
            base=config.scale.base, motion=network_motion(config.scale.base, settings["motion"], config.control),
            sampling=settings["sampling"], loras=[], context_length=frames, device=torch.device("cpu"),
        )  # fmt: skip
        release = Release(**settings["release"]) if config.control == "warp" else None
        some, videos = todo[: 2 * max(1, round(args.scenes * RUNS[name][1]))], list[Tensor]()
        for first in tqdm(range(0, len(some), BATCH), desc=name):
            images, masks, flows, _ = map(torch.stack, zip(*some[first : first + BATCH], strict=True))
            made, record = animator(
                images, flows, num_frames=frames, fps=config.fps, strength=motion_strength(flows), use_flow=True,
                mask=masks, long_video=instantiate(config.long_video), seed=0, progress=None, release=release,
            )  # fmt: skip
            videos += made.cpu()
        figures[name] = score(videos, some, estimate) | {"calls": record.calls}
        if name in SHOWN:
            shown.append(videos[:4])
            if len(shown) == len(SHOWN):  # left and right of some scenes, each by the shown runs in turn
                rows = [each[number] for number in range(len(shown[0])) for each in shown]
                write_picture(args.out / "arrows.png", sheet(rows, columns=6))
        with atomic_path(file) as path:
            path.write_text(json.dumps(figures, indent=2) + "\n")
        print(name, figures[name], flush=True)


if __name__ == "__main__":
    main()
