"""Small calls of every CUDA operator, forward and backward, for compute-sanitizer to look at (benchmarks/sanitize.py).

Odd sides, and channels that fill no vector: what is out of bounds is so there.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).parents[1]))

from kernel_checks import float32_precision, moved, results
from operator_cases import BUILDERS, MORE, build
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.nn import ALKDB

SHAPE = (1, 20, 19, 21)
KINDS = ((torch.float16, "ieee"), (torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "ieee"))
NETS = ("alkdnet", "bsrn", "mlrn")  # their blocks call the fusions, frozen the ALK convolutions packed


def network(name: str, device: str) -> Callable[[], None]:
    """Of one block, not frozen and frozen, without gradients."""

    def run() -> None:
        net = fastsr.create_model(name, scale=2, num_feat=20, esa_channels=12, num_block=1).eval().to(device)
        image = torch.rand(1, 3, *SHAPE[2:], device=device)
        with fastsr.backend("cuda"), torch.no_grad():
            net(image)
            fastsr.freeze(net)(image)

    return run


def condensation(dtype: torch.dtype, device: str) -> Callable[[], None]:
    """Of a block that does not hand over packed weights."""

    def run() -> None:
        block = ALKDB(SHAPE[1], esa_channels=12).to(device, dtype).requires_grad_(False)
        weights, rest = block.parts()[-1]

        def image(channels: int) -> Tensor:
            return torch.rand(SHAPE[0], channels, *SHAPE[2:], device=device, dtype=dtype)

        with fastsr.backend("cuda"):
            ops.alk_condense(image(SHAPE[1]), [image(SHAPE[1] // 2) for _ in range(3)], weights, *rest)

    return run


def operator(name: str, dtype: torch.dtype, layout: str, device: str) -> Callable[[], None]:
    def run() -> None:
        case = build(name, SHAPE, layout, dtype)
        results(case.function, [moved(t, device) for t in case.tensors.values()], "cuda")

    return run


def calls(device: str) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """What each is called, the precision of float32, and itself."""
    for dtype, precision in KINDS:
        for name in (*BUILDERS, *MORE):
            for layout in ("nhwc", "channel_slice"):
                label = f"{name} {str(dtype).removeprefix('torch.')} {precision} {layout}"
                yield label, precision, operator(name, dtype, layout, device)
        label = f"alk_condense {str(dtype).removeprefix('torch.')} {precision}"
        yield label, precision, condensation(dtype, device)
        if dtype == torch.float32:
            for name in NETS:
                yield f"{name} {precision}", precision, network(name, device)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--until", type=float, default=math.inf, help="time.time() from which on no call begins")
    until = parser.parse_args().until
    every = list(calls("cuda"))
    for number, (name, precision, call) in enumerate(every):
        if time.time() > until:
            print(f"{len(every) - number} of {len(every)} calls were not reached, from {name} on", flush=True)
            break
        print(name, flush=True)
        with float32_precision(precision):
            call()
        torch.cuda.synchronize()
    return 0


if __name__ == "__main__":
    sys.exit(main())
