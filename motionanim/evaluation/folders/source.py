"""A clip that is given as a video file, or as a folder of pictures, one a frame."""

import logging
import os
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from motionanim.data.clips import check_root
from motionanim.data.folder import LOSSLESS, folder_names, picture_folders
from motionanim.data.video import Video, VideoError, cover_size
from motionanim.data.video.reader import VideoInfo
from motionanim.files import file_sha256, text_sha256
from motionanim.media.image_io import load_image, to_pixels

logger = logging.getLogger(__name__)


class PictureFolder:
    """The pictures in a folder as a video, with the attributes and methods of `Video`.

    Pictures have no rate. `info` says one frame a second, so that frame k is shown at k s; whoever knows the true rate
    gives it to `Reading.indices`.

    Raises:
        VideoError: If the folder has no picture, two pictures of one name, a file that is no picture, or pictures of
            different sizes.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self._files = [Path(path, name) for name in picture_folders(path).get(".", [])]
        if not self._files:
            raise VideoError(path, "has no picture")
        names = [file.stem for file in self._files]
        twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
        if twice:
            raise VideoError(path, f"has two pictures named {twice[0]}: each must be one frame, so remove one of them")
        sizes = [_header_size(file) for file in self._files]
        for file, size in zip(self._files, sizes):
            if size != sizes[0]:
                raise VideoError(
                    file, f"is {size[0]}x{size[1]} px and {self._files[0].name} {sizes[0][0]}x{sizes[0][1]}: all "
                    "frames of a clip need one size; move pictures away that are no frames"
                )  # fmt: skip
        self.info = VideoInfo(len(self._files), 1.0, float(len(self._files)))

    @property
    def lossless(self) -> bool:
        return all(file.suffix.lower() in LOSSLESS for file in self._files)

    def nearest(self, seconds: np.ndarray) -> np.ndarray:
        """As `Video.nearest`, at one frame a second."""
        seconds = seconds[seconds <= len(self._files) - 0.5 + 1e-6]
        return np.ceil(seconds - 0.5 - 1e-6).clip(0, len(self._files) - 1).astype(np.int64)

    def read(self, indices: np.ndarray, *, height: int, width: int) -> np.ndarray:
        """As `Video.read`: (K, H', W', 3) uint8 RGB, which covers height x width.

        Raises:
            VideoError: If a picture is damaged.
        """
        unique, places = np.unique(indices, return_inverse=True)
        frames = []
        for index in unique:
            picture = self._picture(index)
            tall, wide = cover_size(*picture.shape[:2], height=height, width=width)
            if (tall, wide) != picture.shape[:2]:
                shrinks = tall <= picture.shape[0] and wide <= picture.shape[1]
                method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
                picture = cv2.resize(picture, (wide, tall), interpolation=method)
            frames.append(picture)
        return np.stack(frames)[places]

    def size(self) -> tuple[int, int]:
        """(height, width) in px as shown; decodes one picture."""
        return self._picture(0).shape[:2]

    def hash(self) -> str:
        return text_sha256(" ".join(map(file_sha256, self._files)))

    def _picture(self, index: int) -> np.ndarray:
        try:
            return to_pixels(load_image(self._files[index]))
        except ValueError as error:
            raise VideoError(self._files[index], str(error).removeprefix(f"{self._files[index]} ")) from error


def _header_size(file: Path) -> tuple[int, int]:
    """(width, height) by the file's header."""
    try:
        with Image.open(file) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise VideoError(file, "is not a picture that can be read: mend it, or move it away") from error


def open_source(path: Path | str) -> Video | PictureFolder:
    """A clip's frames.

    Raises:
        VideoError: If it cannot be read.
    """
    return PictureFolder(path) if os.path.isdir(path) else Video(path)


def find_sources(root: Path | str) -> dict[str, Path]:
    """The clips below a folder by name: their path relative to it, without a video's suffix.

    They are its video files; where it has none, they are its folders of pictures.

    Raises:
        ValueError: If there is no such folder, it has no clip, its pictures lie in it directly, or two videos differ
            only in their suffix.
    """
    root, found = check_root(root), {}
    pictures = picture_folders(root)
    try:
        names = list(folder_names(root))
    except ValueError as error:
        if not pictures:
            message = str(error).removeprefix("root=")  # no setting of a command with truth= and videos=
            raise ValueError(f"{message}; folders of pictures such as CLIP/0001.png are clips too") from None
        if "." in pictures:
            raise ValueError(
                f"{root} holds pictures itself: put the frames of each clip into a folder of its own, as in "
                f"{root}/CLIP/{pictures['.'][0]}"
            ) from None
        return {name: Path(root, name) for name in pictures}
    for name in names:
        clip = str(Path(name).with_suffix(""))
        if clip in found:
            raise ValueError(f"{root} has two videos named {clip}: names without suffix must differ")
        found[clip] = Path(root, name)
    if pictures:
        logger.warning(
            "%s: %d folders of pictures are left out, as it has video files; move these away to score the pictures",
            root, len(pictures),
        )  # fmt: skip
    return found


def source_sha256(path: Path | str) -> str:
    """A hash of a video file, or of all pictures of a folder in their order."""
    return PictureFolder(path).hash() if os.path.isdir(path) else file_sha256(Path(path))


def all_lossless(paths: Iterable[Path | str]) -> bool:
    """Whether every clip is a folder of pictures that were stored without loss."""
    return all(os.path.isdir(path) and PictureFolder(path).lossless for path in paths)
