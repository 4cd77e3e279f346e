"""The weights that ship: small, loadable, clearly better than bicubic, and refused where there are none."""

from __future__ import annotations

import pytest
import torch
from image_helpers import shared

import fastsr
from fastsr.errors import InputError
from fastsr.evaluate import evaluate
from fastsr.models.registry import WEIGHTS


@pytest.mark.parametrize("scale", [2, 4])
def test_mlrn_ships(scale):
    net = fastsr.create_model("MLRN", scale=scale, pretrained=True)
    assert (net.architecture, net.scale, net.training) == ("mlrn", scale, False)
    assert (WEIGHTS / f"mlrn_x{scale}.safetensors").stat().st_size <= 2.2e6
    assert net(torch.rand(1, 3, 20, 20)).shape == (1, 3, 20 * scale, 20 * scale)


@pytest.mark.parametrize("scale, least", [(2, 36.9), (4, 31.3)])
def test_the_score_of_the_model_card(scale, least):
    """The card's Set5 score, to the digits it prints."""
    result = evaluate(fastsr.create_model("mlrn", scale=scale, pretrained=True), shared("data", "set5"), progress=False)
    card = (WEIGHTS / "README.md").read_text(encoding="utf-8").split(f"## mlrn_x{scale}.")[1].split("\n## ")[0]
    assert f"{result.psnr:.2f} dB / {result.ssim:.4f}" in card and result.psnr >= least


@pytest.mark.parametrize("name, scale", [("mlrn", 3), ("alkdnet", 2), ("mlrn_ntire", None)])
def test_what_does_not_ship_is_named(name, scale):
    with pytest.raises(InputError, match=r"no trained weights of .* only mlrn_x2, mlrn_x4"):
        fastsr.create_model(name, scale=scale, pretrained=True)


def test_settings_that_do_not_fit_the_weights():
    with pytest.raises(InputError, match="leave out num_feat"):
        fastsr.create_model("mlrn", scale=2, pretrained=True, num_feat=8)
