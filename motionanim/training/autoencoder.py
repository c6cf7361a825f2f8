"""Train the autoencoder of a tiny base (experiment=tiny_autoencoder)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from motionanim.models.tiny import build_pipeline, save_pipeline
from motionanim.training.optim import adamw, check_finite
from motionanim.types import ClipBatch


class AutoencoderModule(L.LightningModule):
    """L1 + MSE reconstruction, with latents held at zero mean and unit variance per channel.

    The moment penalty takes the place of a KL term: the latents are used by their mode only, and a diffusion model
    wants every channel on one scale (SVD's pipeline has a single scaling factor).

    Args:
        pipeline: Arguments of `models.tiny.build_pipeline`: the tiny base that the export completes.
        moment_weight: Weight of the moment penalty.
    """

    def __init__(
        self,
        *,
        pipeline: Mapping[str, Any],
        moment_weight: float,
        lr: float,
        weight_decay: float,
        warmup_steps: int,
        decay_steps: int,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["pipeline"])
        self.pipeline = build_pipeline(**pipeline)
        self.vae = self.pipeline.vae
        self.psnr, self.spread = MeanMetric(), MeanMetric()

    def _reconstruct(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.vae.encode(frames.flatten(0, 1)).latent_dist.mode()
        return self.vae.decode(latents).sample.view_as(frames), latents

    def training_step(self, batch: ClipBatch) -> Tensor:
        output, latents = self._reconstruct(batch.frames)
        error = output.float() - batch.frames
        mean, std = latents.float().mean((0, 2, 3)), latents.float().std((0, 2, 3))
        moments = (mean.square() + (std - 1).square()).mean()
        mse = error.square().mean()
        loss = error.abs().mean() + mse + self.hparams.moment_weight * moments
        check_finite(loss, self.global_step)
        self.log_dict({"train/loss": loss, "train/psnr": 10 * torch.log10(4 / mse), "train/moments": moments})
        return loss

    def validation_step(self, batch: ClipBatch) -> None:
        output, latents = self._reconstruct(batch.frames)
        mse = (output.clamp(-1, 1) - batch.frames).square().mean((2, 3, 4))
        self.psnr.update(10 * torch.log10(4 / mse))
        self.spread.update(latents.std())
        # The yardstick beside every autoencoder: the best linear code of the same size, fitted to this very batch.
        side = 2 ** (len(self.vae.config.block_out_channels) - 1)
        linear = pca_psnr(batch.frames.flatten(0, 1), side=side, coefficients=self.vae.config.latent_channels)
        self.log_dict({"val/psnr": self.psnr, "val/psnr_pca": linear}, prog_bar=True, on_epoch=True)

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.vae.register_to_config(scaling_factor=float(1 / self.spread.compute()))
        self.spread.reset()

    def configure_optimizers(self) -> dict[str, Any]:
        h = self.hparams
        return adamw(
            self.vae.parameters(),
            lr=h.lr,
            weight_decay=h.weight_decay,
            warmup_steps=h.warmup_steps,
            decay_steps=h.decay_steps,
            total=self.trainer.max_steps,
        )

    def export(self, folder: Path) -> Path:
        """Write `folder`/pipeline: a complete tiny SVD pipeline with this autoencoder and an untrained UNet."""
        save_pipeline(folder / "pipeline", pipeline=self.pipeline)
        return folder / "pipeline"


def pca_psnr(images: Tensor, *, side: int, coefficients: int) -> Tensor:
    """PSNR in dB of coding (N, 3, H, W) images in [-1, 1] by the first principal components of side x side patches."""
    patches = torch.nn.functional.unfold(images, side, stride=side).transpose(1, 2).flatten(0, 1)
    energies = torch.linalg.eigvalsh(torch.cov(patches.T.double()))
    lost = energies[:-coefficients].sum() / patches.shape[1]
    return 10 * torch.log10(4 / lost).float()
