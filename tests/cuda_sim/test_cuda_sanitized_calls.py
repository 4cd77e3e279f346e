"""The calls that compute-sanitizer looks at on a GPU (tests/gpu/sanitized_calls.py), in the simulator."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_checks import device_of
from torch.utils._python_dispatch import TorchDispatchMode

sys.path.append(str(Path(__file__).parents[1] / "gpu"))

from sanitized_calls import calls

pytestmark = pytest.mark.usefixtures("cuda_kernels")


class Operators(TorchDispatchMode):
    """The names of fastsr's operators that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "fastsr":
            self.names.add(func.name().removeprefix("fastsr::").removeprefix("_cuda_").split(".")[0])
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(device_of("cuda") == "cuda", reason="the GPU's operators are called within others")
def test_every_cuda_operator_is_among_them() -> None:
    with Operators() as found:
        for name, _, call in calls("cpu"):
            if "float16" not in name and "tf32" not in name and "slice" not in name:
                call()
    every = torch._C._dispatch_get_all_op_names()
    wanted = {name.removeprefix("fastsr::_cuda_").split(".")[0] for name in every if name.startswith("fastsr::_cuda_")}
    assert len(wanted) > 20 and wanted - found.names == set()
