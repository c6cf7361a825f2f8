"""Stable Video Diffusion at its full size, once through everything, with random weights: no download, no GPU.

python benchmarks/whole_svd.py --folder FOLDER [--stages make,shard,...] [--report FILE] [KEY=VALUE ...]

Each stage is a process of its own, whose time and memory the report states. A stage that is done is skipped when the
script runs again; naming it by --stages runs it again. It needs 14 GiB of memory and 15 GB of disk. KEYs are settings
of both conf/train.yaml and conf/animate.yaml.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
SIZE = ["scale=svd", "scale.height=256", "scale.width=448"]
# Windows of 8, so that a video of 14 frames is joined of two.
WINDOWS = ["scale.num_frames=8", "frames=14", "sampling.num_steps=2", "sampling.decode_dtype=bfloat16"]
METHODS = {"phased": ["long_video.gamma=0.5"], "continuous": ["long_video.overlap=2"]}
# The learning rate is high, so that two steps change the weights by more than fp16 rounds them.
STEPS = ["scale.num_frames=8", "scale.batch_size=1", "trainer.max_steps=2", "model.lr=0.01"]
SHARDS = 3  # or one more, of the UNet
POLL = 0.05  # s between two looks at a stage's memory


class Run:
    """The paths of a run, and its settings.

    Args:
        folder: Holds all that the stages make.
        config: Configurations of the parts, as benchmarks/svd.yaml.
        overrides: Settings that come after the script's own.
    """

    def __init__(self, folder: Path, config: Path, overrides: list[str]) -> None:
        self.folder, self.config, self.overrides = folder, config, overrides
        self.whole, self.sharded, self.merged = (folder / name for name in ("whole", "sharded", "merged"))
        self.photo, self.trained = folder / "photo.png", folder / "runs" / "motion_lora" / "two_steps"
        self.lora, self.checkpoint = self.trained / "lora.safetensors", self.trained / "checkpoints" / "last.ckpt"

    def animate(self, method: str) -> list[str]:
        return [
            "-m", "motionanim.animate", *SIZE, *WINDOWS, f"scale.base={self.whole}", f"image={self.photo}",
            "arrows=[[80,60,140,60]]", f"long_video={method}", *METHODS[method], "progress=false", *self.overrides,
            f"out={self.folder / method}.mp4",
        ]  # fmt: skip

    def train(self) -> list[str]:
        return [
            str(ROOT / "train.py"), "experiment=motion_lora", *SIZE, *STEPS, f"scale.base={self.whole}",
            f"paths.runs={self.folder / 'runs'}", f"paths.cache={self.folder / 'cache'}", f"run={self.trained.name}",
            "callbacks=default", "logger=csv", "trainer.accelerator=cpu", "trainer.limit_val_batches=0",
            "scale.num_workers=0", *self.overrides,
        ]  # fmt: skip

    def interchange(self, *arguments: str | Path) -> list[str]:
        return ["-m", "motionanim.interchange", *map(str, arguments)]

    def inside(self, stage: str) -> list[str]:
        """This script for one stage of its own Python."""
        given = ["--folder", str(self.folder), "--config", str(self.config), "--inside", stage]
        return [str(Path(__file__)), *given, *self.overrides]


def make(run: Run) -> dict[str, Any]:
    """A pipeline folder with the published names, types and shapes, and random weights; and a photo."""
    import numpy as np
    import torch
    from PIL import Image

    from motionanim.models.svd.tiny import build_pipeline, save_pipeline

    shutil.rmtree(run.whole, ignore_errors=True)
    pipeline = build_pipeline(seed=0, **yaml.safe_load(run.config.read_text()))
    torch.manual_seed(1)
    pipeline.unet.conv_out.reset_parameters()  # zero in a new base, which would hide the rest of the network
    counts = {
        name: sum(p.numel() for p in getattr(pipeline, name).parameters()) for name in ("unet", "vae", "image_encoder")
    }
    save_pipeline(run.whole, pipeline=pipeline, published_names=True)
    coarse = np.random.default_rng(0).integers(0, 256, (8, 14, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((448, 256), Image.Resampling.BICUBIC).save(run.photo)
    return {f"parameters of the {name}": f"{count / 1e6:.1f} M" for name, count in counts.items()}


def shard(run: Run) -> dict[str, Any]:
    """The same in several files for each part."""
    import torch
    from diffusers import StableVideoDiffusionPipeline

    shutil.rmtree(run.sharded, ignore_errors=True)
    pipeline = StableVideoDiffusionPipeline.from_pretrained(run.whole, variant="fp16", torch_dtype=torch.float16)
    size = sum(path.stat().st_size for path in (run.whole / "unet").iterdir())
    pipeline.save_pretrained(run.sharded, variant="fp16", max_shard_size=size // SHARDS)
    shards = sorted(path.name for path in (run.sharded / "unet").glob("*.safetensors"))
    return {"shards of the UNet": f"{len(shards)}, such as `{shards[0]}`"}


def names(run: Run) -> dict[str, Any]:
    """Whether both folders have the published sizes of files, and names and shapes of tensors."""
    from safetensors import safe_open

    from motionanim.models.svd.interchange.whole import layers_sha256, published

    record, facts = published(), {}
    for folder in (run.whole, run.sharded):
        for part, known in record["parts"].items():
            shapes, types = {}, set()
            for path in (folder / part).glob("*.safetensors"):
                with safe_open(path, framework="pt") as file:
                    for name in file.keys():  # noqa: SIM118 (not a mapping)
                        piece = file.get_slice(name)
                        shapes[name] = piece.get_shape()
                        types.add(piece.get_dtype())
            same = layers_sha256(shapes) == known["layers_sha256"]
            facts[f"{part}, {folder.name}"] = (
                f"{len(shapes)} tensors of type {'/'.join(sorted(types))}; "
                f"names and shapes {'as published' if same else 'of another network'}"
            )
        if folder == run.whole:
            sizes = {path: known["size"] for path, known in record["files"].items() if ".fp16." in path}
            equal = sum((folder / path).stat().st_size == size for path, size in sizes.items())
            facts["files of weights of the published size in bytes"] = f"{equal} of {len(sizes)}"
    return facts


def called(run: Run, base: Path, *, lora: bool = False, like: tuple[str, str] | None = None) -> dict[str, Any]:
    """Loads a base as `animate` does and calls its denoiser once, on 4 frames of the smallest size; in float32.

    Args:
        lora: With the exported LoRA.
        like: The name of an earlier stage, and of what it called, to compare with.
    """
    import torch
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    import motionanim.cli.command  # registers the resolvers
    from motionanim.sampling.animator import Animator
    from motionanim.types import Condition

    motionanim.cli.command.quiet()
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        cfg = compose("animate", ["image=none", *SIZE, *run.overrides, f"scale.base={base}"])
    cfg = OmegaConf.to_container(cfg, resolve=True)
    animator, fingerprint = Animator.load(
        base=str(base), motion=cfg["motion"], sampling=cfg["sampling"] | {"dtype": "float32"},
        loras=[(str(run.lora), 1.0)] * lora, context_length=4, device=torch.device("cpu"),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    config, side = animator.denoiser.unet.config, animator.multiple // animator.codec.downscale
    latents, size = (config.out_channels, side, side), animator.multiple
    condition = Condition.blank(1, 4, latents=latents, pixels=(size, size), embed_width=config.cross_attention_dim)
    condition = condition._replace(
        image_embed=torch.randn(1, 1, config.cross_attention_dim, generator=generator),
        image_latents=torch.randn(1, *latents, generator=generator), flow=torch.ones(1, 3, 2, size, size),
    )  # fmt: skip
    with torch.no_grad():
        out = animator.denoiser(torch.randn(1, 4, *latents, generator=generator), torch.ones(1), condition)
        pixels = animator.decode(condition.image_latents[:, None])
    torch.save(out, run.folder / f"{base.name}{'_lora' * lora}.pt")
    digest = hashlib.sha256(out.numpy().tobytes() + pixels.numpy().tobytes()).hexdigest()[:16]
    facts: dict[str, Any] = {"LoRA fingerprint": fingerprint, "SHA-256 of one call and one decoded frame": digest}
    if like is not None:
        other = torch.load(run.folder / f"{like[1]}.pt", weights_only=True)
        facts[f"largest difference to {like[0]}"] = float((out - other).abs().max())
    return facts


def exported(run: Run) -> dict[str, Any]:
    """Export the checkpoint of the two steps again; the LoRA must be the one that the training left."""
    import torch
    from safetensors.torch import load_file

    from motionanim.export import export

    shutil.rmtree(run.folder / "exported", ignore_errors=True)
    again = export(str(run.checkpoint), run.folder / "exported", None)
    one, other = load_file(again), load_file(run.lora)
    same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    return {"the LoRA of the training and that of its checkpoint": "equal" if same else "differ"}


INSIDE: dict[str, Callable[[Run], dict[str, Any]]] = {
    "make": make, "shard": shard, "names": names, "export": exported,
    "load whole": lambda run: called(run, run.whole),
    "load sharded": lambda run: called(run, run.sharded, like=("the whole files", "whole")),
    "load with LoRA": lambda run: called(run, run.whole, lora=True, like=("the base", "whole")),
    # Its weights are rounded to fp16.
    "load merged": lambda run: called(run, run.merged, like=("base and LoRA", "whole_lora")),
}  # fmt: skip
# The other stages are commands: their arguments, and the folder that they write anew.
COMMANDS: dict[str, tuple[Callable[[Run], list[str]], Callable[[Run], Path] | None]] = {
    "check-base whole": (lambda run: run.interchange("check-base", run.whole), None),
    "check-base sharded": (lambda run: run.interchange("check-base", run.sharded), None),
    "animate phased": (lambda run: run.animate("phased"), None),
    "animate continuous": (lambda run: run.animate("continuous"), None),
    "train": (Run.train, lambda run: run.trained),
    "merge": (
        lambda run: run.interchange("merge", run.whole, "--lora", run.lora, "--out", run.merged),
        lambda run: run.merged,
    ),
    "hub": (
        lambda run: run.interchange("hub", run.trained, "--out", run.folder / "hub"), lambda run: run.folder / "hub"
    ),
    "check-base merged": (lambda run: run.interchange("check-base", run.merged), None),
}  # fmt: skip
STAGES = (
    "make", "shard", "names", "check-base whole", "check-base sharded", "load whole", "load sharded", "animate phased",
    "animate continuous", "train", "export", "load with LoRA", "merge", "hub", "check-base merged", "load merged",
)  # fmt: skip


def measured(command: list[str], log: Path) -> tuple[int, dict[str, float]]:
    """The exit code of a Python command, which writes to `log`, and its time and memory.

    Memory is the peak of the resident pages, and that of the private ones among them: pages of a weight file that is
    mapped into memory are in the first only, and the system drops them where memory is short.
    """
    start = time.perf_counter()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with log.open("wb") as file:
        process = subprocess.Popen([sys.executable, *command], stdout=file, stderr=file, env=environment)
    private, ended = 0, 0
    while not ended:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        private = max(private, _private(process.pid))
        time.sleep(POLL)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, {
        "seconds": time.perf_counter() - start, "processor": usage.ru_utime + usage.ru_stime,
        "peak": usage.ru_maxrss / 2**20, "private": private / 2**20,
    }  # fmt: skip


def _private(pid: int) -> int:
    """KiB of a process's resident pages that no file backs."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)


def carry_out(run: Run, stage: str) -> dict[str, Any]:
    """Run a stage. Raises RuntimeError if it fails."""
    facts = run.folder / "facts.json"
    facts.unlink(missing_ok=True)
    if stage in INSIDE:
        command = run.inside(stage)
    else:
        arguments, written = COMMANDS[stage]
        command = arguments(run)
        if written is not None:
            shutil.rmtree(written(run), ignore_errors=True)
    log = run.folder / f"{stage.replace(' ', '_')}.log"
    code, cost = measured(command, log)
    output = log.read_text()
    checked = stage.startswith("check-base")  # which finds fault with random weights: exit code 2
    if code not in ((0, 2) if checked else (0,)):
        raise RuntimeError(f"{stage} ended with exit code {code}:\n{output[-3000:]}")
    found = json.loads(facts.read_text()) if facts.is_file() else {}
    if checked:
        found = dict(_told(output, run.folder)) | {"exit code": code}
    return {"cost": cost, "facts": found}


def _told(output: str, folder: Path) -> Iterator[tuple[str, str]]:
    """What check-base prints of each file, and of all."""
    for line in output.replace(f"{folder}/", "").splitlines():
        name, _, told = line.partition("  ")
        if told and name.endswith((".json", ".safetensors")):
            yield f"`{name}`", told.strip()
        elif " whole" in name:
            yield "in all", f"`{name.removeprefix('error: ')}`"


def report(run: Run, done: dict[str, Any]) -> str:
    """Markdown."""
    rows = [(stage, done[stage]["cost"]) for stage in STAGES if stage in done]
    lines = [
        "# Stable Video Diffusion at its full size", "",
        f"{platform.machine()} CPU, {os.cpu_count()} cores shared with other work, torch {version('torch')}, diffusers "
        f"{version('diffusers')}. Random weights in the published layout; see the head of "
        "[whole_svd.py](whole_svd.py). On a GPU: not measured.", "",
        f"Videos: 14 frames of 256 x 448 from windows of 8, 2 steps, decoded in bfloat16 ({', '.join(METHODS)}). "
        "Training: two steps of the motion LoRA on one clip of 8 frames of 256 x 448, `bf16-mixed`, gradient "
        f"checkpointing, VAE and CLIP in the loop. Both have `{' '.join(run.overrides) or 'vram=none'}`.", "",
        "| stage | processor, s | clock, s | peak, GiB | of which private, GiB |", "|---|---|---|---|---|",
        *(f"| {stage} | {c['processor']:.0f} | {c['seconds']:.0f} | {c['peak']:.1f} | {c['private']:.1f} |"
          for stage, c in rows),
        "",
        "The peak is that of the stage's own process (`ru_maxrss`). The pages that are not private are those of weight "
        "files that are mapped into memory; the system drops them where memory is short.", "",
    ]  # fmt: skip
    for stage in STAGES:
        facts = done.get(stage, {}).get("facts")
        if facts:
            lines += [f"## {stage}", "", *(f"- {name}: {value}" for name, value in facts.items()), ""]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="for all that the stages make")
    parser.add_argument("--stages", help="run these again, by commas; default: all that are not done")
    parser.add_argument("--config", type=Path, default=ROOT / "benchmarks" / "svd.yaml", help="of the parts")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", default=[])
    args = parser.parse_args()
    run = Run(args.folder.resolve(), args.config.resolve(), args.overrides)
    if args.inside is not None:
        facts = INSIDE[args.inside](run)
        (run.folder / "facts.json").write_text(json.dumps(facts))
        return
    run.folder.mkdir(parents=True, exist_ok=True)
    results = run.folder / "results.json"
    done = json.loads(results.read_text()) if results.is_file() else {}
    chosen = args.stages.split(",") if args.stages else [stage for stage in STAGES if stage not in done]
    unknown = [stage for stage in chosen if stage not in STAGES]
    if unknown:
        parser.error(f"--stages {unknown[0]}: must be of {', '.join(STAGES)}")
    for stage in chosen:
        print(f"{stage} ...", flush=True)
        done[stage] = carry_out(run, stage)
        cost = done[stage]["cost"]
        print(f"  {cost['seconds']:.0f} s, peak {cost['peak']:.1f} GiB {done[stage]['facts']}", flush=True)
        results.write_text(json.dumps(done, indent=1))
    if args.report is not None:
        args.report.write_text(report(run, done), encoding="utf-8")


if __name__ == "__main__":
    main()
