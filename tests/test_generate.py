"""What holds still, the latents outside the mask, for every clip, segment and window; and the denoiser's dtype."""

from pathlib import Path

import pytest
import torch
from conftest import MOTION, make_condition
from torch import Tensor

from motionanim.generate import Generator, _held
from motionanim.long_video.chained import direct
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


def video(base: Path, dtype: str) -> Tensor:
    sampling = {
        "num_steps": 2, "sigma_min": 0.002, "sigma_max": 80.0, "rho": 7.0, "min_guidance": 1.0, "max_guidance": 2.0,
        "motion_guidance": None, "noise_aug": 0.02, "dtype": dtype,
    }  # fmt: skip
    torch.manual_seed(0)  # of the motion weights, which this base lacks
    generator, _ = Generator.load(
        base=str(base), motion=MOTION, sampling=sampling, loras=[], window=5, device=torch.device("cpu")
    )
    random = torch.Generator().manual_seed(1)
    return generator(
        torch.rand(1, 3, 16, 16, generator=random) * 2 - 1, torch.randn(1, 4, 2, 16, 16, generator=random),
        num_frames=5, fps=7.0, strength=torch.ones(1), use_flow=True, mask=torch.ones(1, 1, 16, 16),
        long_video=direct, seed=0, progress=False,
    )[0]  # fmt: skip


def test_bfloat16_makes_nearly_the_same_video(base: Path) -> None:
    exact, rounded = video(base, "float32"), video(base, "bfloat16")
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().mean() < 0.05 * exact.std()  # eight bits, over two steps with guidance


def test_another_dtype_is_refused_in_words(base: Path) -> None:
    with pytest.raises(ValueError, match="sampling.dtype=int8: must be one of float32, bfloat16, float16"):
        video(base, "int8")
