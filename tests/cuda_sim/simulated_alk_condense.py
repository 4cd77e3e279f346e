"""alk_condense in the simulator."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import simulator
import torch
from simulated_alk import AlkCall
from simulator import DTYPES, POISON, Library, View, poisoned
from torch import Tensor

from fastsr import _gelu
from fastsr.ops._define import empty_map
from fastsr.ops.esa import empty_reduced

LIBRARY = Library("alk_condense")


class AlkCondenseCall(ctypes.Structure):
    """AlkCondenseCall of alk_condense.h."""

    _fields_ = (
        ("alk", AlkCall),
        *((name, ctypes.c_int64) for name in ("d", "outputs", "inner")),
        ("parameters", ctypes.c_void_p * 4),
        ("maps", View * 3),
        *((name, View) for name in ("y", "reduced")),
        ("workspace", ctypes.c_void_p),
    )


def call_of(dtype: torch.dtype, parameters: Sequence[Tensor]) -> AlkCondenseCall:
    pw, lora1, c5, conv1 = parameters[0], parameters[1], parameters[9], parameters[11]
    call = AlkCondenseCall(outputs=c5.shape[0], inner=conv1.shape[0], d=(c5.shape[1] - pw.shape[0]) // 3)
    call.alk.dtype, call.alk.parameter_dtype = DTYPES.index(dtype), DTYPES.index(pw.dtype)
    call.alk.k, call.alk.taps = pw.shape[0], lora1.shape[2]
    call.alk.parameters = (ctypes.c_void_p * 11)(None, None, *(p.data_ptr() for p in parameters[:9]))
    call.parameters = (ctypes.c_void_p * 4)(*(p.data_ptr() for p in parameters[9:]))
    return call


def run(call: AlkCondenseCall, x: Tensor, maps: list[Tensor], eps: float) -> tuple[Tensor, Tensor]:
    call.alk.x, call.alk.eps, call.alk.activation = View.of(x), eps, 1
    call.alk.accuracy, call.alk.tf32 = _gelu.code(), int(simulator.tf32)
    call.maps = (View * 3)(*(View.of(d) for d in maps))
    y = poisoned(empty_map(x, call.outputs))
    reduced = poisoned(empty_reduced(x, call.inner))
    call.y, call.reduced = View.of(y), View.of(reduced)
    if x.numel() > 0:
        LIBRARY.run("sim_alk_condense_forward", call)
    return y, reduced


def alk_condense_pack(*parameters: Tensor) -> Tensor:
    call = call_of(parameters[0].dtype, [p.contiguous() for p in parameters])
    call.alk.x.size[1] = parameters[0].shape[1]
    LIBRARY.library.sim_alk_condense_packed_bytes.restype = ctypes.c_int64
    size = LIBRARY.library.sim_alk_condense_packed_bytes(ctypes.byref(call))
    packed = torch.full((size,), POISON, dtype=torch.uint8)
    call.workspace = packed.data_ptr()
    LIBRARY.run("sim_alk_condense_pack", call)
    return packed


def alk_condense(x: Tensor, maps: list[Tensor], *rest: Any) -> tuple[Tensor, Tensor]:
    *parameters, eps = rest
    parameters = [p.contiguous() for p in parameters]
    return run(call_of(x.dtype, parameters), x, maps, eps)


def alk_condense_packed(
    x: Tensor, maps: list[Tensor], packed: Tensor, k: int, taps: int, outputs: int, inner: int, eps: float
) -> tuple[Tensor, Tensor]:
    call = AlkCondenseCall(d=maps[0].shape[1], outputs=outputs, inner=inner)
    call.alk.dtype, call.alk.k, call.alk.taps = DTYPES.index(x.dtype), k, taps
    call.alk.packed = packed.data_ptr()
    return run(call, x, maps, eps)


def operators() -> dict[str, Callable[..., Any]]:
    """Implementations of the operators, by name."""
    return {f.__name__: f for f in (alk_condense_pack, alk_condense, alk_condense_packed)}
