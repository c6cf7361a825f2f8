"""Training of the flow refiner T (Sec. 3.2 and 4.1): pix2pix's objective on pairs of hint and true flow."""

import math
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric

from motionanim.models.flow_refiner import FlowRefiner, PatchDiscriminator
from motionanim.pictures import flow_to_rgb
from motionanim.training.optim import check_end, check_finite, trapezoid
from motionanim.types import FlowPairBatch


class FlowRefinerModule(L.LightningModule):
    """GAN + `l1_weight` * L1 on flow in motion norms.

    Both networks step from the same weights (pix2pix steps the discriminator first): one backward pass then serves
    both, every parameter gets a gradient in it, and plain DDP works. Only the generator's steps count for the trainer,
    so `trainer.max_steps` are iterations. A step draws nothing at random.

    Args:
        refiner: The generator.
        discriminator: Judges its flows in training; not needed later.
        lr: Learning rate of both.
        decay_share: Share of the run, at its end, over which it falls to 0, in [0, 1]; pix2pix has 0.5, 0 is constant.
        beta1: Momentum of both optimisers, in [0, 1).
        weight_decay: AdamW's; with 0 it is pix2pix's Adam.
        l1_weight: Weight of L1 beside the GAN's term, at least 0.
    """

    def __init__(
        self,
        *,
        refiner: FlowRefiner,
        discriminator: PatchDiscriminator,
        lr: float,
        decay_share: float,
        beta1: float,
        weight_decay: float,
        l1_weight: float,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["refiner", "discriminator"])
        self.automatic_optimization = False
        self.refiner, self.discriminator = refiner, discriminator
        self.lr, self.decay_share, self.beta1 = lr, decay_share, beta1
        self.weight_decay, self.l1_weight = weight_decay, l1_weight
        self.epe_hint, self.epe_refined = MeanMetric(), MeanMetric()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.AdamW(
                network.parameters(), lr=self.lr, betas=(self.beta1, 0.999), weight_decay=self.weight_decay
            )
            for network in (self.refiner, self.discriminator)
        ]

    @property
    def _decay_steps(self) -> int:
        # Without an end every share of the run counts as a step, which `check_end` then refuses.
        return math.ceil(self.decay_share * max(self.trainer.max_steps, 1))

    def on_fit_start(self) -> None:
        if self.trainer.precision == "16-mixed":
            raise ValueError("trainer.precision=16-mixed: the flow refiner trains in 32-true or bf16-mixed")
        if not 0 <= self.decay_share <= 1:
            raise ValueError(f"model.decay_share={self.decay_share}: must be in [0, 1]")
        check_end(self._decay_steps, self.trainer.max_steps)

    def training_step(self, batch: FlowPairBatch, batch_idx: int) -> None:
        generator_optimizer, _ = self.optimizers()
        # Stepped outside Lightning's wrapper, which would count each iteration twice.
        _, discriminator_optimizer = self.optimizers(use_pl_optimizer=False)
        factor = trapezoid(self.global_step, warmup=0, decay=self._decay_steps, total=self.trainer.max_steps)
        for optimizer in (generator_optimizer, discriminator_optimizer):
            for group in optimizer.param_groups:
                group["lr"] = self.lr * factor
        condition = self.refiner.condition(batch.image, batch.hint, batch.mask)
        true = self.refiner.normalize(batch.flow * batch.mask)
        made = self.refiner.normalize(self.refiner(batch.image, batch.hint, batch.mask))

        # The generator's term must leave no gradient in the discriminator.
        self.toggle_optimizer(generator_optimizer)
        fooled = _cross_entropy(self.discriminator(condition, made), real=True)
        self.untoggle_optimizer(generator_optimizer)
        l1 = F.l1_loss(made, true)
        generator_loss = fooled + self.l1_weight * l1
        discriminator_loss = 0.5 * (
            _cross_entropy(self.discriminator(condition, true), real=True)
            + _cross_entropy(self.discriminator(condition, made.detach()), real=False)
        )
        loss = generator_loss + discriminator_loss
        check_finite(loss, self.global_step)
        generator_optimizer.zero_grad()
        discriminator_optimizer.zero_grad()
        self.manual_backward(loss)
        generator_optimizer.step()
        discriminator_optimizer.step()
        self.log_dict(
            {
                "train/loss": generator_loss,
                "train/loss_gan": fooled,
                "train/loss_l1": l1,
                "train/loss_discriminator": discriminator_loss,
            },
            batch_size=len(batch.flow),
        )

    def validation_step(self, batch: FlowPairBatch, batch_idx: int) -> None:
        """End-point error of hint and result over the movable pixels, px per frame, mean over clips that have some."""
        pixels = batch.mask.flatten(1).sum(1)
        refined = self.refiner(batch.image, batch.hint, batch.mask)
        for name, metric, flow in (("hint", self.epe_hint, batch.hint), ("refined", self.epe_refined, refined)):
            error = torch.linalg.vector_norm(flow - batch.flow, dim=1, keepdim=True) * batch.mask
            metric.update(error.flatten(1).sum(1) / pixels.clamp_min(1), (pixels > 0).float())
            self.log(f"val/epe_{name}", metric)

    @torch.no_grad()
    def example_pictures(self, batch: FlowPairBatch) -> dict[str, Tensor]:
        """Pictures of a batch, each (B, 3, H, W) float32 in [-1, 1]; the flows share one colour scale."""
        refined = self.refiner.refine(batch.image, batch.hint, batch.mask)
        flows = flow_to_rgb(torch.stack([batch.hint, refined, batch.flow]))
        return {"image": batch.image, **dict(zip(("hint", "refined", "truth"), flows))}

    def export(self, folder: Path) -> Path:
        """Write `folder`/flow_refiner.safetensors, for `FlowRefiner.load`."""
        self.refiner.save(folder / "flow_refiner.safetensors")
        return folder / "flow_refiner.safetensors"


def _cross_entropy(logits: Tensor, *, real: bool) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))
