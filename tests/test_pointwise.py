"""pointwise: the 1x1 convolution of several maps, forward and backward, against float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from kernel_checks import LAYOUTS, assert_repeatable, assert_twice_rule, feature_map, weight
from torch import Tensor

import fastsr
from fastsr import ops

pytestmark = pytest.mark.usefixtures("cpu_kernels")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ACTIVATIONS = ("none", "gelu", "leaky_relu")
# channels of the inputs, output channels, batch, height, width
SHAPES = [
    ((32, 32, 32, 32), 64, 1, 9, 13),
    ((64, 64, 64), 64, 2, 5, 101),  # a strip and a rest
    ((100, 41), 46, 1, 7, 50),  # many channels, none of them whole vectors
    ((58,), 58, 1, 7, 7),
    ((52,), 52, 2, 3, 6),
    ((3, 17), 5, 1, 4, 2),  # a row narrower than a tile
    ((7, 1, 33), 100, 1, 1, 1),
    ((16,), 130, 1, 2, 12),  # a rest of two vectors behind two blocks of columns
    ((5, 4), 46, 0, 4, 4),
]


def function(activation: str, shortcut: bool = False) -> Callable[..., Tensor]:
    if shortcut:
        return lambda w, b, added, *maps: ops.pointwise(maps, w, b, shortcut=added, activation=activation)
    return lambda w, b, *maps: ops.pointwise(maps, w, b, activation=activation)


def case(
    channels: Sequence[int], out: int, n: int, h: int, w: int, layout: str = "nhwc", dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    maps = [feature_map((n, c, h, w), layout, dtype, seed=i) for i, c in enumerate(channels)]
    return [weight(out, sum(channels), 1, 1, dtype=dtype), weight(out, seed=1, dtype=dtype), *maps]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "activation"), [(s, ACTIVATIONS[(i + j) % 3]) for i, s in enumerate(SHAPES) for j in (0, 1)], ids=str
)
def test_error_is_within_twice_that_of_pytorch(
    cpu_isa: str, shape: tuple[tuple[int, ...], int, int, int, int], activation: str, dtype: torch.dtype
) -> None:
    assert_twice_rule(function(activation), case(*shape, dtype=dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reads_every_layout(layout: str, dtype: torch.dtype) -> None:
    assert_twice_rule(function("gelu"), case((32, 7), 24, 2, 6, 11, layout, dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "activation"), [(s, ACTIVATIONS[i % 3]) for i, s in enumerate(SHAPES)], ids=str)
def test_with_a_shortcut(
    cpu_isa: str, shape: tuple[tuple[int, ...], int, int, int, int], activation: str, dtype: torch.dtype
) -> None:
    w, b, *maps = case(*shape, dtype=dtype)
    _, out, n, h, width = shape
    for layout in ("nhwc", "nchw", "channel_slice"):
        added = feature_map((n, out, h, width), layout, dtype, seed=9)
        assert_twice_rule(function(activation, shortcut=True), [w, b, added, *maps])


def test_a_larger_map_is_within_twice_the_error() -> None:
    assert_twice_rule(function("gelu"), case((64,) * 8, 64, 1, 48, 96))


def test_output_and_gradients_keep_the_layouts() -> None:
    w, b, x, y = case((8, 4), 6, 2, 5, 7, "nchw")
    x = x.requires_grad_()
    y = y.contiguous(memory_format=torch.channels_last).requires_grad_()
    with fastsr.backend("cpu"):
        out = ops.pointwise((x, y), w, b)
        assert out.is_contiguous()
        out.sum().backward()
        assert x.grad is not None and x.grad.is_contiguous()
        assert y.grad is not None and y.grad.is_contiguous(memory_format=torch.channels_last)
        assert ops.pointwise((y, x), w[:, [*range(8, 12), *range(8)]], b).is_contiguous(
            memory_format=torch.channels_last
        )


def test_equals_the_convolution_of_the_concatenation() -> None:
    w, b, x, y = case((8, 4), 6, 2, 5, 7)
    expected = torch.nn.functional.conv2d(torch.cat((x, y), 1), w, b)
    with fastsr.backend("cpu"):
        torch.testing.assert_close(ops.pointwise((x, y), w, b), expected)


def test_results_do_not_depend_on_threads() -> None:
    assert_repeatable(function("gelu"), case((64, 64), 64, 2, 33, 70))


def test_nan_and_infinity_stay_in_their_pixel() -> None:
    w, b, x = case((16,), 16, 1, 4, 9)
    x[0, 3, 1, 2], x[0, 5, 2, 4] = torch.nan, torch.inf
    with fastsr.backend("cpu"):
        out = ops.pointwise((x,), w, b, activation="gelu")
    assert out[0, :, 1, 2].isnan().all()
    assert not out[0, :, 2, 4].isfinite().all()
    clean = torch.ones(4, 9, dtype=torch.bool)
    clean[1, 2] = clean[2, 4] = False
    assert out[0, :, clean].isfinite().all()


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_opcheck(layout: str) -> None:
    w, b, x, y = (t.requires_grad_() for t in case((3, 5), 4, 2, 3, 5, layout))
    torch.library.opcheck(torch.ops.fastsr.pointwise.default, ([x, y], w, b, None, 1))
    grad = feature_map((2, 4, 3, 5), layout)
    added = feature_map((2, 4, 3, 5), "nhwc", seed=5).requires_grad_()
    for activation in (0, 1):
        torch.library.opcheck(torch.ops.fastsr.pointwise.default, ([x, y], w, b, added, activation))
    maps = [x.detach(), y.detach()]
    torch.library.opcheck(
        torch.ops.fastsr.pointwise_backward.default,
        (grad, maps, w.detach(), b.detach(), None, 1),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("shortcut", [False, True])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_opcheck_of_what_autograd_records(layout: str, shortcut: bool) -> None:
    w, b, x, y = (t.requires_grad_() for t in case((3, 5), 4, 2, 3, 5, layout))
    added = feature_map((2, 4, 3, 5), "nhwc", seed=5).requires_grad_() if shortcut else None
    torch.library.opcheck(torch.ops.fastsr.pointwise_kept.default, ([x, y], w, b, added, 1))
    maps, plain = [x.detach(), y.detach()], (w.detach(), b.detach())
    out, pre = torch.ops.fastsr.pointwise_kept(maps, *plain, None if added is None else added.detach(), 1)
    torch.testing.assert_close(out, torch.nn.functional.gelu(pre))
    torch.library.opcheck(
        torch.ops.fastsr.pointwise_kept_backward.default,
        (feature_map((2, 4, 3, 5), layout), pre, maps, *plain, shortcut, 1),
        test_utils=("test_schema", "test_faketensor"),
    )


@pytest.mark.parametrize("activation", ["gelu", "leaky_relu"])
def test_keeping_the_argument_changes_nothing(activation: str) -> None:
    w, b, x, y = (t.requires_grad_() for t in case((64, 77), 29, 1, 23, 50, "nhwc"))
    added = feature_map((1, 29, 23, 50), "nhwc", seed=5).requires_grad_()
    leaves = (x, y, w, b, added)
    kept = ops.pointwise([x, y], w, b, shortcut=added, activation=activation)
    again = torch.ops.fastsr.pointwise([x, y], w, b, added, ACTIVATIONS.index(activation))
    assert "pointwise_kept" in type(kept.grad_fn).__name__
    assert torch.equal(kept, again)
    for a, c in zip(torch.autograd.grad(kept.sum(), leaves), torch.autograd.grad(again.sum(), leaves), strict=True):
        assert torch.equal(a, c)


def test_compiles_in_one_graph() -> None:
    inputs = case((32, 32), 64, 1, 8, 9)
    compiled = torch.compile(function("gelu"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), function("gelu")(*inputs))


def test_bad_input_is_named() -> None:
    w, b, x, y = case((3, 5), 4, 2, 3, 5)
    with pytest.raises(fastsr.InputError, match="inputs is empty"):
        ops.pointwise((), w, b)
    with pytest.raises(fastsr.InputError, match="inputs is a tensor"):
        ops.pointwise(x, w, b)
    with pytest.raises(fastsr.InputError, match=r"inputs\[1\] has shape"):
        ops.pointwise((x, y[..., :4]), w, b)
    with pytest.raises(fastsr.InputError, match=r"inputs\[1\] is bfloat16"):
        ops.pointwise((x, y.bfloat16()), w, b)
    with pytest.raises(fastsr.InputError, match="weight has shape"):
        ops.pointwise((x,), w, b)
    with pytest.raises(fastsr.InputError, match="shortcut has shape"):
        ops.pointwise((x, y), w, b, shortcut=x)
    with pytest.raises(fastsr.InputError, match="activation is 'relu'"):
        ops.pointwise((x, y), w, b, activation="relu")  # type: ignore[arg-type]


def test_a_direct_call_with_wrong_shapes_raises() -> None:
    w, b, x, y = case((3, 5), 4, 2, 3, 5)
    grad = feature_map((2, 4, 3, 5), "nhwc")
    forward, backward = torch.ops.fastsr.pointwise, torch.ops.fastsr.pointwise_backward
    for bad in (
        ([], w, b, None, 0),
        ([x], w, b, None, 0),
        ([x, y[..., 1:]], w, b, None, 0),
        ([x, y], w, b[1:], None, 0),
        ([x, y], w, b, None, 9),
        ([x, y], w, b, grad[:, 1:], 0),
    ):
        with pytest.raises(RuntimeError, match="pointwise"):
            forward(*bad)
    with pytest.raises(RuntimeError, match="differ in dtype"):
        forward([x, y.half()], w, b, None, 0)
    with pytest.raises(RuntimeError, match="grad is"):
        backward(grad[:, 1:], [x, y], w, b, None, 0)
