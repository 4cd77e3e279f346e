"""The tables of tile sizes as files: the form in which kernels/configs/ is checked in."""

from __future__ import annotations

import json
from typing import Any

from fastsr.tune.search import Tile, Use


def merged(kernels: dict[str, list[dict[str, Any]]], found: dict[Use, Tile]) -> dict[str, list[dict[str, Any]]]:
    """`kernels` with what was found in front: of two entries that are as near, the first is taken."""
    result = {kernel: list(entries) for kernel, entries in kernels.items()}
    for (kernel, pairs), tile in found.items():
        shape = dict(pairs)
        others = [entry for entry in result.get(kernel, []) if entry["shape"] != shape]
        result[kernel] = [{"shape": shape, "tile": tile}, *others]
    return result


def text(origin: str, kernels: dict[str, list[dict[str, Any]]]) -> str:
    """A table as JSON, one entry a line."""
    blocks = []
    for kernel, entries in kernels.items():
        rows = ",\n".join(f"      {json.dumps(entry)}" for entry in entries)
        blocks.append(f'    "{kernel}": [\n{rows}\n    ]')
    body = ",\n".join(blocks)
    return f'{{\n  "origin": {json.dumps(origin)},\n  "kernels": {{\n{body}\n  }}\n}}\n'
