"""The order of CUDA C++ and Triton, from results of `fastsr bench`: the tables that fastsr/_gpu_order.py reads."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fastsr import _gpu_order
from fastsr._dispatch import OPERATORS
from fastsr._files import atomic_write
from fastsr.bench import results
from fastsr.bench.registry import parse_size
from fastsr.errors import InputError

PEERS = {"cuda": "fastsr cuda", "triton": "fastsr triton"}
CERTAIN = 1.05  # times as long as the other, as noise makes 5 % of a difference

Entry = dict[str, Any]


def run_order(files: Sequence[Path], output: Path | None = None) -> Path:
    """Write which kind of kernels goes first on the GPU that `files` are from, where they tell it.

    Of several measurements of the same call the last file's counts. A backward's time includes its forward's where both
    were measured. Calls of one operator that a table does not tell apart, such as both forms of the ESA, count by the
    sum of their times. What has less than 5 % between the two, and noisy rows, are left out.

    Args:
        files: results of `fastsr bench ops` on one architecture, with the peers "fastsr cuda" and "fastsr triton".
        output: the table; by default gpu_order/<architecture>.json in the package. It is written anew.

    Returns:
        The file that was written.

    Raises:
        InputError: a file is no result of a GPU, they are of several architectures or tell nothing, or the table cannot
            be written.
    """
    if not files:
        raise InputError("there are no results to take the order from; pass files that `fastsr bench ops` wrote")
    read = [(file, results.load(file)) for file in files]
    found = {file: result["environment"].get("capability") for file, result in read}
    for file, capability in found.items():
        if capability is None:
            raise InputError(f"{file} is no result of an NVIDIA GPU; pass files that `fastsr bench ops` wrote there")
    architectures = sorted(set(found.values()))
    if len(architectures) > 1:
        raise InputError(f"the results are of {', '.join(architectures)}; pass those of one architecture")
    entries = _entries([row for _, result in read for row in result["rows"]])
    if not entries:
        names = " and ".join(repr(name) for name in PEERS.values())
        raise InputError(f"no row of {', '.join(map(str, files))} tells {names} apart; measure both on a quiet machine")
    output = _gpu_order.FOLDER / f"{architectures[0]}.json" if output is None else output
    environments = [result["environment"] for _, result in read]
    told = [
        f"{file.name} ({e['device']}, {e['date']}, {e['commit']})" for file, e in zip(files, environments, strict=True)
    ]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(output, text(f"fastsr bench: {', '.join(told)}", entries).encode())
    except OSError as error:
        raise InputError(f"{output} cannot be written: {error.strerror or error}") from error
    return output


def _entries(rows: Sequence[Entry]) -> list[Entry]:
    """What the rows tell, one entry for each operator, precision, direction and number of pixels."""
    times: dict[str, dict[str, float]] = {}
    kept: dict[str, Entry] = {}
    for row in rows:
        known = {kind: row["peers"].get(peer, {}).get("ms") for kind, peer in PEERS.items()}
        told = row.get("operator") in OPERATORS and row["direction"] in ("forward", "backward")
        if told and not row.get("noisy") and None not in known.values():
            times[row["id"]], kept[row["id"]] = known, row
    totals: dict[tuple[Any, ...], dict[str, float]] = {}
    for key, row in kept.items():
        training = row["direction"] == "backward"
        forward = times.get(key.removesuffix("backward") + "forward", {}) if training else {}
        call = (row["operator"], row["dtype"], training, math.prod(parse_size(row["size"])))
        total = totals.setdefault(call, dict.fromkeys(PEERS, 0.0))
        for kind, ms in times[key].items():
            total[kind] += ms + forward.get(kind, 0.0)
    entries: list[Entry] = []
    for call, total in sorted(totals.items()):
        first, other = sorted(total, key=lambda kind: total[kind])
        if total[other] >= CERTAIN * total[first]:
            named = dict(zip(("operator", "precision", "training", "pixels"), call, strict=True))
            entries.append({**named, "first": first, "ratio": round(total[other] / total[first], 3)})
    return entries


def text(origin: str, entries: Sequence[Entry]) -> str:
    """A table as JSON, one entry a line."""
    rows = ",\n".join(f"    {json.dumps(entry)}" for entry in entries)
    return f'{{\n  "origin": {json.dumps(origin)},\n  "entries": [\n{rows}\n  ]\n}}\n'
