"""conv_mix_reduce in the simulator."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from simulated_conv_mix import ConvMixCall, call_of
from simulator import Library, View, poisoned
from torch import Tensor

from fastsr.ops._define import empty_map
from fastsr.ops.esa import empty_reduced

LIBRARY = Library("conv_mix_reduce")


class ConvMixReduceCall(ctypes.Structure):
    """ConvMixReduceCall of conv_mix_reduce.h."""

    _fields_ = (
        ("mix", ConvMixCall),
        ("inner", ctypes.c_int64),
        ("parameters", ctypes.c_void_p * 2),
        ("reduced", View),
    )


def conv_mix_reduce(x: Tensor, shortcut: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    *given, conv1, conv1_bias, activation = rest
    parameters = [None if p is None else p.contiguous() for p in given]
    conv1, conv1_bias = conv1.contiguous(), conv1_bias.contiguous()
    y, reduced = poisoned(empty_map(x, given[4].shape[0])), poisoned(empty_reduced(x, conv1.shape[0]))
    call = ConvMixReduceCall(call_of(x, shortcut, y, parameters, activation), conv1.shape[0])
    call.parameters = (ctypes.c_void_p * 2)(conv1.data_ptr(), conv1_bias.data_ptr())
    call.reduced = View.of(reduced)
    if x.numel() > 0:
        LIBRARY.run("sim_conv_mix_reduce_forward", call)
    return y, reduced


def operators() -> dict[str, Callable[..., Any]]:
    """Implementations of the operators, by name."""
    return {conv_mix_reduce.__name__: conv_mix_reduce}
