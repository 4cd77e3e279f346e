"""pointwise_reduce in the simulator."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import simulator
import torch
from simulated_pointwise import PointwiseCall, call_of, views
from simulator import DTYPES, POISON, Library, View, poisoned
from torch import Tensor

from fastsr.ops._define import empty_map
from fastsr.ops.esa import empty_reduced

LIBRARY = Library("pointwise_reduce")


class PointwiseReduceCall(ctypes.Structure):
    """PointwiseReduceCall of pointwise_reduce.h."""

    _fields_ = (
        ("c5", PointwiseCall),
        ("inner", ctypes.c_int64),
        ("parameters", ctypes.c_void_p * 2),
        ("reduced", View),
        *((name, ctypes.c_void_p) for name in ("packed", "workspace")),
    )


def with_conv1(c5: PointwiseCall, conv1: Tensor, conv1_bias: Tensor) -> PointwiseReduceCall:
    return PointwiseReduceCall(c5, conv1.shape[0], (ctypes.c_void_p * 2)(conv1.data_ptr(), conv1_bias.data_ptr()))


def packed_bytes(call: PointwiseReduceCall) -> int:
    LIBRARY.library.sim_pointwise_reduce_packed_bytes.restype = ctypes.c_int64
    size: int = LIBRARY.library.sim_pointwise_reduce_packed_bytes(ctypes.byref(call))
    return size


def run(call: PointwiseReduceCall, x: Tensor, channels: int) -> tuple[Tensor, Tensor]:
    y, reduced = poisoned(empty_map(x, channels)), poisoned(empty_reduced(x, call.inner))
    call.c5.y, call.reduced = View.of(y), View.of(reduced)
    if x.numel() > 0:
        LIBRARY.run("sim_pointwise_reduce_forward", call)
    return y, reduced


def pointwise_reduce(inputs: list[Tensor], *given: Tensor) -> tuple[Tensor, Tensor]:
    weight, bias, *conv1 = (p.contiguous() for p in given)
    return run(with_conv1(call_of(inputs, weight, bias, None, 0), *conv1), inputs[0], weight.shape[0])


def pointwise_reduce_pack(*given: Any) -> Tensor:
    weight, bias, *conv1 = (p.contiguous() for p in given[:4])
    widths: Sequence[int] = given[4]
    c5 = PointwiseCall(dtype=DTYPES.index(weight.dtype), parameter_dtype=DTYPES.index(weight.dtype), inputs=len(widths))
    c5.weight, c5.bias, c5.y.size[1] = weight.data_ptr(), bias.data_ptr(), weight.shape[0]
    for view, width in zip(c5.x, widths, strict=False):
        view.size[1] = width
    call = with_conv1(c5, *conv1)
    packed = torch.full((packed_bytes(call),), POISON, dtype=torch.uint8)
    call.workspace = packed.data_ptr()
    LIBRARY.run("sim_pointwise_reduce_pack", call)
    return packed


def pointwise_reduce_packed(inputs: list[Tensor], packed: Tensor, channels: int, inner: int) -> tuple[Tensor, Tensor]:
    c5 = PointwiseCall(dtype=DTYPES.index(inputs[0].dtype), inputs=len(inputs), tf32=int(simulator.tf32))
    c5.x, c5.y.size[1] = views(inputs), channels
    call = PointwiseReduceCall(c5, inner)
    assert packed.numel() == packed_bytes(call)  # as the binding checks it
    call.packed = packed.data_ptr()
    return run(call, inputs[0], channels)


def operators() -> dict[str, Callable[..., Any]]:
    """Implementations of the operators, by name."""
    return {f.__name__: f for f in (pointwise_reduce, pointwise_reduce_pack, pointwise_reduce_packed)}
