"""imresize against hand-computed values, a naive double loop, and properties of the operator."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsr.errors import InputError
from fastsr.imresize import imresize, modcrop


def keys(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def naive_line(line: list[float], length: int, scale: Fraction) -> list[float]:
    """One pixel at a time, straight from the definition; 0-based pixel centres at i + 0.5."""
    shrink = min(scale, Fraction(1))
    result = []
    for i in range(length):
        centre = (i + Fraction(1, 2)) / scale - Fraction(1, 2)
        reach = 2 / shrink
        total = weight_sum = 0.0
        for j in range(math.floor(centre - reach) - 1, math.ceil(centre + reach) + 2):
            weight = keys(float((j - centre) * shrink))
            k = j % (2 * len(line))
            total += weight * line[k if k < len(line) else 2 * len(line) - 1 - k]
            weight_sum += weight
        result.append(total / weight_sum)
    return result


def naive(image: np.ndarray, scale: Fraction) -> np.ndarray:
    height, width = (math.ceil(n * scale) for n in image.shape)
    columns = np.array([naive_line(list(row), width, scale) for row in image])
    return np.array([naive_line(list(row), height, scale) for row in columns.T]).T


SCALES = [Fraction(1, 2), Fraction(1, 3), Fraction(1, 4), Fraction(2), Fraction(3), Fraction(3, 2), Fraction(2, 7)]


@pytest.mark.parametrize("scale", SCALES, ids=str)
@pytest.mark.parametrize("shape", [(12, 12), (13, 17), (5, 31), (1, 9), (3, 2)], ids=str)
def test_matches_the_definition(scale, shape):
    image = np.random.default_rng(0).uniform(0, 255, shape)
    result = imresize(image, scale=scale)
    assert result.shape == naive(image, scale).shape
    np.testing.assert_allclose(result, naive(image, scale), rtol=0, atol=1e-10)


def test_halving_by_hand():
    # the kernel at 1/4, 3/4, 5/4 and 7/4 of its widened self is 111, 29, -9, -3 of 128
    weights = np.array([-3, -9, 29, 111, 111, 29, -9, -3]) / 256
    line = np.array([10.0, 20, 30, 50, 80, 130, 210, 40, 50, 60])
    result = imresize(np.tile(line, (10, 1)), scale=0.5)
    assert result.shape == (5, 5)
    np.testing.assert_allclose(result[:, 2], weights @ line[1:9], rtol=1e-14)
    mirrored = [30, 20, 10, 10, 20, 30, 50, 80]  # three pixels outside, the edge repeated
    np.testing.assert_allclose(result[:, 0], weights @ mirrored, rtol=1e-14)


def test_doubling_an_impulse_by_hand():
    line = np.array([0.0, 0, 128, 0, 0, 0])
    result = imresize(np.tile(line, (4, 1)), scale=2)
    np.testing.assert_allclose(result[3], [0, -3, -9, 29, 111, 111, 29, -9, -3, 0, 0, 0], atol=1e-13)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_integers_are_rounded_half_away_from_zero_and_saturated(dtype):
    peak = np.iinfo(dtype).max
    image = np.zeros((8, 8, 3), dtype)
    image[:, 4:] = peak
    result = imresize(image, scale=3)
    floats = imresize(image.astype(np.float64), scale=3)
    assert result.dtype == dtype
    assert floats.min() < 0 and floats.max() > peak  # the kernel overshoots at the edge
    assert result.min() == 0 and result.max() == peak
    np.testing.assert_array_equal(result, np.floor(floats.clip(0, peak) + 0.5))


def test_a_half_is_rounded_up():
    # the kernel reproduces straight lines: 8.5, 10.5, ..., which rounding to even would take down
    image = np.tile(np.arange(2, 22, dtype=np.uint8), (20, 1))
    np.testing.assert_array_equal(imresize(image, scale=0.5)[5, 3:7], [9, 11, 13, 15])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_stay_floats(dtype):
    image = np.random.default_rng(1).normal(0, 3, (9, 7)).astype(dtype)
    result = imresize(image, scale=Fraction(1, 3))
    assert result.dtype == dtype
    np.testing.assert_allclose(result, naive(image.astype(np.float64), Fraction(1, 3)), rtol=0, atol=1e-6)


def test_channels_are_independent():
    image = np.random.default_rng(2).integers(0, 256, (14, 10, 4), dtype=np.uint8)
    result = imresize(image, scale=1 / 2)
    assert result.shape == (7, 5, 4)
    for channel in range(4):
        np.testing.assert_array_equal(result[..., channel], imresize(image[..., channel], scale=0.5))


def test_a_sliced_image_is_the_same_as_its_copy():
    image = np.random.default_rng(3).integers(0, 256, (20, 30, 4), dtype=np.uint8)
    view = image[::2, 3:-4, 2::-1]
    np.testing.assert_array_equal(imresize(view, scale=0.5), imresize(view.copy(), scale=0.5))


@pytest.mark.parametrize("denominator", [2, 3, 4, 6, 7])
def test_a_float_scale_is_the_fraction_it_stands_for(denominator):
    image = np.random.default_rng(4).uniform(0, 1, (84, 42))
    exact = imresize(image, scale=Fraction(1, denominator))
    assert exact.shape == (84 // denominator, math.ceil(42 / denominator))
    np.testing.assert_array_equal(imresize(image, scale=1 / denominator), exact)


def test_size_sets_a_scale_per_dimension():
    image = np.random.default_rng(5).uniform(0, 1, (12, 9))
    assert imresize(image, size=(5, 18)).shape == (5, 18)
    np.testing.assert_array_equal(imresize(image, size=(4, 3)), imresize(image, scale=Fraction(1, 3)))


def test_unlike_dimensions_start_with_the_one_that_shrinks_most():
    # in float64 the order shows only in the last bits, so watch which axis is handled first
    image = np.random.default_rng(6).uniform(0, 1, (12, 12))
    rows_last = imresize(imresize(image, size=(12, 4)), size=(6, 4))
    np.testing.assert_array_equal(imresize(image, size=(6, 4)), rows_last)
    columns_last = imresize(imresize(image, size=(4, 12)), size=(4, 6))
    np.testing.assert_array_equal(imresize(image, size=(4, 6)), columns_last)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(1, 24),
    width=st.integers(1, 24),
    scale=st.fractions(Fraction(1, 6), Fraction(5), max_denominator=12),
)
def test_properties(height, width, scale):
    image = np.random.default_rng(height * 32 + width).uniform(0, 255, (height, width))
    result = imresize(image, scale=scale)
    assert result.shape == (math.ceil(height * scale), math.ceil(width * scale))
    constant = imresize(np.full((height, width), 77.25), scale=scale)
    np.testing.assert_allclose(constant, 77.25, rtol=1e-13)
    np.testing.assert_allclose(imresize(image.T, scale=scale), result.T, rtol=0, atol=1e-10)
    if (height * scale).denominator == (width * scale).denominator == 1:  # else the grid is not centred
        np.testing.assert_allclose(imresize(image[::-1, ::-1], scale=scale), result[::-1, ::-1], rtol=0, atol=1e-10)


def test_scale_one_changes_nothing():
    image = np.random.default_rng(7).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    np.testing.assert_array_equal(imresize(image, scale=1), image)


@pytest.mark.parametrize(
    ("image", "arguments"),
    [
        (np.zeros((4, 4)), {}),
        (np.zeros((4, 4)), {"scale": 2, "size": (8, 8)}),
        (np.zeros((4, 4)), {"scale": 0}),
        (np.zeros((4, 4)), {"scale": -1}),
        (np.zeros((4, 4)), {"scale": float("nan")}),
        (np.zeros((4, 4)), {"scale": float("inf")}),
        (np.zeros((4, 4)), {"scale": 1e-9}),
        (np.zeros((4, 4)), {"size": (0, 4)}),
        (np.zeros((4, 4)), {"size": (2.5, 4)}),
        (np.zeros((4, 4)), {"size": (2, 4, 3)}),
        (np.zeros(4), {"scale": 2}),
        (np.zeros((0, 4)), {"scale": 2}),
        (np.zeros((4, 4), np.int32), {"scale": 2}),
        (np.zeros((4, 4), bool), {"scale": 2}),
    ],
)
def test_wrong_arguments(image, arguments):
    with pytest.raises(InputError):
        imresize(image, **arguments)


def test_modcrop():
    image = np.arange(11 * 13 * 3).reshape(11, 13, 3)
    np.testing.assert_array_equal(modcrop(image, 4), image[:8, :12])
    np.testing.assert_array_equal(modcrop(image, 1), image)
    assert modcrop(image[..., 0], 3).shape == (9, 12)
    for scale in (0, -1, 2.0, True, 12):
        with pytest.raises(InputError):
            modcrop(image, scale)
