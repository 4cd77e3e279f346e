"""Chooses the backend of every operator call, once: what is called then bears its name (`ops/_define.py`).

A backend is "cuda" (CUDA C++), "triton", "cpu" (C++) or "reference" (plain PyTorch). Each operator registers, per
backend it has a kernel for, a `can_run` function that returns None or the reason why the kernel cannot take these
tensors, and by `limit` the sizes that the kernels take. Without a forced backend the first that can run is taken, and
falling back is logged once with its reason; with one (`fastsr.backend(...)` or FASTSR_BACKEND), not being able to run
is an error. No kernel can run under torch.func and in forward-mode differentiation.

`select` reads only tensor metadata and plain globals, so that `torch.compile` folds it away under guards; whether
fastsr itself runs a network in this thread it asks outside of torch.compile only.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

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
FUSIONS = {
    "alk_condense": ("alk_conv", "pointwise", "esa"),
    "blueprint_block": ("bsconv", "pointwise", "esa", "cca_norm"),
    "bsconv_stage": ("bsconv", "pointwise"),
    "conv_mix_reduce": ("conv_mix", "esa"),
    "esa_cca": ("esa", "cca_norm"),
    "mixer_block": ("conv3x3_gelu", "conv_mix"),
    "pointwise_reduce": ("pointwise", "esa"),
}
BACKENDS = ("cuda", "triton", "cpu", "reference")
CHOICES = ("auto", *BACKENDS)

# Of an operator's two kinds of GPU kernels, the one to try first where nothing was measured (`_gpu_order.py`), and what
# says so. CUDA C++ has no operator of more launches than Triton but `pointwise`, which packs its weights by one.
FIRST_ON_GPU = ("cuda", "not measured")

CanRun = Callable[[Tensor], "str | None"]

Extents = dict[str, int]  # of a call, by what they count

_kernels: dict[str, dict[str, CanRun]] = {op: {} for op in OPERATORS}
_extents: dict[str, Callable[..., Extents]] = {}
_most: dict[str, Mapping[str, Mapping[str, int]]] = {}
_forced: str = _env.backend()


class _Thread(threading.local):
    on_reference: bool = False  # whether fastsr itself runs a network in this thread, to count or compare


_thread = _Thread()
_logged: set[tuple[str | None, str]] = set()


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


def limit(op: str, extents: Callable[..., Extents], most: Mapping[str, Mapping[str, int]]) -> None:
    """Announce which sizes the kernels of `op` take, which its `can_run` does not see.

    Args:
        op: the operator.
        extents: of a call, by what they count; from the arguments of `fastsr::op` or its backward, by name.
        most: by backend, the largest of those that it bounds.
    """
    _extents[op], _most[op] = extents, most


def extents_of(op: str, arguments: Mapping[str, Any]) -> Extents | None:
    """What `limit` makes of the arguments of `fastsr::op` or its backward; None for an operator without limits."""
    extents = _extents.get(op)
    return None if extents is None else extents(**arguments)


def _beyond(op: str, name: str, extents: Extents | None) -> str | None:
    """Which of a call's sizes the kernels of `op` in backend `name` do not take, or None."""
    if extents is not None:
        for what, most in _most[op].get(name, {}).items():
            if extents[what] > most:
                return f"{extents[what]} {what} exceed {most} in {name}"
    return None


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


def records(*values: Any) -> bool:
    """Whether autograd would record a call with these tensors. Anything else among them is left to the checks.

    A trace of torch.jit may be run with autograd, whatever it was made with.
    """
    recording = torch.is_grad_enabled() or torch.jit.is_tracing()
    return recording and any(isinstance(value, Tensor) and value.requires_grad for value in values)


def on_gpu(x: Tensor) -> bool:
    """Whether CUDA C++ and Triton are there for the device of `x`."""
    return x.device.type == "cuda"


def in_tf32(x: Tensor) -> bool:
    """Whether maps like `x` may be multiplied in TF32."""
    return x.dtype == torch.float32 and _device.allows_tf32(x)


def first_on_gpu(op: str, x: Tensor, others: Iterable[Any] = ()) -> tuple[str, str]:
    """Of CUDA C++ and Triton, the one that is tried first for a call, and what says so.

    A fusion that was not measured goes where its parts go that were; if these go different ways it is "none".

    Args:
        op: an operator or a fusion.
        x: its first map.
        others: what else autograd may record of it.
    """
    if _gpu_order.TABLES:
        tf32, training = in_tf32(x), records(x, *others)
        found = _gpu_order.measured(op, x, tf32, training)
        if found is not None:
            return found
        parts = [_gpu_order.measured(part, x, tf32, training) for part in FUSIONS.get(op, ())]
        known = [part for part in parts if part is not None]
        if len(known) > 0:
            return known[0] if all(part[0] == known[0][0] for part in known) else ("none", known[0][1])
    return FIRST_ON_GPU


def candidates(op: str, x: Tensor, others: Iterable[Any] = ()) -> tuple[str, ...]:
    """The backends with kernels for the device of `x`, in the order in which they are tried."""
    if on_gpu(x):
        first = first_on_gpu(op, x, others)[0]
        if first == "none":
            return ()
        return ("cuda", "triton") if first == "cuda" else ("triton", "cuda")
    return (x.device.type,) if x.device.type in BACKENDS else ()


def select(op: str, x: Tensor, extents: Extents | None = None, others: Iterable[Any] = ()) -> str:
    """The backend that runs `op` on tensors like `x`, called as it is now.

    Args:
        op: the operator.
        x: its first map.
        extents: of the call, as `limit` has them; None leaves limits out.
        others: the tensors beside `x` that autograd may record.

    Raises:
        BackendError: a backend is forced and cannot run this.
        InputError: FASTSR_BACKEND names no backend.
    """
    if transformed() and not exporting() and current_backend() != "reference":
        return reference_because(op, "kernels have no rules for torch.func and forward-mode derivatives")
    return select_kernel(op, x, extents, others)


def select_kernel(op: str, x: Tensor, extents: Extents | None = None, others: Iterable[Any] = ()) -> str:
    """The same for a call that has come to the operator, where PyTorch has dealt with transforms."""
    if exporting():
        return "reference"
    forced = current_backend()
    if forced != "auto":
        return _select_forced(op, x, extents, forced)
    kernels = _kernels[op]
    reasons: list[str] = []
    by_size = False
    for name in candidates(op, x, others):
        check = kernels.get(name)
        if check is None:
            continue
        failed = check(x)
        if failed is None:
            failed = _beyond(op, name, extents)
            if failed is None:
                if len(reasons) > 0:
                    _log_once(op if by_size else None, name, reasons)
                return name
            by_size = True
        reasons.append(failed)
    _log_once(op, "reference", reasons or [f"{op} has no kernel for this device"])
    return "reference"


def _select_forced(op: str, x: Tensor, extents: Extents | None, forced: str) -> str:
    if forced not in CHOICES:
        raise InputError(f"FASTSR_BACKEND is {forced!r}; accepted are {', '.join(CHOICES)}")
    reason = can_run(op, forced, x) or _beyond(op, forced, extents)
    if reason is not None:
        raise _cannot_run(op, forced, reason)
    return forced


def _cannot_run(op: str, forced: str, reason: str) -> BackendError:
    return BackendError(
        f"the forced backend {forced!r} cannot run {op}: {reason}; force 'reference', or 'auto' to let fastsr choose"
    )


def fusing_backend(
    op: str, x: Tensor, backends: tuple[str, ...], others: Iterable[Any], trained: bool = False
) -> str | None:
    """The GPU backend in which fusion `op` is one operator for a call, or None: then its parts are called.

    That is the first in the order of its table, or of its parts', that can run the maps, if it is among `backends`.

    Args:
        op: the fusion.
        x: its first map.
        backends: those that have it and take these sizes.
        others: what else autograd may record.
        trained: whether it has a derivative.
    """
    forced = current_backend()
    if forced == "auto":
        if not on_gpu(x):
            return None
    elif forced not in backends:
        return None
    if exporting() or transformed() or (not trained and records(x, *others)):
        return None
    for name in candidates(op, x, others) if forced == "auto" else (forced,):
        if can_run(FUSIONS[op][0], name, x) is None:
            return name if name in backends else None
    return None


def reference_because(op: str, reason: str) -> str:
    """ "reference", for a call that no kernel can take for `reason`.

    Raises:
        BackendError: a backend is forced.
    """
    forced = current_backend()
    if forced not in ("auto", "reference"):
        raise _cannot_run(op, forced, reason)
    _log_once(op, "reference", [reason])
    return "reference"


def _log_once(op: str | None, taken: str, reasons: list[str]) -> None:
    """Log what is taken for an operator; None says it of all, where the reason is the machine's."""
    reason = "; ".join(reasons)
    if torch.compiler.is_compiling() or (op, reason) in _logged:
        return
    _logged.add((op, reason))
    who = "kernels run" if op is None else f"{op} runs"
    where = "on the reference path" if taken == "reference" else f"in {taken}"
    logger.info("%s %s: %s", who, where, reason)
