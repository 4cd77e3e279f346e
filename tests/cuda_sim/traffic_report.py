"""Prints what docs/adding-a-kernel.md says of the kernels as they run.

Shares of 128-bit accesses of maps, by operator, of whole and ragged tiles; with the argument `conflicts`, wavefronts of
shared memory by kernel and what bank conflicts add to them.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import simulator
import torch
from network_cases import CALLS, CASES, by_kernel, counts, step
from traffic_counts import Kernel, conflicts, share

SIZES = ((32, 32), (33, 35))
NUMBERS = ((torch.float16, False), (torch.float32, True), (torch.float32, False))


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def print_widths() -> None:
    print("| operator |", " | ".join(f"forward, {h}x{w} | backward, {h}x{w}" for h, w in SIZES), "|")
    print("|---|" + "---|" * 2 * len(SIZES))
    for name, case in CASES.items():
        found = [step(case, size, torch.float16) for size in SIZES]
        print(
            f"| {name} |", " | ".join(f"{percent(share(f.forward))} | {percent(share(f.backward))}" for f in found), "|"
        )


def wavefronts(kernels: list[Kernel]) -> float | None:
    return sum(kernel.wavefronts for kernel in kernels) or None


def print_conflicts() -> None:
    print("| call | kernel | float16 | | TF32 | | float32 | |")
    print("|---|---|" + "---|" * 2 * len(NUMBERS))
    for name, direction in CALLS:
        found = [counts(name, *number).kernels(direction) for number in NUMBERS]
        shares, totals = ([by_kernel(kernels, of) for kernels in found] for of in (conflicts, wavefronts))
        for kernel in shares[0]:
            columns = [
                f"{t.get(kernel, 0):.0f} | {percent(s.get(kernel))}" for s, t in zip(shares, totals, strict=True)
            ]
            print(f"| {name} {direction} | {kernel} |", " | ".join(columns), "|")


if __name__ == "__main__":
    with simulator.kernels_on_cpu():
        print_conflicts() if sys.argv[1:] == ["conflicts"] else print_widths()
