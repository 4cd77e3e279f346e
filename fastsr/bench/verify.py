"""Nothing is timed that has not given the right result, twice: a second time after its inputs have changed in place.

The second time shows a CUDA graph that left kernels out, a result that was kept, and an export that froze its input.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from fastsr.bench.cases import Case
from fastsr.bench.peers import Runner, make_runner
from fastsr.bench.registry import Peer

SEEDS = (1, 0)  # the runner is left with the inputs of the last
_REFERENCE = Peer("reference", layout="channels_last")


def expected(case: Case, device: torch.device) -> list[list[Tensor]]:
    """Per seed, the results of the reference in float32 on the weights and maps as the case's dtype rounds them."""
    exact = dataclasses.replace(case, dtype="fp32", build=lambda: case.build().to(case.tensor_dtype).float())
    runner = make_runner(_REFERENCE, exact, device)
    return [results(runner, case, seed) for seed in SEEDS]


@lru_cache(maxsize=len(SEEDS))
def _maps(case: Case, seed: int) -> tuple[Tensor, ...]:
    """Kept for the next peer of the row: random numbers take longer than most of what a GPU makes of them."""
    return case.maps(seed)


def results(runner: Runner, case: Case, seed: int) -> list[Tensor]:
    """Writes the maps of `seed` into the runner's and returns what it makes of them."""
    with torch.no_grad():
        for x, value in zip(runner.inputs, _maps(case, seed), strict=True):
            x.copy_(value)
    with runner.context():
        runner.prepare()
        return [t.clone() for t in flat(case, runner.fetch(runner.run()))]


def flat(case: Case, result: Any) -> list[Tensor]:
    """Results as tensors to compare: outputs one by one, gradients as one vector.

    A gradient of few elements may differ by one unit of a ReLU that rounding opens or shuts.
    """
    items = [
        torch.as_tensor(t).detach() for t in (result if isinstance(result, list | tuple) else [result]) if t is not None
    ]
    return items if case.direction == "forward" else [torch.cat([t.flatten().float() for t in items])]


def difference(got: Sequence[Tensor], want: Sequence[Tensor], tolerance: float) -> str | None:
    """None if `got` is `want` to `tolerance` of its largest value, otherwise what is wrong."""
    if len(got) != len(want):
        return f"{len(got)} results instead of {len(want)}"
    for a, b in zip(got, want, strict=True):
        if a.shape != b.shape:
            return f"a result of {tuple(a.shape)} instead of {tuple(b.shape)}"
        error = (a.to(b.device, torch.float64) - b.double()).abs().max().item() if a.numel() else 0.0
        error /= max(b.abs().max().item(), 1e-30) if a.numel() else 1.0
        if not error <= tolerance:
            return f"wrong: off the reference by {error:.1e} of its largest value, {tolerance:g} is allowed"
    return None


def problem(runner: Runner, case: Case, want: Sequence[Sequence[Tensor]], tolerance: float) -> str | None:
    """Why `runner` may not be timed, or None."""
    for seed, results_wanted in zip(SEEDS, want, strict=True):
        wrong = difference(results(runner, case, seed), results_wanted, tolerance)
        if wrong is not None:
            return wrong if seed == SEEDS[0] else f"{wrong}, after its inputs changed"
    return None
