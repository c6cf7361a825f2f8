"""Reading photos and masks, and mapping a photo's pixels to the model's.

Points are (x, y) in pixels, origin at the first pixel centre. An embedded colour profile converts colours to sRGB;
pixels without a usable profile are taken as sRGB.
"""

import io
import math
import mimetypes
import struct
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

# Larger pictures take gigabytes as float32. This replaces Pillow's own limit, whose warning `_read` silences.
_MAX_PIXELS = 100_000_000

# Errors of Pillow's decoders on damaged files.
_DAMAGE = (
    OSError, ValueError, SyntaxError, EOFError, LookupError, TypeError, AttributeError, RuntimeError, struct.error,
)  # fmt: skip


class Fit(NamedTuple):
    """The mapping from a photo to the model's picture: resized to cover it and cropped at the centre, or stretched."""

    # Resized px per photo px along x and y: equal up to rounding after `fit`, up to 10 % apart after `stretched`.
    scale: tuple[float, float]
    left: int  # px cut off the resized photo
    top: int
    height: int  # of the model's picture, px
    width: int

    def points(self, xy: Tensor) -> Tensor:
        """Map points (..., 2) of the photo to the model's picture: x' = (x + 0.5) * scale - 0.5 - left."""
        return (xy + 0.5) * xy.new_tensor(self.scale) - 0.5 - xy.new_tensor([self.left, self.top])

    @property
    def visible(self) -> tuple[float, float, float, float]:
        """The borders of the part that the model sees, in photo px: left, top, right, bottom, at the outer pixels'
        edges.
        """
        x, y = self.scale
        right, bottom = (self.left + self.width) / x, (self.top + self.height) / y
        return self.left / x - 0.5, self.top / y - 0.5, right - 0.5, bottom - 0.5

    def mask(self, mask: Tensor) -> Tensor:
        """Map a mask (1, H, W) of the photo to (1, height, width) in {0, 1}: 1 where more than half of a pixel is 1.

        Raises:
            ValueError: If no pixel of the mask is left, so that nothing could move.
        """
        fitted = (self.cut(mask, "bilinear") > 0.5).to(mask.dtype)
        if not fitted.any():
            left, top, right, bottom = self.visible
            raise ValueError(
                f"mask: nothing of it is left in the visible part of the photo, x from {left:.1f} to {right:.1f} and "
                f"y from {top:.1f} to {bottom:.1f}, at {self.width}x{self.height} px: mark a larger region there"
            )
        return fitted

    def cut(self, picture: Tensor, mode: str) -> Tensor:
        """Resize (C, H, W) with antialiasing and crop; `mode` as in `torch.nn.functional.interpolate`."""
        size = (round(picture.shape[1] * self.scale[1]), round(picture.shape[2] * self.scale[0]))
        if size != tuple(picture.shape[1:]):
            picture = F.interpolate(picture[None], size=size, mode=mode, antialias=True)[0]
        return picture[:, self.top : self.top + self.height, self.left : self.left + self.width]


def fit(image: Tensor, height: int, width: int) -> tuple[Tensor, Fit]:
    """Bring a photo to the model's size without distortion: resize it to cover height x width, crop at the centre.

    Args:
        image: (3, H, W) float32 in [-1, 1].

    Returns:
        (3, height, width) in [-1, 1], and the mapping for points and masks.

    Raises:
        ValueError: If the photo is so long and thin that resizing it would take gigabytes.
    """
    old_height, old_width = image.shape[1:]
    scale = max(height / old_height, width / old_width)
    tall, wide = max(height, round(old_height * scale)), max(width, round(old_width * scale))
    if tall * wide > _MAX_PIXELS:
        raise ValueError(
            f"an image of {old_width}x{old_height} px is too long for {width}x{height}: crop it nearer to that shape"
        )
    mapping = Fit((wide / old_width, tall / old_height), (wide - width) // 2, (tall - height) // 2, height, width)
    return mapping.cut(image, "bicubic").clamp(-1, 1), mapping


def model_size(height: int, width: int, *, area: int, multiple: int) -> tuple[int, int]:
    """Height and width of about `area` pixels in a photo's shape, both multiples of `multiple`.

    Example:
        >>> model_size(720, 1280, area=128 * 128, multiple=16)
        (96, 176)
    """
    scale = math.sqrt(area / (height * width))
    # Limits the longer side of a strip, whose shorter side is rounded up.
    most = max(1, area // multiple**2)
    rows, columns = (min(most, max(1, round(side * scale / multiple))) for side in (height, width))
    return rows * multiple, columns * multiple


def stretched(image: Tensor, height: int, width: int) -> tuple[Tensor, Fit]:
    """The whole photo (3, H, W) at another size, and the mapping for points and masks."""
    mapping = Fit((width / image.shape[2], height / image.shape[1]), 0, 0, height, width)
    return mapping.cut(image, "bicubic").clamp(-1, 1), mapping


def to_uint8(frames: Tensor) -> Tensor:
    """Pictures of any shape, float in [-1, 1], as uint8 of the same shape; values outside the range are clamped."""
    return frames.detach().float().clamp(-1, 1).add_(1).mul_(127.5).round_().byte()


def from_uint8(pixels: Tensor) -> Tensor:
    """Pictures of any shape with values from 0 to 255 as float32 in [-1, 1]."""
    return pixels.float().div(127.5).sub_(1)


def to_pixels(frame: Tensor) -> np.ndarray:
    """A picture (3, H, W), float in [-1, 1], as OpenCV, Pillow and encoders take it: (H, W, 3) uint8."""
    return to_uint8(frame).permute(1, 2, 0).contiguous().cpu().numpy()


def load_image(path: Path | str) -> Tensor:
    """Read a still image in any format of Pillow, or HEIC: upright (EXIF rotation applied), in sRGB.

    Transparent parts are shown on white, as browsers and viewers do. 16-bit grey keeps its range. An animated picture
    (GIF, WebP, APNG) gives its first frame.

    Returns:
        (3, H, W) float32 in [-1, 1], RGB.

    Raises:
        ValueError: If the file is missing, no image, damaged, a video, or has more than 100 megapixels by its header.
    """
    return _read(Path(path), background=1, profile=True).mul_(2).sub_(1)


def load_mask(path: Path | str, height: int, width: int) -> Tensor:
    """Read a mask drawn over a photo: pixels that are brighter than half in any channel may move.

    Transparent parts count as black, so that white strokes on an empty layer are a mask. If the only values are 0 and
    1, as in masks that programs write, 1 may move. Colour profiles are not applied.

    Args:
        height, width: Of the photo, upright.

    Returns:
        (1, H, W) float32 in {0, 1}; 1 where pixels may move.

    Raises:
        ValueError: As `load_image`; or if the mask has another size than the photo, or is empty.
    """
    values = _read(Path(path), background=0, profile=False).amax(0, keepdim=True)
    brightest = float(values.max())
    # A brightest value of 1 (of 255, or of 65535 in 16 bits) means a mask of 0 and 1.
    mask = (values > (0 if round(brightest * 255, 3) in (1, round(255 / 65535, 3)) else 0.5)).float()
    if tuple(mask.shape[1:]) != (height, width):
        raise ValueError(
            f"{path} is {mask.shape[2]}x{mask.shape[1]} px and the image {width}x{height}: a mask must have the "
            "image's size"
        )
    if not mask.any():
        raise ValueError(
            f"{path} is empty, so that nothing may move (its brightest value is {brightest * 255:.0f} of 255): paint "
            "what may move white (255), the rest black"
        )
    return mask


def _read(path: Path, background: float, profile: bool) -> Tensor:
    """(3, H, W) float32 in [0, 1] with transparent parts over `background`; `profile` applies the colour profile."""
    from pillow_heif import register_heif_opener  # here, so that a machine that only trains does without it

    register_heif_opener()  # phones write HEIC
    try:
        # Pillow warns of large sizes, which are checked here, and of damaged metadata, which only the rotation uses.
        with warnings.catch_warnings(action="ignore"), path.open("rb") as file, Image.open(file) as image:
            if image.width * image.height > _MAX_PIXELS:
                raise Image.DecompressionBombError
            upright = ImageOps.exif_transpose(image)
            pixels = _to_unit(_to_srgb(upright) if profile else upright, background)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{path} has more than {_MAX_PIXELS // 10**6} megapixels: shrink it first, the model sees far fewer"
        ) from error
    except _DAMAGE as error:
        raise ValueError(f"{path} {_reason(path, error)}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def _to_srgb(image: Image.Image) -> Image.Image:
    """The picture in sRGB; unchanged if it has no colour profile, or a damaged one, or one of another kind."""
    content = image.info.get("icc_profile")
    if not content or image.mode == "F":
        return image
    try:
        source, target = ImageCms.ImageCmsProfile(io.BytesIO(content)), ImageCms.createProfile("sRGB")
        if image.mode.startswith("I"):  # 16-bit grey: interpolated between the profile's values at 8 bits
            levels = Image.frombytes("L", (256, 1), bytes(range(256)))
            curve = np.asarray(ImageCms.profileToProfile(levels, source, target, outputMode="RGB"))[0, :, 1]
            grey = np.asarray(image, dtype=np.float32).clip(0, 65535)
            grey = np.interp(grey / 257, np.arange(256), curve.astype(np.float32) * 257)
            return Image.fromarray(grey.round().astype(np.uint16))
        alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
        colours = image
        if image.mode not in ("L", "RGB", "CMYK"):
            colours = image.convert("L" if image.mode in ("1", "LA", "La") else "RGB")
        colours = ImageCms.profileToProfile(colours, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image
    if alpha is not None:
        colours.putalpha(alpha)
    return colours


def _to_unit(image: Image.Image, background: float) -> np.ndarray:
    """(H, W, 3) float32 in [0, 1]."""
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers of unknown range")
    if image.mode.startswith("I"):  # 16-bit grey: Pillow's conversion to RGB would clip it at 255
        grey = (np.asarray(image, dtype=np.float32) / 65535).clip(0, 1)
        return np.repeat(grey[..., None], 3, axis=2)
    if not image.has_transparency_data:
        return _unit(image.convert("RGB"))
    rgba = _unit(image.convert("RGBA"))
    colours = rgba[..., :3]
    colours -= background
    colours *= rgba[..., 3:]
    colours += background
    return colours


def _unit(image: Image.Image) -> np.ndarray:
    """An 8-bit picture as (H, W, C) float32 in [0, 1]."""
    pixels = np.array(image, dtype=np.float32)
    pixels /= 255  # in place: a copy of 100 megapixels takes 1.2 GB
    return pixels


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be opened: {error.strerror}; give an image file"
    if (mimetypes.guess_type(path.name)[0] or "").startswith("video/"):
        return f"is a video: give a still image, such as its first frame (ffmpeg -i {path} -frames:v 1 first.png)"
    if isinstance(error, UnidentifiedImageError):
        return "is not an image that can be read: give a PNG, JPEG, HEIC, WebP, TIFF, BMP or GIF file"
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return f"cannot be read: {reason}; save it anew as an 8-bit PNG or JPEG file"
