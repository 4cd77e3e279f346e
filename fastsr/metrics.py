"""PSNR and SSIM as super-resolution papers report them: on the luma of YCbCr, in float64.

Luma is BT.601 studio swing (16..235 for 8-bit RGB) and is not rounded. SSIM uses an 11x11 Gaussian window of
sigma 1.5 and averages over the pixels whose window lies wholly inside the image.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from fastsr.errors import InputError

__all__ = ["psnr", "psnr_y", "rgb_to_y", "ssim", "ssim_y"]

_PEAK = 255.0
_LUMA = np.array([65.481, 128.553, 24.966]) / 255
_WINDOW = 11
_SIGMA = 1.5


def rgb_to_y(image: NDArray[Any]) -> NDArray[np.float64]:
    """The BT.601 studio-swing luma of an RGB image.

    Args:
        image: [..., 3], red first, values 0..255 of any real dtype.

    Returns:
        [...] in float64, 16..235, not rounded.

    Raises:
        InputError: the last dimension is not 3.
    """
    if image.ndim < 1 or image.shape[-1] != 3:
        raise InputError(f"rgb_to_y takes an array of shape [..., 3], got {image.shape}")
    return image.astype(np.float64) @ _LUMA + 16.0


def psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio in dB of two arrays of one shape, values 0..255.

    Identical arrays give infinity.

    Raises:
        InputError: the shapes differ or the arrays are empty.
    """
    _check_pair(a, b)
    error = np.mean(np.square(a.astype(np.float64) - b.astype(np.float64)))
    return math.inf if error == 0 else float(10 * np.log10(_PEAK**2 / error))


def ssim(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Mean structural similarity of two single-channel images [H, W], values 0..255.

    K1 = 0.01, K2 = 0.03, L = 255; population statistics; the mean is over the [H - 10, W - 10] valid pixels.

    Raises:
        InputError: the shapes differ, are not [H, W], or are smaller than the 11x11 window.
    """
    _check_pair(a, b)
    if a.ndim != 2 or min(a.shape) < _WINDOW:
        raise InputError(f"SSIM takes [H, W] images of at least {_WINDOW}x{_WINDOW} pixels, got {a.shape}")
    x, y = a.astype(np.float64), b.astype(np.float64)
    mean_x, mean_y = _smooth(x), _smooth(y)
    var_x = _smooth(x * x) - mean_x**2
    var_y = _smooth(y * y) - mean_y**2
    covariance = _smooth(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return float(np.mean(luminance * structure))


def psnr_y(a: NDArray[np.uint8], b: NDArray[np.uint8], *, border: int = 0) -> float:
    """PSNR in dB between the luma of two uint8 RGB images [H, W, 3], without `border` pixels on each side.

    Raises:
        InputError: the arrays are not two uint8 RGB images of one size, or nothing is left inside the border.
    """
    return psnr(*_luma_pair(a, b, border))


def ssim_y(a: NDArray[np.uint8], b: NDArray[np.uint8], *, border: int = 0) -> float:
    """SSIM between the luma of two uint8 RGB images [H, W, 3], without `border` pixels on each side.

    Raises:
        InputError: as for `psnr_y`, or less than 11x11 pixels are left inside the border.
    """
    return ssim(*_luma_pair(a, b, border))


def _smooth(x: NDArray[np.float64]) -> NDArray[np.float64]:
    kernel = cv2.getGaussianKernel(_WINDOW, _SIGMA, cv2.CV_64F)
    margin = _WINDOW // 2
    smoothed: NDArray[Any] = cv2.sepFilter2D(x, cv2.CV_64F, kernel, kernel)
    return smoothed[margin:-margin, margin:-margin]


def _luma_pair(
    a: NDArray[np.uint8], b: NDArray[np.uint8], border: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    _check_pair(a, b)
    for image in (a, b):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise InputError(f"scores on Y take uint8 RGB [H, W, 3], got {image.dtype} of shape {image.shape}")
    height, width = a.shape[:2]
    if border < 0 or 2 * border >= min(height, width):
        raise InputError(
            f"a border of {border} pixels cannot be cropped from an image of {height}x{width}; "
            f"it must be at least 0 and leave at least one pixel"
        )
    inside = np.s_[border : height - border, border : width - border]
    return rgb_to_y(a[inside]), rgb_to_y(b[inside])


def _check_pair(a: NDArray[Any], b: NDArray[Any]) -> None:
    if a.shape != b.shape:
        raise InputError(f"the two images to compare must have one shape, got {a.shape} and {b.shape}")
    if a.size == 0:
        raise InputError(f"the two images to compare are empty, of shape {a.shape}")
