"""Measure how the distance grows with the damage. Writes sensitivity.json and sensitivity.png beside this file.

python experiments/video_features/sensitivity.py [FEATURES]    (default: the embedded ones in motionanim/assets)
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import torch
from torch import Generator, Tensor

from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.files import atomic_path
from motionanim.media.image_io import from_uint8, to_pixels
from motionanim.metrics.frechet import frechet_distance
from motionanim.models.svd.codec import Codec
from motionanim.models.video_features import FeatureNetwork, VideoFeatures
from motionanim.training.video_features import CORRUPTIONS

matplotlib.use("Agg")
from matplotlib import pyplot as plt

HERE = Path(__file__).resolve().parent
ASSETS = HERE.parents[1] / "motionanim" / "assets"
CLIPS, FRAMES, SIZE = 128, 16, 64  # of each side of a comparison
SEED = 2  # of the held-out stream; the training's validation has 1
LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)
SPEEDS_DOWN = (0.75, 0.5, 0.25, 0.125, 0.0)
SPEEDS_UP = (1.25, 1.5, 2.0, 2.5, 3.0)
QUALITIES = (90, 60, 30, 15, 5)


def render(split: str, seed: int, count: int, frames: int) -> Tensor:
    """Clips (count, frames, 3, 64, 64) in [-1, 1]."""
    clips = SyntheticClips(
        seed=seed, length=count, num_frames=frames, height=SIZE, width=SIZE, fps=7, moving_camera=0.5, split=split
    )
    return torch.stack([clips.clip(i).frames for i in range(count)])


def at_speed(clips: Tensor, speed: float) -> Tensor:
    """The first 16 frames at a multiple of the speed; each shows the nearest earlier frame."""
    return clips[:, (torch.arange(FRAMES) * speed).floor().long()]


def corrupted(clips: Tensor, name: str, severity: float) -> Tensor:
    made = [
        CORRUPTIONS[name](clip, severity, Generator().manual_seed(1000 + place)) for place, clip in enumerate(clips)
    ]
    return torch.stack(made).clamp(-1, 1)


def jpeg(clips: Tensor, quality: int) -> Tensor:
    def one(frame: Tensor) -> Tensor:
        data = cv2.imencode(".jpg", to_pixels(frame), [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        return from_uint8(torch.from_numpy(cv2.imdecode(data, cv2.IMREAD_COLOR)).permute(2, 0, 1))

    return torch.stack([one(frame) for frame in clips.flatten(0, 1)]).view_as(clips)


@torch.no_grad()
def reconstructed(clips: Tensor) -> Tensor:
    """Encoded and decoded by the autoencoder of the embedded base."""
    codec = Codec.from_pretrained(ASSETS / "tiny-svd")
    return torch.cat([codec.decode(codec.encode(clip[None])) for clip in clips]).clamp(-1, 1)


def random_features(trained: VideoFeatures, train: Tensor) -> VideoFeatures:
    """The same network with random weights, its norms fitted to the training clips."""
    torch.manual_seed(0)
    network = FeatureNetwork(**trained.network.config).train()
    for norm in network.modules():
        if hasattr(norm, "momentum"):
            norm.momentum = None  # the plain mean over batches
    with torch.no_grad():
        for part in train.split(32):
            network(part)
    return VideoFeatures(network)


def pixel_pca(train: Tensor, dim: int) -> Callable[[Tensor], Tensor]:
    """Projections of whole clips on the first principal components of training clips, scaled to unit variance there."""
    flat = train.flatten(1).double()
    mean = flat.mean(0)
    _, scale, components = torch.linalg.svd(flat - mean, full_matrices=False)
    axes = components[:dim] / (scale[:dim, None] / (len(flat) - 1) ** 0.5)
    return lambda clips: (clips.flatten(1).double() - mean) @ axes.T


def distance(first: Tensor, second: Tensor) -> float:
    first, second = first.double(), second.double()
    return frechet_distance(first.mean(0), torch.cov(first.T), second.mean(0), torch.cov(second.T)).item()


def floors(clean: Tensor, draws: int) -> np.ndarray:
    """Distances between random halves of the clean clips, which come from one distribution."""
    generator = Generator().manual_seed(0)
    halves = [torch.randperm(len(clean), generator=generator).chunk(2) for _ in range(draws)]
    return np.array([distance(clean[a], clean[b]) for a, b in halves])


def ladders(long: Tensor) -> Iterator[tuple[str, float, Tensor]]:
    """Damage the clips (n, 48, 3, H, W) in all ways: (kind, level, clips), each kind from weak to strong."""
    clean = long[:, :FRAMES]
    for name in CORRUPTIONS:
        for level in LEVELS:
            yield name, level, corrupted(clean, name, level)
    for speed in SPEEDS_DOWN:
        yield "slower *", 1 - speed, at_speed(long, speed)
    for speed in SPEEDS_UP:
        yield "faster *", (speed - 1) / 2, at_speed(long, speed)
    for quality in QUALITIES:
        yield "jpeg *", 1 - quality / 100, jpeg(clean, quality)


def main(path: Path) -> None:
    torch.set_num_threads(1)
    train = render("train", SEED, 2 * CLIPS, FRAMES)
    long = render("val", SEED, 2 * CLIPS, 3 * FRAMES)
    reference, damaged = long[:CLIPS, :FRAMES], long[CLIPS:]
    clean, decoded = damaged[:, :FRAMES], reconstructed(damaged[:, :FRAMES])
    trained = VideoFeatures.load(path)
    extractors = {
        "embedded": trained,
        "untrained": random_features(trained, train),
        "pixel PCA": pixel_pca(train, trained.dim),
    }
    report = {"fingerprint": trained.fingerprint, "clips": CLIPS, "frames": FRAMES, "size": SIZE, "features": {}}
    references = {name: extract(reference) for name, extract in extractors.items()}
    for name, extract in extractors.items():
        features = extract(clean)
        floor = floors(torch.cat([references[name], features]), draws=40)
        report["features"][name] = {
            "floor": floor.mean(),
            "floor_95": float(np.quantile(floor, 0.95)),
            "clean": distance(references[name], features),
            "autoencoder": distance(references[name], extract(decoded)),
            "damage": {},
        }
    for kind, level, clips in ladders(damaged):
        for name, extract in extractors.items():
            row = report["features"][name]["damage"].setdefault(kind, {"levels": [], "fd": []})
            row["levels"].append(level)
            row["fd"].append(distance(references[name], extract(clips)))
    started = time.perf_counter()
    trained(reference[:32])
    print(f"{(time.perf_counter() - started) / 32 * 1000:.1f} ms a clip of {FRAMES} x {SIZE} x {SIZE}, one thread")
    with atomic_path(HERE / "sensitivity.json") as temporary:
        temporary.write_text(json.dumps(report, indent=1) + "\n")
    draw(report)
    table(report)


def draw(report: dict) -> None:
    kinds = list(report["features"]["embedded"]["damage"])
    figure, axes = plt.subplots(3, 4, figsize=(15, 9), sharex=True, sharey=True)
    for axis, kind in zip(axes.flat, kinds, strict=True):
        for name, colour in (("embedded", "tab:blue"), ("untrained", "tab:orange"), ("pixel PCA", "tab:green")):
            side = report["features"][name]
            row = side["damage"][kind]
            values = [side["clean"] / side["floor"], *(value / side["floor"] for value in row["fd"])]
            axis.plot([0, *row["levels"]], values, marker="o", markersize=3, color=colour, label=name)
            axis.axhline(side["floor_95"] / side["floor"], color=colour, linewidth=0.7, linestyle=":")
            if kind == "blur":
                axis.axhline(side["autoencoder"] / side["floor"], color=colour, linewidth=0.7, linestyle="--")
        axis.set(title=kind, yscale="log")
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("severity")
    for axis in axes[:, 0]:
        axis.set_ylabel("distance / clean floor")
    axes.flat[0].legend(fontsize=8)
    figure.suptitle(
        f"{report['clips']} damaged against {report['clips']} clean ones, held-out textures; * never trained on; "
        "dotted: 95 % of clean floors; dashed: the base's autoencoder"
    )
    figure.tight_layout()
    with atomic_path(HERE / "sensitivity.png") as temporary:
        figure.savefig(temporary, dpi=90)
    plt.close(figure)


def table(report: dict) -> None:
    """Print, for each damage and kind of features, distance / floor at the third and last level, and if it grows."""
    print("| damage |" + "".join(f" {name}: 3rd level | 5th | grows |" for name in report["features"]))
    print("|---|" + "---|---|---|" * len(report["features"]))
    for kind in report["features"]["embedded"]["damage"]:
        cells = []
        for side in report["features"].values():
            values = [side["clean"], *side["damage"][kind]["fd"]]
            grows = all(b > a for a, b in pairwise(values))
            cells.append(
                f" {values[3] / side['floor']:.1f} | {values[5] / side['floor']:.1f} | {'yes' if grows else 'no'} |"
            )
        print(f"| {kind} |" + "".join(cells))
    parts = [
        f"{n}: clean {s['clean'] / s['floor']:.2f}, autoencoder {s['autoencoder'] / s['floor']:.1f}"
        for n, s in report["features"].items()
    ]
    print("; ".join(parts))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ASSETS / "video-features")
