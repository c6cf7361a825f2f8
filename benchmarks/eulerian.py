"""The Eulerian renderer on published scenes, and its speed: python benchmarks/eulerian.py FOLDER [--out REPORT.md].

FOLDER/METHOD/SCENE.mp4 are published animations of the first frames of FOLDER/ground_truth/SCENE.mp4. Every method's
first 16 frames are decoded at full size, resized to 256x256 (antialiased bilinear) and scored against the ground truth.
Our rows animate frame 0 by one steady field per scene, estimated *from the ground truth's 16 frames*: they measure the
renderer and `steady_field`, while most of the published methods had to guess the motion as well.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from torchvision.utils import make_grid

from motionanim.data.video import Video
from motionanim.files import file_sha256
from motionanim.media.image_io import from_uint8
from motionanim.media.visualize import write_picture
from motionanim.metrics.perceptual import LPIPS
from motionanim.models.flow_estimator import DisFlow, steady_field
from motionanim.models.pretrained import lpips_backbone
from motionanim.motion.flow import integrate_flow, pixel_grid, warp

CONF = Path(__file__).resolve().parents[1] / "conf" / "eulerian"
SYMMETRIC = instantiate(OmegaConf.load(CONF / "symmetric.yaml"))
FLOW_MAP = instantiate(OmegaConf.merge(OmegaConf.load(CONF / "flow_map.yaml"), {"seed": 0}))
FRAMES, SIZE, LAGS, LAG = 16, 256, (1, 2, 3, 4, 6, 8), 4


def clip(path: Path) -> Tensor:
    """The first 16 frames: (16, 3, 256, 256) in [-1, 1]."""
    video = Video(path)
    height, width = video.size()
    halves = []
    for indices in np.arange(FRAMES).reshape(2, -1):
        pixels = torch.from_numpy(video.read(indices, height=height, width=width)).permute(0, 3, 1, 2)
        halves.append(F.interpolate(from_uint8(pixels), size=(SIZE, SIZE), mode="bilinear", antialias=True))
    return torch.cat(halves)


def scores(made: Tensor, truth: Tensor, lpips: LPIPS | None) -> list[float]:
    """Mean PSNR and SSIM of frames 1 to 15, on values in [0, 1], and LPIPS where there are weights for it."""
    seen = [] if lpips is None else [float(lpips.score(made[None], truth[None])[0, 0])]
    made, truth = (made[1:] + 1) / 2, (truth[1:] + 1) / 2
    psnr = peak_signal_noise_ratio(made, truth, data_range=1.0, dim=(1, 2, 3), reduction="elementwise_mean")
    return [float(psnr), float(structural_similarity_index_measure(made, truth, data_range=1.0)), *seen]


def animate(render: Callable[..., Iterator[Tensor]], image: Tensor, field: Tensor, loop: bool = False) -> Tensor:
    mask = torch.ones(1, *image.shape[-2:])
    return torch.stack(list(render(image, field, num_frames=FRAMES, loop=loop, mask=mask)))


def backward_warp(image: Tensor, field: Tensor) -> Tensor:
    offsets = integrate_flow(field.expand(1, FRAMES - 1, *field.shape))[0]
    return warp(image.expand(FRAMES, *image.shape), offsets)


def splat(image: Tensor, displacement: Tensor) -> tuple[Tensor, Tensor]:
    """Sum over pixels of colour and of bilinear weight where each lands: (3, H*W) and (H*W,)."""
    height, width = image.shape[-2:]
    x, y = (pixel_grid(height, width) + displacement).flatten(1)
    colour, weight = torch.zeros(3, height * width), torch.zeros(height * width)
    for column in (x.floor(), x.floor() + 1):
        for row in (y.floor(), y.floor() + 1):
            share = (1 - (x - column).abs()) * (1 - (y - row).abs())
            share = share * ((column >= 0) & (column < width) & (row >= 0) & (row < height))
            place = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).long()
            colour.index_add_(1, place, image.flatten(1) * share)
            weight.index_add_(0, place, share)
    return colour, weight


def symmetric_splatting(image: Tensor, field: Tensor) -> Tensor:
    """Holynski et al. (2021) on pixels, with equal softmax logits: a loop. Zero where nothing lands."""
    traces = []
    for sign in (1, -1):
        traces.append([torch.zeros_like(field)])
        for _ in range(FRAMES):
            last = traces[-1][-1]
            traces[-1].append(last + sign * warp(field[None], last[None])[0])
    made = []
    for t in range(FRAMES):
        alpha = 1 - t / FRAMES
        (past, count), (future, more) = splat(image, traces[0][t]), splat(image, traces[1][FRAMES - t])
        total = alpha * count + (1 - alpha) * more
        made.append(((alpha * past + (1 - alpha) * future) / total.clamp(min=1e-6)).view_as(image))
    return torch.stack(made)


def quality(root: Path, sheet: Path | None, lpips: LPIPS | None) -> list[str]:
    scenes = sorted(path.name for path in (root / "ground_truth").glob("*.mp4"))
    truth = {scene: clip(root / "ground_truth" / scene) for scene in scenes}
    estimate, small = DisFlow(preset="medium", min_side=512), DisFlow(preset="medium", min_side=256)
    fields = {lag: {scene: steady_field(truth[scene], estimate, lag=lag) for scene in scenes} for lag in LAGS}
    rows, score = {}, partial(scores, lpips=lpips)
    for method in sorted(path.name for path in root.iterdir() if path.is_dir() and path.name != "ground_truth"):
        rows[f"published: {method}"] = [score(clip(root / method / scene), truth[scene]) for scene in scenes]
    rows["static copy of frame 0"] = [score(truth[s][:1].expand_as(truth[s]), truth[s]) for s in scenes]
    rows["backward warp, mean DIS flow at 256 px*"] = [
        score(backward_warp(truth[s][0], steady_field(truth[s], small, lag=1)), truth[s]) for s in scenes
    ]
    for name, method in (("backward warp", backward_warp), ("symmetric splatting (loop)", symmetric_splatting)):
        rows[f"{name}, steady field, lag {LAG}*"] = [
            score(method(truth[s][0], fields[LAG][s]), truth[s]) for s in scenes
        ]
    for name, render in (("symmetric", SYMMETRIC), ("flow map", FLOW_MAP)):
        rows[f"ours, {name}, loop, steady field, lag {LAG}*"] = [
            score(animate(render, truth[s][0], fields[LAG][s], loop=True), truth[s]) for s in scenes
        ]
    rows[f"**ours, flow map, steady field, lag {LAG}***"] = [
        score(animate(FLOW_MAP, truth[s][0], fields[LAG][s]), truth[s]) for s in scenes
    ]
    for lag in LAGS:
        mark = "**" if lag == LAG else ""
        made = [animate(SYMMETRIC, truth[s][0], fields[lag][s]) for s in scenes]
        name = f"{mark}ours, symmetric, steady field, lag {lag}*{mark}"
        rows[name] = [score(m, truth[s]) for m, s in zip(made, scenes)]
        if lag == LAG and sheet:
            shown = [picked[::5] for m, s in zip(made, scenes) for picked in (m, truth[s])]
            write_picture(sheet, make_grid(torch.cat(shown), nrow=4))
    names = [Path(scene).stem for scene in scenes]
    digits = ("PSNR, dB", 2), ("SSIM", 3), ("LPIPS", 3)
    shown = digits if lpips else digits[:2]
    titles = [*(title for title, _ in shown), *(f"{name}, {title}" for name in names for title in ("PSNR", "SSIM"))]
    lines = [f"| method | {' | '.join(titles)} |", "|---" * (1 + len(titles)) + "|"]
    for name, values in rows.items():
        mean = " | ".join(f"{value:.{places}f}" for value, (_, places) in zip(np.mean(values, axis=0), shown))
        each = " | ".join(f"{psnr:.2f} | {ssim:.3f}" for psnr, ssim, *_ in values)
        lines.append(f"| {name} | {mean} | {each} |")
    return lines


def speed(name: str, render: Callable[..., Iterator[Tensor]], height: int, width: int, num_frames: int) -> str:
    x, y = pixel_grid(height, width)
    image = torch.stack([torch.sin(x / 9) * torch.cos(y / 7), torch.sin(x / 31), torch.cos(y / 23)])
    x, y = x - (width - 1) / 2, y - (height - 1) / 2
    field = torch.stack([-y, x]) / 100 * torch.exp(-(x**2 + y**2) / (height / 3) ** 2)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in render(image, field, num_frames=num_frames, loop=True, mask=torch.ones(1, height, width)):
        pass
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = torch.hypot(*field).max()
    return (
        f"{name}: a loop of {num_frames} frames at {width}x{height} takes {wall:.1f} s by the clock and {cpu:.1f} s of "
        f"processor time ({torch.get_num_threads()} threads; a vortex of up to {peak:.1f} px per frame)."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, help="write the report here")
    parser.add_argument("--sheet", type=Path, help="write a picture here: frames 0, 5, 10, 15, ours above the truth")
    parser.add_argument("--lpips", type=Path, help="weights of AlexNet: one column more")
    options = parser.parse_args()
    torch.set_num_threads(2)
    lpips = None
    if options.lpips:
        backbone = lpips_backbone("alex", str(options.lpips), file_sha256(options.lpips))
        lpips = LPIPS(net="alex", backbone=backbone, batch=16)
    lines = quality(options.root, options.sheet, lpips)
    report = "\n".join(
        [
            "# The Eulerian renderer",
            "",
            *lines,
            "",
            f"Frames 1 to {FRAMES - 1} of {FRAMES} at {SIZE}x{SIZE} against the ground truth, mean over the scenes; "
            "then each scene's PSNR and SSIM. LPIPS (where shown): AlexNet, version 0.1. Rows with * **used ground-"
            "truth motion**: one constant field per scene, "
            "estimated by DIS from the ground truth's frames (`steady_field`, medium preset, frames enlarged to 512 px "
            "unless the row says otherwise). Most published methods had to guess the motion, and some were given "
            "another frame rate. So the table compares our renderers with each other, and shows how far the published "
            "rows are from this ceiling. The lag and the 512 px were chosen on these "
            "scenes; the rows of other lags show how much depends on the lag. The plain "
            "backward warp scores higher because it repeats border pixels where the flow enters the picture. The error "
            "forgives this, but the pixels become visible streaks; our renderers show texture there.",
            "",
            speed("Symmetric", SYMMETRIC, 896, 1280, 60),
            "",
            speed("Flow map", FLOW_MAP, 896, 1280, 60),
            "",
            f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores shared with other work, "
            f"{platform.system()}; Python {platform.python_version()}, torch {torch.__version__}, OpenCV "
            f"{cv2.__version__}.",
        ]
    )
    print(report)
    if options.out:
        options.out.write_text(report + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
