"""Compiles the kernels for GPUs that need not be there, and counts what came out.

    python tests/triton_kernels/cubins.py report.json      # the counts of every case (cubin_cases.py)
    python tests/triton_kernels/cubins.py report.json 90   # for one architecture
    python tests/triton_kernels/cubins.py --write-baseline # keeps them as tests/triton_kernels/baseline.json

The launchers run on tensors without memory, with a driver that names a GPU and has none. In place of a launch Triton
does all that comes before one: it specialises the arguments and compiles; its own cuobjdump disassembles what comes
out. Must run without TRITON_INTERPRET.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).parents[1]))  # also where this is a program

import sass

BASELINE = Path(__file__).with_name("baseline.json")
# Of a program, where its tile does not say so; 256 pixels of a quarter of the channels are 64.
PIXELS = {
    "alk_toeplitz.mix_kernel": 256,
    "alk_toeplitz_backward.transpose_kernel": 64,
    "alk_toeplitz_backward.weight_gradient_kernel": 64,
}


class NoDriver:
    """What Triton asks a GPU's driver before it launches."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self) -> int:
        return self.capability  # Triton keeps what it compiled by device

    def get_current_stream(self, device: int = 0) -> int:
        return 0


def measure(binary: Any, elements: int) -> dict[str, Any]:
    """Registers, stack, shared memory, and instructions by opcode, of one compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary.asm["cubin"])
        file.flush()
        (counts,) = sass.measure(Path(file.name)).values()
    warps = binary.metadata.num_warps
    per_element = round(counts["instructions"] * 32 * warps / elements, 2)
    return {"warps": warps, "shared": binary.metadata.shared, "per_element": per_element, **counts}


def report(task: tuple[int, int]) -> dict[str, Any]:
    """All launches of one case for one architecture, by "case/file.kernel/sm_90"."""
    from cubin_cases import CASES
    from triton.runtime.driver import driver

    from fastsr.kernels import launch

    index, capability = task
    driver.set_active(NoDriver(capability))
    case = CASES[index]
    module = importlib.import_module(f"fastsr.kernels.{case.operator}")
    results: dict[str, Any] = {}

    def run(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        name = f"{case.name}/{kernel.fn.__module__.split('.')[-1]}.{kernel.fn.__name__}"
        same = sum(key.startswith((f"{name}/", f"{name}#")) for key in results)
        key = f"{name}{f'#{same + 1}' if same else ''}/sm_{capability}"
        pixels = PIXELS.get(name.split("/")[1], constants.get("BP", constants.get("BM", 1)))
        elements = pixels * case.channels
        binary = kernel.warmup(*arguments, grid=grid, enable_fp_fusion=True, **constants)
        results[key] = measure(binary, elements)

    with patch.object(launch, "_run", run), patch.object(launch, "architecture", lambda _: f"sm_{capability}"):
        case.run(module)
    assert results, f"{case.name} launches nothing"
    return results


def report_all(only: set[int]) -> dict[str, Any]:
    from cubin_cases import CASES

    tasks = [(i, sm) for i, case in enumerate(CASES) for sm in case.architectures if not only or sm in only]
    with ProcessPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        return {key: value for results in pool.map(report, tasks) for key, value in results.items()}


if __name__ == "__main__":
    import triton

    file, *only = sys.argv[1:]
    counts = {"triton": triton.__version__, "kernels": dict(sorted(report_all({int(sm) for sm in only}).items()))}
    to = BASELINE if file == "--write-baseline" else Path(file)
    to.write_text(json.dumps(counts, indent=1) + "\n")
