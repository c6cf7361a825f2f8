"""Folders of true and made videos, and short scripts of PyAV and scikit-image that score them."""

import json
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from evaluation_runs import run, scorer
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from motionanim.data.video import write_video
from motionanim.evaluation.folders.external import External, externals
from motionanim.evaluation.folders.given import GivenClips, given_clips
from motionanim.metrics.frame import PSNR, SSIM

AUTO = dict.fromkeys(("num_frames", "height", "width", "fps"), "auto") | {"shape": "stretch", "slower": "repeat"}


def clip(seed: int, frames: int = 12, *, height: int = 32, width: int = 48) -> Tensor:
    """Random smooth colours that change over time."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(1, 3, frames // 3, 5, 6, generator=generator)
    # Aligned corners, so that no frame equals frame 0: such frames do not count.
    large = F.interpolate(small, size=(frames, height, width), mode="trilinear", align_corners=True)
    return large[0].movedim(0, 1) * 1.8 - 0.9


def to_bytes(frames: Tensor) -> np.ndarray:
    """(T, H, W, 3) uint8."""
    return ((frames + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def write_pictures(folder: Path, frames: Tensor, suffix: str = "png") -> None:
    folder.mkdir(parents=True)
    for number, frame in enumerate(to_bytes(frames)):
        Image.fromarray(frame).save(folder / f"frame_{number}.{suffix}")  # 2 before 10 only by value


def write_folders(folder: Path) -> None:
    """truth: 12 frames at 10 a second of two sizes; a: the same sizes, brighter; b: 9 frames at 8 a second, smaller."""
    for index in range(3):
        true = clip(index, height=(32, 32, 40)[index])
        write_video(folder / "truth" / f"clip{index}.mp4", true, 10)
        write_video(folder / "res" / "a" / f"clip{index}.mp4", true * 0.8 + 0.1, 10)
        small = F.interpolate(true[:9], size=(32, 32), mode="bilinear")
        write_video(folder / "res" / "b" / f"clip{index}.mp4", small, 8)


def given(truth: Path, videos, **changes) -> GivenClips:
    options = {"name": "given", "paired": True, "side": {}, "n": None, "reading": AUTO}
    listed = [str(each) for each in videos] if isinstance(videos, list) else str(videos)
    changed = options | changes
    changed["reading"] = AUTO | changed["reading"]
    return given_clips(truth=str(truth), videos=listed, **changed)


def methods(benchmark: GivenClips, videos, *, truth: Path) -> list[External]:
    return externals(folders=str(videos), side={}, benchmark=benchmark, truth=str(truth))


def both(truth: Path, videos: Path, **changes) -> tuple[GivenClips, External]:
    """The benchmark of two folders and its only method."""
    benchmark = given(truth, videos, **changes)
    (method,) = methods(benchmark, videos, truth=truth)
    return benchmark, method


def decoded(path: Path) -> np.ndarray:
    with av.open(str(path)) as file:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])


def by_time(path: Path, own: float, fps: float, count: int) -> np.ndarray:
    """The frames of a video, whose own rate is given, that are nearest in time to k / fps."""
    return decoded(path)[[int(np.ceil(k / fps * own - 0.5)) for k in range(count)]]


def by_hand(pairs: list[tuple[np.ndarray, np.ndarray]]) -> tuple[float, float]:
    """Means over clips of PSNR and SSIM, frame 0 left out, of videos (T, H, W, 3) uint8."""
    options = {"channel_axis": 2, "gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    scores = []
    for true, made in pairs:
        each = [
            (peak_signal_noise_ratio(x, y, data_range=255), structural_similarity(x, y, data_range=255, **options))
            for x, y in zip(true[1:], made[1:], strict=True)
        ]
        scores.append(np.mean(each, axis=0))
    psnr, ssim = np.mean(scores, axis=0)
    return float(psnr), float(ssim)


def resized(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    small = F.interpolate(pixels, size=(height, width), mode="bilinear", antialias=True)
    return small.round().byte().permute(0, 2, 3, 1).numpy()


def scored(folder: Path, method, benchmark: GivenClips) -> dict:
    score = scorer(folder, psnr=PSNR(cap=100.0), ssim=SSIM())
    return run(folder, method, benchmark=benchmark.of(method.place), score=score).result


def results(cwd: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in cwd.glob("runs/evaluate/*/*/result.json")]
    return {result["label"]: result for result in found}
