"""Operators called past fastsr.ops: the Triton launchers are not started on shapes that do not fit one another."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fastsr import _shapes
from fastsr._dispatch import OPERATORS
from fastsr.errors import InputError

SIZES = {"n": 2, "c": 12, "h": 16, "w": 17, "k": 3, "d": 5, "f": 4, "r": 2, "t": 7, "q": 12, "y": 32, "z": 34}
NAMES = [f"{op}{suffix}" for op in OPERATORS for suffix in ("", "_backward")]
OTHERS = {"eps": 1e-5, "activation": 1, "conv2_padding": 0, "residual": 1, "scale": 2}


def shaped(shape: str, sizes: dict[str, int]) -> Tensor:
    dtype = torch.float64 if shape == "n 2 c" else torch.float32
    return torch.empty([int(s) if s.isdecimal() else sizes[s] for s in shape.split()], dtype=dtype, device="meta")


def valid(name: str) -> dict[str, Any]:
    """Arguments of operator `name` that fit, by the names in its schema."""
    op = name.removesuffix("_backward")
    sizes = {**SIZES, "k": SIZES["c"]} if op == "alk_stage" else SIZES
    values: dict[str, Any] = {}
    for argument in getattr(torch.ops.fastsr, name).default._schema.arguments:
        if argument.name in _shapes.SHAPES[op]:
            values[argument.name] = shaped(_shapes.SHAPES[op][argument.name], sizes)
        elif argument.name == "inputs":
            values["inputs"] = [shaped("n 5 h w", sizes), shaped("n 7 h w", sizes)]
        elif argument.name == "weights":
            values["weights"] = [shaped(s, sizes) for s in _shapes._BLUEPRINT]
        else:
            values[argument.name] = OTHERS.get(argument.name, True)
    return values


def run(name: str, values: dict[str, Any]) -> None:
    _shapes.check(name.removesuffix("_backward"), name, list(values), list(values.values()))


def grown(x: Tensor, dimension: int) -> Tensor:
    return x.new_empty([size + (i == dimension) for i, size in enumerate(x.shape)])


def shapes_of(name: str) -> dict[str, list[str]]:
    """The shapes of the tensors of each argument."""
    op = name.removesuffix("_backward")
    lists = {"inputs": ["n i h w", "n j h w"], "weights": list(_shapes._BLUEPRINT)}
    return {
        argument: lists.get(argument) or [_shapes.SHAPES[op][argument]]
        for argument, value in valid(name).items()
        if isinstance(value, (Tensor, list))
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_wrong_extent_is_refused(name: str) -> None:
    values = valid(name)
    run(name, values)
    shapes = shapes_of(name)
    names = [extent for of_argument in shapes.values() for shape in of_argument for extent in shape.split()]
    for argument, of_argument in shapes.items():
        given = values[argument] if isinstance(values[argument], list) else [values[argument]]
        for i, shape in enumerate(of_argument):
            x = given[i]
            # An extent that no other has to equal may be any, such as the height of the only map.
            tied = [d for d, extent in enumerate(shape.split()) if extent.isdecimal() or names.count(extent) > 1]
            for wrong in [*(grown(x, d) for d in tied), x.unsqueeze(0), x.flatten()[:0]]:
                changed = [*given[:i], wrong, *given[i + 1 :]]
                with pytest.raises(InputError, match=rf"^{name}: "):
                    run(name, {**values, argument: changed if isinstance(values[argument], list) else wrong})


@pytest.mark.parametrize("name", NAMES)
def test_other_dtypes_are_refused(name: str) -> None:
    values = valid(name)
    for argument, value in values.items():
        if isinstance(value, Tensor) and argument != "statistics":
            with pytest.raises(InputError, match="pass float32, float16 or bfloat16"):
                run(name, {**values, argument: value.int()})


@pytest.mark.parametrize(
    ("op", "changes", "message"),
    [
        ("alk_conv", {"k": 513}, "the extent k is 513; pass at most 512"),
        ("alk_conv", {"t": 33}, "the extent t is 33; pass at most 31"),
        ("alk_conv", {"t": 4}, "pass an odd number of taps"),
        ("esa", {"f": 33}, "the extent f is 33; pass at most 32"),
        ("conv_mix", {"c": 129}, "the extent c is 129; pass at most 128"),
    ],
)
def test_limits(monkeypatch: pytest.MonkeyPatch, op: str, changes: dict[str, int], message: str) -> None:
    for key, size in changes.items():
        monkeypatch.setitem(SIZES, key, size)
    with pytest.raises(InputError, match=message):
        run(op, valid(op))


def test_a_scale_that_does_not_fit() -> None:
    with pytest.raises(InputError, match="12 channels and scale 3 do not fit"):
        run("upsample", {**valid("upsample"), "scale": 3})
