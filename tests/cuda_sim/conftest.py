"""The CUDA C++ kernels run on the GPU if there is one, otherwise on CPU tensors in the host simulator."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Iterator

import pytest
import simulator
import torch
from kernel_checks import float32_precision

from fastsr import _native


@pytest.fixture(scope="session")
def host_compiler() -> None:
    """Skips where the simulator cannot be built."""
    if shutil.which(simulator.compiler()) is None:
        pytest.skip(f"needs a C++ compiler; there is no {simulator.compiler()}")
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the simulator's fibers are written for x86-64")


@pytest.fixture(scope="module")
def cuda_kernels(host_compiler: None) -> Iterator[None]:
    """fastsr.backend("cuda") runs within this."""
    if torch.cuda.is_available():
        if not _native.CUDA.loaded:
            pytest.skip(f"needs the CUDA operators: {_native.CUDA.reason}")
        with float32_precision("ieee"):
            yield
        return
    with simulator.kernels_on_cpu():
        yield


@pytest.fixture
def threads_in_random_order() -> Iterator[None]:
    """The simulated threads run in another order than usual."""
    simulator.seed = 7
    yield
    simulator.seed = 0
