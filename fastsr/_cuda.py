"""Whether the CUDA C++ kernels can run, and what stands under the operators' CUDA key.

`fastsr::<op>.cuda` calls the private operator `fastsr::_cuda_<op>`, which the library `_ops_cuda` implements,
`fastsr::<op>.triton` the launcher in kernels/<op>.py. `fastsr::<op>` itself, for callers who did not come by
fastsr.ops, asks `_dispatch` which of them it is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastsr import _device, _gelu, _native, _triton
from fastsr._dispatch import extents_of, select_kernel
from fastsr._native import LIB

DEVICES: tuple[str, ...] = ("cuda",)  # tests in the simulator add "cpu"
CODES = _device.parse_codes((_native.build_info() or {}).get("cuda_code", ""))

logger = logging.getLogger("fastsr")

_announced = False
_routed: set[str] = set()
_in_tf32: set[str] = set()


def missing() -> str | None:
    """Why the CUDA C++ kernels cannot be used at all, or None."""
    return _native.CUDA.reason


def reason_against(x: Tensor, dtypes: Sequence[torch.dtype]) -> str | None:
    """Why the CUDA C++ kernels cannot take maps like `x`, or None. Traceable: plain globals and tensor metadata."""
    return missing() or _device.reason_against("cuda", x, dtypes, DEVICES) or _no_code(x)


def _no_code(x: Tensor) -> str | None:
    """Why no compiled code runs on the GPU of `x`, or None."""
    if x.device.type != "cuda" or len(CODES) == 0:
        return None
    found = torch.cuda.get_device_properties(x.device)
    if _device.code_for((found.major, found.minor), CODES) is not None:
        return None
    built = " ".join([code[0] for code in CODES])
    return (
        f"the GPU is sm_{found.major}{found.minor}, the CUDA C++ kernels are built for {built}; reinstall with "
        "FASTSR_CUDA=native"
    )


def _announce(x: Tensor) -> None:
    """Say once that a GPU runs other code than what was compiled for its kind."""
    global _announced
    _announced = True
    if x.device.type != "cuda":
        return
    found = torch.cuda.get_device_properties(x.device)
    code = _device.code_for((found.major, found.minor), CODES)
    if code is not None and code.startswith("compute_"):
        logger.info(
            "the GPU is sm_%d%d, newer than the CUDA C++ kernels: the driver compiles their PTX (%s) at first calls",
            found.major, found.minor, code,
        )  # fmt: skip


def define(name: str, schema: str, tf32: bool = False) -> None:
    """Define `fastsr::_cuda_<name>`, for the compiled library: the public schema with the accuracy of GELU.

    With `tf32` also with whether products of float32 may be of TF32.
    """
    arguments, results = schema.split(") -> ", 1)
    more = "int accuracy, bool tf32" if tf32 else "int accuracy"
    LIB.define(f"_cuda_{name}{arguments}, {more}) -> {results}")
    if tf32:
        _in_tf32.add(name)


def define_fusion(name: str, schema: str) -> None:
    """Define `fastsr::_cuda_<name>` of a fusion, or of packed weights, and put `fastsr::<name>` under the CUDA key.

    There is no other backend to choose, but GELU and TF32 are as they are set when the operator runs.
    """
    define(name, schema, tf32=True)
    LIB.impl(name, lambda *args: _run(name, _first(args), args), "CUDA")


def _first(args: Sequence[Any]) -> Any:
    """The first tensor, by itself or of a list."""
    return args[0][0] if isinstance(args[0], (list, tuple)) else args[0]


def _run(name: str, first: Tensor, args: tuple[Any, ...]) -> Any:
    """`fastsr::_cuda_<name>` with what it takes beside the public operator's arguments."""
    if not _announced:
        _announce(first)
    more = (_gelu.code(), _device.allows_tf32(first)) if name in _in_tf32 else (_gelu.code(),)
    return getattr(torch.ops.fastsr, f"_cuda_{name}")(*args, *more)


def route(op: str) -> None:
    """Put `op`, `op_backward` and those of them that name a backend under the CUDA key, once."""
    if op in _routed:
        return
    _routed.add(op)
    for name in (op, f"{op}_backward"):
        run_triton = _triton.operator(op, name)
        LIB.impl(name, _choosing(op, name, run_triton), "CUDA")
        LIB.impl(f"{name}.cuda", lambda *args, name=name: _run(name, _first(args), args), "CUDA")
        LIB.impl(f"{name}.triton", run_triton, "CUDA")


def _choosing(op: str, name: str, run_triton: Callable[..., Any]) -> Callable[..., Any]:
    """`fastsr::<name>` on a GPU."""
    arguments = [argument.name for argument in getattr(torch.ops.fastsr, name).default._schema.arguments]

    def run(*args: Any) -> Any:
        given = dict(zip(arguments, args, strict=True))
        x = given["inputs"][0] if op == "pointwise" else given["x"]
        if select_kernel(op, x, extents_of(op, given)) == "cuda":
            return _run(name, x, args)
        return run_triton(*args)

    run.__name__ = name
    return run
