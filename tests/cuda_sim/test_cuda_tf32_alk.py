"""alk_conv and alk_stage in TF32: within what rounding the operands allows, and at all."""

from __future__ import annotations

from collections.abc import Sequence

import kernel_checks as kc
import pytest
import simulator
import torch
from test_cuda_alk import conv_inputs, stage_inputs
from test_cuda_tf32 import DEVICE, tf32
from tf32_alk_checks import About, alk_norm, applied, distilled
from tf32_checks import just_below
from tf32_convolutions import assert_twice_rule, convolutions_in_tf32
from torch import Tensor

import fastsr
from fastsr import ops, reference
from fastsr.ops import ALKConvWeights
from fastsr.reference import Activation

pytestmark = pytest.mark.usefixtures("cuda_kernels")

Shape = tuple[int, int, int, int]
# The shape of x, K and the activation of alk_conv, or D of alk_stage, and taps: every size of planes, sides below a
# tile, channels that fill no product, several passes.
CASES: tuple[tuple[Shape, int, Activation | None, int], ...] = (
    ((1, 64, 9, 18), 32, None, 9),
    ((2, 20, 5, 3), 7, None, 5),
    ((1, 40, 17, 5), 33, None, 13),
    ((1, 58, 18, 4), 80, "gelu", 7),
    ((2, 12, 9, 7), 20, "none", 3),
    ((1, 3, 1, 1), 5, "none", 1),
    ((1, 9, 26, 7), 12, "gelu", 25),
    ((1, 20, 3, 34), 25, "none", 33),
)
by_case = pytest.mark.parametrize(("shape", "k", "activation", "taps"), CASES, ids=str)
HARDLY = 2**-18  # what a product of numbers loses that rounding hardly changes


def inputs_of(
    shape: Shape, k: int, activation: Activation | None, taps: int, dtype: torch.dtype = torch.float32, **kwargs: str
) -> list[Tensor]:
    """x, for a stage its distilling weight and bias, and the convolution's weights."""
    return (conv_inputs if activation else stage_inputs)(shape, k, taps, dtype, **kwargs)


def call(tensors: Sequence[Tensor], activation: Activation | None) -> tuple[Tensor, ...]:
    """y of alk_conv with an activation given, D and y of alk_stage without."""
    x, *rest = tensors
    if activation:
        return (ops.alk_conv(x, ALKConvWeights(*rest), activation=activation),)
    return ops.alk_stage(x, *rest[:2], ALKConvWeights(*rest[2:]))


def cotangents(tensors: Sequence[Tensor], activation: Activation | None, layout: str = "nhwc") -> list[Tensor]:
    x, first, *_ = tensors
    channels = (first.shape[0],) if activation else (first.shape[0], x.shape[1])
    shapes = [(x.shape[0], c, *x.shape[2:]) for c in channels]
    return [kc.feature_map(s, layout, x.dtype, seed=5 + i) for i, s in enumerate(shapes)]


def run(
    tensors: Sequence[Tensor], grads: Sequence[Tensor], activation: Activation | None, allowed: bool = True
) -> list[Tensor]:
    """The outputs, dx, and the parameters' gradients."""
    leaves = [kc.moved(t, DEVICE).requires_grad_() for t in tensors]
    with fastsr.backend("cuda"), tf32(allowed):
        outputs = call(leaves, activation)
        gradients = torch.autograd.grad(outputs, leaves, [kc.moved(g, DEVICE) for g in grads])
    return [t.detach().cpu() for t in (*outputs, *gradients)]


def exact(tensors: Sequence[Tensor], grads: Sequence[Tensor], activation: Activation | None) -> list[Tensor]:
    x, *rest = leaves = [t.detach().double().requires_grad_() for t in tensors]
    outputs = (
        (reference.alk_conv(x, ALKConvWeights(*rest), activation=activation),)
        if activation
        else reference.alk_stage(x, *rest[:2], ALKConvWeights(*rest[2:]))
    )
    gradients = torch.autograd.grad(outputs, leaves, [g.double() for g in grads])
    return [t.detach() for t in (*outputs, *gradients)]


def outputs_of(tensors: Sequence[Tensor], activation: Activation | None, **shares: float) -> list[About]:
    """In float64, with the bounds of their errors."""
    x, *rest = (t.detach().double() for t in tensors)
    if activation:
        return [applied(alk_norm(x, rest, **shares), activation)]
    d_share = {"share": shares.pop("D")} if "D" in shares else {}
    return [distilled(x, *rest[:2], **d_share), applied(alk_norm(x, rest[2:], **shares).plus(x), "gelu")]


def assert_within(found: Sequence[Tensor], expected: Sequence[About], share: float = 1.0) -> None:
    for i, (f, (value, bound)) in enumerate(zip(found, expected, strict=False)):
        error = (f.double() - value).abs()
        assert (error <= share * bound).all(), f"result {i}: {(error / bound).max().item():.4f} of its bound"


def check(tensors: Sequence[Tensor], grads: Sequence[Tensor], activation: Activation | None) -> None:
    found, expected = run(tensors, grads, activation), exact(tensors, grads, activation)
    outputs = outputs_of(tensors, activation)
    assert all(torch.allclose(o.value, e, atol=1e-9) for o, e in zip(outputs, expected, strict=False))
    assert_within(found, outputs)
    with convolutions_in_tf32():
        plain = exact(tensors, grads, activation)
    assert_twice_rule(found, expected, plain)


@by_case
def test_errors_are_what_rounding_the_operands_allows(
    shape: Shape, k: int, activation: Activation | None, taps: int
) -> None:
    tensors = inputs_of(shape, k, activation, taps)
    check(tensors, cotangents(tensors, activation), activation)


@pytest.mark.parametrize("layout", kc.LAYOUTS)
def test_layouts(layout: str) -> None:
    tensors = stage_inputs((2, 10, 6, 19), 5, 5, layout=layout)
    check(tensors, cotangents(tensors, None, layout), None)


@pytest.mark.parametrize("taps", (9, 17, 25, 33))
def test_the_operands_of_the_forward_are_rounded_not_cut_off(taps: int) -> None:
    """All are numbers that rounding hardly changes, u among them: a channel of x, and 2^-20 of it taken away.

    The bound is a hundred times too large, as float32's errors before the norm seldom add up; what is cut off takes a
    third of it.
    """
    c, k = 24, 12
    x = just_below((1, c, 18, 17), 0)
    x[:, k:] = -x[:, :k].sign() * just_below(x[:, :k].shape, 0).abs() * 2**-20
    shapes = ((k, c, 1, 1), (k, 1, taps, 1), (k,), (k, 1, 1, taps), (k,), (k, 1, 3, 3), (k,))
    weights = [just_below(s, i) if len(s) > 1 else torch.zeros(s) for i, s in enumerate(shapes)]
    weights[0] = (torch.eye(k).repeat(1, 2) * 2.0 * (1 - 2**-20))[..., None, None]
    tensors = [x, *weights, torch.ones(k), torch.zeros(k)]
    found = run(tensors, cotangents(tensors, "none"), "none")
    assert_within(found, outputs_of(tensors, "none", u=HARDLY, stored=HARDLY, taps=HARDLY), 1 / 100)


def test_the_distilled_map_s_operands_are_rounded_not_cut_off() -> None:
    tensors = stage_inputs((1, 33, 9, 18), 20, 3)
    tensors[0], tensors[1] = just_below(tensors[0].shape, 0), just_below(tensors[1].shape, 1)
    assert_within(run(tensors, cotangents(tensors, None), None)[:1], outputs_of(tensors, None, D=HARDLY))


@pytest.mark.parametrize("taps", (9, 17, 25, 33))
def test_the_operands_of_the_backward_are_rounded_not_cut_off(taps: int) -> None:
    """Cut off, an operand loses 0.7 * 2^-11 of itself in the mean, and so does a sum of products with it."""
    tensors = stage_inputs((1, 32, 33, 34), 24, taps)
    grads = cotangents(tensors, None)
    for i, (f, e) in enumerate(zip(run(tensors, grads, None), exact(tensors, grads, None), strict=True)):
        loss = (((f - e) * e).sum() / (e * e).sum()).item()
        assert e.dim() < 4 or abs(loss) < 2**-13, f"result {i}: {loss}"


@by_case
def test_without_the_flag_float32_is_as_it_was(shape: Shape, k: int, activation: Activation | None, taps: int) -> None:
    """TF32 changes all that a product leads to, which is everything but the last bias's gradient without activation."""
    tensors = inputs_of(shape, k, activation, taps)
    grads = cotangents(tensors, activation)
    plain, rounded = (run(tensors, grads, activation, allowed) for allowed in (False, True))
    same = [torch.equal(a, b) for a, b in zip(plain, rounded, strict=True)]
    assert not any(same[:-1]) and same[-1] == (activation == "none")
    tiny = outputs_of(
        tensors, activation, u=2**-22, stored=2**-22, taps=2**-22, **({} if activation else {"D": 2**-22})
    )
    assert_within(plain, tiny)


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16), ids=str)
def test_half_precision_knows_no_tf32(dtype: torch.dtype) -> None:
    tensors = stage_inputs((1, 20, 9, 18), 12, 9, dtype)
    grads = cotangents(tensors, None)
    plain, allowed = (run(tensors, grads, None, flag) for flag in (False, True))
    assert all(torch.equal(a, b) for a, b in zip(plain, allowed, strict=True))


@pytest.mark.parametrize("taps", (9, 13))
def test_repeats_are_bit_equal_whatever_the_order_of_threads(taps: int) -> None:
    tensors = stage_inputs((2, 40, 18, 17), 12, taps)
    grads = cotangents(tensors, None)
    first = run(tensors, grads, None)
    try:
        for simulator.seed in (1, 2):
            assert all(torch.equal(a, b) for a, b in zip(first, run(tensors, grads, None), strict=True))
    finally:
        simulator.seed = 0


@pytest.mark.parametrize("taps", (9, 33))
def test_packed_weights_hold_both_kinds(taps: int) -> None:
    """What is allowed when they are used decides, not what was when they were packed."""
    x, d, b, *rest = (t.to(DEVICE) for t in stage_inputs((1, 40, 17, 18), 20, taps))
    w = ALKConvWeights(*rest)
    with fastsr.backend("cuda"), torch.no_grad():
        stage, conv = ops.pack_alk_conv(w, d, b), ops.pack_alk_conv(w)
        found = []
        for allowed in (False, True):
            with tf32(allowed):
                plain = (*ops.alk_stage(x, d, b, w), ops.alk_conv(x, w))
                packed = (*ops.alk_stage(x, d, b, w, packed=stage), ops.alk_conv(x, w, packed=conv))
            assert all(torch.equal(given, expected) for given, expected in zip(packed, plain, strict=True))
            found.append(plain)
    assert not any(torch.equal(exact, rounded) for exact, rounded in zip(*found, strict=True))


def test_what_is_not_finite_reaches_its_neighbourhood_and_not_far_beyond() -> None:
    """As in half precision (test_cuda_alk.py): zeros meet it within tiles and groups of columns."""
    x, *w = (t.to(DEVICE) for t in stage_inputs((1, 16, 40, 60), 8, 5))
    x[0, 3, 10, 10] = torch.nan
    with fastsr.backend("reference"):
        expected = call((x, *w), None)[1].isnan()
    with fastsr.backend("cuda"), tf32(True):
        found = call((x, *w), None)[1].isnan()
    assert found[expected].all()
    rows, columns = found[0].any(0).nonzero(as_tuple=True)
    assert rows.max() < 16 and columns.max() < 16


@pytest.mark.parametrize("name", ("alk_conv", "alk_stage_backward", "alk_conv_packed", "alk_stage_packed"), ids=str)
def test_the_private_operators_know_the_flag(name: str) -> None:
    """Behind the accuracy of GELU."""
    schema = getattr(torch.ops.fastsr, f"_cuda_{name}").default._schema
    assert [a.name for a in schema.arguments[-2:]] == ["accuracy", "tf32"]
