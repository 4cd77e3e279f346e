"""The Triton pixel_norm against float64, and through the frame: autograd, compile, autocast, opcheck."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import LAYOUTS, assert_repeatable, assert_twice_rule, device_of, feature_map, moved, weight
from torch import Tensor

import fastsr
from fastsr import ops, reference

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((2, 64, 9, 7), (1, 2, 1, 1), (3, 58, 5, 14), (1, 3, 130, 1), (1, 130, 3, 5))
DEVICE = device_of("triton")


def parameters(channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return weight(channels, seed=1, dtype=dtype), weight(channels, seed=2, dtype=dtype)


def norm(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    return ops.pixel_norm(x, w, b)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_twice_rule(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert_twice_rule(norm, (feature_map(shape, "nhwc", dtype), *parameters(shape[1], dtype)), "triton")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    assert_twice_rule(norm, (feature_map((2, 20, 5, 13), layout), *parameters(20)), "triton")


def test_large_mean_keeps_its_precision() -> None:
    assert_twice_rule(norm, (feature_map((1, 64, 4, 8), "nhwc") + 1000, *parameters(64)), "triton")


def test_repeatable() -> None:
    assert_repeatable(norm, (feature_map((2, 64, 9, 15), "nhwc"), *parameters(64)), "triton")


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_keeps_the_memory_layout(layout: str) -> None:
    x, w, b = (moved(t, DEVICE) for t in (feature_map((2, 16, 5, 6), layout), *parameters(16)))
    with fastsr.backend("triton"):
        assert ops.pixel_norm(x, w, b).stride() == x.stride()


@pytest.mark.parametrize("shape", ((0, 16, 4, 4), (2, 16, 0, 4)))
def test_empty(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape, requires_grad=True, device=DEVICE)
    w, b = (moved(p, DEVICE).requires_grad_() for p in parameters(16))
    with fastsr.backend("triton"):
        ops.pixel_norm(x, w, b).sum().backward()
    assert x.grad is not None and x.grad.shape == shape
    assert w.grad is not None and not w.grad.any() and b.grad is not None and not b.grad.any()


def test_nan_stays_in_its_pixel() -> None:
    x = feature_map((1, 64, 3, 5), "nhwc")
    x[0, 3, 1, 2] = torch.nan
    with fastsr.backend("triton"):
        y = ops.pixel_norm(*(moved(t, DEVICE) for t in (x, *parameters(64))))
    bad = torch.zeros(1, 64, 3, 5, dtype=torch.bool)
    bad[:, :, 1, 2] = True
    assert torch.equal(y.isnan().cpu(), bad)


def test_nothing_is_written_beside_the_output() -> None:
    """Into a poisoned buffer with a guard on either side."""
    from fastsr.kernels import pixel_norm as kernels

    x, w, b = (moved(t, DEVICE) for t in (feature_map((1, 20, 3, 7), "nhwc"), *parameters(20)))
    size = x.numel()
    buffer = torch.full((3 * size,), torch.nan, device=DEVICE)
    inside = buffer.as_strided(x.shape, x.stride(), size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels.torch, "empty_like", lambda _: inside)
        y = kernels.pixel_norm(x, w, b, 1e-6)
    assert y.isfinite().all() and buffer[:size].isnan().all() and buffer[2 * size :].isnan().all()


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_opcheck(layout: str) -> None:
    x, w, b = (moved(t, DEVICE) for t in (feature_map((2, 16, 3, 5), layout), *parameters(16)))
    grad = torch.randn_like(x)
    with fastsr.backend("triton"):
        arguments = [t.detach().requires_grad_() for t in (x, w, b)]
        torch.library.opcheck(torch.ops.fastsr.pixel_norm.default, (*arguments, 1e-6))
        torch.library.opcheck(torch.ops.fastsr.pixel_norm_backward.default, (grad, x, w, 1e-6))


def test_compiles_in_one_graph_without_recompiling() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(norm, fullgraph=True, dynamic=True, backend="aot_eager")
    w, b = (moved(p, DEVICE).requires_grad_() for p in parameters(16))
    with fastsr.backend("triton"), torch._dynamo.config.patch(error_on_recompile=True):
        for shape in ((2, 16, 4, 3), (3, 16, 5, 2)):
            x = moved(feature_map(shape, "nhwc"), DEVICE).requires_grad_()
            eager, fused = (torch.autograd.grad(f(x, w, b).square().sum(), (x, w, b)) for f in (norm, compiled))
            assert all(torch.equal(p, q) for p, q in zip(eager, fused, strict=True))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_autocast_keeps_the_dtype_of_the_input(dtype: torch.dtype) -> None:
    x = moved(feature_map((1, 16, 4, 4), "nhwc", dtype), DEVICE).requires_grad_()
    w, b = (moved(p, DEVICE).requires_grad_() for p in parameters(16))  # float32, as under autocast
    with fastsr.backend("triton"), torch.autocast(DEVICE, dtype=dtype):
        y = ops.pixel_norm(x, w, b)
        y.sum().backward()
    assert y.dtype == dtype and x.grad is not None and x.grad.dtype == dtype
    assert w.grad is not None and w.grad.dtype == torch.float32
    want = reference.pixel_norm(x.double(), w.double(), b.double(), 1e-6)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), want, rtol=eps, atol=eps)
