"""Part 4 of benchmarks/gpu.py: train the embedded base for the rest of the time.

The recipe is conf/experiment/tiny_base.yaml's. Three things differ, because the run ends at a time and not at a step:
the learning rate falls to zero with the clock, clips are drawn from a pool on the device, and the batch fills the card.
The held-out loss is DiffusionModule's, for the average of the weights rounded to float16.
"""

import os
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from torch.utils.data import DataLoader
from tqdm import tqdm

import motionanim.cli.command
from gpu_parts import weights
from gpu_parts.pool import Pool
from gpu_parts.results import Results, arguments, read_rows
from gpu_parts.svd_size import reset
from motionanim.cli.progress import now
from motionanim.data.stream import as_floats, collate
from motionanim.models.weights_io import weights_fingerprint
from motionanim.training.diffusion import VAL_SIGMAS, DiffusionModule
from motionanim.training.losses import denoising_loss
from motionanim.training.optim import adamw, check_finite
from motionanim.types import ClipBatch, LatentBatch

ROOT = Path(__file__).resolve().parents[2]
LR = 3e-4  # for a batch of 4; it grows with the root of the batch, up to MOST_LR
MOST_LR = 1.2e-3
WARMUP = 50  # steps
FALL = 0.6  # share of the time, at its end, in which the learning rate falls to zero
DECAY = 0.998  # maximum decay of the weights' average; it grows with the steps, so that a short training counts
SHARE = 0.25  # of the free memory, for the pool of clips
SAVE_EVERY = 30.0  # seconds
USES = 4  # times that a clip is drawn on average; more if the loaders are slow
BATCHES = (16, 32, 64, 128, 256)


def composed(overrides: list[str]) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        base = "scale.base=${paths.assets}/tiny-svd"
        return compose("train", ["experiment=tiny_base", "paths.run=.", base, *overrides])


class Run:
    """One training on one device, until a time.

    Args:
        source: Folder of an earlier call's results, to train its newest checkpoint; None for the shipped weights.
    """

    def __init__(self, cfg: DictConfig, results: Results, device: torch.device, source: Path | None) -> None:
        self.results, self.device = results, device
        self.module: DiffusionModule = instantiate(cfg.model, _convert_="all").to(device)
        self.data: L.LightningDataModule = instantiate(cfg.data, _convert_="all")
        self.trained = {n: p for n, p in self.module.denoiser.named_parameters() if p.requires_grad}
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        earlier = read_rows(source / "train.json") if source else {}
        # --take replaces the weights that the first call of this training started from.
        results.put("base", **earlier.get("base", {"fingerprint": weights_fingerprint(self.module.denoiser.unet)}))
        self.before = dict(earlier.get("total", {"steps": 0, "minutes": 0.0, "clips": 0, "calls": 0}))
        if "checkpoint" in earlier:
            weights.load(source, earlier["checkpoint"]["weights"], self.trained)
            weights.load(source, earlier["checkpoint"]["average"], self.average)
        self.held_out = self._held_out()
        self.loss_at_start: float | None = earlier.get("held-out loss", {}).get("shipped")

    def _held_out(self) -> list[ClipBatch]:
        count = len(self.data.val) if self.device.type == "cuda" else 4
        loader = DataLoader(self.data.val, 4, sampler=range(count), num_workers=loaders(), collate_fn=collate)
        return list(tqdm(loader, desc="held-out clips", disable=None))

    @contextmanager
    def averaged(self):
        """Within this context the module has the average, rounded to float16 as in a checkpoint."""
        kept = {name: p.detach().clone() for name, p in self.trained.items()}
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(self.average[name].half())
        yield
        with torch.no_grad():
            for name, parameter in self.trained.items():
                parameter.copy_(kept[name])

    @torch.no_grad()
    def loss(self) -> dict[str, float]:
        """Held-out loss of the average, as in `DiffusionModule.validation_step`: all clips, those without a field."""
        self.module.eval()
        total, free = [], []
        with self.averaged(), self._autocast():
            for stored in self.held_out:
                batch = as_floats(ClipBatch(*(field.to(self.device) for field in stored)))
                turn = batch.position % VAL_SIGMAS
                losses, has_flow = self.module.losses(batch, torch.special.ndtri((turn + 0.5) / VAL_SIGMAS))
                total += losses.tolist()
                free += losses[~has_flow].tolist()
        self.module.train()
        return {"loss": sum(total) / len(total), "clips": len(total)} | (
            {"without_field": sum(free) / len(free)} if free else {}
        )

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda")

    def train_loss(self, batch: LatentBatch, generator: torch.Generator) -> Tensor:
        """The loss of `DiffusionModule.training_step`, with random numbers drawn on the device."""
        module, count = self.module, len(batch.fps)

        def normal(*shape: int) -> Tensor:
            return torch.randn(count, *shape, generator=generator, device=self.device)

        draws = {
            "ln_sigma": normal(), "ln_aug": normal(), "noise": normal(*batch.latents.shape[1:]),
            "image_noise": normal(*batch.image.shape[1:]),
            "keep": torch.rand(count, 3, generator=generator, device=self.device),
        }  # fmt: skip
        condition = module.condition(batch, draws)
        sigma = module.noise_level(draws["ln_sigma"], condition.use_flow > 0)
        std = module.denoiser.motion.sigma_data(condition)
        with self._autocast():
            losses = denoising_loss(module.denoiser, batch.latents, condition, sigma, draws["noise"], sigma_data=std)
        return losses.mean()

    def batch_size(self, pool: Pool, generator: torch.Generator) -> tuple[int, dict[str, float]]:
        """The smallest batch within a tenth of the highest clips per second, and the rate of each; 2 on a CPU."""
        if self.device.type == "cpu":
            return 2, {}
        rates: dict[str, float] = {}
        for batch in BATCHES:
            reset()
            try:
                for turn in range(4):
                    if turn == 1:
                        start = now()
                    self.train_loss(pool.draw(batch, generator), generator).backward()
                rates[str(batch)] = 3 * batch / (now() - start)
            except torch.OutOfMemoryError:
                break
            finally:
                self.module.zero_grad()
        if not rates:
            raise torch.OutOfMemoryError
        best = max(rates.values())
        return next(int(batch) for batch, rate in rates.items() if rate > 0.9 * best), rates

    def save(self, total: dict[str, Any]) -> None:
        """Write weights and average, then the row that names them: a kill in between leaves the earlier ones."""
        old = self.results.rows.get("checkpoint", {})
        stem = f"{total['steps']:07}"
        new = {
            "weights": weights.save(self.results.path.parent, f"weights-{stem}", self.trained),
            "average": weights.save(self.results.path.parent, f"average-{stem}", self.average),
        }
        self.results.rows["total"] = total
        self.results.put("checkpoint", **new)
        for name in {*old.get("weights", []), *old.get("average", [])} - {*new["weights"], *new["average"]}:
            (self.results.path.parent / name).unlink(missing_ok=True)

    def train(self, seed: int) -> None:
        begin = time.time()
        generator = torch.Generator(self.device).manual_seed(seed)
        first = self.loss()
        if self.loss_at_start is None:
            self.loss_at_start = first["loss"]
        self.results.put("held-out loss", shipped=self.loss_at_start, before=first, after=first)
        check = time.time() - begin
        pool = Pool(
            self.data.train, self.module.codec, start=2**20 + self.before["clips"], workers=loaders(),
            size=pool_size(self.device, self.data.train[0]),
        )  # fmt: skip
        pool.take_in(0, least=8)
        batch, rates = self.batch_size(pool, generator)
        lr = min(LR * (batch / 4) ** 0.5, MOST_LR)
        made = adamw(
            self.module.denoiser.parameters(), lr=lr, weight_decay=self.module.hparams.weight_decay,
            warmup_steps=WARMUP, decay_steps=0, total=-1,
        )  # fmt: skip
        optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
        # Leaves time for the last loss and checkpoint.
        end = self.results.until - 1.5 * check - 4
        start, saved, steps, waited, losses, usage = time.time(), 0.0, 0, 0.0, [], []
        span, begun = max(end - start, 1.0), now()
        total = dict(self.before)
        bar = tqdm(total=round(span), unit="s", desc="train", mininterval=2, disable=None)
        while (at := time.time()) < end or steps == 0:
            pool.take_in(8 + steps * batch // USES, least=min(2 * batch, pool.size))
            waited += time.time() - at
            loss = self.train_loss(pool.draw(batch, generator), generator)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
            factor = min(1.0, max(0.0, (end - at) / (FALL * span)))
            for group in optimizer.param_groups:
                group["lr"] = schedule.get_last_lr()[0] * factor
            optimizer.step()
            schedule.step()
            steps += 1
            decay = min(DECAY, (1 + steps) / (10 + steps))
            weights_now = [p.detach() for p in self.trained.values()]
            get_ema_multi_avg_fn(decay)(list(self.average.values()), weights_now, steps)
            if steps % 20 == 1:
                losses.append((steps, loss.item()))
                check_finite(loss, steps)  # before a checkpoint of it replaces the last good one
                usage.append(gpu_usage(self.device))
                bar.set_postfix(loss=f"{losses[-1][1]:.3f}", clips=pool.made, steps=steps)
            bar.update(min(round(time.time() - start), bar.total) - bar.n)
            total = {
                "steps": self.before["steps"] + steps, "clips": self.before["clips"] + pool.made,
                "minutes": self.before["minutes"] + (time.time() - start) / 60, "calls": self.before["calls"] + 1,
            }  # fmt: skip
            if time.time() - saved > SAVE_EVERY:
                self.save(total)
                saved = time.time()
        bar.close()
        seconds = now() - begun
        known = [value for value in usage if value is not None]
        self.results.rows["speed"] = {
            "batch": batch, "steps": steps, "seconds": seconds, "clips_per_s": steps * batch / seconds,
            "rendered_clips": pool.made, "waited_for_clips": waited / seconds,
            **({"gpu_utilisation": sum(known) / len(known) / 100} if known else {}),
            "clips_per_s_by_batch": rates, "lr": lr, "pool": len(pool),
        }  # fmt: skip
        self.results.rows["curve"] = {"step_and_loss": losses}
        self.save(total)
        self.results.put("held-out loss", shipped=self.loss_at_start, before=first, after=self.loss())


def loaders() -> int:
    """Number of loader processes: the cores that this process may use, less one for the training; at most 31."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 2
    return max(1, min(cores, 32) - 1)


def pool_size(device: torch.device, clip: ClipBatch) -> int:
    """Number of clips in the pool: at most 20 000, within `SHARE` of the free memory; 256 on a CPU."""
    if device.type == "cpu":
        return 256
    clip_bytes = 3 * clip.flow.numel()  # float16 flow, and half as much again for latents, prediction and image
    return min(20000, int(SHARE * torch.cuda.mem_get_info()[0] / clip_bytes))


def gpu_usage(device: torch.device) -> int | None:
    """Utilisation of the GPU in per cent; None if the driver's library cannot tell."""
    if device.type == "cpu":
        return None
    try:
        return torch.cuda.utilization(device)
    except Exception:  # the driver's library has error types of its own
        return None


def main() -> None:
    args = arguments(__doc__, "--from")
    motionanim.cli.command.quiet()
    results = Results(args.out / "train.json", args.until)
    source = args.out if "checkpoint" in results.rows else getattr(args, "from")
    L.seed_everything(0, verbose=False)
    run = Run(composed(args.overrides), results, torch.device(args.device), source and Path(source))
    run.train(seed=run.before["steps"])


if __name__ == "__main__":
    main()
