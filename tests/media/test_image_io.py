import contextlib
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from pillow_heif import from_pillow

from motionanim.data.video import write_video
from motionanim.media.image_io import fit, load_image, load_mask, model_size

RGB = np.random.default_rng(0).integers(0, 256, (6, 10, 3), dtype=np.uint8)
ALPHA = np.random.default_rng(1).integers(0, 256, (6, 10), dtype=np.uint8)


def on_white(rgb, alpha):
    """Float (3, H, W) in [-1, 1] of colours over white."""
    share = alpha[..., None].astype(float) / 255
    unit = rgb.astype(float) / 255 * share + (1 - share)
    return torch.from_numpy(unit * 2 - 1).permute(2, 0, 1).float()


def plain(rgb):
    return on_white(rgb, np.full(rgb.shape[:2], 255))


def grey(values):
    return np.repeat(values[..., None], 3, axis=2)


def enlarged(pixels, times):
    return pixels.repeat(times, 0).repeat(times, 1)


RGBA = Image.fromarray(np.dstack([RGB, ALPHA]))


def png_header(width, height):
    """A PNG that says its size and holds no pixels."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


def check(path, expected, atol=1e-6):
    image = load_image(path)
    assert image.dtype == torch.float32
    assert image.is_contiguous()
    torch.testing.assert_close(image, expected, atol=atol, rtol=0)


@pytest.mark.parametrize(
    ("name", "image", "expected"),
    [
        ("rgb.png", Image.fromarray(RGB), plain(RGB)),
        ("grey.bmp", Image.fromarray(ALPHA), plain(grey(ALPHA))),
        ("bit.tiff", Image.fromarray(ALPHA > 100), plain(grey(np.where(ALPHA > 100, 255, 0)))),
        ("rgba.png", RGBA, on_white(RGB, ALPHA)),
        ("rgba.tiff", RGBA, on_white(RGB, ALPHA)),
        ("rgba.webp", RGBA, on_white(RGB, ALPHA)),
        ("la.png", Image.merge("LA", [Image.fromarray(RGB[..., 0]), Image.fromarray(ALPHA)]),
         on_white(grey(RGB[..., 0]), ALPHA)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_every_kind_of_pixels_is_read_and_transparent_parts_are_on_white(tmp_path, name, image, expected):
    image.save(tmp_path / name, lossless=True, exact=True)
    check(tmp_path / name, expected)


@pytest.mark.parametrize("suffix", ["png", "gif"])
def test_a_palette_with_a_transparent_entry_is_on_white(tmp_path, suffix):
    indices = np.arange(60, dtype=np.uint8).reshape(6, 10) % 4
    colours = np.array([[10, 20, 30], [200, 100, 0], [0, 0, 255], [255, 255, 0]], dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(colours.tobytes())
    image.save(tmp_path / f"p.{suffix}", transparency=2)
    check(tmp_path / f"p.{suffix}", on_white(colours[indices], np.where(indices == 2, 0, 255)))


@pytest.mark.parametrize(("suffix", "dtype"), [("png", "u2"), ("tiff", "u2"), ("tiff", "i4"), ("tiff", ">u2")])
def test_16_bit_grey_keeps_its_range(tmp_path, suffix, dtype):
    values = np.linspace(0, 65535, 60).astype(dtype).reshape(6, 10)
    big = dtype == ">u2"
    image = Image.frombytes("I;16B", (10, 6), values.tobytes()) if big else Image.fromarray(values)
    image.save(tmp_path / f"deep.{suffix}")
    check(tmp_path / f"deep.{suffix}", torch.from_numpy(values / 65535 * 2 - 1).float().expand(3, 6, 10))


def test_cmyk(tmp_path):
    # Printing inks subtract: white paper, full cyan, full black, half magenta.
    inks = np.array([[[0, 0, 0, 0], [255, 0, 0, 0], [0, 0, 0, 255], [0, 128, 0, 0]]], dtype=np.uint8)
    Image.frombytes("CMYK", (4, 1), inks.tobytes()).save(tmp_path / "cmyk.tiff")
    expected = np.array([[[255, 255, 255], [0, 255, 255], [0, 0, 0], [255, 127, 255]]], dtype=np.uint8)
    check(tmp_path / "cmyk.tiff", plain(expected), atol=0.02)
    Image.frombytes("CMYK", (64, 16), enlarged(inks, 16).tobytes()).save(tmp_path / "cmyk.jpg", quality=100)
    check(tmp_path / "cmyk.jpg", plain(enlarged(expected, 16)), atol=0.05)


def swapped_profile():
    """An RGB profile whose red primary is sRGB's blue one, and the other way round."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return profile.replace(b"rXYZ", b"----").replace(b"bXYZ", b"rXYZ").replace(b"----", b"bXYZ")  # names in its table


def grey_profile():
    white = b"XYZ \0\0\0\0" + struct.pack(">iii", 63190, 65536, 54061)
    curve = b"curv\0\0\0\0" + struct.pack(">IHxx", 1, 461)  # gamma 1.8
    tags = b"".join(struct.pack(">4sII", name, at, size) for name, at, size in ((b"wtpt", 156, 20), (b"kTRC", 176, 12)))
    body = struct.pack(">I", 2) + tags + white + curve
    head = struct.pack(
        ">I4sI4s4s4s12s4s28x", 128 + len(body), b"lcms", 0x02400000, b"mntr", b"GRAY", b"XYZ ", b"", b"acsp"
    )
    return head + struct.pack(">iii", 63190, 65536, 54061) + bytes(48) + body


def encoded(linear):
    """sRGB's curve, from and to [0, 1]."""
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * np.maximum(linear, 1e-9) ** (1 / 2.4) - 0.055)


def test_colours_are_those_of_the_embedded_profile(tmp_path):
    profile, level = swapped_profile(), 2 / 127.5
    for name in ("a.png", "a.tiff", "a.webp"):
        Image.fromarray(RGB).save(tmp_path / name, icc_profile=profile, lossless=True)
        check(tmp_path / name, plain(RGB[..., ::-1]), atol=level)
    RGBA.save(tmp_path / "rgba.png", icc_profile=profile)
    check(tmp_path / "rgba.png", on_white(RGB[..., ::-1], ALPHA), atol=level)
    Image.fromarray(RGB).quantize(256, dither=Image.Dither.NONE).save(tmp_path / "p.png", icc_profile=profile)
    palette = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    check(tmp_path / "p.png", plain(palette[..., ::-1]), atol=level)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_follows_its_profile_in_8_and_16_bits(tmp_path, dtype):
    values = np.linspace(0, np.iinfo(dtype).max, 60).astype(dtype).reshape(6, 10)
    Image.fromarray(values).save(tmp_path / "grey.png", icc_profile=grey_profile())
    linear = (values / np.iinfo(dtype).max) ** (461 / 256)
    expected = torch.from_numpy(encoded(linear) * 2 - 1).float().expand(3, -1, -1)
    check(tmp_path / "grey.png", expected, atol=2 / 127.5)


def test_a_profile_that_does_not_fit_is_ignored(tmp_path):
    for number, profile in enumerate((b"no profile", grey_profile())):
        Image.fromarray(RGB).save(tmp_path / f"{number}.png", icc_profile=profile)
        check(tmp_path / f"{number}.png", plain(RGB))


def test_a_phones_heic_is_read(tmp_path):
    colours = enlarged(RGB, 8)
    from_pillow(Image.fromarray(colours)).save(tmp_path / "photo.heic", quality=100)
    assert (load_image(tmp_path / "photo.heic") - plain(colours)).abs().mean() < 0.03


# EXIF orientation -> the upright picture, from the stored one (Exif 2.3, tag 0x0112: where row 0 and column 0 are).
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: np.rot90(a, 2),
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_rotated_photos_are_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(RGB).save(tmp_path / "photo.png", exif=exif)
    check(tmp_path / "photo.png", plain(np.ascontiguousarray(UPRIGHT[orientation](RGB))))
    deep = np.arange(60, dtype=np.uint16).reshape(6, 10) * 1000
    Image.fromarray(deep).save(tmp_path / "deep.png", exif=exif)
    upright = np.ascontiguousarray(UPRIGHT[orientation](deep)).astype(np.float32)
    check(tmp_path / "deep.png", (torch.from_numpy(upright) / 65535 * 2 - 1).expand(3, *upright.shape))


def test_the_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 4), colour) for colour in ("red", "blue")]
    for suffix in ("gif", "png", "webp"):
        frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:], lossless=True)
        check(tmp_path / f"a.{suffix}", torch.tensor([1.0, -1, -1]).view(3, 1, 1).expand(3, 4, 8))


def test_what_cannot_be_an_image_is_one_line(tmp_path):
    write_video(tmp_path / "clip.mp4", torch.zeros(4, 3, 64, 64), 7)
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not a picture")
    Image.fromarray(np.ones((4, 4), dtype=np.float32)).save(tmp_path / "float.tiff")
    (tmp_path / "folder.png").mkdir()
    for name, message in {
        "gone.png": "cannot be opened: No such file",
        "clip.mp4": r"is a video: give a still image.*ffmpeg -i",
        "empty.png": "is not an image",
        "text.png": "is not an image",
        "float.tiff": "floating-point.*save it anew",
        "folder.png": "cannot be opened: Is a directory",
    }.items():
        with pytest.raises(ValueError, match=message) as caught:
            load_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_image_is_named(tmp_path, suffix):
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(enlarged(RGB, 8)).save(path, compress_level=0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(ValueError, match=rf"(?i)cut.{suffix} cannot be read: .*truncated.*save it anew"):
        load_image(path)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "WEBP"]),
    places=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=5),
    keep=st.floats(0, 1),
)
def test_a_damaged_file_is_read_or_is_a_value_error(tmp_path_factory, kind, places, keep):
    file = io.BytesIO()
    Image.fromarray(RGB).save(file, kind)
    data = bytearray(file.getvalue())
    for place, value in places:
        data[min(int(place * len(data)), len(data) - 1)] = value
    path = tmp_path_factory.getbasetemp() / f"damaged.{kind.lower()}"
    path.write_bytes(bytes(data[: int(keep * len(data)) + 1]))
    with warnings.catch_warnings(action="error"), contextlib.suppress(ValueError):
        image = load_image(path)
        assert image.isfinite().all()
        assert image.abs().max() <= 1


@pytest.mark.parametrize(
    ("width", "height", "message"), [(10_001, 10_001, "more than 100 megapixels"), (60_000, 60_000, "megapixels"),
                                     (10_000, 9_500, "truncated")],
)  # fmt: skip
def test_more_than_100_megapixels_are_refused_from_the_header_without_a_warning(tmp_path, width, height, message):
    """Pillow itself warns above 89 megapixels and refuses above 179; just below our limit the pixels are missing."""
    (tmp_path / "huge.png").write_bytes(png_header(width, height))
    with warnings.catch_warnings(action="error"), pytest.raises(ValueError, match=message):
        load_image(tmp_path / "huge.png")


def saved_mask(path, values, **options):
    Image.fromarray(np.array(values)).save(path, **options)
    return path


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        # bright in any channel
        (np.uint8([[255, 255, 255], [0, 0, 255], [127, 127, 127], [128, 0, 0]]), [1, 1, 0, 1]),
        (np.uint8([[255, 255, 255, 0]] * 3 + [[255, 255, 255, 255]]), [0, 0, 0, 1]),  # strokes on an empty layer
        (np.array([0, 1, 1, 0], np.uint8), [0, 1, 1, 0]),
        (np.array([0, 1, 1, 0], np.uint16), [0, 1, 1, 0]),
        (np.array([0, 1, 1, 0], bool), [0, 1, 1, 0]),
    ],
    ids=["colours", "strokes", "0 and 1", "0 and 1 of 16 bits", "bits"],
)
def test_a_mask_moves_what_is_bright_or_1(tmp_path, row, expected):
    mask = load_mask(saved_mask(tmp_path / "m.png", [row, np.zeros_like(row)]), 2, 4)
    assert mask.dtype == torch.float32
    assert mask.tolist() == [[expected, [0, 0, 0, 0]]]


def test_a_mask_is_rotated_as_its_photo_and_a_wrong_one_is_named(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = saved_mask(tmp_path / "m.png", np.uint8([[255, 0, 0], [0, 0, 0]]), exif=exif)
    assert load_mask(path, 3, 2).tolist() == [[[0, 1], [0, 0], [0, 0]]]
    with pytest.raises(ValueError, match=r"is 2x3 px and the image 3x2"):
        load_mask(path, 2, 3)
    with pytest.raises(ValueError, match=r"m.png is empty.*its brightest value is 38 of 255.*white \(255\)"):
        load_mask(saved_mask(path, np.uint8([[0, 38, 15, 1]])), 1, 4)


@settings(max_examples=30, deadline=None)
@given(
    size=st.tuples(st.integers(20, 150), st.integers(20, 150)),
    target=st.tuples(st.integers(20, 70), st.integers(20, 70)),
    place=st.tuples(st.floats(-0.2, 0.2), st.floats(-0.2, 0.2)),
)
def test_points_go_where_the_pixels_go(size, target, place):
    """A soft white dot in a black photo: its centre of mass after `fit` is where `points` sends its centre."""
    height, width = size
    seen = fit(torch.zeros(3, *size), *target)[1].visible
    reach = min(seen[2] - seen[0], seen[3] - seen[1])
    assume(reach >= 14)  # a dot of less than a pixel has its centre of mass elsewhere
    x, y = (seen[0] + seen[2]) / 2 + place[0] * reach, (seen[1] + seen[3]) / 2 + place[1] * reach
    dot = np.exp(-((np.arange(height)[:, None] - y) ** 2 + (np.arange(width) - x) ** 2) / (2 * (reach / 12) ** 2))
    image = torch.from_numpy(dot * 2 - 1).float().expand(3, height, width)
    kept = image.clone()
    fitted, way = fit(image, *target)
    assert torch.equal(image, kept)
    assert fitted.shape == (3, *target)
    assert fitted.abs().max() <= 1
    mass = (fitted[0].double().numpy() + 1) / 2
    found = [(mass * np.arange(target[1])).sum(), (mass * np.arange(target[0])[:, None]).sum()] / mass.sum()
    np.testing.assert_allclose(found, way.points(torch.tensor([x, y], dtype=torch.float64)), atol=0.15)


def test_the_photo_keeps_its_shape_and_its_centre():
    fitted, way = fit(torch.linspace(-1, 1, 200).expand(3, 100, 200), 50, 50)
    assert (way.scale, way.left, way.top) == ((0.5, 0.5), 25, 0)
    torch.testing.assert_close(fitted[0, 25, 24:26].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert way.visible == (49.5, -0.5, 149.5, 99.5)
    image = torch.rand(3, 12, 14) * 2 - 1
    same, way = fit(image, 12, 14)
    assert torch.equal(same, image), "of the model's size: bit for bit"
    assert way.points(torch.tensor([[3.25, 7.5]])).tolist() == [[3.25, 7.5]]


@settings(max_examples=30, deadline=None)
@given(sizes=st.tuples(*[st.integers(1, 90)] * 4))
def test_the_visible_borders_are_the_pictures_borders(sizes):
    height, width, tall, wide = sizes
    way = fit(torch.zeros(3, height, width), tall, wide)[1]
    left, top, right, bottom = way.visible
    corners = way.points(torch.tensor([[left, top], [right, bottom]], dtype=torch.float64))
    expected = torch.tensor([[-0.5, -0.5], [wide - 0.5, tall - 0.5]], dtype=torch.float64)
    torch.testing.assert_close(corners, expected, atol=1e-9, rtol=0)
    assert left >= -0.5
    assert right <= width - 0.5 + 1e-9
    assert abs(way.scale[0] / way.scale[1] - 1) <= 0.5 / min(tall, wide) * 2


def test_a_mask_goes_with_its_photo_and_a_thread_is_refused():
    mask = torch.zeros(1, 100, 200)
    mask[:, 20:60, 70:110] = 1
    way = fit(torch.zeros(3, 100, 200), 50, 50)[1]
    expected = torch.zeros(1, 50, 50)
    expected[:, 10:30, 10:30] = 1
    assert torch.equal(way.mask(mask), expected)
    mask = torch.zeros(1, 100, 200)
    mask[:, :, :40] = 1
    with pytest.raises(ValueError, match=r"nothing of it is left.*x from 49.5 to 149.5"):
        way.mask(mask)
    with pytest.raises(ValueError, match="100000x10 px is too long for 512x512"):  # it would take gigabytes
        fit(torch.zeros(3, 10, 100_000), 512, 512)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([512, 576, 640, 768, 1024]), st.integers(300, 6000), st.floats(0.25, 4))
def test_svd_works_in_the_photos_shape_from_512_to_1024_px(side, height, aspect):
    width = round(height * aspect)
    rows, columns = model_size(height, width, area=side * side, multiple=64)
    assert 0.87 < rows * columns / side**2 < 1.13
    assert 0.87 < (columns / rows) / (width / height) < 1.15


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6000), st.integers(1, 6000), st.sampled_from([8, 16, 64]), st.integers(1, 8))
def test_the_model_works_in_the_photos_shape(height, width, multiple, size):
    area = (8 * multiple * size) ** 2
    rows, columns = model_size(height, width, area=area, multiple=multiple)
    assert rows % multiple == columns % multiple == 0
    assert min(rows, columns) >= multiple
    assert rows * columns <= 2 * area
    if max(height, width) < 2 * min(height, width):
        assert 0.7 < rows * columns / area < 1.4
        assert 0.8 < (columns / rows) / (width / height) < 1.25
