"""Chooses the backend of every operator call.

A backend is "cuda" (CUDA C++), "triton", "cpu" (C++) or "reference" (plain PyTorch). Each operator registers, per
backend it has a kernel for, a `can_run` function that returns None or the reason why the kernel cannot take these
tensors. Without a forced backend the first that can run is taken, and falling back is logged once with its reason;
with one (`fastsr.backend(...)` or FASTSR_BACKEND), not being able to run is an error. No kernel can run under
torch.func and in forward-mode differentiation.

`select` reads only tensor metadata and plain globals, so that `torch.compile` folds it away under guards; whether TF32
is allowed, and whether fastsr itself runs a network in this thread, it asks outside of torch.compile only.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor

from fastsr import _device, _env, _gpu_order
from fastsr._export import exporting
from fastsr._transforms import transformed
from fastsr.errors import BackendError, InputError

logger = logging.getLogger("fastsr")

OPERATORS = (
    "alk_conv",
    "alk_stage",
    "bsconv",
    "cca_norm",
    "conv3x3_gelu",
    "conv_mix",
    "esa",
    "pixel_norm",
    "pointwise",
    "upsample",
)
# Functions of fastsr.ops that are one operator in some backend and several of these elsewhere.
FUSIONS = (
    "alk_condense",
    "blueprint_block",
    "bsconv_stage",
    "conv_mix_reduce",
    "esa_cca",
    "mixer_block",
    "pointwise_reduce",
)
BACKENDS = ("cuda", "triton", "cpu", "reference")
CHOICES = ("auto", *BACKENDS)

# Of an operator's two kinds of GPU kernels, the one to try first where nothing was measured (`_gpu_order.py`), and what
# says so.
FIRST_ON_GPU: dict[str, tuple[str, str]] = {
    "alk_conv": ("cuda", "not measured"),
    "alk_stage": ("cuda", "not measured"),
    "bsconv": ("cuda", "not measured"),
}
FIRST_BY_DEFAULT = ("triton", "not measured")

CanRun = Callable[[Tensor], "str | None"]

_kernels: dict[str, dict[str, CanRun]] = {op: {} for op in OPERATORS}
_forced: str = _env.backend()


class _Thread(threading.local):
    on_reference: bool = False  # whether fastsr itself runs a network in this thread, to count or compare


_thread = _Thread()
_logged: set[tuple[str, str]] = set()


class backend:  # lower case: it is used like torch.no_grad
    """Force the backend of all fastsr operators, process-wide.

    As a call, `fastsr.backend("cpu")` takes effect from then on; as a context manager it also restores what was
    set before. "auto" gives the choice back to fastsr. A forced backend that cannot run an operator on the tensors
    it is given raises BackendError.

    Args:
        name: "auto", "cuda", "triton", "cpu" or "reference".

    Raises:
        InputError: `name` is none of these.
    """

    def __init__(self, name: str) -> None:
        global _forced
        if name not in CHOICES:
            source = "FASTSR_BACKEND" if name == _forced else "the backend"
            raise InputError(f"{source} is {name!r}; accepted are {', '.join(CHOICES)}")
        self._previous = _forced
        _forced = name

    def __enter__(self) -> backend:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _forced
        _forced = self._previous


@contextmanager
def on_reference() -> Iterator[None]:
    """Force the reference in this thread only, for what fastsr runs on its own account; others keep their backend."""
    before, _thread.on_reference = _thread.on_reference, True
    try:
        yield
    finally:
        _thread.on_reference = before


def current_backend() -> str:
    """The backend in force: "auto" unless one is forced."""
    # Dynamo does not look into the thread's own values; nothing is compiled where they matter.
    if not torch.compiler.is_compiling() and _thread.on_reference:
        return "reference"
    return _forced


def register(op: str, name: str, can_run: CanRun) -> None:
    """Announce that `op` has a kernel in backend `name` for the tensors that `can_run` accepts."""
    _kernels[op][name] = can_run


def can_run(op: str, name: str, x: Tensor) -> str | None:
    """None if backend `name` can run `op` on a tensor like `x`, otherwise the reason why it cannot.

    Raises:
        InputError: no operator or backend is called so, or `x` is no tensor.
    """
    if op not in _kernels:
        raise InputError(f"no operator is called {op!r}; there are {', '.join(OPERATORS)}")
    if name == "reference":
        return None
    if name not in BACKENDS:
        raise InputError(f"no backend is called {name!r}; accepted are {', '.join(BACKENDS)}")
    if not isinstance(x, Tensor):
        raise InputError(f"can_run: x is a {type(x).__name__}; pass a tensor like the operator's first")
    check = _kernels[op].get(name)
    if check is None:
        return f"{op} has no {name} kernel"
    return check(x)


def _select_forced(op: str, x: Tensor, forced: str) -> str:
    if forced not in CHOICES:
        raise InputError(f"FASTSR_BACKEND is {forced!r}; accepted are {', '.join(CHOICES)}")
    reason = can_run(op, forced, x)
    if reason is not None:
        raise BackendError(
            f"the forced backend {forced!r} cannot run {op}: {reason}; "
            f"force 'reference', or 'auto' to let fastsr choose"
        )
    return forced


def _log_once(op: str, reason: str) -> None:
    if torch.compiler.is_compiling() or (op, reason) in _logged:
        return
    _logged.add((op, reason))
    logger.info("%s runs on the reference path: %s", op, reason)


def in_tf32(x: Tensor) -> bool:
    """Whether maps like `x` may be multiplied in TF32.

    torch.compile cannot look where that is set; there the operator asks again when it runs.
    """
    return x.dtype == torch.float32 and not torch.compiler.is_compiling() and _device.allows_tf32(x)


def first_on_gpu(op: str, x: Tensor) -> tuple[str, str]:
    """Of CUDA C++ and Triton, the one that is tried first for maps like `x`, and what says so."""
    if _gpu_order.TABLES:
        measured = _gpu_order.measured(op, x, in_tf32(x))
        if measured is not None:
            return measured
    return FIRST_ON_GPU.get(op, FIRST_BY_DEFAULT)


def candidates(op: str, x: Tensor) -> tuple[str, ...]:
    """The backends with kernels for the device of `x`, in the order in which they are tried."""
    if x.device.type == "cuda":
        return ("cuda", "triton") if first_on_gpu(op, x)[0] == "cuda" else ("triton", "cuda")
    return (x.device.type,) if x.device.type in BACKENDS else ()


def select(op: str, x: Tensor) -> str:
    """The backend that runs `op` on tensors like `x`, called as it is now.

    Raises:
        BackendError: a backend is forced and cannot run this.
        InputError: FASTSR_BACKEND names no backend.
    """
    if transformed() and not exporting() and current_backend() != "reference":
        return reference_because(op, "kernels have no rules for torch.func and forward-mode derivatives")
    return select_kernel(op, x)


def select_kernel(op: str, x: Tensor) -> str:
    """The same for a call that has come to the operator, where PyTorch has dealt with transforms."""
    if exporting():
        return "reference"
    forced = current_backend()
    if forced != "auto":
        return _select_forced(op, x, forced)
    kernels = _kernels[op]
    reason = f"{op} has no kernel for this device"
    for name in candidates(op, x):
        check = kernels.get(name)
        if check is not None:
            failed = check(x)
            if failed is None:
                return name
            reason = failed
    _log_once(op, reason)
    return "reference"


def instead_of_cuda(op: str, x: Tensor, reason: str) -> str:
    """The backend for a call that CUDA C++ cannot take for `reason`, which `can_run` does not see.

    Raises:
        BackendError: a backend is forced.
    """
    if current_backend() == "auto" and can_run(op, "triton", x) is None:
        return "triton"
    return reference_because(op, reason)


def reference_because(op: str, reason: str) -> str:
    """ "reference", for a call that the selected kernel cannot take for `reason`, which `can_run` does not see.

    Raises:
        BackendError: a backend is forced.
    """
    forced = current_backend()
    if forced not in ("auto", "reference"):
        raise BackendError(
            f"the forced backend {forced!r} cannot run {op}: {reason}; "
            f"force 'reference', or 'auto' to let fastsr choose"
        )
    _log_once(op, reason)
    return "reference"
