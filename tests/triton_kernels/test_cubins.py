"""Gates on the compiled kernels for sm_80, sm_90, sm_100 and sm_120, which need no GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sass
from cubin_cases import CASES
from cubins import PIXELS

import fastsr

HERE = Path(__file__).parent
KERNELS = Path(fastsr.__file__).parents[1] / "kernels"
NO_GPU_NEEDED = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    triton = pytest.importorskip("triton")
    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump").exists():
        pytest.skip("needs the cuobjdump of Triton's package, which this one lacks")
    file = tmp_path_factory.mktemp("cubins") / "report.json"
    environment = {**NO_GPU_NEEDED, "PYTHONPATH": str(Path(fastsr.__file__).parents[1])}
    command = [sys.executable, str(HERE / "cubins.py"), str(file)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(file.read_text())
    return result


@pytest.fixture(scope="module")
def kernels(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = report["kernels"]
    return found


def test_every_kernel_is_compiled(kernels: dict[str, dict[str, Any]]) -> None:
    compiled = {key.split("/")[1].split("#")[0] for key in kernels}
    defined = {
        f"{path.stem}.{name}"
        for path in KERNELS.glob("*.py")
        for name in re.findall(r"^def (\w+_kernel)\(", path.read_text(), re.MULTILINE)
    }
    assert defined - compiled == set()


def test_no_stack_no_local_memory(kernels: dict[str, dict[str, Any]]) -> None:
    allowed = {case.name: case.stack for case in CASES}
    wrong = {k: (v["stack"], v["local"]) for k, v in kernels.items() if v["stack"] > allowed[k.split("/")[0]]}
    wrong |= {k: (v["stack"], v["local"]) for k, v in kernels.items() if v["local"] > 0 and v["stack"] == 0}
    assert wrong == {}


def test_registers_leave_room_for_two_programs(kernels: dict[str, dict[str, Any]]) -> None:
    """128 with 256 threads; those few that a multiprocessor holds one of have a ceiling of their own."""
    alone = {f"{c.name}/{name}/sm_{a}": most for c in CASES for name, by in c.alone.items() for a, most in by.items()}
    limits = {k: alone.get(k, 65536 // (2 * 32 * v["warps"])) for k, v in kernels.items()}
    assert {k: v["registers"] for k, v in kernels.items() if v["registers"] > limits[k]} == {}
    assert set(alone) <= set(kernels)


def test_shared_memory_fits_the_small_architectures(kernels: dict[str, dict[str, Any]]) -> None:
    limits = {case.name: case.shared for case in CASES}
    assert {k: v["shared"] for k, v in kernels.items() if v["shared"] > limits[k.split("/")[0]]} == {}


def test_no_double_precision(kernels: dict[str, dict[str, Any]]) -> None:
    allowed = {f"{case.name}/{name}" for case in CASES for name in case.double}
    using = {k.rsplit("/", 1)[0] for k, v in kernels.items() if v["double"]}
    assert using == allowed


def test_banded_matrices_cost_what_they_should(kernels: dict[str, dict[str, Any]]) -> None:
    """Half a tensor-core instruction per element and product of 16 x 32 by 32 x 16, of which there are five."""
    channels = {case.name: case.channels for case in CASES}
    for kernel, most in (("alk_toeplitz.mix_kernel", 110), ("alk_toeplitz_backward.transpose_kernel", 42)):
        found = {k: v for k, v in kernels.items() if kernel in k}
        assert {k.split("/")[-1] for k in found} == {"sm_80", "sm_90", "sm_100"}
        for key, counts in found.items():
            elements = PIXELS[kernel] * channels[key.split("/")[0]] / (32 * counts["warps"])  # of a thread
            assert counts["opcodes"]["HMMA"] == 2.5 * elements, key
            assert counts["per_element"] <= most, key


def test_counts_are_those_of_the_baseline(report: dict[str, Any]) -> None:
    """Fewer is fine. After a change on purpose: python tests/triton_kernels/cubins.py --write-baseline."""
    baseline = json.loads((HERE / "baseline.json").read_text())
    if report["triton"] != baseline["triton"]:
        pytest.skip(f"the baseline is of Triton {baseline['triton']}, this is {report['triton']}")
    assert set(report["kernels"]) == set(baseline["kernels"])
    now, then = report["kernels"], baseline["kernels"]
    worse = [line for key in now for line in sass.worse(key, now[key], then[key])]
    assert worse == []
