"""The demonstration writes two pictures and says honestly what they show."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest
import torch
from image_helpers import Nearest, picture

import fastsr
from fastsr import demo
from fastsr.errors import FastsrError, ImageError
from fastsr.imageio import Image, read_image
from fastsr.upscale import upscale_image


@pytest.fixture
def small(monkeypatch):
    """A small photograph: the pipeline at a fraction of its time."""
    monkeypatch.setattr(demo, "_photograph", lambda: picture(151, 213))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_without_an_argument_it_takes_the_weights_that_ship(small, tmp_path, capsys):
    demo.run_demo(tmp_path / "new" / "folder")
    out = capsys.readouterr().out
    assert "mlrn x2 with the weights that ship" in out and "random" not in out
    assert out.count("dB") == 2 and "wrote" in out
    result = read_image(tmp_path / "new" / "folder" / "chelsea_x2.png")
    net = fastsr.create_model("mlrn", scale=2, pretrained=True)
    np.testing.assert_array_equal(result.rgb, upscale_image(net, Image(picture(151, 213))).rgb)
    sheet = read_image(tmp_path / "new" / "folder" / "chelsea_x2_comparison.png").rgb
    assert (sheet[0] == demo._PAPER).all() and (sheet[-1] == demo._PAPER).all()


def test_the_weights_that_ship_beat_bicubic_on_the_cat(tmp_path, capsys):
    pytest.importorskip("skimage")
    demo.run_demo(tmp_path)
    bicubic, network = (float(value) for value in re.findall(r"([\d.]+) dB", capsys.readouterr().out))
    assert network > bicubic + 0.3


def test_with_a_checkpoint(small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(fastsr, "load", lambda path, device: Nearest(3))
    demo.run_demo(tmp_path, tmp_path / "mine.pth")
    out = capsys.readouterr().out
    assert "random" not in out and "nearest x3" in out
    result = read_image(tmp_path / "chelsea_x3.png").rgb
    np.testing.assert_array_equal(result, picture(151, 213).repeat(3, 0).repeat(3, 1))
    assert (tmp_path / "chelsea_x3_comparison.png").exists()


def test_panels_show_the_crop_enlarged_without_interpolation():
    width, height = demo._PANEL
    crop = picture(height // 6, width // 6)
    sheet = demo._sheet([[("one", crop), ("two", crop)], [("three", crop)]])
    assert sheet.shape == (3 * demo._GAP + 2 * (height + demo._LABEL), 3 * demo._GAP + 2 * width, 3)
    top, left = demo._GAP + demo._LABEL, 2 * demo._GAP + width
    np.testing.assert_array_equal(sheet[top : top + height, left : left + width], crop.repeat(6, 0).repeat(6, 1))
    label = sheet[demo._GAP : top, demo._GAP : demo._GAP + width]
    assert (label != demo._PAPER).any()


def test_the_photograph_is_the_bundled_cat():
    pytest.importorskip("skimage")
    photograph = demo._photograph()
    assert photograph.shape == (300, 451, 3) and photograph.dtype == np.uint8


def test_missing_scikit_image(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "skimage.data", None)
    with pytest.raises(FastsrError, match=r"pip install scikit-image"):
        demo.run_demo(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made(small, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ImageError, match="cannot be made"):
        demo.run_demo(tmp_path / "file" / "demo")
