"""The Triton esa, both forms, against float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_checks import assert_repeatable, assert_twice_rule, device_of, feature_map, moved, results, weight
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.ops import BlueprintESAWeights, PlainESAWeights

DEVICE = device_of("triton")
FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
PLAIN, BLUEPRINT = PlainESAWeights, BlueprintESAWeights
# [N, C, H, W], inner channels, form, conv2_padding, dtype, layout: the least sizes, more than one tile, odd widths.
CASES = (
    ((1, 58, 15, 15), 16, PLAIN, 0, FLOAT, "nhwc"),
    ((1, 58, 21, 22), 16, PLAIN, 0, HALF, "nhwc"),
    ((2, 10, 13, 23), 12, BLUEPRINT, 1, FLOAT, "nchw"),
    ((1, 64, 13, 13), 16, BLUEPRINT, 1, HALF, "nhwc"),
    ((1, 5, 22, 19), 20, BLUEPRINT, 0, BFLOAT, "channel_slice"),
    ((1, 8, 21, 16), 16, PLAIN, 1, BFLOAT, "pixel_slice"),
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


@pytest.mark.parametrize(("shape", "f", "form", "padding", "dtype", "layout"), CASES)
def test_twice_rule(shape: tuple[int, ...], f: int, form: type, padding: int, dtype: torch.dtype, layout: str) -> None:
    assert_twice_rule(function(form, padding), case(shape, f, form, dtype, layout), "triton")


@pytest.mark.parametrize("form", (PLAIN, BLUEPRINT))
def test_tiles_of_the_small_map(form: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """A small map of 4 x 3 in tiles of 3 x 3 pixels, each with a border, in pieces of 16 pixels."""
    from fastsr.kernels import esa_backward, esa_path

    sizes = {"esa_low": {"SIZE": 3, "BP": 16}, "esa_low_backward": {"BP": 16}}
    original = esa_path.tile

    def tile(kernel: str, x: Tensor, **shape: int) -> dict[str, int]:
        return {**original(kernel, x, **shape), **sizes.get(kernel, {})}

    for module in (esa_path, esa_backward):
        monkeypatch.setattr(module, "tile", tile)
    assert_twice_rule(function(form, 1), case((1, 4, 31, 26), 8, form), "triton")


@pytest.mark.parametrize("form", (PLAIN, BLUEPRINT))
def test_equal_maxima_send_the_gradient_where_pytorch_does(form: type) -> None:
    inputs = [moved(t, DEVICE) for t in case((1, 4, 17, 18), 8, form)]
    inputs[0].fill_(0.25)  # every window holds one value: the first pixel takes the gradient
    exact, kernel = (results(function(form, 0), inputs, backend) for backend in ("reference", "triton"))
    for a, b in zip(exact, kernel, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * a.abs().max().item())


def test_nan_propagates_to_where_the_reference_has_it() -> None:
    inputs = [moved(t, DEVICE) for t in case((1, 4, 22, 23), 8, BLUEPRINT)]
    inputs[0][0, 3, 20, 2] = torch.nan
    expected, y = (results(function(BLUEPRINT, 1), inputs, name)[0] for name in ("reference", "triton"))
    assert torch.equal(y.isnan(), expected.isnan()) and not y.isnan().all()


def test_repeatable() -> None:
    assert_repeatable(function(BLUEPRINT, 1), case((2, 8, 13, 13), 8, BLUEPRINT), "triton")


@pytest.mark.parametrize("form", (PLAIN, BLUEPRINT))
def test_empty(form: type) -> None:
    inputs = [moved(t, DEVICE) for t in case((0, 8, 16, 16), 16, form)]
    y, *gradients = results(function(form, 1), inputs, "triton")
    assert y.shape == (0, 8, 16, 16)
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients, inputs, strict=True))


def test_too_many_channels_are_named() -> None:
    for channels, f, reason in ((129, 16, "129 channels exceed 128"), (8, 33, "33 channels inside exceed 32")):
        inputs = [moved(t, DEVICE) for t in case((1, channels, 15, 15), f, PLAIN)]
        with fastsr.backend("triton"), pytest.raises(fastsr.BackendError, match=reason):
            function(PLAIN, 0)(*inputs)


@pytest.mark.parametrize("form", (PLAIN, BLUEPRINT))
@pytest.mark.parametrize("layout", ("nchw", "nhwc"))
def test_fakes_and_layouts(form: type, layout: str) -> None:
    x, *weights = (moved(t, DEVICE) for t in case((1, 8, 13, 14), 8, form, FLOAT, layout))
    leaves = [t.detach().requires_grad_() for t in weights]
    with fastsr.backend("triton"):
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.fastsr.esa.default, (x, leaves, 1), test_utils=checks[1:])
        arguments = (torch.randn_like(x), x, weights, 1)
        torch.library.opcheck(torch.ops.fastsr.esa_backward.default, arguments, test_utils=checks[2])
        y = torch.ops.fastsr.esa(x, weights, 1)
    memory_format = torch.contiguous_format if layout == "nchw" else torch.channels_last
    assert y.is_contiguous(memory_format=memory_format)


def test_compiles_in_one_graph_without_recompiling() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(function(PLAIN, 1), fullgraph=True, dynamic=True, backend="aot_eager")
    _, *weights = (moved(t, DEVICE) for t in case((1, 4, 13, 13), 8, PLAIN))
    with torch.no_grad(), fastsr.backend("triton"), torch._dynamo.config.patch(error_on_recompile=True):
        for size in ((13, 14), (14, 16)):
            x = moved(feature_map((2, 4, *size), "nhwc"), DEVICE)
            assert torch.equal(compiled(x, *weights), function(PLAIN, 1)(x, *weights))
