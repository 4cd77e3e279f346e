"""pixel_norm through the whole frame: kernels, autograd, fakes, compile, autocast."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import LAYOUTS, assert_repeatable, assert_twice_rule, feature_map, weight
from torch import Tensor

import fastsr
from fastsr import ops, reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((2, 64, 9, 7), (1, 2, 1, 1), (3, 58, 5, 70), (1, 3, 130, 1), (2, 33, 4, 64))


def parameters(channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return weight(channels, seed=1, dtype=dtype), weight(channels, seed=2, dtype=dtype)


def definition(x: Tensor, w: Tensor, b: Tensor, eps: float) -> Tensor:
    """The mathematics written out, independent of layer_norm."""
    mean = x.sum(1, keepdim=True) / x.shape[1]
    variance = ((x - mean) ** 2).sum(1, keepdim=True) / x.shape[1]
    return (x - mean) / torch.sqrt(variance + eps) * w[:, None, None] + b[:, None, None]


@pytest.mark.parametrize("shape", SHAPES)
def test_reference_is_the_definition(shape: tuple[int, ...]) -> None:
    x = feature_map(shape, "nchw", torch.float64)
    w, b = parameters(shape[1], torch.float64)
    torch.testing.assert_close(reference.pixel_norm(x, w, b, 1e-6), definition(x, w, b, 1e-6), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_twice_rule(cpu_isa: str, shape: tuple[int, ...], layout: str, dtype: torch.dtype) -> None:
    x = feature_map(shape, layout, dtype)
    assert_twice_rule(lambda *t: ops.pixel_norm(*t), (x, *parameters(shape[1], dtype)))


def test_large_mean_keeps_its_precision(cpu_isa: str) -> None:
    x = feature_map((1, 64, 8, 8), "nhwc") + 1000
    assert_twice_rule(lambda *t: ops.pixel_norm(*t), (x, *parameters(64)))


def test_one_channel_is_its_bias(cpu_isa: str) -> None:
    x = feature_map((1, 1, 4, 5), "nhwc").requires_grad_()
    w, b = parameters(1)
    with fastsr.backend("cpu"):
        y = ops.pixel_norm(x, w, b, 1e-6)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(y, b.expand_as(y))
    assert dx.abs().max() <= 1e-7 * w.abs().item() / 1e-3  # zero but for one rounding, times 1 / sqrt(eps)


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_independent_of_threads(cpu_kernels: None, layout: str) -> None:
    assert_repeatable(lambda *t: ops.pixel_norm(*t), (feature_map((2, 64, 33, 65), layout), *parameters(64)))


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
@pytest.mark.parametrize("backend", ("cpu", "reference"))
def test_keeps_the_memory_layout(cpu_kernels: None, layout: str, backend: str) -> None:
    x = feature_map((2, 16, 5, 6), layout)
    with fastsr.backend(backend):
        assert ops.pixel_norm(x, *parameters(16)).stride() == x.stride()


@pytest.mark.parametrize("shape", ((0, 16, 4, 4), (2, 16, 0, 4)))
def test_empty(cpu_kernels: None, shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, requires_grad=True)
    w, b = (p.requires_grad_() for p in parameters(16))
    with fastsr.backend("cpu"):
        y = ops.pixel_norm(x, w, b)
    assert y.shape == x.shape
    y.sum().backward()
    assert w.grad is not None and not w.grad.any()


def test_nan_stays_in_its_pixel(cpu_isa: str) -> None:
    x = feature_map((1, 64, 3, 5), "nhwc")
    x[0, 3, 1, 2] = torch.nan
    with fastsr.backend("cpu"):
        y = ops.pixel_norm(x, *parameters(64))
    bad = torch.zeros(1, 64, 3, 5, dtype=torch.bool)
    bad[:, :, 1, 2] = True
    assert torch.equal(y.isnan(), bad)


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
@pytest.mark.parametrize("dtype", (*DTYPES, torch.float64))
def test_opcheck(cpu_kernels: None, layout: str, dtype: torch.dtype) -> None:
    x = feature_map((2, 16, 3, 5), layout, dtype)
    w, b = parameters(16, dtype)
    grad = torch.randn_like(x)
    arguments = [t.detach().requires_grad_() for t in (x, w, b)]
    torch.library.opcheck(torch.ops.fastsr.pixel_norm.default, (*arguments, 1e-6))
    torch.library.opcheck(torch.ops.fastsr.pixel_norm_backward.default, (grad, x, w, 1e-6))


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_gradcheck(cpu_kernels: None, layout: str) -> None:
    x = feature_map((2, 5, 3, 4), layout, torch.float64).requires_grad_()
    w, b = (p.requires_grad_() for p in parameters(5, torch.float64))
    with fastsr.backend("cpu"):
        assert torch.autograd.gradcheck(lambda *t: ops.pixel_norm(*t), (x, w, b))


def test_second_derivative_is_refused_with_the_way_out(cpu_kernels: None) -> None:
    x = feature_map((1, 4, 2, 2), "nchw").requires_grad_()
    w, b = parameters(4)
    with fastsr.backend("cpu"):
        (g,) = torch.autograd.grad(ops.pixel_norm(x, w, b).square().sum(), x, create_graph=True)
    with pytest.raises(fastsr.InputError, match=r"backend\('reference'\)"):
        g.sum().backward()
    with fastsr.backend("reference"):
        assert torch.autograd.gradgradcheck(
            lambda t: ops.pixel_norm(t, w.double(), b.double()), (x.detach().double().requires_grad_(),)
        )


def test_compile_without_breaks_and_recompiles(cpu_kernels: None) -> None:
    def function(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return ops.pixel_norm(2 * x, w, b).relu()

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=True)
    w, b = (p.requires_grad_() for p in parameters(16))
    with fastsr.backend("cpu"), torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((2, 16, 9, 7), (3, 16, 12, 20), (5, 16, 31, 8)):
            x = feature_map(shape, "nhwc")
            gradients = []
            for run in (function, compiled):
                leaf = x.clone().requires_grad_()
                gradients.append(torch.autograd.grad(run(leaf, w, b).square().sum(), (leaf, w, b)))
            for eager, fused in zip(*gradients, strict=True):
                torch.testing.assert_close(fused, eager)


@pytest.mark.parametrize("backend", ("cpu", "reference"))
def test_autocast_keeps_the_dtype_of_the_input(cpu_kernels: None, backend: str) -> None:
    x = feature_map((1, 16, 4, 4), "nhwc", torch.bfloat16).requires_grad_()
    w, b = (p.requires_grad_() for p in parameters(16))  # float32, as under autocast
    with fastsr.backend(backend), torch.autocast("cpu", dtype=torch.bfloat16):
        y = ops.pixel_norm(x, w, b)
    y.sum().backward()
    assert y.dtype == torch.bfloat16 and x.grad is not None and x.grad.dtype == torch.bfloat16
    assert w.grad is not None and w.grad.dtype == torch.float32
    want = reference.pixel_norm(x.double(), w.double(), b.double(), 1e-6)
    torch.testing.assert_close(y.double(), want, rtol=2**-8, atol=2**-8)


@pytest.mark.parametrize(
    ("x", "w", "b", "says"),
    [
        (torch.zeros(4, 5, 6), torch.ones(5), torch.ones(5), "3 dimensions"),
        (torch.zeros(1, 5, 6, 6), torch.ones(4), torch.ones(5), "weight has shape (4,); pass [5]"),
        (torch.zeros(1, 5, 6, 6), torch.ones(5), torch.ones(5, 1), "bias has shape (5, 1)"),
        (torch.zeros(1, 5, 6, 6, dtype=torch.int32), torch.ones(5), torch.ones(5), "int32"),
        (torch.zeros(1, 5, 6, 6), torch.ones(5).half(), torch.ones(5).half(), "weight is float16 and x float32"),
        (torch.zeros(1, 5, 6, 6), torch.ones(5, device="meta"), torch.ones(5), "weight is on meta and x on cpu"),
        ([[1.0]], torch.ones(5), torch.ones(5), "x is a list"),
    ],
)
def test_bad_input(x: Tensor, w: Tensor, b: Tensor, says: str) -> None:
    with pytest.raises(fastsr.InputError) as caught:
        ops.pixel_norm(x, w, b)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.zeros(5, 6, 6), torch.ones(5), torch.ones(5), 1e-6),
        (torch.zeros(1, 5, 6, 6), torch.ones(4), torch.ones(5), 1e-6),
        (torch.zeros(1, 5, 6, 6), torch.ones(5), torch.ones(6), 1e-6),
        (torch.zeros(1, 5, 6, 6, dtype=torch.int64), torch.ones(5), torch.ones(5), 1e-6),
    ],
)
def test_the_bare_operator_refuses_bad_input(cpu_kernels: None, arguments: tuple[object, ...]) -> None:
    with pytest.raises(RuntimeError, match="pixel_norm"):
        torch.ops.fastsr.pixel_norm(*arguments)
