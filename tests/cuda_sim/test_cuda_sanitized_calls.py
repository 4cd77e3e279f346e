"""The calls that compute-sanitizer looks at on a GPU (tests/gpu/sanitized_calls.py), in the simulator."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import simulator
import torch
from kernel_checks import device_of
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.append(str(Path(__file__).parents[1] / "gpu"))
sys.path.append(str(Path(__file__).parents[1] / "cuda_cubins"))

from cuda_cubins import BASELINE, readable
from sanitized_calls import NETS, calls

pytestmark = [
    pytest.mark.usefixtures("cuda_kernels"),
    pytest.mark.skipif(device_of("cuda") == "cuda", reason="a GPU does not tell which kernels it started"),
]


class Operators(TorchDispatchMode):
    """The names of fastsr's operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastsr":
            self.names.add(func.name().removeprefix("fastsr::").removeprefix("_cuda_").split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module")
def called(cuda_kernels: None) -> Iterator[tuple[set[str], set[str]]]:
    """The operators and the kernels of all calls; other layouts start no others."""
    simulator.kernels = set()
    try:
        with Operators() as found:
            for name, precision, call in calls("cpu"):
                simulator.tf32 = precision == "tf32"
                if "slice" not in name:
                    call()
        yield found.names, simulator.kernels
    finally:
        simulator.kernels, simulator.tf32 = None, False


def test_every_cuda_operator_is_among_them(called: tuple[set[str], set[str]]) -> None:
    every = torch._C._dispatch_get_all_op_names()
    wanted = {name.removeprefix("fastsr::_cuda_").split(".")[0] for name in every if name.startswith("fastsr::_cuda_")}
    assert len(wanted) > 20 and wanted - called[0] == set()


def test_they_start_every_kernel_that_is_compiled(called: tuple[set[str], set[str]]) -> None:
    """By the names of the baseline, with all template arguments."""
    started = {readable(name).replace("BFloat16", "bf16").replace("Half", "half") for name in called[1]}
    assert started == {key.split("/")[0] for key in json.loads(BASELINE.read_text())["kernels"]}


def test_the_networks_come_first() -> None:
    """Where time is short, it is the rest that is not reached."""
    names = [name.split()[0] for name, _, _ in calls("cpu")]
    assert names[: 4 * len(NETS)] == 4 * list(NETS)
