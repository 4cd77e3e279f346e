"""bsconv: C++ kernels against float64, layouts, edges, errors, compile."""

from __future__ import annotations

import kernel_checks as kc
import pytest
import torch
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.errors import BackendError, InputError
from fastsr.reference import Activation

DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# [N, C, H, W], K, activation, with a shortcut. Sides below one tile, odd sizes, several strips, padded channels.
CASES: tuple[tuple[tuple[int, int, int, int], int, Activation, bool], ...] = (
    ((2, 12, 13, 18), 64, "none", False),
    ((1, 64, 1, 1), 64, "gelu", True),
    ((2, 58, 7, 21), 58, "leaky_relu", True),
    ((2, 3, 5, 2), 12, "none", True),
    ((1, 16, 40, 150), 46, "gelu", False),
    ((1, 5, 70, 3), 3, "leaky_relu", False),
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
        kc.feature_map(shape, layout, dtype),
        kc.weight(k, c, 1, 1, seed=1, dtype=dtype),
        kc.weight(k, 1, 3, 3, seed=2, dtype=dtype),
        kc.weight(k, seed=3, gain=0.3, dtype=dtype),
    ]
    return [*tensors, kc.feature_map((n, k, h, w), layout, dtype, seed=4)] if shortcut else tensors


def conv(activation: Activation):
    return lambda x, pw, dw, db, s=None: ops.bsconv(x, pw, dw, db, shortcut=s, activation=activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "k", "activation", "shortcut"), CASES, ids=str)
def test_twice_rule(cpu_isa: str, dtype: torch.dtype, shape, k: int, activation: Activation, shortcut: bool) -> None:
    kc.assert_twice_rule(conv(activation), inputs_of(shape, k, shortcut, dtype))


@pytest.mark.parametrize("layout", kc.LAYOUTS)
@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_layouts(cpu_kernels: None, layout: str, activation: Activation) -> None:
    kc.assert_twice_rule(conv(activation), inputs_of((2, 20, 6, 11), 24, True, layout=layout))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_output_keeps_layout(cpu_kernels: None, layout: str) -> None:
    out = conv("gelu")(*inputs_of((2, 20, 6, 11), 24, True, layout=layout))
    assert out.is_contiguous(memory_format=torch.contiguous_format if layout == "nchw" else torch.channels_last)


def test_training_and_inference_sizes(cpu_kernels: None) -> None:
    kc.assert_twice_rule(conv("gelu"), inputs_of((4, 64, 48, 48), 64, True))
    kc.assert_twice_rule(conv("none"), inputs_of((1, 12, 131, 140), 64, False))


@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (2, 16, 0, 4), (2, 16, 4, 0)])
def test_empty(cpu_kernels: None, shape: tuple[int, int, int, int]) -> None:
    inputs = [torch.empty(shape), *inputs_of((1, 16, 1, 1), 8, False)[1:], torch.empty(shape[0], 8, *shape[2:])]
    out, *gradients = kc.results(conv("gelu"), inputs, "cpu")
    assert out.shape == (shape[0], 8, *shape[2:])
    assert all(g.shape == i.shape and not g.any() for g, i in zip(gradients, inputs, strict=True))


def test_repeatable(cpu_isa: str) -> None:
    kc.assert_repeatable(conv("gelu"), inputs_of((2, 20, 70, 150), 24, True))


def test_nan_propagates(cpu_isa: str) -> None:
    x, *rest = inputs_of((1, 16, 20, 20), 24, True)
    x[0, 3, 10, 10] = torch.nan
    with fastsr.backend("reference"):
        expected = conv("gelu")(x, *rest)
    assert torch.equal(conv("gelu")(x, *rest).isnan(), expected.isnan())


@pytest.mark.parametrize(("stride", "padding", "size"), [(2, 1, 3), (1, 0, 3), (1, 2, 5)])
def test_other_geometries_fall_back(cpu_kernels: None, stride: int, padding: int, size: int) -> None:
    x, pw, _, db = inputs_of((1, 8, 9, 9), 8, False)
    dw = kc.weight(8, 1, size, size)
    with fastsr.backend("reference"):
        expected = ops.bsconv(x, pw, dw, db, stride=stride, padding=padding)
    assert torch.equal(ops.bsconv(x, pw, dw, db, stride=stride, padding=padding), expected)
    with fastsr.backend("cpu"), pytest.raises(BackendError, match=f"stride {stride} and padding {padding}"):
        ops.bsconv(x, pw, dw, db, stride=stride, padding=padding)


def test_opcheck(cpu_kernels: None) -> None:
    inputs = [t.requires_grad_() for t in inputs_of((2, 8, 6, 5), 4, True)]
    torch.library.opcheck(torch.ops.fastsr.bsconv.default, (*inputs, 1))
    torch.library.opcheck(torch.ops.fastsr.bsconv.default, (*inputs[:4], None, 0))
    plain = [t.detach() for t in inputs]
    tests = ("test_schema", "test_faketensor")
    for shortcut, activation in ((plain[4], 2), (plain[4], 0), (None, 1)):
        args = (torch.randn(2, 4, 6, 5), *plain[:4], shortcut, activation)
        torch.library.opcheck(torch.ops.fastsr.bsconv_backward.default, args, test_utils=tests)


@pytest.mark.parametrize("activation", ["none", "gelu"])
def test_compile_fullgraph(cpu_kernels: None, activation: Activation) -> None:
    inputs = [t.requires_grad_() for t in inputs_of((1, 8, 6, 5), 4, True)]
    compiled = torch.compile(conv(activation), fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*inputs), conv(activation)(*inputs))
    grads = torch.autograd.grad(compiled(*inputs).sum(), inputs)
    expected = torch.autograd.grad(conv(activation)(*inputs).sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


def test_shortcut_that_is_the_input(cpu_kernels: None) -> None:
    """BSRN's stage: gradients of both uses of x add up."""
    inputs = inputs_of((2, 16, 9, 9), 16, False)
    kc.assert_twice_rule(lambda x, *w: ops.bsconv(x, *w, shortcut=x, activation="gelu"), inputs)


def test_bad_input_is_named() -> None:
    x, pw, dw, db, shortcut = inputs_of((1, 8, 5, 5), 8, True)
    with pytest.raises(InputError, match="bsconv: shortcut has shape"):
        ops.bsconv(x, pw, dw, db, shortcut=shortcut[:, :4])
    with pytest.raises(InputError, match="bsconv: dw_bias"):
        ops.bsconv(x, pw, dw, db[:3])
    with pytest.raises(InputError, match="stride is 0"):
        ops.bsconv(x, pw, dw, db, stride=0)


@pytest.mark.parametrize("position", range(5))
def test_operator_checks_every_tensor(cpu_kernels: None, position: int) -> None:
    """Called directly, the operators refuse what would be read out of bounds."""
    inputs = inputs_of((2, 8, 4, 4), 6, True)
    inputs[position] = inputs[position][:, :-1] if position == 0 else inputs[position][:-1]
    with pytest.raises(RuntimeError, match="bsconv"):
        torch.ops.fastsr.bsconv(*inputs, 1)
    with pytest.raises(RuntimeError, match="bsconv_backward"):
        torch.ops.fastsr.bsconv_backward(torch.randn(2, 6, 4, 4), *inputs, 1)


def test_operator_checks_the_gradient(cpu_kernels: None) -> None:
    inputs = inputs_of((2, 8, 4, 4), 6, True)
    with pytest.raises(RuntimeError, match="grad is"):
        torch.ops.fastsr.bsconv_backward(torch.randn(2, 6, 4, 5), *inputs, 1)


@pytest.mark.parametrize("layout", kc.LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "d"), (((2, 64, 9, 31), 32), ((1, 20, 6, 150), 7), ((1, 5, 1, 1), 33)))
def test_a_stage_in_one_pass(
    cpu_isa: str, shape: tuple[int, int, int, int], d: int, dtype: torch.dtype, layout: str
) -> None:
    """The fusion that inference takes: both halves within twice the error of the plain operators."""
    c = shape[1]
    tensors = [
        kc.feature_map(shape, layout, dtype),
        kc.weight(d, c, 1, 1, seed=1, dtype=dtype),
        kc.weight(d, seed=2, dtype=dtype),
    ]
    tensors += [kc.weight(c, c, 1, 1, seed=3, dtype=dtype), kc.weight(c, 1, 3, 3, seed=4, dtype=dtype)]
    tensors.append(kc.weight(c, seed=5, dtype=dtype))
    with fastsr.backend("reference"):
        exact, plain = ops.bsconv_stage(*(t.double() for t in tensors)), ops.bsconv_stage(*tensors)
    with fastsr.backend("cpu"):
        kernel = ops.bsconv_stage(*tensors)
    for e, p, k in zip(exact, plain, kernel, strict=True):
        assert k.dtype == dtype and k.shape == e.shape
        floor = kc.FLOOR_EPSILONS * torch.finfo(dtype).eps * e.abs().max().item()
        assert (k.double() - e).abs().max().item() <= 2 * (p.double() - e).abs().max().item() + floor


def test_a_stage_checks_its_input() -> None:
    x = kc.feature_map((1, 8, 5, 6), "nhwc")
    good = [kc.weight(4, 8, 1, 1), kc.weight(4), kc.weight(8, 8, 1, 1), kc.weight(8, 1, 3, 3), kc.weight(8)]
    for i, name in enumerate(("d_weight", "d_bias", "pw_weight", "dw_weight", "dw_bias")):
        bad = [p[1:] if j == i and i != 0 else p[:, 1:] if j == i else p for j, p in enumerate(good)]
        with pytest.raises(InputError, match=f"bsconv_stage: {name}"):
            ops.bsconv_stage(x, *bad)
        with pytest.raises(RuntimeError, match="bsconv_stage"):
            torch.ops.fastsr.bsconv_stage(x, *bad)
    torch.library.opcheck(
        torch.ops.fastsr.bsconv_stage.default, (x, *good), test_utils=("test_schema", "test_faketensor")
    )
    with torch.no_grad():
        compiled = torch.compile(ops.bsconv_stage, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x, *good), ops.bsconv_stage(x, *good))


def test_a_stage_that_was_traced_is_differentiated_by_its_parts() -> None:
    """The trace was made without gradients, and holds the operator."""
    x = kc.feature_map((1, 8, 5, 6), "nhwc")
    parts = [kc.weight(4, 8, 1, 1), kc.weight(4), kc.weight(8, 8, 1, 1), kc.weight(8, 1, 3, 3), kc.weight(8)]
    leaves = [t.requires_grad_() for t in (x, *parts)]
    found, expected = (
        torch.autograd.grad([y.square().sum() for y in stage(*leaves)], leaves)
        for stage in (torch.ops.fastsr.bsconv_stage, ops.bsconv_stage)
    )
    torch.testing.assert_close(found, expected)
    tests = ("test_schema", "test_faketensor")
    grads = [torch.randn(1, c, 5, 6) for c in (4, 8)]
    plain = [t.detach() for t in leaves]
    torch.library.opcheck(torch.ops.fastsr.bsconv_stage_backward.default, (*grads, *plain), test_utils=tests)


def test_a_stage_with_autograd_takes_its_parts() -> None:
    x = kc.feature_map((1, 8, 5, 6), "nhwc").requires_grad_()
    parts = [kc.weight(4, 8, 1, 1), kc.weight(4), kc.weight(8, 8, 1, 1), kc.weight(8, 1, 3, 3), kc.weight(8)]
    distilled, refined = ops.bsconv_stage(x, *parts)
    torch.autograd.backward((distilled, refined), (torch.ones_like(distilled), torch.ones_like(refined)))
    assert x.grad is not None and x.grad.isfinite().all()
