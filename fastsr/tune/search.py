"""The search for tile sizes: which candidates there are, how they are tried, which wins. Knows no GPU.

One call of an operator uses several kernels, each with a tile from the tables (kernels/config.py). Kernel by kernel,
the tile is varied in one or two sizes at a time as long as that makes the whole call faster.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

Tile = dict[str, int]
Use = tuple[str, tuple[tuple[str, int], ...]]  # a kernel and the shape that its tile was asked for
Timer = Callable[[Callable[[], Any]], float]

# The least and the largest size, per key of a tile.
LIMITS = {
    "BP": (1, 256),
    "BH": (1, 16),
    "BW": (4, 64),
    "BN": (16, 128),
    "BK": (16, 128),
    "BC": (4, 128),
    "BO": (4, 64),
    "BR": (4, 64),
    "BM": (16, 256),
    "SIZE": (4, 16),
    "STAGES": (1, 5),
    "num_stages": (1, 5),
    "num_warps": (1, 16),
}
COUNTS = ("STAGES", "num_stages")  # go up and down by one, the others by a factor of two
FORMS: dict[str, tuple[Tile, ...]] = {  # alternatives that are no matter of size
    "alk_toeplitz": ({"MOST": 0}, {"MOST": 64, "BC": 16, "num_warps": 8, "num_stages": 1}),
    "alk_toeplitz_transpose": ({"MOST": 0}, {"MOST": 64, "BC": 16, "num_warps": 8, "num_stages": 1}),
}
GAIN = 0.02  # of a call's time, at least; less is noise
MAX_STEPS = 6  # improvements of one tile
TOLERANCE = 32  # epsilons of the largest value, by which results with another tile may differ


@dataclass
class Tables:
    """The tiles that a call asks for: what it was given, and what it gets instead."""

    used: dict[Use, Tile] = field(default_factory=dict)
    instead: dict[Use, Tile] = field(default_factory=dict)


@contextmanager
def recorded_tables() -> Iterator[Tables]:
    """Within it, `Tables.used` collects the tiles of all launches and `Tables.instead` replaces them."""
    config: Any = importlib.import_module("fastsr.kernels.config")
    tables, nearest = Tables(), config.nearest

    def ask(architecture: str, kernel: str, shape: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
        use = (kernel, shape)
        tables.used.setdefault(use, dict(nearest(architecture, kernel, shape)))
        return tuple(tables.instead.get(use, tables.used[use]).items())

    with patch.object(config, "nearest", ask):
        yield tables


def candidates(kernel: str, tile: Tile) -> list[Tile]:
    """`tile` with one size changed, or with a block and the warps for it changed together; and other forms."""

    def changed(key: str, up: bool) -> int:
        if key in COUNTS:
            return tile[key] + (1 if up else -1)
        return tile[key] * 2 if up else tile[key] // 2

    found = [dict(form) for form in FORMS.get(kernel, ())]
    for up in (True, False):
        for key in tile:
            if key in LIMITS:
                found.append({**tile, key: changed(key, up)})
            if key in LIMITS and key not in (*COUNTS, "num_warps") and "num_warps" in tile:
                found.append({**tile, key: changed(key, up), "num_warps": changed("num_warps", up)})
    return [c for c in found if c != tile and all(low <= c.get(k, low) <= high for k, (low, high) in LIMITS.items())]


def tensors_of(result: Any) -> list[Tensor]:
    if isinstance(result, Tensor):
        return [result]
    return [] if result is None else [t for part in result for t in tensors_of(part)]


def agree(result: Any, expected: Any) -> bool:
    """Whether two results are the same but for rounding."""
    for a, b in zip(tensors_of(result), tensors_of(expected), strict=True):
        allowed = TOLERANCE * torch.finfo(b.dtype).eps * b.abs().amax().float() if b.numel() else 0.0
        if b.numel() and not bool((a.float() - b.float()).abs().amax() <= allowed):
            return False
    return True


def refused(error: Exception) -> bool:
    """Whether a tile is to blame for `error`: it does not compile, or asks for more than the GPU has."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TritonError", "CompilationError", "OutOfResources"}) or "PassManager" in str(error)


def search(call: Callable[[], Any], timer: Timer, log: Callable[[str], None] = lambda _: None) -> dict[Use, Tile]:
    """The tiles with which `call` is fastest, those that differ from the tables' only.

    Args:
        call: runs the kernels and returns tensors; a tile whose results differ from the tables' is not taken.
        timer: milliseconds of a call.
        log: gets a line per improvement.
    """
    better: dict[Use, Tile] = {}
    with recorded_tables() as tables:
        expected = call()
        best = timer(call)
        for use, first in list(tables.used.items()):
            tile, seen = first, [first]
            for _ in range(MAX_STEPS):
                winner = None
                for candidate in candidates(use[0], tile):
                    if candidate in seen:
                        continue
                    seen.append(candidate)
                    tables.instead[use] = candidate
                    try:
                        right = agree(call(), expected)
                        time = timer(call) if right else float("inf")
                    except Exception as error:
                        if not refused(error):
                            raise
                        continue
                    if time < best * (1 - GAIN):
                        best, winner = time, candidate
                        log(f"{use[0]} {dict(use[1])}: {candidate}, {time:.4f} ms a call")
                if winner is None:
                    break
                tile = better[use] = winner
            tables.instead[use] = tile
    return better
