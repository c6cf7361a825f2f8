"""Scores given videos with scikit-image, lpips and cd-fvd's I3D: the check of `evaluate.py truth= videos=`.

    python -m motionanim.models.pretrained download i3d lpips-alex
    python experiments/evaluation/by_hand.py short/ground_truth short/paper short/sfs

It takes what the command takes of the published samples: 14 frames, at the lowest rate of the files (7 a second), at
the size of the true clip. One JSON object per folder. Needs `pip install -e .[test]`.
"""

import json
import os
import sys
from pathlib import Path

import av
import lpips
import numpy as np
import torch
import torch.nn.functional as F
from cdfvd.third_party.i3d.pytorch_i3d import InceptionI3d
from safetensors.torch import load_file
from scipy.linalg import sqrtm
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

WEIGHTS = Path(os.environ.get("MOTIONANIM_WEIGHTS") or Path.home() / ".cache/motionanim/weights")
FRAMES, RATE = 14, 7


def read(file: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """(14, H, W, 3) uint8."""
    with av.open(str(file)) as container:
        step = float(container.streams.video[0].average_rate) / RATE
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    frames = [frames[int(k * step + 0.5)] for k in range(FRAMES)]
    if size and frames[0].shape[:2] != size:
        frames = [resized(frame, size) for frame in frames]
    return np.stack(frames)


def resized(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, size=size, mode="bilinear", antialias=True)
    return pixels[0].permute(1, 2, 0).round().byte().numpy()


def unit(video: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(video).permute(0, 3, 1, 2).float() / 127.5 - 1


def logits(network: InceptionI3d, video: np.ndarray) -> np.ndarray:
    return network(F.interpolate(unit(video), size=(224, 224), mode="bilinear").transpose(0, 1)[None])[0].numpy()


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    covariances = [np.cov(x.astype(np.float64).T, ddof=0) for x in (a, b)]
    mean = ((a.mean(0, dtype=np.float64) - b.mean(0, dtype=np.float64)) ** 2).sum()
    return float(mean + sum(map(np.trace, covariances)) - 2 * np.trace(sqrtm(covariances[0] @ covariances[1]).real))


@torch.no_grad()
def main(truth: Path, *folders: Path) -> None:
    perceptual = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    state = load_file(WEIGHTS / "alexnet_features.safetensors")
    names = perceptual.net.state_dict()  # slice2.3.weight is features.3.weight
    perceptual.net.load_state_dict({name: state[f"features.{name.split('.', 1)[1]}"] for name in names})
    i3d = InceptionI3d(400)
    i3d.load_state_dict(load_file(WEIGHTS / "i3d_kinetics400.safetensors"))
    i3d.eval()
    true = {file.name: read(file) for file in sorted(truth.glob("*.mp4"))}
    true_logits = np.stack([logits(i3d, video) for video in true.values()])
    for folder in folders:
        psnr, ssim, distance, features = [], [], [], []
        for name, video in true.items():
            made = read(folder / name, video.shape[1:3])
            features.append(logits(i3d, made))
            for a, b in zip(video[1:], made[1:]):  # frame 0 is given to every method
                psnr.append(peak_signal_noise_ratio(a, b, data_range=255))
                gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
                ssim.append(structural_similarity(a, b, channel_axis=2, data_range=255, **gaussian))
                distance.append(float(perceptual(unit(a[None]), unit(b[None]))))
        scores = {"psnr": psnr, "ssim": ssim, "lpips": distance}
        means = {key: float(np.mean(values)) for key, values in scores.items()}
        print(json.dumps({"folder": folder.name, **means, "fvd": frechet(true_logits, np.stack(features))}), flush=True)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
