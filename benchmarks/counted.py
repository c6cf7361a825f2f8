"""Cost of Stable Video Diffusion at the paper's size, counted on tensors without values: no GPU, no weights.

python benchmarks/counted.py [--batch 4]
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from accounting import PeakMemory, count_flops
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from tqdm import tqdm
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import motionanim.cli.command
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.lora import add_lora
from motionanim.sampling.split import phase_split
from motionanim.types import Condition

ROOT = Path(__file__).resolve().parents[1]
SVD: dict[str, Any] = yaml.safe_load((Path(__file__).parent / "svd.yaml").read_text())
CHECKPOINTING: dict[str, Callable[[Denoiser], None]] = {
    "none": lambda denoiser: None,
    "diffusers'": lambda denoiser: denoiser.unet.enable_gradient_checkpointing(),
    "ours, to 320 channels": partial(Denoiser.checkpoint_blocks, width=320),
    "ours, to 640 channels": partial(Denoiser.checkpoint_blocks, width=640),
    "ours, all": partial(Denoiser.checkpoint_blocks, width=1280),
}
TERA, GIBI = 1e12, 2**30
H200 = 989e12  # operations per second in bfloat16, dense, by its data sheet
H200_TF32 = 494e12  # of convolutions in float32, the decoder's
CONTEXT = 4  # frames on either side of a chunk that the decoder sees too
SHARE = 0.4  # share of it that a well-tuned run reaches
IMAGE = "VAE, image encoded"


def settings() -> dict[str, Any]:
    """The numbers of scale=svd, and those of its sampling and long video."""
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        cfg = compose("animate", ["image=none", "scale=svd", "long_video=phased", "frames=125"])
        rank = compose("train", ["experiment=motion_lora", "scale=svd", "paths.run=."]).model.rank
    return OmegaConf.to_container(cfg, resolve=True) | {"rank": rank}


def build_denoiser(unet: dict[str, Any], motion: dict[str, Any]) -> Denoiser:
    """A denoiser without values, and without the one convolution of the warped frames."""
    with torch.device("meta"):
        return Denoiser(
            UNetSpatioTemporalConditionModel.from_config(unet),
            downscale=8,
            scaling=1.0,
            motion=motion | {"warped_latent": False},
        )


def trained_names(unet: UNetSpatioTemporalConditionModel, preset: str) -> set[str]:
    """The UNet's parameters that a preset trains."""
    denoiser = build_denoiser(unet.config, settings()["motion"])
    denoiser.select_trainable(preset)
    return {name for name, parameter in denoiser.unet.named_parameters() if parameter.requires_grad}


def blank(denoiser: Denoiser, scale: dict[str, Any], batch: int, downscale: int = 8) -> tuple[torch.Tensor, Condition]:
    """Latents and condition of `batch` clips."""
    frames, height, width = (scale[name] for name in ("num_frames", "height", "width"))
    h, w, config = height // downscale, width // downscale, denoiser.unet.config
    latents = (config.out_channels, h, w)
    condition = Condition.blank(
        batch, frames, latents=latents, pixels=(height, width), embed_width=config.cross_attention_dim
    )
    return torch.empty(batch, frames, *latents), condition


def denoise(denoiser: Denoiser, scale: dict[str, Any], batch: int, downscale: int = 8) -> torch.Tensor:
    """One call of the denoiser on `batch` clips."""
    latents, condition = blank(denoiser, scale, batch, downscale)
    return denoiser(latents, torch.ones(batch), condition)


def backward(denoiser: Denoiser, scale: dict[str, Any], batch: int) -> None:
    """The loss of `batch` clips and its gradients."""
    latents, condition = blank(denoiser, scale, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        context = denoiser.context(condition)
    with denoiser.motion.using(context):  # diffusers' own checkpointing reads it in the backward pass too
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = denoiser(latents, torch.ones(batch), context).square().mean()
        loss.backward()


def clip_flops(cfg: DictConfig) -> int:
    """Operations of one clip's loss and gradients without recomputation; `cfg` is a composed conf/train.yaml."""
    unet = UNetSpatioTemporalConditionModel.load_config(cfg.scale.base, subfolder="unet")
    denoiser = build_denoiser(unet, OmegaConf.to_container(cfg.model.motion, resolve=True)).train()
    if "rank" in cfg.model:
        with_lora(denoiser, rank=cfg.model.rank)
    else:
        denoiser.select_trainable(cfg.model.trainable)
    with FakeTensorMode(allow_non_fake_inputs=True):
        denoiser.to_empty(device="cpu")
        return count_flops(lambda: backward(denoiser, cfg.scale, 1))


def inference_rows(cfg: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """(part, its parameters in millions, TFLOP of one use, uses in a video)."""
    frames, height, width = cfg["frames"], cfg["height"], cfg["width"]
    steps, window = cfg["sampling"]["num_steps"], cfg["scale"]["num_frames"]
    seen = [min(frames, first + window + CONTEXT) - max(0, first - CONTEXT) for first in range(0, frames, window)]
    clips = sum(seen) / window
    calls = steps + (-(-frames // window) - 1) * (steps - phase_split(steps, cfg["long_video"]["gamma"]))
    pair = 2 if cfg["sampling"]["max_guidance"] > 1 else 1
    denoiser = build_denoiser(SVD["unet"], cfg["motion"])
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        denoiser.to_empty(device="cpu")
        vae = AutoencoderKLTemporalDecoder(**SVD["vae"])
        clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**SVD["image_encoder"]))
        latents = torch.empty(window, 4, height // 8, width // 8)
        call = partial(denoise, denoiser, cfg["scale"], 1)
        parts: list[tuple[str, nn.Module, Callable[[], Any], float]] = [
            (f"denoiser, {window} frames of {height}²", denoiser, call, calls * pair),
            (IMAGE, vae.encoder, lambda: vae.encode(torch.empty(1, 3, height, width)), 1),
            (f"VAE, {window} frames decoded", vae.decoder, lambda: vae.decode(latents, num_frames=window), clips),
            ("CLIP, image embedded", clip, lambda: clip(torch.empty(1, 3, 224, 224)), 1),
        ]  # fmt: skip
        return [
            (name, sum(p.numel() for p in module.parameters()) / 1e6, count_flops(run) / TERA, uses)
            for name, module, run, uses in parts
        ]


def training_rows(cfg: dict[str, Any], batch: int) -> list[tuple[str, str, float, float, float]]:
    """(what trains, checkpointing, its parameters in millions, TFLOP of a step, GiB at the peak of the second step)."""
    presets: dict[str, Callable[[Denoiser], None]] = {
        "motion LoRA": partial(with_lora, rank=cfg["rank"]),
        "temporal": lambda denoiser: denoiser.select_trainable("temporal"),
        "literal": lambda denoiser: denoiser.select_trainable("literal"),
    }
    rows = []
    cases = [(preset, kind) for preset in presets for kind in CHECKPOINTING]
    for preset, kind in tqdm(cases, desc="counted training steps"):
        denoiser = build_denoiser(SVD["unet"], cfg["motion"]).train()
        presets[preset](denoiser)  # before it is fake, because peft moves its weights to the device of the others
        with FakeTensorMode(allow_non_fake_inputs=True):
            denoiser.to_empty(device="cpu")
            CHECKPOINTING[kind](denoiser)
            trained = [p for p in denoiser.parameters() if p.requires_grad]
            optimizer = torch.optim.AdamW(trained)
            with PeakMemory(denoiser) as memory:
                for _ in range(2):  # AdamW makes its moments in the first step
                    backward(denoiser, cfg["scale"], batch)
                    optimizer.step()
                    optimizer.zero_grad()
            flops = count_flops(lambda denoiser=denoiser: backward(denoiser, cfg["scale"], batch))
        rows.append((preset, kind, sum(p.numel() for p in trained) / 1e6, flops / TERA, memory.peak / GIBI))
    return rows


def with_lora(denoiser: Denoiser, rank: int) -> None:
    denoiser.requires_grad_(False)
    add_lora(denoiser.unet, rank=rank, alpha=rank)


def report(batch: int) -> list[str]:
    """Markdown lines."""
    cfg = settings()
    inference = inference_rows(cfg)
    total = sum(flops * uses for _, _, flops, uses in inference)
    image = next(flops for name, _, flops, _ in inference if name == IMAGE)
    training = training_rows(cfg, batch)
    plain = {preset: flops for preset, kind, _, flops, _ in training if kind == "diffusers'"}
    pictures = batch * (cfg["scale"]["num_frames"] + 1)  # of clips, and a noised first frame of each
    decoding = sum(flops * uses for name, _, flops, uses in inference if "decoded" in name)
    floor = (total - decoding) * TERA / H200 + decoding * TERA / H200_TF32
    return [
        f"{cfg['frames']} frames, `phased`, gamma {cfg['long_video']['gamma']}, {cfg['sampling']['num_steps']} steps, "
        "guidance on:",
        "",
        "| part | parameters, M | TFLOP a use | uses | TFLOP |",
        "|---|---|---|---|---|",
        *(
            f"| {name} | {parameters:.1f} | {flops:.2f} | {uses:g} | {flops * uses:.1f} |"
            for name, parameters, flops, uses in inference
        ),
        f"| together | | | | {total:.0f} |",
        "",
        f"One H200 ({H200 / TERA:.0f} TFLOP/s, {H200_TF32 / TERA:.0f} in the decoder's float32) needs "
        f"at least {floor:.1f} s, and {floor / SHARE:.1f} s at {SHARE:.0%} "
        "of that rate. These times are calculated, not measured.",
        "",
        f"A training step of {batch} clips on prepared latents, bf16-mixed, AdamW; weights, gradients and moments in "
        f"float32. Without prepared latents the VAE adds {pictures * image:.0f} TFLOP ({pictures} pictures), and CLIP "
        "and the flow add their operations:",
        "",
        f"| what trains | parameters, M | checkpointing | TFLOP a step | GiB at the peak | s, H200 at {SHARE:.0%} "
        "| a plain diffusers loop (its checkpointing, VAE in it), times as much |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {preset} | {parameters:.1f} | {kind} | {flops:.0f} | {peak:.1f} | {flops * TERA / H200 / SHARE:.2f} "
            f"| {(plain[preset] + pictures * image) / flops:.2f} |"
            for preset, kind, parameters, flops, peak in training
        ),
        "",
    ]


def main() -> None:
    motionanim.cli.command.quiet()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=4)
    print("\n".join(report(parser.parse_args().batch)))


if __name__ == "__main__":
    main()
