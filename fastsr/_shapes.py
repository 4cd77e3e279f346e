"""What the Triton launchers need of their arguments' shapes, for calls of torch.ops.fastsr that bypass fastsr.ops.

A shape is written as names and numbers, "k c 1 1": a name stands for one extent within a call, a number for itself. The
kernels address memory by these extents, so that a wrong one would read beyond a tensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastsr.errors import InputError

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
MAX_SEEN = 4096

_MAP = "n c h w"
_ALK = {
    "pw_weight": "k c 1 1",
    "lora1_weight": "k 1 t 1",
    "lora1_bias": "k",
    "lora2_weight": "k 1 1 t",
    "lora2_bias": "k",
    "small_weight": "k 1 3 3",
    "small_bias": "k",
    "norm_weight": "k",
    "norm_bias": "k",
}
_PLAIN = ("f c 1 1", "f", "f f 3 3", "f", "f f 3 3", "f", "f f 1 1", "f", "c f 1 1", "c")
_BLUEPRINT = ("f c 1 1", "f", *("f f 1 1", "f 1 3 3", "f") * 4, "f f 1 1", "f", "c f 1 1", "c")

# By operator and argument; those of the backward are the same, with the gradients of the outputs.
SHAPES: dict[str, dict[str, str]] = {
    "alk_conv": {"x": _MAP, **_ALK, "grad": "n k h w"},
    "alk_stage": {
        "x": _MAP,
        "d_weight": "d c 1 1",
        "d_bias": "d",
        **_ALK,
        "pw_weight": "c c 1 1",
        "norm_weight": "c",
        "grad_distilled": "n d h w",
        "grad_refined": _MAP,
    },
    "bsconv": {
        "x": _MAP,
        "pw_weight": "k c 1 1",
        "dw_weight": "k 1 3 3",
        "dw_bias": "k",
        "shortcut": "n k h w",
        "grad": "n k h w",
    },
    "cca_norm": {
        "x": _MAP,
        "shortcut": _MAP,
        "statistics": "n 2 c",
        "du0_weight": "r c 1 1",
        "du0_bias": "r",
        "du2_weight": "c r 1 1",
        "du2_bias": "c",
        "norm_weight": "c",
        "norm_bias": "c",
        "grad": _MAP,
    },
    "conv3x3_gelu": {"x": _MAP, "weight": "k c 3 3", "bias": "k", "shortcut": "n k h w", "grad": "n k h w"},
    "conv_mix": {
        "x": _MAP,
        "shortcut": _MAP,
        "dw_weight": "c 1 3 3",
        "dw_bias": "c",
        "pw_weight": "c c 1 1",
        "pw_bias": "c",
        "c5_weight": "k c 1 1",
        "c5_bias": "k",
        "grad": "n k h w",
    },
    "esa": {"x": _MAP, "grad": _MAP},
    "pixel_norm": {"x": _MAP, "weight": "c", "bias": "c", "grad": _MAP},
    "pointwise": {"weight": "k c 1 1", "bias": "k", "shortcut": "n k h w", "grad": "n k h w"},
    "upsample": {"x": _MAP, "weight": "q c 3 3", "bias": "q", "lr": "n k h w", "grad": "n k y z"},
}

# The largest extents: what one program holds at once, and taps that are unrolled.
LIMITS: dict[str, dict[str, int]] = {
    "alk_conv": {"k": 512, "t": 31},
    "alk_stage": {"k": 512, "t": 31},
    "conv_mix": {"c": 128},
    "esa": {"c": 128, "f": 32},
}

_seen: set[tuple[Any, ...]] = set()


def _key(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    return tuple(map(_key, value)) if isinstance(value, (list, tuple)) else value


def check(op: str, name: str, arguments: Sequence[str], values: Sequence[Any]) -> None:
    """Raise InputError unless the values of operator `name`'s arguments fit one another; `op` without "_backward"."""
    key = (name, *map(_key, values))
    if key in _seen:
        return
    given = dict(zip(arguments, values, strict=True))
    extents: dict[str, int] = {}
    first = given["inputs"][0] if op == "pointwise" else given["x"]
    if op == "pointwise":
        for i, x in enumerate(given["inputs"]):
            _fit(name, f"inputs[{i}]", x, f"n {x.shape[1] if x.dim() == 4 else 1} h w", extents, first)
        extents["c"] = sum(x.shape[1] for x in given["inputs"])
    else:
        _fit(name, "x", first, _MAP, extents, first)
    if op == "alk_stage":
        extents["k"] = extents["c"]
    for argument, value in given.items():
        if isinstance(value, Tensor) and argument in SHAPES[op]:
            _fit(name, argument, value, SHAPES[op][argument], extents, first)
    if op == "esa":
        weights = given["weights"]
        if len(weights) not in (len(_PLAIN), len(_BLUEPRINT)):
            raise InputError(f"{name}: there are {len(weights)} weights; pass {len(_PLAIN)} or {len(_BLUEPRINT)}")
        for i, shape in enumerate(_PLAIN if len(weights) == len(_PLAIN) else _BLUEPRINT):
            _fit(name, f"weights[{i}]", weights[i], shape, extents, first)
    if op == "upsample":
        scale = given["scale"]
        wanted = {"q": extents["q"] // scale**2 * scale**2, "k": extents["q"] // scale**2}
        wanted |= {"y": extents["h"] * scale, "z": extents["w"] * scale}
        for extent, size in wanted.items():
            if extents.get(extent, size) != size:
                raise InputError(f"{name}: {extents['q']} channels and scale {scale} do not fit the other shapes")
    for extent, most in LIMITS.get(op, {}).items():
        if extents[extent] > most:
            raise InputError(f"{name}: the extent {extent} is {extents[extent]}; pass at most {most}")
    if extents.get("t", 1) % 2 == 0 or not 0 <= given.get("activation", 0) <= 2:
        raise InputError(f"{name}: pass an odd number of taps and an activation of 0, 1 or 2")
    if len(_seen) < MAX_SEEN:
        _seen.add(key)


def _fit(op: str, argument: str, value: Tensor, shape: str, extents: dict[str, int], x: Tensor) -> None:
    """Raise InputError unless `value` has `shape`; binds the names in it that `extents` lacks."""
    names = shape.split()
    fits = value.dim() == len(names) and all(
        have == (int(want) if want.isdecimal() else extents.setdefault(want, have))
        for want, have in zip(names, value.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(str(extents.get(name, name)) for name in names)
        raise InputError(f"{op}: {argument} has shape {tuple(value.shape)}; pass [{wanted}]")
    if value.device != x.device or (value.dtype not in DTYPES and argument != "statistics"):
        raise InputError(
            f"{op}: {argument} is {value.dtype} on {value.device}; pass float32, float16 or bfloat16 like x"
        )
