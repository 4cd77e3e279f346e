"""Modules over fastsr's operators, with the child names of the official checkpoints."""

from fastsr.nn.attention import CCA, BlueprintESA, PlainESA
from fastsr.nn.blocks import ALKDB, ESDB, MLRB, RLFB
from fastsr.nn.layers import ALKConv, BSConvU, PixelNorm, PixelShuffleUp

__all__ = [
    "ALKDB",
    "CCA",
    "ESDB",
    "MLRB",
    "RLFB",
    "ALKConv",
    "BSConvU",
    "BlueprintESA",
    "PixelNorm",
    "PixelShuffleUp",
    "PlainESA",
]
