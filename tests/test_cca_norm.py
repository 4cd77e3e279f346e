"""cca_norm: channel attention, pixel norm and residual, forward and backward, against float64."""

from __future__ import annotations

import pytest
import torch
from kernel_checks import LAYOUTS, assert_repeatable, assert_twice_rule, feature_map, results, weight
from torch import Tensor

import fastsr
from fastsr import ops

pytestmark = pytest.mark.usefixtures("cpu_kernels")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = [(1, 64, 9, 13), (2, 64, 5, 101), (3, 32, 7, 3), (2, 46, 6, 6), (1, 5, 3, 70), (2, 16, 1, 9), (0, 8, 4, 4)]


def case(
    shape: tuple[int, int, int, int], layout: str = "nhwc", dtype: torch.dtype = torch.float32, norm: bool = True
) -> list[Tensor]:
    c = shape[1]
    r = max(c // 16, 1)
    x = feature_map(shape, layout, dtype)
    # Channels of different mean and spread, so that the statistics matter.
    x = (x * torch.linspace(0.5, 2, c).view(1, c, 1, 1) + torch.linspace(-1, 1, c).view(1, c, 1, 1)).to(dtype)
    parameters = [weight(r, c, 1, 1, gain=3), weight(r, seed=1), weight(c, r, 1, 1, seed=2), weight(c, seed=3)]
    parameters += [1 + weight(c, seed=4) / 4, weight(c, seed=5)] if norm else []
    shortcut = feature_map(shape, layout, dtype, seed=1)
    return [relaid(x, shortcut), shortcut, *(p.to(dtype) for p in parameters)]


def relaid(x: Tensor, like: Tensor) -> Tensor:
    """`x` with the strides of `like`."""
    if 0 in like.stride():
        return x
    return torch.empty_strided(like.shape, like.stride(), dtype=x.dtype).copy_(x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "norm"), [(s, True) for s in SHAPES] + [(s, False) for s in SHAPES[1::3]], ids=str)
def test_error_is_within_twice_that_of_pytorch(
    cpu_isa: str, shape: tuple[int, int, int, int], norm: bool, dtype: torch.dtype
) -> None:
    assert_twice_rule(ops.cca_norm, case(shape, dtype=dtype, norm=norm))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_reads_every_layout(layout: str, dtype: torch.dtype) -> None:
    assert_twice_rule(ops.cca_norm, case((2, 24, 6, 11), layout, dtype))


@pytest.mark.parametrize("channels", [1, 2, 3, 7])
def test_few_channels_that_are_equal(cpu_isa: str, channels: int) -> None:
    """A pixel whose channels agree is its mean exactly: the norm would multiply a rounding error by 316."""
    inputs = case((1, channels, 6, 40))
    inputs[0] = inputs[0][:, :1].expand(-1, channels, -1, -1).contiguous(memory_format=torch.channels_last)
    inputs[4], inputs[5] = torch.zeros_like(inputs[4]), torch.full_like(inputs[5], 0.3)  # one scale for all
    assert_twice_rule(ops.cca_norm, inputs, gradients=False)


def test_a_larger_map_is_within_twice_the_error() -> None:
    assert_twice_rule(ops.cca_norm, case((1, 64, 96, 112)))


def test_a_constant_map_has_the_gradient_of_the_reference(cpu_isa: str) -> None:
    inputs = case((2, 16, 9, 11))
    inputs[0][:, ::2] = 0.1  # in float32, many 0.1 do not add up exactly
    assert_twice_rule(ops.cca_norm, inputs)


def test_a_single_pixel(cpu_isa: str) -> None:
    assert_twice_rule(ops.cca_norm, case((2, 64, 1, 1)))


def test_a_large_offset_costs_no_accuracy() -> None:
    inputs = case((1, 16, 40, 50))
    inputs[0] += 1000
    assert_twice_rule(ops.cca_norm, inputs)


def test_float16_sums_do_not_overflow() -> None:
    inputs = case((1, 16, 64, 64), dtype=torch.float16)
    inputs[0] += 50  # a plain float16 sum over the map would be infinite
    with fastsr.backend("cpu"):
        assert ops.cca_norm(*inputs).isfinite().all()


def test_output_keeps_the_layout() -> None:
    for layout, memory_format in (("nchw", torch.contiguous_format), ("nhwc", torch.channels_last)):
        for result in results(ops.cca_norm, case((2, 8, 5, 7), layout), "cpu")[:2]:
            assert result.is_contiguous(memory_format=memory_format)


def test_results_do_not_depend_on_threads() -> None:
    assert_repeatable(ops.cca_norm, case((3, 64, 33, 70)))


def test_nan_and_infinity_propagate() -> None:
    inputs = case((2, 16, 6, 7))
    inputs[0][1, 3, 2, 2] = torch.nan
    with fastsr.backend("cpu"):
        y = ops.cca_norm(*inputs)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()  # through the statistics of channel 3, all channels; through the norm, all pixels


@pytest.mark.parametrize("norm", [True, False], ids=["norm", "plain"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_opcheck(layout: str, norm: bool) -> None:
    inputs = case((2, 8, 4, 5), layout, norm=norm)
    leaves = [t.requires_grad_() for t in inputs] + [None] * (0 if norm else 2)
    torch.library.opcheck(torch.ops.fastsr.cca_norm.default, (*leaves, 1e-5))
    plain = [t.detach() for t in inputs]
    statistics = torch.ops.fastsr.cca_norm(*plain, *([None] * (0 if norm else 2)), 1e-5)[1]
    torch.library.opcheck(
        torch.ops.fastsr.cca_norm_backward.default,
        (plain[1], plain[0], statistics, *plain[2:6], plain[6] if norm else None, 1e-5),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_compiles_in_one_graph() -> None:
    inputs = case((1, 32, 8, 9))
    compiled = torch.compile(ops.cca_norm, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), ops.cca_norm(*inputs))


def test_bad_input_is_named() -> None:
    x, shortcut, w0, b0, w2, b2, nw, nb = case((2, 16, 5, 7))
    with pytest.raises(fastsr.InputError, match="shortcut has shape"):
        ops.cca_norm(x, shortcut[..., 1:], w0, b0, w2, b2, nw, nb)
    with pytest.raises(fastsr.InputError, match="only one of norm_weight"):
        ops.cca_norm(x, shortcut, w0, b0, w2, b2, nw)
    with pytest.raises(fastsr.InputError, match="du2_weight has shape"):
        ops.cca_norm(x, shortcut, w0, b0, w0, b2, nw, nb)


def test_a_direct_call_with_wrong_shapes_raises() -> None:
    good = case((2, 32, 5, 7))
    for i, wrong in ((1, good[1][:, 1:]), (1, good[1].half()), (2, good[2][:, 1:]), (3, good[3][1:]), (6, good[6][1:])):
        bad = [*good[:i], wrong, *good[i + 1 :]]
        with pytest.raises(RuntimeError, match="cca_norm"):
            torch.ops.fastsr.cca_norm(*bad, 1e-5)
    statistics = torch.zeros(2, 2, 31, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="statistics"):
        torch.ops.fastsr.cca_norm_backward(good[1], good[0], statistics, *good[2:7], 1e-5)
