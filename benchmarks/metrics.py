"""Speed of PSNR, SSIM, LPIPS and I3D features: python benchmarks/metrics.py [--clips 32] [--report FILE]

One run compares ours, part by part and in turn, with what people write: loops over frames with scikit-image and the
lpips package, and a port of I3D that takes one clip at a time, with frames resized one by one and plain convolutions,
batch norm and padding. Where the cd-fvd package is installed, its I3D is compared too, at its own protocol. The numbers
must be equal. Weights are random, which takes the same time. The second table adds the parts up for 1, 2, 3 and 4
methods on the same true clips, whose features the loops compute for each method and ours once.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import MethodType

import lpips as lpips_package
import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn
from torchvision.models import alexnet

from motionanim.data.synthetic.clips import SyntheticClips
from motionanim.evaluation.scores.scoring import FeatureCache
from motionanim.media.image_io import from_uint8, to_uint8
from motionanim.metrics.frame import psnr, ssim
from motionanim.metrics.i3d import I3D, I3DFeatures, same_padding
from motionanim.metrics.perceptual import LPIPS

try:
    from cdfvd import fvd as cdfvd
except ImportError:
    cdfvd = None

SIDE, FRAMES = 256, 16

_clock = time.perf_counter


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
    """The network with the layers of public ports: padding by a copy, then convolution or pooling, then batch norm.

    Blocks join their branches along the channels, which are not the last in memory then.
    """

    def pads(x: Tensor, kernel: tuple, stride: tuple) -> Tensor:
        axes = [same_padding(*axis) for axis in zip(x.shape[2:], kernel, stride, strict=True)]
        return F.pad(x, [pad for pair in reversed(axes) for pad in pair])

    def unit(self, x: Tensor) -> Tensor:
        conv = self.conv3d
        x = pads(x, conv.kernel_size, conv.stride)
        return F.relu(self.bn(F.conv3d(x, conv.weight, None, conv.stride)))

    def pool(self, x: Tensor) -> Tensor:
        return F.max_pool3d(pads(x, self.kernel, self.stride), self.kernel, self.stride)

    def block(self, x: Tensor) -> Tensor:
        return torch.cat([self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))], dim=1)

    for module in network.modules():
        if hasattr(module, "conv3d") and hasattr(module, "bn"):
            module.forward = MethodType(unit, module)
        elif hasattr(module, "static"):
            module.forward = MethodType(pool, module)
        elif hasattr(module, "b3a"):
            module.forward = MethodType(block, module)
    return network


def backbone() -> nn.Sequential:
    """AlexNet's convolutions with random weights of a usual size."""
    features = alexnet(weights=None).features
    for number, parameter in enumerate(features.parameters()):
        nn.init.normal_(parameter, std=0.05, generator=torch.Generator().manual_seed(number))
    return features.eval()


def shared(features: nn.Sequential) -> nn.Module:
    """The lpips package's metric on the same backbone."""
    package = lpips_package.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = features.state_dict()
    package.net.load_state_dict({key: state[key.split(".", 1)[1]] for key in package.net.state_dict()})
    return package.eval()


def frame_loops(fake: Tensor, real: Tensor) -> Tensor:
    """(B, 4): PSNR and SSIM by scikit-image, frame by frame: means without frame 0 and with it."""
    scores = []
    for made, true in zip(fake, real, strict=True):
        rows = []
        for one, other in zip(made, true, strict=True):
            first, second = ((x.permute(1, 2, 0).numpy() + 1) / 2 for x in (one, other))
            rows.append((
                peak_signal_noise_ratio(second, first, data_range=1),
                structural_similarity(
                    second, first, data_range=1, channel_axis=2, gaussian_weights=True, sigma=1.5,
                    use_sample_covariance=False,
                ),
            ))  # fmt: skip
        scores.append(np.concatenate([np.mean(rows[1:], axis=0), np.mean(rows, axis=0)]))
    return torch.from_numpy(np.stack(scores))


def frame_ours(fake: Tensor, real: Tensor) -> Tensor:
    scores = []
    for pair in zip(fake.split(1), real.split(1), strict=True):
        frames = torch.stack([score(*pair).double() for score in (psnr, ssim)], 1)
        scores.append(torch.cat([frames[:, :, 1:].mean(2), frames.mean(2)], 1))
    return torch.cat(scores)


@torch.no_grad()
def lpips_loops(package: nn.Module, fake: Tensor, real: Tensor) -> Tensor:
    """(B, 2): the package, pair by pair: means without frame 0 and with it."""
    rows = [[package(a[None], b[None]).item() for a, b in zip(*clip, strict=True)] for clip in zip(fake, real)]
    frames = torch.tensor(rows, dtype=torch.float64)
    return torch.stack([frames[:, 1:].mean(1), frames.mean(1)], 1)


def lpips_ours(metric: LPIPS, fake: Tensor, real: Tensor) -> Tensor:
    return torch.cat([metric.score(*pair) for pair in zip(fake.split(1), real.split(1), strict=True)])


@torch.no_grad()
def i3d_loops(network: I3D, clips: Tensor) -> Tensor:
    """(B, 400): one clip at a time, its frames resized one by one."""
    features = []
    for clip in clips:
        frames = torch.stack([F.interpolate(f[None], size=(224, 224), mode="bilinear")[0] for f in clip])
        features.append(network(frames.transpose(0, 1)[None])[0])
    return torch.stack(features)


def i3d_ours(extractor: I3DFeatures, clips: Tensor) -> Tensor:
    return torch.cat([extractor(clip) for clip in clips.split(1)])


def i3d_cdfvd(network: nn.Module, clips: Tensor) -> Tensor:
    """The package's own function, which takes 16 clips a pass."""

    class Kept:
        def __init__(self) -> None:
            self.parts: list[Tensor] = []

        def append_torch(self, x: Tensor, **_: int) -> None:
            self.parts.append(x)

    pixels = to_uint8(clips).movedim(2, -1).numpy()
    return torch.cat(cdfvd.get_i3d_logits(Kept(), network, pixels, device="cpu").parts)


def timed(run: Callable[[], Tensor]) -> tuple[float, Tensor]:
    start = _clock()
    result = run()
    return _clock() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--report", type=Path)
    parser.add_argument(
        "--processor-time", action="store_true", help="of one thread instead of the clock's, on a machine in use"
    )
    args = parser.parse_args()
    if args.processor_time:
        global _clock
        _clock = time.process_time
        torch.set_num_threads(1)
    source = SyntheticClips(
        seed=2, length=args.clips, num_frames=FRAMES, height=SIDE, width=SIDE, fps=7, moving_camera=0.0, split="val"
    )
    real = torch.stack([source.clip(index).frames for index in range(args.clips)])
    real = from_uint8(to_uint8(real))
    noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(0))
    fake = from_uint8(to_uint8(real + 0.1 * noise))
    with tempfile.TemporaryDirectory() as folder:
        path = weights(Path(folder))
        extractor = I3DFeatures(path, protocol="ours", batch=1)
        network = plain(I3D(eps=1e-3, padding="dynamic").eval())
        network.load_state_dict(load_file(path))
        features = backbone()
        metric, package = LPIPS(net="alex", backbone=features, batch=8), shared(features)
        parts: dict[str, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {
            "PSNR and SSIM": (lambda: frame_loops(fake, real), lambda: frame_ours(fake, real)),
            "LPIPS": (lambda: lpips_loops(package, fake, real), lambda: lpips_ours(metric, fake, real)),
            "I3D": (lambda: i3d_loops(network, fake), lambda: i3d_ours(extractor, fake)),
        }
        if cdfvd is not None:
            torch.save(load_file(path), Path(folder) / "i3d.pt")
            theirs = cdfvd.load_i3d_model(torch.device("cpu"), str(Path(folder) / "i3d.pt"))
            same = I3DFeatures(path, protocol="cdfvd", batch=1)
            parts["I3D of cd-fvd"] = (lambda: i3d_cdfvd(theirs, fake), lambda: i3d_ours(same, fake))
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in parts}
        apart = {}
        for _ in range(args.rounds):
            for name, (usual, ours) in parts.items():
                (slow, expected), (fast, found) = timed(usual), timed(ours)
                times[name].append((slow, fast))
                told = found.isfinite()  # LPIPS has no score for a clip that stands still
                apart[name] = float((found - expected)[told].double().norm() / expected[told].double().norm())
        cache = FeatureCache(Path(folder) / "features")
        first, _ = timed(lambda: [cache.get(extractor, clip) for clip in real])
        computed = cache.computed
        second, _ = timed(lambda: [cache.get(extractor, clip) for clip in real])
        again = cache.computed - computed
    best = {name: np.min(rounds, axis=0) / args.clips for name, rounds in times.items()}
    ways = {"all three, usual loops": ["PSNR and SSIM", "LPIPS", "I3D"]}
    if cdfvd is not None:
        ways["all three, I3D by cd-fvd"] = ["PSNR and SSIM", "LPIPS", "I3D of cd-fvd"]
    tables = {
        way: [
            (methods * (sum(best[name][0] for name in names) + best[names[-1]][0]),
             methods * sum(best[name][1] for name in names) + best[names[-1]][1])
            for methods in (1, 2, 3, 4)
        ]
        for way, names in ways.items()
    }  # fmt: skip
    best |= {way: sum(best[name] for name in names) for way, names in ways.items()}
    lines = [
        "# Speed of the image metrics and I3D features", "",
        f"{args.clips} clips of {FRAMES} x {SIDE} x {SIDE}, {args.rounds} rounds in turn, the fastest of each. "
        f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}. "
        f"{'Processor time of one thread' if args.processor_time else 'Time by the clock'}, at a load of "
        f"{os.getloadavg()[0]:.1f}.", "",
        "| | usual, s a clip | ours, s a clip | times as fast | largest relative difference |", "|---|---|---|---|---|",
        *(f"| {name} | {usual:.3f} | {ours:.3f} | {usual / ours:.2f} | "
          f"{f'{apart[name]:.1e}' if name in apart else ''} |" for name, (usual, ours) in best.items()),
        "",
        "| times as fast, with the features of the true clips | 1 method | 2 methods | 3 methods | 4 methods |",
        "|---|---|---|---|---|",
        *(f"| {way} | {' | '.join(f'{usual / ours:.2f}' for usual, ours in table)} |" for way, table in tables.items()),
        "",
        f"Features of the {args.clips} true clips: {first:.1f} s for the first method ({computed} computed), "
        f"{second:.2f} s for the second ({again} computed).", "",
    ]  # fmt: skip
    print("\n".join(lines))
    if args.report:
        args.report.write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
