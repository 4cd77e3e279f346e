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
CPU_CACHE_MOST_MB = 10**9


def cpu_cache_mb() -> int | None:
    """FASTSR_CPU_CACHE: megabytes of freed maps that the CPU kernels keep; None if it is no whole number in bounds."""
    asked = os.environ.get("FASTSR_CPU_CACHE", "").strip() or str(CPU_CACHE_MB)
    megabytes = int(asked[:20]) if asked.isdecimal() else -1
    return megabytes if 0 <= megabytes <= CPU_CACHE_MOST_MB else None


def gelu() -> str:
    """FASTSR_GELU: the accuracy of GELU in the GPU kernels."""
    return os.environ.get("FASTSR_GELU", "").strip().lower() or "default"


def launched() -> bool:
    """Whether a launcher other than torchrun, such as mpirun or srun, told this process of its place among others."""
    return all(os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"))


def master_port() -> str:
    """MASTER_PORT, where the processes of a training run meet."""
    return os.environ.get("MASTER_PORT", "")


def fix_cublas_workspace() -> None:
    """Sets CUBLAS_WORKSPACE_CONFIG, unless it is set: without it PyTorch's deterministic mode refuses cuBLAS."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
