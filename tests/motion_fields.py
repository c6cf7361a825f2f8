"""Random pictures, smooth and constant motion fields."""

import torch
import torch.nn.functional as F


def picture(height, width, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def smooth(channels, height, width, seed=0, cells=3):
    coarse = torch.randn(1, channels, cells, cells, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)[0]


def constant(x, y, height, width):
    return torch.tensor([float(x), float(y)]).view(2, 1, 1).expand(2, height, width)
