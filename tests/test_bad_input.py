"""Wrong shapes, dtypes, devices and choices at the operators: one clear sentence each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.nn import ALKDB

Z = torch.zeros


def alk(c: int = 4, k: int = 4, size: int = 5, **changes: Tensor) -> ops.ALKConvWeights:
    w = ops.ALKConvWeights(
        Z(k, c, 1, 1), Z(k, 1, size, 1), Z(k), Z(k, 1, 1, size), Z(k), Z(k, 1, 3, 3), Z(k), Z(k), Z(k)
    )
    return w._replace(**changes)


def plain_esa(c: int = 4, f: int = 2, **changes: Tensor) -> ops.PlainESAWeights:
    w = ops.PlainESAWeights(
        Z(f, c, 1, 1), Z(f), Z(f, f, 3, 3), Z(f), Z(f, f, 3, 3), Z(f), Z(f, f, 1, 1), Z(f), Z(c, f, 1, 1), Z(c)
    )
    return w._replace(**changes)


X = Z(1, 4, 16, 16)

CASES: list[tuple[Callable[[], Any], str]] = [
    (lambda: ops.alk_conv(Z(4, 8, 8), alk()), "alk_conv: x has 3 dimensions, shape (4, 8, 8); pass [N, C, H, W]"),
    (lambda: ops.alk_conv(Z(1, 5, 8, 8), alk()), "alk_conv: pw_weight has shape (4, 4, 1, 1); pass [any, 5, 1, 1]"),
    (lambda: ops.alk_conv(X, alk(size=4)), "alk_conv: lora1_weight is a 4x1 kernel; pass odd extents"),
    (
        lambda: ops.alk_conv(X, alk(lora2_weight=Z(4, 1, 1, 7))),
        "lora2_weight has shape (4, 1, 1, 7); pass [4, 1, 1, 5]",
    ),
    (lambda: ops.alk_conv(X, alk(small_bias=Z(3))), "small_bias has shape (3,); pass [4]"),
    (lambda: ops.alk_conv(X, alk(), activation="relu"), "activation is 'relu'; pass one of none, gelu, leaky_relu"),  # type: ignore[arg-type]
    (lambda: ops.alk_conv(X, (1, 2)), "weights is a tuple; pass ALKConvWeights"),  # type: ignore[arg-type]
    (lambda: ops.alk_conv(X.int(), alk()), "x is int32; convert it to one of float32"),
    (lambda: ops.alk_conv(X.half(), alk()), "pw_weight is float32 and x float16; convert one of them, or run under"),
    (lambda: ops.alk_conv(X, alk(norm_bias=Z(4, device="meta"))), "norm_bias is on meta and x on cpu"),
    (lambda: ops.alk_stage(X, Z(2, 4, 1, 1), Z(2), alk(k=5)), "pw_weight gives 5 channels; pass 4"),
    (lambda: ops.alk_stage(X, Z(2, 3, 1, 1), Z(2), alk()), "alk_stage: d_weight has shape (2, 3, 1, 1)"),
    (lambda: ops.alk_stage(X, Z(2, 4, 1, 1), Z(3), alk()), "alk_stage: d_bias has shape (3,); pass [2]"),
    (lambda: ops.bsconv(X, Z(6, 4, 1, 1), Z(6, 2, 3, 3), Z(6)), "bsconv: dw_weight has shape (6, 2, 3, 3)"),
    (lambda: ops.bsconv(X, Z(6, 4, 1, 1), Z(6, 1, 2, 2), Z(6)), "dw_weight is a 2x2 kernel"),
    (lambda: ops.bsconv(X, Z(6, 4, 1, 1), Z(6, 1, 3, 3), Z(6), stride=0), "stride is 0 and padding 1"),
    (
        lambda: ops.bsconv(X, Z(6, 4, 1, 1), Z(6, 1, 3, 3), Z(6), shortcut=X),
        "bsconv: shortcut has shape (1, 4, 16, 16)",
    ),
    (lambda: ops.conv3x3_gelu(X, Z(5, 4, 1, 1), Z(5)), "conv3x3_gelu: weight has shape (5, 4, 1, 1)"),
    (lambda: ops.conv3x3_gelu(X, Z(5, 4, 3, 3), Z(5), shortcut=X), "conv3x3_gelu: shortcut has shape (1, 4, 16, 16)"),
    (
        lambda: ops.conv_mix(X, Z(1, 4, 16, 15), None, None, Z(4, 4, 1, 1), Z(4), Z(4, 4, 1, 1), Z(4)),
        "shortcut has shape",
    ),
    (lambda: ops.conv_mix(X, X, Z(4, 1, 3, 3), None, Z(4, 4, 1, 1), Z(4), Z(4, 4, 1, 1), Z(4)), "pass both or neither"),
    (lambda: ops.conv_mix(X, X, None, None, Z(3, 4, 1, 1), Z(3), Z(4, 4, 1, 1), Z(4)), "conv_mix: pw_weight has shape"),
    (lambda: ops.esa(X, plain_esa(), conv2_padding=2), "esa: conv2_padding is 2; pass 0 or 1"),
    (lambda: ops.esa(X, plain_esa(conv3_weight=Z(2, 2, 1, 1))), "esa: conv3_weight has shape (2, 2, 1, 1)"),
    (lambda: ops.esa(Z(1, 4, 14, 30), plain_esa()), "esa: x is 14x30 pixels; pass at least 15x15"),
    (lambda: ops.esa(X, [Z(1)]), "esa: weights is a list; pass PlainESAWeights or BlueprintESAWeights"),  # type: ignore[arg-type]
    (
        lambda: ops.cca_norm(X, Z(1, 4, 16, 15), Z(2, 4, 1, 1), Z(2), Z(4, 2, 1, 1), Z(4)),
        "cca_norm: shortcut has shape",
    ),
    (
        lambda: ops.cca_norm(X, X, Z(2, 4, 1, 1), Z(2), Z(4, 3, 1, 1), Z(4)),
        "cca_norm: du2_weight has shape (4, 3, 1, 1)",
    ),
    (
        lambda: ops.cca_norm(X, X, Z(2, 4, 1, 1), Z(2), Z(4, 2, 1, 1), Z(4), Z(4)),
        "only one of norm_weight and norm_bias",
    ),
    (lambda: ops.upsample(X, Z(12, 4, 3, 3), Z(12), None, scale=3), "scale is 3 and weight gives 12 channels"),
    (
        lambda: ops.upsample(X, Z(12, 4, 3, 3), Z(12), None, scale=2, residual="anchor"),
        "residual is 'anchor' but lr is None",
    ),
    (
        lambda: ops.upsample(X, Z(12, 4, 3, 3), Z(12), X, scale=2, residual="anchor"),
        "lr has shape (1, 4, 16, 16); pass (1, 3, 16, 16)",
    ),
    (lambda: ops.upsample(X, Z(12, 4, 3, 3), Z(12), None, scale=2, residual="nearest"), "residual is 'nearest'"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "says"), CASES, ids=[says[:48] for _, says in CASES])
def test_one_clear_sentence(call: Callable[[], Any], says: str) -> None:
    with pytest.raises(fastsr.InputError) as caught:
        call()
    message = str(caught.value)
    assert says in message
    assert "\n" not in message


def test_mixed_dtypes_are_fine_under_autocast() -> None:
    w = alk()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ops.alk_conv(X.bfloat16(), w).isfinite().all()


def _fusions() -> dict[str, tuple[Callable[..., Any], list[Any]]]:
    block = ALKDB(8, esa_channels=4).requires_grad_(False)
    x, w = torch.rand(1, 8, 16, 16), {k: torch.rand(8, *k) for k in ((8, 3, 3), (8, 1, 1), (1, 3, 3), ())}
    distil, separable = [torch.rand(4, 8, 1, 1), torch.rand(4)], [w[8, 1, 1], w[1, 3, 3], w[()]]
    fusing = [torch.rand(8, 20, 1, 1), torch.rand(8)]
    reducing = [*block.c5.parameters(), *block.esa.conv1.parameters()]
    condensing = [block.c4.weights(), *reducing]
    attentions = [block.esa.weights(), *block.cca.weights(block.pixel_norm)]
    dense, mix = [w[8, 3, 3], w[()]] * 2, [w[1, 3, 3], w[()], w[8, 1, 1], w[()], w[8, 1, 1], w[()]]
    return {
        "alk_conv": (ops.alk_conv, [x, block.c4.weights()]),
        "alk_stage": (ops.alk_stage, [x, *distil, block.c1_r.weights()]),
        "alk_condense": (ops.alk_condense, [x, [torch.rand(1, 4, 16, 16)] * 3, *condensing]),
        "blueprint_block": (ops.blueprint_block, [x, [(*distil, *separable)] * 3, separable, *fusing, *attentions]),
        "bsconv_stage": (ops.bsconv_stage, [x, *distil, *separable]),
        "conv_mix_reduce": (ops.conv_mix_reduce, [x, x, *mix, *block.esa.conv1.parameters()]),
        "esa_cca": (ops.esa_cca, [x, x, *attentions]),
        "mixer_block": (ops.mixer_block, [x, *dense, *mix]),
        "pack_bsconv": (ops.pack_bsconv, [*separable, *distil]),
        "pack_pointwise": (ops.pack_pointwise, [w[8, 1, 1], w[()]]),
        "pack_pointwise_reduce": (ops.pack_pointwise_reduce, [*reducing, [4] * 4]),
        "pointwise": (ops.pointwise, [[x], w[8, 1, 1], w[()]]),
        "pointwise_reduce": (ops.pointwise_reduce, [[x[:, :4]] * 4, *reducing]),
    }


@pytest.mark.parametrize("packed", ["abc", 5, [torch.rand(3)]])
@pytest.mark.parametrize("name", ["alk_conv", "conv3x3_gelu", "esa", "mixer_block", "pointwise"])
def test_something_else_than_packed_weights(name: str, packed: Any) -> None:
    w, b = Z(4, 4, 3, 3), Z(4)
    calls: dict[str, Callable[[Any], Any]] = {
        "alk_conv": lambda p: ops.alk_conv(X, alk(), packed=p),
        "conv3x3_gelu": lambda p: ops.conv3x3_gelu(X, w, b, packed=p),
        "esa": lambda p: ops.esa(X, plain_esa(), packed=p),
        "mixer_block": lambda p: ops.mixer_block(
            X, w, b, w, b, None, None, w[..., :1, :1], b, w[..., :1, :1], b, packed=(None, p)
        ),
        "pointwise": lambda p: ops.pointwise((X,), w[..., :1, :1], b, packed=p),
    }
    with pytest.raises(fastsr.InputError, match=f"packed is a {type(packed).__name__}; pass what"):
        calls[name](packed)


@pytest.mark.parametrize("name", ["alk_condense", "pointwise_reduce"])
def test_something_else_than_packed_weights_of_a_fusion(name: str) -> None:
    function, arguments = _fusions()[name]
    with pytest.raises(fastsr.InputError, match=f"{name}: packed is a int; pass what"):
        function(*arguments, packed=5)


def test_packed_weights_of_a_mixer_block_are_two() -> None:
    w, b = Z(4, 4, 3, 3), Z(4)
    mix = (None, None, w[..., :1, :1], b, w[..., :1, :1], b)
    for packed, got in ((5, "a int"), ((None,), "1 of them")):
        with pytest.raises(fastsr.InputError, match=f"mixer_block: packed is {got}; pass a sequence of 2"):
            ops.mixer_block(X, w, b, w, b, *mix, packed=packed)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", list(_fusions()))
def test_wrong_arguments_of_fusions_and_packing(name: str) -> None:
    function, arguments = _fusions()[name]
    function(*arguments)
    for i in range(len(arguments)):
        for wrong in (3.0, "weights", torch.rand(2, 2), None):
            with pytest.raises(fastsr.InputError) as caught:
                function(*arguments[:i], wrong, *arguments[i + 1 :])
            assert "\n" not in str(caught.value)
