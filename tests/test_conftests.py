"""What the tests' conftest.py and that of tests/gpu do, with tests that need neither a GPU nor a package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
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


def run(conftest: Path, folder: Path, **files: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(conftest, folder)
    for name, content in files.items():
        (folder / f"{name}.py").write_text(content)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-ra", "-v", str(folder)]
    path = os.pathsep.join(filter(None, [str(HERE.parent), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "PYTEST_ADDOPTS": ""}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def order(shown: str) -> list[str]:
    lines = [line.split("::")[1].split(" ")[0] for line in shown.splitlines() if "::" in line and "%]" in line]
    return [name.removeprefix("test_") for name in lines]


def test_what_compiles_nothing_comes_first(tmp_path: Path) -> None:
    done = run(HERE / "gpu" / "conftest.py", tmp_path, test_one=TESTS.replace("lost()", "True"))
    assert done.returncode == 0, done.stdout
    assert order(done.stdout) == ["values[cuda]", "last", "values[triton]", "compiles[cuda]", "compiles[triton]"]


def test_a_lost_gpu_ends_the_tests(tmp_path: Path) -> None:
    done = run(HERE / "gpu" / "conftest.py", tmp_path, test_one=FAKE + LOST + TESTS)
    assert done.returncode == 1
    assert order(done.stdout) == ["values[cuda]", "last"]
    assert "AssertionError: out of bounds" in done.stdout and "1 failed, 1 passed" in done.stdout
    assert "cannot be used any more after test_one.py::test_last: an illegal memory access" in done.stdout


def test_files_that_need_a_missing_package_skip_and_others_do_not(tmp_path: Path) -> None:
    without = "import sys\nsys.modules['yaml'] = sys.modules['msgspec'] = None\n"
    done = run(
        HERE / "conftest.py",
        tmp_path,
        test_direct=without + "import yaml\ndef test_one(): pass\n",
        test_indirect=without + "import fastsr.train.recipe\ndef test_two(): pass\n",
        test_wrong="import fastsr.no_such_file\n",
        test_whole="def test_three(): pass\n",
    )
    assert done.returncode == 2
    assert "test_direct.py needs the package yaml, which is not installed" in done.stdout
    assert "test_indirect.py needs the package msgspec, which is not installed" in done.stdout
    assert "No module named 'fastsr.no_such_file'" in done.stdout and "2 skipped, 1 error" in done.stdout
