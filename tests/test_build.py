"""The package: what a wheel contains, and that it works without a compiler."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import types
import zipfile
from pathlib import Path

import pytest
from torch.utils import cpp_extension

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built as on a machine without a compiler."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", str(folder)]
    done = subprocess.run(
        [*command, str(ROOT)], env={**os.environ, "FASTSR_BUILD": "0"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_kernels_are_installed_under_fastsr(pure_wheel: Path) -> None:
    files = zipfile.ZipFile(pure_wheel).namelist()
    tops = {f.split("/")[0] for f in files}
    assert {t for t in tops if not t.endswith(".dist-info")} == {"fastsr"}
    assert "fastsr/kernels/__init__.py" in files and "fastsr/py.typed" in files
    sources = {p.relative_to(ROOT).as_posix() for p in (ROOT / "fastsr").rglob("*.py")}
    assert sources - set(files) == set()


def test_pure_python_installation_works(pure_wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(pure_wheel).extractall(tmp_path / "site")
    code = """
import fastsr, torch
assert fastsr.__file__.startswith(__import__('sys').argv[1]), fastsr.__file__
import fastsr.kernels
assert 'not built' in fastsr.can_run('pixel_norm', 'cpu', torch.ones(1, 2, 3, 3))
assert fastsr.create_model('alkdnet', num_block=1)(torch.rand(1, 3, 16, 16)).shape == (1, 3, 32, 32)
print(fastsr.info()['libraries']['cpu'])
"""
    site = str(tmp_path / "site")
    done = subprocess.run(
        [sys.executable, "-c", code, site],
        env={**os.environ, "PYTHONPATH": site},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "FASTSR_BUILD=1" in done.stdout


def test_benchmarks_run_from_an_installation(pure_wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(pure_wheel).extractall(tmp_path / "site")
    arguments = [
        "bench",
        "ops",
        "--names",
        "pixel_norm",
        "--shape",
        "8x8",
        "--quick",
        "--device",
        "cpu",
        "--seconds",
        "0.1",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "fastsr", *arguments, "--json", "x.json", "--html", "x.html"],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "x.json").exists() and (tmp_path / "x.html").exists()


@pytest.mark.parametrize(
    ("cuda", "listed", "wanted"),
    [
        (None, None, "8.0;8.6;8.9;9.0a;10.0;12.0+PTX"),
        (None, "8.0 9.0", "8.0 9.0"),
        ("native", None, "8.6;9.0a"),
        ("native", "7.5 8.0 9.0+PTX", "8.6;9.0a"),  # as images with PyTorch have it set
    ],
)
def test_architectures(monkeypatch: pytest.MonkeyPatch, cuda: str | None, listed: str | None, wanted: str) -> None:
    """Those of the GPUs that are here with FASTSR_CUDA=native, whatever else is listed."""
    for name, value in (("FASTSR_CUDA", cuda), ("TORCH_CUDA_ARCH_LIST", listed), ("FASTSR_BUILD", "0")):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    found = runpy.run_path(str(ROOT / "setup.py"))["cuda_architectures"]
    gpus = [(9, 0), (8, 6), (9, 0)]
    here = types.SimpleNamespace(device_count=lambda: len(gpus), get_device_capability=gpus.__getitem__)
    assert found(types.SimpleNamespace(cuda=here)) == wanted


ARM_FILES = ["team.cpp", "memory.cpp", *sorted(f"isa/{p.name}" for p in (ROOT / "csrc/cpu/isa").glob("*.cpp"))]


@pytest.mark.parametrize("file", ARM_FILES)
def test_kernels_compile_for_arm(file: str) -> None:
    """All that depends on the processor. The x86 files must be empty there, the portable kernels whole."""
    compiler = shutil.which("aarch64-linux-gnu-g++")
    if compiler is None:
        pytest.skip("needs aarch64-linux-gnu-g++ (Debian: g++-aarch64-linux-gnu)")
    stable = ("-DTORCH_TARGET_VERSION=0x020b000000000000ULL", "-DTORCH_STABLE_ONLY")
    headers = [f"-I{path}" for path in cpp_extension.include_paths()]
    command = [compiler, "-std=c++20", "-fsyntax-only", "-Wno-psabi", *stable, *headers, str(ROOT / "csrc/cpu" / file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
