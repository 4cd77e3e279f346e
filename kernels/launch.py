"""What every launcher needs: the one place where kernels start, strides, block sizes, the architecture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import triton
from torch import Tensor

from fastsr._device import allows_tf32, gpu_architecture

MIN_DOT = 16  # the least extent that tl.dot takes


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Start `kernel` on the current device and stream; `constants` holds its constexpr arguments and num_warps etc."""
    _run(kernel, grid, arguments, constants)


def _run(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
    kernel[grid](*arguments, enable_fp_fusion=True, **constants)  # the default is on up to Triton 3.9, off after it


def architecture(x: Tensor) -> str:
    """Such as "sm_90" or "gfx942"; "interpreter" for a tensor on the CPU."""
    if not x.is_cuda:
        return "interpreter"
    return gpu_architecture(x)


def dot_precision(x: Tensor) -> str:
    """How tl.dot multiplies float32: TF32 where PyTorch lets its convolutions do so, otherwise IEEE."""
    return "tf32" if allows_tf32(x) else "ieee"


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def block(extent: int, least: int = 1, most: int | None = None) -> int:
    """The smallest power of two that holds `extent`, between `least` and `most`."""
    size = max(triton.next_power_of_2(max(extent, 1)), least)
    return size if most is None else min(size, most)


def strides(x: Tensor) -> tuple[int, int, int, int]:
    """(n, c, h, w), in elements."""
    n, c, h, w = x.stride()
    return n, c, h, w


def vectors(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The parameters with their elements in order in memory; almost always they are so already."""
    return [p.contiguous() for p in parameters]
