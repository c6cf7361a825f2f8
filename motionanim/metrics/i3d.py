"""I3D, whose Kinetics-400 logits are the features of FVD (Unterthiner et al. 2018).

Inception-v1 inflated to three dimensions (Carreira and Zisserman, CVPR 2017). Module names are those of VideoGPT's
`i3d_pretrained_400.pt`; outputs equal the TensorFlow graph (tf-hub i3d-kinetics-400).
"""

import json
import math
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from motionanim.files import text_sha256
from motionanim.models.weights_io import exact_float32, weights_fingerprint
from motionanim.models.winograd import WinogradConv

Padding = Literal["dynamic", "static"]
Size = tuple[int, int, int]

SIDE = 224
CLASSES = 400
MIN_FRAMES = 9  # the last pooling averages 2 steps of 8 frames each
_VERSION = 1  # raise it when a change here or in WinogradConv changes features by more than rounding


class Protocol(NamedTuple):
    """Settings that determine the features. Resizes are bilinear with half-pixel centres, without antialias."""

    resize: Literal["stretch", "crop"]  # both sides to 224 px; or the short side, then a centre crop
    eps: float  # of batch norm
    padding: Padding
    ddof: int  # of the covariances of the Fréchet distance


# Each name is what published numbers call so. The FVDs of two protocols do not compare.
PROTOCOLS = {
    # The TensorFlow graph and its published FVD, except that TensorFlow 1 resizes without half-pixel centres.
    "ours": Protocol("stretch", eps=1e-3, padding="dynamic", ddof=1),
    # github.com/universome/stylegan-v, src/metrics. Its TorchScript file holds code and is never loaded here: use the
    # same weights as a state dict. The file was compiled from a variant of github.com/hassony2/kinetics_i3d_pytorch,
    # so that padding is assumed. It equals "dynamic" for 16 and 128 frames.
    "styleganv": Protocol("stretch", eps=1e-3, padding="static", ddof=0),
    # github.com/JunyaoHu/common_metrics_on_video_quality, method=styleganv: that file again, behind another resize.
    "common_styleganv": Protocol("crop", eps=1e-3, padding="static", ddof=1),
    # The same, method=videogpt, as many projects copied it. github.com/wilson1yan/VideoGPT itself lacks its last step,
    # from [-0.5, 0.5] to [-1, 1], on which I3D was trained.
    "videogpt": Protocol("crop", eps=1e-5, padding="dynamic", ddof=1),
    # github.com/songweige/TATS, tats/fvd.
    "tats": Protocol("stretch", eps=1e-5, padding="dynamic", ddof=1),
    # cd-fvd 0.1.1 with model="i3d": TATS's features and StyleGAN-V's covariances.
    "cdfvd": Protocol("stretch", eps=1e-5, padding="dynamic", ddof=0),
}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME padding: zeros before and after an axis, so that ceil(size / stride) windows fit exactly."""
    total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class _Unit(nn.Module):
    """Convolution with SAME padding, batch norm, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, *, eps: float) -> None:
        super().__init__()
        # At stride 1 an odd kernel needs the same padding on both sides, for every size.
        padding = kernel // 2 if stride == 1 else 0
        self.conv3d: nn.Module = nn.Conv3d(inputs, outputs, kernel, stride, padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm3d(outputs, eps=eps)

    def fuse(self) -> None:
        self.conv3d, self.bn = fuse_conv_bn_eval(self.conv3d, self.bn), nn.Identity()
        if WinogradConv.fits(self.conv3d):
            self.conv3d = WinogradConv(self.conv3d)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.conv3d, WinogradConv):
            return self.conv3d(x).relu_()
        kernel, stride = self.conv3d.kernel_size, self.conv3d.stride
        if kernel == (1, 1, 1):
            # As a matrix product, because torch's 1x1x1 convolution is slower and undoes channels-last.
            x = F.linear(x.movedim(1, -1), self.conv3d.weight.flatten(1), self.conv3d.bias).movedim(-1, 1)
            return self.bn(x).relu_()
        if stride == (1, 1, 1):
            return self.bn(self.conv3d(x)).relu_()
        # The convolution pads both sides alike at no cost; only the rest, at the end of an axis, is padded by a copy.
        pads = [same_padding(*axis) for axis in zip(x.shape[2:], kernel, stride)]
        x = F.pad(x, [pad for before, after in reversed(pads) for pad in (0, after - before)])
        both = tuple(before for before, _ in pads)
        return self.bn(F.conv3d(x, self.conv3d.weight, self.conv3d.bias, stride, both)).relu_()


class _Pool(nn.Module):
    """Max pooling with SAME padding. Inputs are at least 0, so padding with zeros never changes a maximum.

    "static" pads as if each size were a multiple of the stride.
    """

    def __init__(self, kernel: Size, stride: Size, *, padding: Padding) -> None:
        super().__init__()
        self.kernel, self.stride, self.static = kernel, stride, padding == "static"

    def forward(self, x: Tensor) -> Tensor:
        sizes = self.stride if self.static else x.shape[2:]
        pads = [same_padding(*axis) for axis in zip(sizes, self.kernel, self.stride)]
        if self.static:
            x = F.pad(x, [pad for before, after in reversed(pads) for pad in (0, after - before)])
        # ceil_mode adds the padding after the axis, without a copy.
        return F.max_pool3d(x, self.kernel, self.stride, [before for before, _ in pads], ceil_mode=True)


class _Mixed(nn.Module):
    """An Inception block: 1x1x1; 1x1x1 and 3x3x3, twice; pooling and 1x1x1."""

    def __init__(self, inputs: int, outputs: list[int], *, eps: float, padding: Padding) -> None:
        super().__init__()
        self.b0 = _Unit(inputs, outputs[0], eps=eps)
        self.b1a = _Unit(inputs, outputs[1], eps=eps)
        self.b1b = _Unit(outputs[1], outputs[2], 3, eps=eps)
        self.b2a = _Unit(inputs, outputs[3], eps=eps)
        self.b2b = _Unit(outputs[3], outputs[4], 3, eps=eps)
        self.b3a = _Pool((3, 3, 3), (1, 1, 1), padding=padding)
        self.b3b = _Unit(inputs, outputs[5], eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        branches = self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x))
        # Along the last axis, because torch.cat along channels loses channels-last.
        return torch.cat([branch.movedim(1, -1) for branch in branches], dim=-1).movedim(-1, 1)


class I3D(nn.Sequential):
    """The network for evaluation: (B, 3, T, 224, 224) float32 in [-1, 1] to logits averaged over time, (B, 400).

    Args:
        eps: Of batch norm; the TensorFlow graph has 1e-3, many ports have 1e-5.
        padding: "dynamic" as TensorFlow; "static" differs from it where T is no multiple of 8.

    Raises:
        ValueError: From the call, if the frames have another size or are fewer than 9.
    """

    def __init__(self, *, eps: float, padding: Padding) -> None:
        if padding not in ("dynamic", "static"):
            raise ValueError(f"padding={padding!r}: must be 'dynamic' or 'static'")

        def mixed(inputs: int, *outputs: int) -> _Mixed:
            return _Mixed(inputs, list(outputs), eps=eps, padding=padding)

        layers: list[tuple[str, nn.Module]] = [
            ("Conv3d_1a_7x7", _Unit(3, 64, 7, 2, eps=eps)),
            ("MaxPool3d_2a_3x3", _Pool((1, 3, 3), (1, 2, 2), padding=padding)),
            ("Conv3d_2b_1x1", _Unit(64, 64, eps=eps)),
            ("Conv3d_2c_3x3", _Unit(64, 192, 3, eps=eps)),
            ("MaxPool3d_3a_3x3", _Pool((1, 3, 3), (1, 2, 2), padding=padding)),
            ("Mixed_3b", mixed(192, 64, 96, 128, 16, 32, 32)),
            ("Mixed_3c", mixed(256, 128, 128, 192, 32, 96, 64)),
            ("MaxPool3d_4a_3x3", _Pool((3, 3, 3), (2, 2, 2), padding=padding)),
            ("Mixed_4b", mixed(480, 192, 96, 208, 16, 48, 64)),
            ("Mixed_4c", mixed(512, 160, 112, 224, 24, 64, 64)),
            ("Mixed_4d", mixed(512, 128, 128, 256, 24, 64, 64)),
            ("Mixed_4e", mixed(512, 112, 144, 288, 32, 64, 64)),
            ("Mixed_4f", mixed(528, 256, 160, 320, 32, 128, 128)),
            ("MaxPool3d_5a_2x2", _Pool((2, 2, 2), (2, 2, 2), padding=padding)),
            ("Mixed_5b", mixed(832, 256, 160, 320, 32, 128, 128)),
            ("Mixed_5c", mixed(832, 384, 192, 384, 48, 128, 128)),
            ("avg_pool", nn.AvgPool3d((2, 7, 7), stride=1)),
            ("logits", nn.Sequential(OrderedDict(conv3d=nn.Conv3d(1024, CLASSES, 1)))),
        ]
        super().__init__(OrderedDict(layers))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 5 or x.shape[1] != 3 or x.shape[3:] != (SIDE, SIDE):
            raise ValueError(f"input of shape {tuple(x.shape)}: I3D needs (B, 3, T, {SIDE}, {SIDE})")
        if x.shape[2] < MIN_FRAMES:
            raise ValueError(f"{x.shape[2]} frames: I3D needs at least {MIN_FRAMES}")
        return super().forward(x).mean((2, 3, 4))

    def fuse(self) -> Self:
        """Merge each batch norm into its convolution: faster, and equal up to rounding."""
        for unit in self.modules():
            if isinstance(unit, _Unit):
                unit.fuse()
        return self


class I3DFeatures(nn.Module):
    """Maps frames (B, T, 3, H, W) in [-1, 1], T at least 9, to features (B, 400) float32 on the same device.

    Published protocols score frames of 8 bits, so the frames should be rounded to 8 bits.

    Args:
        weights: State dict in the layout of VideoGPT's `i3d_pretrained_400.pt`, as .safetensors or saved by torch.
        protocol: A key of `PROTOCOLS`.
        batch: Clips a pass on a GPU, at least 1; bounds the memory. A CPU takes one, whose layers fit its cache.

    Raises:
        ValueError: If an argument is not as above, or the weights cannot be read or do not fit. From the call, if the
            frames are not as above or the module was cast to another type.
    """

    dim = CLASSES
    min_frames = MIN_FRAMES

    def __init__(self, weights: Path | str, *, protocol: str, batch: int) -> None:
        super().__init__()
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol={protocol!r}: must be one of {', '.join(PROTOCOLS)}")
        if batch < 1:
            raise ValueError(f"batch={batch}: must be at least 1 clip")
        self._settings, self._batch = PROTOCOLS[protocol], batch
        state = _read_weights(Path(weights))
        network = I3D(eps=self._settings.eps, padding=self._settings.padding)
        try:
            # The counters of trained batches do not act, and conversions of the same weights differ in them.
            network.load_state_dict({k: v for k, v in state.items() if not k.endswith(".num_batches_tracked")})
        except (RuntimeError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"weights={weights} do not have the layout of i3d_pretrained_400.pt: {reason}") from error
        weights_hash = weights_fingerprint(network)
        # Channels last makes pooling ten times as fast on a CPU.
        self.network = network.fuse().requires_grad_(False).to(memory_format=torch.channels_last_3d)
        self.name = f"i3d_{protocol}"
        self.protocol: dict[str, Any] = {
            "features": "i3d-kinetics-400-logits", "version": _VERSION, "name": protocol,
            **self._settings._asdict(), "weights": weights_hash,
        }  # fmt: skip
        self.fingerprint = text_sha256(json.dumps(self.protocol, sort_keys=True))[:16]
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Keeps evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, frames: Tensor) -> Tensor:
        if frames.ndim != 5 or frames.shape[2] != 3 or not len(frames) or not frames.is_floating_point():
            raise ValueError(f"frames {tuple(frames.shape)} {frames.dtype}: must be (B, T, 3, H, W) float in [-1, 1]")
        weight = self.network.logits.conv3d.weight
        if weight.dtype != torch.float32:
            raise ValueError(f"I3DFeatures was cast to {weight.dtype}: its features need torch.float32")
        with exact_float32(weight.device):
            count = 1 if weight.device.type == "cpu" else self._batch
            features = [self.network(self.prepare(clips.to(weight.device))) for clips in frames.split(count)]
        return torch.cat(features).to(frames.device)

    def prepare(self, frames: Tensor) -> Tensor:
        """Frames (B, T, 3, H, W) in [-1, 1] to the network's input (B, 3, T, 224, 224).

        Raises:
            ValueError: If a value is not finite or leaves [-1, 1] by more than 0.001, TensorFlow's tolerance.
        """
        low, high = torch.aminmax(frames)
        if not (low >= -1.001 and high <= 1.001):
            raise ValueError(f"frames from {low:.4g} to {high:.4g}: must be in [-1, 1]")
        # The resize comes before the change to channels last, with which it takes three times as long.
        pictures = resize(frames.flatten(0, 1).float(), self._settings.resize)
        pictures = pictures.contiguous(memory_format=torch.channels_last)
        return pictures.unflatten(0, frames.shape[:2]).transpose(1, 2)


def resize(pictures: Tensor, how: Literal["stretch", "crop"]) -> Tensor:
    """(N, 3, H, W) to (N, 3, 224, 224): both sides stretched, or the short side resized and then a centre crop.

    The long side is rounded up in floating point as in VideoGPT, which may turn a square into 224 x 225.
    """
    height, width = pictures.shape[2:]
    if how == "stretch":
        return F.interpolate(pictures, size=(SIDE, SIDE), mode="bilinear")
    scale = SIDE / min(height, width)
    size = (SIDE, math.ceil(width * scale)) if height < width else (math.ceil(height * scale), SIDE)
    top, left = ((side - SIDE) // 2 for side in size)
    return F.interpolate(pictures, size=size, mode="bilinear")[:, :, top : top + SIDE, left : left + SIDE]


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise ValueError(
            f"I3D weights {path} do not exist: FVD needs a state dict in the layout of VideoGPT's "
            "i3d_pretrained_400.pt (github.com/wilson1yan/VideoGPT names its place); set `weights` to it"
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, LookupError, ValueError, pickle.UnpicklingError, SafetensorError) as error:
        raise ValueError(
            f"I3D weights {path} cannot be read as a state dict ({type(error).__name__}); a TorchScript file such as "
            "i3d_torchscript.pt holds code and is never loaded: use its weights in the layout of i3d_pretrained_400.pt"
        ) from error
