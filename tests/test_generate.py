"""What holds still: the latents outside the mask, for every clip, segment and window."""

import torch
from conftest import make_condition
from torch import Tensor

from motionanim.generate import _held
from motionanim.types import Condition


def test_held_latents_are_each_clips_own_in_every_segment() -> None:
    known = torch.arange(2.0).view(2, 1, 1, 1, 1).expand(2, 1, 4, 8, 8) + 10
    where = torch.zeros(2, 1, 1, 8, 8, dtype=torch.bool)
    where[0, ..., :3], where[1, ..., 5:] = True, True

    def zeros(z: Tensor, sigma: Tensor, condition: Condition) -> Tensor:
        return torch.zeros_like(z)

    z = torch.ones(6, 5, 4, 8, 8)  # three segments of two clips, segment after segment
    out = _held(zeros, known, where)(z, torch.ones(6), make_condition())
    for row, (value, held) in enumerate([(10.0, slice(0, 3)), (11.0, slice(5, 8))] * 3):
        assert (out[row, ..., held] == value).all()
        rest = torch.ones(8, dtype=torch.bool)
        rest[held] = False
        assert (out[row, ..., rest] == 0).all()
