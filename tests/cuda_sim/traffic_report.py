"""Prints shares of 128-bit accesses of maps for docs/adding-a-kernel.md: by operator, of whole and ragged tiles."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import simulator
import torch
from network_cases import CASES, step
from traffic_counts import Kernel, share

SIZES = ((32, 32), (33, 35))


def percent(kernels: list[Kernel]) -> str:
    return f"{100 * share(kernels):.0f} %" if kernels else "-"


if __name__ == "__main__":
    print("| operator |", " | ".join(f"forward, {h}x{w} | backward, {h}x{w}" for h, w in SIZES), "|")
    print("|---|" + "---|" * 2 * len(SIZES))
    with simulator.kernels_on_cpu():
        for name, case in CASES.items():
            found = [step(case, size, torch.float16) for size in SIZES]
            print(f"| {name} |", " | ".join(f"{percent(f.forward)} | {percent(f.backward)}" for f in found), "|")
