"""Optical flow between neighbouring frames: OpenCV's DIS, or RAFT from torchvision.

Both are picklable callables: frames (T, 3, H, W) float32 in [-1, 1] -> flow (T-1, 2, H, W) float32, px per frame at H x
W. Their `name` is recorded beside results. The config chooses one; there is no fallback.
"""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models import optical_flow

from motionanim.files import file_sha256
from motionanim.models.pretrained import download, find, read
from motionanim.motion.flow import resize_flow


def check_frames(frames: Tensor) -> None:
    """Raises ValueError if `frames` is not (T, 3, H, W) with T of at least 2."""
    if frames.ndim != 4 or frames.shape[1] != 3 or len(frames) < 2:
        raise ValueError(f"frames of shape {tuple(frames.shape)}: must be (T, 3, H, W) with T of at least 2")


def steady_field(frames: Tensor, estimate: Callable[[Tensor], Tensor], *, lag: int) -> Tensor:
    """The one steady field of a clip: the mean flow over all pairs of frames `lag` apart, per frame.

    A longer lag makes slow motion large enough to be measured, and averages out changing motion.

    Args:
        frames: (T, 3, H, W) in [-1, 1], of a static camera.
        estimate: `DisFlow` or `RaftFlow`.
        lag: Frames between the two of a pair, from 1 to T - 1.

    Returns:
        (2, H, W) px per frame.

    Raises:
        ValueError: If `lag` or the shape of `frames` is not as above.
    """
    check_frames(frames)
    if not 1 <= lag < len(frames):
        raise ValueError(f"lag={lag}: must be from 1 to {len(frames) - 1} for {len(frames)} frames")
    # Every lag-th frame from each start: together these sequences contain each pair once.
    starts = range(min(lag, len(frames) - lag))
    return torch.cat([estimate(frames[start::lag]) for start in starts]).mean(0) / lag


def grey_images(frames: Tensor, min_side: int) -> list[np.ndarray]:
    """Grey 8-bit pictures (h, w) of frames (T, 3, H, W) in [-1, 1], enlarged to a short side of at least `min_side` px.

    OpenCV's searches match patches of a fixed size in px and see little in a small frame.
    """
    height, width = frames.shape[-2:]
    factor = max(1.0, min_side / min(height, width))
    size = (round(width * factor), round(height * factor))
    grey = (frames.detach().cpu().float() * 0.5 + 0.5).clamp(0, 1) * 255
    grey = (grey * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1).numpy()
    # Enlarged as float and rounded once: rounding first would leave steps, which a search takes for edges.
    return [
        np.rint(cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)).clip(0, 255).astype(np.uint8) for image in grey
    ]


class DisFlow:
    """Dense inverse search (Kroeger et al., ECCV 2016) on grey frames.

    Args:
        preset: "ultrafast", "fast" or "medium": OpenCV's trade-off between time and accuracy.
        min_side: Frames are enlarged until the short side has at least this many px, because DIS matches patches of 8
            px and sees little in a small frame. 1 never enlarges.

    Raises:
        ValueError: If `preset` is none of these or `min_side` is below 1.
    """

    def __init__(self, *, preset: Literal["ultrafast", "fast", "medium"], min_side: int) -> None:
        presets = {
            "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
            "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
            "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
        }
        if preset not in presets:
            raise ValueError(f"preset={preset!r}: DIS has {', '.join(presets)}")
        if min_side < 1:
            raise ValueError(f"min_side={min_side}: must be at least 1 px")
        self.name = f"dis-{preset}-{min_side}"
        self._preset, self._min_side = presets[preset], min_side

    def __call__(self, frames: Tensor) -> Tensor:
        check_frames(frames)
        height, width = frames.shape[-2:]
        images = grey_images(frames, self._min_side)
        # A new search object for each clip, because OpenCV's cannot be pickled.
        search = cv2.DISOpticalFlow_create(self._preset)
        flows = np.stack([search.calc(first, second, None) for first, second in pairwise(images)])
        return resize_flow(torch.from_numpy(flows).permute(0, 3, 1, 2).contiguous(), height, width)


class RaftFlow:
    """RAFT (Teed and Deng, ECCV 2020) as torchvision has it.

    Args:
        variant: "small" or "large".
        weights: Path of a state dict, or "download" for torchvision's default weights, which are fetched once into the
            folder of `motionanim.models.pretrained`.
        sha256: SHA-256 of your own weights, or its first 8 hex digits or more; None expects torchvision's.
        device: Such as "cpu" or "cuda".
        updates: Refinements of the flow, at least 1; torchvision's default is 12.
        pairs: Frame pairs per pass, at least 1; bounds the memory.

    Raises:
        ValueError: If an argument is not as above, or the weights are missing, other ones, or do not fit the variant.

    Attributes:
        name: Contains the first 8 digits of the weights' SHA-256, because other weights give other flow.
    """

    # torchvision's correlation pyramid takes 4 halvings of 1/8 of the frame, so a side needs 128 px.
    _MIN_SIDE = 128
    _MULTIPLE = 8

    def __init__(
        self,
        *,
        variant: Literal["small", "large"],
        weights: str,
        sha256: str | None,
        device: str,
        updates: int,
        pairs: int,
    ) -> None:
        builders = {"small": optical_flow.raft_small, "large": optical_flow.raft_large}
        if variant not in builders:
            raise ValueError(f"variant={variant!r}: RAFT has {', '.join(builders)}")
        if updates < 1 or pairs < 1:
            raise ValueError(f"updates={updates}, pairs={pairs}: both must be at least 1")
        elsewhere = weights if weights == "download" else str(Path(weights).resolve())
        self._given = (variant, elsewhere, sha256, device, updates, pairs)
        path = _raft_file(variant, weights, sha256)
        self.name = f"raft-{variant}-{file_sha256(path)[:8]}"
        self._device, self._updates, self._pairs = torch.device(device), updates, pairs
        model = builders[variant](weights=None, progress=False)
        try:
            model.load_state_dict(read(path))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"weights={weights} do not fit variant={variant!r}: {reason}") from error
        self._model = model.eval().requires_grad_(False).to(self._device)

    def __reduce__(self) -> tuple[Callable[..., "RaftFlow"], tuple[Any, ...]]:
        """Pickles the arguments, not the weights: each process reads those once."""
        return _raft_once, self._given

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        check_frames(frames)
        height, width = frames.shape[-2:]
        size = [max(self._MIN_SIDE, -(-side // self._MULTIPLE) * self._MULTIPLE) for side in (height, width)]
        images = F.interpolate(frames.to(self._device, torch.float32), size=size, mode="bilinear", antialias=True)
        flows = [
            self._model(first, second, num_flow_updates=self._updates)[-1]
            for first, second in zip(images[:-1].split(self._pairs), images[1:].split(self._pairs))
        ]
        return resize_flow(torch.cat(flows), height, width).cpu()


@lru_cache(maxsize=1)
def _raft_once(
    variant: Literal["small", "large"], weights: str, sha256: str | None, device: str, updates: int, pairs: int
) -> RaftFlow:
    return RaftFlow(variant=variant, weights=weights, sha256=sha256, device=device, updates=updates, pairs=pairs)


def _raft_file(variant: str, weights: str, sha256: str | None) -> Path:
    name = f"raft-{variant}"
    try:
        return find(name, download(name) if weights == "download" else weights, sha256)
    except ValueError as error:
        raise ValueError(
            f"{error}; the options are flow_estimator.weights=PATH and flow_estimator.sha256, or choose "
            "flow_estimator=dis, which needs no weights"
        ) from error
