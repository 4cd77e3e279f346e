"""pointwise and bsconv with weights packed once, for frozen networks: bit for bit the operators themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from kernel_checks import LAYOUTS, feature_map, weight
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.nn import ALKConv, BlueprintESA

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def bsconv_weights(c: int, k: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    shapes = ((k, c, 1, 1), (k, 1, 3, 3), (k,))
    return tuple(weight(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes))  # type: ignore[return-value]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [(3, 20), (64, 64)], ids=str)
def test_bsconv(cpu_isa: str, channels: tuple[int, int], dtype: torch.dtype, layout: str) -> None:
    weights = bsconv_weights(*channels, dtype)
    packed = ops.pack_bsconv(*weights)
    assert packed is not None
    for size in ((1, 1), (9, 35)):
        x = feature_map((2, channels[0], *size), layout, dtype)
        shortcut = feature_map((2, channels[1], *size), layout, dtype)
        assert torch.equal(ops.bsconv(x, *weights, packed=packed), ops.bsconv(x, *weights))
        options = {"shortcut": shortcut, "activation": "gelu"}
        assert torch.equal(ops.bsconv(x, *weights, **options, packed=packed), ops.bsconv(x, *weights, **options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("channels", [(64, 32), (20, 7)], ids=str)
def test_bsconv_stage(cpu_isa: str, channels: tuple[int, int], dtype: torch.dtype) -> None:
    c, d = channels
    distil = weight(d, c, 1, 1, seed=7, dtype=dtype), weight(d, seed=8, dtype=dtype)
    weights = bsconv_weights(c, c, dtype)
    packed = ops.pack_bsconv(*weights, *distil)
    x = feature_map((2, c, 18, 37), "nhwc", dtype)
    for got, expected in zip(
        ops.bsconv_stage(x, *distil, *weights, packed=packed), ops.bsconv_stage(x, *distil, *weights), strict=True
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pointwise(cpu_isa: str, dtype: torch.dtype, layout: str) -> None:
    maps = [feature_map((2, c, 7, 51), layout, dtype) for c in (32, 5, 16)]
    w, b = weight(20, 53, 1, 1, seed=1, dtype=dtype), weight(20, seed=2, dtype=dtype)
    shortcut, packed = feature_map((2, 20, 7, 51), layout, dtype), ops.pack_pointwise(w, b)
    assert packed is not None
    for activation in ("none", "gelu", "leaky_relu"):
        for addend in (None, shortcut):
            options = {"shortcut": addend, "activation": activation}
            assert torch.equal(
                ops.pointwise(maps, w, b, **options, packed=packed), ops.pointwise(maps, w, b, **options)
            )


@pytest.mark.parametrize("packs", [False, True])
def test_a_product_in_parts_is_the_product(cpu_isa: str, packs: bool) -> None:
    maps = [feature_map((1, c, 6, 50), "nhwc") for c in (32, 16, 5)]
    w, b = weight(20, 53, 1, 1, seed=1), weight(20, seed=2)
    packed = ops.pack_pointwise(w, b) if packs else None
    exact = ops.pointwise([m.double() for m in maps], w.double(), b.double(), activation="gelu")
    part = ops.pointwise(maps[:2], w, b, packed=packed, first=0)
    got = ops.pointwise(maps[2:], w, b, shortcut=part, activation="gelu", packed=packed, first=48)
    with fastsr.backend("reference"):
        plain = ops.pointwise(maps, w, b, activation="gelu")
        alike = ops.pointwise(maps[2:], w, b, shortcut=part, activation="gelu", first=48)
    assert (got - exact).abs().max() <= 2 * (plain - exact).abs().max()
    torch.testing.assert_close(alike, got)


@pytest.mark.parametrize("first", [-1, 33, 60])
@pytest.mark.parametrize("packs", [False, True])
def test_parts_lie_within_the_weight(cpu_kernels: None, packs: bool, first: int) -> None:
    w, b = weight(4, 48, 1, 1), weight(4, seed=1)
    packed = ops.pack_pointwise(w, b) if packs else None
    with pytest.raises(fastsr.InputError, match=f"channels {first} to {first + 16} of a weight with 48"):
        ops.pointwise((torch.rand(1, 16, 2, 2),), w, b, packed=packed, first=first)


def test_what_autograd_records_uses_the_weights(cpu_kernels: None) -> None:
    x = torch.rand(1, 8, 9, 9)
    w, b = weight(4, 8, 1, 1).requires_grad_(), weight(4, seed=1).requires_grad_()
    ops.pointwise((x,), w, b, packed=ops.pack_pointwise(w, b)).sum().backward()
    separable = tuple(t.requires_grad_() for t in bsconv_weights(8, 8))
    ops.bsconv(x, *separable, packed=ops.pack_bsconv(*separable)).sum().backward()
    distil = weight(4, 8, 1, 1), weight(4, seed=1)
    packed = ops.pack_bsconv(*separable, *distil)
    sum(y.sum() for y in ops.bsconv_stage(x, *distil, *separable, packed=packed)).backward()
    assert all(t.grad is not None and t.grad.any() for t in (w, b, *separable))


def test_what_is_packed_elsewhere_is_left(cpu_kernels: None) -> None:
    """The call then runs on the weights, which are where the map is."""
    x, w, b = feature_map((1, 16, 17, 18), "nhwc"), weight(16, 16, 1, 1, seed=1), weight(16, seed=2)
    blueprint, dense = bsconv_weights(16, 16), weight(16, 16, 3, 3, seed=3)
    alk, attention = ALKConv(16, 16, 5).requires_grad_(False), BlueprintESA(16, 4).requires_grad_(False)
    for call, packed in (
        (lambda p: ops.pointwise([x], w, b, packed=p), ops.pack_pointwise(w, b)),
        (lambda p: ops.bsconv(x, *blueprint, packed=p), ops.pack_bsconv(*blueprint)),
        (lambda p: ops.conv3x3_gelu(x, dense, b, packed=p), ops.pack_conv3x3_gelu(dense, b)),
        (lambda p: ops.alk_conv(x, alk.weights(), packed=p), ops.pack_alk_conv(alk.weights())),
        (lambda p: ops.esa(x, attention.weights(), packed=p), ops.pack_esa(attention.weights())),
    ):
        assert packed is not None
        assert torch.equal(call(packed.to("meta")), call(None))


def test_weights_of_another_shape_are_refused(cpu_kernels: None) -> None:
    call, x = torch.ops.fastsr, torch.rand(1, 8, 5, 6)
    plain = ops.pack_bsconv(*bsconv_weights(8, 8))
    stage = ops.pack_bsconv(*bsconv_weights(8, 8), weight(4, 8, 1, 1), weight(4))
    product = ops.pack_pointwise(weight(4, 8, 1, 1), weight(4))
    assert plain is not None and stage is not None and product is not None
    refused: list[tuple[Callable[[Tensor], object], str, tuple[Tensor, ...]]] = [
        (lambda p: call.bsconv_packed(x, p, 8, None, 0), "bsconv_packed", (stage, product, plain[:-1], plain[:9])),
        (lambda p: call.bsconv_stage_packed(x, p, 4), "bsconv_stage_packed", (plain, product, stage[:-1])),
        (lambda p: call.pointwise_packed([x], p, 4, 0, None, 0), "pointwise_packed", (plain, product[:-1])),
    ]
    for run, name, given in refused:
        for bad in given:
            with pytest.raises(RuntimeError, match=f"{name}: packed"):
                run(bad)
    for shortcut in (torch.rand(1, 8, 5, 5), torch.rand(1, 7, 5, 6), torch.rand(1, 8, 5, 6).half()):
        with pytest.raises(RuntimeError, match="bsconv_packed: shortcut"):
            call.bsconv_packed(x, plain, 8, shortcut, 0)
    for channels, first, message in ((5, 0, "for 4 channels out"), (4, 1, "channels 1 to 9"), (4, -1, "channels -1")):
        with pytest.raises(RuntimeError, match=message):
            call.pointwise_packed([x], product, channels, first, None, 0)
    with pytest.raises(RuntimeError, match="only one of d_weight and d_bias"):
        call.bsconv_pack(*bsconv_weights(8, 8), weight(4, 8, 1, 1), None)
    with pytest.raises(fastsr.InputError, match="bsconv: shortcut has shape"):
        ops.bsconv(x, *bsconv_weights(8, 8), shortcut=x[..., 1:], packed=plain)


def test_opcheck(cpu_kernels: None) -> None:
    x = feature_map((2, 8, 5, 6), "nhwc")
    weights, distil = bsconv_weights(8, 8), (weight(4, 8, 1, 1), weight(4))
    product = ops.pack_pointwise(weight(4, 8, 1, 1), weight(4))
    for op, arguments in (
        (torch.ops.fastsr.bsconv_packed, (x, ops.pack_bsconv(*weights), 8, x, 1)),
        (torch.ops.fastsr.bsconv_stage_packed, (x, ops.pack_bsconv(*weights, *distil), 4)),
        (torch.ops.fastsr.pointwise_packed, ([x[:, :4], x[:, 4:]], product, 4, 0, None, 1)),
    ):
        torch.library.opcheck(op.default, arguments)
