"""One call of every operator with kernels, for tests that ask the same of all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from kernel_checks import feature_map, weight
from torch import Tensor

from fastsr import ops
from fastsr.ops import ALKConvWeights, BlueprintESAWeights, PlainESAWeights

Result = Tensor | tuple[Tensor, ...]


class Case(NamedTuple):
    """A call: `function(*tensors.values())`; `maps` names the tensors that are feature maps, the others are weights."""

    function: Callable[..., Result]
    tensors: dict[str, Tensor]
    maps: tuple[str, ...]


Build = Callable[[int, int, int, int, str, torch.dtype], Case]


def _vector(size: int, seed: int, dtype: torch.dtype) -> Tensor:
    return weight(size, seed=seed, gain=0.3, dtype=dtype)


def _alk_weights(c: int, k: int, dtype: torch.dtype, taps: int = 9) -> dict[str, Tensor]:
    shapes = ((k, c, 1, 1), (k, 1, taps, 1), (k,), (k, 1, 1, taps), (k,), (k, 1, 3, 3), (k,), (k,), (k,))
    return {
        name: weight(*shape, seed=i, dtype=dtype)
        for i, (name, shape) in enumerate(zip(ALKConvWeights._fields, shapes, strict=True))
    }


def _alk_conv(n: int, c: int, h: int, w: int, layout: str, dtype: torch.dtype) -> Case:
    tensors = {"x": feature_map((n, c, h, w), layout, dtype), **_alk_weights(c, c + 1, dtype)}
    return Case(lambda x, *weights: ops.alk_conv(x, ALKConvWeights._make(weights)), tensors, ("x",))


def _alk_stage(n: int, c: int, h: int, w: int, layout: str, dtype: torch.dtype, taps: int = 9) -> Case:
    tensors = {
        "x": feature_map((n, c, h, w), layout, dtype),
        "d_weight": weight(c // 2 + 1, c, 1, 1, seed=20, dtype=dtype),
        "d_bias": _vector(c // 2 + 1, 21, dtype),
        **_alk_weights(c, c, dtype, taps),
    }
    return Case(lambda x, d, b, *weights: ops.alk_stage(x, d, b, ALKConvWeights._make(weights)), tensors, ("x",))


def _bsconv(n: int, c: int, h: int, w: int, layout: str, dtype: torch.dtype) -> Case:
    tensors = {
        "x": feature_map((n, c, h, w), layout, dtype),
        "pw_weight": weight(c, c, 1, 1, seed=0, dtype=dtype),
        "dw_weight": weight(c, 1, 3, 3, seed=1, dtype=dtype),
        "dw_bias": _vector(c, 2, dtype),
        "shortcut": feature_map((n, c, h, w), layout, dtype, seed=1),
    }
    return Case(
        lambda x, pw, dw, b, shortcut: ops.bsconv(x, pw, dw, b, shortcut=shortcut, activation="gelu"),
        tensors,
        ("x", "shortcut"),
    )


def _bsconv_stage(n: int, c: int, h: int, w: int, layout: str, dtype: torch.dtype) -> Case:
    x, *separable, _ = _bsconv(n, c, h, w, layout, dtype).tensors.items()
    distil = {
        "d_weight": weight(c // 2 + 1, c, 1, 1, seed=20, dtype=dtype),
        "d_bias": _vector(c // 2 + 1, 21, dtype),
    }
    return Case(ops.bsconv_stage, dict([x]) | distil | dict(separable), ("x",))


def _cca_norm(n: int, c: int, h: int, w: int, layout: str, dtype: torch.dtype) -> Case:
    squeezed = max(c // 16, 1)
    tensors = {
        "x": feature_map((n, c, h, w), layout, dtype),
        "shortcut": feature_map((n, c, h, w), layout, dtype, seed=1),
        "du0_weight": weight(squeezed, c, 1, 1, seed=0, dtype=dtype),
        "du0_bias": torch.full((squeezed,), 0.5, dtype=dtype),  # keeps the ReLU open, or nothing would depend on du0
        "du2_weight": weight(c, squeezed, 1, 1, seed=2, dtype=dtype),
        "du2_bias": _vector(c, 3, dtype),
        "norm_weight": _vector(c, 4, dtype),
        "norm_bias": _vector(c, 5, dtype),
    }
    return Case(ops.cca_norm, tensors, ("x", "shortcut"))


def _conv3x3_gelu(n: int, c: int, h: int, w: int, layout: str, dtype: torch.dtype) -> Case:
    tensors = {
        "x": feature_map((n, c, h, w), layout, dtype),
        "weight": weight(c, c, 3, 3, seed=0, dtype=dtype),
        "bias": _vector(c, 1, dtype),
        "shortcut": feature_map((n, c, h, w), layout, dtype, seed=1),
    }
    return Case(
        lambda x, k, b, shortcut: ops.conv3x3_gelu(x, k, b, shortcut=shortcut),
        tensors,
        ("x", "shortcut"),
    )


def _conv_mix(n: int, c: int, h: int, w: int, layout: str, dtype: torch.dtype) -> Case:
    tensors = {
        "x": feature_map((n, c, h, w), layout, dtype),
        "shortcut": feature_map((n, c, h, w), layout, dtype, seed=1),
        "dw_weight": weight(c, 1, 3, 3, seed=0, dtype=dtype),
        "dw_bias": _vector(c, 1, dtype),
        "pw_weight": weight(c, c, 1, 1, seed=2, dtype=dtype),
        "pw_bias": _vector(c, 3, dtype),
        "c5_weight": weight(c, c, 1, 1, seed=4, dtype=dtype),
        "c5_bias": _vector(c, 5, dtype),
    }
    return Case(ops.conv_mix, tensors, ("x", "shortcut"))


def _esa_shape(name: str, c: int, f: int) -> tuple[int, ...]:
    if name.endswith("bias"):
        return (c if name == "conv4_bias" else f,)
    if name in ("conv1_weight", "conv4_weight"):
        return (f, c, 1, 1) if name == "conv1_weight" else (c, f, 1, 1)
    if "_dw_" in name:
        return (f, 1, 3, 3)
    return (f, f, 1, 1) if "_pw_" in name or name == "conv_f_weight" else (f, f, 3, 3)


def _esa(form: type[PlainESAWeights] | type[BlueprintESAWeights]) -> Build:
    def build(n: int, c: int, h: int, w: int, layout: str, dtype: torch.dtype) -> Case:
        weights = {
            name: weight(*_esa_shape(name, c, 12), seed=i, gain=0.3 if name.endswith("bias") else 1.0, dtype=dtype)
            for i, name in enumerate(form._fields)
        }
        tensors = {"x": feature_map((n, c, h, w), layout, dtype), **weights}
        return Case(lambda x, *values: ops.esa(x, form._make(values), conv2_padding=1), tensors, ("x",))

    return build


def _pixel_norm(n: int, c: int, h: int, w: int, layout: str, dtype: torch.dtype) -> Case:
    tensors = {
        "x": feature_map((n, c, h, w), layout, dtype),
        "weight": _vector(c, 0, dtype),
        "bias": _vector(c, 1, dtype),
    }
    return Case(ops.pixel_norm, tensors, ("x",))


def _pointwise(n: int, c: int, h: int, w: int, layout: str, dtype: torch.dtype) -> Case:
    tensors = {
        "x": feature_map((n, c, h, w), layout, dtype),
        "other": feature_map((n, 5, h, w), layout, dtype, seed=1),
        "weight": weight(c, c + 5, 1, 1, seed=0, dtype=dtype),
        "bias": _vector(c, 1, dtype),
    }
    return Case(
        lambda x, other, k, b: ops.pointwise((x, other), k, b, activation="gelu"),
        tensors,
        ("x", "other"),
    )


def _upsample(n: int, c: int, h: int, w: int, layout: str, dtype: torch.dtype) -> Case:
    tensors = {
        "x": feature_map((n, c, h, w), layout, dtype),
        "weight": weight(12, c, 3, 3, seed=0, dtype=dtype),
        "bias": _vector(12, 1, dtype),
        "lr": feature_map((n, 3, h, w), layout, dtype, seed=1),
    }
    return Case(
        lambda x, k, b, lr: ops.upsample(x, k, b, lr, scale=2, residual="bilinear"),
        tensors,
        ("x", "lr"),
    )


BUILDERS: dict[str, Build] = {
    "alk_conv": _alk_conv,
    "alk_stage": _alk_stage,
    "bsconv": _bsconv,
    "cca_norm": _cca_norm,
    "conv3x3_gelu": _conv3x3_gelu,
    "conv_mix": _conv_mix,
    "esa_blueprint": _esa(BlueprintESAWeights),
    "esa_plain": _esa(PlainESAWeights),
    "pixel_norm": _pixel_norm,
    "pointwise": _pointwise,
    "upsample": _upsample,
}


def _itself(name: str, *numbers: float) -> Build:
    """`torch.ops.fastsr.<name>`, past `fastsr.ops`."""

    def case(n: int, c: int, h: int, w: int, layout: str, dtype: torch.dtype) -> Case:
        operator = getattr(torch.ops.fastsr, name)
        return BUILDERS[name](n, c, h, w, layout, dtype)._replace(function=lambda *t: operator(*t, *numbers))

    return case


# With kernels that the calls above do not reach: a fusion's, those that training replaces by kept weights, and those of
# larger filters.
MORE: dict[str, Build] = {
    "bsconv_stage": _bsconv_stage,
    "alk_conv_itself": _itself("alk_conv", 1e-6, 0),
    "alk_stage_itself": _itself("alk_stage", 1e-6),
    **{f"alk_stage_{taps}": functools.partial(_alk_stage, taps=taps) for taps in (13, 21, 31)},
}


def build(
    name: str,
    shape: tuple[int, int, int, int] = (1, 16, 24, 27),
    layout: str = "nhwc",
    dtype: torch.dtype = torch.float32,
) -> Case:
    """The call `name` on maps of `shape`."""
    return (BUILDERS | MORE)[name](*shape, layout, dtype)
