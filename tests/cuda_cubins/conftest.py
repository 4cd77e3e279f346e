"""What compiling the kernels and reading what came out needs."""

from __future__ import annotations

import pytest
import sass
from extension_commands import commands


@pytest.fixture(scope="session")
def toolkit() -> None:
    """Skips without nvcc and CUDA's headers."""
    if not any(source.startswith("csrc/cuda/") for source in commands()):
        pytest.skip("needs nvcc and CUDA's headers where setup.py finds them")


@pytest.fixture(scope="session")
def compiler(toolkit: None) -> None:
    """Skips without what reads compiled kernels, too."""
    pytest.importorskip("triton", reason="needs the cuobjdump of Triton's package")
    if not sass.cuobjdump().exists():
        pytest.skip("needs the cuobjdump of Triton's package, which this one lacks")
