"""Images survive reading and writing in every depth, mode and orientation; failures leave nothing behind."""

from __future__ import annotations

import io
import logging
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
from image_helpers import picture
from PIL import ImageCms

from fastsr import imageio
from fastsr._files import atomic_write
from fastsr.errors import ImageError, InputError
from fastsr.imageio import Image, image_size, read_image, write_image

LOSSLESS = ("png", "bmp", "tif", "tiff")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def png_bytes(pixels: np.ndarray, colour_type: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A 16-bit PNG by the letter of the specification, for the kinds that no library at hand writes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in body)


def grey_image(height: int, width: int, dtype: type = np.uint8) -> Image:
    return Image(np.repeat(picture(height, width, dtype=dtype)[..., :1], 3, axis=2), grey=True)


def alpha_of(height: int, width: int, dtype: type = np.uint8) -> np.ndarray:
    return picture(height, width, dtype=dtype, seed=5)[..., 1]


def assert_same(a: Image, b: Image) -> None:
    assert a.rgb.dtype == b.rgb.dtype
    np.testing.assert_array_equal(a.rgb, b.rgb)
    assert (a.alpha is None) == (b.alpha is None)
    if a.alpha is not None:
        np.testing.assert_array_equal(a.alpha, b.alpha)
    assert a.grey == b.grey


@pytest.mark.parametrize("ext", LOSSLESS)
def test_8_bit_colour_and_grey_round_trip(tmp_path, ext):
    for image in (Image(picture(7, 11)), grey_image(9, 5)):
        write_image(tmp_path / f"a.{ext}", image)
        assert_same(read_image(tmp_path / f"a.{ext}"), image)


@pytest.mark.parametrize("ext", ["png", "tif"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_alpha_round_trip(tmp_path, ext, dtype):
    image = Image(picture(6, 9, dtype=dtype), alpha_of(6, 9, dtype))
    write_image(tmp_path / f"a.{ext}", image)
    assert_same(read_image(tmp_path / f"a.{ext}"), image)


@pytest.mark.parametrize("ext", ["png", "tif"])
def test_grey_with_alpha_round_trip(tmp_path, ext):
    image = Image(grey_image(6, 9).rgb, alpha_of(6, 9), grey=True)
    write_image(tmp_path / f"a.{ext}", image)
    assert_same(read_image(tmp_path / f"a.{ext}"), image)


@pytest.mark.parametrize("ext", ["png", "tif", "tiff"])
def test_16_bit_round_trip(tmp_path, ext):
    for image in (Image(picture(7, 11, dtype=np.uint16)), grey_image(9, 5, np.uint16)):
        write_image(tmp_path / f"a.{ext}", image)
        assert_same(read_image(tmp_path / f"a.{ext}"), image)


def test_opencv_keeps_silent_and_its_log_level(tmp_path, capfd):
    before = cv2.utils.logging.getLogLevel()
    write_image(tmp_path / "a.tif", Image(picture(6, 9, dtype=np.uint16), alpha_of(6, 9, np.uint16)))
    read_image(tmp_path / "a.tif")
    assert capfd.readouterr().err == ""
    assert cv2.utils.logging.getLogLevel() == before


@pytest.mark.parametrize("ext", ["png", "tif"])
def test_depth_is_the_files_and_not_the_values(tmp_path, ext):
    dark = Image(picture(6, 6).astype(np.uint16))  # 0..255 of 65535
    write_image(tmp_path / f"a.{ext}", dark)
    assert_same(read_image(tmp_path / f"a.{ext}"), dark)


def test_16_bit_grey_with_alpha(tmp_path):
    pixels = picture(6, 9, dtype=np.uint16)
    (tmp_path / "a.png").write_bytes(png_bytes(pixels[..., :2], 4))
    image = read_image(tmp_path / "a.png")
    assert_same(image, Image(np.repeat(pixels[..., :1], 3, axis=2), pixels[..., 1].copy(), grey=True))
    write_image(tmp_path / "b.png", image)  # no library writes this kind: it is stored as colour
    again = read_image(tmp_path / "b.png")
    np.testing.assert_array_equal(again.rgb, image.rgb)
    np.testing.assert_array_equal(again.alpha, image.alpha)


def test_16_bit_transparent_colour(tmp_path):
    pixels = picture(6, 9, dtype=np.uint16)
    key = tuple(int(v) for v in pixels[2, 3])
    (tmp_path / "rgb.png").write_bytes(png_bytes(pixels, 2, (b"tRNS", struct.pack(">HHH", *key))))
    (tmp_path / "grey.png").write_bytes(png_bytes(pixels[..., 0], 0, (b"tRNS", struct.pack(">H", key[0]))))
    for name, hidden in (("rgb", (pixels == pixels[2, 3]).all(axis=2)), ("grey", pixels[..., 0] == key[0])):
        image = read_image(tmp_path / f"{name}.png")
        assert image.grey == (name == "grey")
        np.testing.assert_array_equal(image.alpha, np.where(hidden, 0, 65535))


@pytest.mark.parametrize(("ext", "limit"), [("jpg", 3), ("jpeg", 3), ("webp", 6)])
def test_lossy_formats_come_close(tmp_path, ext, limit):
    rows, columns = np.mgrid[0:32, 0:48]
    image = Image(np.stack([rows * 5, columns * 4, rows + columns], axis=2).astype(np.uint8))
    write_image(tmp_path / f"a.{ext}", image)
    result = read_image(tmp_path / f"a.{ext}")
    assert np.abs(result.rgb.astype(int) - image.rgb).mean() < limit
    write_image(tmp_path / f"low.{ext}", image, quality=5)
    assert (tmp_path / f"low.{ext}").stat().st_size < (tmp_path / f"a.{ext}").stat().st_size


def test_grey_jpeg_stays_grey(tmp_path):
    write_image(tmp_path / "a.jpg", grey_image(16, 16))
    with PIL.Image.open(tmp_path / "a.jpg") as picture_file:
        assert picture_file.mode == "L"
    assert read_image(tmp_path / "a.jpg").grey


def test_webp_keeps_alpha(tmp_path):
    image = Image(picture(16, 16), alpha_of(16, 16))
    write_image(tmp_path / "a.webp", image)
    np.testing.assert_array_equal(read_image(tmp_path / "a.webp").alpha, image.alpha)  # lossless in WebP


@pytest.mark.parametrize("ext", ["jpg", "bmp"])
def test_alpha_is_flattened_onto_white_where_there_is_none(tmp_path, ext, caplog):
    alpha = np.zeros((16, 32), np.uint8)
    alpha[:, 16:] = 255
    with caplog.at_level(logging.WARNING, "fastsr"):
        write_image(tmp_path / f"a.{ext}", Image(np.full((16, 32, 3), 40, np.uint8), alpha))
    assert "transparency" in caplog.text
    result = read_image(tmp_path / f"a.{ext}")
    assert result.alpha is None
    assert result.rgb[:, :8].min() > 250 and abs(result.rgb[:, 24:].mean() - 40) < 2


def test_half_transparent_pixels_are_mixed_with_white(tmp_path):
    write_image(tmp_path / "a.bmp", Image(np.full((4, 4, 3), 100, np.uint8), np.full((4, 4), 51, np.uint8)))
    assert (read_image(tmp_path / "a.bmp").rgb == 224).all()  # 0.2 * 100 + 0.8 * 255


def test_16_bit_is_rounded_for_8_bit_formats(tmp_path, caplog):
    values = np.array([0, 128, 129, 385, 386, 32768, 65406, 65407, 65535], np.uint16)
    image = Image(np.tile(values[None, :, None], (2, 1, 3)))
    with caplog.at_level(logging.WARNING, "fastsr"):
        write_image(tmp_path / "a.bmp", image)
    assert "16 bit" in caplog.text
    np.testing.assert_array_equal(read_image(tmp_path / "a.bmp").rgb[0, :, 0], np.rint(values / 257))


@pytest.mark.parametrize(("depth", "colour_type"), [(np.uint8, 2), (np.uint16, 2), (np.uint16, 0)])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_in_png(tmp_path, orientation, depth, colour_type):
    pixels = picture(4, 6, dtype=depth)
    exif = PIL.Image.Exif()
    exif[274] = orientation
    if depth == np.uint8:
        PIL.Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    else:
        stored = pixels if colour_type == 2 else pixels[..., 0]
        chunk = (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
        (tmp_path / "a.png").write_bytes(png_bytes(stored, colour_type, chunk))
    shown = upright(pixels, orientation)
    if colour_type == 0:
        shown = np.repeat(shown[..., :1], 3, axis=2)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png").rgb, shown)
    assert image_size(tmp_path / "a.png") == shown.shape[:2]


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_in_tiff(tmp_path, orientation, depth):
    tifffile = pytest.importorskip("tifffile")  # comes with scikit-image
    pixels = picture(4, 6, dtype=depth)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", extratags=[(274, 3, 1, orientation, True)])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").rgb, upright(pixels, orientation))
    assert image_size(tmp_path / "a.tif") == upright(pixels, orientation).shape[:2]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_in_jpeg(tmp_path, orientation):
    pixels = np.full((16, 32, 3), 20, np.uint8)
    pixels[:8, :16] = 240  # one bright corner
    exif = PIL.Image.Exif()
    exif[274] = orientation
    PIL.Image.fromarray(pixels).save(tmp_path / "a.jpg", quality=100, exif=exif)
    shown = upright(pixels, orientation)
    result = read_image(tmp_path / "a.jpg").rgb
    assert result.shape == shown.shape
    assert np.abs(result.astype(int) - shown).max() < 30


def test_the_size_of_a_png_needs_no_decoding(tmp_path, monkeypatch):
    """Unless something that may turn it stands behind the pixels."""
    write_image(tmp_path / "a.png", Image(picture(4, 6)))
    data = (tmp_path / "a.png").read_bytes()
    end = data.rindex(b"IEND") - 4
    exif = PIL.Image.Exif()
    exif[274] = 6
    body = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(body)) + b"eXIf" + body + struct.pack(">I", zlib.crc32(b"eXIf" + body))
    (tmp_path / "turned.png").write_bytes(data[:end] + chunk + data[end:])
    assert image_size(tmp_path / "turned.png") == read_image(tmp_path / "turned.png").size == (6, 4)
    monkeypatch.setattr(PIL.PngImagePlugin.PngImageFile, "load", lambda _: pytest.fail("it was decoded"))
    assert image_size(tmp_path / "a.png") == (4, 6)
    assert image_size(io.BytesIO(data[: end - 20])) == (4, 6)


def upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """By the EXIF specification: where the stored row 0 and column 0 are in the scene."""
    return {
        1: lambda a: a,  # top, left
        2: np.fliplr,  # top, right
        3: lambda a: np.rot90(a, 2),  # bottom, right
        4: np.flipud,  # bottom, left
        5: lambda a: np.swapaxes(a, 0, 1),  # left, top
        6: lambda a: np.rot90(a, -1),  # right, top: turn clockwise
        7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1),  # right, bottom
        8: lambda a: np.rot90(a, 1),  # left, bottom: turn counter-clockwise
    }[orientation](pixels)


def test_palette_is_expanded_with_its_transparency(tmp_path):
    palette = PIL.Image.fromarray(np.array([[0, 1, 2], [2, 1, 0]], np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    palette.save(tmp_path / "opaque.png")
    palette.save(tmp_path / "clear.png", transparency=1)
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    opaque, clear = read_image(tmp_path / "opaque.png"), read_image(tmp_path / "clear.png")
    np.testing.assert_array_equal(opaque.rgb, colours[[[0, 1, 2], [2, 1, 0]]])
    assert opaque.alpha is None and not opaque.grey
    np.testing.assert_array_equal(clear.alpha, [[255, 0, 255], [255, 0, 255]])


def test_1_bit_grey_and_its_transparent_value(tmp_path):
    bits = np.random.default_rng(0).integers(0, 2, (9, 10)).astype(bool)
    PIL.Image.fromarray(bits).save(tmp_path / "a.png")
    image = read_image(tmp_path / "a.png")
    assert image.grey and image.rgb.dtype == np.uint8
    np.testing.assert_array_equal(image.rgb, np.repeat(bits[..., None] * np.uint8(255), 3, axis=2))
    PIL.Image.fromarray(picture(5, 5)[..., 0]).save(tmp_path / "l.png", transparency=int(picture(5, 5)[1, 1, 0]))
    image = read_image(tmp_path / "l.png")
    assert image.grey
    np.testing.assert_array_equal(image.alpha == 0, picture(5, 5)[..., 0] == picture(5, 5)[1, 1, 0])


def test_cmyk_becomes_rgb_and_drops_a_profile_that_no_longer_fits(tmp_path):
    cmyk = np.zeros((16, 16, 4), np.uint8)
    cmyk[..., 0] = 255  # cyan
    cmyk_profile = bytearray(SRGB)
    cmyk_profile[16:20] = b"CMYK"
    PIL.Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.jpg", quality=95, icc_profile=bytes(cmyk_profile))
    image = read_image(tmp_path / "a.jpg")
    assert np.abs(image.rgb.astype(int) - [0, 255, 255]).max() < 10
    assert image.icc is None


@pytest.mark.parametrize("ext", ["png", "jpg", "webp", "tif"])
def test_icc_profile_is_kept(tmp_path, ext):
    write_image(tmp_path / f"a.{ext}", Image(picture(16, 16), icc=SRGB))
    assert read_image(tmp_path / f"a.{ext}").icc == SRGB


def test_icc_profile_that_cannot_be_kept(tmp_path, caplog):
    write_image(tmp_path / "grey.png", Image(grey_image(8, 8).rgb, grey=True, icc=SRGB))  # a profile for RGB
    assert read_image(tmp_path / "grey.png").icc is None
    assert not caplog.text
    with caplog.at_level(logging.WARNING, "fastsr"):
        write_image(tmp_path / "deep.png", Image(picture(8, 8, dtype=np.uint16), icc=SRGB))
    assert "ICC" in caplog.text


def test_the_content_counts_and_not_the_name(tmp_path):
    write_image(tmp_path / "a.png", Image(picture(8, 8)))
    (tmp_path / "a.png").rename(tmp_path / "a.jpg")
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg").rgb, picture(8, 8))


def test_first_frame_of_an_animation(tmp_path, caplog):
    frames = [PIL.Image.fromarray(picture(8, 8, seed=seed)) for seed in (1, 2)]
    frames[0].save(tmp_path / "a.png", save_all=True, append_images=frames[1:])
    with caplog.at_level(logging.WARNING, "fastsr"):
        image = read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(image.rgb, picture(8, 8, seed=1))
    assert "frames" in caplog.text


@pytest.mark.parametrize(
    ("ext", "dtype"),
    [*((ext, np.uint8) for ext in ("png", "jpg", "webp", "bmp", "tif")), ("png", np.uint16), ("tif", np.uint16)],
)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.97])
def test_truncated_files(tmp_path, ext, dtype, share):
    noise = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (40, 60, 3), dtype)
    whole = tmp_path / f"whole.{ext}"
    write_image(whole, Image(noise))
    data = whole.read_bytes()
    path = tmp_path / f"cut.{ext}"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ImageError, match=r"cut\.") as caught:
        read_image(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_images(tmp_path):
    for name, data in (("empty.png", b""), ("text.jpg", b"hello, world\n" * 50), ("zeros.tif", bytes(4000))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError, match=name):
            read_image(tmp_path / name)
    for missing in (tmp_path / "missing.png", tmp_path):
        with pytest.raises(ImageError, match="cannot be read"):
            read_image(missing)
    gif = io.BytesIO()
    PIL.Image.fromarray(picture(8, 8)).save(gif, "GIF")
    (tmp_path / "a.gif").write_bytes(gif.getvalue())
    with pytest.raises(ImageError, match="png, jpg"):
        read_image(tmp_path / "a.gif")


@pytest.mark.parametrize("kind", ["float", "signed", "int32", "planar", "white is zero"])
def test_tiffs_that_would_be_read_wrongly_are_refused(tmp_path, kind):
    tifffile = pytest.importorskip("tifffile")  # comes with scikit-image
    pixels = picture(6, 8, dtype=np.uint16)
    stored, options = {
        "float": (pixels[..., 0].astype(np.float32), {}),
        "signed": (pixels[..., 0].astype(np.int16), {}),
        "int32": (pixels[..., 0].astype(np.uint32), {}),
        "planar": (np.moveaxis(pixels, 2, 0).copy(), {"photometric": "rgb", "planarconfig": "separate"}),
        "white is zero": (pixels[..., 0], {"photometric": "miniswhite"}),
    }[kind]
    tifffile.imwrite(tmp_path / "a.tif", stored, **options)
    with pytest.raises(ImageError, match="convert it"):
        read_image(tmp_path / "a.tif")


def test_colour_float_tiff_is_refused(tmp_path):
    assert cv2.imwrite(str(tmp_path / "a.tif"), picture(6, 8).astype(np.float32))
    with pytest.raises(ImageError, match=r"a\.tif"):
        read_image(tmp_path / "a.tif")


def test_large_images_are_read_and_absurd_ones_refused(tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", Image(picture(20, 20)))
    limit = 50
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", limit)  # 400 pixels would now be a decompression bomb
    assert read_image(tmp_path / "a.png").size == (20, 20)
    assert limit == PIL.Image.MAX_IMAGE_PIXELS
    monkeypatch.setattr(imageio, "_MAX_PIXELS", 399)
    with pytest.raises(ImageError, match="20x20"):
        read_image(tmp_path / "a.png")


def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    data = bytearray(png_bytes(picture(4, 4, dtype=np.uint16), 2))
    data[16:24] = struct.pack(">II", 100_000, 100_000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    (tmp_path / "bomb.png").write_bytes(bytes(data))
    with pytest.raises(ImageError, match="100000x100000"):
        read_image(tmp_path / "bomb.png")


def test_unknown_output_format(tmp_path):
    for name in ("a.gif", "a", "a.png.txt"):
        with pytest.raises(ImageError, match=r"\.png"):
            write_image(tmp_path / name, Image(picture(4, 4)))
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_image(path, Image(picture(4, 4)))
    before = path.read_bytes()

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ImageError, match="No space left"):
        write_image(path, Image(picture(9, 9)))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        atomic_write(tmp_path / "a.json", b"{}")
    assert not list(tmp_path.iterdir())


def test_write_into_a_missing_folder(tmp_path):
    with pytest.raises(ImageError, match="No such file"):
        write_image(tmp_path / "none" / "a.png", Image(picture(4, 4)))


def test_a_picture_that_the_format_cannot_hold(tmp_path):
    with pytest.raises(ImageError, match="cannot be written"):
        write_image(tmp_path / "a.webp", Image(np.zeros((1, 20_000, 3), np.uint8)))  # WebP ends at 16383
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arrays",
    [
        (picture(4, 4)[..., 0],),
        (picture(4, 4).astype(np.float32),),
        (np.zeros((0, 4, 3), np.uint8),),
        (picture(4, 4), np.zeros((4, 5), np.uint8)),
        (picture(4, 4), np.zeros((4, 4), np.uint16)),
    ],
)
def test_image_checks_its_arrays(arrays):
    with pytest.raises(InputError):
        Image(*arrays)
