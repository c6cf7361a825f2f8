"""What the feature extractors of published video distances have in common."""

import json
from abc import abstractmethod
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from motionanim.files import text_sha256
from motionanim.media.image_io import to_uint8
from motionanim.models.weights_io import exact_float32

_TOLERANCE = 1e-3  # beyond [-1, 1], for frames that were resized


class PublishedFeatures(nn.Module):
    """Maps frames (B, T, 3, H, W) in [-1, 1] to features (B, dim) float32 on the same device.

    Frames are rounded to 8 bits first, because the published code reads such frames.

    Attributes:
        name: In keys: the distance is fvd_NAME.
        dim: Number of features.
        frames: T; None for any T of at least `min_frames`.
        min_frames: The least T.
        protocol: All that determines the features. Only distances of equal protocols compare.
        fingerprint: A hash of it, 16 hex digits.

    Args:
        protocol: Without what the class says.
        batch: Clips a pass, at least 1; bounds the memory.

    Raises:
        ValueError: If `batch` is below 1. From the call, if the frames are not as above.
    """

    name: str
    dim: int
    frames: int | None
    min_frames: int

    def __init__(self, protocol: dict[str, Any], *, batch: int) -> None:
        super().__init__()
        if batch < 1:
            raise ValueError(f"batch={batch}: must be at least 1 clip")
        self._batch = batch
        self.protocol = {"features": self.name, **protocol}
        self.fingerprint = text_sha256(json.dumps(self.protocol, sort_keys=True))[:16]
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Keeps evaluation mode."""
        return super().train(False)

    @abstractmethod
    def features(self, pixels: Tensor) -> Tensor:
        """(B, dim) of frames (B, T, 3, H, W) uint8, on the device of the network."""

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        if frames.ndim != 5 or frames.shape[2] != 3 or not len(frames) or not frames.is_floating_point():
            raise ValueError(f"frames {tuple(frames.shape)} {frames.dtype}: must be (B, T, 3, H, W) float in [-1, 1]")
        length = frames.shape[1]
        if length < self.min_frames or self.frames not in (None, length):
            wanted = f"at least {self.min_frames}" if self.frames is None else f"exactly {self.frames}"
            raise ValueError(
                f"clips of {length} frames: {self.name} needs {wanted}; change benchmark.reading.num_frames, or leave "
                f"it out with ~metrics.features.{self.name}"
            )
        if not frames.abs().amax() <= 1 + _TOLERANCE:  # NaN fails this comparison too
            raise ValueError(f"frames reach {frames.abs().amax().item():g} in size: must be finite and in [-1, 1]")
        weight = next(self.parameters())
        if weight.dtype != torch.float32:
            raise ValueError(f"{type(self).__name__} was cast to {weight.dtype}: its features need torch.float32")
        with exact_float32(weight.device):
            parts = [self.features(to_uint8(clips).to(weight.device)) for clips in frames.split(self._batch)]
        return torch.cat(parts).float().to(frames.device)


def stretched(pixels: Tensor, side: int) -> Tensor:
    """(B, T, 3, H, W) uint8 to (B, 3, T, side, side) in [0, 1], bilinear with half-pixel centres, no antialias."""
    flat = F.interpolate(pixels.flatten(0, 1).float() / 255, size=(side, side), mode="bilinear")
    return flat.unflatten(0, pixels.shape[:2]).transpose(1, 2)
