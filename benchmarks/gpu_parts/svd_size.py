"""Part 3b of benchmarks/gpu.py: measure the cost of SVD's real size, with random weights, each figure beside its floor.

On a CPU it measures the embedded base's size. The floor of a figure is the number of operations, which are counted,
divided by the rate of a large matrix product in the same precision.
"""

import gc
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import counted
import torch
from accounting import count_flops
from full_scale import make_video
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import Tensor

import motionanim.cli.command
from gpu_parts.results import Results, arguments, read_rows
from motionanim.cli.progress import now
from motionanim.models.svd.codec import Codec
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.lora import add_lora
from motionanim.models.svd.tiny import build_pipeline
from motionanim.sampling.animator import Animator
from motionanim.sampling.split import phase_split
from motionanim.training.losses import denoising_loss
from motionanim.types import Condition

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ("motion LoRA", "temporal", "literal")


def settings(device: torch.device, overrides: list[str]) -> dict[str, Any]:
    """conf/animate.yaml for a phased video of 125 frames (on a CPU: 24) of this part's size, and the LoRA's rank."""
    size = ["scale=svd", "frames=125"] if device.type == "cuda" else ["scale=tiny", "frames=24"]
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        cfg = compose("animate", ["image=none", "long_video=phased", *size, *overrides])
        rank = compose("train", ["experiment=motion_lora", "paths.run=."]).model.rank
    return OmegaConf.to_container(cfg, resolve=True) | {"rank": rank}


def network_configs(device: torch.device, base: str) -> dict[str, Any]:
    """Arguments of `build_pipeline`: SVD's on a GPU, the embedded base's on a CPU."""
    if device.type == "cuda":
        return counted.SVD
    parts = ("vae", "unet", "image_encoder")
    return {part: json.loads((Path(base) / part / "config.json").read_text()) for part in parts}


def build(cfg: dict[str, Any], device: torch.device) -> Animator:
    """The pipeline with random weights, drawn on the device, where 2.2 billion of them take seconds."""
    configs = network_configs(device, cfg["scale"]["base"])
    with torch.device(device):
        pipeline = build_pipeline(seed=0, **configs)
    torch.nn.init.normal_(pipeline.unet.conv_out.weight, std=0.01)  # zero in a new base
    codec = Codec(pipeline.vae.float(), pipeline.image_encoder.float(), pipeline.feature_extractor).to(device)
    scaling = pipeline.vae.config.scaling_factor
    denoiser = Denoiser(pipeline.unet, downscale=codec.downscale, scaling=scaling, motion=cfg["motion"]).eval()
    denoiser.to(device, getattr(torch, cfg["sampling"]["dtype"]))
    return Animator(codec, denoiser, sampling=cfg["sampling"], context_length=cfg["scale"]["num_frames"])


def example(animator: Animator, cfg: dict[str, Any], batch: int) -> tuple[Tensor, Tensor, Condition]:
    """Random latents of `batch` clips, their noise levels (batch,) and condition."""
    size, device = (cfg["height"], cfg["width"]), animator.device
    frames, down = cfg["scale"]["num_frames"], animator.codec.downscale
    image = torch.rand(1, 3, *size, device=device) * 2 - 1
    flow = torch.randn(1, frames - 1, 2, *size, device=device)
    one = torch.ones(1, device=device)
    condition = animator.codec.condition(
        image, noise=image, noise_aug=one, flow=flow, motion_strength=one, fps=one,
        warped_latents=animator.codec.warp_image(image, flow) if animator.denoiser.uses_warped else None,
    )  # fmt: skip
    channels = condition.image_latents.shape[1]
    latents = torch.randn(batch, frames, channels, size[0] // down, size[1] // down, device=device)
    return latents, torch.ones(batch, device=device), condition.repeat(batch)


class Sampling:
    """The rows of inference.

    Args:
        rates: Operations a second by dtype.
    """

    def __init__(self, cfg: dict[str, Any], device: torch.device, results: Results, rates: dict[str, float]) -> None:
        self.cfg, self.device, self.results, self.rates = cfg, device, results, rates
        self.animator = build(cfg, device)
        self.pair = 2 if cfg["sampling"]["max_guidance"] > 1 else 1

    @torch.no_grad()
    def call(self, segments: int, tflop: float | None = None) -> dict[str, Any]:
        """Seconds of one denoiser call for `segments` windows, with the guidance pair; `tflop` is counted if None."""
        latents, sigma, condition = example(self.animator, self.cfg, segments * self.pair)
        row = timed(partial(self.animator.denoiser, latents, sigma, condition), self.device, tflop)
        return row | self.floor(row["tflop"], self.cfg["sampling"]["dtype"]) | {"s_per_segment": row["s"] / segments}

    @torch.no_grad()
    def decode(self, chunk: int, dtype: str) -> dict[str, Any]:
        """Seconds to decode one window, `chunk` frames at a time."""
        latents = example(self.animator, self.cfg, 1)[0]
        row = timed(lambda: self.animator.codec.decode(latents, chunk=chunk, dtype=getattr(torch, dtype)), self.device)
        return row | self.floor(row["tflop"], dtype)

    def video(self) -> dict[str, Any]:
        """The phased video, once and whole."""
        reset()
        _, record, seconds = make_video(self.cfg, self.animator, {})
        return {"s": seconds, "calls": record.calls, **{f"{k}, s": v for k, v in record.seconds.items()}, **peak()}

    def extrapolated(self) -> dict[str, Any]:
        """The same from the figures of one call and one decoded window."""
        rows, frames, steps = self.results.rows, self.cfg["frames"], self.cfg["sampling"]["num_steps"]
        window = self.cfg["scale"]["num_frames"]
        segments = -(-frames // window)
        calls = steps + (segments - 1) * (steps - phase_split(steps, self.cfg["long_video"]["gamma"]))
        call, decoded = rows["denoiser call"], rows[f"decode, float32, chunks of {window}"]
        parts = {"calls": calls, "denoise, s": calls * call["s"], "decode, s": frames / window * decoded["s"]}
        tflop = calls * call["tflop"] + frames / window * decoded["tflop"]
        row = {"s": parts["denoise, s"] + parts["decode, s"], "tflop": tflop, **parts}
        if "floor_s" in call and "floor_s" in decoded:
            row["floor_s"] = calls * call["floor_s"] + frames / window * decoded["floor_s"]
        return row

    def floor(self, tflop: float, dtype: str) -> dict[str, float]:
        return floor(tflop, self.rates.get(dtype))

    def run(self) -> None:
        """All rows, the most wanted first."""
        measure, window = self.results.measure, self.cfg["scale"]["num_frames"]
        groups, chunks = ((2, 4, 8), (4, 8, 14)) if self.device.type == "cuda" else ((2,), (4,))
        measure("denoiser call", lambda: self.call(1), needs=3)
        measure(f"decode, float32, chunks of {window}", lambda: self.decode(window, "float32"), needs=3)
        measure("phased video, extrapolated", self.extrapolated, needs=0)
        estimate = self.results.rows["phased video, extrapolated"].get("s", 30)
        measure("phased video, whole", self.video, needs=1.5 * estimate)
        if self.device.type == "cuda":  # a CPU without instructions for it takes minutes
            measure(f"decode, bfloat16, chunks of {window}", lambda: self.decode(window, "bfloat16"), needs=3)
        for chunk in chunks:
            measure(f"decode, float32, chunks of {chunk}", lambda c=chunk: self.decode(c, "float32"), needs=3)
        for group in groups:
            measure(f"denoiser call, {group} segments at once", lambda g=group: self.call(g), needs=3)
        self.animator.denoiser.channels_last()
        measure("denoiser call, channels last", lambda: self.call(1), needs=3)


class Training:
    """Steps of one preset on prepared latents: forward, backward, AdamW; weights in float32, bf16-mixed on a GPU."""

    def __init__(self, cfg: dict[str, Any], device: torch.device, preset: str) -> None:
        self.cfg, self.device, animator = cfg, device, build(cfg, device)
        self.denoiser = animator.denoiser.float().train()
        if preset == "motion LoRA":
            self.denoiser.requires_grad_(False)
            add_lora(self.denoiser.unet, rank=cfg["rank"], alpha=cfg["rank"])
        else:
            self.denoiser.select_trainable(preset)
        if cfg["scale"]["checkpoint_width"]:
            self.denoiser.checkpoint_blocks(cfg["scale"]["checkpoint_width"])
        self.animator = animator
        trained = [p for p in self.denoiser.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)

    def step(self, batch: int, tflop: float | None) -> dict[str, Any]:
        """Seconds of a step; its operations are counted if `tflop` is None.

        Counting keeps in memory what checkpointing would free, so it is done for the smallest batch only.
        """
        latents, sigma, condition = example(self.animator, self.cfg, batch)
        noise = torch.randn_like(latents)
        std = self.denoiser.motion.sigma_data(condition)

        def run() -> None:
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
                loss = denoising_loss(self.denoiser, latents, condition, sigma, noise, sigma_data=std).mean()
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()

        run()  # AdamW makes its moments, once
        row = timed(run, self.device, tflop)
        return row | {"batch": batch, "s_per_clip": row["s"] / batch}


def train_rows(cfg: dict[str, Any], device: torch.device, results: Results, rates: dict[str, float]) -> None:
    """Measure a step of each preset: first all presets with the smallest batch, then larger batches while they fit."""
    rate = rates.get("bfloat16" if device.type == "cuda" else "float32")
    first, *larger = (4, 8, 16, 24) if device.type == "cuda" else (1, 2)
    needs = 8.0
    for preset in PRESETS:
        needs = _train_row(results, preset, first, partial(Training, cfg, device, preset), None, needs, rate)
    for preset in PRESETS:
        training: list[Training] = []

        def made(preset: str = preset, kept: list[Training] = training) -> Training:
            kept[:] = kept or [Training(cfg, device, preset)]
            return kept[0]

        for batch in larger:
            counted_row = results.rows[_step_name(preset, first)]
            if "tflop" not in counted_row:
                break
            tflop = counted_row["tflop"] * batch / first
            _train_row(results, preset, batch, made, tflop, 2 * needs * batch / first, rate)
            if "failed" in results.rows[_step_name(preset, batch)]:
                break  # a larger batch needs more memory and more time
        training.clear()
        reset()


def _step_name(preset: str, batch: int) -> str:
    return f"training step, {preset}, batch {batch}"


def _train_row(
    results: Results, preset: str, batch: int, make: Callable[[], Training], tflop: float | None, needs: float,
    rate: float | None,
) -> float:  # fmt: skip
    """Measure a row; the seconds that it took, at least `needs`."""

    def run() -> dict[str, Any]:
        row = make().step(batch, tflop)
        return row | floor(row["tflop"], rate)

    left = results.left()
    results.measure(_step_name(preset, batch), run, needs=needs)
    reset()
    return max(left - results.left(), needs)


def floor(tflop: float, rate: float | None) -> dict[str, float]:
    """Seconds that the operations take at `rate` operations a second; no entry if the rate is unknown."""
    return {} if rate is None else {"floor_s": tflop * counted.TERA / rate}


def timed(run: Callable[[], Any], device: torch.device, tflop: float | None = None) -> dict[str, Any]:
    """Seconds of the best of three runs (one on a CPU), after a run that warms up and counts operations if asked."""
    reset()
    if tflop is None:
        tflop = count_flops(run) / counted.TERA
    else:
        run()
    reset()
    best = float("inf")
    for _ in range(3 if device.type == "cuda" else 1):
        start = now()
        run()
        best = min(best, now() - start)
    return {"s": best, "tflop": tflop, **peak()}


def reset() -> None:
    """Free the memory of earlier rows, and reset the peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> dict[str, float]:
    """Peak GiB since `reset`; no entry if it cannot be read."""
    return {"gib": torch.cuda.max_memory_allocated() / 2**30} if torch.cuda.is_available() else {}


def matmul_rates(out: Path) -> dict[str, float]:
    """Operations a second by dtype, as part 1 measured them."""
    rows = read_rows(out / "machine.json")
    return {
        name.removeprefix("matmul "): row["flop_per_s"]
        for name, row in rows.items()
        if name.startswith("matmul ") and "flop_per_s" in row
    }


def main() -> None:
    args = arguments(__doc__)
    motionanim.cli.command.quiet()
    device, results = torch.device(args.device), Results(args.out / "full_scale.json", args.until)
    cfg, rates = settings(device, args.overrides), matmul_rates(args.out)
    share = 0.55 * results.left()  # of sampling; training has the rest
    results.until -= results.left() - share
    Sampling(cfg, device, results, rates).run()
    reset()
    results.until = args.until
    train_rows(cfg, device, results, rates)


if __name__ == "__main__":
    main()
