"""The only place that reads environment variables. Every knob is listed in the README's table."""

from __future__ import annotations

import os

CPU_ISAS = ("portable", "avx2", "avx512")  # in ascending order; the index is what the C++ side takes


def backend() -> str:
    """FASTSR_BACKEND: the backend forced from outside, or "auto"."""
    return os.environ.get("FASTSR_BACKEND", "").strip().lower() or "auto"


def cpu_isa() -> str:
    """FASTSR_CPU_ISA: the highest instruction set the CPU kernels may use, or "auto"."""
    return os.environ.get("FASTSR_CPU_ISA", "").strip().lower() or "auto"


CPU_CACHE_MB = 512


def cpu_cache_mb() -> int | None:
    """FASTSR_CPU_CACHE: megabytes of freed maps that the CPU kernels keep; None if it is no whole number from 0 on."""
    asked = os.environ.get("FASTSR_CPU_CACHE", "").strip() or str(CPU_CACHE_MB)
    return int(asked) if asked.isdecimal() else None


def gelu() -> str:
    """FASTSR_GELU: the accuracy of GELU in the GPU kernels."""
    return os.environ.get("FASTSR_GELU", "").strip().lower() or "default"
