"""How things are timed: peers interleaved in one process, medians with 20th and 80th percentiles."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.cases import Case
from benchmarks.peers import PeerMissing, Run

FASTSR = "fastsr"
PAUSE = 0.05  # seconds; the thread pools of some peers spin on for a while after a run and would slow the next peer


def _flat(result: Any) -> list[torch.Tensor]:
    items = result if isinstance(result, list | tuple) else [result]
    return [torch.as_tensor(item).detach().double() for item in items]


def _differs(result: Any, expected: list[torch.Tensor], tolerance: float) -> str | None:
    got = _flat(result)
    if len(got) != len(expected):
        return f"{len(got)} results instead of {len(expected)}"
    for a, b in zip(got, expected, strict=True):
        error = (a - b).abs().max().item() / max(b.abs().max().item(), 1e-30)
        if a.shape != b.shape or not error <= tolerance:
            return f"differs from the reference by {error:.1e} of its largest value"
    return None


def compare(
    case: Case,
    peers: Mapping[str, Callable[[Case], Run]],
    expected: Run,
    seconds: float,
    tolerance: float = 1e-3,
) -> dict[str, dict[str, Any]]:
    """Time every peer on `case`.

    Each peer is built, run once and compared with `expected`; a wrong result gets no time. Then the peers take turns,
    so that a busy phase of the machine falls on all of them, until `seconds` are spent and each was timed 5 times at
    least. A turn is a pause, a run that is not timed and one that is. Gradients of an L1 loss want a wider tolerance
    than outputs: where output and target nearly meet, rounding decides the sign.

    Returns:
        Per peer: ms (median), p20, p80, runs; or `reason` for one that is missing, failed or wrong.
    """
    rows: dict[str, dict[str, Any]] = {}
    runs: dict[str, Run] = {}
    want = _flat(expected())
    for name, make in peers.items():
        try:
            run = make(case)
            run()
            problem = _differs(run(), want, tolerance)
        except PeerMissing as missing:
            rows[name] = {"reason": str(missing)}
            continue
        except Exception as error:  # a peer that breaks is a row, not the end
            rows[name] = {"reason": f"{type(error).__name__}: {str(error).splitlines()[0][:160]}"}
            continue
        if problem is None:
            runs[name] = run
        else:
            rows[name] = {"reason": problem}

    times: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    while runs and (time.perf_counter() - begin < seconds or min(map(len, times.values())) < 5):
        for name, run in runs.items():
            time.sleep(PAUSE)
            run()
            start = time.perf_counter()
            run()
            times[name].append((time.perf_counter() - start) * 1e3)
    for name, values in times.items():
        values.sort()
        rows[name] = {
            "ms": statistics.median(values),
            "p20": values[len(values) // 5],
            "p80": values[-1 - len(values) // 5],
            "runs": len(values),
        }
    return rows


def best_peer(rows: Mapping[str, Mapping[str, Any]]) -> tuple[str, float] | None:
    """The fastest peer other than fastsr and its median, or None if none ran."""
    timed = [(row["ms"], name) for name, row in rows.items() if name != FASTSR and "ms" in row]
    return (min(timed)[1], min(timed)[0]) if timed else None


def ratio(rows: Mapping[str, Mapping[str, Any]]) -> float | None:
    """How many times faster fastsr is than the best peer."""
    best = best_peer(rows)
    return best[1] / rows[FASTSR]["ms"] if best and "ms" in rows.get(FASTSR, {}) else None
