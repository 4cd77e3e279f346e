"""The extension as a whole: its sources link with each other, and every operator has its binding."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import torch
from simulator import FLAGS, HERE, KERNELS, compiler

import fastsr.ops  # noqa: F401  it defines the operators


def test_sources_link_with_each_other(tmp_path: Path) -> None:
    """What a header defines in every source that includes it, only the linker sees."""
    sources = [str(path) for path in sorted(KERNELS.glob("*.cu"))]
    options = (*FLAGS, "-O0", "-shared", "-fPIC", f"-I{HERE}", f"-I{KERNELS}", "-o", str(tmp_path / "all.so"))
    done = subprocess.run(
        [compiler(), *options, "-x", "c++", *sources], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert len(sources) > 20 and done.returncode == 0, done.stderr[-4000:]


def test_every_operator_of_cuda_has_a_binding() -> None:
    """Without one it would be found out at the first call on a GPU."""
    bindings = "".join(path.read_text(encoding="utf-8") for path in KERNELS.glob("*_bind.cpp"))
    bound = re.findall(r'm\.impl\("(\w+)"', bindings)
    every = {name.removeprefix("fastsr::").split(".")[0] for name in torch._C._dispatch_get_all_op_names()}
    private = {name for name in every if name.startswith("_cuda_")}
    assert len(private) > 20 and private - set(bound) == set()
    assert len(bound) == len(set(bound)) and set(bound) <= every
