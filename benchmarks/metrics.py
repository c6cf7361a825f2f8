"""Speed of PSNR, SSIM and I3D features: python benchmarks/metrics.py [--clips 32] [--report FILE]

One run compares ours with the loops that public video-metric scripts share, on the same clips and with equal results.
Those loops go frame by frame and channel by channel in NumPy and OpenCV, and run I3D one clip at a time, with frames
resized one by one and plain convolutions, batch norm and padding. I3D has random weights, which take the same time. The
last line is the cost of a second method on the same benchmark: its own features, and none of the true clips'.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import MethodType

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.evaluation.scoring import FeatureCache
from motionanim.media.image_io import from_uint8, to_uint8
from motionanim.metrics.frame import psnr, ssim
from motionanim.metrics.i3d import I3D, I3DFeatures, same_padding

SIDE, FRAMES = 256, 16


def weights(folder: Path) -> Path:
    """Random I3D weights in the published layout, at scales that keep activations finite."""
    network, generator = I3D(eps=1e-3, padding="dynamic"), torch.Generator().manual_seed(0)
    state = {}
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            state[name] = torch.rand(value.shape, generator=generator) * 1.4 + 0.1
        elif value.ndim == 5:
            state[name] = torch.randn(value.shape, generator=generator) * (2 / value[0].numel()) ** 0.5
        elif value.is_floating_point() and not name.endswith("bn.weight"):
            state[name] = torch.randn(value.shape, generator=generator) * 0.1
        else:
            state[name] = value
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "i3d.safetensors")
    return folder / "i3d.safetensors"


def plain(network: I3D) -> I3D:
    """The network with the layers of public ports: padding by a copy, then convolution or pooling, then batch norm."""

    def pads(x: Tensor, kernel: tuple, stride: tuple) -> Tensor:
        axes = [same_padding(*axis) for axis in zip(x.shape[2:], kernel, stride, strict=True)]
        return F.pad(x, [pad for pair in reversed(axes) for pad in pair])

    def unit(self, x: Tensor) -> Tensor:
        conv = self.conv3d
        x = pads(x, conv.kernel_size, conv.stride)
        return F.relu(self.bn(F.conv3d(x, conv.weight, None, conv.stride)))

    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool3d(pads(x, self.kernel, self.stride), self.kernel, self.stride)

    for module in network.modules():
        if hasattr(module, "conv3d") and hasattr(module, "bn"):
            module.forward = MethodType(unit, module)
        elif hasattr(module, "static"):
            module.forward = MethodType(pool, module)
    return network


def ssim_channel(first: np.ndarray, second: np.ndarray) -> float:
    """SSIM of one channel in [0, 1] over valid windows, as public scripts compute it."""
    line = cv2.getGaussianKernel(11, 1.5)
    window = line @ line.T

    def blur(image: np.ndarray) -> np.ndarray:
        return cv2.filter2D(image, -1, window)[5:-5, 5:-5]

    mean1, mean2 = blur(first), blur(second)
    var1, var2 = blur(first**2) - mean1**2, blur(second**2) - mean2**2
    cov = blur(first * second) - mean1 * mean2
    c1, c2 = 0.01**2, 0.03**2
    return (((2 * mean1 * mean2 + c1) * (2 * cov + c2)) / ((mean1**2 + mean2**2 + c1) * (var1 + var2 + c2))).mean()


def usual(fake: Tensor, real: Tensor, network: I3D) -> tuple[list[float], list[float], Tensor]:
    """The loops of public scripts."""
    psnrs, ssims, features = [], [], []
    for made, true in zip(fake, real, strict=True):
        scores = []
        for first, second in zip((made.numpy() + 1) / 2, (true.numpy() + 1) / 2, strict=True):
            first, second = first.astype(np.float64), second.astype(np.float64)
            decibels = 20 * np.log10(1 / np.sqrt(np.mean((first - second) ** 2)))
            scores.append((decibels, np.mean([ssim_channel(a, b) for a, b in zip(first, second, strict=True)])))
        psnrs.append(float(np.mean([score[0] for score in scores[1:]])))
        ssims.append(float(np.mean([score[1] for score in scores[1:]])))
        frames = torch.stack([F.interpolate(f[None], size=(224, 224), mode="bilinear")[0] for f in made])
        with torch.no_grad():
            features.append(network(frames.transpose(0, 1)[None])[0])
    return psnrs, ssims, torch.stack(features)


def ours(fake: Tensor, real: Tensor, extractor: I3DFeatures) -> tuple[list[float], list[float], Tensor]:
    psnrs, ssims, features = [], [], []
    for made, true in zip(fake.split(1), real.split(1), strict=True):
        psnrs.append(psnr(made, true)[0, 1:].mean().item())
        ssims.append(ssim(made, true)[0, 1:].mean().item())
        features.append(extractor(made)[0])
    return psnrs, ssims, torch.stack(features)


def timed(run: Callable) -> tuple[float, tuple]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--report", type=Path)
    args = parser.parse_args()
    clips = SyntheticClips(
        seed=2, length=args.clips, num_frames=FRAMES, height=SIDE, width=SIDE, fps=7, moving_camera=0.0, split="val"
    )
    real = torch.stack([clips.clip(index).frames for index in range(args.clips)])
    real = from_uint8(to_uint8(real))
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    fake = from_uint8(to_uint8(real + 0.1 * noise))
    with tempfile.TemporaryDirectory() as folder:
        path = weights(Path(folder))
        extractor = I3DFeatures(path, protocol="ours", batch=1)
        network = plain(I3D(eps=1e-3, padding="dynamic").eval())
        network.load_state_dict(load_file(path))
        times: dict[str, list[float]] = {"usual": [], "ours": []}
        for _ in range(args.rounds):
            seconds, reference = timed(lambda: usual(fake, real, network))
            times["usual"].append(seconds)
            seconds, made = timed(lambda: ours(fake, real, extractor))
            times["ours"].append(seconds)
        cache = FeatureCache(Path(folder) / "features")
        first, _ = timed(lambda: [cache.get(extractor, clip) for clip in real])
        computed = cache.computed
        second, _ = timed(lambda: [cache.get(extractor, clip) for clip in real])
        again = cache.computed - computed
    differences = (
        np.abs(np.subtract(made[0], reference[0])).max(), np.abs(np.subtract(made[1], reference[1])).max(),
        (made[2] - reference[2]).norm() / reference[2].norm(),
    )  # fmt: skip
    median = {name: float(np.median(values)) for name, values in times.items()}
    lines = [
        "# Speed of the image metrics and I3D features", "",
        f"{args.clips} clips of {FRAMES} x {SIDE} x {SIDE}, {args.rounds} rounds in turn. {platform.machine()}, "
        f"{os.cpu_count()} cores, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}.", "",
        "| | s a clip, median | " + " | ".join(f"round {i + 1}, s a clip" for i in range(args.rounds)) + " |",
        "|---" * (2 + args.rounds) + "|",
        *(f"| {name} | {median[name] / args.clips:.3f} | {' | '.join(f'{v / args.clips:.3f}' for v in values)} |"
          for name, values in times.items()),
        "",
        f"**{median['usual'] / median['ours']:.2f} times as fast**; largest differences: PSNR {differences[0]:.1e} dB, "
        f"SSIM {differences[1]:.1e}, features {differences[2]:.1e} (relative).", "",
        f"Features of the {args.clips} true clips: {first:.1f} s for the first method ({computed} computed), "
        f"{second:.2f} s for the second ({again} computed).", "",
    ]  # fmt: skip
    print("\n".join(lines))
    if args.report:
        args.report.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
