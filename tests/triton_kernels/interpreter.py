"""Makes Triton's interpreter run the kernels on CPU tensors: repairs it, and leads the operators there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

import fastsr
from fastsr import _triton
from fastsr._dispatch import OPERATORS

# An operation takes the interpreter the same time whatever the tile: larger tiles, and still several in most tests.
TILES = Path(__file__).with_name("interpreter_tiles.json")


def _to_bf16(data: np.ndarray) -> np.ndarray:
    """float32 to the bits of bfloat16, rounded to nearest even."""
    rounded = torch.from_numpy(np.ascontiguousarray(data, dtype=np.float32)).bfloat16()
    return rounded.view(torch.uint16).numpy().reshape(data.shape)


def _from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def repair() -> None:
    """Four repairs of the interpreter.

    It holds bfloat16 as bits: it truncates when it rounds, and its tl.dot multiplies the bits. It patches
    triton.language anew at every call of one jitted function by another, which takes longer than the call itself:
    the launch has done so already. And before Triton 3.9, a scalar as a loop's bound is an array of one element, which
    NumPy no longer takes for a number.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    if getattr(builder, "repaired_by_fastsr", False):
        return
    builder.repaired_by_fastsr = True
    handle, cast, dot = interpreter.TensorHandle, builder.cast_impl, builder.create_dot

    def cast_impl(self: Any, source: Any, to: Any) -> Any:
        if source.dtype.scalar == tl.float32 and to.scalar == tl.bfloat16:
            return handle(_to_bf16(source.data), tl.bfloat16)
        if source.dtype.scalar == tl.bfloat16 and to.scalar == tl.float32:
            return handle(_from_bf16(source.data), tl.float32)
        return cast(self, source, to)

    def create_fp_to_fp(self: Any, source: Any, to: Any, _rounding: Any) -> Any:
        return cast_impl(self, source, to)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        def floats(x: Any) -> Any:
            return handle(_from_bf16(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x

        return dot(self, floats(a), floats(b), *rest)

    builder.cast_impl = builder.create_fp_trunc = builder.create_fp_ext = cast_impl
    builder.create_fp_to_fp = create_fp_to_fp
    builder.create_dot = create_dot

    patch_tensor = interpreter._patch_lang_tensor

    def patch_lang_tensor(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    interpreter._patch_lang_tensor = patch_lang_tensor

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self.rewrite()(*args, **kwargs)

    interpreter._patch_lang(tl.zeros.fn)  # for jitted functions in Triton itself, which know the language as tl.core
    interpreter.InterpretedFunction.__call__ = call


def _only_when_forced(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        assert fastsr.current_backend() == "triton", f"{name} is called without fastsr.backend('triton')"
        return run(*args)

    return call


@contextmanager
def kernels_on_cpu() -> Iterator[None]:
    """Within it, fastsr.backend("triton") takes CPU tensors, and the operators' CPU key runs the Triton launchers."""
    from fastsr.kernels import config

    repair()
    default = config.table(config.DEFAULT)
    table = {"kernels": {**default["kernels"], **json.loads(TILES.read_text())}}
    library = torch.library.Library("fastsr", "IMPL")
    devices = _triton.DEVICES
    try:
        _triton.DEVICES = (*devices, "cpu")
        for name, run in _triton.OPERATORS.items():
            library.impl(name, _only_when_forced(name, run), "CPU", allow_override=True)
            if name.removesuffix("_backward") in OPERATORS:
                library.impl(f"{name}.triton", run, "CPU")
        config.nearest.cache_clear()
        # GPUs do not warn of infinity and NaN either.
        with patch.object(config, "table", lambda _: table), np.errstate(all="ignore"):
            yield
    finally:
        _triton.DEVICES = devices
        config.nearest.cache_clear()
        library._destroy()
