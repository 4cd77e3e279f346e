"""Compiles the kernels for GPUs that need not be there, and counts what came out.

    python tests/triton_kernels/cubins.py report.json      # the counts of every case (cubin_cases.py)
    python tests/triton_kernels/cubins.py --write-baseline # keeps them as tests/triton_kernels/baseline.json

The launchers run on tensors without memory; in place of a launch, the kernel is compiled with the arguments'
specialisation for each architecture, and Triton's own cuobjdump disassembles it. Must run without TRITON_INTERPRET.
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

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))  # also where this is a program

import sass

BASELINE = Path(__file__).with_name("baseline.json")
POINTERS = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32", torch.float64: "*fp64"}
POINTERS[torch.int32] = "*i32"
ALIGNED = [["tt.divisibility", 16]]

# Of a program, where its tile does not say so; 256 pixels of a quarter of the channels are 64.
PIXELS = {
    "alk_toeplitz.mix_kernel": 256,
    "alk_toeplitz_backward.transpose_kernel": 64,
    "alk_toeplitz_backward.weight_gradient_kernel": 64,
}

Signature = str | tuple[Any, ...]


def specialise(value: Any, path: tuple[int, ...], constants: dict[Any, Any], attributes: dict[Any, Any]) -> Signature:
    """The type of an argument as Triton would specialise it, adding to `constants` and `attributes`."""
    if isinstance(value, tuple):
        return tuple(specialise(v, (*path, i), constants, attributes) for i, v in enumerate(value))
    if value is None or (isinstance(value, int) and value == 1):
        constants[path] = value
        return "constexpr"
    if isinstance(value, torch.Tensor):
        attributes[path] = ALIGNED
        return POINTERS[value.dtype]
    if isinstance(value, int):
        if value % 16 == 0:
            attributes[path] = ALIGNED
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    assert isinstance(value, float), value
    return "fp32"


def compiled(kernel: Any, arguments: tuple[Any, ...], constants: dict[str, Any], capability: int) -> Any:
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    names = [p.name for p in kernel.params]
    given = dict(zip(names, arguments, strict=False))
    given.update({k: v for k, v in constants.items() if k in names})
    options = {k: v for k, v in constants.items() if k not in names}
    signature: dict[str, Signature] = {}
    values: dict[Any, Any] = {}
    attributes: dict[Any, Any] = {}
    for i, parameter in enumerate(kernel.params):
        if parameter.is_constexpr:
            signature[parameter.name] = "constexpr"
            values[(i,)] = given[parameter.name]
        else:
            signature[parameter.name] = specialise(given[parameter.name], (i,), values, attributes)
    source = ASTSource(kernel, signature, values, attributes)
    return compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True, **options})


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

    from fastsr.kernels import launch

    index, capability = task
    case = CASES[index]
    module = importlib.import_module(f"fastsr.kernels.{case.operator}")
    results: dict[str, Any] = {}

    def run(kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], constants: dict[str, Any]) -> None:
        name = f"{case.name}/{kernel.fn.__module__.split('.')[-1]}.{kernel.fn.__name__}"
        same = sum(key.startswith((f"{name}/", f"{name}#")) for key in results)
        key = f"{name}{f'#{same + 1}' if same else ''}/sm_{capability}"
        pixels = PIXELS.get(name.split("/")[1], constants.get("BP", constants.get("BM", 1)))
        elements = pixels * case.channels
        results[key] = measure(compiled(kernel, arguments, constants, capability), elements)

    with patch.object(launch, "_run", run), patch.object(launch, "architecture", lambda _: f"sm_{capability}"):
        case.run(module)
    assert results, f"{case.name} launches nothing"
    return results


def report_all() -> dict[str, Any]:
    from cubin_cases import CASES

    tasks = [(i, capability) for i, case in enumerate(CASES) for capability in case.architectures]
    with ProcessPoolExecutor(max_workers=min(2, os.cpu_count() or 1)) as pool:
        return {key: value for results in pool.map(report, tasks) for key, value in results.items()}


if __name__ == "__main__":
    import triton

    counts = {"triton": triton.__version__, "kernels": dict(sorted(report_all().items()))}
    to = BASELINE if sys.argv[1:] == ["--write-baseline"] else Path(sys.argv[1])
    to.write_text(json.dumps(counts, indent=1) + "\n")
