"""Loads the compiled libraries and holds the `fastsr` operator namespace.

Operator schemas are defined in Python (`LIB.define` in fastsr/ops), so every operator exists without any binary;
a library that loads only adds kernels to them. Loading touches no device. A library that is missing or does not
load is a reason that `fastsr info` and the fall-back messages quote, never an exception.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from fastsr import _env

LIB = torch.library.Library("fastsr", "DEF")
LIB.define("_cpu_isa(int level) -> int")
LIB.define("_cpu_memory(int bytes) -> int")
LIB.define("_cpu_fma(int rounds) -> int")


@dataclass(frozen=True)
class NativeLibrary:
    """One compiled operator library: its file if it was loaded, otherwise why it was not."""

    name: str
    path: Path | None
    reason: str | None

    @property
    def loaded(self) -> bool:
        return self.reason is None


def _load(name: str) -> NativeLibrary:
    found = sorted(Path(__file__).parent.glob(f"{name}*.so")) + sorted(Path(__file__).parent.glob(f"{name}*.pyd"))
    if not found:
        needs = "nvcc and a CUDA build of PyTorch" if name == "_ops_cuda" else "a C++ compiler"
        return NativeLibrary(name, None, f"{name} is not built: reinstall with {needs} and FASTSR_BUILD=1")
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:
        return NativeLibrary(name, found[0], f"{name} does not load ({error}): reinstall fastsr for this PyTorch")
    return NativeLibrary(name, found[0], None)


def _choose_cpu_isa() -> str | None:
    """Tell the CPU library which instruction set it may use; returns the one it then uses."""
    if not CPU.loaded:
        return None
    asked = _env.cpu_isa()
    level = _env.CPU_ISAS.index(asked) if asked in _env.CPU_ISAS else -1
    return _env.CPU_ISAS[torch.ops.fastsr._cpu_isa(level)]


def _limit_cpu_cache() -> None:
    """Tell the CPU library how much freed memory it may keep."""
    if CPU.loaded:
        asked = _env.cpu_cache_mb()
        torch.ops.fastsr._cpu_memory((_env.CPU_CACHE_MB if asked is None else asked) << 20)


CPU = _load("_ops_cpu")
CUDA = _load("_ops_cuda")
CPU_ISA = _choose_cpu_isa()
_limit_cpu_cache()

# A forked child has torch's record of its threads but not the threads, and waits for them in vain in torch's first
# parallel loop. On one thread nothing waits; torch.set_num_threads asks for more again.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def cpu_isa_problem() -> str | None:
    """Why FASTSR_CPU_ISA cannot be honoured, or None."""
    asked = _env.cpu_isa()
    if asked == "auto" or CPU_ISA is None:
        return None
    if asked not in _env.CPU_ISAS:
        return f"FASTSR_CPU_ISA is {asked!r}; accepted are auto, {', '.join(_env.CPU_ISAS)}"
    if asked != CPU_ISA:
        return f"FASTSR_CPU_ISA is {asked!r}, which this processor lacks; {CPU_ISA!r} is used"
    return None


def cpu_cache_problem() -> str | None:
    """Why FASTSR_CPU_CACHE cannot be honoured, or None."""
    if _env.cpu_cache_mb() is not None:
        return None
    accepted = f"a whole number of megabytes from 0 to {_env.CPU_CACHE_MOST_MB}"
    return f"FASTSR_CPU_CACHE is not {accepted}; {_env.CPU_CACHE_MB} is used"


def empty_cache() -> int:
    """Give back the memory that the CPU kernels keep for their next feature maps.

    Freed maps of a megabyte and more are kept, up to FASTSR_CPU_CACHE megabytes (512), because touching fresh memory
    costs about as much as a cheap operator. Live tensors are not affected. On a GPU, memory is PyTorch's
    (`torch.cuda.empty_cache`).

    Returns:
        The number of bytes given back.
    """
    if not CPU.loaded:
        return 0
    kept = torch.ops.fastsr._cpu_memory(0)
    _limit_cpu_cache()
    return kept


def build_info() -> dict[str, str] | None:
    """What the binaries were built with, or None for a pure Python installation."""
    try:
        from fastsr import _C  # type: ignore[attr-defined]
    except ImportError:
        return None
    return dict(_C.build_info())
