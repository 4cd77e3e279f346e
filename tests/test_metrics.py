"""PSNR, SSIM and luma against closed forms and scikit-image."""

from __future__ import annotations

import math

import numpy as np
import pytest
from image_helpers import picture

from fastsr.errors import InputError
from fastsr.metrics import psnr, psnr_y, rgb_to_y, ssim, ssim_y


def noisy(image: np.ndarray, sigma: float) -> np.ndarray:
    noise = np.random.default_rng(9).normal(0, sigma, image.shape)
    return np.rint(image + noise).clip(0, 255).astype(np.uint8)


def test_luma_of_known_colours():
    colours = np.array([[0, 0, 0], [255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    expected = [16, 16 + 65.481 + 128.553 + 24.966, 16 + 65.481, 16 + 128.553, 16 + 24.966]
    np.testing.assert_allclose(rgb_to_y(colours), expected, rtol=0, atol=1e-12)


def test_luma_matches_scikit_image():
    rgb2ycbcr = pytest.importorskip("skimage.color").rgb2ycbcr
    image = picture(20, 30)
    result = rgb_to_y(image)
    assert result.dtype == np.float64 and result.shape == (20, 30)
    np.testing.assert_allclose(result, rgb2ycbcr(image)[..., 0], rtol=0, atol=1e-10)
    assert np.abs(result - np.rint(result)).max() > 0.1  # not rounded


def test_psnr_of_a_known_error():
    a = np.full((6, 7), 100.0)
    assert psnr(a, a + 5) == pytest.approx(10 * math.log10(255**2 / 25), rel=1e-14)
    half = a.copy()
    half[:3] += 4
    assert psnr(half, a) == pytest.approx(10 * math.log10(255**2 / 8), rel=1e-14)


def test_psnr_does_not_wrap_around():
    a, b = np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8)
    assert psnr(a, b) == psnr(b, a) == 0


def test_identical_images():
    image = picture(16, 16)
    assert psnr(image, image) == math.inf
    assert psnr_y(image, image) == math.inf
    assert ssim_y(image, image) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("shape", [(11, 11), (12, 40), (64, 33)])
@pytest.mark.parametrize("sigma", [2, 40])
def test_matches_scikit_image(shape, sigma):
    peers = pytest.importorskip("skimage.metrics")
    a = picture(*shape)
    b = noisy(a, sigma)
    y_a, y_b = rgb_to_y(a), rgb_to_y(b)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    _, full = peers.structural_similarity(y_a, y_b, full=True, **settings)
    expected = full[5:-5, 5:-5].mean()  # the pixels whose 11x11 window lies inside
    assert ssim(y_a, y_b) == pytest.approx(expected, abs=1e-9)
    assert ssim_y(a, b) == ssim(y_a, y_b)
    assert psnr_y(a, b) == pytest.approx(peers.peak_signal_noise_ratio(y_a, y_b, data_range=255), abs=1e-10)


def test_border_is_cropped_on_all_sides():
    a = picture(30, 24)
    b = noisy(a, 8)
    c = b.copy()
    c[:3] = c[-3:] = 0
    c[:, :3] = c[:, -3:] = 255
    for score in (psnr_y, ssim_y):
        assert score(a, c, border=3) == score(a[3:-3, 3:-3], b[3:-3, 3:-3])
        assert score(a, c, border=2) < score(a, b, border=2)


def test_order_of_the_pair_does_not_matter():
    a = picture(20, 20)
    b = noisy(a, 12)
    assert psnr_y(a, b) == psnr_y(b, a)
    assert ssim_y(a, b) == pytest.approx(ssim_y(b, a), abs=1e-14)


@pytest.mark.parametrize(
    "call",
    [
        lambda: psnr(np.zeros((4, 4)), np.zeros((4, 5))),
        lambda: psnr(np.zeros((0, 4)), np.zeros((0, 4))),
        lambda: ssim(np.zeros((10, 20)), np.zeros((10, 20))),
        lambda: ssim(np.zeros((20, 20, 3)), np.zeros((20, 20, 3))),
        lambda: psnr_y(picture(8, 8), picture(8, 9)),
        lambda: psnr_y(picture(8, 8)[..., 0], picture(8, 8)[..., 0]),
        lambda: psnr_y(picture(8, 8) / 255, picture(8, 8) / 255),
        lambda: psnr_y(picture(8, 8, dtype=np.uint16), picture(8, 8, dtype=np.uint16)),
        lambda: psnr_y(picture(8, 8), picture(8, 8), border=4),
        lambda: psnr_y(picture(8, 8), picture(8, 8), border=-1),
        lambda: ssim_y(picture(16, 16), picture(16, 16), border=3),
        lambda: rgb_to_y(np.zeros((4, 4))),
    ],
)
def test_wrong_arguments(call):
    with pytest.raises(InputError):
        call()
