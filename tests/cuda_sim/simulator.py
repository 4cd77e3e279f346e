"""Builds the CUDA C++ kernels for the host (cuda_sim.h), and leads the operators there."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastsr
from fastsr import _cuda, _dispatch

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "csrc" / "cuda"
FLAGS = (
    *("-std=c++20", "-DFASTSR_CUDA_SIM", "-Wall", "-Wno-unknown-pragmas", "-Wno-psabi"),
    "-fsanitize=alignment",  # cuda_sim.h makes it an error of the launch
)
# The compiler reports accesses as the kernels write them: vectors are not to be taken apart, nor numbers to be joined,
# which begins at -O2; nor is code to be doubled by checks between.
COUNTING = (
    *("-O1", "-fno-tree-sra", "-fno-sanitize=alignment", "-c", "-fPIC", "-DFASTSR_SIM_TRAFFIC"),
    *("-fsanitize=thread", "-fno-threadsafe-statics"),
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # in the order of the codes
POISON = 0xFF  # a NaN in every format

seed = 0  # of the threads' order; 0 is ascending
tf32 = False  # whether products of float32 may be of TF32
launches = 0  # kernels that were started
kernels: set[str] | None = None  # what they are called, where a test asks for it: mangled names
count: Callable[[ctypes.CDLL], AbstractContextManager[None]] | None = None  # what they do (traffic_counts.py)


def compiler() -> str:
    return os.environ.get("CXX", "c++")


def build(source: Path, *flags: str, shared: bool = True) -> Path:
    """The shared library or program of `source`, from a cache in the temporary folder if nothing has changed."""
    inputs = [source, *sorted(KERNELS.glob("*.cu*")), *sorted(KERNELS.glob("*.h")), *sorted(HERE.glob("*.h"))]
    options = [*FLAGS, *(("-shared", "-fPIC") if shared else ()), *flags]
    content = b"".join(path.read_bytes() for path in inputs) + " ".join([compiler(), *options]).encode()
    folder = Path(tempfile.gettempdir()) / f"fastsr-cuda-sim-{os.getuid()}"
    folder.mkdir(exist_ok=True)
    library = folder / f"{source.stem}-{hashlib.sha256(content).hexdigest()[:16]}"
    if not library.exists():
        part = library.with_suffix(f".{os.getpid()}")
        command = [compiler(), *options, f"-I{HERE}", f"-I{KERNELS}", "-o", str(part), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-4000:]
        part.rename(library)
    return library


def build_counting(source: Path) -> Path:
    """The shared library of `source` with traffic.cpp, which is told of every access."""
    return build(HERE / "traffic.cpp", "-O2", str(build(source, *COUNTING, shared=False)))


class View(ctypes.Structure):
    """TensorView of view.h."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_int64 * 4), ("stride", ctypes.c_int64 * 4))

    @classmethod
    def of(cls, x: Tensor) -> View:
        return cls(x.data_ptr(), (ctypes.c_int64 * 4)(*x.shape), (ctypes.c_int64 * 4)(*x.stride()))


def poisoned(x: Tensor) -> Tensor:
    return x.fill_(torch.nan)


@cache
def load(name: str, counting: bool) -> ctypes.CDLL:
    source = HERE / f"{name}.cpp"
    return ctypes.CDLL(str(build_counting(source) if counting else build(source, "-O2")))


class Library:
    """The launchers of one source file, built at the first call."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def library(self) -> ctypes.CDLL:
        return load(self.name, count is not None)

    def run(self, name: str, call: Any) -> None:
        """Call launcher `name`, with a poisoned workspace if it asks for one."""
        if hasattr(self.library, f"{name}_workspace"):
            size = getattr(self.library, f"{name}_workspace")
            size.restype = ctypes.c_int64
            workspace = torch.full((size(ctypes.byref(call)) + 16,), POISON, dtype=torch.uint8)
            call.workspace = (workspace.data_ptr() + 15) // 16 * 16
        function, started = getattr(self.library, name), self.library.fastsr_sim_launches
        function.restype, started.restype = ctypes.c_char_p, ctypes.c_int64
        before = started()
        with nullcontext() if count is None else count(self.library):
            error = function(ctypes.byref(call), ctypes.c_uint(seed))
        assert error is None, error.decode()
        global launches
        launches += started() - before
        if kernels is not None:
            name_of = self.library.fastsr_sim_started
            name_of.restype = ctypes.c_char_p
            kernels.update(name_of(ctypes.c_int64(i)).decode() for i in range(before, started()))


@contextmanager
def kernels_on_cpu() -> Iterator[None]:
    """Within it, fastsr.backend("cuda") takes CPU tensors, and the operators' CPU key runs the simulated kernels."""
    import simulated_alk  # which import this module
    import simulated_alk_condense
    import simulated_alk_together
    import simulated_bsconv
    import simulated_cca_norm
    import simulated_conv3x3
    import simulated_conv_mix
    import simulated_conv_mix_reduce
    import simulated_esa
    import simulated_esa_cca
    import simulated_pixel_norm
    import simulated_pointwise
    import simulated_pointwise_reduce
    import simulated_upsample

    simulated: dict[str, Callable[..., Any]] = {}
    modules = (
        simulated_alk,
        simulated_alk_condense,
        simulated_alk_together,
        simulated_bsconv,
        simulated_cca_norm,
        simulated_conv3x3,
        simulated_conv_mix,
        simulated_conv_mix_reduce,
        simulated_esa,
        simulated_esa_cca,
        simulated_pixel_norm,
        simulated_pointwise,
        simulated_pointwise_reduce,
        simulated_upsample,
    )
    for module in modules:
        simulated |= module.operators()

    def only_when_forced(name: str, run: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            pretended = _dispatch.on_gpu(torch.empty(0))
            assert fastsr.current_backend() == "cuda" or pretended, f"{name} is called without fastsr.backend('cuda')"
            return run(*args)

        return call

    library = torch.library.Library("fastsr", "IMPL")
    devices, missing = _cuda.DEVICES, _cuda.missing
    try:
        _cuda.DEVICES, _cuda.missing = (*devices, "cpu"), lambda: None
        for name, run in simulated.items():
            library.impl(name, only_when_forced(name, run), "CPU", allow_override=True)
            if name.removesuffix("_backward") in _dispatch.OPERATORS:
                library.impl(f"{name}.cuda", run, "CPU")
        yield
    finally:
        _cuda.DEVICES, _cuda.missing = devices, missing
        library._destroy()
