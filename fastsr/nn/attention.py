"""Attention: enhanced spatial attention in both forms, and contrast-aware channel attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fastsr import ops
from fastsr.nn.layers import BSConvU, Packing, PixelNorm, child, conv3x3, conv_weights, parameter
from fastsr.ops.esa import esa_min_size
from fastsr.reference import BlueprintESAWeights, PlainESAWeights


class PlainESA(Packing):
    """Enhanced spatial attention with plain convolutions (RLFN, MLRN)."""

    def __init__(self, num_feat: int, esa_channels: int = 16) -> None:
        super().__init__()
        f = esa_channels
        self.conv1 = nn.Conv2d(num_feat, f, 1)
        self.conv_f = nn.Conv2d(f, f, 1)
        self.conv2 = nn.Conv2d(f, f, 3, stride=2)
        self.conv3 = conv3x3(f, f)
        self.conv4 = nn.Conv2d(f, num_feat, 1)

    @property
    def conv2_padding(self) -> int:
        return int(child(self, "conv2").padding[0])

    @property
    def min_size(self) -> int:
        """Smallest height and width of the input."""
        return esa_min_size(self.conv2_padding)

    def weights(self) -> PlainESAWeights:
        kept: PlainESAWeights | None = self.looked_up()
        if kept is not None:
            return kept
        convs = (child(self, name) for name in ("conv1", "conv2", "conv3", "conv_f", "conv4"))
        return PlainESAWeights(*(value for conv in convs for value in conv_weights(conv)))

    def forward(self, x: Tensor, overwrite: bool = False, reduced: Tensor | None = None) -> Tensor:
        """With `overwrite` the result may take the place of `x`; `reduced` is what it is in `fastsr.ops.esa`."""
        weights, padding = self.weights(), self.conv2_padding
        return ops.esa(x, weights, conv2_padding=padding, packed=self.packed, overwrite=overwrite, reduced=reduced)

    def pack(self) -> None:
        """Pack the weights; later changes of them have no effect."""
        self.kept = None
        self.kept = self.weights()
        self.packed = ops.pack_esa(self.kept)


class BlueprintESA(Packing):
    """Enhanced spatial attention with blueprint separable convolutions (BSRN, ALKDNet)."""

    def __init__(self, num_feat: int, esa_channels: int = 16, conv2_padding: int = 1) -> None:
        super().__init__()
        f = esa_channels
        self.conv1 = nn.Conv2d(num_feat, f, 1)
        self.conv_f = nn.Conv2d(f, f, 1)
        self.conv_max = BSConvU(f, f)
        self.conv2 = BSConvU(f, f, stride=2, padding=conv2_padding)
        self.conv3 = BSConvU(f, f)
        self.conv3_ = BSConvU(f, f)
        self.conv4 = nn.Conv2d(f, num_feat, 1)

    @property
    def conv2_padding(self) -> int:
        return int(child(child(self, "conv2"), "dw").padding[0])

    @property
    def min_size(self) -> int:
        """Smallest height and width of the input."""
        return esa_min_size(self.conv2_padding)

    def weights(self) -> BlueprintESAWeights:
        kept: BlueprintESAWeights | None = self.looked_up()
        if kept is not None:
            return kept
        values = [*conv_weights(child(self, "conv1"))]
        for name in ("conv2", "conv_max", "conv3", "conv3_"):
            values += child(self, name).weights()
        for name in ("conv_f", "conv4"):
            values += conv_weights(child(self, name))
        return BlueprintESAWeights._make(values)

    def forward(self, x: Tensor, overwrite: bool = False) -> Tensor:
        """With `overwrite` the result may take the place of `x`."""
        padding = self.conv2_padding
        return ops.esa(x, self.weights(), conv2_padding=padding, packed=self.packed, overwrite=overwrite)

    def pack(self) -> None:
        """Pack the weights; later changes of them have no effect."""
        self.kept = None
        self.kept = self.weights()
        self.packed = ops.pack_esa(self.kept)


def eps_of(norm: PixelNorm | None) -> float:
    """What the operators take with the parameters of a pixel norm, or without one."""
    return 1e-5 if norm is None else norm.eps


class CCA(nn.Module):
    """Contrast-aware channel attention; `forward` also takes the block's pixel norm and residual along."""

    def __init__(self, num_feat: int, reduction: int = 16) -> None:
        super().__init__()
        squeezed = max(num_feat // reduction, 1)
        self.conv_du = nn.Sequential(
            nn.Conv2d(num_feat, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, num_feat, 1), nn.Sigmoid()
        )

    def forward(
        self, x: Tensor, shortcut: Tensor | None = None, norm: PixelNorm | None = None, overwrite: bool = False
    ) -> Tensor:
        """pixel_norm(cca(x)) + shortcut, without what is None (`fastsr.ops.cca_norm`).

        With `overwrite` the result may take the place of `x`.
        """
        shortcut = torch.zeros_like(x) if shortcut is None else shortcut
        return ops.cca_norm(x, shortcut, *self.weights(norm), eps=eps_of(norm), overwrite=overwrite)

    def behind(
        self,
        esa: PlainESA | BlueprintESA,
        x: Tensor,
        shortcut: Tensor,
        norm: PixelNorm | None = None,
        reduced: Tensor | None = None,
    ) -> Tensor:
        """self(esa(x), shortcut, norm) by `fastsr.ops.esa_cca`; the result may take the place of `x`.

        `reduced` is what it is there.
        """
        settings: Any = {"conv2_padding": esa.conv2_padding, "eps": eps_of(norm), "packed": esa.packed}
        return ops.esa_cca(x, shortcut, esa.weights(), *self.weights(norm), overwrite=True, reduced=reduced, **settings)

    def weights(self, norm: PixelNorm | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
        """The parameters in the operators' order, with those of the norm."""
        between = child(self, "conv_du")
        gamma, beta = (None, None) if norm is None else (parameter(norm, "weight"), parameter(norm, "bias"))
        return *conv_weights(child(between, "0")), *conv_weights(child(between, "2")), gamma, beta
