"""torch.func and forward-mode differentiation, for which kernels have no rules: everything runs on the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_models_cpu import network
from torch import Tensor
from torch.autograd import forward_ad

import fastsr
from fastsr import ops
from fastsr.nn import MLRB, PixelNorm

Function = Callable[[Tensor], Tensor]


def _block() -> Function:
    """MLRN's, of which `mixer_block` is one operator, and the ESA may overwrite its map."""
    return MLRB(8, 4).requires_grad_(False)


FUNCTIONS: dict[str, tuple[Callable[[], Function], int]] = {  # with the channels of the image
    "operator": (lambda: PixelNorm(8), 8),
    "fusion": (_block, 8),
    "network": (lambda: network("mlrn", num_block=1), 3),
    "frozen": (lambda: fastsr.freeze(network("mlrn", num_block=1)), 3),
    "frozen_alkdnet": (lambda: fastsr.freeze(network("alkdnet", num_block=1)), 3),
    "frozen_bsrn": (lambda: fastsr.freeze(network("bsrn", num_block=1)), 3),
}


def _dual(f: Function, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(f(forward_ad.make_dual(x, x.square()))).tangent
        assert tangent is not None
        return tangent


def _by_channel(f: Function, x: Tensor) -> tuple[Function, Tensor]:
    """A function with a small Jacobian, and where to take it."""
    return (lambda factors: f(x * factors).square().mean((0, 2, 3))), torch.ones(x.shape[1], 1, 1)


TRANSFORMS: dict[str, Callable[[Function, Tensor], Any]] = {
    "grad": lambda f, x: torch.func.grad(lambda v: f(v).square().sum())(x),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](torch.ones_like(f(x)))[0],
    "jacrev": lambda f, x: torch.func.jacrev(_by_channel(f, x)[0])(_by_channel(f, x)[1]),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (x.square(),))[1],
    "jacfwd": lambda f, x: torch.func.jacfwd(_by_channel(f, x)[0])(_by_channel(f, x)[1]),
    "hessian": lambda f, x: torch.func.hessian(_by_channel(f, x)[0])(_by_channel(f, x)[1]),
    "vmap": lambda f, x: torch.vmap(f)(x[:, None]),
    "forward_ad": _dual,
}


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_transforms_are_those_of_the_reference(name: str, transform: str) -> None:
    make, channels = FUNCTIONS[name]
    torch.manual_seed(0)
    f, x = make(), torch.rand(2, channels, 16, 17)
    with fastsr.backend("reference"):
        expected = TRANSFORMS[transform](f, x)
    assert expected.abs().max() > 0
    found = TRANSFORMS[transform](f, x)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


def test_the_gradient_is_that_of_autograd() -> None:
    net, x = network("mlrn", num_block=1), torch.rand(1, 3, 16, 17)
    parameters = dict(net.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(net, parameters, (x,)).square().sum()

    found = torch.func.grad(loss)(parameters)
    loss(parameters).backward()
    for key, p in parameters.items():
        assert p.grad is not None
        torch.testing.assert_close(found[key], p.grad, rtol=1e-3, atol=1e-5 * p.grad.abs().max().item())


def test_weights_may_have_tangents() -> None:
    x, weight, bias = torch.rand(2, 8, 5, 6), torch.rand(8), torch.rand(8)
    with forward_ad.dual_level():
        y = ops.pixel_norm(x, forward_ad.make_dual(weight, torch.ones(8)), bias)
        tangent = forward_ad.unpack_dual(y).tangent
    assert tangent is not None
    torch.testing.assert_close(tangent, ops.pixel_norm(x, torch.ones(8), torch.zeros(8)))


def test_frozen_weights_are_not_differentiated() -> None:
    """They are looked up once, so that the gradients would be zero without a word."""
    net, x = fastsr.freeze(network("mlrn", num_block=1)), torch.rand(1, 3, 16, 17)
    weights = {name: p.detach() for name, p in net.named_parameters()}

    def call(weights: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(net, weights, (x,)).sum()

    stacked = {name: torch.stack((p, p)) for name, p in weights.items()}
    for transform in (
        lambda: torch.func.grad(call)(weights),
        lambda: torch.func.jvp(call, (weights,), (weights,)),
        lambda: torch.vmap(call)(stacked),
    ):
        with pytest.raises(fastsr.InputError, match="takes no weights from torch"):
            transform()
    bias = net.upsampler[0].bias
    with forward_ad.dual_level(), pytest.raises(fastsr.InputError, match="takes no weights"):
        torch.func.functional_call(net, {"net.upsampler.0.bias": forward_ad.make_dual(bias, bias)}, (x,))


def test_gradients_of_an_earlier_call_have_no_tangents(cpu_kernels: None) -> None:
    x = torch.rand(2, 8, 5, 6, requires_grad=True)
    y = PixelNorm(8)(x)
    with forward_ad.dual_level():
        torch.autograd.grad(y, x, torch.ones_like(y), retain_graph=True)
        with pytest.raises(fastsr.InputError, match="call pixel_norm within the dual level"):
            torch.autograd.grad(y, x, forward_ad.make_dual(torch.ones_like(y), torch.ones_like(y)))


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_forced_kernel_is_refused(cpu_kernels: None, name: str, transform: str) -> None:
    make, channels = FUNCTIONS[name]
    f, x = make(), torch.rand(2, channels, 16, 17)
    with fastsr.backend("cpu"), pytest.raises(fastsr.BackendError, match=r"no rules for torch\.func.+force"):
        TRANSFORMS[transform](f, x)


@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap"])
def test_compiled_with_the_transform(transform: str) -> None:
    weight, bias, x = torch.rand(4, 8, 3, 3), torch.rand(4), torch.rand(2, 8, 5, 6)

    def f(x: Tensor) -> Tensor:
        return ops.conv3x3_gelu(x, weight, bias)

    expected = TRANSFORMS[transform](f, x)
    compiled = torch.compile(lambda x: TRANSFORMS[transform](f, x), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)


def test_the_question_leaves_nothing_in_a_compiled_graph(cpu_kernels: None) -> None:
    targets: list[str] = []

    def look(module: torch.fx.GraphModule, inputs: Any) -> Any:
        targets.extend(str(node.target) for node in module.graph.nodes if node.op.startswith("call"))
        return module.forward

    norm, x = PixelNorm(8).requires_grad_(False), torch.rand(2, 8, 5, 6)
    compiled = torch.compile(norm, fullgraph=True, backend=look)
    assert torch.equal(compiled(x), norm(x))
    assert targets == ["fastsr.pixel_norm.default"]
    with forward_ad.dual_level():
        compiled(x)
    assert "fastsr.pixel_norm.default" not in targets[1:]
