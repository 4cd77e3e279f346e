"""Calls operators without the Python that torch.library puts in front of them.

An operator with a derivative from `torch.library.register_autograd` runs some fifty microseconds of Python per call,
with or without autograd, which is longer than many a kernel takes. Eagerly the functions here go past it, below the
dispatcher's autograd keys, with a `torch.autograd.Function` of their own where autograd records. What they compute and
save is the same. Whoever traces or transforms (torch.compile, torch.jit.trace, torch.func) sees the operator itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastsr._dispatch import records
from fastsr._transforms import has_tangent, transformed
from fastsr.errors import InputError

_below_autograd = torch._C._AutoDispatchBelowAutograd


def _seen_through() -> bool:
    return torch.compiler.is_compiling() or torch.jit.is_tracing() or transformed()


def backward_caller(operator: Any) -> Callable[..., Any]:
    """A function that calls this backward operator."""

    def call(*args: Any) -> Any:
        if torch.is_grad_enabled() or _seen_through():  # with create_graph: it says that it cannot be differentiated
            return operator(*args)
        with _below_autograd():
            return operator(*args)

    return call


def caller(
    operator: Any, traced: Any, setup_context: Callable[..., None], backward: Callable[..., Any]
) -> Callable[..., Any]:
    """A function that calls `operator`; setup_context and backward as for `torch.library.register_autograd`.

    A trace of torch.jit records `traced`, which any device can run.
    """
    op = operator._schema.name.removeprefix("fastsr::")

    def forward(ctx: Any, *inputs: Any) -> Any:
        *tensors, layout = inputs
        args = tensors if layout is None else _nested(tensors, layout)
        with _below_autograd():
            output = operator(*args)
        setup_context(ctx, args, output)
        ctx.layout = layout
        return output

    def gradients(ctx: Any, *grads: Any) -> Any:
        if has_tangent(*grads):  # of a call from before the dual level
            raise InputError(
                f"{op}: the fused backward has no forward-mode derivative; call {op} within the dual level too, or "
                "under fastsr.backend('reference')"
            )
        found = backward(ctx, *grads)
        return (*(found if ctx.layout is None else _flat(found, ctx.layout)), None)

    # autograd knows tensors among the arguments, not in lists; the last argument says how long the lists are.
    function: Any = type(
        f"fastsr_{op}",
        (torch.autograd.Function,),
        {"forward": staticmethod(forward), "backward": staticmethod(gradients)},
    )
    has_lists = any(str(argument.type) == "List[Tensor]" for argument in operator._schema.arguments)

    def call(*args: Any) -> Any:
        if _seen_through():
            return traced(*args) if torch.jit.is_tracing() else operator(*args)
        layout = tuple(len(a) if isinstance(a, list) else -1 for a in args) if has_lists else None
        tensors = args if layout is None else _flat(args, layout)
        if records(*tensors):
            return function.apply(*tensors, layout)
        with _below_autograd():
            return operator(*args)

    return call


def _flat(args: Any, layout: tuple[int, ...]) -> list[Any]:
    """The arguments (or their gradients) with lists resolved, whose lengths `layout` has; -1 is no list."""
    flat: list[Any] = []
    for a, length in zip(args, layout, strict=True):
        if length < 0:
            flat.append(a)
        else:
            flat.extend([None] * length if a is None else a)
    return flat


def _nested(flat: list[Any], layout: tuple[int, ...]) -> list[Any]:
    """The inverse of `_flat`."""
    rest = iter(flat)
    return [next(rest) if length < 0 else [next(rest) for _ in range(length)] for length in layout]
