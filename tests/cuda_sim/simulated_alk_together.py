"""alk_pack_together in the simulator."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from simulated_alk_condense import AlkCondenseCall, call_of
from simulator import DTYPES, POISON, Library
from torch import Tensor

LIBRARY = Library("alk_together")


class AlkParts(ctypes.Structure):
    """AlkParts of alk_together.cpp."""

    _fields_ = (("parts", ctypes.POINTER(AlkCondenseCall)), ("count", ctypes.c_int64))


def part_of(tensors: list[Tensor]) -> AlkCondenseCall:
    pw, lora1 = tensors[:2]
    if len(tensors) == 13:
        part = call_of(pw.dtype, tensors)
    else:
        distil = tensors[9:] or (None, None)
        part = AlkCondenseCall()
        part.alk.dtype = part.alk.parameter_dtype = DTYPES.index(pw.dtype)
        part.alk.k, part.alk.taps = pw.shape[0], lora1.shape[2]
        part.alk.d = 0 if distil[0] is None else distil[0].shape[0]
        pointers = (None if t is None else t.data_ptr() for t in (*distil, *tensors[:9]))
        part.alk.parameters = (ctypes.c_void_p * 11)(*pointers)
    part.alk.x.size[1] = pw.shape[1]
    return part


def alk_pack_together(weights: list[Tensor], counts: list[int]) -> list[Tensor]:
    LIBRARY.library.sim_alk_part_bytes.restype = ctypes.c_int64
    rest, parts, packed = iter([t.contiguous() for t in weights]), [], []
    kept = []  # until the launch
    for count in counts:
        kept.append([next(rest) for _ in range(count)])
        parts.append(part_of(kept[-1]))
        size = LIBRARY.library.sim_alk_part_bytes(ctypes.byref(parts[-1]))
        packed.append(torch.full((size,), POISON, dtype=torch.uint8))
        parts[-1].workspace = packed[-1].data_ptr()
    LIBRARY.run("sim_alk_pack_together", AlkParts((AlkCondenseCall * len(parts))(*parts), len(parts)))
    return packed


def operators() -> dict[str, Callable[..., Any]]:
    """Implementations of the operators, by name."""
    return {"alk_pack_together": alk_pack_together}
