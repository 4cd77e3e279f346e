"""upsample: 3x3 convolution, pixel shuffle and residual, forward and backward, against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_checks import (
    LAYOUTS,
    assert_repeatable,
    assert_twice_rule,
    assert_upsample_under_autocast,
    feature_map,
    results,
    weight,
)
from torch import Tensor

import fastsr
from fastsr import ops, reference
from fastsr.reference import Residual

pytestmark = pytest.mark.usefixtures("cpu_kernels")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
RESIDUALS: tuple[Residual, ...] = ("none", "anchor", "bilinear")
# shape, image channels, scale
CASES = [
    ((1, 64, 9, 13), 3, 2),
    ((2, 58, 5, 50), 3, 3),
    ((1, 24, 6, 7), 3, 4),
    ((1, 5, 3, 101), 1, 2),
    ((2, 7, 1, 1), 3, 4),
    ((1, 16, 4, 2), 5, 1),
]


def function(scale: int, residual: Residual) -> Callable[..., Tensor]:
    def call(x: Tensor, w: Tensor, b: Tensor, lr: Tensor | None = None) -> Tensor:
        return ops.upsample(x, w, b, lr, scale=scale, residual=residual)

    return call


def case(
    shape: tuple[int, int, int, int],
    k: int,
    scale: int,
    residual: str = "none",
    layout: str = "nhwc",
    lr_layout: str = "nchw",
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    n, c, h, w = shape
    out = k * scale * scale
    inputs = [feature_map(shape, layout, dtype), weight(out, c, 3, 3, dtype=dtype), weight(out, seed=1, dtype=dtype)]
    return inputs if residual == "none" else [*inputs, feature_map((n, k, h, w), lr_layout, dtype, seed=1)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize(("shape", "k", "scale"), CASES, ids=str)
def test_error_is_within_twice_that_of_pytorch(
    cpu_isa: str, shape: tuple[int, int, int, int], k: int, scale: int, residual: Residual, dtype: torch.dtype
) -> None:
    assert_twice_rule(function(scale, residual), case(shape, k, scale, residual, dtype=dtype))


@pytest.mark.parametrize("residual", RESIDUALS)
def test_an_empty_batch(residual: Residual) -> None:  # PyTorch's pixel_shuffle has no gradient for one
    inputs = case((0, 8, 4, 5), 3, 2, residual)
    y, *gradients = results(function(2, residual), inputs, "cpu")
    assert y.shape == (0, 3, 8, 10)
    for gradient, value in zip(gradients, inputs, strict=True):
        assert gradient.shape == value.shape and not gradient.any()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lr_layout", LAYOUTS)
def test_reads_every_layout(layout: str, lr_layout: str) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        inputs = case((2, 12, 6, 11), 3, 2, "bilinear", layout, lr_layout, dtype)
        assert_twice_rule(function(2, "bilinear"), inputs)


@pytest.mark.parametrize("scale", [2, 4])
def test_a_larger_map_is_within_twice_the_error(scale: int) -> None:
    assert_twice_rule(function(scale, "bilinear"), case((1, 64, 48, 61), 3, scale, "bilinear"))


def test_output_and_gradients_keep_the_layouts() -> None:
    for layout, memory_format in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
        for lr_layout, lr_format in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
            inputs = case((2, 8, 5, 7), 3, 2, "anchor", layout, lr_layout)
            y, dx, *_, d_lr = results(function(2, "anchor"), inputs, "cpu")
            assert y.is_contiguous(memory_format=memory_format) and dx.is_contiguous(memory_format=memory_format)
            assert d_lr.is_contiguous(memory_format=lr_format)


def test_results_do_not_depend_on_threads() -> None:
    assert_repeatable(function(3, "bilinear"), case((2, 32, 33, 70), 3, 3, "bilinear"))


def test_no_gradient_is_made_for_an_image_that_needs_none() -> None:
    x, w, b, lr = case((1, 8, 5, 7), 3, 2, "anchor")
    with fastsr.backend("cpu"):
        ops.upsample(x, w.requires_grad_(), b, lr, scale=2, residual="anchor").sum().backward()
    assert w.grad is not None and lr.grad is None


def test_nan_and_infinity_stay_in_their_neighbourhood() -> None:
    x, w, b = case((1, 16, 9, 9), 3, 2)
    x[0, 3, 4, 4] = torch.nan
    with fastsr.backend("cpu"):
        y = ops.upsample(x, w, b, None, scale=2)
    inside = torch.zeros(18, 18, dtype=torch.bool)
    inside[6:12, 6:12] = True
    assert torch.equal(y[0].isnan(), inside.expand(3, 18, 18))


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_opcheck(layout: str, residual: Residual) -> None:
    inputs = [t.requires_grad_() for t in case((2, 5, 4, 3), 3, 2, residual, layout)]
    code = RESIDUALS.index(residual)
    args = (*inputs, *([None] if residual == "none" else []))
    torch.library.opcheck(torch.ops.fastsr.upsample.default, (*args, 2, code))
    plain = [None if t is None else t.detach() for t in args]
    torch.library.opcheck(
        torch.ops.fastsr.upsample_backward.default,
        (feature_map((2, 3, 8, 6), layout), *plain, 2, code, True),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_compiles_in_one_graph() -> None:
    inputs = case((1, 16, 8, 9), 3, 2, "anchor")
    compiled = torch.compile(function(2, "anchor"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), function(2, "anchor")(*inputs))


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("residual", ("anchor", "bilinear"))
def test_an_image_of_float32_under_autocast(residual: Residual, dtype: torch.dtype) -> None:
    assert_upsample_under_autocast(dtype, residual, "cpu")


def under_autocast(residual: Residual) -> Callable[..., Tensor]:
    def call(*inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return function(2, residual)(*inputs)

    return call


@pytest.mark.parametrize("residual", ("anchor", "bilinear"))
def test_an_image_of_float32_in_one_graph(residual: Residual, monkeypatch: pytest.MonkeyPatch) -> None:
    x, *rest = case((1, 16, 8, 9), 3, 2, residual)
    inputs = [x.bfloat16(), *rest]
    expected = results(under_autocast(residual), inputs, "cpu")
    compiled = torch.compile(under_autocast(residual), fullgraph=True, backend="aot_eager")
    monkeypatch.delattr(reference, "upsample")
    for found, wanted in zip(results(compiled, inputs, "cpu"), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_an_image_of_float32_beside_a_backend_that_cannot_run() -> None:
    x, *rest = case((1, 16, 8, 9), 3, 2, "anchor")
    with fastsr.backend("cuda"), pytest.raises(fastsr.BackendError, match="forced backend 'cuda' cannot run upsample"):
        under_autocast("anchor")(x.bfloat16(), *rest)


def test_an_empty_batch_with_an_image_of_float32() -> None:
    x, *rest = case((0, 8, 4, 5), 3, 2, "anchor")
    y, *gradients = results(under_autocast("anchor"), [x.bfloat16(), *rest], "cpu")
    assert y.shape == (0, 3, 8, 10) and y.dtype == torch.float32
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients, (x, *rest), strict=True))


def test_bad_input_is_named() -> None:
    x, w, b, lr = case((1, 8, 5, 7), 3, 2, "anchor")
    with pytest.raises(fastsr.InputError, match="scale is 5"):
        ops.upsample(x, w, b, None, scale=5)
    with pytest.raises(fastsr.InputError, match="lr is None"):
        ops.upsample(x, w, b, None, scale=2, residual="anchor")
    with pytest.raises(fastsr.InputError, match="lr has shape"):
        ops.upsample(x, w, b, lr[..., 1:], scale=2, residual="anchor")
    with pytest.raises(fastsr.InputError, match="residual is 'cubic'"):
        ops.upsample(x, w, b, lr, scale=2, residual="cubic")  # type: ignore[arg-type]


def test_a_direct_call_with_wrong_shapes_raises() -> None:
    x, w, b, lr = case((1, 8, 5, 7), 3, 2, "anchor")
    call = torch.ops.fastsr.upsample
    for bad in (
        (x, w[:, 1:], b, None, 2, 0),
        (x, w, b[1:], None, 2, 0),
        (x, w, b, None, 2, 1),
        (x, w, b, lr[:, 1:], 2, 1),
        (x, w, b, lr.half(), 2, 2),
        (x, w, b, None, 0, 0),
        (x, w, b, None, 5, 0),
        (x, w, b, lr, 2, 3),
    ):
        with pytest.raises(RuntimeError, match="upsample"):
            call(*bad)
    grad = feature_map((1, 3, 10, 13), "nhwc")
    with pytest.raises(RuntimeError, match="grad has not the shape"):
        torch.ops.fastsr.upsample_backward(grad, x, w, b, None, 2, 0, False)
