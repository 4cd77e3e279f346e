"""conv_mix: every kernel against the float64 reference, on every instruction set."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_checks import FLOOR_EPSILONS, LAYOUTS, assert_repeatable, assert_twice_rule, feature_map, results, weight
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.errors import InputError
from fastsr.reference import Activation

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
ACTIVATIONS: tuple[Activation, ...] = ("gelu", "leaky_relu")
# [N, C, H, W] and K: the network's widths, vectors with remainders, rows around a block of 24 pixels, one pixel.
SHAPES = (
    ((2, 58, 5, 31), 58),
    ((1, 50, 9, 24), 50),
    ((2, 46, 4, 11), 48),
    ((1, 16, 2, 49), 33),
    ((1, 70, 7, 5), 130),
    ((1, 12, 6, 25), 7),
    ((3, 58, 1, 9), 12),
    ((1, 20, 9, 1), 58),
    ((2, 58, 1, 1), 58),
)


def inputs(
    shape: tuple[int, int, int, int],
    k: int,
    dtype: torch.dtype = torch.float32,
    layout: str = "nhwc",
    depthwise: bool = True,
) -> list[Tensor]:
    c = shape[1]
    parameters = [weight(c, c, 1, 1, dtype=dtype), weight(c, seed=2, dtype=dtype)]
    parameters += [weight(k, c, 1, 1, seed=3, dtype=dtype), weight(k, seed=4, dtype=dtype)]
    if depthwise:
        parameters = [weight(c, 1, 3, 3, seed=5, dtype=dtype), weight(c, seed=6, dtype=dtype), *parameters]
    return [feature_map(shape, layout, dtype), feature_map(shape, layout, dtype, seed=1), *parameters]


def function(activation: Activation = "gelu") -> Callable[..., Tensor]:
    def run(x: Tensor, shortcut: Tensor, *parameters: Tensor) -> Tensor:
        dw = parameters[:-4] or (None, None)
        return ops.conv_mix(x, shortcut, *dw, *parameters[-4:], activation=activation)

    return run


@pytest.mark.parametrize(("shape", "k"), SHAPES)
def test_twice_rule(cpu_isa: str, shape: tuple[int, int, int, int], k: int) -> None:
    case = SHAPES.index((shape, k))
    for i, dtype in enumerate(DTYPES):
        # Layouts are handled alike for all dtypes: one each for the halves.
        for j, layout in enumerate(LAYOUTS if dtype == torch.float32 else LAYOUTS[(case + i) % 5 :][:1]):
            tensors = inputs(shape, k, dtype, layout, depthwise=(i + j) % 3 != 2)
            assert_twice_rule(function(ACTIVATIONS[(case + i + j) % 2]), tensors)


@pytest.mark.parametrize(("shape", "k"), (((1, 1, 5, 5), 1), ((1, 3, 6, 25), 7)))
def test_twice_rule_over_many_draws_of_few_channels(cpu_isa: str, shape: tuple[int, int, int, int], k: int) -> None:
    """A bias gradient of one channel is one number, so its error in one draw is chance: compare the largest of 16."""
    errors: dict[str, list[float]] = {"cpu": [], "reference": []}
    scales: list[float] = []
    for seed in range(16):
        torch.manual_seed(seed)
        tensors = [torch.randn_like(t) for t in inputs(shape, k)]
        exact = results(function(), [t.double() for t in tensors], "reference")
        scales = [max(s, e.abs().max().item()) for s, e in zip(scales or [0.0] * len(exact), exact, strict=True)]
        for backend, largest in errors.items():
            got = results(function(), tensors, backend)
            new = [(g.double() - e).abs().max().item() for g, e in zip(got, exact, strict=True)]
            largest[:] = [max(a, b) for a, b in zip(largest or [0.0] * len(new), new, strict=True)]
    for kernel, plain, scale in zip(errors["cpu"], errors["reference"], scales, strict=True):
        assert kernel <= 2 * plain + FLOOR_EPSILONS * torch.finfo(torch.float32).eps * scale


@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
@pytest.mark.parametrize("depthwise", (False, True))
def test_twice_rule_in_a_training_batch(cpu_kernels: None, depthwise: bool, layout: str) -> None:
    assert_twice_rule(function(), inputs((4, 58, 48, 48), 58, layout=layout, depthwise=depthwise))


def test_layouts_may_differ(cpu_kernels: None) -> None:
    tensors = inputs((2, 58, 9, 7), 58)
    tensors[1] = tensors[1].contiguous()
    assert_twice_rule(function(), tensors)


def test_empty(cpu_kernels: None) -> None:
    assert_twice_rule(function(), inputs((0, 58, 8, 8), 12))


@pytest.mark.parametrize("depthwise", (False, True))
def test_repeatable(cpu_isa: str, depthwise: bool) -> None:
    assert_repeatable(function(), inputs((3, 58, 27, 40), 58, depthwise=depthwise))


@pytest.mark.parametrize("value", (torch.nan, torch.inf))
def test_nan_and_inf_stay_where_they_belong(cpu_isa: str, value: float) -> None:
    tensors = inputs((1, 58, 9, 30), 58)
    tensors[0][0, 57, 4, 24] = value
    with fastsr.backend("cpu"):
        y = function()(*tensors)
    if value != value:  # GELU takes -inf to 0
        assert y[:, :, 3:6, 23:26].isnan().all()
    assert not y[:, :, 4, 24].isfinite().any()
    untouched = torch.ones(9, 30, dtype=torch.bool)
    untouched[3:6, 23:26] = False
    assert y[:, :, untouched].isfinite().all()


@pytest.mark.parametrize("depthwise", (False, True))
@pytest.mark.parametrize("layout", ("nchw", "nhwc", "pixel_slice"))
def test_opcheck(cpu_kernels: None, layout: str, depthwise: bool) -> None:
    tensors = [t.detach() for t in inputs((2, 10, 7, 8), 12, layout=layout, depthwise=depthwise)]
    head, tail = tensors[:2], tensors[2:] if depthwise else [None, None, *tensors[2:]]
    leaves = [t if t is None else t.clone().requires_grad_() for t in tail]
    torch.library.opcheck(torch.ops.fastsr.conv_mix.default, (*(t.requires_grad_() for t in head), *leaves, 1))
    grad = feature_map((2, 12, 7, 8), layout)
    torch.library.opcheck(
        torch.ops.fastsr.conv_mix_backward.default,
        (grad, *(t.detach() for t in head), *tail, 1),
        test_utils="test_faketensor",
    )


def test_compile(cpu_kernels: None) -> None:
    torch._dynamo.reset()
    arguments = [t.requires_grad_() for t in inputs((1, 10, 9, 9), 12)]
    compiled = torch.compile(function(), fullgraph=True, backend="aot_eager")
    with fastsr.backend("cpu"):
        torch.testing.assert_close(compiled(*arguments), function()(*arguments), rtol=0, atol=0)


def test_messages(cpu_kernels: None) -> None:
    x, s, dw, db, pw, pb, c5, cb = tensors = inputs((1, 10, 9, 9), 12)
    with pytest.raises(InputError, match="only one of dw_weight and dw_bias"):
        ops.conv_mix(x, s, dw, None, pw, pb, c5, cb)
    with pytest.raises(InputError, match="pw_weight has shape"):
        ops.conv_mix(x, s, dw, db, pw[:, :9], pb, c5, cb)
    wrong = (
        (0, x[0]),
        (0, x.double()),
        (1, s[:, :, :8]),
        (1, s.bfloat16()),
        (2, dw[:, :, :2]),
        (3, None),
        (3, db[:9]),
        (4, pw[:, :9]),
        (5, pb[:9]),
        (6, c5[0]),
        (6, c5[:, :9]),
        (7, cb[:9]),
    )
    for i, value in wrong:
        arguments: list[Tensor | None] = [*tensors]
        arguments[i] = value
        with pytest.raises(RuntimeError, match="conv_mix"):
            torch.ops.fastsr.conv_mix(*arguments, 1)
    with pytest.raises(RuntimeError, match="activation has code"):
        torch.ops.fastsr.conv_mix(*tensors, 5)
    with pytest.raises(RuntimeError, match="grad must have the shape"):
        torch.ops.fastsr.conv_mix_backward(x, *tensors, 1)


def test_double_backward_is_refused(cpu_kernels: None) -> None:
    arguments = [t.requires_grad_() for t in inputs((1, 4, 5, 5), 4)]
    with fastsr.backend("cpu"):
        (dx,) = torch.autograd.grad(function()(*arguments).sum(), arguments[:1], create_graph=True)
        with pytest.raises(InputError, match="reference"):
            dx.sum().backward()
