"""What the four networks have in common."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastsr._dispatch import current_backend
from fastsr._export import exporting
from fastsr._transforms import transformed
from fastsr.errors import InputError
from fastsr.ops import output_format

SCALES = (1, 2, 3, 4, 5, 6, 8)
_COUNTS = ("num_in_ch", "num_out_ch", "num_feat", "num_block", "mid_channels", "esa_channels", "lk_size")
_ACTIVATIONS = ("gelu", "leaky_relu")


def resolve_scale(scale: int | None, upscale: int | None) -> int:
    """The enlargement from either name: BasicSR says `upscale`, other frameworks `scale`; 2 if neither is given."""
    if scale is not None and upscale is not None and scale != upscale:
        raise InputError(f"scale is {scale} and upscale {upscale}; pass one of them")
    value = scale if scale is not None else upscale
    value = 2 if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value not in SCALES:
        raise InputError(f"scale is {value!r}; pass one of {', '.join(map(str, SCALES))}")
    return value


def check_settings(config: Mapping[str, Any], even: bool = False) -> None:
    """Refuse settings that a network does not have; `even`: its blocks distil half of the feature channels.

    Raises:
        InputError: one of them.
    """
    for name in _COUNTS:
        value = config.get(name, 1)
        if value is None and name == "mid_channels":
            continue
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} is {value!r}; pass a whole number from 1 on")
    if even and config["num_feat"] % 2:
        raise InputError(f"num_feat is {config['num_feat']}; pass an even number, of which the blocks distil half")
    if config.get("activation", "gelu") not in _ACTIVATIONS:
        raise InputError(f"activation is {config['activation']!r}; pass one of {', '.join(_ACTIVATIONS)}")
    white = config["input_range"]
    if not isinstance(white, numbers.Real) or not 0 < float(white) < math.inf:
        raise InputError(f"input_range is {white!r}; pass the value of white, 1.0 or 255.0")
    for setting, residual in (("anchor_residual", "anchor"), ("bilinear", "bilinear")):
        if config.get(setting) and config["num_in_ch"] != config["num_out_ch"]:
            raise InputError(
                f"num_in_ch is {config['num_in_ch']} and num_out_ch {config['num_out_ch']}; the {residual} residual "
                f"needs them equal, or pass {setting}=False"
            )


class SuperResolutionNet(nn.Module):
    """Base of the networks: [N, C, H, W] in `0..input_range` to [N, C, H * scale, W * scale], not clamped.

    Feature maps are channels last inside, which is the kernels' layout: only the image is converted, and the result is
    in the image's layout.

    Attributes:
        architecture: the registry name, for example "alkdnet".
        scale: enlargement.
        input_range: the value of white in input and output, 1.0 or 255.0.
        num_in_ch: channels of the image.
        min_size: smallest height and width of the input in pixels, set by the pooling inside the ESA.
        config: the keyword arguments that rebuild this network.
    """

    architecture: str = ""
    frozen = False  # True in the copies of `fastsr.freeze`
    distils_half = False  # of the feature channels, in its blocks

    def __init__(self, scale: int, num_in_ch: int, input_range: float, config: dict[str, Any]) -> None:
        check_settings(config, even=self.distils_half)
        super().__init__()
        self.scale = scale
        self.num_in_ch = num_in_ch
        self.input_range = float(input_range)
        self.min_size = 1
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        self.check_image(x)
        # The kernels work on channels-last maps. An exported graph leaves layouts to whatever runs it, torch.vmap knows
        # no such maps, and the forced reference is the plain network in the caller's layout.
        if exporting() or transformed() or current_backend() == "reference":
            return self.enlarge(x)
        y = self.enlarge(x.contiguous(memory_format=torch.channels_last))
        return y.contiguous(memory_format=output_format(x))

    def enlarge(self, x: Tensor) -> Tensor:
        """The network itself, on a checked image in any layout."""
        raise NotImplementedError

    def check_image(self, x: Tensor) -> None:
        """Raise InputError unless `x` is an image this network can take."""
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] != self.num_in_ch:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise InputError(f"{self.architecture}: the image is {got}; pass a tensor [N, {self.num_in_ch}, H, W]")
        if not x.is_floating_point():
            raise InputError(
                f"{self.architecture}: the image is {x.dtype}; pass floating-point values in 0..{self.input_range:g}"
            )
        least = self.min_size
        if x.shape[2] < least or x.shape[3] < least:
            raise InputError(
                f"{self.architecture}: the image is {x.shape[3]}x{x.shape[2]} pixels; "
                f"this network needs at least {least}x{least}, so enlarge or pad it first"
            )
