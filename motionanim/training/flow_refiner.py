"""Train the flow refiner T (Sec. 3.2 and 4.1) on pairs of arrows and true flow."""

import math
from pathlib import Path

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric

from motionanim.media.visualize import flow_to_rgb
from motionanim.models.flow_refiner import FlowRefiner, PatchDiscriminator, Refined
from motionanim.training.optim import check_finite, trapezoid
from motionanim.types import FlowPairBatch

# End-point errors are clamped to this many times the hint's speed: otherwise a scene whose arrows miss the motion
# outweighs all others.
_MOST_ERROR = 4.0


class FlowRefinerModule(L.LightningModule):
    """Loss: error_weight * (end-point error / hint's speed + moves_weight * cross-entropy of the moving pixels) + GAN.

    Both networks step from the same weights (in pix2pix the discriminator steps first). One backward pass then computes
    all gradients, which plain DDP requires. The trainer counts the generator's steps only, so that `trainer.max_steps`
    are iterations. The positions of the items decide which of them come with a mask: nothing else is random.

    Args:
        refiner: The generator.
        discriminator: Needed for training only; None trains without the GAN.
        lr: Learning rate of both networks.
        warmup_share: Share of the run, at its start, over which the learning rate rises from 0, in [0, 1].
        decay_share: Share of the run, at its end, over which it falls to 0, in [0, 1]; 0.5 in pix2pix, 0 is constant.
        beta1: AdamW's beta1 for both networks, in [0, 1).
        weight_decay: AdamW's; 0 makes it pix2pix's Adam.
        error_weight: Above 0; pix2pix weighs its L1 by 100 and its GAN loss by 1.
        moves_weight: At least 0.
        mask_share: Share of the items whose mask T is given, in [0, 1]; it is given ones for the others.
    """

    EXPORTED = "flow_refiner.safetensors"

    def __init__(
        self,
        *,
        refiner: FlowRefiner,
        discriminator: PatchDiscriminator | None,
        lr: float,
        warmup_share: float,
        decay_share: float,
        beta1: float,
        weight_decay: float,
        error_weight: float,
        moves_weight: float,
        mask_share: float,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["refiner", "discriminator"])
        self.automatic_optimization = False
        self.refiner, self.discriminator = refiner, discriminator
        self.lr, self.warmup_share, self.decay_share, self.beta1 = lr, warmup_share, decay_share, beta1
        self.weight_decay, self.error_weight, self.moves_weight = weight_decay, error_weight, moves_weight
        self.mask_share = mask_share
        self.epe_still, self.epe_hint, self.epe_refined, self.iou = (MeanMetric() for _ in range(4))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [
            torch.optim.AdamW(
                network.parameters(), lr=self.lr, betas=(self.beta1, 0.999), weight_decay=self.weight_decay
            )
            for network in (self.refiner, self.discriminator)
            if network is not None
        ]

    def _steps(self, share: float) -> int:
        # In a run without an end any share above 0 is one step.
        return math.ceil(share * max(self.trainer.max_steps, 1))

    def on_fit_start(self) -> None:
        if self.trainer.precision == "16-mixed":
            raise ValueError("trainer.precision=16-mixed: the flow refiner trains in 32-true or bf16-mixed")
        for name in ("warmup_share", "decay_share", "mask_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"model.{name}={getattr(self, name)}: must be in [0, 1]")
        for name, least in (("error_weight", 1e-9), ("moves_weight", 0.0)):
            if not least <= getattr(self, name) < math.inf:
                raise ValueError(f"model.{name}={getattr(self, name)}: must be {'above' if least else 'at least'} 0")
        if self.decay_share and self.trainer.max_steps < 1:
            raise ValueError(
                f"model.decay_share={self.decay_share} needs an end: set trainer.max_steps, or model.decay_share=0"
            )

    def training_step(self, batch: FlowPairBatch, batch_idx: int) -> None:
        ends = {"warmup": self._steps(self.warmup_share), "decay": self._steps(self.decay_share)}
        factor = trapezoid(self.global_step, **ends, total=self.trainer.max_steps)
        # Lightning's wrapper counts each step as an iteration, so that the discriminator's optimizer steps without it.
        optimizers, wrapped = self.trainer.optimizers, self.optimizers()
        generator_optimizer = wrapped if self.discriminator is None else wrapped[0]
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = self.lr * factor
        given = self._given(batch)
        made = self.refiner(batch.image, batch.hint, given)
        error, moves = self._losses(made, batch, given)
        losses = {"error": error, "moves": moves}
        generator_loss = self.error_weight * (error + self.moves_weight * moves)
        loss = generator_loss
        if self.discriminator is not None:
            condition, unit = self.refiner.condition(batch.image, batch.hint, given)
            real, fake = batch.flow * batch.mask / unit, made.flow / unit
            # The generator's term must leave no gradient in the discriminator.
            self.toggle_optimizer(generator_optimizer)
            losses["gan"] = _cross_entropy(self.discriminator(condition, fake), real=True)
            self.untoggle_optimizer(generator_optimizer)
            losses["discriminator"] = 0.5 * (
                _cross_entropy(self.discriminator(condition, real), real=True)
                + _cross_entropy(self.discriminator(condition, fake.detach()), real=False)
            )
            generator_loss = generator_loss + losses["gan"]
            loss = generator_loss + losses["discriminator"]
        check_finite(loss, self.global_step)
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(loss)
        generator_optimizer.step()
        for optimizer in optimizers[1:]:
            optimizer.step()
        shown = {"train/loss": generator_loss} | {f"train/loss_{name}": value for name, value in losses.items()}
        self.log_dict(shown, batch_size=len(batch.flow))

    def _given(self, batch: FlowPairBatch) -> Tensor:
        """The masks that T is given: the true mask of `mask_share` of the items, ones for the others."""
        # A Weyl sequence: of any range of positions nearly that share is chosen.
        with_mask = (batch.position.double() * 0.6180339887498949) % 1 < self.mask_share
        return torch.where(with_mask.view(-1, 1, 1, 1), batch.mask, torch.ones_like(batch.mask))

    @staticmethod
    def _losses(made: Refined, batch: FlowPairBatch, given: Tensor) -> tuple[Tensor, Tensor]:
        error = torch.linalg.vector_norm(made.flow - batch.flow * batch.mask, dim=1, keepdim=True) / made.unit
        moves = F.binary_cross_entropy_with_logits(made.moves, batch.mask, reduction="none") * given
        return error.clamp(max=_MOST_ERROR).mean(), moves.mean()

    def validation_step(self, batch: FlowPairBatch, batch_idx: int) -> None:
        """Scores without a mask: end-point errors of no motion, of the soft hint and of T; IoU of the moving pixels.

        Errors are in px per frame, means over all pixels.
        """
        made = self.refiner(batch.image, batch.hint, torch.ones_like(batch.mask))
        true, moves = batch.flow * batch.mask, made.moves > 0
        soft = batch.hint.flow * batch.hint.reach.clamp(max=1)
        for metric, flow in (
            (self.epe_still, torch.zeros_like(true)), (self.epe_hint, soft), (self.epe_refined, made.flow)
        ):  # fmt: skip
            metric.update(torch.linalg.vector_norm(flow - true, dim=1).flatten(1).mean(1))
        both, either = (moves & (batch.mask > 0)).flatten(1).sum(1), (moves | (batch.mask > 0)).flatten(1).sum(1)
        self.iou.update(both / either.clamp_min(1), (either > 0).float())
        self.log_dict(
            {
                "val/epe_still": self.epe_still, "val/epe_hint": self.epe_hint, "val/epe_refined": self.epe_refined,
                "val/iou": self.iou,
            }
        )  # fmt: skip

    @torch.no_grad()
    def example_pictures(self, batch: FlowPairBatch) -> dict[str, Tensor]:
        """Images of a batch, each (B, 3, H, W) float32 in [-1, 1]; the flows share one colour scale."""
        refined = self.refiner.refine(batch.image, batch.hint, torch.ones_like(batch.mask))
        soft = batch.hint.flow * batch.hint.reach.clamp(max=1)
        flows = flow_to_rgb(torch.stack([soft, refined, batch.flow * batch.mask]))
        return {"image": batch.image, **dict(zip(("hint", "refined", "truth"), flows))}

    def export(self, folder: Path) -> Path:
        """Write `folder`/flow_refiner.safetensors, for `FlowRefiner.load`."""
        self.refiner.save(folder / self.EXPORTED)
        return folder / self.EXPORTED


def _cross_entropy(logits: Tensor, *, real: bool) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))
