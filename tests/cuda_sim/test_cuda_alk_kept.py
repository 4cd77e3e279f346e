"""Weights of alk_conv and alk_stage that a forward in CUDA C++ packs, kept for its backward."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from test_cuda_alk import DEVICE, DTYPES, FLOAT, HALF, conv, conv_inputs, on_device, stage, stage_inputs
from test_cuda_launches import Launches, simulated_only
from test_cuda_tf32 import tf32
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import fastsr
from fastsr.errors import InputError
from fastsr.ops._alk_packed import packed_bytes

pytestmark = pytest.mark.usefixtures("cuda_kernels")

Case = tuple[Callable[..., tuple[Tensor, ...]], list[Tensor], tuple[float, ...]]
OPERATORS = torch.ops.fastsr


def case(name: str, dtype: torch.dtype = FLOAT, taps: int = 5) -> Case:
    """A function of a map and weights, these, and the numbers that its operator takes behind them."""
    if name == "alk_stage":
        return stage, on_device(stage_inputs((2, 20, 9, 11), 10, taps, dtype)), (1e-6,)
    return lambda *t: (conv("gelu")(*t),), on_device(conv_inputs((2, 20, 9, 11), 12, taps, dtype)), (1e-6, 1)


def trained(function: Callable[..., tuple[Tensor, ...]], tensors: list[Tensor]) -> list[Tensor]:
    """Outputs and gradients."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    outputs = function(*leaves)
    return [*outputs, *torch.autograd.grad([y.square().sum() for y in outputs], leaves)]


by_operator = pytest.mark.parametrize("name", ("alk_conv", "alk_stage"))


@by_operator
@pytest.mark.parametrize("changes", (False, True), ids=("", "tf32 changes"))
@pytest.mark.parametrize("allowed", (False, True), ids=("", "tf32"))
@pytest.mark.parametrize("taps", (5, 11))
@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
def test_they_are_what_the_backward_packs(
    name: str, dtype: torch.dtype, taps: int, allowed: bool, changes: bool
) -> None:
    """Also where TF32 is allowed for one direction only."""
    _, tensors, numbers = case(name, dtype, taps)
    with fastsr.backend("cuda"):
        with tf32(allowed):
            *outputs, packed = getattr(OPERATORS, f"{name}_kept")(*tensors, *numbers)
            plain = getattr(OPERATORS, name)(*tensors, *numbers)
        grads = [torch.randn_like(y) for y in outputs]
        with tf32(allowed != changes):
            kept = getattr(OPERATORS, f"{name}_kept_backward")(*grads, tensors[0], packed, *tensors[1:], *numbers)
            again = getattr(OPERATORS, f"{name}_backward")(*grads, *tensors, *numbers)
    expected = (plain,) if isinstance(plain, Tensor) else plain
    for a, b in zip((*outputs, *kept), (*expected, *again), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("taps", (1, 3, 9, 11, 17, 19, 25, 33))
def test_their_size_is_known_without_the_kernels(dtype: torch.dtype, taps: int) -> None:
    for c, d, k in ((1, 1, 1), (64, 32, 64), (33, 0, 65), (70, 0, 128), (32, 0, 8), (58, 40, 58)):
        with fastsr.backend("cuda"):
            if d:
                *_, packed = OPERATORS.alk_stage_kept(*on_device(stage_inputs((0, c, 1, 1), d, taps, dtype)), 1e-6)
            else:
                _, packed = OPERATORS.alk_conv_kept(*on_device(conv_inputs((0, c, 1, 1), k, taps, dtype)), 1e-6, 0)
        assert packed.numel() == packed_bytes(dtype, c, k, taps, d, keeps=True)


@simulated_only
@by_operator
def test_launches(name: str) -> None:
    """Packing and the convolution; seven, with a distilled map eight, and nothing for the packed weights' gradient."""
    function, tensors, _ = case(name)
    leaves = [t.requires_grad_() for t in tensors]
    with fastsr.backend("cuda"):
        with Launches() as forward:
            outputs = function(*leaves)
        assert forward.count == 2
        cotangents = [torch.ones_like(y) for y in outputs]
        with Launches() as backward:
            torch.autograd.grad(outputs, leaves, cotangents)
    assert backward.count == (8 if name == "alk_stage" else 7)


@by_operator
def test_weights_must_not_change_before_the_backward(name: str) -> None:
    function, tensors, _ = case(name)
    for changed in range(len(tensors)):
        leaves = [t.clone().requires_grad_() for t in tensors]
        with fastsr.backend("cuda"):
            loss = sum(y.sum() for y in function(*leaves))
            with torch.no_grad():
                leaves[changed].add_(1)
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                torch.autograd.grad(loss, leaves)


def test_a_map_that_is_not_used_has_no_gradient() -> None:
    _, tensors, _ = case("alk_stage")
    leaves = [t.requires_grad_() for t in tensors]
    with fastsr.backend("cuda"):
        for used in range(2):
            y = stage(*leaves)
            found = torch.autograd.grad(y[used].sum(), leaves)
            both = stage(*leaves)
            expected = torch.autograd.grad((both[used].sum(), (0 * both[1 - used]).sum()), leaves)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@by_operator
def test_without_gradients_nothing_is_kept(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, tensors, _ = case(name)
    monkeypatch.setattr(sys.modules[f"fastsr.ops.{name}"], "_call_kept", None)
    with fastsr.backend("cuda"):
        assert all(y.isfinite().all() for y in function(*tensors))
        with pytest.raises(TypeError):
            function(*(t.requires_grad_() for t in tensors))


@by_operator
@pytest.mark.parametrize("shape", [(0, 20, 4, 4), (2, 20, 0, 4)])
def test_empty(name: str, shape: tuple[int, ...]) -> None:
    function, tensors, _ = case(name)
    tensors[0] = torch.empty(shape, device=DEVICE)
    with fastsr.backend("cuda"):
        results = trained(function, tensors)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(results[-len(tensors) :], tensors, strict=True))


@by_operator
def test_opcheck(name: str) -> None:
    _, tensors, numbers = case(name, HALF)
    operator, backward = getattr(OPERATORS, f"{name}_kept"), getattr(OPERATORS, f"{name}_kept_backward")
    with fastsr.backend("cuda"):
        leaves = [t.detach().requires_grad_() for t in tensors]
        torch.library.opcheck(operator.default, (*leaves, *numbers))
        *outputs, packed = operator(*tensors, *numbers)
        grads = [torch.randn_like(y) for y in outputs]
        torch.library.opcheck(backward.default, (*grads, tensors[0], packed, *tensors[1:], *numbers))


@by_operator
def test_whoever_runs_the_forward_twice_or_traces_it(name: str) -> None:
    """Checkpointing and torch.compile give the gradients of a plain call."""
    function, tensors, _ = case(name)
    with fastsr.backend("cuda"):
        expected = trained(function, tensors)
        compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
        for found in (
            trained(lambda *t: checkpoint(function, *t, use_reentrant=False), tensors),
            trained(compiled, tensors),
        ):
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@by_operator
def test_second_derivatives_are_refused(name: str) -> None:
    function, tensors, _ = case(name)
    leaves = [t.requires_grad_() for t in tensors]
    with fastsr.backend("cuda"):
        y = sum(o.sum() for o in function(*leaves))
        (dx,) = torch.autograd.grad(y, leaves[0], create_graph=True)
        with pytest.raises(InputError, match="the fused backward cannot be differentiated"):
            dx.sum().backward()
