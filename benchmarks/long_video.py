"""Long-video methods side by side on the embedded base: calls, time, seams, loops.

python benchmarks/long_video.py [--frames 125] [--rounds 3] [--picture 0] [--seed 0] [--report FILE] [override ...]

All methods make the same clip in one run, in turns; the time is the least of the rounds and includes decoding.
Overrides are those of conf/animate.yaml; each method keeps the options of its own YAML. The picture is a held-out frame
of the procedural world, with its true motion field.
"""

import argparse
import os
import platform
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

import motionanim.cli.command
from motionanim.cli.progress import Progress
from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.metrics.temporal import periodicity, seam_ratio, wrap_ratio
from motionanim.motion.flow import motion_strength
from motionanim.sampling.animator import Animator
from motionanim.types import ClipBatch

CONF = Path(__file__).resolve().parents[1] / "conf"
METHODS = ("direct", "gen_l_video", "freenoise", "freelong", "phased", "fifo", "zigzag", "continuous", "loop")
COLUMNS = (
    "calls", "seconds", "of direct's", "sigma at the split", "seam ratio", "wrap ratio", "periodicity, dB",
    "largest step of sharpness at a segment start, %",
)  # fmt: skip


def moving_clip(number: int, frames: int, height: int, width: int) -> ClipBatch:
    """The held-out clip of this number, from 0, with a still camera and motion in at least a third of the picture."""
    clips = SyntheticClips(
        seed=1, length=64, num_frames=frames, height=height, width=width, fps=7, moving_camera=0.0, split="val"
    )
    shown = (clips[position] for position in range(len(clips)))
    moving = (clip for clip in shown if (clip.flow[0].abs().sum(0) > 0.1).float().mean() > 1 / 3)
    return ClipBatch(*(field[None] for field in next(islice(moving, number, None))))


def sharpness_step(frames: torch.Tensor, segment_starts: Sequence[int]) -> float:
    """The largest change of the grey's mean gradient at a segment's border, in percent with its sign."""
    grey = frames.mean(1)
    sharp = torch.hypot(grey.diff(dim=1)[:, :, 1:], grey.diff(dim=2)[:, 1:]).mean((1, 2))
    return max((100 * (sharp[k] / sharp[k - 1] - 1).item() for k in segment_starts), key=abs)


def main() -> None:
    motionanim.cli.command.quiet()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=125)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--picture", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--report", type=Path)
    parser.add_argument("overrides", nargs="*", default=[])
    args = parser.parse_args()
    methods = args.methods.split(",")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        base = compose("animate", ["image=none", *args.overrides])
        options = {name: compose("animate", ["image=none", f"long_video={name}"]).long_video for name in methods}
    settings = OmegaConf.to_container(base, resolve=True)
    window = base.scale.num_frames
    animator, _ = Animator.load(
        base=base.scale.base, motion=settings["motion"], sampling=settings["sampling"], loras=[],
        context_length=window,
        device=torch.device("cuda" if torch.cuda.is_available() else "cpu"),
    )  # fmt: skip
    clip = moving_clip(args.picture, window, base.height, base.width)
    # The scene is steady, so that its field holds for the whole video.
    flow = clip.flow[:, :1].expand(-1, args.frames - 1, -1, -1, -1)
    rows: dict[str, list[float | None]] = {}
    for turn in range(args.rounds):
        for name in methods:
            start = time.perf_counter()
            with Progress() as progress:
                video, record = animator(
                    clip.image, flow, num_frames=args.frames, fps=base.fps, strength=motion_strength(flow),
                    use_flow=True, mask=torch.ones_like(clip.image[:, :1]), long_video=instantiate(options[name]),
                    seed=args.seed, progress=progress,
                )  # fmt: skip
            seconds, frames = time.perf_counter() - start, video[0].cpu()
            if turn == 0:
                seam = seam_ratio(frames, record.segment_starts) if record.segment_starts else None
                step = sharpness_step(frames, record.segment_starts) if record.segment_starts else None
                scores = [seam, wrap_ratio(frames), periodicity(frames, window), step]
                rows[name] = [record.calls, seconds, None, record.split_sigma, *scores]
            rows[name][1] = min(rows[name][1], seconds)
    for row in rows.values():
        row[2] = row[1] / rows["direct"][1] if "direct" in rows else None
    lines = [
        "# Long-video methods on the embedded base",
        "",
        f"{args.frames} frames of {base.width}x{base.height}, windows of {window}, {base.sampling.num_steps} denoising "
        f"steps, decoding included; the least of {args.rounds} rounds. {platform.machine()}, {os.cpu_count()} cores, "
        f"torch {torch.__version__}, {time.strftime('%Y-%m-%d')}. Only one clip was measured, so seams, "
        "wrap and periodicity are examples.",
        "",
        "| method | " + " | ".join(COLUMNS) + " |",
        "|---" * (len(COLUMNS) + 1) + "|",
        *(
            f"| {name} | " + " | ".join("" if value is None else f"{value:.3g}" for value in row) + " |"
            for name, row in rows.items()
        ),
        "",
    ]
    print("\n".join(lines))
    if args.report:
        args.report.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
