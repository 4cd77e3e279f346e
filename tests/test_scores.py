"""The official checkpoints give the published figures on Set5."""

from __future__ import annotations

from pathlib import Path

import pytest

import fastsr
from fastsr.evaluate import evaluate

# PSNR on Y: the mean, then baby, bird, butterfly, head, woman
SCORES = {
    "net_g_ALKDN_x2": (38.159, (38.93, 43.59, 35.70, 36.06, 36.52)),
    "net_g_ALKDN_x3": (34.568, (35.73, 38.36, 31.48, 34.16, 33.11)),
    "net_g_ALKDN_x4": (32.367, (33.86, 35.11, 29.05, 32.98, 30.84)),
    "rlfn_x2": (38.081, (38.94, 43.42, 35.58, 36.01, 36.45)),
    "rlfn_x4": (32.240, (33.78, 34.99, 28.72, 32.99, 30.72)),
    "rlfn_ntire_x4": (32.098, (33.74, 34.63, 28.55, 32.91, 30.66)),
    "net_g_BSRN_x2": (38.099, (38.94, 43.40, 35.56, 36.05, 36.54)),
    "net_g_BSRN_x3": (34.460, (35.72, 38.27, 31.09, 34.16, 33.07)),
    "net_g_BSRN_x4": (32.351, (33.83, 35.11, 29.03, 32.92, 30.86)),
}


@pytest.mark.parametrize("checkpoint", SCORES)
def test_set5(shared: Path, checkpoint: str) -> None:
    mean, images = SCORES[checkpoint]
    result = evaluate(fastsr.load(shared / "weights" / f"{checkpoint}.pth"), shared / "data" / "set5", progress=False)
    assert result.psnr == pytest.approx(mean, abs=0.001)
    assert [row.psnr for row in result.images] == pytest.approx(images, abs=0.006)  # which are rounded to 0.01
    if checkpoint == "net_g_ALKDN_x2":
        assert result.ssim == pytest.approx(0.9609, abs=0.0005)
