"""esa: enhanced spatial attention in both forms, forward and backward, against float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_checks import LAYOUTS, assert_repeatable, assert_twice_rule, feature_map, results, weight
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.ops import BlueprintESAWeights, PlainESAWeights

pytestmark = pytest.mark.usefixtures("cpu_kernels")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
FORMS = (PlainESAWeights, BlueprintESAWeights)
# shape, inner channels, conv2_padding
CASES = [
    ((1, 64, 15, 15), 16, 0),
    ((2, 58, 21, 34), 16, 0),
    ((1, 64, 13, 13), 16, 1),
    ((2, 46, 40, 53), 12, 1),
    ((1, 5, 22, 19), 20, 1),  # more inner channels than a block, rows narrower than two tiles
    ((0, 16, 16, 16), 16, 1),
]


def function(form: type, padding: int) -> Callable[..., Tensor]:
    return lambda x, *weights: ops.esa(x, form._make(weights), conv2_padding=padding)


def case(
    shape: tuple[int, int, int, int], f: int, form: type, layout: str = "nhwc", dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    c = shape[1]
    weights = []
    for i, name in enumerate(form._fields):
        if name == "conv1_weight":
            size: tuple[int, ...] = (f, c, 1, 1)
        elif name == "conv4_weight":
            size = (c, f, 1, 1)
        elif name == "conv4_bias":
            size = (c,)
        elif name.endswith("bias"):
            size = (f,)
        elif "_dw_" in name:
            size = (f, 1, 3, 3)
        elif name.endswith("_pw_weight") or name == "conv_f_weight":
            size = (f, f, 1, 1)
        else:
            size = (f, f, 3, 3)
        weights.append(weight(*size, seed=i, gain=1.0 if name.endswith("weight") else 0.3, dtype=dtype))
    return [feature_map(shape, layout, dtype), *weights]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize(
    ("shape", "f", "padding", "dtype"),
    # Half precision differs from float32 in how rows are loaded and stored only, and PyTorch's is slow: two cases each.
    [(*c, torch.float32) for c in CASES] + [(*CASES[i], dtype) for i in (2, 4) for dtype in DTYPES[1:]],
    ids=str,
)
def test_error_is_within_twice_that_of_pytorch(
    cpu_isa: str, shape: tuple[int, int, int, int], f: int, padding: int, form: type, dtype: torch.dtype
) -> None:
    assert_twice_rule(function(form, padding), case(shape, f, form, dtype=dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reads_every_layout(layout: str, dtype: torch.dtype) -> None:
    assert_twice_rule(function(BlueprintESAWeights, 1), case((2, 24, 16, 19), 16, BlueprintESAWeights, layout, dtype))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_a_larger_map_is_within_twice_the_error(form: type) -> None:
    assert_twice_rule(function(form, 1), case((1, 64, 96, 112), 16, form))


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_equal_maxima_share_the_gradient_as_in_pytorch(form: type) -> None:
    inputs = case((1, 8, 24, 25), 16, form)
    inputs[0].fill_(0.25)  # every window holds one value: the first pixel takes the gradient
    exact, kernel = (results(function(form, 0), inputs, backend) for backend in ("reference", "cpu"))
    for a, b in zip(exact, kernel, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * a.abs().max().item())


def test_output_and_gradient_keep_the_layout() -> None:
    for layout, memory_format in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
        inputs = case((2, 8, 16, 17), 16, PlainESAWeights, layout)
        for result in results(function(PlainESAWeights, 0), inputs, "cpu")[:2]:
            assert result.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_results_do_not_depend_on_threads(form: type) -> None:
    assert_repeatable(function(form, 1), case((2, 64, 33, 70), 16, form))


@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0x7F800001, -1], ids=hex)
@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_no_nan_is_lost_whatever_its_bits(cpu_isa: str, form: type, bits: int) -> None:
    """In any weight, at its first, middle and last element; the gate's exponential works on bits."""
    inputs = case((1, 18, 15, 16), 5, form)
    for i in range(1, len(inputs)):
        for at in {0, inputs[i].numel() // 2, inputs[i].numel() - 1}:
            spoilt = [t.clone() for t in inputs]
            spoilt[i].view(torch.int32).view(-1)[at] = bits
            want = results(function(form, 0), [t.double() for t in spoilt], "reference", gradients=False)[0]
            y = function(form, 0)(*spoilt)
            assert not (want.isnan() & ~y.isnan()).any(), (form._fields[i - 1], at)


def test_nan_propagates_to_where_the_reference_has_it() -> None:
    inputs = case((2, 8, 40, 40), 16, BlueprintESAWeights)
    inputs[0][1, 3, 2, 2] = torch.nan
    expected, y = (results(function(BlueprintESAWeights, 1), inputs, name)[0] for name in ("reference", "cpu"))
    assert torch.equal(y.isnan(), expected.isnan())


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_opcheck(layout: str, form: type) -> None:
    x, *weights = (t.requires_grad_() for t in case((2, 6, 15, 16), 4, form, layout))
    torch.library.opcheck(torch.ops.fastsr.esa.default, (x, weights, 1))
    torch.library.opcheck(
        torch.ops.fastsr.esa_backward.default,
        (feature_map((2, 6, 15, 16), layout), x.detach(), [w.detach() for w in weights], 1),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_compiles_in_one_graph() -> None:
    inputs = case((1, 32, 15, 17), 16, BlueprintESAWeights)
    compiled = torch.compile(function(BlueprintESAWeights, 1), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), function(BlueprintESAWeights, 1)(*inputs))


def test_bad_input_is_named() -> None:
    x, *weights = case((1, 8, 15, 15), 16, PlainESAWeights)
    with pytest.raises(fastsr.InputError, match="pass at least 15x15"):
        ops.esa(x[..., :14], PlainESAWeights._make(weights))
    with pytest.raises(fastsr.InputError, match="conv2_padding is 2"):
        ops.esa(x, PlainESAWeights._make(weights), conv2_padding=2)
    with pytest.raises(fastsr.InputError, match="weights is a list"):
        ops.esa(x, weights)  # type: ignore[arg-type]


def test_a_direct_call_with_wrong_shapes_raises() -> None:
    x, *weights = case((1, 8, 15, 15), 16, PlainESAWeights)
    call = torch.ops.fastsr.esa
    for bad in ((x[..., :14], weights, 0), (x, weights[:9], 0), (x, weights, 2), (x[:, 1:], weights, 0)):
        with pytest.raises(RuntimeError, match="esa"):
            call(*bad)
    for i in range(len(weights)):
        with pytest.raises(RuntimeError, match="esa"):
            call(x, [*weights[:i], weights[i][1:], *weights[i + 1 :]], 0)
    with pytest.raises(RuntimeError, match="grad"):
        torch.ops.fastsr.esa_backward(x[..., 1:], x, weights, 0)
