"""`fastsr demo`: a photograph enlarged, and a comparison with bicubic that one can look at."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from fastsr.errors import FastsrError, ImageError
from fastsr.imageio import Image, write_image
from fastsr.imresize import imresize, modcrop
from fastsr.metrics import psnr_y
from fastsr.upscale import upscale_image

if TYPE_CHECKING:
    from fastsr.models import SuperResolutionNet

__all__ = ["run_demo"]

Pixels = NDArray[np.uint8]
Panel = tuple[str, Pixels]

_EYE = (132, 86, 80, 60)  # left, top, width and height of the crop, in pixels of the photograph
_PANEL = (480, 360)  # 6, 3 and 2 times the crop at x1, x2 and x3
_GAP = 16
_LABEL = 36
_FONT_SIZE = 20
_PAPER, _INK = (250, 250, 248), (32, 32, 32)


def run_demo(output: Path, weights: Path | None = None) -> None:
    """Enlarges scikit-image's photograph of a cat and writes two PNGs, telling on stdout what they show.

    `chelsea_x2.png` is the result; `chelsea_x2_comparison.png` shows the eye by bicubic and by the network,
    both of the photograph itself and of the photograph reduced and enlarged again, where the PSNR is known. The
    names follow the scale of the checkpoint.

    Args:
        output: the folder for the pictures, made if need be.
        weights: a checkpoint; None for the MLRN x2 that ships with fastsr.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        FastsrError: scikit-image is not installed, or a picture cannot be written.
    """
    photograph = _photograph()
    net = _network(weights)
    scale = net.scale
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ImageError(f"the folder {output} cannot be made: {error.strerror or error}") from error

    enlarged = upscale_image(net, Image(photograph)).rgb
    original = modcrop(photograph, scale)
    reduced = imresize(original, scale=Fraction(1, scale))
    bicubic = imresize(reduced, scale=scale)
    restored = upscale_image(net, Image(reduced)).rgb
    scores = [psnr_y(image, original, border=scale) for image in (bicubic, restored)]
    print(
        f"PSNR-Y of the photograph reduced by {scale} and enlarged again: "
        f"bicubic {scores[0]:.2f} dB, {net.architecture} {scores[1]:.2f} dB"
    )

    bicubic_enlarged = imresize(photograph, scale=scale)
    rows: list[list[Panel]] = [
        [
            ("input", _eye(photograph, 1)),
            (f"x{scale} by bicubic", _eye(bicubic_enlarged, scale)),
            (f"x{scale} by {net.architecture}", _eye(enlarged, scale)),
        ],
        [
            ("original", _eye(original, 1)),
            (f"reduced, bicubic: {scores[0]:.2f} dB", _eye(bicubic, 1)),
            (f"reduced, {net.architecture}: {scores[1]:.2f} dB", _eye(restored, 1)),
        ],
    ]
    pictures = {f"chelsea_x{scale}.png": enlarged, f"chelsea_x{scale}_comparison.png": _sheet(rows)}
    for file, pixels in pictures.items():
        write_image(output / file, Image(pixels))
        print(f"wrote {output / file} ({pixels.shape[1]}x{pixels.shape[0]})")


def _photograph() -> Pixels:
    try:
        from skimage.data import chelsea
    except ImportError as error:
        raise FastsrError(
            "the demo needs the photograph that comes with scikit-image: pip install scikit-image"
        ) from error
    photograph: Pixels = chelsea()
    return photograph


def _network(weights: Path | None) -> SuperResolutionNet:
    import fastsr

    device = "cuda" if torch.cuda.is_available() else "cpu"
    if weights is not None:
        net = fastsr.load(weights, device=device)
        print(f"{net.architecture} x{net.scale} from {weights}")
        return net
    print(
        "mlrn x2 with the weights that ship with fastsr, which were trained for minutes on a processor; "
        "pass --weights with a checkpoint of a full training for a better result."
    )
    return fastsr.create_model("mlrn", scale=2, pretrained=True).to(device)


def _eye(image: Pixels, zoom: int) -> Pixels:
    """The cat's eye in a picture that is `zoom` times as large as the photograph."""
    left, top, width, height = (zoom * value for value in _EYE)
    return image[top : top + height, left : left + width]


def _sheet(rows: list[list[Panel]]) -> Pixels:
    """Panels in rows, each enlarged to one size without interpolation, with its label above."""
    width, height = _PANEL
    columns = max(len(row) for row in rows)
    size = (_GAP + columns * (width + _GAP), _GAP + len(rows) * (_LABEL + height + _GAP))
    sheet = Pillow.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(_FONT_SIZE)
    for i, row in enumerate(rows):
        for j, (label, pixels) in enumerate(row):
            x, y = _GAP + j * (width + _GAP), _GAP + i * (_LABEL + height + _GAP)
            draw.text((x, y + _LABEL // 2), label, _INK, font, anchor="lm")
            panel = Pillow.fromarray(pixels).resize(_PANEL, Pillow.Resampling.NEAREST)
            sheet.paste(panel, (x, y + _LABEL))
    return np.asarray(sheet)
