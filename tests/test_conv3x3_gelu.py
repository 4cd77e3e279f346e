"""conv3x3_gelu: every kernel against the float64 reference, on every instruction set."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_checks import LAYOUTS, assert_repeatable, assert_twice_rule, feature_map, weight
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.errors import InputError
from fastsr.reference import Activation

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATIONS: tuple[Activation, ...] = ("gelu", "leaky_relu", "none")
# [N, C, H, W] and K: the networks' widths, vectors with remainders, images smaller than a tile, one pixel.
SHAPES = (
    ((2, 58, 13, 17), 58),
    ((1, 58, 26, 9), 12),
    ((2, 46, 7, 11), 48),
    ((1, 52, 8, 25), 52),
    ((1, 3, 19, 14), 58),
    ((3, 16, 6, 6), 33),
    ((1, 70, 12, 7), 130),
    ((2, 58, 2, 3), 58),
    ((1, 9, 1, 30), 8),
    ((1, 12, 40, 1), 16),
    ((2, 58, 1, 1), 58),
    ((1, 1, 5, 5), 1),
)


def inputs(
    shape: tuple[int, int, int, int], k: int, dtype: torch.dtype = torch.float32, layout: str = "nhwc"
) -> list[Tensor]:
    n, c, h, w = shape
    return [
        feature_map(shape, layout, dtype),
        weight(k, c, 3, 3, dtype=dtype),
        weight(k, seed=1, dtype=dtype),
        feature_map((n, k, h, w), layout, dtype, seed=1),
    ]


def function(activation: Activation, shortcut: bool = True) -> Callable[..., Tensor]:
    def run(x: Tensor, w: Tensor, b: Tensor, s: Tensor) -> Tensor:
        return ops.conv3x3_gelu(x, w, b, activation=activation, shortcut=s if shortcut else None)

    return run


@pytest.mark.parametrize(("shape", "k"), SHAPES)
def test_twice_rule(cpu_isa: str, shape: tuple[int, int, int, int], k: int) -> None:
    case = SHAPES.index((shape, k))
    for i, dtype in enumerate(DTYPES):
        # Layouts are handled alike for all dtypes: one each for the halves.
        for j, layout in enumerate(LAYOUTS if dtype == torch.float32 else LAYOUTS[(case + i) % 5 :][:1]):
            activation = ACTIVATIONS[(case + i + j) % 3]
            assert_twice_rule(function(activation, shortcut=(i + j) % 2 == 0), inputs(shape, k, dtype, layout))


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_twice_rule_in_a_training_batch(cpu_kernels: None, activation: Activation, layout: str) -> None:
    assert_twice_rule(function(activation), inputs((4, 58, 48, 48), 58, layout=layout))


@pytest.mark.parametrize("seed", range(4))
def test_winograd_keeps_the_rule_on_activations(cpu_kernels: None, seed: int) -> None:
    """Inputs with a mean, as GELU leaves them, and many channels."""
    x = torch.nn.functional.gelu(feature_map((1, 96, 40, 40), "nchw", seed=seed))
    w, b = weight(64, 96, 3, 3, seed=seed), weight(64, seed=seed)
    assert_twice_rule(lambda x, w, b: ops.conv3x3_gelu(x, w, b), [x, w, b])


def test_empty(cpu_kernels: None) -> None:
    assert_twice_rule(function("gelu"), inputs((0, 58, 8, 8), 12))
    x, w, b, _ = inputs((2, 58, 0, 8), 12)
    assert torch.ops.fastsr.conv3x3_gelu(x, w, b, None, 1).shape == (2, 12, 0, 8)


@pytest.mark.parametrize(("shape", "k"), (((2, 58, 31, 34), 58), ((3, 3, 40, 33), 20)))
def test_repeatable(cpu_isa: str, shape: tuple[int, int, int, int], k: int) -> None:
    assert_repeatable(function("gelu"), inputs(shape, k))


@pytest.mark.parametrize("value", (torch.nan, torch.inf))
@pytest.mark.parametrize("c", (3, 58))
def test_nan_and_inf_reach_what_depends_on_them(cpu_isa: str, c: int, value: float) -> None:
    x, w, b, _ = inputs((1, c, 15, 15), 58)
    x[0, c - 1, 7, 7] = value
    y = torch.ops.fastsr.conv3x3_gelu(x, w, b, None, 0)
    assert not y[:, :, 6:9, 6:9].isfinite().any()
    # A tile of the Winograd transform reads two pixels beyond those that its outputs depend on.
    untouched = torch.ones(15, 15, dtype=torch.bool)
    untouched[4:11, 4:11] = False
    assert y[:, :, untouched].isfinite().all()


def test_input_without_gradient(cpu_kernels: None) -> None:
    x, w, b, _ = inputs((1, 3, 12, 12), 58)
    w.requires_grad_()
    with fastsr.backend("cpu"):
        ops.conv3x3_gelu(x, w, b).sum().backward()
    assert w.grad is not None and x.grad is None


def test_mixed_dtypes(cpu_kernels: None) -> None:
    """Under autocast, float32 weights meet a half-precision map; the result has the map's dtype."""
    x, w, b, _ = inputs((1, 58, 12, 12), 58)
    with torch.autocast("cpu", torch.bfloat16), fastsr.backend("cpu"):
        y = ops.conv3x3_gelu(x.bfloat16(), w, b)
    assert y.dtype == torch.bfloat16
    with fastsr.backend("reference"):
        exact = ops.conv3x3_gelu(x.bfloat16().double(), w.double(), b.double())
    assert (y.double() - exact).abs().max() <= torch.finfo(torch.bfloat16).eps * exact.abs().max()


@pytest.mark.parametrize("shortcut", (False, True))
@pytest.mark.parametrize("layout", ("nchw", "nhwc", "pixel_slice"))
def test_opcheck(cpu_kernels: None, layout: str, shortcut: bool) -> None:
    x, w, b, s = inputs((2, 10, 7, 8), 12, layout=layout)
    leaves = [t.requires_grad_() for t in (x.detach(), w, b, s.detach())]
    torch.library.opcheck(torch.ops.fastsr.conv3x3_gelu.default, (*leaves[:3], leaves[3] if shortcut else None, 1))
    plain = [t.detach() for t in leaves]
    for needs_dx in (False, True):
        torch.library.opcheck(
            torch.ops.fastsr.conv3x3_gelu_backward.default,
            (plain[3], *plain[:3], 1, needs_dx),
            test_utils="test_faketensor",
        )


def test_compile(cpu_kernels: None) -> None:
    torch._dynamo.reset()
    arguments = [t.requires_grad_() for t in inputs((1, 10, 9, 9), 12)]
    compiled = torch.compile(function("gelu"), fullgraph=True, backend="aot_eager")
    with fastsr.backend("cpu"):
        torch.testing.assert_close(compiled(*arguments), function("gelu")(*arguments), rtol=0, atol=0)


def test_messages(cpu_kernels: None) -> None:
    x, w, b, s = inputs((1, 10, 9, 9), 12)
    with pytest.raises(InputError, match="weight has shape"):
        ops.conv3x3_gelu(x, w[:, :9], b)
    with pytest.raises(InputError, match="shortcut has shape"):
        ops.conv3x3_gelu(x, w, b, shortcut=s[:, :11])
    with pytest.raises(InputError, match="activation"):
        ops.conv3x3_gelu(x, w, b, activation="relu")  # type: ignore[arg-type]
    op, backward = torch.ops.fastsr.conv3x3_gelu, torch.ops.fastsr.conv3x3_gelu_backward
    for bad in (
        (x[0], w, b, s, 1),
        (x, w[:, :9], b, s, 1),
        (x, w[:, :, :2], b, s, 1),
        (x, w, b[:11], s, 1),
        (x, w, b, s[:, :, :8], 1),
        (x, w, b, s.double(), 1),
        (x, w, b, s, 3),
        (x.double(), w, b, None, 1),
    ):
        with pytest.raises(RuntimeError, match="conv3x3_gelu"):
            op(*bad)
    with pytest.raises(RuntimeError, match="grad must have the shape"):
        backward(s[:, :11], x, w, b, 1, True)


def test_double_backward_is_refused(cpu_kernels: None) -> None:
    arguments = [t.requires_grad_() for t in inputs((1, 4, 5, 5), 4)]
    with fastsr.backend("cpu"):
        (dx,) = torch.autograd.grad(function("gelu")(*arguments).sum(), arguments[:1], create_graph=True)
        with pytest.raises(InputError, match="reference"):
            dx.sum().backward()
