"""Tile sizes from checked-in tables: configs/<architecture>.json, or configs/default.json where there is none.

A table lists, per kernel, shapes with the tile to use for each; a call takes the nearest shape. Nothing is measured at
run time: `fastsr tune` measures and writes a table, by explicit command.
"""

from __future__ import annotations

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

from torch import Tensor

from fastsr.kernels import launch

FOLDER = Path(__file__).with_name("configs")
DEFAULT = "default"

Tile = dict[str, int]


@cache
def table(architecture: str) -> dict[str, Any]:
    """The table for `architecture`, with the default's entries for kernels that it does not list."""
    default: dict[str, Any] = json.loads((FOLDER / f"{DEFAULT}.json").read_text())
    own = FOLDER / f"{architecture}.json"
    if architecture == DEFAULT or not own.exists():
        return default
    measured = json.loads(own.read_text())
    return {**measured, "kernels": {**default["kernels"], **measured["kernels"]}}


def distance(a: dict[str, int], b: dict[str, int]) -> float:
    """How far two shapes are apart: the sum over the keys of `a` of how many doublings lie between them."""
    return sum(abs(math.log2(max(size, 1)) - math.log2(max(b[key], 1))) for key, size in a.items())


@cache
def nearest(architecture: str, kernel: str, shape: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    """The tile of the entry whose shape is nearest; of several, the first."""
    entries = table(architecture)["kernels"][kernel]
    best = min(entries, key=lambda entry: distance(entry["shape"], dict(shape)))
    return tuple(best["tile"].items())


def tile(kernel: str, x: Tensor, **shape: int) -> Tile:
    """The tile of `kernel` on the device of `x`, for the nearest listed shape: constexpr sizes and launch options."""
    return dict(nearest(launch.architecture(x), kernel, tuple(shape.items())))
