"""The photos of the working folder, known by a prefix of their SHA-256."""

import hashlib
import io
import re
from collections import OrderedDict
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from motionanim.files import file_sha256, write_new

if TYPE_CHECKING:
    import numpy as np

ID_DIGITS = 16
MOST_SIDE = 2048  # px of the picture that the page shows
KEPT = 3  # decoded pictures, 12 MB each
QUALITY = 95  # of JPEG, without subsampling of colours


class Photo(NamedTuple):
    """A photo of the folder, upright."""

    id: str
    name: str  # of its file
    width: int  # px
    height: int

    def json(self) -> dict[str, Any]:
        return {**self._asdict(), "url": f"/api/photos/{self.id}/picture"}


class Photos:
    """Keeps photos in a folder and finds them again. All calls must come from one thread.

    Args:
        folder: Holds the files; a photo that came before is not written again.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known: dict[str, Photo] = {}
        self._hashes: dict[str, tuple[int, int, str]] = {}  # of a name: size, time of change, id
        self._pictures: OrderedDict[str, np.ndarray] = OrderedDict()

    def add(self, name: str, content: bytes) -> Photo:
        """Keep the bytes of a photo's file under its name, or under name-2, name-3, ... if another file has it.

        Raises:
            ValueError: As `media.image_io.load_image`; the file is then not kept.
            OSError: If it cannot be written.
        """
        id = hashlib.sha256(content).hexdigest()[:ID_DIGITS]
        if (photo := self._find(id, [path for path in self.folder.iterdir() if _has(path, len(content))])) is not None:
            return photo
        given, name = name, safe_name(name)
        stem, suffix = Path(name).stem, Path(name).suffix
        for number in count(1):
            path = self.folder / (name if number == 1 else f"{stem}-{number}{suffix}")
            try:
                write_new(path, content)
                break
            except FileExistsError:
                continue
        try:
            return self._decoded(id, path.name)
        except BaseException as error:
            path.unlink()
            if isinstance(error, ValueError):
                raise ValueError(str(error).replace(path.name, given)) from error
            raise

    def get(self, id: str, name: str | None = None) -> Photo:
        """A photo that came before, or after a restart the one of this file name.

        Raises:
            LookupError: If there is none with this id.
        """
        # Only this file is read: a folder may hold thousands of photos.
        named = [] if name is None or Path(name).name != name else [self.folder / name]
        photo = self._find(id, named)
        if photo is None:
            raise LookupError(f"no photo {id[:40]} in the folder: open its file again")
        return photo

    def pixels(self, photo: Photo) -> "np.ndarray":
        """The photo as the model sees it, (H, W, 3) uint8 sRGB, its longest side at most MOST_SIDE px."""
        if photo.id not in self._pictures:
            self._decoded(photo.id, photo.name)
        self._pictures.move_to_end(photo.id)
        return self._pictures[photo.id]

    def picture(self, photo: Photo) -> bytes:
        """`pixels` as a JPEG file."""
        file = io.BytesIO()
        Image.fromarray(self.pixels(photo)).save(file, "JPEG", quality=QUALITY, subsampling=0)
        return file.getvalue()

    def _find(self, id: str, paths: Sequence[Path]) -> Photo | None:
        """The photo of this id, if it is known or among these files."""
        known = self._known.get(id)
        if known is not None and self._hash(self.folder / known.name) == id:
            return known
        for path in sorted(paths):
            if not path.name.startswith(".") and is_photo(path.name) and self._hash(path) == id:
                return self._decoded(id, path.name)
        return None

    def _hash(self, path: Path) -> str | None:
        """Id of a file, computed once for each of its versions; None if it is gone."""
        try:
            found = path.stat()
            version = found.st_size, found.st_mtime_ns
            if self._hashes.get(path.name, ())[:2] != version:
                self._hashes[path.name] = *version, file_sha256(path)[:ID_DIGITS]
        except OSError:
            return None
        return self._hashes[path.name][2]

    def _decoded(self, id: str, name: str) -> Photo:
        import cv2

        from motionanim.media.image_io import load_image, to_pixels

        path = self.folder / name
        try:
            pixels = to_pixels(load_image(path))
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), name)) from error
        height, width = pixels.shape[:2]
        scale = MOST_SIDE / max(height, width)
        if scale < 1:
            size = max(1, round(width * scale)), max(1, round(height * scale))
            pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        self._pictures[id] = pixels
        while len(self._pictures) > KEPT:
            self._pictures.popitem(last=False)
        self._known[id] = Photo(id, name, width, height)
        return self._known[id]


def _has(path: Path, size: int) -> bool:
    try:
        return path.is_file() and path.stat().st_size == size
    except OSError:
        return False


def is_photo(name: str) -> bool:
    """Whether a file's name has a suffix of pictures."""
    Image.init()
    formats = {suffix for suffix, name in Image.registered_extensions().items() if name in Image.OPEN}
    return Path(name).suffix.lower() in formats | {".heic", ".heif"}


def safe_name(name: str) -> str:
    """A file's name without folders, hidden or reserved characters, at most 150 bytes long; with a picture's suffix."""
    name = re.split(r"[/\\]", name)[-1]
    name = re.sub(r'[\x00-\x1f\x7f<>:"|?*$]', "_", name.encode(errors="ignore").decode()).strip(" .") or "photo"
    if not is_photo(name):
        name += ".png"  # any suffix will do: the content decides how it is read
    stem, suffix = Path(name).stem, Path(name).suffix
    return stem.encode()[:150].decode(errors="ignore").strip() + suffix
