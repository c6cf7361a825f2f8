"""T, the flow refiner (Sec. 3.2): from a smooth hint of motion to the motion that the picture suggests.

pix2pix (Isola et al., CVPR 2017): a U-Net generator, and a 70x70 PatchGAN discriminator that sees the same inputs.
Without pix2pix's dropout, which is its only noise: T must give one answer for one drawing. Group norm in place of
batch norm, so that a clip's flow does not depend on its batch. Inside, flow is in units of a *motion norm*, a share of
the frame width per frame, so that one network serves all resolutions.
"""

from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motionanim.models.saved import load_network, save_network

_FORMAT = "motionanim.flow_refiner.3"
_CONDITION_CHANNELS = 6  # hint 2, RGB 3, mask 1


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(8, channels)


def _check_width(width: int) -> None:
    if width < 8 or width % 8:
        raise ValueError(f"width={width}: must be a positive multiple of 8, the number of groups in a norm")


class FlowRefiner(nn.Module):
    """The generator: `depth` halvings down to the bottleneck and back, with skips between equal sizes.

    Twice the hint gives twice the flow: inside, the hint is divided by its own mean speed, as norms cannot carry
    a change in proportion to speeds that range over a factor of ten.

    Frames of any size: they are padded inside to multiples of 2**depth. The result is the hint plus a learned change
    that is zero before training, inside the movable region, and zero outside it.

    Args:
        width: Channels of the first level, a multiple of 8; they double per level up to 8 times as many.
        depth: Number of halvings, at least 1.
        motion_norm: Flow that counts as 1 in the loss and to the discriminator, as a share of the frame width per
            frame, above 0.
        sees_image, sees_mask: False blinds both networks to it: what is it worth? The hint is cut at the mask, and so
            is the result, whatever they see.

    Raises:
        ValueError: If an argument is not as above.
    """

    def __init__(self, *, width: int, depth: int, motion_norm: float, sees_image: bool, sees_mask: bool) -> None:
        super().__init__()
        _check_width(width)
        if depth < 1:
            raise ValueError(f"depth={depth}: must be at least 1")
        if motion_norm <= 0:
            raise ValueError(f"motion_norm={motion_norm}: must be above 0, a share of the width such as 0.02")
        self.config = {
            "width": width, "depth": depth, "motion_norm": motion_norm, "sees_image": sees_image, "sees_mask": sees_mask
        }  # fmt: skip
        self.motion_norm, self.sees_image, self.sees_mask = motion_norm, sees_image, sees_mask
        widths = [_CONDITION_CHANNELS, *(width * min(2**level, 8) for level in range(depth))]
        self.down = nn.ModuleList()
        self.up = nn.ModuleList()
        for level in range(depth):
            # As in pix2pix the first level has no norm.
            self.down.append(
                nn.Sequential(
                    nn.Conv2d(widths[level], widths[level + 1], 4, stride=2, padding=1),
                    _norm(widths[level + 1]) if level else nn.Identity(),
                    nn.LeakyReLU(0.2),
                )
            )
            inner = widths[level + 1] * (1 if level == depth - 1 else 2)
            outer = widths[level] if level else width
            # Enlarge, then convolve: a transposed convolution leaves a checkerboard, and a flow is smooth.
            self.up.append(
                nn.Sequential(
                    nn.Upsample(scale_factor=2, mode="bilinear"),
                    nn.Conv2d(inner, outer, 3, padding=1),
                    _norm(outer),
                    nn.ReLU(),
                )
            )
        self.head = nn.Conv2d(width + _CONDITION_CHANNELS, 2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def condition(self, image: Tensor, hint: Tensor, mask: Tensor) -> Tensor:
        """What the discriminator sees: (B, 6, H, W) float32, hint in motion norms, image in [-1, 1], mask."""
        return self._seen(self.normalize(hint), image, mask)

    def _seen(self, hint: Tensor, image: Tensor, mask: Tensor) -> Tensor:
        return torch.cat([hint, image * self.sees_image, mask * self.sees_mask], dim=1)

    def normalize(self, flow: Tensor) -> Tensor:
        """Px per frame to motion norms: (B, 2, H, W). Both axes share the width, so that directions stay."""
        return flow / (self.motion_norm * flow.shape[-1])

    def forward(self, image: Tensor, hint: Tensor, mask: Tensor) -> Tensor:
        """`refine` with gradients and without its checks."""
        height, width = image.shape[-2:]
        multiple = 2 ** len(self.down)
        energy = (hint * mask).square().sum((1, 2, 3), keepdim=True) / mask.sum((1, 2, 3), keepdim=True).clamp_min(1)
        speed = energy.sqrt().clamp_min(1e-6 * width)
        x = self._seen(hint / speed, image, mask)
        x = F.pad(x, (0, -width % multiple, 0, -height % multiple), mode="replicate")
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(x)
        for up, skip in zip(reversed(self.up), reversed(skips)):
            x = torch.cat([up(x), skip], dim=1)
        change = self.head(x)[..., :height, :width].float() * speed
        return (hint + change) * mask

    @torch.no_grad()
    def refine(self, image: Tensor, hint: Tensor, mask: Tensor) -> Tensor:
        """The steady flow of an image.

        Args:
            image: (B, 3, H, W) float32 in [-1, 1], RGB.
            hint: (B, 2, H, W) px per frame, from `hints.dense_flow`.
            mask: (B, 1, H, W) in {0, 1}; 1 where pixels may move.

        Returns:
            (B, 2, H, W) px per frame; exactly 0 outside the mask.

        Raises:
            ValueError: If the shapes do not belong together.
        """
        batch, height, width = len(image), *image.shape[-2:]
        for name, value, channels in (("image", image, 3), ("hint", hint, 2), ("mask", mask, 1)):
            if tuple(value.shape) != (batch, channels, height, width):
                raise ValueError(
                    f"{name} of shape {tuple(value.shape)}: must be {(batch, channels, height, width)}, as the image"
                )
        return self(image, hint, mask)

    def save(self, path: Path | str) -> None:
        """Write the weights and the config that rebuilds the network, as safetensors, whole or not at all."""
        save_network(path, self, kind=_FORMAT)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file is not a flow refiner, or its config and its weights do not fit each other.
        """
        return load_network(path, cls, kind=_FORMAT, experiment="flow_refiner")


class PatchDiscriminator(nn.Module):
    """The 70x70 PatchGAN: one logit for each 70x70 patch, real or made, given the generator's inputs.

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
            nn.Conv2d(_CONDITION_CHANNELS + 2, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
        ]
        for level, stride in ((1, 2), (2, 2), (3, 1)):
            inner, outer = width * 2 ** (level - 1), width * 2**level
            layers += [nn.Conv2d(inner, outer, 4, stride=stride, padding=1), _norm(outer), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Conv2d(width * 8, 1, 4, padding=1))

    def forward(self, condition: Tensor, flow: Tensor) -> Tensor:
        """Logits (B, 1, H/8 - 2, W/8 - 2) float32, positive = real.

        Args:
            condition: (B, 6, H, W) of `FlowRefiner.condition`.
            flow: (B, 2, H, W) in motion norms.

        Raises:
            ValueError: If a side is below 24 px.
        """
        if min(flow.shape[-2:]) < self._MIN_SIDE:
            raise ValueError(f"frames of {tuple(flow.shape[-2:])}: the discriminator needs {self._MIN_SIDE} px a side")
        return self.layers(torch.cat([condition, flow], dim=1)).float()
