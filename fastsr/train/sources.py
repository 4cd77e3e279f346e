"""Where images come from: folders, LMDBs in BasicSR's layout, and the bicubic reduction of either."""

from __future__ import annotations

import hashlib
import io
import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsr.errors import ImageError, InputError, MissingPackageError
from fastsr.imageio import SUFFIXES, Image, image_size, is_image_path, read_image, write_image
from fastsr.imresize import imresize, modcrop

__all__ = ["BicubicSource", "FolderSource", "LmdbSource", "Source", "open_source"]

Pixels = NDArray[np.uint8]
log = logging.getLogger(__name__)
_HEADER = 2**16  # bytes of a file in which its image's size stands


class Source(ABC):
    """Images by key. `where` tells the user about one of them."""

    keys: Sequence[str]

    @abstractmethod
    def read(self, key: str) -> Pixels:
        """The image as uint8 [H, W, 3]; ImageError if it cannot be read."""

    @abstractmethod
    def where(self, key: str) -> str: ...

    def size(self, key: str) -> tuple[int, int] | None:
        """Height and width in pixels without decoding, None where they are not known."""
        return None

    def close(self) -> None:  # noqa: B027
        """Lets go of what must not be open when a worker is forked; the next `read` opens it again."""


class FolderSource(Source):
    """The images of a folder and the folders below it; a key is the relative path without the ending."""

    def __init__(self, folder: Path) -> None:
        self.paths: dict[str, Path] = {}
        for path in sorted(folder.rglob("*")):
            if is_image_path(path) and path.is_file():
                first = self.paths.setdefault(path.relative_to(folder).with_suffix("").as_posix(), path)
                if first != path:
                    raise InputError(f"{first} and {path} differ only in their endings; leave one of them out")
        if not self.paths:
            raise InputError(f"{folder} holds no images; fastsr reads {', '.join(SUFFIXES)}")
        self.keys = list(self.paths)

    def read(self, key: str) -> Pixels:
        image = read_image(self.paths[key])
        if image.peak != 255:
            raise ImageError(f"{self.paths[key]} has 16 bit and training is defined on 8; convert it first")
        return np.ascontiguousarray(image.rgb)

    def size(self, key: str) -> tuple[int, int] | None:
        return image_size(self.paths[key])

    def where(self, key: str) -> str:
        return str(self.paths[key])


class LmdbSource(Source):
    """An LMDB as BasicSR writes it: encoded images by key, and `meta_info.txt` with "key.png (h,w,c) level" lines."""

    def __init__(self, folder: Path) -> None:
        try:
            import lmdb  # noqa: F401
        except ImportError as error:
            raise MissingPackageError(f"{folder} is an LMDB, which needs the package lmdb: pip install lmdb") from error
        self.folder = folder
        try:
            lines = (folder / "meta_info.txt").read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{folder} holds no readable meta_info.txt, which lists an LMDB's images") from error
        self.keys = [Path(line.split()[0]).with_suffix("").as_posix() for line in lines if line.strip()]
        if not self.keys:
            raise InputError(f"{folder}/meta_info.txt lists no images")
        self._environment: Any = None
        self._opening = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_opening"} | {"_environment": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ = {**state, "_opening": threading.Lock()}

    def close(self) -> None:
        if self._environment is not None:
            self._environment.close()
            self._environment = None

    def read(self, key: str) -> Pixels:
        import cv2

        pixels = cv2.imdecode(np.frombuffer(self._get(key), np.uint8), cv2.IMREAD_COLOR)
        if pixels is None:
            raise ImageError(f"{self.where(key)} is damaged and cannot be decoded")
        return np.ascontiguousarray(pixels[..., ::-1])

    def size(self, key: str) -> tuple[int, int] | None:
        try:
            return image_size(io.BytesIO(self._get(key, _HEADER)))
        except ImageError:  # told when it is read
            return None

    def _get(self, key: str, most: int | None = None) -> bytes:
        """The file of an image, or its first `most` bytes."""
        import lmdb

        try:
            with self._opening:
                if self._environment is None:
                    self._environment = lmdb.open(str(self.folder), readonly=True, lock=False, readahead=False)
            with self._environment.begin(buffers=True) as transaction:
                data = transaction.get(key.encode())
                if data is None:
                    raise ImageError(f"{self.where(key)} is listed in meta_info.txt and not in the LMDB")
                return bytes(data[:most])
        except lmdb.Error as error:
            raise ImageError(f"{self.where(key)} cannot be read: {error}") from error

    def where(self, key: str) -> str:
        return f"{self.folder}[{key}]"


class BicubicSource(Source):
    """The bicubic reduction of another source, made once and kept as PNG below `cache`.

    The file names carry the scale and a digest of the original's place and pixels, so that an original that changes
    gets a new reduction.
    """

    def __init__(self, originals: Source, scale: int, cache: Path) -> None:
        self.originals, self.scale, self.cache = originals, scale, cache
        self.keys = originals.keys

    def read(self, key: str) -> Pixels:
        return self.reduce(key, self.originals.read(key))

    def reduce(self, key: str, hr: Pixels) -> Pixels:
        """The reduction of an original that has been read."""
        hr = modcrop(hr, self.scale)
        digest = hashlib.sha256(repr(hr.shape).encode() + hr.tobytes()).hexdigest()[:16]
        path = self.cache / f"x{self.scale}" / f"{Path(key).name}-{digest}.png"
        if path.exists():
            try:
                return np.ascontiguousarray(read_image(path).rgb)
            except ImageError as error:
                log.warning("%s; it is made again.", error)
        lr: Pixels = imresize(hr, scale=Fraction(1, self.scale))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"the folder {path.parent} cannot be made: {error.strerror or error}") from error
        try:
            write_image(path, Image(lr))
        except ImageError as error:  # not the fault of an image, which could be skipped
            raise InputError(f"{error}; make room, or put data.lr_cache elsewhere") from error
        return lr

    def where(self, key: str) -> str:
        return f"the reduction of {self.originals.where(key)}"


def open_source(place: str) -> Source:
    """A folder of images or an LMDB (a folder that holds data.mdb).

    Raises:
        InputError: the folder is missing or holds no images.
    """
    folder = Path(place)
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that holds the training images, or an LMDB")
    return LmdbSource(folder) if (folder / "data.mdb").exists() else FolderSource(folder)
