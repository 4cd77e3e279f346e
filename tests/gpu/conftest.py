"""The order of the tests on a GPU, and their end where the GPU cannot be used any more."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent


def _cost(item: pytest.Item) -> int:
    """torch.compile takes longest, Triton's compiler a while for every kernel, CUDA C++ is compiled already."""
    if HERE not in item.path.parents:
        return 0
    return 2 if "compiles" in item.name else 1 if "triton" in item.name else 0


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where time is short, it is what has to be compiled that is cut off."""
    items.sort(key=_cost)


def pytest_runtest_logfinish(nodeid: str) -> None:
    """After an access out of bounds nothing runs in this process any more: all tests behind it would fail, too."""
    if not torch.cuda.is_available():
        return
    try:
        torch.cuda.synchronize()
    except RuntimeError as error:
        pytest.exit(f"the GPU cannot be used any more after {nodeid}: {error}", returncode=1)
