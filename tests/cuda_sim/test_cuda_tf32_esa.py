"""esa and esa_cca in TF32: within what rounding the operands allows, and at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import kernel_checks as kc
import pytest
import simulator
import torch
from test_cuda_esa import BLUEPRINT, CASES, PLAIN, case, function
from test_cuda_esa_cca import CASES as FUSED_CASES
from test_cuda_esa_cca import inputs_of as fused_inputs
from test_cuda_tf32 import DEVICE, tf32
from tf32_convolutions import assert_twice_rule, convolutions_in_tf32
from tf32_esa_checks import gated, maxima, pooled_at
from torch import Tensor
from torch.nn import functional as F

import fastsr
from fastsr import ops

pytestmark = pytest.mark.usefixtures("cuda_kernels")

by_case = pytest.mark.parametrize(("shape", "f", "form", "padding"), CASES)


def run(tensors: Sequence[Tensor], form: type, padding: int, allowed: bool = True) -> list[Tensor]:
    """The output, dx and the parameters' gradients."""
    with tf32(allowed):
        found = kc.results(function(form, padding), [kc.moved(t, DEVICE) for t in tensors], "cuda")
    return [t.cpu() for t in found]


def exact(tensors: Sequence[Tensor], form: type, padding: int) -> list[Tensor]:
    """The same in float64, with the gradients of maxima where TF32 has them."""
    with pooled_at(maxima(tensors[0], tensors[1:], padding)):
        return kc.results(function(form, padding), [t.double() for t in tensors], "reference")


def assert_within(found: Tensor, tensors: Sequence[Tensor], padding: int, share: float | None = None) -> None:
    x, *weights = (t.double() for t in tensors)
    value, bound = gated(x, weights, padding, *(() if share is None else (share,)))
    error = (found.double() - value).abs()
    assert (error <= bound).all(), f"{(error / bound).max().item():.4f} of what is allowed"


def check(tensors: Sequence[Tensor], form: type, padding: int) -> None:
    found, expected = run(tensors, form, padding), exact(tensors, form, padding)
    assert_within(found[0], tensors, padding)
    with convolutions_in_tf32():
        plain = exact(tensors, form, padding)
    assert_twice_rule(found, expected, plain)


@by_case
def test_errors_are_what_rounding_the_operands_allows(shape: Any, f: int, form: type, padding: int) -> None:
    check(case(shape, f, form), form, padding)


@pytest.mark.parametrize("layout", kc.LAYOUTS)
def test_layouts(layout: str) -> None:
    check(case((2, 20, 16, 19), 8, BLUEPRINT, layout=layout), BLUEPRINT, 1)


@pytest.mark.parametrize(("form", "f"), ((PLAIN, 16), (BLUEPRINT, 16), (PLAIN, 32)))
def test_the_operands_of_the_forward_are_rounded_not_cut_off(form: Any, f: int) -> None:
    """Each is a little below a number of TF32: rounded it hardly changes, cut off by 2^-11 of itself or more.

    Products of one term each make the number itself, of which the biases take a little off again. GELU changes nothing,
    and the map of one pixel is enlarged to all.
    """
    number, little = 8 + torch.arange(f) % 8, 2**-18
    x = (number * (1 - little)).view(1, f, 1, 1).repeat(1, 1, 15, 15)
    weights = case(x.shape, f, form)[1:]
    for name, w in zip(form._fields, weights, strict=True):
        share = {"conv_f": 0.5, "conv4_": 2**-5}.get(name[:6], 1.0)
        w.zero_()
        if w.dim() == 1:
            w.copy_(-share * little * number)
        else:
            one = torch.ones(f, 1) if "_dw_" in name else torch.eye(f) * (1 - little)
            w[:, :, w.shape[2] // 2, w.shape[3] // 2] = share * one
    inputs = [kc.moved(t, DEVICE) for t in (x, *weights)]
    with tf32(True):
        found = kc.results(function(form, 0), inputs, "cuda", gradients=False)[0]
    assert_within(found.cpu(), (x, *weights), 0, 4 * little)


def test_the_operands_of_the_backward_are_rounded_not_cut_off() -> None:
    """Cut off, an operand loses 0.7 * 2^-11 of itself in the mean, and so does a sum of products with it.

    Of sums over many pixels: those of the small map have too few.
    """
    tensors = case((2, 32, 43, 46), 16, PLAIN)
    names = ("y", "dx", *PLAIN._fields)
    for name, f, e in zip(names, run(tensors, PLAIN, 0), exact(tensors, PLAIN, 0), strict=True):
        loss = (((f - e) * e).sum() / (e * e).sum()).item()
        assert e.dim() < 4 or name == "conv3_weight" or abs(loss) < 2**-13, f"{name}: {loss / 2**-13} of 2^-13"


@by_case
def test_without_the_flag_float32_is_as_it_was(shape: Any, f: int, form: type, padding: int) -> None:
    tensors = case(shape, f, form)
    plain, in_tf32 = (run(tensors, form, padding, allowed) for allowed in (False, True))
    assert not any(torch.equal(a, b) for a, b in zip(plain, in_tf32, strict=True))
    assert_within(plain[0], tensors, padding, 2**-22)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_half_precision_knows_no_tf32(dtype: torch.dtype) -> None:
    tensors = case((1, 20, 16, 17), 12, BLUEPRINT, dtype)
    plain, allowed = (run(tensors, BLUEPRINT, 1, flag) for flag in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, allowed, strict=True))


@pytest.mark.parametrize("form", (PLAIN, BLUEPRINT))
def test_repeats_are_bit_equal_whatever_the_order_of_threads(form: type) -> None:
    tensors = case((2, 20, 27, 70), 12, form)
    first = run(tensors, form, 1)
    try:
        for simulator.seed in (1, 2):
            assert all(torch.equal(a, b) for a, b in zip(first, run(tensors, form, 1), strict=True))
    finally:
        simulator.seed = 0


def test_nan_propagates_to_where_the_reference_has_it() -> None:
    tensors = [kc.moved(t, DEVICE) for t in case((1, 4, 22, 23), 8, BLUEPRINT)]
    tensors[0][0, 3, 20, 2] = torch.nan
    expected = kc.results(function(BLUEPRINT, 1), tensors, "reference", gradients=False)[0]
    with tf32(True):
        y = kc.results(function(BLUEPRINT, 1), tensors, "cuda", gradients=False)[0]
    assert torch.equal(y.isnan(), expected.isnan()) and not y.isnan().all()


@pytest.mark.parametrize(("form", "f"), ((PLAIN, 16), (BLUEPRINT, 12)))
def test_a_map_that_is_reduced_already(form: Any, f: int) -> None:
    """Bit by bit the same of the conv1 that `pointwise` makes in TF32, and not of an exact one."""
    x, *rest = (kc.moved(t, DEVICE) for t in case((2, 58, 21, 22), f, form))
    weights = form._make(rest)
    with fastsr.backend("cuda"), torch.no_grad():
        found = []
        for allowed in (False, True):
            with tf32(allowed):
                c1 = ops.pointwise([x], weights.conv1_weight, weights.conv1_bias)
            reduced = F.pad(c1, (0, 0, 0, 0, 0, 16 - f)).contiguous(memory_format=torch.channels_last)
            with tf32(True):
                found.append(ops.esa(x, weights, reduced=reduced))
        with tf32(True):
            y = ops.esa(x, weights)
    assert torch.equal(found[1], y) and not torch.equal(found[0], y)


@pytest.mark.parametrize("name", ("esa", "esa_backward", "esa_reduced", "esa_cca"))
def test_the_private_operators_know_the_flag(name: str) -> None:
    """Behind the accuracy of GELU."""
    schema = getattr(torch.ops.fastsr, f"_cuda_{name}").default._schema
    assert [a.name for a in schema.arguments[-2:]] == ["accuracy", "tf32"]


# ---- esa_cca


def fused(tensors: Sequence[Tensor], form: Any, padding: int, allowed: bool, reduced: Tensor | None = None) -> Tensor:
    x, shortcut, *rest = (kc.moved(t, DEVICE) for t in tensors)
    count = len(form._fields)
    with fastsr.backend("cuda"), tf32(allowed), torch.no_grad():
        weights = form._make(rest[:count])
        return ops.esa_cca(x, shortcut, weights, *rest[count:], conv2_padding=padding, reduced=reduced).cpu()


@pytest.mark.parametrize(("shape", "f", "form", "padding", "norm"), FUSED_CASES)
def test_the_fusion_gives_what_its_parts_give(shape: Any, f: int, form: Any, padding: int, norm: bool) -> None:
    """To float32's rounding, of which the statistics and all behind them are; TF32 costs a hundred times as much."""
    tensors = fused_inputs(shape, f, form, norm)
    x, shortcut, *rest = (kc.moved(t, DEVICE) for t in tensors)
    count = len(form._fields)
    found = [fused(tensors, form, padding, allowed) for allowed in (False, True)]
    for allowed in (False, True):
        with fastsr.backend("cuda"), tf32(allowed), torch.no_grad():
            gate = ops.esa(x, form._make(rest[:count]), conv2_padding=padding)
            parts = ops.cca_norm(gate, shortcut, *rest[count:]).cpu()
        assert (found[allowed] - parts).abs().max() <= 2**-19 * parts.abs().max()
    assert (found[True] - found[False]).abs().max() > 2**-13 * parts.abs().max()


def test_the_fusion_of_a_map_that_is_reduced_already() -> None:
    tensors = fused_inputs((1, 64, 20, 23), 16, BLUEPRINT)
    x, _, w, b, *_ = (kc.moved(t, DEVICE) for t in tensors)
    with fastsr.backend("cuda"), tf32(True), torch.no_grad():
        reduced = ops.pointwise([x], w, b)
    assert torch.equal(fused(tensors, BLUEPRINT, 1, True, reduced), fused(tensors, BLUEPRINT, 1, True))


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_the_fusion_of_half_precision_knows_no_tf32(dtype: torch.dtype) -> None:
    tensors = fused_inputs((1, 20, 16, 17), 12, BLUEPRINT, dtype=dtype)
    assert torch.equal(*(fused(tensors, BLUEPRINT, 1, allowed) for allowed in (False, True)))


def test_repeats_of_the_fusion_are_bit_equal_whatever_the_order_of_threads() -> None:
    tensors = fused_inputs((2, 40, 19, 29), 16, BLUEPRINT)
    first = fused(tensors, BLUEPRINT, 1, True)
    try:
        for simulator.seed in (1, 2):
            assert torch.equal(first, fused(tensors, BLUEPRINT, 1, True))
    finally:
        simulator.seed = 0
