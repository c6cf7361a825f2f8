"""The release levels of control=warp on the embedded base: python experiments/warp_control/levels.py

It animates held-out scenes of 16 frames from a few arrows without a mask, spread by T, as Table 1 does, and writes
levels.json beside this file. The scenes are of another seed than the benchmark's. Started again, it goes on.
"""

import argparse
import json
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from plain import ROOT, bases
from torch import Tensor
from tqdm import tqdm

import motionanim.cli.command
from motionanim.cli.command import CONF
from motionanim.evaluation.benchmark import EvalClip
from motionanim.evaluation.method_input import MethodInput
from motionanim.files import atomic_path
from motionanim.metrics.motion import (
    FlowEstimator,
    field_direction_error,
    field_gain,
    static_change,
    static_drift,
    still_region,
)
from motionanim.models.svd.bases import network_motion
from motionanim.motion.flow import motion_strength
from motionanim.sampling.animator import Animator
from motionanim.sampling.moving.release import Release

HERE = Path(__file__).resolve().parent
BATCH = 4
# Name, base, levels of what moves and of what stands still, and more overrides of conf/animate.yaml.
RUNS = (
    ("motion weights", "embedded", None, ()),
    *(
        (f"{moving:g}, {still:g}", "plain", (moving, still), ())
        for moving, still in (
            (0, 0), (0.1, 0), (0.25, 0), (0.5, 0), (1, 0), (0.1, 0.1), (0.1, 0.25), (0.25, 0.25),
        )
    ),
    ("0.1, 0, direct", "plain", (0.1, 0), ("long_video=direct",)),
    ("0.1, 0, motion bucket 127", "plain", (0.1, 0), ("conditioning.motion_strength=false",)),
    ("0.1, 0, stripped base", "stripped", (0.1, 0), ()),
    ("0.1, 0, embedded base", "embedded", (0.1, 0), ()),
)  # fmt: skip
COLUMNS = ("direction_error", "speed_gain", "psnr", "static_change", "static_drift")


def score(videos: list[Tensor], clips: list[EvalClip], estimate: FlowEstimator) -> dict[str, float]:
    """Means over the clips that move, the share of them within 30 degrees, and each clip's PSNR."""
    rows = []
    for video, clip in zip(videos, clips, strict=True):
        seen, movable = estimate(video), ~still_region(clip.flow, clip.mask)
        psnr = 10 * torch.log10(4 / (video[1:] - clip.frames[1:]).square().mean())
        rows.append(
            (field_direction_error(seen, clip.flow), field_gain(seen, clip.flow), float(psnr),
             static_change(video, movable), static_drift(seen, movable))
        )  # fmt: skip
    table = torch.tensor(rows)
    angles = table[:, 0][~table[:, 0].isnan()]
    means = dict(zip(COLUMNS, table.nanmean(0).tolist(), strict=True))
    return means | {"within_30": int((angles <= 30).sum()), "moving": len(angles), "psnrs": table[:, 2].tolist()}


def main() -> None:
    motionanim.cli.command.quiet()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "warp_control")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    places = bases(args.runs)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("evaluate", [f"n={args.clips}", "benchmark.world.seed=1", "mask=false"])
        made = [
            compose("animate", ["image=none", f"scale.base={places[base]}", *words]) for _, base, _, words in RUNS
        ]  # fmt: skip
    benchmark, estimate = (instantiate(part, _convert_="all") for part in (config.benchmark, config.flow_estimator))
    given = MethodInput(
        request="arrows", controls=instantiate(config.controls), refiner=config.refiner, use_refiner=True, mask=False
    )
    clips = [benchmark.clip(index) for index in range(args.clips)]
    fields = [given.field(clip) for clip in clips]
    file = args.out / "levels.json"
    figures = json.loads(file.read_text()) if file.exists() else {}
    for (name, base, levels, _), settings in zip(RUNS, made, strict=True):
        if name in figures:
            continue
        control = "motion" if levels is None else "warp"
        parts = OmegaConf.to_container(settings, resolve=True)
        animator, _ = Animator.load(
            base=str(places[base]), motion=network_motion(places[base], parts["motion"], control),
            sampling=parts["sampling"], loras=[], context_length=settings.scale.num_frames, device=torch.device("cpu"),
        )  # fmt: skip
        videos: list[Tensor] = []
        for first in tqdm(range(0, args.clips, BATCH), desc=name):
            images = torch.stack([clip.frames[0] for clip in clips[first : first + BATCH]])
            flows = torch.stack(fields[first : first + BATCH])
            video, record = animator(
                images, flows, num_frames=settings.frames, fps=settings.fps, strength=motion_strength(flows),
                use_flow=True, mask=torch.ones_like(images[:, :1]), long_video=instantiate(settings.long_video), seed=0,
                progress=None, release=None if levels is None else Release(*levels),
            )  # fmt: skip
            videos += video.cpu()
        figures[name] = {"calls": record.calls} | score(videos, clips, estimate)
        with atomic_path(file) as path:
            path.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
