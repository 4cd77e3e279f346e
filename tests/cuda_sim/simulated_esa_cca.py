"""esa_cca in the simulator."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from simulated_cca_norm import pointers
from simulated_esa import EsaCall, call_of
from simulator import Library, View, poisoned
from torch import Tensor

from fastsr.ops._define import empty_map

LIBRARY = Library("esa_cca")


class EsaCcaCall(ctypes.Structure):
    """EsaCcaCall of esa_cca.h."""

    _fields_ = (
        ("esa", EsaCall),
        ("shortcut", View),
        ("hidden", ctypes.c_int64),
        ("eps", ctypes.c_double),
        ("cca", ctypes.c_void_p * 6),
        ("workspace", ctypes.c_void_p),
    )


def esa_cca(
    x: Tensor, reduced: Tensor | None, shortcut: Tensor, weights: list[Tensor], conv2_padding: int, *rest: Any
) -> Tensor:
    *parameters, eps = rest
    weights = [w.contiguous() for w in weights]
    parameters = [None if p is None else p.contiguous() for p in parameters]
    y = poisoned(empty_map(x, x.shape[1]))
    if x.numel() > 0:
        call = EsaCcaCall(esa=call_of(x, weights, conv2_padding), hidden=parameters[0].shape[0], eps=eps)
        call.esa.y, call.shortcut, call.cca = View.of(y), View.of(shortcut), pointers(parameters)
        if reduced is not None:
            call.esa.reduced = View.of(reduced)
        LIBRARY.run("sim_esa_cca_forward", call)
    return y


def operators() -> dict[str, Callable[..., Any]]:
    """Implementations of the operators, by name."""
    return {esa_cca.__name__: esa_cca}
