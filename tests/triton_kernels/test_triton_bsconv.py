"""The Triton bsconv against float64, and through the frame."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import LAYOUTS, assert_repeatable, assert_twice_rule, device_of, feature_map, moved, weight
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.reference import Activation

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DEVICE = device_of("triton")
# [N, C, H, W], K, activation, with a shortcut
CASES: tuple[tuple[tuple[int, int, int, int], int, Activation, bool], ...] = (
    ((1, 12, 7, 10), 64, "none", False),
    ((1, 64, 1, 1), 64, "gelu", True),
    ((2, 58, 4, 9), 58, "leaky_relu", True),
    ((1, 3, 40, 2), 12, "none", True),
)


def inputs_of(
    shape: tuple[int, int, int, int],
    k: int,
    shortcut: bool,
    dtype: torch.dtype = torch.float32,
    layout: str = "nhwc",
) -> list[Tensor]:
    n, c, h, w = shape
    tensors = [
        feature_map(shape, layout, dtype),
        weight(k, c, 1, 1, seed=1, dtype=dtype),
        weight(k, 1, 3, 3, seed=2, dtype=dtype),
        weight(k, seed=3, gain=0.3, dtype=dtype),
    ]
    return [*tensors, feature_map((n, k, h, w), layout, dtype, seed=4)] if shortcut else tensors


def conv(activation: Activation):
    return lambda x, pw, dw, db, s=None: ops.bsconv(x, pw, dw, db, shortcut=s, activation=activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "k", "activation", "shortcut"), CASES, ids=str)
def test_twice_rule(dtype: torch.dtype, shape, k: int, activation: Activation, shortcut: bool) -> None:
    assert_twice_rule(conv(activation), inputs_of(shape, k, shortcut, dtype), "triton")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str) -> None:
    assert_twice_rule(conv("gelu"), inputs_of((2, 20, 3, 6), 24, True, layout=layout), "triton")


def test_shortcut_that_is_the_input() -> None:
    """BSRN's stage: gradients of both uses of x add up."""
    inputs = inputs_of((1, 16, 5, 5), 16, False)
    assert_twice_rule(lambda x, *w: ops.bsconv(x, *w, shortcut=x, activation="gelu"), inputs, "triton")


def test_repeatable() -> None:
    assert_repeatable(conv("gelu"), inputs_of((1, 20, 7, 15), 24, True), "triton")


@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (2, 16, 4, 0)])
def test_empty(shape: tuple[int, int, int, int]) -> None:
    leaves = [torch.empty(shape), *inputs_of((1, 16, 1, 1), 8, False)[1:], torch.empty(shape[0], 8, *shape[2:])]
    leaves = [moved(t, DEVICE).requires_grad_() for t in leaves]
    with fastsr.backend("triton"):
        out = conv("gelu")(*leaves)
        out.sum().backward()
    assert out.shape == (shape[0], 8, *shape[2:])
    assert all(t.grad is not None and not t.grad.any() for t in leaves)


def test_nan_reaches_its_neighbours_only() -> None:
    inputs = [moved(t, DEVICE) for t in inputs_of((1, 16, 6, 7), 24, True)]
    inputs[0][0, 3, 3, 3] = torch.nan
    with fastsr.backend("reference"):
        expected = conv("gelu")(*inputs)
    with fastsr.backend("triton"):
        assert torch.equal(conv("gelu")(*inputs).isnan(), expected.isnan())


def test_other_geometries_take_the_reference() -> None:
    x, pw, dw, db = (moved(t, DEVICE) for t in inputs_of((1, 8, 9, 9), 8, False))
    with fastsr.backend("triton"), pytest.raises(fastsr.BackendError, match="stride 2 and padding 1; triton has 3x3"):
        ops.bsconv(x, pw, dw, db, stride=2)


def test_opcheck() -> None:
    inputs = [moved(t, DEVICE) for t in inputs_of((2, 8, 3, 5), 4, True)]
    grad = torch.randn_like(inputs[4])
    tests = ("test_schema", "test_faketensor")
    with fastsr.backend("triton"):
        torch.library.opcheck(torch.ops.fastsr.bsconv.default, (*(t.clone().requires_grad_() for t in inputs), 1))
        for shortcut, activation in ((inputs[4], 2), (inputs[4], 0), (None, 1)):
            args = (grad, *inputs[:4], shortcut, activation)
            torch.library.opcheck(torch.ops.fastsr.bsconv_backward.default, args, test_utils=tests)
