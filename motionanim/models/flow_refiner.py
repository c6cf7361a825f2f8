"""T, the flow refiner (Sec. 3.2): from a few arrows to the motion that the picture suggests.

pix2pix (Isola et al., CVPR 2017): a U-Net generator, and optionally a 70x70 PatchGAN discriminator with the same
inputs. No dropout, pix2pix's only source of noise: a drawing must always give the same flow. Group norm instead of
batch norm, so that a clip's flow does not depend on its batch.
"""

import math
from pathlib import Path
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motionanim.models.weights_io import load_network, save_network
from motionanim.types import Hint

_FORMAT = "motionanim.flow_refiner.4"
_LIKENESS = (0.5, 4.0)  # the two widths, in squared standard deviations of the luminance
_ON_PATH = 0.3  # pixels with at least this coverage lie under an arrow
_PATH_PIXELS = 48  # at most this many of them are compared with all pixels
_FADE = (1.75, 2.0)  # in use, the flow fades to zero between these distances from the nearest arrow, in sigmas
_DECIDED = 2.0  # factor of the logit in use, which leaves fewer pixels at half the speed
# Hint 2, reach 1, arrows 3, mask 1, colour 3, likeness 2.
CONDITION_CHANNELS = 12


class Refined(NamedTuple):
    """The output of T."""

    flow: Tensor  # (B, 2, H, W) px per frame: probability of motion times motion; 0 outside the mask
    moves: Tensor  # (B, 1, H, W) logit of "this pixel moves"
    unit: Tensor  # (B, 1, 1, 1) px per frame: the hint's own speed


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


def _check_width(width: int) -> None:
    if width < 8 or width % 8:
        raise ValueError(f"width={width}: must be a positive multiple of 8, the number of groups in a norm")


class FlowRefiner(nn.Module):
    """The generator: `depth` halvings to the bottleneck and back, with skips between equal sizes.

    It predicts two things for each pixel: whether it moves, and how its motion differs from the spread arrows of Eq. 6.
    Before training these are the reach of the arrows and zero, so that the result is the soft hint.

    Inside the network flow is in units of the hint's own speed, so that twice the hint gives twice the flow; norms
    could not pass on speeds that range over a factor of ten. Colours are in units of the picture's own contrast. A
    further input is the likeness of each pixel to those under the arrows, which means the same in a photo as in the
    synthetic training data.

    Args:
        width: Channels of the first level, a multiple of 8; they double per level up to 8 times as many.
        depth: Number of halvings, at least 1.
        side: Square root of the number of pixels of training pictures; in use a picture is resized to about as many.
        sees_image: False hides the picture from the network, to measure what the picture is worth.

    Raises:
        ValueError: If an argument is not as above.
    """

    def __init__(self, *, width: int, depth: int, side: int, sees_image: bool) -> None:
        super().__init__()
        _check_width(width)
        if depth < 1:
            raise ValueError(f"depth={depth}: must be at least 1")
        if side < 1:
            raise ValueError(f"side={side}: must be above 0, the height of a training picture such as 64 px")
        self.config = {"width": width, "depth": depth, "side": side, "sees_image": sees_image}
        self.side, self.sees_image = side, sees_image
        widths = [CONDITION_CHANNELS, *(width * min(2**level, 8) for level in range(depth))]
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for level in range(depth):
            # As in pix2pix, the first level has no norm.
            self.down.append(
                nn.Sequential(
                    nn.Conv2d(widths[level], widths[level + 1], 4, stride=2, padding=1),
                    _norm(widths[level + 1]) if level else nn.Identity(),
                    nn.LeakyReLU(0.2),
                )
            )
            inner = widths[level + 1] * (1 if level == depth - 1 else 2)
            outer = widths[level] if level else width
            # Enlarging before the convolution avoids the checkerboard of transposed convolutions.
            self.up.append(
                nn.Sequential(
                    nn.Upsample(scale_factor=2, mode="bilinear"),
                    nn.Conv2d(inner, outer, 3, padding=1),
                    _norm(outer),
                    nn.ReLU(),
                )
            )
        self.head = nn.Conv2d(width + CONDITION_CHANNELS, 3, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def condition(self, image: Tensor, hint: Hint, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The input of both networks, (B, 12, H, W), and the hint's speed as in `Refined.unit`."""
        reach, cover = hint.reach.clamp(max=1), hint.arrows[:, 2:]
        energy = (hint.flow.square().sum(1, keepdim=True) * reach).sum((2, 3), keepdim=True)
        unit = (energy / reach.sum((2, 3), keepdim=True).clamp_min(1e-6)).sqrt().clamp_min(1e-6 * image.shape[-1])
        colour = _colours(image)
        drawn = hint.arrows[:, :2] / unit
        # Pins have no speed: pixels that look like theirs need not move.
        under = cover * (torch.linalg.vector_norm(drawn, dim=1, keepdim=True) > 0.01 * cover)
        seen = torch.cat([colour, _likeness(colour, under)], dim=1) * self.sees_image
        told = [hint.flow / unit, hint.reach.clamp(max=2), drawn, cover, mask]
        return torch.cat([*told, seen], dim=1), unit

    def forward(self, image: Tensor, hint: Hint, mask: Tensor) -> Refined:
        """`refine` with gradients, without checks, and with the values that a loss needs."""
        condition, unit = self.condition(image, hint, mask)
        height, width = image.shape[-2:]
        multiple = 2 ** len(self.down)
        x = F.pad(condition, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up, skip in zip(reversed(self.up), reversed(skips)):
            x = torch.cat([up(x), skip], dim=1)
        change, moves = self.head(x)[..., :height, :width].float().split([2, 1], dim=1)
        moves = moves + torch.logit(hint.reach, eps=1e-3)
        return Refined((hint.flow + change * unit) * torch.sigmoid(moves) * mask, moves, unit)

    @torch.no_grad()
    def refine(self, image: Tensor, hint: Hint, mask: Tensor) -> Tensor:
        """The steady flow of an image, bounded by the drawing.

        On arrows and pins the flow is the drawing's. From 1.75 to 2 sigma of Eq. 6 away from an arrow it fades to zero,
        so that an arrow does not move distant things; where several arrows act together their weights add up, and it
        fades a little farther away. The probability of motion is sharper than in training. On held-out scenes these
        three change the error by 0, +3 and -1 %.

        Args:
            image: (B, 3, H, W) float32 in [-1, 1], RGB, of about `side`² pixels.
            hint: With a batch dimension.
            mask: (B, 1, H, W) in {0, 1}; 1 where pixels may move; ones if the user gave no mask.

        Returns:
            (B, 2, H, W) px per frame; exactly 0 outside the mask.

        Raises:
            ValueError: If the shapes do not fit each other.
        """
        batch, height, width = len(image), *image.shape[-2:]
        given = {"image": (image, 3), "hint.flow": (hint.flow, 2), "hint.reach": (hint.reach, 1)}
        for name, (value, channels) in (given | {"hint.arrows": (hint.arrows, 3), "mask": (mask, 1)}).items():
            if tuple(value.shape) != (batch, channels, height, width):
                raise ValueError(
                    f"{name} of shape {tuple(value.shape)}: must be {(batch, channels, height, width)}, as the image"
                )
        flow, moves, _ = self(image, hint, mask)
        flow = flow * torch.exp(F.logsigmoid(_DECIDED * moves) - F.logsigmoid(moves))
        near, far = (math.exp(-(sigmas**2)) for sigmas in _FADE)
        flow = flow * ((hint.reach - far) / (near - far)).clamp(0, 1)
        return flow.lerp(hint.flow, hint.arrows[:, 2:]) * mask

    def save(self, path: Path | str) -> None:
        """Write weights and config as one safetensors file; an error leaves the earlier file."""
        save_network(path, self, kind=_FORMAT)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a file of `save`.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is no flow refiner, or its config and its weights do not fit each other.
        """
        return load_network(path, cls, kind=_FORMAT, experiment="flow_refiner")


def _colours(image: Tensor) -> Tensor:
    """Luminance and two colour differences (B, 3, H, W), in standard deviations of the picture's luminance."""
    red, green, blue = ((image + 1) / 2).unbind(1)
    colour = torch.stack([0.299 * red + 0.587 * green + 0.114 * blue, red - green, (red + green) / 2 - blue], dim=1)
    spread = torch.std(colour[:, :1], dim=(-2, -1), correction=0, keepdim=True).clamp_min(0.02)
    return (colour - colour.mean((-2, -1), keepdim=True)) / spread


def _likeness(colour: Tensor, cover: Tensor) -> Tensor:
    """Likeness of each pixel to the most similar pixel under an arrow: (B, 2, H, W) in [0, 1], at two widths.

    Pixels are compared by colour, smoothed over 3 px, and by contrast, measured over 5 px.
    """
    batch, _, height, width = colour.shape
    light = _mean(colour[:, :1], 5)
    contrast = (_mean(colour[:, :1].square(), 5) - light.square()).clamp_min(0).add(1e-4).sqrt()
    features = torch.cat([_mean(colour, 3), 2 * _mean(contrast, 3)], dim=1).flatten(2).transpose(1, 2)
    covered, places = cover.flatten(1).topk(min(_PATH_PIXELS, height * width), dim=1)
    under = torch.gather(features, 1, places[..., None].expand(-1, -1, features.shape[2]))
    sizes = features.square().sum(2)[:, :, None] + under.square().sum(2)[:, None]
    apart = sizes - 2 * features @ under.transpose(1, 2)
    nearest = torch.where(covered[:, None] < _ON_PATH, torch.inf, apart.clamp_min(0)).amin(2)
    return torch.stack([torch.exp(-nearest / scale) for scale in _LIKENESS], dim=1).view(batch, 2, height, width)


def _mean(x: Tensor, size: int) -> Tensor:
    return F.avg_pool2d(F.pad(x, (size // 2,) * 4, mode="replicate"), size, 1)


class PatchDiscriminator(nn.Module):
    """The 70x70 PatchGAN: one logit per 70x70 patch, real or generated, given the generator's input.

    Three convolutions of stride 2 and two of stride 1, all 4x4: the receptive field is 70 px.

    Args:
        width: Channels of the first level, a multiple of 8.

    Raises:
        ValueError: If `width` is not as above.
    """

    _MIN_SIDE = 24  # the smallest that leaves one logit

    def __init__(self, *, width: int) -> None:
        super().__init__()
        _check_width(width)
        layers: list[nn.Module] = [
            nn.Conv2d(CONDITION_CHANNELS + 2, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for level, stride in ((1, 2), (2, 2), (3, 1)):
            inner, outer = width * 2 ** (level - 1), width * 2**level
            layers += [nn.Conv2d(inner, outer, 4, stride=stride, padding=1), _norm(outer), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width * 8, 1, 4, padding=1))

    def forward(self, condition: Tensor, flow: Tensor) -> Tensor:
        """Logits (B, 1, H/8 - 2, W/8 - 2) float32, positive = real.

        Args:
            condition: (B, 12, H, W) of `FlowRefiner.condition`.
            flow: (B, 2, H, W) in units of the hint's speed.

        Raises:
            ValueError: If a side is below 24 px.
        """
        if min(flow.shape[-2:]) < self._MIN_SIDE:
            raise ValueError(f"frames of {tuple(flow.shape[-2:])}: the discriminator needs {self._MIN_SIDE} px a side")
        return self.layers(torch.cat([condition, flow], dim=1)).float()
