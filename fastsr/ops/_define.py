"""Defines an operator with kernels: schemas, fakes, autograd and its backends, the same way for every operator.

`fastsr::<op>` and `fastsr::<op>_backward` are defined here in Python, so that they exist without any binary; compiled
libraries add kernels to them. The backward operator takes what `save` kept and returns one gradient per tensor of the
forward operator that can have one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastsr import _cuda, _dispatch, _native, _triton
from fastsr._dispatch import can_run, current_backend, records, register, select
from fastsr._export import exporting
from fastsr._native import LIB
from fastsr._transforms import transformed
from fastsr.errors import InputError
from fastsr.ops import _checks
from fastsr.ops._call import backward_caller, caller

_TAGS = (torch.Tag.pt2_compliant_tag,)


def define(
    op: str,
    schema: str,
    backward_schema: str,
    *,
    fake: Callable[..., Any],
    fake_backward: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
    backend: str = "",
) -> Callable[..., Any]:
    """Define `fastsr::op` and `fastsr::op_backward`, and return a function that calls the former (see _call.py).

    Args:
        op: the operator's name.
        schema, backward_schema: their arguments and results, "(Tensor x, ...) -> Tensor".
        fake, fake_backward: shapes, dtypes and strides of the results on fake tensors.
        setup_context, backward: as for `torch.library.register_autograd`; `ctx.call_backward` calls the latter.
        backend: if given, they are overloads of this name, for that backend.
    """
    overload = f".{backend}" if backend else ""
    names = (f"{op}{overload}", f"{op}_backward{overload}")
    for name, its_schema, its_fake in zip(names, (schema, backward_schema), (fake, fake_backward), strict=True):
        LIB.define(f"{name}{its_schema}", tags=_TAGS)
        torch.library.register_fake(f"fastsr::{name}", its_fake, lib=LIB)
    forward, traced, adjoint = (
        getattr(getattr(torch.ops.fastsr, name), which)
        for name, which in ((op, backend or "default"), (op, "default"), (f"{op}_backward", backend or "default"))
    )
    call_backward = backward_caller(adjoint)

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.call_backward = call_backward
        setup_context(ctx, inputs, output)

    def double_backward(ctx: Any, *grads: Tensor) -> None:
        raise InputError(
            f"{op}: the fused backward cannot be differentiated again; for second derivatives run under "
            "fastsr.backend('reference')"
        )

    torch.library.register_autograd(f"fastsr::{names[0]}", backward, setup_context=setup, lib=LIB)
    torch.library.register_autograd(f"fastsr::{names[1]}", double_backward, lib=LIB)
    return caller(forward, traced, setup, backward)


def define_choice(op: str, schema: str, backward_schema: str, **functions: Any) -> dict[str, Any]:
    """The same for an operator with backends to choose, and return such a function for each of them by its name.

    The CPU's kernels stand under `fastsr::op` itself. Those of GPUs are the overloads `fastsr::op.cuda` and
    `fastsr::op.triton`, so that a call takes the one backend that was chosen for it, backward and compiled included.
    """
    call = define(op, schema, backward_schema, **functions)  # first: it is what a call without an overload means
    on_gpu = {name: define(op, schema, backward_schema, **functions, backend=name) for name in ("cuda", "triton")}
    return {"cpu": call, **on_gpu}


def define_packed(op: str, pack_schema: str, schemas: dict[str, str], fakes: dict[str, Callable[..., Any]]) -> None:
    """Define `fastsr::op_pack` and the operators that take what it returns in place of weights.

    They have no derivative. A packed tensor holds what the kernels read, for one instruction set; others are refused.

    Args:
        op: the operator's name.
        pack_schema: arguments and result of `op_pack`, which runs eagerly only.
        schemas, fakes: by the name of each operator that takes packed weights.
    """
    LIB.define(f"{op}_pack{pack_schema}")
    for name, schema in schemas.items():
        define_inference(name, schema, fakes[name])


def can_pack(op: str, weight: Tensor, backend: str = "cpu") -> bool:
    """Whether the kernel of `op` in `backend` would run with this weight."""
    return can_run(op, backend, weight) is None


def takes_packed(
    op: str, packed: Tensor | None, x: Tensor, first: Tensor, *others: Tensor, channels: int | None = None
) -> str | None:
    """The backend for which `packed` was made, if a call can use it instead of `first` and `others`, or None.

    That backend must run it and autograd must not record it; a map that does not fit `first` [any, C, 1, 1], having
    other channels or these, is left to the usual checks. Weights for "cpu" are float32 and for maps of any dtype, those
    for "cuda" bytes and for maps of the weights' dtype.

    Raises:
        InputError: `packed` is something else than a tensor.
    """
    _checks.packed(op, packed)
    if packed is None or (x.shape[1] if channels is None else channels) != first.shape[1] or packed.device != x.device:
        return None
    if records(x, first, *others):
        return None
    backend = "cpu" if packed.dtype == torch.float32 else "cuda"
    if backend == "cuda" and x.dtype != first.dtype:
        return None
    return backend if select(op, x) == backend else None


def define_inference(op: str, schema: str, fake: Callable[..., Any]) -> None:
    """Define `fastsr::op`, a fusion of operators that has no derivative: with autograd those are called themselves."""
    LIB.define(f"{op}{schema}", tags=_TAGS)
    torch.library.register_fake(f"fastsr::{op}", fake, lib=LIB)


def fuses_on_cuda(op: str, x: Tensor, *others: Tensor | None) -> bool:
    """Whether fusions of `op` in CUDA C++ may be called for x, in inference; whether they are taken, they decide."""
    return _fuses_on("cuda", op, x, *others)


def fuses_on_triton(op: str, x: Tensor, *others: Tensor | None) -> bool:
    """The same for Triton's."""
    return _fuses_on("triton", op, x, *others)


def _fuses_on(wanted: str, op: str, x: Tensor, *others: Tensor | None) -> bool:
    backend = current_backend()
    if (backend != wanted and (backend != "auto" or not _dispatch.on_gpu(x))) or exporting():
        return False
    if transformed() or records(x, *others):
        return False
    return can_run(op, wanted, x) is None


def define_over(op: str, schema: str) -> None:
    """Define `fastsr::op_`, which writes the result over its first argument, a channels-last map.

    For the CPU and eager inference: a network's peak memory is one map less where a map has served its purpose.
    """
    LIB.define(f"{op}_{schema}")


def may_overwrite(op: str, *tensors: Tensor | None) -> bool:
    """Whether the CPU kernel `op_` can run on tensors[0], a map that nobody else needs, instead of `op`.

    Not in a trace of torch.jit, through which gradients of the image may be asked for later.
    """
    x = tensors[0]
    assert x is not None
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or select(op, x) != "cpu":
        return False
    if records(*tensors):
        return False
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def output_format(x: Tensor) -> torch.memory_format:
    """The memory format of an operator's output, as PyTorch's convolutions choose theirs: channels last or NCHW like x.

    A slice has that of the map it is from. What is both (one channel, or one pixel) counts as channels last, and so
    does an empty map. csrc/format.h has the same rule.
    """
    if x.numel() == 0 or x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    before = 1
    for d in (1, 3, 2):
        if x.shape[d] == 1:
            continue
        if x.stride(d) < before:
            return torch.contiguous_format
        before = x.stride(d)
    return torch.channels_last


def empty_map(x: Tensor, channels: int, height: int | None = None, width: int | None = None) -> Tensor:
    """An uninitialised output for the input `x`: its batch, dtype and device, in `output_format(x)`."""
    size = (x.shape[0], channels, x.shape[2] if height is None else height, x.shape[3] if width is None else width)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=output_format(x))


def register_cpu(op: str, dtypes: tuple[torch.dtype, ...]) -> None:
    """Announce the C++ CPU kernel of `op` for feature maps of `dtypes`."""

    def can_run(x: Tensor) -> str | None:
        if not _native.CPU.loaded:
            return _native.CPU.reason
        if x.device.type != "cpu":
            return f"x is on {x.device.type}, this kernel runs on cpu"
        if x.dtype not in dtypes:
            accepted = ", ".join(str(d).removeprefix("torch.") for d in dtypes)
            return f"x is {str(x.dtype).removeprefix('torch.')}, the cpu kernel takes {accepted}"
        return None

    register(op, "cpu", can_run)


def register_triton(op: str, dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16)) -> None:
    """Announce the Triton kernels of `op` for feature maps of `dtypes`.

    kernels/<op>.py holds the launchers `<op>` and `<op>_backward`, with the arguments and results of the operators
    of these names. They stand under the operators' CUDA key and are imported at their first call.
    """

    def can_run(x: Tensor) -> str | None:
        return _triton.reason_against(x, dtypes)

    register(op, "triton", can_run)
    _cuda.route(op)


def register_cuda(
    op: str,
    schema: str,
    backward_schema: str,
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.float16, torch.bfloat16),
    tf32: bool = False,
) -> None:
    """Announce the CUDA C++ kernels of `op` for feature maps of `dtypes`; the schemas are those of `define`.

    With `tf32` they multiply float32 in TF32 where that is allowed.
    """

    def can_run(x: Tensor) -> str | None:
        return _cuda.reason_against(x, dtypes)

    register(op, "cuda", can_run)
    _cuda.define(op, schema, tf32)
    _cuda.define(f"{op}_backward", backward_schema, tf32)
    _cuda.route(op)
