"""The embedded video features: a small network for a Fréchet video distance without downloaded weights.

It is trained on the synthetic benchmark (experiment=video_features). Its distances have a protocol name of their own
and are never ranked beside I3D's. R(2+1)D blocks (Tran et al., CVPR 2018): a spatial convolution, then a temporal one.
Batch norm, frozen after training, because group norm would divide out each clip's contrast, which a distance should
see. The features are the network's outputs, as FVD's are I3D's logits.
"""

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motionanim.models.weights_io import exact_float32, load_network, save_network

FILE = "video_features.safetensors"
_FORMAT = "motionanim.video_features.1"
_MIN_FRAMES, _MIN_SIDE = 4, 32
_TOLERANCE = 1e-3  # beyond [-1, 1], for frames that were resized or decoded


class _Block(nn.Module):
    """Spatial 3x3 and temporal 3 convolution, each with norm and ReLU; a residual connection if the shape stays."""

    def __init__(self, inner: int, outer: int, *, space: int, time: int) -> None:
        super().__init__()
        self.residual = inner == outer and space == time == 1
        self.space = nn.Conv3d(inner, outer, (1, 3, 3), (1, space, space), (0, 1, 1), bias=False)
        self.time = nn.Conv3d(outer, outer, (3, 1, 1), (time, 1, 1), (1, 0, 0), bias=False)
        self.space_norm, self.time_norm = nn.BatchNorm3d(outer), nn.BatchNorm3d(outer)

    def forward(self, x: Tensor) -> Tensor:
        y = self.time_norm(self.time(F.relu(self.space_norm(self.space(x)))))
        return F.relu(x + y if self.residual else y)


class FeatureNetwork(nn.Module):
    """From frames to features, as it is trained. `VideoFeatures` measures with it.

    Args:
        channels: One per level, at least 3; each level halves the sides, from the third on also the frames.
        hidden: Width before the last layer, which is linear.
        dim: D, the number of features: one for each question of the training.
        size: Frames are stretched to size x size px, bilinear, with antialiasing if they shrink; at least 2 px per
            halving.

    Raises:
        ValueError: If an argument is not as above.
    """

    def __init__(self, *, channels: Sequence[int], hidden: int, dim: int, size: int) -> None:
        super().__init__()
        if len(channels) < 3 or min(channels) < 1:
            raise ValueError(f"channels={list(channels)}: must be at least 3 positive numbers, one a level")
        if hidden < 1 or dim < 1:
            raise ValueError(f"hidden={hidden}, dim={dim}: both must be at least 1")
        if size % 2 ** len(channels) or size < 2 ** (len(channels) + 1):
            raise ValueError(
                f"size={size}: must be a multiple of {2 ** len(channels)} and at least {2 ** (len(channels) + 1)}"
            )
        self.config = {"channels": list(channels), "hidden": hidden, "dim": dim, "size": size}
        self.size = size
        blocks = [_Block(3, channels[0], space=2, time=1)]
        for level, (inner, outer) in enumerate(pairwise(channels), start=1):
            blocks += [
                _Block(inner, outer, space=2, time=1 if level == 1 else 2),
                _Block(outer, outer, space=1, time=1),
            ]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.Linear(4 * channels[-1], hidden), nn.BatchNorm1d(hidden, affine=False), nn.Linear(hidden, dim)
        )

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, 3, H, W) in [-1, 1] to (B, D), from means over time and over the four quarters of the picture."""
        frames = resize_frames(frames, self.size)
        x = self.blocks(frames.movedim(2, 1).contiguous(memory_format=torch.channels_last_3d))
        quarters = F.adaptive_avg_pool2d(x.mean(2), 2)
        return self.head(quarters.flatten(1)).float()


def resize_frames(frames: Tensor, size: int) -> Tensor:
    """Stretch (B, T, 3, H, W) to (B, T, 3, size, size), bilinear, with antialiasing if a side shrinks."""
    if frames.shape[-2:] == (size, size):
        return frames
    flat = F.interpolate(frames.flatten(0, 1), size=(size, size), mode="bilinear", antialias=True)
    return flat.unflatten(0, frames.shape[:2])


class VideoFeatures(nn.Module):
    """Frames (B, T, 3, H, W) to features (B, D) float32, always in eval mode and without gradients.

    Clips pass one by one, so that a clip's features do not depend on its batch, to the last bit.
    """

    name = "embedded"
    min_frames = _MIN_FRAMES

    def __init__(self, network: FeatureNetwork) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever the surrounding module does."""
        return super().train(False)

    @property
    def dim(self) -> int:
        return self.network.config["dim"]

    @property
    def fingerprint(self) -> str:
        """16 hex digits of a hash of weights and preprocessing."""
        digest = hashlib.sha256(json.dumps([_FORMAT, self.network.config], sort_keys=True).encode())
        for name, value in sorted(self.network.state_dict().items()):
            digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    @property
    def protocol(self) -> dict[str, Any]:
        """The settings of a distance on these features: only distances with equal settings are comparable."""
        size = self.network.size
        return {
            "features": self.name,
            "domain": "procedural",
            "fingerprint": self.fingerprint,
            "dim": self.dim,
            "resize": f"stretch to {size}x{size}, bilinear, antialias",
            "value_range": [-1.0, 1.0],
            "ddof": 1,
        }

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        """Features of clips of at least 4 frames and 32 px a side.

        Args:
            frames: (B, T, 3, H, W) in [-1, 1], RGB.

        Returns:
            (B, D) float32 on the device of `frames`.

        Raises:
            ValueError: If the frames are not as above, or the module was cast to another type.
        """
        _check(frames)
        weight = self.network.head[0].weight
        if weight.dtype != torch.float32:
            raise ValueError(f"VideoFeatures was cast to {weight.dtype}: its features need torch.float32")
        with exact_float32(weight.device):
            clips = [self.network(clip[None].to(weight.device, torch.float32)) for clip in frames]
        return torch.cat(clips).to(frames.device)

    def save(self, path: Path | str) -> None:
        """Write weights and config as one safetensors file; an error leaves the earlier file."""
        save_network(path, self.network, kind=_FORMAT)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a file of `save`, or the folder that holds it as video_features.safetensors.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If the file holds no video features, or its config and its weights do not fit each other.
        """
        path = Path(path)
        path = path / FILE if path.is_dir() else path
        return cls(load_network(path, FeatureNetwork, kind=_FORMAT, experiment="video_features"))


def _check(frames: Tensor) -> None:
    shape = tuple(frames.shape)
    if frames.ndim != 5 or shape[2] != 3 or not len(frames) or not frames.is_floating_point():
        raise ValueError(f"frames {frames.dtype} of shape {shape}: must be floats (B, T, 3, H, W) of at least one clip")
    if shape[1] < _MIN_FRAMES or min(shape[3:]) < _MIN_SIDE:
        raise ValueError(
            f"frames of shape {shape}: the embedded features need T of at least {_MIN_FRAMES} and sides of at least "
            f"{_MIN_SIDE} px"
        )
    # NaN fails this comparison too.
    if not frames.abs().amax() <= 1 + _TOLERANCE:
        raise ValueError(f"frames reach {frames.abs().amax().item():g} in size: must be finite and in [-1, 1]")
