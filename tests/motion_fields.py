"""Random pictures; smooth and constant motion fields, and those of drawings."""

import torch
import torch.nn.functional as F

from motionanim.motion.controls import motion_field
from motionanim.motion.drawing import parse_controls

MASK = torch.ones(1, 48, 64)


def picture(height, width, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def smooth(channels, height, width, seed=0, cells=3):
    coarse = torch.randn(1, channels, cells, cells, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)[0]


def constant(x, y, height, width):
    return torch.tensor([float(x), float(y)]).view(2, 1, 1).expand(2, height, width)


def drawn(arrows, mask=MASK, pins=()):
    return parse_controls({"arrows": arrows, "pins": list(pins)}, mask)


def field(controls, **changes):
    """Eq. 5-7 of a drawing over 9 frames."""
    options = {
        "num_frames": 9, "span": 9, "field": "eulerian", "sigma": 0.33, "threshold": 0.05, "threshold_on": "weight",
        "normalized": "exact", "edge": "cut",
    }  # fmt: skip
    return motion_field(controls, **options | changes)
