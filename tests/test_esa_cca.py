"""esa_cca on the CPU: both attentions over the map, against their parts."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from kernel_checks import assert_twice_rule, feature_map, weight
from torch import Tensor

from fastsr import ops
from fastsr.nn import ALKDB, ESDB
from fastsr.reference import BlueprintESAWeights, PlainESAWeights

pytestmark = pytest.mark.usefixtures("cpu_kernels")

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# [N, C, H, W], inner channels, padding, whether there is a norm
CASES = (
    ((1, 64, 17, 40), 16, 1, True),
    ((2, 20, 16, 130), 5, 0, False),
    ((1, 5, 33, 70), 20, 0, True),
    ((2, 64, 13, 13), 16, 1, False),
)


def case(shape: tuple[int, int, int, int], f: int, form: type, norm: bool, dtype: torch.dtype) -> list[Tensor]:
    """Map, shortcut, weights of the ESA, parameters of cca_norm."""
    c, hidden = shape[1], max(1, shape[1] // 4)
    separable = ((f, f, 1, 1), (f, 1, 3, 3), (f,))
    inner = separable * 4 if form is BlueprintESAWeights else ((f, f, 3, 3), (f,)) * 2
    esa = ((f, c, 1, 1), (f,), *inner, (f, f, 1, 1), (f,), (c, f, 1, 1), (c,))
    cca = ((hidden, c, 1, 1), (hidden,), (c, hidden, 1, 1), (c,), *([(c,), (c,)] if norm else []))
    weights = [weight(*s, seed=i, dtype=dtype) for i, s in enumerate((*esa, *cca))]
    return [*(feature_map(shape, "nhwc", dtype, seed=i) for i in range(2)), *weights]


def attentions(form: type, padding: int, packed: bool = False, overwrite: bool = False):  # type: ignore[no-untyped-def]
    def call(x: Tensor, shortcut: Tensor, *weights: Tensor) -> Tensor:
        count = len(form._fields)  # type: ignore[attr-defined]
        esa = form._make(weights[:count])  # type: ignore[attr-defined]
        kept = ops.pack_esa(esa) if packed else None
        settings = {"conv2_padding": padding, "packed": kept, "overwrite": overwrite}
        return ops.esa_cca(x.clone(), shortcut, esa, *weights[count:], **settings)

    return call


@pytest.mark.parametrize("form", [BlueprintESAWeights, PlainESAWeights])
@pytest.mark.parametrize(("shape", "f", "padding", "norm"), CASES)
def test_bit_equal_to_its_parts(
    cpu_isa: str, form: type, shape: tuple[int, int, int, int], f: int, padding: int, norm: bool
) -> None:
    for dtype in DTYPES:
        tensors = case(shape, f, form, norm, dtype)
        expected = attentions(form, padding)(*tensors)
        for packed in (False, True):
            with patch("torch.ops.fastsr.esa_", side_effect=AssertionError):  # the fusion is taken
                result = attentions(form, padding, packed, overwrite=True)(*tensors)
            assert torch.equal(result, expected), (dtype, packed)


@pytest.mark.parametrize("form", [BlueprintESAWeights, PlainESAWeights])
def test_twice_rule(form: type) -> None:
    tensors = case(*CASES[0][:2], form, True, torch.float32)
    assert_twice_rule(attentions(form, 1, overwrite=True), tensors, gradients=False)
    assert_twice_rule(attentions(form, 1, overwrite=True), tensors)


def test_the_map_is_only_overwritten_if_it_may_be() -> None:
    shape, f, padding, norm = CASES[0]
    x, shortcut, *weights = case(shape, f, BlueprintESAWeights, norm, torch.float32)
    esa, rest, before = BlueprintESAWeights._make(weights[:18]), weights[18:], x.clone()
    y = ops.esa_cca(x, shortcut, esa, *rest, conv2_padding=padding)
    assert torch.equal(x, before) and y is not x
    with torch.enable_grad():
        weights[0].requires_grad_()
        recorded = ops.esa_cca(x, shortcut, esa, *rest, conv2_padding=padding, overwrite=True)
        assert torch.equal(x, before) and torch.equal(recorded, y)
        weights[0].requires_grad_(False)
    nchw = x.contiguous()
    assert torch.equal(ops.esa_cca(nchw, shortcut, esa, *rest, conv2_padding=padding, overwrite=True), y)
    assert torch.equal(nchw, before)
    assert ops.esa_cca(x, shortcut, esa, *rest, conv2_padding=padding, overwrite=True) is x
    assert torch.equal(x, y)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_results_do_not_depend_on_threads(threads: int) -> None:
    before = torch.get_num_threads()
    tensors = case((3, 8, 61, 100), 4, BlueprintESAWeights, True, torch.float32)
    expected = attentions(BlueprintESAWeights, 0)(*tensors)
    try:
        torch.set_num_threads(threads)
        for _ in range(3):
            assert torch.equal(attentions(BlueprintESAWeights, 0, overwrite=True)(*tensors), expected)
    finally:
        torch.set_num_threads(before)


def test_an_empty_batch() -> None:
    tensors = case((0, 8, 16, 17), 4, BlueprintESAWeights, True, torch.float32)
    assert attentions(BlueprintESAWeights, 0, overwrite=True)(*tensors).shape == (0, 8, 16, 17)


@pytest.mark.parametrize("block", [ALKDB, ESDB])
def test_the_networks_blocks_take_it(block: type) -> None:
    module, x = block(16, esa_channels=4).requires_grad_(False), feature_map((1, 16, 20, 21), "nhwc")
    y, before = module(x), x.clone()
    module.esa.register_forward_hook(lambda *_: None)
    assert torch.equal(module(x), y)
    assert torch.equal(x, before)
