"""For full_scale.py: a training step of `python train.py` beside a plain diffusers loop over the same UNet."""

import gc
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import NamedTuple

import counted
import torch
from ceilings import matmul_rate
from diffusers import UNetSpatioTemporalConditionModel
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.utils.data import default_collate
from training import bare_loop, encode_latents, trainer_loop

from motionanim.models.schedule import loss_weight, per_clip, to_denoised
from motionanim.models.svd.codec import Codec
from motionanim.models.svd.lora import add_lora
from motionanim.training.diffusion import DiffusionModule
from motionanim.types import ClipBatch

CLIPS = 8  # rendered beforehand for all loops


class Cost(NamedTuple):
    seconds: float  # a clip
    gibi: float | None  # at the peak; None where it cannot be read
    batch: int


def plain_step(unet: UNetSpatioTemporalConditionModel, codec: Codec, clips: ClipBatch) -> Tensor:
    """Stable Video Diffusion's loss as a diffusers script computes it: VAE and CLIP in the loop, no motion."""
    with torch.no_grad():
        frames = clips.frames.flatten(0, 1)
        latents = torch.cat([codec.vae.encode(part).latent_dist.mode() for part in frames.split(16)])
        latents = latents.unflatten(0, clips.frames.shape[:2]).float() * codec.vae.config.scaling_factor
        image = clips.image + 0.02 * torch.randn_like(clips.image)
        image_latents = codec.vae.encode(image).latent_dist.mode().float()
        embedding = codec.embed_image(clips.image)
    count = len(latents)
    sigma = torch.exp(torch.randn(count, device=latents.device))
    level = per_clip(sigma, latents)
    z = latents + level * torch.randn_like(latents)
    stacked = torch.cat([z / (level**2 + 1) ** 0.5, image_latents[:, None].expand(-1, z.shape[1], -1, -1, -1)], dim=2)
    ids = torch.tensor([[6.0, 127.0, 0.02]], device=z.device).repeat(count, 1)
    v = unet(stacked, 0.25 * sigma.log(), encoder_hidden_states=embedding, added_time_ids=ids).sample
    return (loss_weight(level) * (to_denoised(v.float(), z, sigma) - latents).square()).mean()


def run_plain(cfg: DictConfig, clips: list[ClipBatch], batch: int, steps: int, device: torch.device) -> Cost:
    """The plain loop with the same trained parameters, diffusers' checkpointing and torch's default AdamW."""
    reset(device)
    codec = Codec.from_pretrained(cfg.scale.base).to(device)
    unet = UNetSpatioTemporalConditionModel.from_pretrained(cfg.scale.base, subfolder="unet", torch_dtype=torch.float32)
    if "rank" in cfg.model:
        add_lora(unet, rank=cfg.model.rank, alpha=cfg.model.alpha)
    else:
        trained = counted.trained_names(unet, cfg.model.trainable)
        for name, parameter in unet.named_parameters():
            parameter.requires_grad_(name in trained)
    if cfg.scale.checkpoint_width:
        unet.enable_gradient_checkpointing()
    unet.to(device).train()
    batches = [default_collate(clips[first : first + batch]) for first in range(0, len(clips) - batch + 1, batch)]
    losses = [partial(plain_step, unet, codec, ClipBatch(*(f.to(device) for f in fields))) for fields in batches]
    return Cost(bare_loop(unet, losses, steps, cfg.trainer.precision) / (steps * batch), peak(device), batch)


def run_ours(cfg: DictConfig, latents: Path, steps: int, device: torch.device) -> Cost:
    """Lightning's Trainer with the experiment's own module, on prepared latents."""
    reset(device)
    module: DiffusionModule = instantiate(cfg.model, _convert_="all").to(device)
    data = instantiate(cfg.data, latents=str(latents), _convert_="all")
    seconds = trainer_loop(module, data, steps, cfg.trainer.precision)
    return Cost(seconds / (steps * cfg.data.batch_size), peak(device), cfg.data.batch_size)


def largest(run, batch: int) -> Cost | None:
    """The result of `run` with the largest of batch, batch / 2, ... that fits into the memory; None if none does."""
    while batch:
        try:
            return run(batch)
        except torch.OutOfMemoryError:
            batch //= 2  # its memory is freed after this clause, when `run` begins with `reset`
    return None


def training_rows(configs: Mapping[str, DictConfig], device: torch.device, rounds: int, steps: int) -> list[str]:
    """Markdown lines: a row for each preset."""
    any_cfg = next(iter(configs.values()))
    size = {name: any_cfg.scale[name] for name in ("num_frames", "height", "width")}
    rate = matmul_rate(device, torch.bfloat16 if any_cfg.trainer.precision == "bf16-mixed" else torch.float32)
    lines = [
        f"Clips of {size['num_frames']} frames, {size['height']} x {size['width']}, {any_cfg.trainer.precision}; the "
        f"best of {rounds} rounds of {steps} steps. Plain: VAE and CLIP in the loop, diffusers' gradient checkpointing "
        "where ours is on, the largest batch up to ours that fits, clips in memory. Ours: `train.py`'s Trainer on "
        "prepared latents. Utilisation: the model's operations, none counted twice, over those of a large matrix "
        f"product ({rate / counted.TERA:.3g} TFLOP/s).",
        "",
        "| what trains | plain, s a clip | batch | GiB | ours, s a clip | batch | GiB | plain / ours | utilisation |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        clips = _prepare(any_cfg, Path(folder), size, device)
        for name, cfg in configs.items():
            best: list[Cost | None] = [None, None]
            for _ in range(rounds):
                for place, run in enumerate(
                    (
                        lambda b, cfg=cfg: run_plain(cfg, clips, b, steps, device),
                        lambda b, cfg=cfg: run_ours(_with_batch(cfg, b), Path(folder), steps, device),
                    )
                ):
                    cost = largest(run, cfg.data.batch_size)
                    if cost is not None and (best[place] is None or cost.seconds < best[place].seconds):
                        best[place] = cost
            lines.append(_row(name, cfg, best, rate))
    return [*lines, ""]


def _row(name: str, cfg: DictConfig, best: list[Cost | None], rate: float) -> str:
    cells = [
        ("out of memory", "", "")
        if cost is None
        else (f"{cost.seconds:.3g}", f"{cost.batch}", "not measured" if cost.gibi is None else f"{cost.gibi:.1f}")
        for cost in best
    ]
    plain, ours = best
    ratio = f"{plain.seconds / ours.seconds:.2f}" if plain and ours else ""
    used = f"{counted.clip_flops(cfg) / ours.seconds / rate:.2f}" if ours else ""
    return f"| {name} | " + " | ".join([*cells[0], *cells[1], ratio, used]) + " |"


def _prepare(cfg: DictConfig, folder: Path, size: dict[str, int], device: torch.device) -> list[ClipBatch]:
    """Clips of the procedural world, and their latents in `folder`."""
    data = instantiate(cfg.data, _convert_="all")
    codec = Codec.from_pretrained(cfg.scale.base).to(device)
    encode_latents(data, codec, predict=cfg.conditioning.warped_latent, size=size, clips=CLIPS, folder=folder)
    return [data.train[position] for position in range(CLIPS)]


def _with_batch(cfg: DictConfig, batch: int) -> DictConfig:
    return OmegaConf.merge(cfg, {"data": {"batch_size": batch}})


def reset(device: torch.device) -> None:
    """Free what earlier runs held, models in reference cycles too, and count memory anew."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak(device: torch.device) -> float | None:
    """GiB since `reset`; None where it cannot be read."""
    return torch.cuda.max_memory_allocated() / counted.GIBI if device.type == "cuda" else None
