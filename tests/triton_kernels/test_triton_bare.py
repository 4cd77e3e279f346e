"""Triton operators called past fastsr.ops refuse what does not fit, before anything is launched."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import device_of

import fastsr

DEVICE = device_of("triton")


def test_a_bare_operator_checks_its_arguments() -> None:
    x, w = torch.ones(1, 8, 3, 3, device=DEVICE), torch.ones(8, device=DEVICE)
    with fastsr.backend("triton"):
        assert torch.ops.fastsr.pixel_norm(x, w, w, 1e-6).isfinite().all()
        with pytest.raises(fastsr.InputError, match=r"pixel_norm: bias has shape \(7,\); pass \[8\]"):
            torch.ops.fastsr.pixel_norm(x, w, w[:7], 1e-6)
        with pytest.raises(fastsr.InputError, match=r"pixel_norm_backward: grad has shape"):
            torch.ops.fastsr.pixel_norm_backward(x[:, :, :2], x, w, 1e-6)
