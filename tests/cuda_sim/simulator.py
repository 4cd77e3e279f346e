"""Builds the CUDA C++ kernels for the host (cuda_sim.h), and leads the operators there."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fastsr
from fastsr import _cuda, _gelu
from fastsr.ops._define import empty_map

HERE = Path(__file__).parent
KERNELS = HERE.parents[1] / "csrc" / "cuda"
FLAGS = ("-std=c++20", "-DFASTSR_CUDA_SIM", "-Wall", "-Wno-unknown-pragmas", "-Wno-psabi")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)  # in the order of the codes
POISON = 0xFF  # a NaN in every format

seed = 0  # of the threads' order; 0 is ascending
tf32 = False  # whether products of float32 may be of TF32
launches = 0  # kernels that were started


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


class View(ctypes.Structure):
    """TensorView of view.h."""

    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_int64 * 4), ("stride", ctypes.c_int64 * 4))

    @classmethod
    def of(cls, x: Tensor) -> View:
        return cls(x.data_ptr(), (ctypes.c_int64 * 4)(*x.shape), (ctypes.c_int64 * 4)(*x.stride()))


class AlkCall(ctypes.Structure):
    """AlkCall of alk.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("dtype", "parameter_dtype")),
        *((name, ctypes.c_int64) for name in ("k", "d", "taps", "activation", "residual")),
        *((name, ctypes.c_int64) for name in ("accuracy", "tf32")),
        ("eps", ctypes.c_double),
        ("parameters", ctypes.c_void_p * 11),
        *((name, View) for name in ("x", "y", "distilled", "dx")),
        ("gradients", ctypes.c_void_p * 11),
        *((name, ctypes.c_void_p) for name in ("workspace", "packed")),
    )


def poisoned(x: Tensor) -> Tensor:
    return x.fill_(torch.nan)


class Library:
    """The launchers of one source file, built at the first call."""

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def library(self) -> ctypes.CDLL:
        return ctypes.CDLL(str(build(HERE / f"{self.name}.cpp", "-O2")))

    def run(self, name: str, call: Any) -> None:
        """Call launcher `name`, with a poisoned workspace if it asks for one."""
        if hasattr(self.library, f"{name}_workspace"):
            size = getattr(self.library, f"{name}_workspace")
            size.restype = ctypes.c_int64
            workspace = torch.full((size(ctypes.byref(call)) + 16,), POISON, dtype=torch.uint8)
            call.workspace = (workspace.data_ptr() + 15) // 16 * 16
        function, count = getattr(self.library, name), self.library.fastsr_sim_launches
        function.restype, count.restype = ctypes.c_char_p, ctypes.c_int64
        before = count()
        error = function(ctypes.byref(call), ctypes.c_uint(seed))
        assert error is None, error.decode()
        global launches
        launches += count() - before


class Simulator(Library):
    """alk_conv and alk_stage, called with tensors."""

    def __init__(self) -> None:
        super().__init__("alk")

    def _call(self, x: Tensor, parameters: Sequence[Tensor | None], eps: float, activation: int) -> AlkCall:
        pw, lora1 = parameters[2], parameters[3]
        assert pw is not None and lora1 is not None
        call = AlkCall(dtype=DTYPES.index(x.dtype), parameter_dtype=DTYPES.index(pw.dtype), k=pw.shape[0], eps=eps)
        call.d = 0 if parameters[0] is None else parameters[0].shape[0]
        call.taps, call.activation, call.residual = lora1.shape[2], activation, int(parameters[0] is not None)
        call.accuracy, call.tf32 = _gelu.code(), int(tf32)
        call.parameters = (ctypes.c_void_p * 11)(*(None if p is None else p.data_ptr() for p in parameters))
        call.x = View.of(x)
        return call

    def pack(self, parameters: Sequence[Tensor | None]) -> Tensor:
        """As `alk_conv_pack`."""
        pw = parameters[2]
        assert pw is not None
        call = self._call(pw.new_empty(0, pw.shape[1], 1, 1), parameters, 0.0, 0)
        self.library.sim_alk_packed_bytes.restype = ctypes.c_int64
        packed = torch.full((self.library.sim_alk_packed_bytes(ctypes.byref(call)),), POISON, dtype=torch.uint8)
        call.workspace = packed.data_ptr()
        self.run("sim_alk_pack", call)
        return packed

    def forward_packed(
        self, x: Tensor, packed: Tensor, k: int, d: int, taps: int, eps: float, activation: int
    ) -> tuple[Tensor, Tensor]:
        """(distilled, y), from what `pack` returned."""
        call = AlkCall(DTYPES.index(x.dtype), 0, k, d, taps, activation, int(d > 0), _gelu.code(), int(tf32), eps)
        call.x, call.packed = View.of(x), packed.data_ptr()
        return self._forward(x, call)

    def forward(
        self, x: Tensor, parameters: Sequence[Tensor | None], eps: float, activation: int
    ) -> tuple[Tensor, Tensor]:
        """(distilled, y)"""
        parameters = [None if p is None else p.contiguous() for p in parameters]
        return self._forward(x, self._call(x, parameters, eps, activation))

    def _forward(self, x: Tensor, call: AlkCall) -> tuple[Tensor, Tensor]:
        y, distilled = empty_map(x, call.k), empty_map(x, call.d)
        for output in (y, distilled):
            output.fill_(torch.nan)
        call.y, call.distilled = View.of(y), View.of(distilled)
        self.run("sim_alk_forward", call)
        return distilled, y

    def backward(
        self,
        grad: Tensor,
        grad_distilled: Tensor | None,
        x: Tensor,
        parameters: Sequence[Tensor | None],
        eps: float,
        activation: int,
    ) -> tuple[Tensor, ...]:
        """dx and the gradients of the parameters that are there."""
        parameters = [None if p is None else p.contiguous() for p in parameters]
        call = self._call(x, parameters, eps, activation)
        gradients = [None if p is None else torch.full_like(p, torch.nan) for p in parameters]
        dx = empty_map(x, x.shape[1]).fill_(torch.nan)
        call.gradients = (ctypes.c_void_p * 11)(*(None if g is None else g.data_ptr() for g in gradients))
        call.y, call.dx = View.of(grad), View.of(dx)
        if grad_distilled is not None:
            call.distilled = View.of(grad_distilled)
        self.run("sim_alk_backward", call)
        return (dx, *(g for g in gradients if g is not None))


def operators(simulator: Simulator) -> dict[str, Callable[..., Any]]:
    """Implementations of the operators, by name."""

    def alk_conv(x: Tensor, *rest: Any) -> Tensor:
        *weights, eps, activation = rest
        return simulator.forward(x, [None, None, *weights], eps, activation)[1]

    def alk_stage(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
        *parameters, eps = rest
        return simulator.forward(x, parameters, eps, 1)

    def alk_conv_backward(grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *weights, eps, activation = rest
        return simulator.backward(grad, None, x, [None, None, *weights], eps, activation)

    def alk_stage_backward(grad_distilled: Tensor, grad: Tensor, x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        *parameters, eps = rest
        return simulator.backward(grad, grad_distilled, x, parameters, eps, 1)

    def alk_conv_pack(*given: Any) -> Tensor:
        *weights, d_weight, d_bias = (None if p is None else p.contiguous() for p in given)
        return simulator.pack([d_weight, d_bias, *weights])

    def alk_conv_packed(x: Tensor, packed: Tensor, k: int, taps: int, eps: float, code: int) -> Tensor:
        return simulator.forward_packed(x, packed, k, 0, taps, eps, code)[1]

    def alk_stage_packed(x: Tensor, packed: Tensor, d: int, taps: int, eps: float) -> tuple[Tensor, Tensor]:
        return simulator.forward_packed(x, packed, x.shape[1], d, taps, eps, 1)

    packing = (alk_conv_pack, alk_conv_packed, alk_stage_packed)
    return {f.__name__: f for f in (alk_conv, alk_stage, alk_conv_backward, alk_stage_backward, *packing)}


@contextmanager
def kernels_on_cpu() -> Iterator[None]:
    """Within it, fastsr.backend("cuda") takes CPU tensors, and the operators' CPU key runs the simulated kernels."""
    import simulated_alk_condense  # which import this module
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

    simulated = operators(Simulator())
    modules = (
        simulated_alk_condense,
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
            assert fastsr.current_backend() == "cuda", f"{name} is called without fastsr.backend('cuda')"
            return run(*args)

        return call

    library = torch.library.Library("fastsr", "IMPL")
    devices, missing = _cuda.DEVICES, _cuda.missing
    try:
        _cuda.DEVICES, _cuda.missing = (*devices, "cpu"), lambda: None
        for name, run in simulated.items():
            library.impl(name, only_when_forced(name, run), "CPU", allow_override=True)
        yield
    finally:
        _cuda.DEVICES, _cuda.missing = devices, missing
        library._destroy()
