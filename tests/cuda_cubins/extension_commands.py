"""The commands by which setup.py has the CUDA operators compiled, with PyTorch's flags, on one without CUDA, too.

As a program it lets setup.py build, records in place of running, and prints [[argument, ...], ...] as JSON.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@cache
def commands() -> dict[str, list[str]]:
    """By source, such as csrc/cuda/alk_bind.cpp; they are for ROOT as the working directory, and end in no file."""
    told = {"FASTSR_BUILD": "1", "FASTSR_CUDA": "1", "FASTSR_SANITIZE": "0"}
    mine = {name: value for name, value in os.environ.items() if name != "TORCH_CUDA_ARCH_LIST"}
    done = subprocess.run(
        [sys.executable, __file__], cwd=ROOT, env={**mine, **told}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {}
    for command in json.loads(done.stdout.splitlines()[-1]):
        if "-c" in command:
            i, o = command.index("-c"), command.index("-o")
            found[command[i + 1]] = [part for j, part in enumerate(command) if j not in (i, i + 1, o, o + 1)]
    return found


def _record() -> list[list[str]]:
    import torch

    torch.version.cuda = torch.version.cuda or "13.0"  # one without CUDA has the headers all the same
    from setuptools.command.build_ext import build_ext
    from torch.utils import cpp_extension

    recorded: list[list[str]] = []
    build, cuda_extension = build_ext.build_extensions, cpp_extension.CUDAExtension

    def with_cuda(*arguments: Any, **more: Any) -> Any:
        cpp_extension.CUDA_HOME = os.environ["CUDA_HOME"]  # setup.py has found it by now
        return cuda_extension(*arguments, **more)

    def build_extensions(self: Any) -> None:
        self.compiler.spawn = self.compiler.call = lambda command, **_: recorded.append([str(part) for part in command])
        build(self)

    build_ext.build_extensions = build_extensions
    cpp_extension._check_cuda_version = lambda *_: None  # of a toolkit that need not be this PyTorch's
    cpp_extension.is_ninja_available = lambda: False  # it would run the commands itself
    cpp_extension.CUDAExtension = with_cuda
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["setup.py", "-q", "build_ext", "--force", "--build-temp", folder, "--build-lib", folder]
        runpy.run_path("setup.py", run_name="__main__")
    return recorded


if __name__ == "__main__":
    print(json.dumps(_record()))
