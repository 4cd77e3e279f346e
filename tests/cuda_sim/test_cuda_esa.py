"""esa in CUDA C++, both forms, against float64: simulated, or on the GPU if there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import simulator
import torch
from kernel_checks import LAYOUTS, assert_twice_rule, device_of, feature_map, moved, results, weight
from torch import Tensor
from torch.nn import functional as F

import fastsr
from fastsr import ops
from fastsr.ops import BlueprintESAWeights, PlainESAWeights

pytestmark = pytest.mark.usefixtures("cuda_kernels")

DEVICE = device_of("cuda")
FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
DTYPES = (FLOAT, HALF, BFLOAT)
PLAIN, BLUEPRINT = PlainESAWeights, BlueprintESAWeights
# [N, C, H, W], inner channels, form, conv2_padding: the networks' channels at the least sizes, more than one tile of
# the small map, every number of channels inside, channels that no 16 bytes hold.
CASES = (
    ((1, 58, 15, 15), 16, PLAIN, 0),
    ((1, 58, 21, 22), 16, PLAIN, 0),
    ((2, 64, 13, 23), 16, BLUEPRINT, 1),
    ((1, 64, 48, 48), 16, BLUEPRINT, 1),
    ((1, 8, 33, 77), 8, BLUEPRINT, 0),
    ((1, 5, 22, 19), 20, BLUEPRINT, 0),
    ((1, 130, 16, 15), 32, BLUEPRINT, 1),
    ((1, 8, 61, 16), 12, PLAIN, 1),
)


def function(form: type, padding: int) -> Callable[..., Tensor]:
    return lambda x, *weights: ops.esa(x, form._make(weights), conv2_padding=padding)  # type: ignore[attr-defined]


def shapes(channels: int, f: int, form: Any) -> list[tuple[int, ...]]:
    def shape(name: str) -> tuple[int, ...]:
        if name.startswith("conv4"):
            return (channels,) if name.endswith("bias") else (channels, f, 1, 1)
        if name.endswith("bias"):
            return (f,)
        if name == "conv1_weight":
            return (f, channels, 1, 1)
        if "_dw_" in name:
            return (f, 1, 3, 3)
        return (f, f, 1, 1) if "_pw_" in name or name == "conv_f_weight" else (f, f, 3, 3)

    return [shape(name) for name in form._fields]


def case(shape: tuple[int, ...], f: int, form: type, dtype: torch.dtype = FLOAT, layout: str = "nhwc") -> list[Tensor]:
    sizes = shapes(shape[1], f, form)
    weights = [weight(*s, seed=i, gain=0.3 if len(s) == 1 else 1.0, dtype=dtype) for i, s in enumerate(sizes)]
    return [feature_map(shape, layout, dtype), *weights]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "f", "form", "padding"), CASES)
def test_twice_rule(shape: tuple[int, ...], f: int, form: type, padding: int, dtype: torch.dtype) -> None:
    assert_twice_rule(function(form, padding), case(shape, f, form, dtype), "cuda")


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout: str, dtype: torch.dtype) -> None:
    assert_twice_rule(function(BLUEPRINT, 1), case((2, 20, 16, 19), 8, BLUEPRINT, dtype, layout), "cuda")


@pytest.mark.parametrize("form", (PLAIN, BLUEPRINT))
def test_equal_maxima_send_the_gradient_where_pytorch_does(form: type) -> None:
    inputs = [moved(t, DEVICE) for t in case((1, 4, 17, 18), 8, form)]
    inputs[0].fill_(0.25)  # every window holds one value: the first pixel takes the gradient
    exact, kernel = (results(function(form, 0), inputs, backend) for backend in ("reference", "cuda"))
    for a, b in zip(exact, kernel, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * a.abs().max().item())


def test_nan_propagates_to_where_the_reference_has_it() -> None:
    inputs = [moved(t, DEVICE) for t in case((1, 4, 22, 23), 8, BLUEPRINT)]
    inputs[0][0, 3, 20, 2] = torch.nan
    expected, y = (results(function(BLUEPRINT, 1), inputs, name)[0] for name in ("reference", "cuda"))
    assert torch.equal(y.isnan(), expected.isnan()) and not y.isnan().all()


@pytest.mark.parametrize("form", (PLAIN, BLUEPRINT))
@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
def test_repeats_are_bit_equal_whatever_the_order_of_threads(form: type, dtype: torch.dtype) -> None:
    inputs = [moved(t, DEVICE) for t in case((2, 20, 27, 70), 12, form, dtype)]
    first = results(function(form, 1), inputs, "cuda")
    try:
        for simulator.seed in (1, 2):
            again = results(function(form, 1), inputs, "cuda")
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        simulator.seed = 0


@pytest.mark.parametrize("form", (PLAIN, BLUEPRINT))
def test_empty(form: type) -> None:
    inputs = [moved(t, DEVICE) for t in case((0, 8, 16, 16), 16, form)]
    y, *gradients = results(function(form, 1), inputs, "cuda")
    assert y.shape == (0, 8, 16, 16)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients, inputs, strict=True))


def test_float32_weights_beside_a_half_map() -> None:
    """As under autocast: gradients of the weights are float32."""
    x, *weights = (moved(t, DEVICE) for t in case((1, 16, 16, 17), 8, BLUEPRINT))
    leaves = [x.half().requires_grad_(), *(w.requires_grad_() for w in weights)]
    with fastsr.backend("cuda"), torch.autocast(DEVICE, dtype=HALF):
        y = function(BLUEPRINT, 1)(*leaves)
        gradients = torch.autograd.grad(y.sum(), leaves)
    assert y.dtype == gradients[0].dtype == HALF
    assert all(g.dtype == FLOAT and g.isfinite().all() for g in gradients[1:])


def test_too_many_channels_are_named() -> None:
    inputs = [moved(t, DEVICE) for t in case((1, 8, 15, 15), 33, PLAIN)]
    with fastsr.backend("cuda"), pytest.raises(fastsr.BackendError, match="33 channels inside exceed 32"):
        function(PLAIN, 0)(*inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("shape", "form", "padding"), [((1, 58, 21, 22), PLAIN, 0), ((2, 20, 13, 23), BLUEPRINT, 1)])
def test_a_map_that_is_reduced_already(shape: tuple[int, ...], form: Any, padding: int, dtype: torch.dtype) -> None:
    """Within the error of the operator itself; and it is what is given that counts."""
    x, *weights = (moved(t, DEVICE) for t in case(shape, 12, form, dtype))
    reduced = F.pad(F.conv2d(x.double(), *(w.double() for w in weights[:2])), (0, 0, 0, 0, 0, 4)).to(dtype)
    reduced = reduced.contiguous(memory_format=torch.channels_last)

    def run(given: Tensor | None) -> Tensor:
        return ops.esa(x, form._make(weights), conv2_padding=padding, reduced=given)

    with torch.no_grad():
        with fastsr.backend("reference"):
            plain, exact = run(reduced), function(form, padding)(x.double(), *(w.double() for w in weights))
        with fastsr.backend("cuda"):
            y, other = run(reduced), run(reduced + 1)
    allowed = 2 * (plain - exact).abs().max() + 2 * torch.finfo(dtype).eps * exact.abs().max()
    assert (y - exact).abs().max() <= allowed < (other - exact).abs().max()


def test_what_is_reduced_has_to_fit() -> None:
    x, *weights = (moved(t, DEVICE) for t in case((1, 8, 15, 15), 12, PLAIN))
    with fastsr.backend("cuda"), torch.no_grad():
        for wrong in (x, "x"):
            with pytest.raises(fastsr.InputError, match="esa: reduced"):
                ops.esa(x, PLAIN._make(weights), reduced=wrong)  # type: ignore[arg-type]
    leaf = x.clone().requires_grad_()
    with fastsr.backend("cuda"):
        y = ops.esa(leaf, PLAIN._make(weights), reduced=torch.zeros(1, 16, 15, 15, device=DEVICE))
        assert torch.equal(y, ops.esa(leaf, PLAIN._make(weights)))  # which is with autograd


@pytest.mark.parametrize("form", (PLAIN, BLUEPRINT))
@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_fakes_and_layouts(form: type, layout: str) -> None:
    x, *weights = (moved(t, DEVICE) for t in case((1, 8, 13, 14), 8, form, FLOAT, layout))
    leaves = [t.detach().requires_grad_() for t in weights]
    with fastsr.backend("cuda"):
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.fastsr.esa.default, (x, leaves, 1), test_utils=checks[1:])
        arguments = (torch.randn_like(x), x, weights, 1)
        torch.library.opcheck(torch.ops.fastsr.esa_backward.default, arguments, test_utils=checks[2])
        y = torch.ops.fastsr.esa(x, weights, 1)
        arguments = (x, torch.zeros(1, 16, 13, 14, device=DEVICE).to(memory_format=torch.channels_last), weights, 1)
        run = torch.ops.fastsr.esa_reduced.default
        torch.library.opcheck(run, arguments, test_utils=("test_schema", "test_faketensor"))
    memory_format = torch.contiguous_format if layout == "nchw" else torch.channels_last
    assert y.is_contiguous(memory_format=memory_format)
