"""Training throughput of the project's Trainer and of a bare loop of the same forward, backward and step.

python benchmarks/training.py [--experiment motion_lora] [--steps 12] [--rounds 3] [--report FILE] [override ...]

All train the same model in one run, in turns; a round is `--steps` steps of each. The bare loop has latents, conditions
and noise prepared. The Trainer draws noise, makes the conditions, logs and clips gradients as in a real run: once on
latents that motionanim.data.encode prepared, once on clips that it renders or decodes, and encodes.
"""

import argparse
import functools
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from torch import Tensor, nn
from torch.utils.data import default_collate

import motionanim.cli.command
from motionanim.cli.progress import now
from motionanim.data.engine import ProcessEngine
from motionanim.data.latents.encoding import encode_clips, encode_shard
from motionanim.data.stream import StreamData
from motionanim.models.svd.codec import Codec
from motionanim.training.diffusion import DiffusionModule
from motionanim.training.losses import denoising_loss
from motionanim.types import ClipBatch

CONF = Path(__file__).resolve().parents[1] / "conf"
WARMUP = 2


class Clock(L.Callback):
    """Seconds between the end of the warm-up steps and the end of the last step."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
        at = now()
        if trainer.global_step == WARMUP:
            self.start = at
        self.seconds = at - getattr(self, "start", at)


def prepared_losses(module: DiffusionModule, batches: list[ClipBatch]) -> list[Callable[[], Tensor]]:
    """One closure per batch, with everything but the UNet's work done beforehand."""
    closures = []
    for batch in batches:
        latents = module.codec.encode(batch.frames)
        draws = module.draw(batch, latents.shape[1:])
        condition = module.condition(batch, draws)
        sigma = module.noise_level(draws["ln_sigma"], condition.use_flow > 0)
        arguments = (module.denoiser, latents, condition, sigma, draws["noise"])
        closures.append(lambda arguments=arguments: denoising_loss(*arguments).mean())
    return closures


def encode_latents(
    data: StreamData, codec: Codec, *, predict: bool, size: dict[str, int], clips: int, folder: Path
) -> None:
    """The first `clips` of the training stream into one shard in `folder`."""
    make_shard = functools.partial(
        encode_shard, clips=data.train, encode=codec.encode, embed=codec.embed_image,
        warp=codec.warp_image if predict else None, batch_size=1, num_workers=0, device=codec.vae.device,
    )  # fmt: skip
    encode_clips(
        make_shard, count=clips, shard_clips=clips, predict=predict, vae=codec.fingerprint(), size=size, source={},
        folder=folder, engine=ProcessEngine(workers=0),
    )  # fmt: skip


def bare_loop(module: nn.Module, losses: list[Callable[[], Tensor]], steps: int, precision: str) -> float:
    """Seconds for `steps` steps after the warm-up."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    for step in range(WARMUP + steps):
        if step == WARMUP:
            start = now()
        with torch.autocast(module.device.type, dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
            loss = losses[step % len(losses)]()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return now() - start


def trainer_loop(module: DiffusionModule, data: L.LightningDataModule, steps: int, precision: str) -> float:
    clock = Clock()
    L.Trainer(
        accelerator=module.device.type, devices=1, precision=precision, max_steps=WARMUP + steps, callbacks=[clock],
        gradient_clip_val=1.0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
    ).fit(module, data)  # fmt: skip
    return clock.seconds


def main() -> None:
    motionanim.cli.command.quiet()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--experiment", default="motion_lora")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--report", type=Path)
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        cfg = compose("train", [f"experiment={args.experiment}", "paths.run=.", *args.overrides])
    L.seed_everything(0, verbose=False)
    data = instantiate(cfg.data, _convert_="all")
    module: DiffusionModule = instantiate(cfg.model, _convert_="all")
    size = cfg.data.batch_size
    batches = [default_collate([data.train[b * size + i] for i in range(size)]) for b in range(4)]
    losses = prepared_losses(module, batches)
    rows = []
    with tempfile.TemporaryDirectory() as latents:
        scale = {name: cfg.scale[name] for name in ("num_frames", "height", "width")}
        encode_latents(
            data, module.codec, predict=module.denoiser.uses_warped, size=scale, clips=4 * size, folder=Path(latents)
        )
        for _ in range(args.rounds):
            bare = bare_loop(module, losses, args.steps, cfg.trainer.precision)
            prepared, full = (
                trainer_loop(
                    module, instantiate(cfg.data, latents=source, _convert_="all"), args.steps, cfg.trainer.precision
                )
                for source in (latents, None)
            )
            rows.append((bare / args.steps, prepared / args.steps, full / args.steps, bare / prepared, bare / full))
    median_prepared, median_full = (sorted(row[column] for row in rows)[len(rows) // 2] for column in (3, 4))
    lines = [
        f"# Training throughput, {args.experiment}",
        "",
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"lightning {L.__version__}, {cfg.trainer.precision}, batch {size}, "
        f"{time.strftime('%Y-%m-%d')}. Seconds per step; ratio = Trainer's throughput / bare loop's.",
        "",
        "| round | bare loop, prepared tensors | Trainer, prepared latents | Trainer, clips encoded on the fly "
        "| ratio, latents | ratio, on the fly |",
        "|---|---|---|---|---|---|",
        *(f"| {i + 1} | " + " | ".join(f"{value:.3f}" for value in row) + " |" for i, row in enumerate(rows)),
        "",
        f"The median ratio is {median_prepared:.3f} on prepared latents and {median_full:.3f} on the fly.",
        "",
    ]
    print("\n".join(lines))
    if args.report:
        args.report.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
