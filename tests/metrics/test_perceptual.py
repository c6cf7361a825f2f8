import copy
import math
from pathlib import Path

import lpips as reference
import pytest
import torch
from small_networks import Encoder, random_alexnet
from torch import nn
from torchvision.models import vgg16
from transformers import CLIPImageProcessor

from motionanim.metrics.perceptual import LPIPS, ClipConsistency, adjacent_cosine, clip_pixels, lpips_heads
from motionanim.models.weights_io import weights_fingerprint


def clips(*shape: int, seed: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_vgg() -> nn.Sequential:
    with torch.device("meta"):
        features = vgg16(weights=None).features
    features = features.to_empty(device="cpu")
    for number, parameter in enumerate(features.parameters()):
        nn.init.normal_(parameter, std=0.03, generator=torch.Generator().manual_seed(number))
    return features


def share(features: nn.Sequential, network: nn.Module) -> nn.Module:
    """Give a reference's backbone, whose slices keep torchvision's places as names, our weights."""
    state = features.state_dict()
    network.load_state_dict({key: state[key.split(".", 1)[1]] for key in network.state_dict()})
    return network


@pytest.fixture(scope="module")
def alex() -> LPIPS:
    return LPIPS(net="alex", backbone=random_alexnet(), batch=2)


@pytest.mark.parametrize("net", ["alex", pytest.param("vgg", marks=pytest.mark.slow)])  # 138 million random weights
def test_lpips_equals_the_lpips_package(net) -> None:
    package = reference.LPIPS(net=net, pnet_rand=True, verbose=False)
    metric = LPIPS(net=net, backbone=random_alexnet() if net == "alex" else random_vgg(), batch=2)
    share(metric.network, package.net)
    made, real = clips(1, 3, 3, 64, 70, seed=0), clips(1, 3, 3, 64, 70, seed=1)
    real[:, 2] = 0.9 * made[:, 2]
    with torch.no_grad():
        expected = package(made[0], real[0]).flatten().double()
    found = metric.score(made, real)[0]
    torch.testing.assert_close(found, torch.stack([expected[1:].mean(), expected.mean()]), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_the_heads_are_the_authors(net) -> None:
    path = Path(reference.__file__).parent / "weights" / "v0.1" / f"{net}.pth"
    theirs = torch.load(path, map_location="cpu", weights_only=True)
    for head, their in zip(lpips_heads(net), theirs.values(), strict=True):
        assert torch.equal(head, their.flatten())
        assert (head >= 0).all()


def test_lpips_of_equal_frames_is_0_and_grows_with_noise(alex) -> None:
    real = clips(1, 2, 3, 40, 40, seed=0)
    noise = clips(1, 2, 3, 40, 40, seed=1)
    scores = [alex.score((real + k * noise).clamp(-1, 1), real)[0, 0].item() for k in (0, 0.1, 0.5)]
    assert scores[0] == 0
    assert scores[0] < scores[1] < scores[2]


def test_the_protocol_follows_the_weights_and_scores_ignore_parts_and_train_mode(alex) -> None:
    made, real = clips(2, 3, 3, 33, 31, seed=0), clips(2, 3, 3, 33, 31, seed=1)
    other = LPIPS(net="alex", backbone=copy.deepcopy(alex.network), batch=100).train()
    torch.testing.assert_close(other.score(made, real), alex.score(made, real))
    assert not other.network.training
    assert other.protocol == alex.protocol
    with torch.no_grad():
        other.network[10].bias[3] += 1e-3
    assert LPIPS(net="alex", backbone=other.network, batch=2).protocol != alex.protocol


@pytest.mark.slow
@pytest.mark.parametrize(("size", "parts"), [((64, 64), [4, 1]), ((256, 512), [2, 2, 1]), ((512, 700), [1] * 5)])
def test_larger_frames_pass_in_smaller_parts(size: tuple[int, int], parts: list[int]) -> None:
    metric, found = LPIPS(net="alex", backbone=random_alexnet(), batch=4), []
    metric.network[0].register_forward_hook(lambda _, inputs, __: found.append(len(inputs[0]) // 2))
    real = torch.linspace(-1, 1, 5).view(1, 5, 1, 1, 1).expand(1, 5, 3, *size)
    metric.score(-real, real)
    assert found == parts


@pytest.mark.slow
def test_bad_options_and_small_frames_are_errors(alex) -> None:
    for options, message in (
        ({"net": "squeeze", "batch": 1}, "net='squeeze': LPIPS has alex, vgg"),
        ({"net": "vgg", "batch": 1}, "net='vgg': the backbone is not that network's"),
        ({"net": "alex", "batch": 0}, "batch=0"),
    ):
        with pytest.raises(ValueError, match=message):
            LPIPS(backbone=alex.network, **options)
    for metric, side in ((alex, 31), (LPIPS(net="vgg", backbone=random_vgg(), batch=4), 16)):
        made, real = clips(1, 2, 3, side, side, seed=0), clips(1, 2, 3, side, side, seed=1)
        assert metric.score(made, real).isfinite().all()
        with pytest.raises(ValueError, match=f"needs sides of at least {side} px"):
            metric.score(made[..., 1:], real[..., 1:])
    with pytest.raises(ValueError, match="must have the same shape"):
        alex.score(clips(1, 2, 3, 32, 32, seed=0), clips(1, 2, 3, 32, 33, seed=0))


@pytest.mark.parametrize("size", [(300, 250), (128, 200), (224, 224)])
def test_clip_pixels_are_those_of_the_published_processor(size) -> None:
    pixels = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    # Smooth, as pictures are, because the processor rounds to 8 bits after each pass of the resize and we do not.
    pixels = nn.functional.avg_pool2d(pixels.float(), 5, stride=1, padding=2).round().byte()
    expected = CLIPImageProcessor()(list(pixels), return_tensors="pt")["pixel_values"]
    found = clip_pixels(pixels.float() / 127.5 - 1)
    assert found.shape == (2, 3, 224, 224)
    steps = (found - expected).abs() * 0.26 * 255
    assert steps.max() < 1.5
    assert steps.mean() < 0.4


def test_a_known_turn_has_its_cosine() -> None:
    angles = torch.tensor([[0.0, 30.0, 60.0, 60.0], [0.0, 90.0, 180.0, 270.0]]).deg2rad()
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=-1) * torch.tensor([1.0, 5.0, 0.1, 2.0]).view(1, 4, 1)
    expected = torch.tensor([(2 * math.cos(math.pi / 6) + 1) / 3, 0.0], dtype=torch.float64)
    torch.testing.assert_close(adjacent_cosine(embeddings), expected, atol=1e-6, rtol=0)


def test_a_frozen_video_is_wholly_consistent_and_a_shuffled_one_less() -> None:
    metric = ClipConsistency(encoder=Encoder(), batch=3)
    frozen = clips(1, 1, 3, 40, 48, seed=0).expand(1, 5, 3, 40, 48)
    assert metric.score(frozen).item() == pytest.approx(1, abs=1e-6)
    first, last = clips(1, 1, 3, 2, 2, seed=1), clips(1, 1, 3, 2, 2, seed=2)
    part = torch.linspace(0, 1, 6).view(1, 6, 1, 1, 1)
    moving = (1 - part) * first + part * last
    steady, shuffled = metric.score(moving), metric.score(moving[:, [0, 4, 1, 5, 2, 3]])
    assert shuffled < steady < 1
    assert metric.protocol["weights"] == weights_fingerprint(metric.network)


def test_the_fingerprint_is_of_all_weights_and_of_nothing_else() -> None:
    encoder = Encoder()
    before = weights_fingerprint(encoder)
    assert weights_fingerprint(copy.deepcopy(encoder).eval()) == before
    assert weights_fingerprint(encoder, torch.ones(1)) != before
    with torch.no_grad():
        encoder.project.bias[4] += 1e-6
    assert weights_fingerprint(encoder) != before
    # Counters without an axis, and types that numpy does not have.
    assert len(weights_fingerprint(nn.BatchNorm2d(3).bfloat16())) == 16
