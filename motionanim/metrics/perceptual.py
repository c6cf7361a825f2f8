"""Metrics by pretrained networks: LPIPS to the true frame, and CLIP consistency of neighbouring frames.

`motionanim.models.pretrained` loads the networks. The protocol names them by a hash of their weights.
"""

from collections.abc import Callable, Sequence
from importlib.resources import as_file, files
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transforms

from motionanim.metrics.base import ClipMetric, Column
from motionanim.metrics.frame import STANDS_STILL, STILL, both_columns, both_conventions, check_clips, check_pair
from motionanim.models.weights_io import exact_float32, weights_fingerprint
from motionanim.models.winograd import WinogradConv


class _Backbone(NamedTuple):
    """The layers of a torchvision network that LPIPS compares."""

    taps: tuple[int, ...]  # places in `features`, each a ReLU, ascending
    min_side: int  # px that the last of them needs


_BACKBONES = {"alex": _Backbone((1, 4, 7, 9, 11), 31), "vgg": _Backbone((3, 8, 15, 22, 29), 16)}
# Mean and standard deviation of ImageNet on the scale of [-1, 1], rounded as in the authors' code.
_LPIPS_SHIFT, _LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_PIXELS = 256 * 256  # of one frame of LPIPS's `batch`; a larger frame counts as several
_CLIP_SIZE = 224
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def lpips(
    images: Tensor, real: Tensor, backbone: nn.Sequential, taps: Sequence[int], heads: Sequence[Tensor]
) -> Tensor:
    """Learned perceptual distance (Zhang et al., CVPR 2018), heads of version 0.1; equals the lpips package to 1e-6.

    Args:
        images: (N, 3, H, W) in [-1, 1].
        real: The true images, like `images`.
        backbone: `features` of torchvision's AlexNet or VGG16.
        taps: Places of the layers to compare, ascending.
        heads: Weights of the channels of each tap, (C,).

    Returns:
        (N,), at least 0; 0 for equal images.
    """
    shift, scale = (images.new_tensor(each)[:, None, None] for each in (_LPIPS_SHIFT, _LPIPS_SCALE))
    # Channels last saves the network a quarter of its time on a CPU. The pixels are normalised before, which is faster.
    seen = torch.cat([(each - shift).div_(scale).movedim(1, -1) for each in (images, real)]).movedim(-1, 1)
    total = images.new_zeros(len(images))
    start = 0
    for tap, head in zip(taps, heads):
        seen = backbone[start : tap + 1](seen)
        start = tap + 1
        last = seen.movedim(1, -1)
        lengths = torch.linalg.vector_norm(last, dim=-1, keepdim=True) + 1e-10
        (ours, theirs), (one, other) = last.chunk(2), lengths.chunk(2)
        apart = torch.addcdiv(ours / one, theirs, other, value=-1).square_()
        total = total + (apart.flatten(1, 2) @ head).mean(1)
    return total


def lpips_heads(net: Literal["alex", "vgg"]) -> list[Tensor]:
    """The authors' trained weights of the channels of each tap, (C,) each, from files inside torchmetrics."""
    with as_file(files("torchmetrics") / "functional" / "image" / "lpips_models" / f"{net}.pth") as path:
        state = torch.load(path, map_location="cpu", weights_only=True)
    return [state[f"lin{i}.model.1.weight"].flatten() for i in range(len(_BACKBONES[net].taps))]


class _Network(ClipMetric):
    """A metric that passes frames to a frozen network, `batch` at a time, in float32 on every device."""

    def __init__(self, network: nn.Module, *, batch: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if batch < 1:
            raise ValueError(f"batch={batch}: must be at least 1 frame")
        self.network, self.batch = network.requires_grad_(False), batch

    @torch.no_grad()
    def in_parts(self, run: Callable[..., Tensor], *clips: Tensor, at_once: int | None = None) -> Tensor:
        """Clips (B, T, 3, H, W) to (B, T, ...): `run` on `at_once` (`batch`) frames, on the network's device."""
        self.network.eval()  # the owner of the metric may have called train()
        device = next(self.network.parameters()).device
        parts = zip(*(clip.flatten(0, 1).split(at_once or self.batch) for clip in clips))
        with exact_float32(device):
            seen = torch.cat([run(*(part.to(device, torch.float32) for part in group)) for group in parts])
        return seen.unflatten(0, clips[0].shape[:2])


class LPIPS(_Network):
    """`lpips` over clips, with both conventions of `metrics.frame`.

    Args:
        net: "alex" or "vgg".
        backbone: `features` of that network with its weights.
        batch: Frames a pass, at least 1; fewer where they are larger than 256 x 256 px. Bounds the memory.

    Raises:
        ValueError: If `net` or `batch` is not as above, or the backbone is another network's.
    """

    columns = both_columns(Column("lpips", "LPIPS", 3, "lower", "quality", range=(0, float("inf"))))
    needs = ("frames", "real")
    undefined = STANDS_STILL

    def __init__(self, *, net: Literal["alex", "vgg"], backbone: nn.Sequential, batch: int, **kwargs: Any) -> None:
        layers = (WinogradConv(layer) if WinogradConv.fits(layer) else layer for layer in backbone)
        super().__init__(nn.Sequential(*layers), batch=batch, **kwargs)
        if net not in _BACKBONES:
            raise ValueError(f"net={net!r}: LPIPS has {', '.join(_BACKBONES)}")
        self.net, self.heads = net, lpips_heads(net)
        taps = _BACKBONES[net].taps
        widths = [getattr(layer, "out_channels", None) for layer in backbone]
        if [widths[tap - 1] for tap in taps if tap < len(widths)] != [len(head) for head in self.heads]:
            raise ValueError(f"net={net!r}: the backbone is not that network's; load it with the same `net`")
        self.fingerprint = weights_fingerprint(backbone, *self.heads)

    def score(self, frames: Tensor, real: Tensor) -> Tensor:
        check_pair(frames, real)
        taps, min_side = _BACKBONES[self.net]
        if min(frames.shape[-2:]) < min_side:
            raise ValueError(
                f"frames of {tuple(frames.shape[-2:])} px: LPIPS with net={self.net!r} needs sides of at least "
                f"{min_side} px"
            )

        def run(made: Tensor, true: Tensor) -> Tensor:
            return lpips(made, true, self.network, taps, [head.to(made.device) for head in self.heads])

        at_once = max(1, self.batch * _PIXELS // max(frames.shape[-2:].numel(), _PIXELS))
        return both_conventions(self.in_parts(run, frames, real, at_once=at_once), real)

    @property
    def protocol(self) -> dict[str, Any]:
        return {
            "metric": "lpips", "per": "frame", "net": self.net, "version": "0.1", "weights": self.fingerprint, **STILL,
        }  # fmt: skip


def clip_pixels(images: Tensor) -> Tensor:
    """Images as OpenAI's CLIP takes them: resized, cropped and normalised, without rounding to 8 bits in between.

    Args:
        images: (N, 3, H, W) in [-1, 1].

    Returns:
        (N, 3, 224, 224): short side to 224 px (bicubic, antialiased), centre crop, OpenAI's mean and std.
    """
    resized = transforms.resize(
        images.float() * 0.5 + 0.5, [_CLIP_SIZE], interpolation=InterpolationMode.BICUBIC, antialias=True
    )
    square = transforms.center_crop(resized.clamp(0, 1), [_CLIP_SIZE, _CLIP_SIZE])
    return transforms.normalize(square, list(_CLIP_MEAN), list(_CLIP_STD))


def adjacent_cosine(embeddings: Tensor) -> Tensor:
    """Mean cosine of the angle between embeddings (B, T, D) of neighbouring frames: (B,) float64 in [-1, 1]."""
    embeddings = embeddings.double()
    return F.cosine_similarity(embeddings[:, 1:], embeddings[:, :-1], dim=-1).mean(1)


class ClipConsistency(_Network):
    """Mean cosine similarity of the CLIP embeddings of neighbouring frames.

    It saturates, and a frozen video scores 1, so it needs a motion score beside it.

    Args:
        encoder: Maps (N, 3, 224, 224) from `clip_pixels` to image embeddings (N, D).
        batch: Frames a pass, at least 1; bounds the memory.

    Raises:
        ValueError: If `batch` is below 1.
    """

    columns = (
        Column(
            "clip_consistency", "CLIP consistency", 4, "higher", "quality",
            remark="saturates, and a frozen picture scores 1: read it beside the static copy and a motion score",
            range=(-1, 1),
        ),
    )  # fmt: skip
    needs = ("frames",)

    def __init__(self, *, encoder: nn.Module, batch: int, **kwargs: Any) -> None:
        super().__init__(encoder, batch=batch, **kwargs)
        self.fingerprint = weights_fingerprint(encoder)

    def score(self, frames: Tensor) -> Tensor:
        check_clips("frames", frames)
        return adjacent_cosine(self.in_parts(lambda part: self.network(clip_pixels(part)), frames))[:, None]

    @property
    def protocol(self) -> dict[str, Any]:
        return {
            "metric": "clip_consistency", "pairs": "adjacent", "resize": "short side 224, bicubic, antialias",
            "crop": "centre 224", "normalise": "openai", "weights": self.fingerprint,
        }  # fmt: skip
