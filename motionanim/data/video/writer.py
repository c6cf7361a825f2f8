"""H.264 files, tagged so that every player shows the same colours."""

from collections.abc import Iterable
from fractions import Fraction
from itertools import chain
from pathlib import Path

import av
from av.video.reformatter import ColorRange, Colorspace
from torch import Tensor

from motionanim.files import atomic_path
from motionanim.media.image_io import to_pixels

# H.264's highest level, 6.2, holds 139 264 blocks of 16x16 px; the longest side is x264's limit.
MOST_PIXELS, MOST_SIDE = 139_264 * 256, 16_384

_BT709 = 1  # ITU-T H.273's code of BT.709 as colour matrix, primaries and transfer


def check_video_size(height: int, width: int) -> None:
    """Raise ValueError if frames of this size are too large for `write_video`."""
    if height * width > MOST_PIXELS or max(height, width) > MOST_SIDE:
        raise ValueError(
            f"a video of {width}x{height} px is too large for H.264, which holds {MOST_PIXELS / 1e6:.1f} megapixels "
            f"and {MOST_SIDE} px on a side: choose a smaller size"
        )


def write_video(path: str | Path, frames: Tensor | Iterable[Tensor], fps: float) -> None:
    """Write an H.264 yuv420p mp4 file of visually lossless quality, whole or not at all.

    Colours are BT.709 of limited range. The file's tags say so, because players guess BT.601 or BT.709 by the number
    of lines of files without tags.

    Args:
        path: Target; its folder is made, and an older file is replaced once the new one is complete.
        frames: (T, 3, H, W) float in [-1, 1], RGB; H and W even, as yuv420p demands. Or an iterable of frames
            (3, H, W), so that a video of any length takes little memory.
        fps: Frames per second, above 0.

    Raises:
        ValueError: If a shape or `fps` is out of range.
        OSError: If the disk is full.
    """
    if not fps > 0:
        raise ValueError(f"fps={fps}: must be above 0")
    stream = iter(frames)
    first = next(stream, None)
    shape = tuple(frames.shape) if isinstance(frames, Tensor) else (0 if first is None else 1, *_shape(first))
    if len(shape) != 4 or shape[0] < 1 or shape[1] != 3 or shape[2] % 2 or shape[3] % 2:
        raise ValueError(f"frames of shape {shape}: must be (T, 3, H, W) with T >= 1 and H, W even")
    check_video_size(*shape[2:])
    # Absolute, because FFmpeg takes what stands before a colon for a protocol.
    target = Path(path).absolute()
    with atomic_path(target) as partial, av.open(str(partial), "w", options={"movflags": "faststart"}) as container:
        rate = Fraction(fps).limit_denominator(1001)
        # x264's macroblock tree reads memory that it did not write, so that equal frames would give different bytes.
        options = {"crf": "12", "preset": "fast", "x264-params": "mbtree=0"}
        video = container.add_stream("libx264", rate=rate, options=options)
        video.height, video.width, video.pix_fmt = shape[2], shape[3], "yuv420p"
        tags = video.codec_context
        tags.colorspace = tags.color_primaries = tags.color_trc = _BT709
        tags.color_range = ColorRange.MPEG
        for number, frame in enumerate(chain([first], stream)):
            if _shape(frame) != shape[1:]:
                raise ValueError(f"frame {number} of shape {_shape(frame)}: must be {shape[1:]} as the first one is")
            picture = av.VideoFrame.from_ndarray(to_pixels(frame), format="rgb24")
            container.mux(video.encode(picture.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)))
        container.mux(video.encode())


def _shape(frame: Tensor | None) -> tuple[int, ...]:
    return () if frame is None else tuple(frame.shape)
