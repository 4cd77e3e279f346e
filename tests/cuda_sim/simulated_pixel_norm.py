"""pixel_norm in the simulator."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from simulator import DTYPES, Library, View, poisoned
from torch import Tensor

LIBRARY = Library("pixel_norm")


class PixelNormCall(ctypes.Structure):
    """PixelNormCall of pixel_norm.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "parameter_dtype")),
        ("eps", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("weight", "bias")),
        *((name, View) for name in ("x", "y", "dx")),
        *((name, ctypes.c_void_p) for name in ("d_weight", "d_bias", "workspace")),
    )


def pixel_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    weight, bias = weight.contiguous(), bias.contiguous()
    y = poisoned(torch.empty_like(x))
    if x.numel() > 0:
        call = PixelNormCall(DTYPES.index(x.dtype), DTYPES.index(weight.dtype), eps, weight.data_ptr(), bias.data_ptr())
        call.x, call.y = View.of(x), View.of(y)
        LIBRARY.run("sim_pixel_norm_forward", call)
    return y


def pixel_norm_backward(grad: Tensor, x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    weight = weight.contiguous()
    dx = poisoned(torch.empty_like(x))
    d_weight, d_bias = (poisoned(torch.empty_like(weight)) for _ in range(2))
    if x.numel() == 0:
        return dx, d_weight.zero_(), d_bias.zero_()
    call = PixelNormCall(DTYPES.index(x.dtype), DTYPES.index(weight.dtype), eps, weight.data_ptr())
    call.x, call.y, call.dx = View.of(x), View.of(grad), View.of(dx)
    call.d_weight, call.d_bias = d_weight.data_ptr(), d_bias.data_ptr()
    LIBRARY.run("sim_pixel_norm_backward", call)
    return dx, d_weight, d_bias


def operators() -> dict[str, Callable[..., Any]]:
    """Implementations of the operators, by name."""
    return {f.__name__: f for f in (pixel_norm, pixel_norm_backward)}
