"""Compiles csrc/cuda for every architecture that the extension is built for, and counts what came out.

With a file's name as its argument, writes the counts there; with --write-baseline, to tests/cuda_cubins/baseline.json.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import sass  # noqa: E402
from extension_commands import commands  # noqa: E402

SOURCES = sorted((HERE.parents[1] / "csrc" / "cuda").glob("*.cu"))
BASELINE = HERE / "baseline.json"
ARCHITECTURES = ("80", "86", "89", "90a", "100", "120")  # setup.py's CUDA_ARCHITECTURES


def compiler() -> list[str]:
    """nvcc as setup.py calls it, for no architecture yet."""
    return [part for part in commands()["csrc/cuda/alk_forward.cu"] if not part.startswith("-gencode")]


def version() -> str:
    command = [compiler()[0], "--version"]
    found = re.search(r"V(\d+\.\d+)", subprocess.run(command, capture_output=True, text=True).stdout)
    return found[1] if found else "unknown"


def readable(name: str) -> str:
    """Of a mangled name, such as: alk_forward_kernel<half, 24, 1>."""
    plain = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout
    plain = plain.replace("fastsr::cuda::", "").removeprefix("void ")
    plain = re.sub(r"\((?:Gelu|int|bool)\)", "", plain).replace("__nv_bfloat16", "bf16").replace("__half", "half")
    return re.split(r"\(", plain)[0].strip()


def compile_one(task: tuple[Path, str]) -> dict[str, Any]:
    source, architecture = task
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "out.cubin"
        command = [*compiler(), "-cubin", f"-arch=sm_{architecture}", "-o", str(cubin), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "warning" not in done.stderr, done.stderr[-3000:]
        counts = sass.measure(cubin)
    return {f"{readable(name)}/sm_{architecture}": value for name, value in counts.items()}


def report() -> dict[str, Any]:
    tasks = [(source, architecture) for source in SOURCES for architecture in ARCHITECTURES]
    with ThreadPoolExecutor(2) as pool:
        kernels = {key: value for part in pool.map(compile_one, tasks) for key, value in part.items()}
    return {"nvcc": version(), "kernels": dict(sorted(kernels.items()))}


if __name__ == "__main__":
    to = BASELINE if sys.argv[1:] == ["--write-baseline"] else Path(sys.argv[1])
    counts = report()
    lines = ",\n".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in counts["kernels"].items())
    to.write_text(f'{{"nvcc": {json.dumps(counts["nvcc"])}, "kernels": {{\n{lines}\n}}}}\n')
