"""The machine: what figures belong to, and the ceilings that they are held against, measured in the same run."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import fastsr
from fastsr import _native
from fastsr._device import find_device
from fastsr.bench.cases import TORCH_DTYPES
from fastsr.bench.measure import overhead_us, timer
from fastsr.bench.peers import cuda_precision
from fastsr.errors import InputError

_TRIES, _SECONDS = 8, 0.5  # each ceiling is the best of so many tries and more, for so long at least
_PACKAGES = ("torch", "triton", "onnxruntime", "openvino", "numpy")


def timed_device(name: str) -> torch.device:
    """The device called `name`, of a kind that can be timed; InputError if it is not there."""
    return find_device(name, types=("cpu", "cuda"))


def environment(device: torch.device) -> dict[str, Any]:
    """What the figures belong to."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {
        "date": now.strftime("%Y-%m-%d"),
        "time": now.strftime("%H:%M:%S"),
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "kind": device.type,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "cpu_isa": _native.CPU_ISA,
        "fastsr": fastsr.__version__,
        "python": platform.python_version(),
        **{package: _version(package) for package in _PACKAGES},
        **(_cuda(device) if device.type == "cuda" else {}),
    }


def _cuda(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": _run("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "capability": f"sm_{properties.major}{properties.minor}",
        "processors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """What git says of the source tree; None in an installation."""
    root = Path(fastsr.__file__).resolve().parents[1]
    return _run("git", "-C", str(root), *arguments) if (root / ".git").exists() else None


def _run(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.strip().splitlines() or [""])[0] or None if done.returncode == 0 else None


def file_name(facts: dict[str, Any], label: str) -> str:
    """The name of a result: device, date, commit and what it holds."""
    device = re.sub(r"[^a-z0-9]+", "-", str(facts["device"]).lower()).strip("-")
    kind = "" if facts["kind"] == "cuda" else "cpu-"
    return f"{kind}{device}-{facts['date']}-{facts['commit'] or 'installed'}-{label}.json"


def ceilings(device: torch.device, small: bool = False) -> dict[str, float | None]:
    """What this machine can do, the best of some tries, in units of 1e9 a second.

    copy_gbs: bytes read and written by a copy too large for any cache; fma_gflops: multiply-adds without matrix units
    (CPU: in registers, with the instruction set of the kernels; GPU: PyTorch's float32 product), twice their number;
    matrix_<dtype>_gflops: on a GPU, PyTorch's product of large matrices; sgemm_gflops: on a CPU, the same.
    Also timer_overhead_us, what timing adds to each call on the CPU.
    """
    found: dict[str, float | None] = {"timer_overhead_us": overhead_us()}
    size = 1 << 30 if device.type == "cuda" else 64 << 20 if small else 128 << 20
    source = torch.ones(size, dtype=torch.int8, device=device)
    to = torch.empty_like(source)
    found["copy_gbs"] = _best(device, lambda: to.copy_(source), 2 * size)
    side = 8192 if device.type == "cuda" else 768 if small else 1536
    if device.type == "cpu":
        a = torch.rand(side, side)
        found["sgemm_gflops"] = _best(device, lambda: a @ a, 2 * side**3)
        found["fma_gflops"] = None
        if _native.CPU.loaded:
            rounds = 500_000 if small else 2_000_000
            operations = torch.ops.fastsr._cpu_fma(rounds)
            found["fma_gflops"] = _best(device, lambda: torch.ops.fastsr._cpu_fma(rounds), operations)
        return found
    for name, dtype in TORCH_DTYPES.items():
        with cuda_precision("tf32" if name == "tf32" else "ieee"):
            a = torch.randn(side, side, device=device).to(dtype)
            rate = _best(device, lambda a=a: a @ a, 2 * side**3)  # type: ignore[misc]
        found["fma_gflops" if name == "fp32" else f"matrix_{name}_gflops"] = rate
    return found


def _best(device: torch.device, run: Callable[[], Any], amount: float) -> float:
    """`amount` a second in units of 1e9, in the fastest of some runs."""
    run()
    best, begin = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begin < _SECONDS:
        best = min(best, *timer(device)(run, _TRIES))
    return amount / best / 1e6


def main() -> int:
    """Prints the environment and the ceilings of the device that is named as argument."""
    try:
        device = timed_device(sys.argv[1] if len(sys.argv) > 1 else "auto")
    except InputError as error:
        print(f"fastsr: error: {error}", file=sys.stderr)
        return 2
    print(json.dumps({"environment": environment(device), "ceilings": ceilings(device)}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
