"""Inception-v3 as the Fréchet inception distance (FID; Heusel et al., NeurIPS 2017) uses it, on the frames of videos.

The network is that of TensorFlow's graph of 2015, in the layout that pytorch-fid gave it. It differs from torchvision's
in its pooled branches: means leave out the padding, and the last block takes the maximum.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception as blocks

from motionanim.files import file_sha256, text_sha256
from motionanim.models.pretrained import read
from motionanim.models.weights_io import exact_float32, fill

DIM, SIDE, CLASSES = 2048, 299, 1008
_TOLERANCE = 1e-3  # beyond [-1, 1], for frames that were resized or decoded


def _mean_pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _max_pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


class _Pooled:
    """A block whose last branch is pooled in another way than torchvision's."""

    pool: Callable[[Tensor], Tensor] = staticmethod(_mean_pool)

    def _forward(self, x: Tensor) -> list[Tensor]:
        *others, _ = super()._forward(x)
        return [*others, self.branch_pool(self.pool(x))]


class _A(_Pooled, blocks.InceptionA):
    pass


class _C(_Pooled, blocks.InceptionC):
    pass


class _E(_Pooled, blocks.InceptionE):
    pass


def inception(state: dict[str, Tensor]) -> nn.Module:
    """The network with its weights: (N, 3, 299, 299) in [-1, 1] to (N, 2048), frozen, in eval mode, float32.

    Raises:
        ValueError: If the weights do not have the layout of pt_inception-2015-12-05-6726825d.pth.
    """
    with torch.device("meta"):
        network = blocks.Inception3(
            num_classes=CLASSES, aux_logits=False, init_weights=False,
            inception_blocks=[
                blocks.BasicConv2d, _A, blocks.InceptionB, _C, blocks.InceptionD, _E, blocks.InceptionAux,
            ],
        )  # fmt: skip
    network.Mixed_7c.pool = _max_pool
    fill("inception-fid", network, state)
    network.fc = nn.Identity()
    return network


class InceptionFeatures(nn.Module):
    """Maps frames (B, T, 3, H, W) to features (B, F, 2048) float32 of their single frames, for the FID of frames.

    Of each clip F = min(T - 1, `frames`) later frames count, evenly spaced, the last among them: frame 0 is the
    condition image. Frames are stretched to 299 x 299, bilinear, without antialiasing, as in pytorch-fid. FIDs of
    other preparations differ.

    Args:
        weights: The state dict of pytorch-fid, pt_inception-2015-12-05-6726825d.pth.
        batch: Frames a pass, at least 1; bounds the memory.
        frames: The most frames of a clip, at least 1; bounds the size of results.

    Raises:
        ValueError: If an argument is not as above, or the weights cannot be read or do not fit. From the call, if the
            frames are not as above, or not in [-1, 1].
    """

    name = "fid_inception"
    dim, min_frames = DIM, 2

    def __init__(self, weights: Path | str, *, batch: int, frames: int) -> None:
        super().__init__()
        if batch < 1 or frames < 1:
            raise ValueError(f"batch={batch}, frames={frames}: both must be at least 1")
        self.network, self._batch, self._frames = inception(read(Path(weights))), batch, frames
        self.protocol: dict[str, Any] = {
            "features": "inception-v3-2015-pool3", "version": 1, "per": "frame", "frames": frames,
            "resize": f"stretch to {SIDE}x{SIDE}, bilinear", "ddof": 1, "weights": file_sha256(Path(weights)),
        }  # fmt: skip
        self.fingerprint = text_sha256(json.dumps(self.protocol, sort_keys=True))[:16]

    def train(self, mode: bool = True) -> Self:
        """Keeps evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        if frames.ndim != 5 or frames.shape[2] != 3 or frames.shape[1] < 2 or not len(frames):
            raise ValueError(f"frames of shape {tuple(frames.shape)}: must be (B, T, 3, H, W) with T of at least 2")
        if not frames.abs().amax() <= 1 + _TOLERANCE:  # NaN fails too
            raise ValueError(f"frames reach {frames.abs().amax().item():g} in size: must be finite and in [-1, 1]")
        later = frames.shape[1] - 1
        count = min(later, self._frames)
        pictures = frames[:, [(k + 1) * later // count for k in range(count)]].flatten(0, 1)
        device = self.network.Conv2d_1a_3x3.conv.weight.device
        with exact_float32(device):
            parts = [self.network(self.prepare(part.to(device))) for part in pictures.split(self._batch)]
        return torch.cat(parts).unflatten(0, (len(frames), count)).to(frames.device)

    @staticmethod
    def prepare(pictures: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1] to the network's input (N, 3, 299, 299)."""
        return F.interpolate(pictures.float(), size=(SIDE, SIDE), mode="bilinear", align_corners=False)
