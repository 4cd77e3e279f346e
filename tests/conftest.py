"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it as it is imported, which any test may bring about

import fastsr
from fastsr import _env, _native

# PyTorch's rounding errors, which the 2x rule goes by, depend on its threads: as many on every machine.
torch.set_num_threads(2)

# What a machine for kernels may lack of the packages of fastsr and fastsr[test]: files that import them skip there.
PACKAGES = ("cv2", "hypothesis", "msgspec", "yaml")
SHARED = Path(__file__).resolve().parents[2] / "shared"  # measuring data beside the checkout, absent elsewhere


class _File(pytest.Module):
    """Skips a file of tests, and says so, where a package that it imports is not installed."""

    def collect(self) -> Iterable[pytest.Item | pytest.Collector]:
        try:
            return super().collect()
        except self.CollectError as error:
            name = _not_found(error)
            if name not in PACKAGES:
                raise
            pytest.skip(f"{self.path.name} needs the package {name}, which is not installed", allow_module_level=True)


def _not_found(error: BaseException | None) -> str | None:
    """The package that this error comes from."""
    while error is not None and not isinstance(error, ModuleNotFoundError):
        error = error.__cause__
    return None if error is None else error.name


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module:
    return _File.from_parent(parent, path=module_path)


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Every test starts from the same random state and leaves no forced backend behind."""
    torch.manual_seed(0)
    forced = fastsr.current_backend()
    yield
    fastsr.backend(forced)


@pytest.fixture
def shared() -> Path:
    """The folder with official checkpoints and Set5."""
    if not SHARED.is_dir():
        pytest.skip("needs the official checkpoints and Set5 in ../shared, which is not there")
    return SHARED


@pytest.fixture
def cpu_kernels() -> None:
    """Skips where the C++ operators are not built."""
    if not _native.CPU.loaded:
        pytest.skip(f"needs the C++ operators: {_native.CPU.reason}")


@pytest.fixture(params=_env.CPU_ISAS)
def cpu_isa(request: pytest.FixtureRequest, cpu_kernels: None) -> Iterator[str]:
    """Runs the test once per instruction set that this processor has."""
    level = _env.CPU_ISAS.index(request.param)
    if torch.ops.fastsr._cpu_isa(level) != level:
        torch.ops.fastsr._cpu_isa(-1)
        pytest.skip(f"this processor has no {request.param}")
    yield request.param
    torch.ops.fastsr._cpu_isa(-1)
