"""The metrics with their real weights on real clips: known classes, and the numbers of public packages."""

from pathlib import Path

import lpips as lpips_package
import numpy as np
import pytest
import scipy.linalg
import torch
import torch.nn.functional as F
from torchvision.models.video import R3D_18_Weights

from motionanim.data.video import Video
from motionanim.files import file_sha256
from motionanim.metrics.frechet import frechet_distance, moments
from motionanim.metrics.i3d import PROTOCOLS, I3DFeatures
from motionanim.metrics.perceptual import LPIPS
from motionanim.models.flow_estimator import RaftFlow
from motionanim.models.pretrained import lpips_backbone

pytestmark = [pytest.mark.weights, pytest.mark.slow]


@pytest.fixture(scope="module")
def weights(shared: Path) -> Path:
    """The folder of real weights; only its layouts differ from the published files."""
    folder = shared / "weights"
    if not (folder / "i3d_kinetics400.pth").exists():
        pytest.skip("needs real weights beside the checkout")
    return folder


def pixels(path: Path, start: int, count: int, height: int, width: int) -> np.ndarray:
    """(T, H, W, 3) uint8, a centre crop."""
    covered = Video(path).read(np.arange(start, start + count), height=height, width=width)
    top, left = ((old - new) // 2 for old, new in zip(covered.shape[1:3], (height, width)))
    return covered[:, top : top + height, left : left + width]


def frames(clips: np.ndarray) -> torch.Tensor:
    """(..., H, W, 3) uint8 to (..., 3, H, W) in [-1, 1]."""
    return torch.from_numpy(clips).movedim(-1, -3).float() / 127.5 - 1


@pytest.mark.parametrize(
    ("name", "count", "size", "classes"),
    [
        # A man with a net on a pole beside a pool.
        ("odd/video/tests_data_rawvideo_dataset_part_0.mp4", 32, (256, 455), ["cleaning pool"]),
        # ApplyEyeMakeup of UCF101, which is no class of Kinetics: the three next to it.
        ("odd/video/tests_data_test.avi", 64, (240, 320), ["applying cream", "filling eyebrows", "waxing eyebrows"]),
        # A river between rocks, without a person.
        ("clips/calm_river.mp4", 64, (256, 455), ["crossing river", "canoeing or kayaking"]),
    ],
)
def test_i3d_sees_what_a_real_clip_shows(shared, weights, name, count, size, classes):
    categories = R3D_18_Weights.KINETICS400_V1.meta["categories"]  # alphabetical, as those of I3D
    network = I3DFeatures(weights / "i3d_kinetics400.pth", protocol="ours", batch=1)
    chances = network(frames(pixels(shared / name, 0, count, *size))[None])[0].softmax(0)
    best = chances.topk(len(classes))
    assert {categories[index] for index in best.indices} == set(classes)
    assert categories[best.indices[0]] == classes[0]
    assert best.values.sum() > 0.95


def test_lpips_is_the_packages_on_photos_and_published_frames(shared, weights):
    path = weights / "lpips_alexnet_features.pth"
    metric = LPIPS(net="alex", backbone=lpips_backbone("alex", str(path), file_sha256(path)), batch=8)
    package = lpips_package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = metric.network.state_dict()
    package.net.load_state_dict({key: state[key.split(".", 1)[1]] for key in package.net.state_dict()})
    made = [pixels(shared / "published/short" / name / "00986.mp4", 0, 16, 256, 256) for name in ("paper", "gen2")]
    true = [pixels(shared / "published/short/ground_truth/00986.mp4", 0, 16, 256, 256)] * 2
    skimage = pytest.importorskip("skimage.data")
    photo = np.stack([skimage.astronaut(), skimage.astronaut()[::-1]])  # of two equal frames only the first would count
    made.append(np.roll(photo, 8, axis=2))
    true.append(photo)
    for one, other in zip(made, true, strict=True):
        with torch.no_grad():
            expected = package(frames(one), frames(other)).flatten().double()
        found = metric.score(frames(one)[None], frames(other)[None])[0]
        torch.testing.assert_close(found, torch.stack([expected[1:].mean(), expected.mean()]), atol=1e-6, rtol=0)
        assert 0.05 < expected.mean() < 0.8


@pytest.fixture(scope="module")
def clips(shared) -> tuple[np.ndarray, np.ndarray]:
    """Three real clips (3, 16, 120, 200, 3) uint8, and the same coarse and flickering."""
    real = np.stack([pixels(path, 0, 16, 120, 200) for path in sorted((shared / "clips").glob("*.mp4"))[:3]])
    generator = np.random.default_rng(0)
    made = (real[:, :, ::2, ::2].repeat(2, axis=2).repeat(2, axis=3)).astype(np.int16)
    made += generator.integers(-12, 13, made.shape[:2])[:, :, None, None, None].astype(np.int16)
    return real, made.clip(0, 255).astype(np.uint8)


def distance(real: torch.Tensor, fake: torch.Tensor, *, ddof: int) -> float:
    sums = [(torch.tensor(len(x)), x.double().sum(0), x.double().T @ x.double()) for x in (fake, real)]
    return float(frechet_distance(*moments(*sums[0], ddof=ddof), *moments(*sums[1], ddof=ddof)))


def plain_distance(real: np.ndarray, fake: np.ndarray, *, ddof: int) -> float:
    """As papers' scripts have it, by SciPy's root of a general matrix."""
    covariances = [np.cov(x.astype(np.float64), rowvar=False, ddof=ddof) for x in (fake, real)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    gap = fake.mean(0, dtype=np.float64) - real.mean(0, dtype=np.float64)
    return float(gap @ gap + np.trace(covariances[0] + covariances[1] - 2 * root))


def reference_input(videos: np.ndarray, name: str) -> torch.Tensor:
    """What published code feeds its network, from clips wider than high."""
    images = torch.from_numpy(videos).flatten(0, 1).permute(0, 3, 1, 2).float() / 255
    if "videogpt" in name or name.startswith("common"):
        width = -(-images.shape[3] * 224 // images.shape[2])
        images = F.interpolate(images, size=(224, width), mode="bilinear", align_corners=False)
        left = (width - 224) // 2
        images = images[..., left : left + 224]
    else:
        images = F.interpolate(images, size=(224, 224), mode="bilinear", align_corners=False)
    return images.unflatten(0, videos.shape[:2]).transpose(1, 2) * 2 - 1


# Batch norm's eps, and what the covariances divide by less than n, in the public code of each protocol.
PUBLISHED = {
    "ours": (1e-3, 1), "styleganv": (1e-3, 0), "common_styleganv": (1e-3, 1), "videogpt": (1e-5, 1), "tats": (1e-5, 1),
    "cdfvd": (1e-5, 0),
}  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_is_the_public_network_behind_the_public_preprocessing(weights, clips, name):
    fvd = pytest.importorskip("cdfvd.fvd")
    path, (eps, ddof) = weights / "i3d_kinetics400.pth", PUBLISHED[name]
    network = fvd.load_i3d_model(torch.device("cpu"), str(path))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eps = eps
    extractor = I3DFeatures(path, protocol=name, batch=3)
    found, expected = [], []
    for side in (side[:2] for side in clips):
        found.append(extractor(frames(side)))
        with torch.no_grad():
            # 16 frames, so that static padding is the dynamic one.
            expected.append(network(reference_input(side, name)))
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.linalg.vector_norm(ours - theirs) < 1e-5 * torch.linalg.vector_norm(theirs)
    plain = plain_distance(*(each.numpy() for each in expected), ddof=ddof)
    assert distance(*found, ddof=PROTOCOLS[name].ddof) == pytest.approx(plain, rel=1e-4)


@pytest.mark.long
def test_cdfvd_and_tats_are_what_their_packages_print(weights, clips):
    fvd = pytest.importorskip("cdfvd.fvd")
    path = weights / "i3d_kinetics400.pth"
    package = fvd.cdfvd("i3d", n_fake="full", ckpt_path=str(path), device="cpu")
    printed = package.compute_fvd(*clips)
    features = [I3DFeatures(path, protocol="cdfvd", batch=3)(frames(side)) for side in clips]
    assert distance(*features, ddof=0) == pytest.approx(printed, rel=1e-4)
    from cdfvd.third_party.i3d.utils import frechet_distance as tats

    assert distance(*features, ddof=1) == pytest.approx(float(tats(features[1], features[0])), rel=1e-2)


@pytest.mark.parametrize(("variant", "close"), [("small", 0.25), ("large", 0.1)])  # px, on a photo of 128 x 128
@pytest.mark.parametrize("velocity", [(3.0, -2.0), (0.0, 0.0), (-6.0, 1.0)])
def test_raft_finds_a_known_shift(shared, weights, variant, close, velocity):
    path = weights / f"raft_{variant}.pth"
    estimate = RaftFlow(variant=variant, weights=str(path), sha256=file_sha256(path), device="cpu", updates=12, pairs=1)
    big = frames(pixels(shared / "clips" / "calm_river.mp4", 0, 1, 192, 192))[0]
    x, y = (int(step) for step in velocity)
    views = torch.stack([big[:, 32 : 32 + 128, 32 : 32 + 128], big[:, 32 - y : 160 - y, 32 - x : 160 - x]])
    error = torch.linalg.vector_norm(estimate(views)[0] - torch.tensor(velocity).view(2, 1, 1), dim=0)
    assert error[16:-16, 16:-16].mean() < close
