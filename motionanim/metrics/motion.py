"""Does the video move as asked? Realised against requested flow: pure functions on tensors."""

import torch
from torch import Tensor


def region_flow(flow: Tensor, region: Tensor) -> Tensor:
    """Mean flow inside a region: (T-1, 2, H, W) px per frame and (1, H, W) in {0, 1} to (2,).

    Raises:
        ValueError: If the region is empty.
    """
    if not region.any():
        raise ValueError("region: empty, so that there is no flow to average")
    return (flow * region).sum((0, 2, 3)) / (region.sum() * len(flow))


def direction_error(realised: Tensor, requested: Tensor) -> float:
    """Angle between two flow vectors (2,) in degrees, in [0, 180]; 180 where nothing moved at all."""
    lengths = torch.linalg.vector_norm(realised) * torch.linalg.vector_norm(requested)
    if lengths == 0:
        return 180.0
    return torch.rad2deg(torch.acos((realised @ requested / lengths).clamp(-1, 1))).item()


def speed_gain(realised: Tensor, requested: Tensor) -> float:
    """Realised speed along the requested direction over the requested speed: 1 is exact, negative is backwards."""
    return (realised @ requested / (requested @ requested)).item()


def static_drift(flow: Tensor, movable: Tensor) -> float:
    """Mean length of the flow (T-1, 2, H, W) where `movable` (1, H, W) is 0, px per frame; NaN if it is 0 nowhere."""
    still = (movable == 0).expand(len(flow), -1, -1, -1)[:, 0]
    return torch.linalg.vector_norm(flow, dim=1)[still].mean().item()
