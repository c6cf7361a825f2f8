"""Train the embedded video features: the network predicts a clip's corruption, its motion and its look.

It sees each clip of the procedural world twice, as rendered and corrupted. The features are its predictions, scaled so
that predicting the mean costs about 1 for each of the three: a Fréchet distance then weighs all three alike.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torchmetrics import R2Score
from torchvision.transforms.functional import gaussian_blur

from motionanim.models.video_features import FILE, FeatureNetwork, VideoFeatures
from motionanim.motion.flow import motion_strength, warp
from motionanim.training.optim import check_finite, module_adamw
from motionanim.types import ClipBatch

# (frames (T, 3, H, W) in [-1, 1], severity in (0, 1], generator) -> frames, not yet clamped. Changes of pixel values
# and lengths grow with the severity squared, so that weak ones, which are hard to see, are common.
Corruption = Callable[[Tensor, float, Generator], Tensor]


def blur(frames: Tensor, severity: float, generator: Generator) -> Tensor:
    """Gaussian blur, standard deviation up to 5 % of the width."""
    sigma = max(0.05 * frames.shape[-1] * severity**2, 0.05)
    return gaussian_blur(frames, 2 * min(round(3 * sigma) + 1, min(frames.shape[-2:]) // 2 - 1) + 1, sigma)


def noise(frames: Tensor, severity: float, generator: Generator) -> Tensor:
    """White noise in space and time, standard deviation up to 0.4."""
    return frames + 0.4 * severity**2 * torch.randn(frames.shape, generator=generator)


def blocks(frames: Tensor, severity: float, generator: Generator) -> Tensor:
    """Interpolate towards the means of blocks of 1/16 of the width."""
    side = max(frames.shape[-1] // 16, 2)
    means = F.avg_pool2d(frames, side, ceil_mode=True, count_include_pad=False)
    means = means.repeat_interleave(side, -1).repeat_interleave(side, -2)
    return torch.lerp(frames, means[..., : frames.shape[-2], : frames.shape[-1]], severity)


def smear(frames: Tensor, severity: float, generator: Generator) -> Tensor:
    """Interpolate towards the mean over five frames, which leaves ghosts of moving objects."""
    padded = torch.cat([frames[:1], frames[:1], frames, frames[-1:], frames[-1:]])
    return torch.lerp(frames, padded.unfold(0, 5, 1).mean(-1), severity)


def shuffle(frames: Tensor, severity: float, generator: Generator) -> Tensor:
    """Permute a share `severity` of the frames, at least two."""
    count = max(2, round(severity * len(frames)))
    places = torch.randperm(len(frames), generator=generator)[:count]
    order = torch.arange(len(frames))
    order[places] = places.roll(1)
    return frames[order]


def freeze(frames: Tensor, severity: float, generator: Generator) -> Tensor:
    """Each frame after the first repeats the one before it, with probability `severity`."""
    held = torch.rand(len(frames), generator=generator) < severity
    held[0] = False
    return frames[torch.where(held, 0, torch.arange(len(frames))).cummax(0).values]


def flicker(frames: Tensor, severity: float, generator: Generator) -> Tensor:
    """Shift the brightness of each frame by its own amount, standard deviation up to 0.3."""
    return frames + 0.3 * severity**2 * torch.randn(len(frames), 1, 1, 1, generator=generator)


def seam(frames: Tensor, severity: float, generator: Generator) -> Tensor:
    """Shift all frames from a random one on by up to 12.5 % of the width."""
    border = int(torch.randint(1, len(frames), (), generator=generator))
    angle = 2 * torch.pi * torch.rand((), generator=generator)
    shift = 0.125 * frames.shape[-1] * severity**2 * torch.stack([angle.cos(), angle.sin()])
    after = frames[border:]
    moved = warp(after, shift.view(1, 2, 1, 1).expand(len(after), 2, *frames.shape[-2:]))
    return torch.cat([frames[:border], moved])


def wobble(frames: Tensor, severity: float, generator: Generator) -> Tensor:
    """Warp each frame by its own smooth field, standard deviation up to 4 % of the width."""
    size = frames.shape[-2:]
    coarse = 0.04 * size[1] * severity**2 * torch.randn(len(frames), 2, 4, 4, generator=generator)
    return warp(frames, F.interpolate(coarse, size=size, mode="bicubic", align_corners=True))


CORRUPTIONS: dict[str, Corruption] = {
    function.__name__: function for function in (blur, noise, blocks, smear, flicker, shuffle, freeze, seam, wobble)
}
_USUAL = (0.22, 0.14, 0.03)  # geometric means of contrast, gradient and change over clean and corrupted clips
_KEEPS_MOTION = 5  # after the first five corruptions the true flow still describes the frames


def corrupt(frames: Tensor, position: int, *, seed: int) -> tuple[Tensor, int, float]:
    """Corrupt a clip (T, 3, H, W) in one way that depends on its position: frames, index in CORRUPTIONS, severity."""
    generator = Generator().manual_seed(int(np.random.SeedSequence([seed, position]).generate_state(1)[0]))
    kind = position % len(CORRUPTIONS)  # in turn, so that a small batch has all of them
    severity = float(torch.rand((), generator=generator).clamp_min(0.02))
    made = list(CORRUPTIONS.values())[kind](frames, severity, generator)
    return made.clamp(-1, 1), kind, severity


def motion_summary(flow: Tensor) -> Tensor:
    """Flow (B, T-1, 2, H, W) to (B, 10), lengths in 2 % of the width per frame.

    Mean flow of each quarter of the image (x of all four, then y), motion strength (Eq. 8), and the share of pixels
    that move by more than 0.1 % of the width.
    """
    width = flow.shape[-1]
    quarters = F.adaptive_avg_pool2d(flow.mean(1), 2).flatten(1) / (0.02 * width)
    moving = (torch.hypot(*flow.unbind(2)) > 0.001 * width).float().flatten(1).mean(1)
    return torch.cat([quarters, torch.stack([motion_strength(flow) / (0.02 * width), moving], dim=1)], dim=1)


def look_summary(frames: Tensor) -> Tensor:
    """Frames (B, T, 3, H, W) in [-1, 1] to (B, 21).

    Mean colour (12), log contrast (4) and log gradient (4) of each quarter, and the log change from frame to frame. The
    logs are centred on the procedural world, because the last bias would take a thousand steps to learn their means.
    """
    grey = frames.mean(2)
    mean, square = (F.adaptive_avg_pool2d(value, 2) for value in (grey, grey.square()))
    contrast = (square - mean.square()).clamp_min(0).sqrt().mean(1)
    slope = F.pad(grey.diff(dim=-1).abs(), (0, 1)) + F.pad(grey.diff(dim=-2).abs(), (0, 0, 0, 1))
    gradient = F.adaptive_avg_pool2d(slope.mean(1), 2)
    change = grey.diff(dim=1).abs().flatten(1).mean(1, keepdim=True)
    colour = F.adaptive_avg_pool2d(frames.mean(1), 2)
    logs = [torch.log((value + 1e-3) / usual) for value, usual in zip((contrast, gradient, change), _USUAL)]
    return torch.cat([value.flatten(1) for value in (colour, *logs)], dim=1)


ANSWERS = (len(CORRUPTIONS), 10, 21)  # numbers of features, in the order of `Targets`


class Targets(NamedTuple):
    """The targets of the network for n clips."""

    damage: Tensor  # (n, len(CORRUPTIONS)) severity of each corruption, 0 for none
    motion: Tensor  # (n, 10) of `motion_summary`
    look: Tensor  # (n, 21) of `look_summary`, of the frames as seen
    moves: Tensor  # (n,) bool; False where the corruption changed the motion, so that `motion` is wrong


def clean_and_corrupted(batch: ClipBatch, *, seed: int) -> tuple[Tensor, Targets]:
    """The clips of a batch, then the same clips corrupted: frames (2B, T, 3, H, W) and their targets."""
    made, kinds, severities = zip(*(corrupt(f.cpu(), int(p), seed=seed) for f, p in zip(batch.frames, batch.position)))
    clean, device = len(made), batch.frames.device
    frames = torch.cat([batch.frames, torch.stack(made).to(device)])
    damage = torch.zeros(2 * clean, len(CORRUPTIONS))
    damage[torch.arange(clean) + clean, torch.tensor(kinds)] = torch.tensor(severities)
    moves = torch.tensor([True] * clean + [kind < _KEEPS_MOTION for kind in kinds])
    motion = motion_summary(batch.flow).repeat(2, 1)
    return frames, Targets(damage.to(device), motion, look_summary(frames), moves.to(device))


class VideoFeaturesModule(L.LightningModule):
    """Mean squared error of the features against the `Targets`, each target times sqrt(its weight).

    Args:
        network: Its 40 features predict the targets, in the order of `Targets`.
        damage_weight, motion_weight, look_weight: Weights of the three errors, above 0, about the inverse variances of
            the targets.
        seed: Seed of the corruptions; validation uses seed + 1.

    Raises:
        ValueError: If the network does not give 40 features or a weight is not above 0.
    """

    EXPORTED = FILE

    def __init__(
        self,
        *,
        network: FeatureNetwork,
        damage_weight: float,
        motion_weight: float,
        look_weight: float,
        lr: float,
        weight_decay: float,
        warmup_steps: int,
        decay_steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network"])
        if network.config["dim"] != sum(ANSWERS):
            raise ValueError(f"network.dim={network.config['dim']}: must be {sum(ANSWERS)}, the number of targets")
        self.weights = {"damage": damage_weight, "motion": motion_weight, "look": look_weight}
        if min(self.weights.values()) <= 0:
            raise ValueError(f"weights {self.weights}: must be above 0")
        self.network = network
        self.explained = nn.ModuleDict({name: R2Score() for name in self.weights})

    def _predicted(self, batch: ClipBatch, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Predictions and scaled targets of each kind, over the clips that have that target."""
        frames, targets = clean_and_corrupted(batch, seed=seed)
        answers = self.network(frames).split(ANSWERS, dim=1)
        pairs = {
            name: (answer, weight**0.5 * target)
            for (name, weight), answer, target in zip(self.weights.items(), answers, targets)
        }
        pairs["motion"] = tuple(value[targets.moves] for value in pairs["motion"])
        return pairs

    def training_step(self, batch: ClipBatch) -> Tensor:
        errors = {name: F.mse_loss(*pair) for name, pair in self._predicted(batch, self.hparams.seed).items()}
        loss = sum(errors.values())
        check_finite(loss, self.global_step)
        self.log_dict({"train/loss": loss, **{f"train/{name}": error for name, error in errors.items()}})
        return loss

    def validation_step(self, batch: ClipBatch) -> None:
        """R² of the predictions over the held-out clips, mean over the targets of a kind."""
        for name, pair in self._predicted(batch, self.hparams.seed + 1).items():
            self.explained[name].update(*pair)
            self.log(f"val/r2_{name}", self.explained[name], prog_bar=True)

    def configure_optimizers(self) -> dict[str, Any]:
        return module_adamw(self, self.parameters())

    def export(self, folder: Path) -> Path:
        """Write `folder`/video_features.safetensors, for `VideoFeatures.load`."""
        VideoFeatures(self.network).save(folder / self.EXPORTED)
        return folder / self.EXPORTED
