"""Scores of a network on a folder of images, by the protocol of the super-resolution papers.

HR is cropped to a multiple of the scale; LR is its bicubic reduction, rounded to 8 bit; the network's output
is clamped and rounded; a border of `scale` pixels is cut off; PSNR and SSIM are taken on Y in float64.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fastsr.errors import ImageError, InputError
from fastsr.imageio import SUFFIXES, Image, image_size, is_image_path, read_image
from fastsr.imresize import imresize, modcrop
from fastsr.metrics import psnr_y, ssim_y
from fastsr.upscale import upscale_image

if TYPE_CHECKING:
    from fastsr.models import SuperResolutionNet

__all__ = ["EvalResult", "ImageScore", "evaluate", "find_pairs"]


@dataclass(frozen=True)
class ImageScore:
    """The scores of one image: its file name without the ending, PSNR in dB, SSIM."""

    name: str
    psnr: float
    ssim: float


@dataclass(frozen=True)
class EvalResult:
    """The scores of a folder.

    Attributes:
        scale: the factor of the network.
        images: the scores in the order of the names.
    """

    scale: int
    images: tuple[ImageScore, ...]

    @property
    def psnr(self) -> float:
        """The mean PSNR in dB."""
        return math.fsum(image.psnr for image in self.images) / len(self.images)

    @property
    def ssim(self) -> float:
        """The mean SSIM."""
        return math.fsum(image.ssim for image in self.images) / len(self.images)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, which has no infinity: the PSNR of equal images is None."""

        def finite(value: float) -> float | None:
            return value if math.isfinite(value) else None

        return {
            "scale": self.scale,
            "psnr": finite(self.psnr),
            "ssim": self.ssim,
            "images": [{"name": i.name, "psnr": finite(i.psnr), "ssim": i.ssim} for i in self.images],
        }


def evaluate(
    net: SuperResolutionNet,
    hr_dir: str | os.PathLike[str],
    *,
    lr_dir: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> EvalResult:
    """Scores a network on every image of a folder (not of the folders below it), on the network's device.

    Whole images only: an image that does not fit in memory is an error, because tiles would change its score.
    Grey images are repeated to RGB and alpha is ignored.

    Args:
        hr_dir: the 8-bit originals.
        lr_dir: the reduced images instead of `imresize`'s, named like the original or with "x2" (the scale)
            after the name, of exactly the cropped original's size divided by the scale.
        progress: show a bar on a terminal.

    Raises:
        InputError: a folder is missing or holds no images, an LR image is missing or of another size, or an
            image is too small.
        ImageError: an image cannot be read, has 16 bit, or does not fit in memory.
    """
    pairs = find_pairs(hr_dir, lr_dir, net.scale)
    scores = []
    for hr_path, lr_path in tqdm(pairs, unit="image", disable=None if progress else True):
        original = _read(hr_path)
        given = None if lr_path is None else _read(lr_path)
        try:
            psnr, ssim = _score(net, original, given)
        except (InputError, ImageError) as error:
            where = hr_path if lr_path is None else f"{hr_path} with {lr_path}"
            raise type(error)(f"{where}: {error}") from error
        scores.append(ImageScore(hr_path.stem, psnr, ssim))
    return EvalResult(net.scale, tuple(scores))


def find_pairs(
    hr_dir: str | os.PathLike[str], lr_dir: str | os.PathLike[str] | None, scale: int
) -> list[tuple[Path, Path | None]]:
    """The originals of a folder, each with its LR image if there is a folder of these; no image is decoded.

    Raises:
        InputError: a folder is missing or holds no images, or an LR image is missing or of another size.
    """
    originals = _images(Path(hr_dir))
    if lr_dir is None:
        return [(path, None) for path in originals]
    reduced = {path.stem: path for path in _images(Path(lr_dir))}
    pairs = [(path, _partner(path, reduced, scale)) for path in originals]
    for hr_path, lr_path in pairs:
        hr, lr = image_size(hr_path), image_size(lr_path)
        if hr is not None and lr is not None:
            try:
                _check_size(lr, hr, scale)
            except InputError as error:
                raise InputError(f"{hr_path} with {lr_path}: {error}") from error
    return list(pairs)


def _check_size(lr: tuple[int, ...], hr: tuple[int, ...], scale: int) -> None:
    height, width = hr[0] // scale, hr[1] // scale
    if tuple(lr) != (height, width):
        raise InputError(
            f"the LR image is {lr[1]}x{lr[0]} (width x height); at scale {scale} an original "
            f"of {hr[1]}x{hr[0]} needs one of {width}x{height}"
        )


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the folder that holds the images to score")
    images = sorted(path for path in folder.iterdir() if is_image_path(path) and path.is_file())
    if not images:
        raise InputError(f"{folder} holds no images; fastsr reads {', '.join(SUFFIXES)}")
    return images


def _partner(hr: Path, reduced: dict[str, Path], scale: int) -> Path:
    for name in (hr.stem, f"{hr.stem}x{scale}"):
        if name in reduced:
            return reduced[name]
    folder = next(iter(reduced.values())).parent
    raise InputError(f"{folder} holds no LR image for {hr.name}; it must be named {hr.stem} or {hr.stem}x{scale}")


def _read(path: Path) -> NDArray[np.uint8]:
    image = read_image(path)
    if image.peak != 255:
        raise ImageError(f"{path} has 16 bit and scores are defined on 8; convert it first")
    return image.rgb


def _score(
    net: SuperResolutionNet, original: NDArray[np.uint8], given: NDArray[np.uint8] | None
) -> tuple[float, float]:
    """PSNR and SSIM of the network on one image, from its LR image or from the bicubic reduction."""
    hr = modcrop(original, net.scale)
    lr = imresize(hr, scale=Fraction(1, net.scale)) if given is None else given
    _check_size(lr.shape[:2], original.shape[:2], net.scale)
    sr = upscale_image(net, Image(lr), retry=False).rgb
    return psnr_y(sr, hr, border=net.scale), ssim_y(sr, hr, border=net.scale)
