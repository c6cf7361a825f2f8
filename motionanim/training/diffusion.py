"""Train the motion-conditioned denoiser (experiment=diffusion from SVD, experiment=tiny_base from nothing)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torchmetrics import MeanMetric

from motionanim.data.latents.prepared import PreparedLatents
from motionanim.files import atomic_folder
from motionanim.models.svd.codec import Codec
from motionanim.models.svd.denoiser import Denoiser
from motionanim.models.svd.tiny import save_pipeline
from motionanim.motion.flow import motion_strength
from motionanim.training.losses import denoising_loss
from motionanim.training.optim import check_finite, module_adamw
from motionanim.training.runs.checkpoints import check_weights
from motionanim.training.strategies import Sharded, shard
from motionanim.types import ClipBatch, Condition, LatentBatch

VAL_SIGMAS = 8  # validation clips take turns at this many quantiles of the training distribution


class DiffusionModule(L.LightningModule):
    """Eq. 2 with SVD's frozen VAE and CLIP; every random draw is seeded by the clip's stream position.

    Args:
        base: StableVideoDiffusionPipeline folder or hub id.
        motion: Arguments of `MotionConditioner`, the conditioning group.
        trainable: Preset of `Denoiser.select_trainable`.
        sigma_mean: Mean of ln sigma in training.
        free_sigma_mean: The same for clips without their motion field, because the direction of motion is decided at
            noise levels that hide all but the coarsest structure.
        sigma_std: Standard deviation of ln sigma.
        noise_aug_mean: Mean of ln of the condition image's noise level.
        noise_aug_std: Its standard deviation; drawn for each clip.
        drop_image: Share of clips trained without image: embedding, image latents and warped latents together.
        drop_flow: Share trained without the motion field, independently.
        drop_strength: Share trained without the motion strength, independently.
        checkpoint_width: Of gradient checkpointing, by `Denoiser.checkpoint_blocks`; 0 for none.
        frozen: Type of the convolutions and linear layers that do not train: "float32", or "bfloat16", for
            trainer.precision=bf16-mixed only, by `Denoiser.halve_frozen`.
        moments: As in `optim.adamw`.
        codec_offload: VAE and CLIP are on the GPU only while they run.
        compile: Mode of `Denoiser.compile_unet`, or null.
        seed: Seed of the stream of draws.
    """

    EXPORTED = "pipeline"

    def __init__(
        self,
        *,
        base: str,
        motion: Mapping[str, Any],
        trainable: str,
        sigma_mean: float,
        free_sigma_mean: float,
        sigma_std: float,
        noise_aug_mean: float,
        noise_aug_std: float,
        drop_image: float,
        drop_flow: float,
        drop_strength: float,
        checkpoint_width: int,
        compile: str | None,
        lr: float,
        weight_decay: float,
        warmup_steps: int,
        decay_steps: int,
        seed: int,
        frozen: str = "float32",  # these have defaults because checkpoints of earlier versions lack them
        moments: str = "float32",
        codec_offload: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["motion"])
        self.codec = Codec.from_pretrained(base)
        self.denoiser = Denoiser.from_pretrained(base, downscale=self.codec.downscale, motion=dict(motion))
        self.denoiser.train().select_trainable(trainable)
        if frozen not in ("float32", "bfloat16"):
            raise ValueError(f"model.frozen={frozen}: must be float32 or bfloat16")
        if frozen == "bfloat16":
            self.denoiser.halve_frozen()
        if checkpoint_width:
            self.denoiser.checkpoint_blocks(checkpoint_width)
        if compile is not None:
            self.denoiser.compile_unet(compile)
        self.strict_loading = False  # checkpoints hold only what trains
        self.val_loss = MeanMetric()
        self.val_free = MeanMetric()
        self.val_by_sigma = nn.ModuleList(MeanMetric() for _ in range(VAL_SIGMAS))

    def configure_model(self) -> None:
        """Under trainer=fsdp shard the denoiser; VAE and CLIP are small and stay whole."""
        if isinstance(self.trainer.strategy, Sharded) and not isinstance(self.denoiser, FSDPModule):
            shard(self.denoiser, self.denoiser.blocks(), device=self.trainer.strategy.root_device)
            register_fsdp_forward_method(self.denoiser, "context")  # previews call it by itself

    def on_fit_start(self) -> None:
        """Raises ValueError if the training data are latents of another VAE."""
        if self.hparams.codec_offload:
            self.codec.offload(self.device)
        data = self.trainer.datamodule.train
        if isinstance(data, PreparedLatents) and data.vae != self.codec.fingerprint():
            raise ValueError(
                f"the latents in {data.folder} are of another VAE or CLIP (fingerprint {data.vae}, this base has "
                f"{self.codec.fingerprint()}): encode them again with scale.base={self.hparams.base}"
            )
        if isinstance(data, PreparedLatents) and self.denoiser.uses_warped and not data.has_warped:
            raise ValueError(f"the latents in {data.folder} lack warped latents: encode them again with predict=true")

    def draw(self, batch: ClipBatch | LatentBatch, latent_shape: tuple[int, ...]) -> dict[str, Tensor]:
        """All random numbers of one step, each clip's from its own generator: equal for any batch or world size."""
        rows: dict[str, list[Tensor]] = {"ln_sigma": [], "ln_aug": [], "keep": [], "noise": [], "image_noise": []}
        for position in batch.position.tolist():
            seed = np.random.SeedSequence([self.hparams.seed, position]).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(seed >> np.uint64(1)))
            rows["ln_sigma"].append(torch.randn((), generator=generator))
            rows["ln_aug"].append(torch.randn((), generator=generator))
            rows["keep"].append(torch.rand(3, generator=generator))
            rows["noise"].append(torch.randn(latent_shape, generator=generator))
            rows["image_noise"].append(torch.randn(batch.image.shape[1:], generator=generator))
        return {name: torch.stack(values).to(self.device) for name, values in rows.items()}

    def condition(self, batch: ClipBatch | LatentBatch, draws: dict[str, Tensor]) -> Condition:
        """The condition for training: image noise drawn per clip, parts dropped at their shares."""
        h = self.hparams
        drop = draws["keep"].new_tensor([h.drop_image, h.drop_flow, h.drop_strength])
        use_image, use_flow, use_strength = (draws["keep"] >= drop).float().unbind(1)
        known = batch if isinstance(batch, LatentBatch) else None
        condition = self.codec.condition(
            batch.image,
            noise=draws["image_noise"],
            noise_aug=torch.exp(h.noise_aug_mean + h.noise_aug_std * draws["ln_aug"]),
            flow=batch.flow,
            motion_strength=motion_strength(batch.flow),
            fps=batch.fps,
            warped_latents=known and known.warped_latents,
            image_embed=known and known.image_embed,
        )
        has_flow = use_flow > 0
        if known is None and self.denoiser.uses_warped and has_flow.any():
            warped = condition.warped_latents.clone()
            # Only clips that show it are warped: it costs as much as encoding them.
            warped[has_flow] = self.codec.warp_image(batch.image[has_flow], batch.flow[has_flow])
            condition = condition._replace(warped_latents=warped)
        return condition._replace(use_image=use_image, use_flow=use_flow, use_strength=use_strength)

    def losses(self, batch: ClipBatch | LatentBatch, z_score: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B,) losses, and (B,) whether the clip has its motion field; `z_score` (B,) instead of drawn noise levels."""
        latents = batch.latents if isinstance(batch, LatentBatch) else self.codec.encode(batch.frames)
        draws = self.draw(batch, latents.shape[1:])
        condition = self.condition(batch, draws)
        has_flow = condition.use_flow > 0
        sigma = self.noise_level(draws["ln_sigma"] if z_score is None else z_score, has_flow)
        sigma_data = self.denoiser.motion.sigma_data(condition)
        losses = denoising_loss(self.denoiser, latents, condition, sigma, draws["noise"], sigma_data=sigma_data)
        return losses, has_flow

    def noise_level(self, z_score: Tensor, has_flow: Tensor) -> Tensor:
        """Sigma (B,) at standard scores (B,) of its distribution; `has_flow` (B,): clips that have their field."""
        h = self.hparams
        mean = torch.where(has_flow, z_score.new_tensor(h.sigma_mean), z_score.new_tensor(h.free_sigma_mean))
        return torch.exp(mean + h.sigma_std * z_score)

    def training_step(self, batch: ClipBatch | LatentBatch) -> Tensor:
        losses, _ = self.losses(batch)
        loss = losses.mean()
        check_finite(loss, self.global_step)
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: ClipBatch) -> None:
        # Fixed quantiles instead of draws: the same noise levels at every validation, each equally often.
        turn = batch.position % VAL_SIGMAS
        losses, has_flow = self.losses(batch, torch.special.ndtri((turn + 0.5) / VAL_SIGMAS))
        self.val_loss.update(losses)
        for which, with_flow, loss in zip(turn.tolist(), has_flow.tolist(), losses, strict=True):
            (self.val_by_sigma[which] if with_flow else self.val_free).update(loss)

    def on_validation_epoch_start(self) -> None:
        for metric in (self.val_free, *self.val_by_sigma):
            metric.update(0.0, weight=0.0)  # every process must take part in each sum, also without a clip for it

    def on_validation_epoch_end(self) -> None:
        self.log("val/loss", self.val_loss.compute(), prog_bar=True)
        self.val_loss.reset()
        for turn, metric in enumerate(self.val_by_sigma):
            quantile = torch.special.ndtri(torch.tensor((turn + 0.5) / VAL_SIGMAS))
            sigma = self.noise_level(quantile, torch.tensor(True))
            self._log_known(f"val/loss_at_sigma_{sigma:.2f}", metric)
        self._log_known("val/loss_without_field", self.val_free)

    def _log_known(self, name: str, metric: MeanMetric) -> None:
        loss = metric.compute()
        if not torch.isnan(loss):
            self.log(name, loss)
        metric.reset()

    def configure_optimizers(self) -> dict[str, Any]:
        return module_adamw(self, self.denoiser.parameters())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        checkpoint["state_dict"] = {k: v for k, v in checkpoint["state_dict"].items() if k in trained}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Raises ValueError as `check_weights`: `strict_loading` is off for the frozen rest."""
        check_weights(self, checkpoint["state_dict"])

    def export(self, folder: Path) -> Path:
        """Write `folder`/pipeline: the base with the trained UNet and the motion weights beside it, fp16."""
        with atomic_folder(folder / self.EXPORTED) as new:
            save_pipeline(new, base=self.hparams.base, unet=self.denoiser.unet)
            self.denoiser.save_motion(new)
        return folder / self.EXPORTED
