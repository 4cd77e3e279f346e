"""mixer_block: MLRN's block up to its ESA as one operator, against float64 and against its parts."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from kernel_checks import LAYOUTS, assert_repeatable, assert_twice_rule, feature_map, weight
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.errors import InputError
from fastsr.reference import Activation

pytestmark = pytest.mark.usefixtures("cpu_kernels")

# [N, C, H, W] and K: widths of less and more than a block of tiles, several bands, the direct convolution, one pixel
SHAPES = (
    ((1, 58, 17, 40), 58),
    ((2, 20, 90, 7), 33),
    ((1, 16, 31, 300), 16),
    ((2, 7, 9, 31), 12),
    ((1, 58, 4, 5), 58),
    ((1, 12, 1, 1), 7),
)


def inputs(shape: tuple[int, ...], k: int, layout: str = "nhwc", depthwise: bool = True) -> list[Tensor]:
    c = shape[1]
    parameters = [weight(c, c, 3, 3, seed=1), weight(c, seed=2), weight(c, c, 3, 3, seed=3), weight(c, seed=4)]
    if depthwise:
        parameters += [weight(c, 1, 3, 3, seed=5), weight(c, seed=6)]
    parameters += [weight(c, c, 1, 1, seed=7), weight(c, seed=8), weight(k, c, 1, 1, seed=9), weight(k, seed=10)]
    return [feature_map(shape, layout), *parameters]


def function(activation: Activation = "gelu") -> Callable[..., Tensor]:
    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        depthwise = parameters[4:-4] or (None, None)
        return ops.mixer_block(x, *parameters[:4], *depthwise, *parameters[-4:], activation=activation)

    return run


@pytest.mark.parametrize(("shape", "k"), SHAPES)
def test_twice_rule(cpu_isa: str, shape: tuple[int, ...], k: int) -> None:
    case = SHAPES.index((shape, k))
    for i, activation in enumerate(("gelu", "leaky_relu")):
        tensors = inputs(shape, k, LAYOUTS[(case + i) % len(LAYOUTS)], depthwise=(case + i) % 3 != 2)
        assert_twice_rule(function(activation), tensors)  # type: ignore[arg-type]


@pytest.mark.parametrize(("shape", "k"), SHAPES)
def test_bands_change_nothing(cpu_isa: str, shape: tuple[int, ...], k: int) -> None:
    """Without autograd an image goes through in bands of rows: bit-equal to the whole, and to the parts one by one."""
    tensors = inputs(shape, k)
    whole = function()(*(t.requires_grad_() for t in tensors))
    with torch.no_grad():
        assert torch.equal(whole, function()(*tensors))
        with patch("fastsr.ops.mixer_block._fuses", return_value=False):
            assert torch.equal(whole, function()(*tensors))


def test_many_bands() -> None:
    """Bands of 12288 pixels: so many that the rows between the convolutions go round in their memory more than once."""
    for shape in ((1, 20, 150, 500), (2, 8, 2700, 23), (1, 8, 61, 3001), (1, 5, 150, 500)):
        tensors = inputs(shape, 8)
        whole = function()(*(t.requires_grad_() for t in tensors))
        with torch.no_grad():
            assert torch.equal(whole, function()(*tensors))


def test_results_do_not_depend_on_threads() -> None:
    assert_repeatable(function(), inputs((2, 20, 33, 70), 24))


def test_half_precision_and_autocast_take_the_parts() -> None:
    tensors = [t.bfloat16() for t in inputs((1, 16, 9, 12), 16)]
    with fastsr.backend("cpu"):
        y = ops.conv3x3_gelu(ops.conv3x3_gelu(tensors[0], *tensors[1:3]), *tensors[3:5])
        assert torch.equal(function()(*tensors), ops.conv_mix(y, tensors[0], *tensors[5:]))


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("keeps", [False, True])
def test_opcheck(layout: str, keeps: bool) -> None:
    tensors = [t.requires_grad_(keeps) for t in inputs((2, 5, 3, 7), 4, layout)]
    tests = ("test_schema", "test_faketensor") + (("test_autograd_registration", "test_aot_dispatch_static") * keeps)
    torch.library.opcheck(torch.ops.fastsr.mixer_block.default, (*tensors, 1, keeps), test_utils=tests)
    _, pre1, pre2 = torch.ops.fastsr.mixer_block(*tensors, 1, True)
    x, *parameters = (t.detach() for t in tensors)
    grad = feature_map((2, 4, 3, 7), layout)
    torch.library.opcheck(
        torch.ops.fastsr.mixer_block_backward.default,
        (grad, x, pre1.detach(), pre2.detach(), *parameters, 1),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_compiles_in_one_graph() -> None:
    tensors = inputs((1, 16, 8, 9), 16)
    compiled = torch.compile(function(), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), function()(*tensors))
    leaves = [t.requires_grad_() for t in tensors]
    torch.testing.assert_close(
        torch.autograd.grad(compiled(*leaves).sum(), leaves), torch.autograd.grad(function()(*leaves).sum(), leaves)
    )


def test_an_empty_batch() -> None:
    tensors = [t.requires_grad_() for t in inputs((0, 8, 6, 7), 5)]
    y = function()(*tensors)
    assert y.shape == (0, 5, 6, 7)
    y.sum().backward()
    assert all(t.grad is not None and not t.grad.any() for t in tensors)


def test_bad_input_is_named() -> None:
    x, *parameters = inputs((1, 8, 6, 7), 8)
    run = function()
    for i, name in enumerate(("c1_weight", "c1_bias", "c2_weight", "c2_bias", "dw_weight", "dw_bias", "pw_weight")):
        bad = [p[1:] if j == i else p for j, p in enumerate(parameters)]
        with pytest.raises(InputError, match=f"mixer_block: {name}"):
            run(x, *bad)
    with pytest.raises(InputError, match="mixer_block: activation"):
        ops.mixer_block(x, *parameters, activation="relu")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="only one of dw_weight and dw_bias"):
        ops.mixer_block(x, *parameters[:4], None, *parameters[5:])
    with pytest.raises(RuntimeError, match="c1_weight"):
        torch.ops.fastsr.mixer_block(x, parameters[0][1:], *parameters[1:], 1, False)
    with pytest.raises(RuntimeError, match="float32"):
        torch.ops.fastsr.mixer_block(x.half(), *parameters, 1, False)
    _, pre1, pre2 = torch.ops.fastsr.mixer_block(x, *parameters, 1, True)
    with pytest.raises(RuntimeError, match="kept map"):
        torch.ops.fastsr.mixer_block_backward(x, x, pre1[:, 1:], pre2, *parameters, 1)
