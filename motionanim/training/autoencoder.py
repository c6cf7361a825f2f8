"""Train the autoencoder of a tiny base (experiment=tiny_autoencoder)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from motionanim.files import atomic_folder
from motionanim.models.svd.tiny import build_pipeline, save_pipeline
from motionanim.training.optim import check_finite, module_adamw
from motionanim.training.patch_pca import PATCH, write_patch_pca
from motionanim.types import ClipBatch


class AutoencoderModule(L.LightningModule):
    """Reconstruct frames, by L1 + MSE, with an autoencoder that starts as a patch PCA (`training.patch_pca`).

    Only the decoder's residual blocks train. The encoder and the linear path through the decoder stay fixed: the
    latents never change, and the reconstruction starts as good as the PCA's.

    Args:
        pipeline: Arguments of `models.svd.tiny.build_pipeline`: the tiny base that the export completes.
        start_clips: The PCA is fitted to the first frames of this many first training clips.
        whitening: Of the latents, in [0, 1], as in `write_patch_pca`.
        crop: Side, in px, of the squares that are cut from the frames at random for training.
        seed: Seed of the squares' positions.
    """

    EXPORTED = "pipeline"

    def __init__(
        self,
        *,
        pipeline: Mapping[str, Any],
        start_clips: int,
        whitening: float,
        crop: int,
        lr: float,
        weight_decay: float,
        warmup_steps: int,
        decay_steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["pipeline"])
        self.pipeline = build_pipeline(**pipeline)
        self.vae = self.pipeline.vae.requires_grad_(False)
        for block in (*self.vae.decoder.mid_block.children(), *self.vae.decoder.up_blocks):
            if not hasattr(block, "repeats"):  # a block that doubles the size belongs to the linear path
                block.requires_grad_(True)
        self.psnr = MeanMetric()

    def setup(self, stage: str) -> None:
        """Write the PCA of the first training frames; on a resume Lightning then loads the checkpoint over it.

        Raises:
            ValueError: If the frames of the first clip are smaller than `crop`.
        """
        if stage == "fit":
            data = self.trainer.datamodule.train
            height, width = data[0].frames.shape[-2:]
            if min(height, width) < self.hparams.crop:
                raise ValueError(
                    f"model.crop={self.hparams.crop}: must be at most the side of the clips, {height}x{width} px; set "
                    f"model.crop={min(height, width)} or larger scale.height and scale.width"
                )
            frames = torch.stack([data[i].frames[0] for i in range(self.hparams.start_clips)])
            write_patch_pca(self.vae, frames, whitening=self.hparams.whitening)

    def _reconstruct(self, frames: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast(frames.device.type, enabled=False):
            latents = self.vae.encode(frames).latent_dist.mode()
        return self.vae.decode(latents).sample.float()

    def _crops(self, batch: ClipBatch) -> Tensor:
        """A random square of every frame, (B T, 3, crop, crop); seed and clip position decide its place."""
        side, pieces = self.hparams.crop, []
        for position, frames in zip(batch.position.tolist(), batch.frames, strict=True):
            rng = np.random.default_rng([self.hparams.seed, position])
            for frame in frames:
                y, x = (int(rng.integers(size - side + 1)) for size in frame.shape[-2:])
                pieces.append(frame[:, y : y + side, x : x + side])
        return torch.stack(pieces)

    def training_step(self, batch: ClipBatch) -> Tensor:
        frames = self._crops(batch)
        error = self._reconstruct(frames) - frames
        mse = error.square().mean()
        loss = error.abs().mean() + mse
        check_finite(loss, self.global_step)
        self.log_dict({"train/loss": loss, "train/psnr": 10 * torch.log10(4 / mse)})
        return loss

    def validation_step(self, batch: ClipBatch) -> None:
        frames = batch.frames.flatten(0, 1)
        mse = (self._reconstruct(frames).clamp(-1, 1) - frames).square().mean((1, 2, 3))
        self.psnr.update(10 * torch.log10(4 / mse))
        # For comparison: the best linear code of the same size, fitted to this batch.
        linear = pca_psnr(frames, side=PATCH, coefficients=self.vae.config.latent_channels)
        self.log_dict({"val/psnr": self.psnr, "val/psnr_pca": linear}, prog_bar=True, on_epoch=True)

    def configure_optimizers(self) -> dict[str, Any]:
        return module_adamw(self, self.vae.parameters())

    def export(self, folder: Path) -> Path:
        """Write `folder`/pipeline: a complete tiny SVD pipeline with this autoencoder and an untrained UNet."""
        with atomic_folder(folder / self.EXPORTED) as new:
            save_pipeline(new, pipeline=self.pipeline)
        return folder / self.EXPORTED


def pca_psnr(images: Tensor, *, side: int, coefficients: int) -> Tensor:
    """Mean PSNR in dB of images (N, 3, H, W) in [-1, 1], coded by the first principal components of their patches."""
    patches = torch.nn.functional.unfold(images, side, stride=side).transpose(1, 2).double()
    centred = patches - patches.mean((0, 1))
    _, basis = torch.linalg.eigh(torch.cov(centred.flatten(0, 1).T))
    lost = (centred @ basis[:, :-coefficients]).square().sum((1, 2)) / patches[0].numel()
    return (10 * torch.log10(4 / lost)).mean().float()
