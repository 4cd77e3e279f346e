"""Which of a GPU's two kinds of kernels goes first for a call, by what was measured: gpu_order/<architecture>.json.

`fastsr tune --order` writes a table from results of `fastsr bench`. It lists, per operator or fusion, the calls on
which CUDA C++ and Triton were timed: a precision, whether a backward followed, and how many pixels the map had. A call
counts as the one with the nearest number of pixels, by doublings. What a table does not list stays in the order of
`_dispatch.py`.

Tables are read when fastsr is imported, and a look into them is comparisons of plain values, so that `torch.compile`
folds the choice into guards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastsr._device import gpu_architecture

FOLDER = Path(__file__).with_name("gpu_order")
PRECISIONS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}  # beside tf32

# An operator's calls of one kind: its name, the precision, whether in training.
Kind = tuple[str, str, bool]
# Up to how many pixels which goes first, in ascending order, the last without end; and what says so.
Order = tuple[tuple[tuple[float, str], ...], str]


def parse(table: Mapping[str, Any]) -> dict[Kind, Order]:
    """The orders that a table in the form of its file gives."""
    kinds: dict[Kind, list[tuple[int, str]]] = {}
    for entry in table["entries"]:
        kind = (entry["operator"], entry["precision"], entry["training"])
        kinds.setdefault(kind, []).append((entry["pixels"], entry["first"]))
    return {kind: (_limits(sorted(points)), table["origin"]) for kind, points in kinds.items()}


def _limits(points: list[tuple[int, str]]) -> tuple[tuple[float, str], ...]:
    ends = [math.sqrt(here * there) for (here, _), (there, _) in pairwise(points)]
    return tuple((end, first) for end, (_, first) in zip([*ends, math.inf], points, strict=True))


def read(files: Iterable[Path]) -> dict[str, dict[Kind, Order]]:
    """The tables of the architectures that have one."""
    return {file.stem: parse(json.loads(file.read_text(encoding="utf-8"))) for file in files}


TABLES = read(sorted(FOLDER.glob("*.json")))


def measured(op: str, x: Tensor, tf32: bool, training: bool) -> tuple[str, str] | None:
    """What goes first for `op` on maps like `x`, and what says so; None if nothing was measured. Traceable.

    Args:
        op: an operator or a fusion.
        x: its first map.
        tf32: whether float32 is multiplied in TF32.
        training: whether autograd records the call.
    """
    precision = "tf32" if tf32 else PRECISIONS.get(x.dtype, "")
    order = TABLES.get(gpu_architecture(x), {}).get((op, precision, training))
    if order is None or x.dim() != 4:
        return None
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    for end, first in order[0]:
        if pixels <= end:
            return first, order[1]
    return None
