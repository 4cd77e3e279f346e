"""What compiling the kernels and reading what came out needs."""

from __future__ import annotations

import shutil

import pytest
import sass


@pytest.fixture(scope="session")
def compiler() -> None:
    """Skips without it."""
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    pytest.importorskip("triton", reason="needs the cuobjdump of Triton's package")
    if not sass.cuobjdump().exists():
        pytest.skip("needs the cuobjdump of Triton's package, which this one lacks")
