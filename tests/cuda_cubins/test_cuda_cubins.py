"""Gates on the compiled CUDA C++ kernels for every architecture that the extension is built for; no GPU is needed.

Shared memory is checked where it is computed: static_asserts in the launchers hold it to 99 KB.
"""

from __future__ import annotations

import json
import re
from typing import Any

import cuda_cubins
import pytest
import sass
import selections

REGISTERS = 65536
# Threads, where they are not 256.
THREADS = {
    "conv3x3_kernel": 128,
    "filter_gradient_kernel": 128,
    "upsample_kernel": 128,
    "esa_small_kernel": 512,
    "cca_finish_kernel": 1024,
}
# Kernels of which one program per multiprocessor is enough: filters of more than 9 taps, more than 64 channels out,
# some in float32; and two whose programs fill one.
LARGE = re.compile(
    r"^alk\w+<\w+, (32|40|48)\b|norm_backward_kernel<(\w+, 4|float, 2)>"
    r"|^esa_gate_kernel<float|^(esa_moments|alk_condense)_kernel<(float|Tf32)|^(esa_small|cca_finish)_kernel"
)


@pytest.fixture(scope="module")
def report(compiler: None) -> dict[str, Any]:
    return cuda_cubins.report()


@pytest.fixture(scope="module")
def kernels(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = report["kernels"]
    return found


def test_every_kernel_is_compiled_for_every_architecture(kernels: dict[str, dict[str, Any]]) -> None:
    sources = "".join(path.read_text() for path in cuda_cubins.SOURCES[0].parent.glob("*.cuh"))
    defined = set(re.findall(r"__global__ void\b[^{;]*?(\w+_kernel)\(", sources))
    assert {re.split("[<(/]", key)[0] for key in kernels} == defined
    by_architecture = {a: {k.split("/")[0] for k in kernels if k.endswith(f"_{a}")} for a in cuda_cubins.ARCHITECTURES}
    assert len({frozenset(names) for names in by_architecture.values()}) == 1


def test_no_stack_and_no_double_precision(kernels: dict[str, dict[str, Any]]) -> None:
    assert {k: v for k, v in kernels.items() if v["stack"] or v["local"]} == {}
    # The channel attention has as many values per image as a pixel has, and needs it (cca_attention.cuh); the other
    # adds up a few hundred numbers per call.
    in_double = ("cca_attention", "esa_unfold_kernel")
    assert {k: v for k, v in kernels.items() if v["double"] and not k.startswith(in_double)} == {}


def test_registers_leave_room_for_two_programs(kernels: dict[str, dict[str, Any]]) -> None:
    threads = {k: THREADS.get(re.split("[<(/]", k)[0], 256) for k in kernels}
    most = {k: REGISTERS // threads[k] // (1 if LARGE.search(k) else 2) for k in kernels}
    assert {k: v["registers"] for k, v in kernels.items() if v["registers"] > most[k]} == {}


def test_at_most_one_selection_for_an_element(kernels: dict[str, dict[str, Any]]) -> None:
    assert selections.too_many(kernels) == {}


def test_counts_are_those_of_the_baseline(report: dict[str, Any]) -> None:
    """Fewer is fine, except for what the kernels are made of: tensor-core products and accesses of 128 bits.

    After a change on purpose: python tests/cuda_cubins/cuda_cubins.py --write-baseline
    """
    baseline = json.loads(cuda_cubins.BASELINE.read_text())
    if report["nvcc"] != baseline["nvcc"]:
        pytest.skip(f"the baseline is of nvcc {baseline['nvcc']}, this is {report['nvcc']}")
    now, then = report["kernels"], baseline["kernels"]
    assert set(now) == set(then)
    worse = [line for key in now for line in sass.worse(key, now[key], then[key])]
    for key in now:
        products = [count[key]["opcodes"].get("HMMA", 0) for count in (now, then)]
        if products[0] != products[1]:
            worse.append(f"{key}: {products[0]} products, were {products[1]}")
        for kind in ("LDG.128", "STG.128"):
            if now[key]["global"][kind] < then[key]["global"][kind]:
                worse.append(f"{key}: {now[key]['global'][kind]} {kind}, were {then[key]['global'][kind]}")
    assert worse == []
