"""Cost of 125 frames and of a training step on this machine, beside the least that arithmetic allows.

python benchmarks/full_scale.py [--device cpu] [--scale tiny|svd] [--counted] [--report FILE] [KEY=VALUE ...]

`--scale svd` needs no weights: a pipeline of that size with random weights, which takes as long, is made once (6 GB,
`--base`). The variants of a table run in turns. A floor is the counted operations over the rate of a large matrix
product in the same precision, measured first. KEYs are those that conf/animate.yaml and conf/train.yaml share.
"""

import argparse
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import counted
import torch
from accounting import count_flops
from ceilings import matmul_rate
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from training_step import peak, reset, training_rows

import motionanim.cli.command
from motionanim.cli.progress import Progress, now
from motionanim.models.svd.tiny import build_pipeline, save_pipeline
from motionanim.motion.flow import motion_strength
from motionanim.sampling.animator import Animator
from motionanim.sampling.video import Record

CONF = Path(__file__).resolve().parents[1] / "conf"
# Settings of the sampling and of the long video.
VARIANTS: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("as configured", {}, {}),
    ("segments one by one", {}, {"batch_size": 1}),
    ("no guidance in phase 2", {}, {"guide_later": False}),
    ("channels last", {"channels_last": True}, {}),
    ("decoder in bfloat16", {"decode_dtype": "bfloat16"}, {}),
]
MODE = "max-autotune-no-cudagraphs"
COMPILED = ("compiled", {"compile": MODE}, {})


def random_svd(folder: Path) -> Path:
    """A pipeline folder of Stable Video Diffusion's size with random weights, made where it is missing."""
    if not (folder / "model_index.json").is_file():
        print(f"making random weights of Stable Video Diffusion's size in {folder}", flush=True)
        save_pipeline(folder, pipeline=build_pipeline(seed=0, **counted.SVD))
    return folder


def load(cfg: dict[str, Any], device: torch.device, sampling: dict[str, Any]) -> Animator:
    return Animator.load(
        base=cfg["scale"]["base"], motion=cfg["motion"], sampling=cfg["sampling"] | sampling, loras=[],
        context_length=cfg["scale"]["num_frames"], device=device,
    )[0]  # fmt: skip


def make_video(
    cfg: dict[str, Any], animator: Animator, long_video: dict[str, Any]
) -> tuple[torch.Tensor, Record, float]:
    """The video, its record, and the seconds of all of it."""
    image = torch.rand(1, 3, cfg["height"], cfg["width"], generator=torch.Generator().manual_seed(0)) * 2 - 1
    flow = torch.full((1, cfg["frames"] - 1, 2, cfg["height"], cfg["width"]), cfg["width"] / 256)
    start = now()
    with Progress() as progress:
        frames, record = animator(
            image, flow, num_frames=cfg["frames"], fps=cfg["fps"], strength=motion_strength(flow), use_flow=True,
            mask=torch.ones_like(image[:, :1]), long_video=instantiate(cfg["long_video"] | long_video), seed=0,
            progress=progress,
        )  # fmt: skip
    return frames, record, now() - start


def tried(run: Callable[[], Any]) -> Any:
    """The result of `run` in memory of its own; None if the device has too little."""
    reset(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        return run()
    except torch.OutOfMemoryError:
        return None


def stage_flops(cfg: dict[str, Any], animator: Animator, record: Record) -> dict[str, float]:
    """Operations of each stage of a phased video: calls times those of one call, counted."""
    scale = cfg["scale"]
    frames, height, width = scale["num_frames"], scale["height"], scale["width"]
    device, pair = animator.device, 2 if cfg["sampling"]["max_guidance"] > 1 else 1
    image = torch.zeros(1, 3, height, width, device=device)
    flow = torch.zeros(1, frames - 1, 2, height, width, device=device)
    one = torch.ones(1, device=device)
    condition = animator.codec.condition(
        image, noise=image, noise_aug=one, flow=flow, motion_strength=one, fps=one,
        warped_latents=animator.codec.warp_image(image, flow) if animator.denoiser.uses_warped else None,
    )  # fmt: skip
    latents = torch.zeros(1, frames, *condition.image_latents.shape[1:], device=device)
    with torch.no_grad():
        call = pair * count_flops(lambda: animator.denoiser(latents, one, condition))
        decode = count_flops(lambda: animator.codec.decode(latents)) / frames
    steps = cfg["sampling"]["num_steps"]
    return {
        "phase 1": steps * call, "phase 2": (record.calls - steps) * call, "decode": cfg["frames"] * decode,
    }  # fmt: skip


def inference_lines(cfg: dict[str, Any], device: torch.device, rounds: int, compiled: bool) -> list[str]:
    dtype = getattr(torch, cfg["sampling"]["dtype"])
    rates = {name: matmul_rate(device, kind) for name, kind in (("denoiser", dtype), ("decoder", torch.float32))}
    best: dict[str, Record] = {}
    total: dict[str, float] = {}
    videos: dict[str, torch.Tensor] = {}
    memory: dict[str, float] = {}
    variants = [*VARIANTS, COMPILED] if compiled else VARIANTS
    for turn in range(rounds + 1):  # the first warms up
        for name, sampling, long_video in variants:
            if turn and name not in videos:
                continue  # it did not fit into the memory
            made = tried(
                lambda options=(sampling, long_video): make_video(cfg, load(cfg, device, options[0]), options[1])
            )
            if made is None:
                continue
            videos[name], record, seconds = made[0].cpu(), *made[1:]
            used = peak(device)
            if used is not None:
                memory[name] = used
            if turn and seconds < total.get(name, float("inf")):
                total[name], best[name] = seconds, record
    first = VARIANTS[0][0]
    if first not in total:
        return ["The video does not fit into the memory of this device.", ""]
    reset(device)
    flops = stage_flops(cfg, load(cfg, device, {}), best[first])
    lines = [
        f"{cfg['frames']} frames of {cfg['height']} x {cfg['width']}, windows of {cfg['scale']['num_frames']}, "
        f"{cfg['sampling']['num_steps']} steps, gamma {cfg['long_video']['gamma']}, "
        f"{'with' if cfg['sampling']['max_guidance'] > 1 else 'without'} guidance; the best of {rounds} rounds. "
        f"A matrix product makes {rates['denoiser'] / counted.TERA:.3g} TFLOP/s in {cfg['sampling']['dtype']} "
        f"(denoiser), {rates['decoder'] / counted.TERA:.3g} in float32 (decoder).",
        "",
        "| stage | TFLOP | floor, s | measured, s | floor / measured |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for stage, seconds in best[first].seconds.items():
        rate = rates["decoder" if stage == "decode" else "denoiser"]
        floor = flops[stage] / rate
        lines.append(
            f"| {stage} | {flops[stage] / counted.TERA:.4g} | {floor:.3g} | {seconds:.3g} | {floor / seconds:.2f} |"
        )
    rest = total[first] - sum(best[first].seconds.values())
    lines += [
        f"| the rest: conditions, copies | | | {rest:.3g} | |",
        f"| together | {sum(flops.values()) / counted.TERA:.4g} | | **{total[first]:.3g}** | |",
        "",
        "| variant | s | of the first | phase 2, s | decode, s | GiB | PSNR to the first, dB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, _, _ in variants:
        if name not in total:
            lines.append(f"| {name} | out of memory | | | | | |")
            continue
        error = (videos[name] - videos[first]).square().mean() / 4
        psnr = "the same" if error == 0 else f"{-10 * error.log10():.1f}"
        seconds = best[name].seconds
        used = f"{memory[name]:.1f}" if memory else "not measured"
        lines.append(
            f"| {name} | {total[name]:.3g} | {total[name] / total[first]:.2f} | {seconds['phase 2']:.3g} | "
            f"{seconds['decode']:.3g} | {used} | {psnr} |"
        )
    return [*lines, ""]


def main() -> None:
    motionanim.cli.command.quiet()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", choices=["cpu", "cuda"])
    parser.add_argument("--scale", default="tiny", choices=["tiny", "svd"])
    parser.add_argument(
        "--base", type=Path, default=Path("runs") / "random_svd", help="of --scale svd: made if missing"
    )
    parser.add_argument("--frames", type=int, default=125)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=4, help="of training, a round")
    parser.add_argument("--compiled", action="store_true", help="also compiled: minutes of compiling")
    parser.add_argument("--counted", action="store_true", help="also what the paper's size costs, counted: 5 minutes")
    parser.add_argument("--report", type=Path)
    parser.add_argument("overrides", nargs="*", default=[])
    args = parser.parse_args()
    device = torch.device(args.device)
    overrides = [f"scale={args.scale}", *args.overrides]
    if args.scale == "svd":
        overrides.append(f"scale.base={random_svd(args.base)}")
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        animate = compose("animate", ["image=none", "long_video=phased", f"frames={args.frames}", *overrides])
        train = {
            name: compose("train", [f"experiment={experiment}", "paths.run=.", *extra, *overrides])
            for name, experiment, extra in (
                ("motion LoRA", "motion_lora", []),
                ("temporal", "diffusion", ["model.trainable=temporal"]),
                ("literal", "diffusion", ["model.trainable=literal"]),
                ("motion LoRA, ours compiled", "motion_lora", [f"model.compile={MODE}"]),
                ("literal, ours compiled", "diffusion", ["model.trainable=literal", f"model.compile={MODE}"]),
            )
            if args.compiled or "compiled" not in name
        }
    cfg = OmegaConf.to_container(animate, resolve=True)
    hardware = torch.cuda.get_device_name() if device.type == "cuda" else f"{platform.machine()} CPU"
    lines = [
        "# Full scale",
        "",
        f"{hardware}, {torch.get_num_threads()} threads, torch {torch.__version__}, diffusers {version('diffusers')}, "
        f"{time.strftime('%Y-%m-%d')}; scale={args.scale}"
        + ("" if device.type == "cuda" else ". On a GPU: not measured.")
        + (" Random weights." if args.scale == "svd" else ""),
        "",
        f"## {args.frames} frames",
        "",
        *inference_lines(cfg, device, args.rounds, args.compiled),
        "## A training step",
        "",
        *training_rows(train, device, args.rounds, args.steps),
    ]
    if args.counted:
        lines += ["## The paper's size, counted", "", *counted.report(batch=4)]
    print("\n".join(lines))
    if args.report:
        args.report.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
