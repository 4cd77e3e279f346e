"""A roofline model: bytes, multiply-adds and instructions of an operator or network, and the time they need at least.

Counted on meta tensors from what the reference path executes, so there is one definition of the work:

- bytes: every map, weight and result once, for a network those of each fastsr operator it calls. Of a backward: the
  inputs, the gradients given and the gradients returned, whatever a kernel may have to compute again;
- multiply-adds of convolutions, dense ones (matrix units can take them) apart from depthwise ones;
- instructions: scalar operations of everything else, by INSTRUCTIONS, and the depthwise multiply-adds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fastsr
from fastsr import ops, reference
from fastsr._dispatch import FUSIONS, OPERATORS
from fastsr.bench.cases import Case

# Instructions for each element of a result. GELU is the kernels' own: a table of piecewise polynomials on the CPU, the
# float16 bump on a GPU (docs/cpu-kernels.md, docs/gelu.md); its derivative shares half of that. Layer norm: two passes
# for the moments, the scaling, the affine map.
INSTRUCTIONS = {
    "gelu": 13,
    "gelu_backward": 20,
    "sigmoid": 8,
    "sigmoid_backward": 3,
    "native_layer_norm": 7,
    "native_layer_norm_backward": 14,
    "max_pool2d_with_indices": reference.ESA_POOL**2,
    "max_pool2d_with_indices_backward": reference.ESA_POOL**2,
    "upsample_bilinear2d": 7,
    "upsample_bilinear2d_backward": 7,
    "leaky_relu": 2,
    "leaky_relu_backward": 2,
    "relu": 1,
    "threshold_backward": 1,
    "add": 1,
    "sub": 1,
    "mul": 1,
    "div": 1,
    "abs": 1,
    "sgn": 1,
    "mean": 1,
    "sqrt": 1,
    "pow": 1,
}


@dataclass(frozen=True)
class Work:
    """What must be done, and moved, at least."""

    bytes: int = 0
    dense_macs: int = 0
    depthwise_macs: int = 0
    instructions: int = 0

    @property
    def macs(self) -> int:
        return self.dense_macs + self.depthwise_macs

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __sub__(self, other: Work) -> Work:
        return Work(*(a - b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def floor(self, ceilings: dict[str, Any], dtype: str) -> tuple[float, str] | None:
        """Milliseconds that the work takes at least by the measured `ceilings`, and what bounds it.

        On a CPU one kind of instruction does it all; on a GPU dense products go to the matrix units beside the rest.
        None if a ceiling is missing.
        """
        copy, fma = ceilings.get("copy_gbs"), ceilings.get("fma_gflops")
        if not copy or not fma:
            return None
        matrix = ceilings.get(f"matrix_{dtype}_gflops")
        scalar = self.instructions + self.depthwise_macs + (0 if matrix else self.dense_macs)
        needs = {"memory": self.bytes / copy / 1e6, "instructions": scalar / (fma / 2) / 1e6}
        if matrix:
            needs["matrix"] = 2 * self.dense_macs / matrix / 1e6
        bound = max(needs, key=lambda key: needs[key])
        return needs[bound], bound


def _tensor_bytes(value: Any) -> int:
    """Bytes of the tensors in `value`, each once."""
    return sum({id(t): t.numel() * t.element_size() for t in tree_leaves(value) if isinstance(t, Tensor)}.values())


class Counting(TorchDispatchMode):
    """Counts the multiply-adds and instructions of what runs inside.

    `by_name` is the work of each of PyTorch's operators, with its own arguments and results as bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.dense = self.depthwise = self.instructions = 0
        self.by_name: dict[str, Work] = {}

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__.rstrip("_")
        before = self.work()
        if name == "convolution":
            self._convolution(args[1], out.numel(), args[8], 1)
        elif name == "convolution_backward":
            self._convolution(args[2], args[0].numel(), args[9], sum(args[10][:2]))
        elif name in INSTRUCTIONS:
            first = out[0] if isinstance(out, tuple) else out
            # reductions and the gradients of pooling and resizing go over the larger side
            elements = max(first.numel(), *(a.numel() for a in args if isinstance(a, Tensor)), 0)
            if name.startswith("max_pool2d"):
                elements = min(first.numel(), args[0].numel())
            self.instructions += INSTRUCTIONS[name] * elements
        done = Work(_tensor_bytes((args, kwargs)) + _tensor_bytes(out)) + self.work() - before
        self.by_name[name] = self.by_name.get(name, Work()) + done
        return out

    def work(self, moved: int = 0) -> Work:
        """What was counted, with the bytes that were moved."""
        return Work(moved, self.dense, self.depthwise, self.instructions)

    def _convolution(self, weight: Tensor, outputs: int, groups: int, times: int) -> None:
        macs = times * outputs * math.prod(weight.shape[1:])
        if groups > 1:
            self.depthwise += macs
        else:
            self.dense += macs


@contextmanager
def recorded_calls() -> Iterator[list[tuple[str, Work]]]:
    """The name and work of every fastsr operator that runs on the reference path inside; nested ones are not told."""
    calls: list[tuple[str, Work]] = []
    depth = 0

    def wrap(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            depth += 1
            try:
                with Counting() as counting:
                    out = function(*args, **kwargs)
            finally:
                depth -= 1
            if depth == 0:
                calls.append((name, counting.work(_tensor_bytes((args, kwargs)) + _tensor_bytes(out))))
            return out

        return call

    with ExitStack() as stack:
        for module, name in (*((reference, op) for op in OPERATORS), *((ops, fusion) for fusion in FUSIONS)):
            original = getattr(module, name)
            stack.callback(setattr, module, name, original)
            setattr(module, name, wrap(name, original))
        yield calls


def count(case: Case) -> Work:
    """The work of `case` in its direction; "step" is forward and backward."""
    module = case.build().to("meta", case.tensor_dtype)
    maps = [torch.empty(shape, device="meta", dtype=case.tensor_dtype) for shape in case.shapes]
    backward = case.direction != "forward"
    if backward:
        module.train()
        if case.group == "ops":
            maps = [x.requires_grad_() for x in maps]
    with fastsr.backend("reference"), torch.set_grad_enabled(backward):
        with recorded_calls() as calls, Counting() as counted:
            out = module(*maps)
        moved = sum(call.bytes for _, call in calls)
        forward = counted.work(moved)
        if not backward:
            return forward
        outputs = out if isinstance(out, tuple) else (out,)
        leaves = [x for x in (*maps, *module.parameters()) if x.requires_grad]
        with Counting() as counted:
            torch.autograd.grad(outputs, leaves, [torch.empty_like(y) for y in outputs], allow_unused=True)
    # An operator's backward reads its inputs and the gradients of its results, and writes the gradients of its inputs.
    # Inside a network, nearly every result is another operator's input: twice what the forward moves.
    results = _tensor_bytes(outputs) if case.group == "ops" else 0
    gradient = counted.work(2 * (moved - results) + results)
    return gradient if case.direction == "backward" else forward + gradient
