"""Reading and writing images without losing what they hold.

8 and 16 bit (told apart by the file's depth, never by its values), grey, alpha, palettes, EXIF orientation
and ICC profiles survive where the format can hold them; where it cannot, the log says what was given up.
Pillow does the work, except for 16-bit pixels, which it cuts to 8 in colour images: those go through OpenCV.
"""

from __future__ import annotations

import io
import logging
import os
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageOps, PngImagePlugin

from fastsr._files import atomic_write
from fastsr.errors import ImageError, InputError

__all__ = ["SUFFIXES", "Image", "image_size", "is_image_path", "read_image", "write_image"]

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
"""The file name endings that are read and written, in any case."""

_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
}
_DEEP = {"PNG", "TIFF"}  # hold 16 bit
_WITH_ALPHA = {"PNG", "WEBP", "TIFF"}
_WITH_GREY = {"PNG", "JPEG", "BMP", "TIFF"}
_WITH_ICC = {"PNG", "JPEG", "WEBP", "TIFF"}
_MAX_PIXELS = 2**30
_ORIENTATION = 274  # the EXIF tag
_TURNED = (5, 6, 7, 8)  # by a quarter
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_PNG_NOTES = {b"eXIf", b"iTXt", b"tEXt", b"zTXt"}  # chunks that may hold an orientation
_PILLOW_LIMIT = threading.Lock()

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Image:
    """An image in memory.

    Attributes:
        rgb: [H, W, 3], uint8 or uint16, red first; a grey image has three equal channels.
        alpha: [H, W] in the dtype of `rgb`, straight (not premultiplied), or None where opaque.
        grey: the image is written with one channel where the format can.
        icc: the ICC colour profile of the pixels, or None.

    Raises:
        InputError: an array has another shape or dtype.
    """

    rgb: NDArray[Any]
    alpha: NDArray[Any] | None = None
    grey: bool = False
    icc: bytes | None = None

    def __post_init__(self) -> None:
        rgb, alpha = self.rgb, self.alpha
        if rgb.dtype not in (np.uint8, np.uint16) or rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.size == 0:
            raise InputError(f"an image is uint8 or uint16 [H, W, 3], got {rgb.dtype} of shape {rgb.shape}")
        if alpha is not None and (alpha.dtype != rgb.dtype or alpha.shape != rgb.shape[:2]):
            raise InputError(
                f"alpha must be {rgb.dtype} of shape {rgb.shape[:2]} like its image, "
                f"got {alpha.dtype} of shape {alpha.shape}"
            )

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rgb.shape[0], self.rgb.shape[1]

    @property
    def peak(self) -> int:
        """The value of full intensity: 255 or 65535."""
        return int(np.iinfo(self.rgb.dtype).max)


def is_image_path(path: Path) -> bool:
    """Whether the name ends like an image that fastsr reads and writes."""
    return path.suffix.lower() in SUFFIXES


def image_size(file: str | os.PathLike[str] | io.BytesIO) -> tuple[int, int] | None:
    """Height and width of what `read_image` gives, without decoding; None where that does not tell."""
    try:
        with PIL.Image.open(file) as picture:
            width, height = picture.size
            # Pillow has turned the size of a TIFF already.
            turned = picture.format != "TIFF" and _exif(picture).get(_ORIENTATION, 1) in _TURNED
    except Exception:  # whatever is wrong with the file is told when it is read
        return None
    return (width, height) if turned else (height, width)


def _exif(picture: PIL.Image.Image) -> PIL.Image.Exif:
    """The EXIF data; of a PNG that has none before its pixels, without decoding these to look behind them."""
    if not isinstance(picture, PngImagePlugin.PngImageFile) or picture.fp is None or "exif" in picture.info:
        return picture.getexif()
    place = picture.fp.tell()
    picture.fp.seek(len(_PNG_MAGIC))
    kinds = set()
    while len(head := picture.fp.read(8)) == 8:
        kinds.add(head[4:] if b"IDAT" in kinds or head[4:] == b"IDAT" else b"")
        picture.fp.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)  # the data and its checksum
    picture.fp.seek(place)
    return picture.getexif() if kinds & _PNG_NOTES else PIL.Image.Image.getexif(picture)


def read_image(path: str | os.PathLike[str]) -> Image:
    """Reads a PNG, JPEG, WebP, BMP or TIFF file, recognised by its content.

    The first frame of an animation is taken; the EXIF orientation is applied; palettes are expanded; CMYK
    becomes RGB without colour management.

    Raises:
        ImageError: the file is missing, damaged, over one gigapixel, of another format, or of a sample type
            other than 1 to 8 or 16 bit unsigned (such as floating point TIFF).
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror or error}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns about metadata on stderr; what matters raises
        try:
            with _open(data) as picture:
                width, height = picture.size
                if width * height > _MAX_PIXELS:
                    raise ImageError(f"{path} has {width}x{height} pixels; at most {_MAX_PIXELS} are read, so split it")
                return _decode(picture, data, path)
        except ImageError:
            raise
        except PIL.UnidentifiedImageError as error:
            accepted = ", ".join(suffix[1:] for suffix in SUFFIXES)
            raise ImageError(
                f"{path} is damaged, or not an image that fastsr reads ({accepted}; unsigned 8 or 16 bit)"
            ) from error
        except MemoryError as error:
            raise ImageError(f"{path} does not fit in memory; split it first") from error
        except Exception as error:  # decoders raise nearly anything on damaged data
            raise ImageError(f"{path} is damaged and cannot be decoded: {_sentence(error)}") from error


def write_image(path: str | os.PathLike[str], image: Image, quality: int = 95) -> None:
    """Writes an image in the format of the path's ending, all of it or nothing.

    What the format cannot hold is given up with a warning in the log: alpha is flattened onto white (JPEG,
    BMP), 16 bit is rounded to 8 (all but PNG and TIFF), and a 16-bit file carries no ICC profile. WebP stores
    grey as RGB, as do 16-bit files that hold grey with alpha. `quality`, 1..100, counts for JPEG and WebP.

    Raises:
        ImageError: the ending is unknown, or the file cannot be encoded or written.
    """
    path = Path(path)
    kind = _FORMATS.get(path.suffix.lower())
    if kind is None:
        raise ImageError(f"{path} cannot be written: its name must end in one of {', '.join(SUFFIXES)}")
    image = _fit(image, kind, path)
    try:
        data = _encode_deep(image, kind) if image.peak > 255 else _encode(image, kind, quality)
        atomic_write(path, data)
    except Exception as error:  # encoders raise nearly anything on a picture they cannot hold
        raise ImageError(f"{path} cannot be written: {_sentence(error)}") from error


def _sentence(error: Exception) -> str:
    """The first line of an error, fit to end one of ours."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.strip().splitlines()[0].rstrip("")


def _open(data: bytes) -> PIL.Image.Image:
    # Pillow's size limit is a global of its module: it is lifted only while a file is being opened.
    with _PILLOW_LIMIT:
        limit = PIL.Image.MAX_IMAGE_PIXELS
        PIL.Image.MAX_IMAGE_PIXELS = None
        try:
            return PIL.Image.open(io.BytesIO(data), formats=sorted(set(_FORMATS.values())))
        finally:
            PIL.Image.MAX_IMAGE_PIXELS = limit


def _decode(picture: PIL.Image.Image, data: bytes, path: Path) -> Image:
    if getattr(picture, "n_frames", 1) > 1 and picture.format != "MPO":
        log.warning("%s holds several frames; the first is taken.", path)
    icc = picture.info.get("icc_profile")
    if _depth(picture, data, path) == 16:
        return _decode_deep(picture, data, path, icc)
    if picture.mode not in {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}:
        raise ImageError(f"{path} has pixels of type {picture.mode}; accepted are 1 to 8 or 16 bit grey and RGB")
    transparent = "A" in picture.mode or "transparency" in picture.info
    grey = picture.mode in {"1", "L", "LA"}
    picture = ImageOps.exif_transpose(picture)
    pixels = np.asarray(picture.convert("RGBA" if transparent else "RGB"))
    alpha = np.ascontiguousarray(pixels[..., 3]) if transparent else None
    return Image(np.ascontiguousarray(pixels[..., :3]), alpha, grey, _fitting_profile(icc, grey))


def _depth(picture: PIL.Image.Image, data: bytes, path: Path) -> int:
    """Bits per sample, 16 or 8 (for 1 to 8); refuses TIFF layouts that the decoders read wrongly."""
    if picture.format == "PNG":
        return 16 if data[24] == 16 else 8
    if picture.format != "TIFF":
        return 8
    tags: Any = picture.tag_v2  # type: ignore[attr-defined]
    bits, sample_format = set(tags.get(258) or (1,)), set(tags.get(339) or (1,))
    photometric, planar, extra = tags.get(262), tags.get(284, 1), tags.get(338) or ()
    if sample_format != {1} or max(bits) > 16:
        raise ImageError(
            f"{path} is a TIFF of floating point, signed or {max(bits)}-bit samples; "
            f"convert it to unsigned 8 or 16 bit first"
        )
    if max(bits) <= 8:
        return 8
    if bits != {16} or photometric not in (1, 2) or planar != 1 or 1 in extra:
        raise ImageError(
            f"{path} is a {max(bits)}-bit TIFF of an unusual layout; over 8 bit only interleaved 16-bit grey "
            f"(black is zero), RGB and RGB with straight alpha are read, so convert it, to PNG for example"
        )
    return 16


def _decode_deep(picture: PIL.Image.Image, data: bytes, path: Path, icc: bytes | None) -> Image:
    picture.load()  # OpenCV may return half of a truncated file; Pillow raises
    level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # it warns of its own TIFFs
    try:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    finally:
        cv2.utils.logging.setLogLevel(level)
    if pixels is None or pixels.dtype != np.uint16:
        raise ImageError(f"{path} cannot be decoded as a 16-bit image")
    if picture.format == "PNG":  # OpenCV turns a TIFF by itself
        pixels = _turn(pixels, picture.getexif().get(_ORIENTATION, 1))
    transparent_grey = picture.info.get("transparency") if pixels.ndim == 2 else None
    if pixels.ndim == 2:
        alpha = None
        if isinstance(transparent_grey, int):
            alpha = np.where(pixels == transparent_grey, 0, 65535).astype(np.uint16)
        return Image(np.stack([pixels] * 3, axis=2), alpha, True, _fitting_profile(icc, True))
    grey = picture.format == "PNG" and data[25] == 4  # the colour type: grey with alpha
    rgb = np.ascontiguousarray(pixels[..., 2::-1])
    alpha = np.ascontiguousarray(pixels[..., 3]) if pixels.shape[2] == 4 else None
    return Image(rgb, alpha, grey, _fitting_profile(icc, grey))


def _turn(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Applies one of the eight EXIF orientations to [H, W, ...]."""
    if orientation in _TURNED:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    return pixels


def _fitting_profile(icc: bytes | None, grey: bool) -> bytes | None:
    """The profile if its colour space is that of the pixels: a CMYK one is useless once they are RGB."""
    return icc if icc and icc[16:20] == (b"GRAY" if grey else b"RGB ") else None


def _fit(image: Image, kind: str, path: Path) -> Image:
    """The image as the format can hold it."""
    rgb, alpha, grey, icc = image.rgb, image.alpha, image.grey, image.icc
    if alpha is not None and kind not in _WITH_ALPHA:
        log.warning("%s cannot hold transparency: the image is flattened onto white.", path)
        opacity = alpha[..., None] / image.peak
        rgb = np.rint(rgb * opacity + image.peak * (1 - opacity)).astype(rgb.dtype)
        alpha = None
    if image.peak > 255 and kind not in _DEEP:
        log.warning("%s cannot hold 16 bit: the pixels are rounded to 8.", path)
        rgb, alpha = _to_8_bit(rgb), None if alpha is None else _to_8_bit(alpha)
    grey = grey and kind in _WITH_GREY
    icc = _fitting_profile(icc, grey) if kind in _WITH_ICC else None
    if icc and rgb.dtype == np.uint16:
        log.warning("%s is written without its ICC profile, which fastsr keeps for 8 bit only.", path)
        icc = None
    return Image(rgb, alpha, grey, icc)


def _to_8_bit(pixels: NDArray[np.uint16]) -> NDArray[np.uint8]:
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)  # 257 * 255 = 65535


def _encode(image: Image, kind: str, quality: int) -> bytes:
    channels = image.rgb[..., :1] if image.grey else image.rgb
    if image.alpha is not None:
        channels = np.dstack([channels, image.alpha])
    pixels = np.ascontiguousarray(channels[..., 0] if channels.shape[2] == 1 else channels)
    options: dict[str, Any] = {"quality": quality, "icc_profile": image.icc}
    if kind == "JPEG":
        options["subsampling"] = 0  # full-resolution colour: halving it would undo the network's work
    elif kind == "TIFF":
        options = {"compression": "tiff_lzw", "icc_profile": image.icc}  # quality would ask for JPEG in TIFF
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def _encode_deep(image: Image, kind: str) -> bytes:
    """PNG or TIFF with 16-bit samples."""
    if image.alpha is not None:
        pixels = np.dstack([image.rgb[..., ::-1], image.alpha])
    else:
        pixels = image.rgb[..., 0] if image.grey else image.rgb[..., ::-1]
    suffix = ".png" if kind == "PNG" else ".tif"
    done, data = cv2.imencode(suffix, np.ascontiguousarray(pixels))
    if not done:
        raise OSError(f"OpenCV cannot encode {pixels.shape} as {suffix}")
    return bytes(data.tobytes())
