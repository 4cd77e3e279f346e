"""What tests/gpu/conftest.py does, with tests that need no GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

CONFTEST = Path(__file__).with_name("gpu") / "conftest.py"
TESTS = """
import pytest

by_backend = pytest.mark.parametrize("backend", ("cuda", "triton"))

@by_backend
def test_compiles(backend): pass

@by_backend
def test_values(backend): pass

def test_last(): assert lost(), "out of bounds"
"""
FAKE = """
import torch
torch.cuda.is_available = lambda: True
torch.cuda.synchronize = lambda: None
"""
LOST = """
def lost():
    def synchronize(): raise torch.AcceleratorError("an illegal memory access was encountered")
    torch.cuda.synchronize = synchronize
"""


def run(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(CONFTEST, folder)
    (folder / "test_one.py").write_text(tests)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-v", str(folder)]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, "PYTEST_ADDOPTS": ""}, capture_output=True, text=True, check=False
    )


def order(shown: str) -> list[str]:
    lines = [line.split("::")[1].split(" ")[0] for line in shown.splitlines() if "::" in line and "%]" in line]
    return [name.removeprefix("test_") for name in lines]


def test_what_compiles_nothing_comes_first(tmp_path: Path) -> None:
    done = run(tmp_path, TESTS.replace("lost()", "True"))
    assert done.returncode == 0, done.stdout
    assert order(done.stdout) == ["values[cuda]", "last", "values[triton]", "compiles[cuda]", "compiles[triton]"]


def test_a_lost_gpu_ends_the_tests(tmp_path: Path) -> None:
    done = run(tmp_path, FAKE + LOST + TESTS)
    assert done.returncode == 1
    assert order(done.stdout) == ["values[cuda]", "last"]
    assert "AssertionError: out of bounds" in done.stdout and "1 failed, 1 passed" in done.stdout
    assert "cannot be used any more after test_one.py::test_last: an illegal memory access" in done.stdout
