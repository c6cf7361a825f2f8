"""Pictures vary in look, by their generator alone, and only in training."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from motionanim.data.synthetic.clips import SyntheticFlowPairs
from motionanim.data.synthetic.photometric import vary


def picture(seed: int) -> torch.Tensor:
    return torch.rand(3, 20, 28, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_same_state_gives_the_same_picture_in_range(seed):
    image = picture(seed)
    kept = image.clone()
    made = vary(image, np.random.default_rng(seed))
    torch.manual_seed(seed + 1)
    assert torch.equal(made, vary(image, np.random.default_rng(seed)))
    assert torch.equal(image, kept)
    assert made.shape == image.shape
    assert made.dtype == torch.float32
    assert made.abs().max() <= 1


def test_pictures_differ_from_draw_to_draw():
    image = picture(0)
    made = torch.stack([vary(image, np.random.default_rng(seed)) for seed in range(20)])
    apart = (made[:, None] - made[None]).abs().mean((2, 3, 4))
    assert (apart + torch.eye(20)).min() > 0.01


def test_only_training_pictures_vary():
    def image(split: str) -> torch.Tensor:
        options = {"hint": lambda flow, mask, generator: (flow, mask, torch.zeros(3, 32, 32)), "split": split}
        return SyntheticFlowPairs(seed=3, length=4, height=32, width=32, **options)[1].image

    assert image("val").unique().numel() > 300, "as rendered, in more than 256 levels"
    levels = (image("train") + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-3, rtol=0)
