"""What `fastsr info` shows: versions, devices, and per operator which backend would run and why not the others."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

from fastsr import _dispatch, _env, _native

try:
    __version__ = importlib.metadata.version("fastsr")
except importlib.metadata.PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    devices: list[dict[str, Any]] = [
        {
            "device": "cpu",
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
        }
    ]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            devices.append(
                {
                    "device": f"cuda:{i}",
                    "name": properties.name,
                    "capability": f"sm_{properties.major}{properties.minor}",
                    "memory_gib": round(properties.total_memory / 2**30, 1),
                }
            )
    return devices


def _operators() -> dict[str, dict[str, Any]]:
    """Per operator and device type: the backend that would run float32, and the reasons against the others."""
    kinds = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    table: dict[str, dict[str, Any]] = {}
    for op in _dispatch.OPERATORS:
        table[op] = {}
        for kind in kinds:
            probe = torch.empty(1, 16, 16, 16, device=kind)
            reasons = {name: _dispatch.can_run(op, name, probe) for name in _dispatch.BACKENDS}
            try:
                chosen = _dispatch.select(op, probe)
            except Exception as error:
                chosen = f"error: {error}"
            table[op][kind] = {
                "backend": chosen,
                "unavailable": {name: reason for name, reason in reasons.items() if reason is not None},
            }
    return table


def summary() -> str:
    """One line on what was found: versions, compiler, instruction set, CUDA."""
    build = _native.build_info()
    operators = (
        f"C++ operators built by {build['compiler']}, running {_native.CPU_ISA}"
        if build is not None and _native.CPU.loaded
        else f"no C++ operators ({_native.CPU.reason})"
    )
    cuda = "no CUDA operators" if build is None or build["cuda"] == "none" else f"CUDA {build['cuda']} operators"
    return (
        f"fastsr {__version__}: {operators}; {cuda}; torch {torch.__version__}, "
        f"CUDA device {torch.cuda.get_device_name() if torch.cuda.is_available() else 'none'}"
    )


def info() -> dict[str, Any]:
    """Versions, devices, build and per-operator backends, as plain data that JSON can hold."""
    return {
        "fastsr": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "build": _native.build_info(),
        "libraries": {
            name: "loaded" if library.loaded else library.reason
            for name, library in (("cpu", _native.CPU), ("cuda", _native.CUDA))
        },
        "cpu_isa": _native.CPU_ISA,
        "cpu_isa_problem": _native.cpu_isa_problem(),
        "cpu_cache_problem": _native.cpu_cache_problem(),
        "settings": {
            "FASTSR_BACKEND": _env.backend(),
            "FASTSR_CPU_ISA": _env.cpu_isa(),
            "FASTSR_CPU_CACHE": _env.cpu_cache_mb(),
            "FASTSR_GELU": _env.gelu(),
        },
        "forced_backend": _dispatch.current_backend(),
        "devices": _devices(),
        "operators": _operators(),
    }
