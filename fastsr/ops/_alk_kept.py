"""alk_conv and alk_stage for training in CUDA C++: weights that are packed for the forward are kept for the backward.

`fastsr::<op>_kept` returns the packed weights beside what `fastsr::<op>` does, and its backward reads them. The weights
themselves are saved as well, so that autograd notices if they are changed in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastsr import _cuda
from fastsr.ops._alk_packed import packed_bytes
from fastsr.ops._define import define


def define_kept(
    op: str, schema: str, backward_schema: str, *, fake: Callable[..., Any], fake_backward: Callable[..., Any]
) -> Callable[..., Any]:
    """Define `fastsr::<op>_kept` and its backward, and return a function that calls the former.

    Args:
        op: "alk_conv" or "alk_stage".
        schema, backward_schema, fake, fake_backward: those of `op` itself.
    """
    gradients = backward_schema[: backward_schema.index("Tensor x, ")].count("Tensor")
    single = gradients == 1

    def maps_of(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        found = fake(x, *rest)
        return (found,) if single else tuple(found)

    def fake_kept(x: Tensor, *rest: Any) -> tuple[Tensor, ...]:
        d = 0 if single else rest[0].shape[0]
        pw_weight, lora1_weight = rest[:2] if single else rest[2:4]
        size = packed_bytes(x.dtype, x.shape[1], pw_weight.shape[0], lora1_weight.shape[2], d, keeps=True)
        return (*maps_of(x, *rest), torch.empty(size, dtype=torch.uint8, device=x.device))

    def fake_kept_backward(*args: Any) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = fake_backward(*args[: gradients + 1], *args[gradients + 2 :])
        return found

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors = [value for value in inputs if isinstance(value, Tensor)]
        ctx.numbers = inputs[len(tensors) :]
        ctx.save_for_backward(output[-1], *tensors)
        ctx.mark_non_differentiable(output[-1])
        ctx.set_materialize_grads(False)  # or one of the packed weights would be

    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        packed, x, *weights = ctx.saved_tensors
        numbers = (None,) * len(ctx.numbers)
        of_maps = grads[:gradients]
        if all(grad is None for grad in of_maps):
            return (None, *(None for _ in weights), *numbers)
        if any(grad is None for grad in of_maps):
            maps = maps_of(x, *weights, *ctx.numbers)
            of_maps = tuple(y.zero_() if grad is None else grad for y, grad in zip(maps, of_maps, strict=True))
        return (*ctx.call_backward(*of_maps, x, packed, *weights, *ctx.numbers), *numbers)

    arguments, results = schema.split(" -> ")
    kept_schema = f"{arguments} -> ({results.strip('()')}, Tensor)"
    kept_backward_schema = backward_schema.replace("Tensor x, ", "Tensor x, Tensor packed, ")
    call = define(
        f"{op}_kept",
        kept_schema,
        kept_backward_schema,
        fake=fake_kept,
        fake_backward=fake_kept_backward,
        setup_context=setup_context,
        backward=backward,
    )
    _cuda.define_fusion(f"{op}_kept", kept_schema)
    _cuda.define_fusion(f"{op}_kept_backward", kept_backward_schema)
    return call
