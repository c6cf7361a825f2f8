"""The Inception network of FID: its pooled branches by hand, its layout, and which frames it sees."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception as blocks

from motionanim.models import inception
from motionanim.models.inception import InceptionFeatures


def filled(module: nn.Module) -> nn.Module:
    """A module in eval mode with random weights, also those of its norms."""
    generator = torch.Generator().manual_seed(0)
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.normal_(std=0.1, generator=generator)
            if name.endswith(("running_var", "bn.weight")):
                value.abs_().add_(0.5)
    return module.eval()


def neighbours(x: Tensor) -> Tensor:
    """The 3 x 3 px around each pixel (N, C, 9, H, W), NaN outside."""
    around = F.unfold(F.pad(x, (1, 1, 1, 1), value=torch.nan), 3)
    return around.view(len(x), x.shape[1], 9, *x.shape[2:])


@pytest.mark.parametrize(
    ("ours", "theirs", "given"),
    [
        (inception._A, blocks.InceptionA, {"in_channels": 6, "pool_features": 4}),
        (inception._C, blocks.InceptionC, {"in_channels": 6, "channels_7x7": 5}),
        (inception._E, blocks.InceptionE, {"in_channels": 6}),
    ],
)
@pytest.mark.parametrize("largest", [False, True])
def test_only_the_pooled_branch_differs_from_torchvisions(ours, theirs, given, largest: bool) -> None:
    mine, base = filled(ours(**given)), filled(theirs(**given))
    if largest:
        mine.pool = inception._max_pool
    x = torch.randn(2, 6, 7, 9, generator=torch.Generator().manual_seed(1))
    around = neighbours(x)
    pooled = around.nan_to_num(-torch.inf).amax(2) if largest else around.nanmean(2)
    with torch.no_grad():
        found, plain, branch = mine(x), base(x), base.branch_pool(pooled)
    width = branch.shape[1]
    torch.testing.assert_close(found[:, :-width], plain[:, :-width])
    torch.testing.assert_close(found[:, -width:], branch, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found[:, -width:], plain[:, -width:])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the published layout, whose classifier has 1008 rows."""
    network = blocks.Inception3(num_classes=1008, aux_logits=False, init_weights=False)
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(filled(network).state_dict(), path)
    return path


@pytest.mark.slow
def test_features_are_of_the_later_frames_and_do_not_depend_on_the_batch(weights: Path) -> None:
    extract, few = InceptionFeatures(weights, batch=2, frames=16), InceptionFeatures(weights, batch=5, frames=2)
    clips = torch.rand(2, 5, 3, 40, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = extract(clips)
    assert found.shape == (2, 4, extract.dim)
    with torch.no_grad():
        alone = extract.network(extract.prepare(clips[1, 3:4]))
    torch.testing.assert_close(found[1, 2:3], alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(few(clips), found[:, [1, 3]], atol=1e-4, rtol=1e-4)
    assert extract.fingerprint != few.fingerprint
    assert extract.network.Mixed_7c.pool is not extract.network.Mixed_7b.pool
    assert not extract.train().network.training
    for frames, message in ((clips[:, :1], "T of at least 2"), (clips * 3, r"must be finite and in \[-1, 1\]")):
        with pytest.raises(ValueError, match=message):
            extract(frames)


def test_other_weights_and_arguments_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="weights for inception-fid do not fit"):
        inception.inception({"fc.weight": torch.zeros(3)})
    with pytest.raises(ValueError, match="batch=0, frames=16: both must be at least 1"):
        InceptionFeatures(tmp_path / "none.pth", batch=0, frames=16)
