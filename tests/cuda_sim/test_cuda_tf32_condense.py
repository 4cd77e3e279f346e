"""alk_condense in TF32: within what rounding the operands allows, and at all."""

from __future__ import annotations

from typing import Any

import kernel_checks as kc
import pytest
import simulator
import torch
from test_cuda_alk_condense import CASES, condense, inputs_of, on_device
from test_cuda_tf32 import DEVICE, tf32
from tf32_alk_checks import FLOAT32, PAIR, About, alk_norm, applied, exactly, product
from tf32_checks import convolve, just_below
from torch import Tensor
from torch.nn.functional import gelu

import fastsr
from fastsr import ops, reference
from fastsr.ops import ALKConvWeights
from fastsr.ops.alk_condense import pack_alk_condense

pytestmark = pytest.mark.usefixtures("cuda_kernels")

HARDLY = 2**-18  # what a product of numbers loses that rounding hardly changes


def run(tensors: list[Tensor], allowed: bool = True) -> tuple[Tensor, Tensor]:
    with tf32(allowed):
        y, reduced = kc.results(condense, on_device(tensors), "cuda", gradients=False)
    return y.cpu(), reduced.cpu()


def by_channel(t: Tensor) -> Tensor:
    return t.double().view(1, -1, 1, 1)


@pytest.mark.parametrize("sizes", CASES, ids=str)
def test_errors_are_what_rounding_the_operands_allows(sizes: Any) -> None:
    tensors = inputs_of(*sizes)
    y, reduced = run(tensors)
    x, *maps = (t.double() for t in tensors[:4])
    weights = [t.double() for t in tensors[4:13]]
    c5, b5, conv1, b1 = tensors[13:]
    last = applied(alk_norm(x, weights), "gelu")
    exact = gelu(reference.alk_conv(x, ALKConvWeights(*weights)))
    assert torch.allclose(last.value, exact, rtol=0, atol=1e-9)
    before = About(torch.cat((*maps, last.value), 1), torch.cat((*map(torch.zeros_like, maps), last.error), 1))
    expected = product(before, c5.double(), PAIR).plus(by_channel(b5))
    assert ((y - expected.value).abs() <= expected.error).all()
    expected = product(exactly(y.double()), conv1.double(), PAIR).plus(by_channel(b1))
    assert ((reduced - expected.value).abs() <= expected.error).all()


@pytest.mark.parametrize("layout", kc.LAYOUTS)
def test_layouts(layout: str) -> None:
    tensors = inputs_of((2, 10, 6, 19), 10, 5, 20, 8, 5, layout=layout)
    plain = [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]
    assert all(torch.equal(a, b) for a, b in zip(run(tensors), run(plain), strict=True))


def barely_above() -> list[Tensor]:
    """Numbers that rounding hardly changes, and a norm that gives such: its bias, where GELU changes nothing."""
    tensors = inputs_of((1, 12, 18, 17), 10, 7, 20, 12, 3)
    for i in (1, 2, 3, 13, 15):
        tensors[i] = just_below(tensors[i].shape, i)
    tensors[11], tensors[12] = torch.zeros(10), 8 + 8 * just_below((10,), 12).abs().sort().values
    tensors[12] = (tensors[12] * 2**6).round() / 2**6 * (1 - 2**-20)
    tensors[14], tensors[16] = torch.zeros(20), torch.zeros(12)
    return tensors


def test_operands_of_the_first_product_are_rounded_not_cut_off() -> None:
    tensors = barely_above()
    y, _ = run(tensors)
    before = torch.cat((*tensors[1:4], tensors[12].view(1, -1, 1, 1).expand(1, 10, 18, 17)), 1).double()
    error = (y - convolve(before, tensors[13].double())).abs()
    assert (error <= HARDLY * convolve(before.abs(), tensors[13].double().abs())).all()


def test_operands_of_the_second_product_are_rounded_not_cut_off() -> None:
    """The first gives the norm's bias, and 2^-20 of it taken away."""
    tensors = barely_above()
    tensors[12] /= 1 - 2**-20
    tensors[13] = torch.cat((torch.zeros(20, 21), torch.eye(20, 10)), 1)[..., None, None]
    tensors[14] = -torch.nn.functional.pad(tensors[12], (0, 10)) * 2**-20
    y, reduced = run(tensors)
    assert torch.equal(y[0, :10, 0, 0], tensors[12] + tensors[14][:10])
    error = (reduced - convolve(y.double(), tensors[15].double())).abs()
    assert (error <= HARDLY * convolve(y.double().abs(), tensors[15].double().abs())).all()


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_half_precision_knows_no_tf32(dtype: torch.dtype) -> None:
    tensors = inputs_of((1, 20, 9, 7), 10, 7, 20, 12, 3, dtype)
    assert all(torch.equal(a, b) for a, b in zip(run(tensors, False), run(tensors, True), strict=True))


def test_repeats_are_bit_equal_whatever_the_order_of_threads() -> None:
    tensors = inputs_of((1, 40, 18, 17), 20, 20, 40, 16, 9)
    first = run(tensors)
    try:
        for simulator.seed in (1, 2):
            assert all(torch.equal(a, b) for a, b in zip(first, run(tensors), strict=True))
    finally:
        simulator.seed = 0


def test_packed_weights_hold_both_kinds() -> None:
    """What is allowed when they are used decides, not what was when they were packed."""
    x, d1, d2, d3, *w = (t.to(DEVICE) for t in inputs_of((1, 64, 17, 18), 32, 32, 64, 16, 9))
    given, rest, found = ALKConvWeights(*w[:9]), w[9:], []
    with fastsr.backend("cuda"), torch.no_grad():
        packed = pack_alk_condense(given, *rest)
        for allowed in (False, True):
            with tf32(allowed):
                plain = ops.alk_condense(x, (d1, d2, d3), given, *rest)
                from_packed = ops.alk_condense(x, (d1, d2, d3), given, *rest, packed=packed)
            assert all(torch.equal(a, b) for a, b in zip(plain, from_packed, strict=True))
            found.append(plain)
    for exact, rounded in zip(*found, strict=True):
        assert not torch.equal(exact, rounded)
        assert (exact - rounded).abs().max() > 100 * FLOAT32


@pytest.mark.parametrize("name", ("alk_condense", "alk_condense_packed"), ids=str)
def test_the_private_operators_know_the_flag(name: str) -> None:
    """Behind the accuracy of GELU."""
    schema = getattr(torch.ops.fastsr, f"_cuda_{name}").default._schema
    assert [a.name for a in schema.arguments[-2:]] == ["accuracy", "tf32"]
