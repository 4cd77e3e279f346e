"""The Triton kernels run on the GPU if there is one, otherwise on CPU tensors in Triton's interpreter."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastsr import _triton


@pytest.fixture(scope="module", autouse=True)
def _somewhere_to_run() -> Iterator[None]:
    if _triton.MISSING is not None:
        pytest.skip(f"needs Triton: {_triton.MISSING}")
    if torch.cuda.is_available():
        yield
        return
    from interpreter import kernels_on_cpu

    with kernels_on_cpu():
        yield
