import copy
import math
from pathlib import Path

import lpips as reference
import pytest
import torch
import torchvision
from torch import nn
from torchmetrics.functional.image.lpips import _LPIPS
from transformers import CLIPImageProcessor

from motionanim.metrics.perceptual import (
    LPIPS,
    ClipConsistency,
    adjacent_cosine,
    clip_pixels,
    lpips_heads,
)
from motionanim.models.weights_io import weights_fingerprint


def clips(*shape: int, seed: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_backbone(net: str) -> nn.Sequential:
    builder = {"alex": torchvision.models.alexnet, "vgg": torchvision.models.vgg16}[net]
    with torch.device("meta"):
        features = builder(weights=None).features
    features = features.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in features.parameters():
        fan_in = parameter[0].numel()
        nn.init.normal_(parameter, std=(2 / fan_in) ** 0.5 if parameter.ndim > 1 else 0.1, generator=generator)
    return features


def share(features: nn.Sequential, network: nn.Module) -> nn.Module:
    """Give a reference's backbone, whose slices keep torchvision's places as names, our weights."""
    state = features.state_dict()
    network.load_state_dict({key: state[key.split(".", 1)[1]] for key in network.state_dict()})
    return network


@pytest.fixture(scope="module")
def alex() -> LPIPS:
    return LPIPS(net="alex", backbone=random_backbone("alex"), batch=2)


def test_lpips_equals_the_lpips_package(alex):
    package = reference.LPIPS(net="alex", pnet_rand=True, verbose=False)
    share(alex.network, package.net)
    made, real = clips(1, 3, 3, 64, 70, seed=0), clips(1, 3, 3, 64, 70, seed=1)
    real[:, 2] = 0.9 * made[:, 2]
    with torch.no_grad():
        expected = package(made[0], real[0]).flatten().double()
    torch.testing.assert_close(
        alex.score(made, real)[0], torch.stack([expected[1:].mean(), expected.mean()]), atol=1e-7, rtol=1e-5
    )


def test_lpips_equals_torchmetrics(alex):
    package = _LPIPS(net="alex", pnet_rand=True)
    share(alex.network, package.net)
    made, real = clips(1, 2, 3, 48, 48, seed=2), clips(1, 2, 3, 48, 48, seed=3)
    with torch.no_grad():
        expected = package(made[0], real[0])[1].double()
    torch.testing.assert_close(alex.score(made, real)[0, 0], expected.squeeze(), atol=1e-6, rtol=0)


@pytest.mark.slow  # the reference builds 138 million random weights
def test_lpips_with_vgg_equals_the_lpips_package():
    package = reference.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    metric = LPIPS(net="vgg", backbone=random_backbone("vgg"), batch=1)
    share(metric.network, package.net)
    made, real = clips(1, 2, 3, 32, 40, seed=0), clips(1, 2, 3, 32, 40, seed=1)
    with torch.no_grad():
        expected = package(made[0], real[0]).flatten()[1].double()
    torch.testing.assert_close(metric.score(made, real)[0, 0], expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_the_heads_are_the_authors(net):
    path = Path(reference.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    for head, their in zip(lpips_heads(net), theirs.values(), strict=True):
        assert torch.equal(head, their.flatten())
        assert (head >= 0).all()


def test_lpips_of_equal_frames_is_0_and_grows_with_noise(alex):
    real = clips(1, 2, 3, 40, 40, seed=0)
    scores = [
        alex.score((real + k * clips(1, 2, 3, 40, 40, seed=1)).clamp(-1, 1), real)[0, 0].item() for k in (0, 0.1, 0.5)
    ]
    assert scores[0] == 0
    assert scores[0] < scores[1] < scores[2]


def test_lpips_does_not_depend_on_the_parts_or_on_train_mode(alex):
    made, real = clips(2, 3, 3, 33, 31, seed=0), clips(2, 3, 3, 33, 31, seed=1)
    other = LPIPS(net="alex", backbone=copy.deepcopy(alex.network), batch=100).train()
    torch.testing.assert_close(other.score(made, real), alex.score(made, real))
    assert not other.network.training
    assert not alex.score(made, real).requires_grad


def test_lpips_is_in_float32_inside_a_half_precision_region_and_leaves_no_setting_behind(alex):
    made, real = clips(1, 2, 3, 40, 40, seed=0), clips(1, 2, 3, 40, 40, seed=1)
    expected, before = alex.score(made, real), torch.backends.cudnn.allow_tf32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(alex.score(made, real), expected)
        assert torch.is_autocast_enabled("cpu")
    assert torch.backends.cudnn.allow_tf32 == before


def test_lpips_protocol_names_the_weights(alex):
    other = random_backbone("alex")
    again = LPIPS(net="alex", backbone=copy.deepcopy(other), batch=7)
    assert again.protocol == alex.protocol
    with torch.no_grad():
        other[10].bias[3] += 1e-3
    assert LPIPS(net="alex", backbone=other, batch=2).protocol != alex.protocol


def test_lpips_says_what_is_wrong(alex):
    with pytest.raises(ValueError, match="net='squeeze': LPIPS has alex, vgg"):
        LPIPS(net="squeeze", backbone=alex.network, batch=1)
    with pytest.raises(ValueError, match="net='vgg': the backbone is not that network's"):
        LPIPS(net="vgg", backbone=alex.network, batch=1)
    with pytest.raises(ValueError, match="batch=0"):
        LPIPS(net="alex", backbone=alex.network, batch=0)
    with pytest.raises(ValueError, match=r"\(30, 40\) px: LPIPS with net='alex' needs sides of at least 31 px"):
        alex.score(clips(1, 2, 3, 30, 40, seed=0), clips(1, 2, 3, 30, 40, seed=0))
    assert alex.score(clips(1, 2, 3, 31, 31, seed=0), clips(1, 2, 3, 31, 31, seed=1)).isfinite().all()
    with pytest.raises(ValueError, match="must have the same shape"):
        alex.score(clips(1, 2, 3, 32, 32, seed=0), clips(1, 2, 3, 32, 33, seed=0))
    with pytest.raises(ValueError, match="values from"):
        alex.score(clips(1, 2, 3, 32, 32, seed=0) * math.nan, clips(1, 2, 3, 32, 32, seed=0))


def test_vgg_takes_16_px():
    made, real = clips(1, 2, 3, 16, 16, seed=0), clips(1, 2, 3, 16, 16, seed=1)
    metric = LPIPS(net="vgg", backbone=random_backbone("vgg"), batch=4)
    assert metric.score(made, real).isfinite().all()
    with pytest.raises(ValueError, match="at least 16 px"):
        metric.score(made[..., :15], real[..., :15])


class Encoder(nn.Module):
    """A CLIP image encoder in small: patches, a mean, a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.project = nn.Conv2d(3, 8, 32, 32), nn.Linear(8, 5)
        generator = torch.Generator().manual_seed(0)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        assert pixels.shape[1:] == (3, 224, 224)
        return self.project(self.patches(pixels).relu().mean((2, 3)))


@pytest.mark.parametrize("size", [(300, 250), (128, 200), (224, 224)])
def test_clip_pixels_are_what_the_published_processor_makes(size):
    pixels = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    # Smoothed, as pictures are. The processor rounds to 8 bits after each pass of the resize, and we do not.
    pixels = nn.functional.avg_pool2d(pixels.float(), 5, stride=1, padding=2).round().byte()
    expected = CLIPImageProcessor()(list(pixels), return_tensors="pt")["pixel_values"]
    found = clip_pixels(pixels.float() / 127.5 - 1)
    assert found.shape == (2, 3, 224, 224)
    steps = (found - expected).abs() * 0.26 * 255
    assert steps.max() < 1.5
    assert steps.mean() < 0.4


def test_a_known_turn_has_its_cosine():
    angles = torch.tensor([[0.0, 30.0, 60.0, 60.0], [0.0, 90.0, 180.0, 270.0]]).deg2rad()
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=-1) * torch.tensor([1.0, 5.0, 0.1, 2.0]).view(1, 4, 1)
    expected = torch.tensor([(2 * math.cos(math.pi / 6) + 1) / 3, 0.0], dtype=torch.float64)
    torch.testing.assert_close(adjacent_cosine(embeddings), expected, atol=1e-6, rtol=0)


def test_a_frozen_video_is_wholly_consistent_and_a_shuffled_one_less():
    metric = ClipConsistency(encoder=Encoder(), batch=3)
    frozen = clips(1, 1, 3, 40, 48, seed=0).expand(1, 5, 3, 40, 48)
    assert metric.score(frozen).item() == pytest.approx(1, abs=1e-6)
    first, last = clips(1, 1, 3, 2, 2, seed=1), clips(1, 1, 3, 2, 2, seed=2)
    share = torch.linspace(0, 1, 6).view(1, 6, 1, 1, 1)
    moving = (1 - share) * first + share * last
    steady, shuffled = metric.score(moving), metric.score(moving[:, [0, 4, 1, 5, 2, 3]])
    assert shuffled < steady < 1


def test_consistency_does_not_depend_on_the_parts_and_is_a_mean_of_clips():
    videos = clips(3, 4, 3, 32, 32, seed=0)
    one, all_at_once = ClipConsistency(encoder=Encoder(), batch=1), ClipConsistency(encoder=Encoder(), batch=12)
    torch.testing.assert_close(one.score(videos), all_at_once.score(videos), atol=1e-6, rtol=0)
    assert one.protocol == all_at_once.protocol
    for video in videos:
        one.update(video[None])
    torch.testing.assert_close(one.compute()["clip_consistency"], all_at_once.score(videos).mean(), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match="T of at least 2"):
        one.score(videos[:, :1])


def test_the_fingerprint_is_of_all_weights_and_of_nothing_else():
    encoder = Encoder()
    before = weights_fingerprint(encoder)
    assert weights_fingerprint(copy.deepcopy(encoder).eval()) == before
    assert weights_fingerprint(encoder, torch.ones(1)) != before
    with torch.no_grad():
        encoder.project.bias[4] += 1e-6
    assert weights_fingerprint(encoder) != before
    # Counters without an axis, and types that numpy does not have.
    assert len(weights_fingerprint(nn.BatchNorm2d(3).bfloat16())) == 16
