"""Whether the Triton kernels can run, and the way into them. Nothing here imports Triton before a kernel is called."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fastsr import _device
from fastsr._native import LIB
from fastsr._shapes import check

MIN_VERSION = (3, 6)

DEVICES: tuple[str, ...] = ("cuda",)  # tests of the interpreter add "cpu"
OPERATORS: dict[str, Callable[..., Any]] = {}  # by name, what runs under the CUDA key


def _missing() -> str | None:
    """Why Triton cannot be used at all, or None. Looks at the installation only."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: pip install 'triton>=3.6'"
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # part of another distribution, such as pytorch-triton
        return None
    have = tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
    if have < MIN_VERSION:
        return f"Triton is {version}, these kernels need 3.6 or newer"
    return None


MISSING = _missing()


def reason_against(x: Tensor, dtypes: Sequence[torch.dtype]) -> str | None:
    """Why the Triton kernels cannot take maps like `x`, or None. Traceable: plain globals and tensor metadata."""
    return MISSING or _device.reason_against("triton", x, dtypes, DEVICES)


def operator(op: str, name: str) -> Callable[..., Any]:
    """`name` of kernels/<op>.py as an operator's implementation, imported at its first call.

    Checks the arguments' shapes, for callers who did not come by fastsr.ops. Runs on the device of the first argument
    (a map or a list of maps) and on that device's current stream.
    """
    launcher: Callable[..., Any] | None = None
    arguments: list[str] = []

    def run(*args: Any) -> Any:
        nonlocal launcher, arguments
        if launcher is None:
            launcher = getattr(importlib.import_module(f"fastsr.kernels.{op}"), name)
            schema = getattr(torch.ops.fastsr, name).default._schema
            arguments = [argument.name for argument in schema.arguments]
        check(op, name, arguments, args)
        with torch.cuda.device_of(args[0][0] if isinstance(args[0], (list, tuple)) else args[0]):
            return launcher(*args)

    run.__name__ = name
    OPERATORS[name] = run
    return run


def define_fusion(op: str, schema: str, fake: Callable[..., Any]) -> None:
    """Define `fastsr::_triton_<op>`, for inference, which `op` of kernels/<op>.py runs; fastsr/ops/<op>.py checks."""
    name = f"_triton_{op}"

    def run(x: Tensor, *rest: Any) -> Any:
        launcher = getattr(importlib.import_module(f"fastsr.kernels.{op}"), op)
        with torch.cuda.device_of(x):
            return launcher(x, *rest)

    LIB.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    LIB.impl(name, run, "CUDA")
    torch.library.register_fake(f"fastsr::{name}", fake, lib=LIB)
    OPERATORS[name] = run
