"""Checks that the operators share. A message names the operator, what it was given and what it accepts."""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from fastsr.errors import InputError
from fastsr.reference import Activation, Residual

ACTIVATIONS = get_args(Activation)
RESIDUALS = get_args(Residual)
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def feature_map(op: str, x: Tensor, name: str = "x") -> None:
    """`x` must be a floating [N, C, H, W] tensor."""
    if not isinstance(x, Tensor):
        raise InputError(f"{op}: {name} is a {type(x).__name__}; pass a tensor [N, C, H, W]")
    if x.dim() != 4:
        raise InputError(f"{op}: {name} has {x.dim()} dimensions, shape {tuple(x.shape)}; pass [N, C, H, W]")
    if x.dtype not in DTYPES:
        accepted = ", ".join(str(d).removeprefix("torch.") for d in DTYPES)
        raise InputError(f"{op}: {name} is {str(x.dtype).removeprefix('torch.')}; convert it to one of {accepted}")


def same_shape(op: str, x: Tensor, other: Tensor, name: str) -> None:
    """`other` must be a feature map like `x`."""
    feature_map(op, other, name)
    if other.shape != x.shape:
        raise InputError(f"{op}: {name} has shape {tuple(other.shape)}; pass the shape of x, {tuple(x.shape)}")
    placed_like(op, x, other, name)


def shortcut(op: str, x: Tensor, value: Tensor, shape: tuple[int, ...]) -> None:
    """`value` must be what is added to an output of `shape`."""
    feature_map(op, value, "shortcut")
    if tuple(value.shape) != shape:
        raise InputError(f"{op}: shortcut has shape {tuple(value.shape)}; pass the output's, {shape}")
    placed_like(op, x, value, "shortcut")


def weight(op: str, x: Tensor, value: Tensor, name: str, shape: tuple[int | None, ...]) -> None:
    """`value` must have `shape` (None: any extent) and fit the device and dtype of `x`."""
    if isinstance(value, Tensor) and value.dtype == x.dtype and value.device == x.device:
        have = value.shape
        if have == shape or (shape[0] is None and len(have) == len(shape) and have[1:] == shape[1:]):
            return  # the usual cases, in a third of the time that the checks below take
    if not isinstance(value, Tensor):
        raise InputError(f"{op}: {name} is a {type(value).__name__}; pass a tensor {_shape_text(shape)}")
    if value.dim() != len(shape) or any(
        want is not None and have != want for have, want in zip(value.shape, shape, strict=True)
    ):
        raise InputError(f"{op}: {name} has shape {tuple(value.shape)}; pass {_shape_text(shape)}")
    placed_like(op, x, value, name)


def mix_weights(
    op: str,
    x: Tensor,
    dw_weight: Tensor | None,
    dw_bias: Tensor | None,
    pw_weight: Tensor,
    pw_bias: Tensor,
    c5_weight: Tensor,
    c5_bias: Tensor,
) -> None:
    """The parameters of `conv_mix` must fit the channels of `x`; the depthwise convolution's may both be None."""
    c = x.shape[1]
    if (dw_weight is None) != (dw_bias is None):
        raise InputError(f"{op}: only one of dw_weight and dw_bias is None; pass both or neither")
    if dw_weight is not None and dw_bias is not None:
        weight(op, x, dw_weight, "dw_weight", (c, 1, 3, 3))
        weight(op, x, dw_bias, "dw_bias", (c,))
    weight(op, x, pw_weight, "pw_weight", (c, c, 1, 1))
    weight(op, x, pw_bias, "pw_bias", (c,))
    weight(op, x, c5_weight, "c5_weight", (None, c, 1, 1))
    weight(op, x, c5_bias, "c5_bias", (c5_weight.shape[0],))


def odd_kernel(op: str, value: Tensor, name: str) -> None:
    """Both kernel extents of `value` must be odd, so that the output keeps the input's size."""
    kh, kw = value.shape[-2:]
    if kh % 2 == 0 or kw % 2 == 0:
        raise InputError(f"{op}: {name} is a {kh}x{kw} kernel; pass odd extents, which keep the size")


def choice(op: str, value: str, name: str, accepted: tuple[str, ...]) -> None:
    """`value` must be one of `accepted`."""
    if value not in accepted:
        raise InputError(f"{op}: {name} is {value!r}; pass one of {', '.join(accepted)}")


def packed(op: str, value: object) -> None:
    """`value` must be None or a vector; whether it is the one for these weights, its operator checks."""
    if value is not None and not isinstance(value, Tensor):
        raise InputError(f"{op}: packed is a {type(value).__name__}; pass what the weights were packed into, or None")


def sequence(op: str, value: object, length: int, name: str, of: str) -> None:
    """`value` must be a list or tuple of this length."""
    if not isinstance(value, (list, tuple)) or len(value) != length:
        got = f"{len(value)} of them" if isinstance(value, (list, tuple)) else f"a {type(value).__name__}"
        raise InputError(f"{op}: {name} is {got}; pass a sequence of {length}: {of}")


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if extent is None else str(extent) for extent in shape) + "]"


def placed_like(op: str, x: Tensor, value: Tensor, name: str) -> None:
    """`value` must be on the device of `x` and have its dtype, or one that autocast unites with it."""
    if value.device != x.device:
        raise InputError(f"{op}: {name} is on {value.device} and x on {x.device}; move one of them")
    if value.dtype != x.dtype and not _mixed_dtypes_fit(x, value):
        have, want = (str(d).removeprefix("torch.") for d in (value.dtype, x.dtype))
        raise InputError(f"{op}: {name} is {have} and x {want}; convert one of them, or run under torch.autocast")


def _mixed_dtypes_fit(x: Tensor, value: Tensor) -> bool:
    """Under autocast, convolutions bring both sides to one dtype (it leaves float64 alone)."""
    return torch.is_autocast_enabled(x.device.type) and torch.float64 not in (x.dtype, value.dtype)
