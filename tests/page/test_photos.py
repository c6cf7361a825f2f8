"""Photos: kept once, found again, decoded as the model sees them."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from page_runs import draw_photo
from PIL import Image

from motionanim.media.image_io import load_image, to_pixels
from motionanim.page.photos import Photos, safe_name


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "work"
    made.mkdir()
    return made


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_photo_is_kept_once_and_found_again(folder: Path, tmp_path: Path) -> None:
    photos, first, other = Photos(folder), draw_photo(tmp_path / "a.png"), draw_photo(tmp_path / "b.png", seed=1)
    kept = photos.add("cat.png", first.read_bytes())
    assert (kept.width, kept.height, kept.name) == (64, 48, "cat.png")
    assert photos.add("dog.png", first.read_bytes()) == kept, "the same bytes"
    assert photos.add("cat.png", other.read_bytes()).name == "cat-2.png"
    assert names(folder) == ["cat-2.png", "cat.png"]
    assert (folder / "cat.png").read_bytes() == first.read_bytes()
    (folder / "cat.png").rename(folder / "tom.png")
    assert Photos(folder).get(kept.id, "tom.png").name == "tom.png", "after a restart"
    (folder / "tom.png").write_bytes(other.read_bytes())
    for name in (None, "tom.png", "cat.png", "../a.png"):
        with pytest.raises(LookupError, match="no photo .* in the folder: open its file again"):
            photos.get(kept.id, name)


def test_a_photo_turned_by_its_camera_is_upright(folder: Path) -> None:
    file, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (64, 48), (200, 90, 30)).save(file, "JPEG", exif=exif)
    photos = Photos(folder)
    photo = photos.add("cat.jpg", file.getvalue())
    assert (photo.width, photo.height) == (48, 64)
    assert photos.pixels(photo).shape == (64, 48, 3)


def test_the_picture_is_the_photo_at_most_2048_px_wide(folder: Path, tmp_path: Path) -> None:
    photos, path = Photos(folder), draw_photo(tmp_path / "a.png")
    photo = photos.add("a.png", path.read_bytes())
    assert np.array_equal(photos.pixels(photo), to_pixels(load_image(path)))
    with Image.open(io.BytesIO(photos.picture(photo))) as shown:
        assert np.abs(np.asarray(shown, int) - photos.pixels(photo)).mean() < 3
    file = io.BytesIO()
    Image.new("L", (4100, 20)).save(file, "PNG")
    assert photos.pixels(photos.add("wide.png", file.getvalue())).shape == (10, 2048, 3)


@pytest.mark.parametrize("content", [b"no picture", b"\x89PNG\r\n\x1a\n broken", b"%PDF-1.7"])
def test_a_broken_photo_is_not_kept(folder: Path, content: bytes) -> None:
    with pytest.raises(ValueError, match=r"^cat\.png (is not an image|cannot be read)") as caught:
        Photos(folder).add("cat.png", content)
    assert str(folder) not in str(caught.value)
    assert names(folder) == []


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("été (1), a=b #2 it's.png", "été (1), a=b #2 it's.png"),
        ("../../etc/passwd", "passwd.png"),
        ("C:\\photos\\cat.JPG", "cat.JPG"),
        (".hidden.png", "hidden.png"),
        ("a${oc.env:HOME}.png", "a__{oc.env_HOME}.png".replace("__", "_")),
        ("\x00\n.png", "__.png"),
        ("", "photo.png"),
        ("..", "photo.png"),
        ("é" * 300 + ".jpeg", "é" * 75 + ".jpeg"),
    ],
)
def test_a_name_is_only_a_name(given: str, kept: str) -> None:
    assert safe_name(given) == kept


def test_a_card_without_hard_links_takes_photos_too(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    photos, other = Photos(folder), draw_photo(tmp_path / "b.png", seed=1)
    photos.add("cat.png", draw_photo(tmp_path / "a.png").read_bytes())
    assert photos.add("cat.png", other.read_bytes()).name == "cat-2.png"
    assert names(folder) == ["cat-2.png", "cat.png"]


def test_a_phones_heic_is_kept_and_shown(folder: Path, tmp_path: Path) -> None:
    with Image.open(draw_photo(tmp_path / "a.png")) as image:
        pillow_heif.from_pillow(image).save(tmp_path / "a.heic", quality=-1)
    photos = Photos(folder)
    photo = photos.add("IMG_1.HEIC", (tmp_path / "a.heic").read_bytes())
    assert (photo.name, photo.width, photo.height) == ("IMG_1.HEIC", 64, 48)
    assert Image.open(io.BytesIO(photos.picture(photo))).size == (64, 48)
