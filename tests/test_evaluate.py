"""The scores of a folder follow the protocol, and reproduce published checkpoints where they are at hand."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from image_helpers import Nearest, picture

from fastsr.errors import ImageError, InputError
from fastsr.evaluate import EvalResult, ImageScore, evaluate
from fastsr.imageio import Image, write_image
from fastsr.imresize import imresize
from fastsr.metrics import psnr_y, ssim_y


@pytest.fixture
def hr(tmp_path):
    folder = tmp_path / "hr"
    folder.mkdir()
    write_image(folder / "b.png", Image(picture(45, 62)))
    write_image(folder / "a.bmp", Image(picture(50, 41, seed=1)))
    (folder / "readme.txt").write_text("not an image")
    return folder


@pytest.mark.parametrize("scale", [2, 3, 4])
@pytest.mark.parametrize("input_range", [1.0, 255.0])
def test_protocol(hr, scale, input_range):
    result = evaluate(Nearest(scale, input_range), hr, progress=False)
    assert [image.name for image in result.images] == ["a", "b"] and result.scale == scale
    for score, original in zip(result.images, (picture(50, 41, seed=1), picture(45, 62)), strict=True):
        height, width = original.shape[0] // scale * scale, original.shape[1] // scale * scale
        cropped = original[:height, :width]
        sr = imresize(cropped, scale=Fraction(1, scale)).repeat(scale, 0).repeat(scale, 1)
        inside = np.s_[scale:-scale, scale:-scale]
        assert score.psnr == psnr_y(sr[inside], cropped[inside])
        assert score.ssim == ssim_y(sr[inside], cropped[inside])
    assert result.psnr == pytest.approx(sum(image.psnr for image in result.images) / 2, rel=1e-15)
    assert result.ssim == pytest.approx(sum(image.ssim for image in result.images) / 2, rel=1e-15)


@pytest.mark.parametrize("name", ["{}.png", "{}x2.png", "{}.tif"])
def test_given_lr_images(hr, tmp_path, name):
    lr = tmp_path / "lr"
    lr.mkdir()
    for stem, original in (("b", picture(45, 62)), ("a", picture(50, 41, seed=1))):
        height, width = original.shape[0] // 2, original.shape[1] // 2
        plain = original[: 2 * height : 2, : 2 * width : 2]  # not the bicubic reduction
        write_image(lr / name.format(stem), Image(np.ascontiguousarray(plain)))
    result = evaluate(Nearest(), hr, lr_dir=lr, progress=False)
    original = picture(45, 62)[:44]
    sr = original[::2, ::2].repeat(2, 0).repeat(2, 1)
    assert result.images[1].psnr == psnr_y(sr, original, border=2)
    assert result.images[1].psnr != evaluate(Nearest(), hr, progress=False).images[1].psnr


def test_lr_image_missing(hr, tmp_path):
    lr = tmp_path / "lr"
    lr.mkdir()
    write_image(lr / "a.png", Image(picture(25, 20)))
    with pytest.raises(InputError, match=r"b\.png.*bx2"):
        evaluate(Nearest(), hr, lr_dir=lr, progress=False)


def test_lr_image_of_another_size(hr, tmp_path):
    lr = tmp_path / "lr"
    lr.mkdir()
    for stem in "ab":
        write_image(lr / f"{stem}.png", Image(picture(25, 21)))
    with pytest.raises(InputError, match=r"a\.bmp with .*a\.png.*21x25.*41x50 needs one of 20x25"):
        evaluate(Nearest(), hr, lr_dir=lr, progress=False)


def test_grey_originals_are_scored_as_rgb(tmp_path):
    class Colour(Nearest):
        """Wrong in one channel only, which the mean over channels of a grey image would dilute."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * torch.tensor([1.0, 0.5, 1.0]).view(3, 1, 1)

    original = np.repeat(picture(40, 40)[..., :1], 3, axis=2)
    write_image(tmp_path / "grey.png", Image(original, grey=True))
    lr = imresize(original, scale=0.5)
    sr = np.rint(lr * [1, 0.5, 1]).astype(np.uint8).repeat(2, 0).repeat(2, 1)
    result = evaluate(Colour(), tmp_path, progress=False)
    assert result.psnr == pytest.approx(psnr_y(sr, original, border=2), abs=0.02)  # halves may round either way


def test_alpha_is_ignored(tmp_path):
    write_image(tmp_path / "a.png", Image(picture(30, 30), picture(30, 30, seed=4)[..., 0]))
    with_alpha = evaluate(Nearest(), tmp_path, progress=False)
    write_image(tmp_path / "a.png", Image(picture(30, 30)))
    assert with_alpha == evaluate(Nearest(), tmp_path, progress=False)


def test_a_perfect_network_scores_infinity(tmp_path):
    write_image(tmp_path / "flat.png", Image(np.full((30, 30, 3), 90, np.uint8)))
    result = evaluate(Nearest(), tmp_path, progress=False)
    assert result.psnr == math.inf and result.ssim == pytest.approx(1)
    assert result.as_dict()["psnr"] is None


def test_as_dict():
    result = EvalResult(2, (ImageScore("a", 30.0, 0.5), ImageScore("b", 40.0, 1.0)))
    assert result.as_dict() == {
        "scale": 2,
        "psnr": 35.0,
        "ssim": 0.75,
        "images": [{"name": "a", "psnr": 30.0, "ssim": 0.5}, {"name": "b", "psnr": 40.0, "ssim": 1.0}],
    }


def test_unusable_folders_and_images(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        evaluate(Nearest(), tmp_path / "none", progress=False)
    with pytest.raises(InputError, match="holds no images"):
        evaluate(Nearest(), tmp_path, progress=False)
    write_image(tmp_path / "tiny.png", Image(picture(6, 40)))
    with pytest.raises(InputError, match=r"tiny\.png.*at least 4x4"):
        evaluate(Nearest(), tmp_path, progress=False)
    write_image(tmp_path / "tiny.png", Image(picture(12, 40)))
    with pytest.raises(InputError, match=r"tiny\.png.*11x11"):
        evaluate(Nearest(), tmp_path, progress=False)
    write_image(tmp_path / "tiny.png", Image(picture(20, 40, dtype=np.uint16)))
    with pytest.raises(ImageError, match=r"tiny\.png has 16 bit"):
        evaluate(Nearest(), tmp_path, progress=False)


def test_a_score_is_never_taken_from_tiles(hr):
    class Full(Nearest):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ImageError, match=r"a\.bmp.*memory"):
        evaluate(Full(), hr, progress=False)
