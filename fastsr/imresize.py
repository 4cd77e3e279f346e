"""MATLAB's bicubic `imresize`, the operator that makes the low-resolution side of every benchmark.

The kernel is Keys' cubic with a = -0.5; downscaling widens it by 1/scale (antialiasing), borders are mirrored
with the edge pixel repeated, and the weights of every output pixel are normalised to one. Positions are
computed in integers from the scale as a fraction, so 1/3 is a third and not 0.333.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastsr.errors import InputError

__all__ = ["imresize", "modcrop"]

_KERNEL_WIDTH = 4
_MAX_DENOMINATOR = 1_000_000  # recovers 1/3 from a float and keeps every position within int64


def imresize(
    image: NDArray[Any],
    *,
    scale: float | Fraction | None = None,
    size: tuple[int, int] | None = None,
) -> NDArray[Any]:
    """Resizes an image as MATLAB's `imresize(image, scale, "bicubic")` does.

    Args:
        image: [H, W] or [H, W, C]; uint8, uint16 or floating point.
        scale: the factor for both dimensions; the output is [ceil(H * scale), ceil(W * scale)].
        size: (rows, columns) of the output, instead of `scale`.

    Returns:
        The resized image in the dtype of `image`. All arithmetic is float64; integers are rounded once, at
        the end, with halves away from zero, and saturated. Floats are neither rounded nor clipped.

    Raises:
        InputError: the shape, the dtype, the scale or the size is not as above.
    """
    _check_image(image)
    rows, columns = _plan(image.shape[:2], scale, size)
    result = image.astype(np.float64)
    # MATLAB starts with the dimension that shrinks most; rows first where both are alike.
    for axis, (length, factor) in sorted(enumerate((rows, columns)), key=lambda item: item[1][1]):
        result = _resize_axis(result, axis, length, factor)
    if np.issubdtype(image.dtype, np.integer):
        result = np.floor(np.clip(result, 0, np.iinfo(image.dtype).max) + 0.5)
    return result.astype(image.dtype)


def modcrop(image: NDArray[Any], scale: int) -> NDArray[Any]:
    """Crops [H, W] or [H, W, C] at the bottom and the right to multiples of `scale`; returns a view.

    Raises:
        InputError: `scale` is not a positive integer, or the image is smaller than it.
    """
    if isinstance(scale, bool) or not isinstance(scale, (int, np.integer)) or scale < 1:
        raise InputError(f"modcrop needs a whole scale of at least 1, got {scale!r}")
    height, width = image.shape[:2]
    if height < scale or width < scale:
        raise InputError(f"an image of {height}x{width} pixels cannot be cropped to a multiple of {scale}")
    return image[: height - height % scale, : width - width % scale]


def _check_image(image: NDArray[Any]) -> None:
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise InputError(f"imresize takes a non-empty [H, W] or [H, W, C] array, got shape {image.shape}")
    if image.dtype not in (np.uint8, np.uint16) and not np.issubdtype(image.dtype, np.floating):
        raise InputError(f"imresize takes uint8, uint16 or floating point pixels, got {image.dtype}")


def _plan(
    shape: tuple[int, ...], scale: float | Fraction | None, size: tuple[int, int] | None
) -> list[tuple[int, Fraction]]:
    """The output length and the scale of each of the two dimensions."""
    if (scale is None) == (size is None):
        raise InputError("imresize takes either scale= or size=, and exactly one of them")
    if size is not None:
        if len(size) != 2 or any(length != int(length) or length < 1 for length in size):
            raise InputError(f"the size of imresize is two whole numbers of at least 1, got {size!r}")
        return [(int(out), Fraction(int(out), length)) for out, length in zip(size, shape, strict=True)]
    assert scale is not None
    if not 0 < scale < _MAX_DENOMINATOR:  # also refuses NaN
        raise InputError(f"the scale of imresize is a positive number below a million, got {scale!r}")
    factor = Fraction(scale).limit_denominator(_MAX_DENOMINATOR)
    if factor == 0:
        raise InputError(f"the scale of imresize is at least one millionth, got {scale!r}")
    return [(-int(-length * factor // 1), factor) for length in shape]


def _resize_axis(image: NDArray[np.float64], axis: int, length: int, scale: Fraction) -> NDArray[np.float64]:
    if scale == 1 and length == image.shape[axis]:
        return image
    weights, indices = _contributions(image.shape[axis], length, scale)
    tap_shape = (-1,) + (1,) * (image.ndim - axis - 1)
    shape = (*image.shape[:axis], length, *image.shape[axis + 1 :])
    result = np.zeros(shape)
    for tap in range(weights.shape[1]):
        result += weights[:, tap].reshape(tap_shape) * image.take(indices[:, tap], axis)
    return result


def _contributions(in_length: int, out_length: int, scale: Fraction) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Weights and source indices, both [out_length, taps].

    Output pixel x (from 1) lies at u = x / scale + (1 - 1 / scale) / 2 of the input. With scale = p / q that
    is (2xq + p - q) / 2p: numerators stay integers until the one division before the kernel.
    """
    p, q = scale.numerator, scale.denominator
    stretch = min(scale, Fraction(1))  # the kernel is evaluated at stretch * distance
    reach = _KERNEL_WIDTH / stretch  # the widened kernel, an exact fraction
    centre = 2 * q * np.arange(1, out_length + 1, dtype=np.int64) + (p - q)  # of 2p
    # floor(u - reach / 2); reach * p is whole: 4p when enlarging, 4q when shrinking
    left = (centre - int(reach * p)) // (2 * p)
    taps = -int(-reach // 1) + 2
    indices = left[:, None] + np.arange(taps, dtype=np.int64)
    distance = centre[:, None] - 2 * p * indices  # of 2p
    divisor = 2 * q if scale < 1 else 2 * p  # stretch / 2p
    weights = _cubic(distance / divisor)
    weights /= weights.sum(axis=1, keepdims=True)

    period = (indices - 1) % (2 * in_length)
    mirrored = np.where(period < in_length, period, 2 * in_length - 1 - period)
    used = weights.any(axis=0)
    return weights[:, used], mirrored[:, used]


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution kernel with a = -0.5, zero outside [-2, 2]."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
