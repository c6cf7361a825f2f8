"""PIPs++ (Zheng et al., "PointOdyssey", ICCV 2023): follows points through a clip. FVMD reads its tracks.

Features of all frames, compared with those of the points where the tracks are and were, tell a 1-d network along time
how to move the tracks; several iterations. Module names are those of the published weights.
"""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_STRIDE, _WIDTH = 8, 128  # px of a feature, features
_LEVELS, _RADIUS = 4, 3  # of the pyramid of correlations, and of the window of each
_BASE, _BLOCKS, _KERNEL = 128, 8, 3  # of the network along time
_BEFORE = (2, 4)  # the points also look as they did so many frames before


class PIPs(nn.Module):
    """Tracks in frames of any size, in steps of a stride of 8 px."""

    def __init__(self) -> None:
        super().__init__()
        self.fnet, self.delta_block = _Features(), _Motion()

    @classmethod
    def of(cls, state: dict[str, Tensor]) -> Self:
        """The network with published weights, frozen and in eval mode.

        Raises:
            ValueError: If the weights have another layout.
        """
        with torch.device("meta"):
            network = cls()
        state = {key: value for key, value in state.items() if not key.startswith("norm.")}  # never used
        try:
            network.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise ValueError(f"weights of PIPs++ do not fit: {' '.join(str(error).split())[:200]}") from error
        return network.float().eval().requires_grad_(False)

    def forward(self, frames: Tensor, points: Tensor, *, iterations: int) -> Tensor:
        """Tracks (B, T, N, 2) in px, as (x, y), that start where the points are and stand still at first.

        Args:
            frames: (B, T, 3, H, W) from 0 to 255; T at least 2, H and W multiples of 8.
            points: (N, 2) places (x, y) in px in the first frame.
            iterations: The last quarter of them moves by half steps.
        """
        batch, length, count = *frames.shape[:2], len(points)
        maps = self.fnet(frames.flatten(0, 1) / 127.5 - 1).unflatten(0, (batch, length))
        start = (points / _STRIDE).expand(batch, 1, -1, -1)
        tracks = start.expand(-1, length, -1, -1)
        first = _looks(maps[:, :1], start).expand(-1, length, -1, -1)
        pyramid = [maps]
        for _ in range(_LEVELS - 1):
            pyramid.append(F.avg_pool2d(pyramid[-1].flatten(0, 1), 2).unflatten(0, (batch, length)))
        then = [torch.arange(length, device=maps.device).sub(before).clamp(min=0) for before in _BEFORE]
        for number in range(iterations):
            looks = [first, *(_looks(maps[:, i], tracks[:, i]) if number else first for i in then)]
            fits = torch.cat([_fit(pyramid, look, tracks) for look in looks], -1)
            steps = tracks.diff(dim=1)
            steps = torch.cat([steps, steps[:, -1:]], 1)
            flat = [value.transpose(1, 2).flatten(0, 1) for value in (fits, steps)]  # (B N, T, features)
            move = self.delta_block(*flat).unflatten(0, (batch, count)).transpose(1, 2)
            tracks = tracks + move * (0.5 if number > 3 * iterations // 4 else 1.0)
            tracks = torch.cat([start, tracks[:, 1:]], 1)
        return tracks * _STRIDE


def _sample(maps: Tensor, places: Tensor, padding: str) -> Tensor:
    """Maps (M, C, H, W) at places (M, P, 2) in their pixels, as (x, y): (M, C, P)."""
    size = torch.tensor(maps.shape[:-3:-1], device=maps.device)  # (W, H)
    grid = 2 * places / (size - 1) - 1
    return F.grid_sample(maps, grid[:, None], padding_mode=padding, align_corners=True)[:, :, 0]


def _looks(maps: Tensor, tracks: Tensor) -> Tensor:
    """The features (B, T, N, C) of maps (B, T, C, H, W) at tracks (B, T, N, 2); beyond the edge, those of the edge."""
    sampled = _sample(maps.flatten(0, 1), tracks.flatten(0, 1), "border")
    return sampled.mT.unflatten(0, maps.shape[:2])


def _fit(pyramid: list[Tensor], looks: Tensor, tracks: Tensor) -> Tensor:
    """How looks (B, T, N, C) agree with the maps around the tracks: (B, T, N, levels * 7 * 7), 0 beyond the edge."""
    reach = torch.arange(-_RADIUS, _RADIUS + 1, device=tracks.device, dtype=tracks.dtype)
    window = torch.cartesian_prod(reach, reach)  # x outside, y inside
    found = []
    for level, maps in enumerate(pyramid):
        agreement = torch.einsum("btnc,btchw->btnhw", looks, maps) / looks.shape[-1] ** 0.5
        places = tracks.flatten(0, 2)[:, None] / 2**level + window
        around = _sample(agreement.flatten(0, 2)[:, None], places, "zeros")
        found.append(around[:, 0].unflatten(0, looks.shape[:3]))
    return torch.cat(found, -1)


class _Block2d(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride)) if stride > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(F.instance_norm(self.conv1(x)))
        y = F.relu(F.instance_norm(self.conv2(y)))
        return F.relu(y + (x if self.downsample is None else F.instance_norm(self.downsample(x))))


class _Features(nn.Module):
    """Frames (M, 3, H, W) in [-1, 1] to features (M, 128, H / 8, W / 8), from four scales."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3)
        sizes = ((64, 64, 1), (64, 96, 2), (96, 128, 2), (128, 128, 2))
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(_Block2d(inputs, outputs, stride), _Block2d(outputs, outputs, 1))
            for inputs, outputs, stride in sizes
        )
        self.conv2 = nn.Conv2d(64 + 96 + 128 + 128, 2 * _WIDTH, 3, 1, 1)
        self.conv3 = nn.Conv2d(2 * _WIDTH, _WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        size = [side // _STRIDE for side in x.shape[2:]]
        x = F.relu(F.instance_norm(self.conv1(x)))
        scales = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
            scales.append(F.interpolate(x, size, mode="bilinear", align_corners=True))
        return self.conv3(F.relu(F.instance_norm(self.conv2(torch.cat(scales, 1)))))


class _Same(nn.Module):
    """A convolution along time that keeps the length."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, _KERNEL, padding=_KERNEL // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Block1d(nn.Module):
    def __init__(self, inputs: int, outputs: int, *, first: bool) -> None:
        super().__init__()
        self.conv1, self.conv2 = _Same(inputs, outputs), _Same(outputs, outputs)
        self.first, self.wider = first, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x if self.first else F.relu(F.instance_norm(x)))
        y = self.conv2(F.relu(F.instance_norm(y)))
        return y + F.pad(x, (0, 0, self.wider, self.wider))


class _Motion(nn.Module):
    """Agreements (M, T, 588) and steps (M, T, 2) to a move (M, T, 2), all in features' pixels."""

    def __init__(self) -> None:
        super().__init__()
        seen = (1 + len(_BEFORE)) * _LEVELS * (2 * _RADIUS + 1) ** 2
        self.first_block_conv = _Same(seen + _WIDTH + 2, _BASE)
        widths = [_BASE * 2 ** (number // 2) for number in range(_BLOCKS)]
        blocks = zip([_BASE, *widths], widths)
        self.basicblock_list = nn.ModuleList(_Block1d(*sizes, first=not i) for i, sizes in enumerate(blocks))
        self.dense = nn.Linear(widths[-1], 2)

    def forward(self, fits: Tensor, steps: Tensor) -> Tensor:
        rates = 10000 ** -(torch.arange(_WIDTH // 4, device=steps.device) / (_WIDTH // 4 - 1))
        x, y = (steps[..., axis, None] * rates for axis in (0, 1))
        seen = torch.cat([fits, x.sin(), x.cos(), y.sin(), y.cos(), steps], -1)
        x = F.relu(self.first_block_conv(seen.mT))
        for block in self.basicblock_list:
            x = block(x)
        return self.dense(F.relu(x).mT)
