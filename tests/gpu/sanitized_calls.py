"""Small calls of every CUDA operator, forward and backward, for compute-sanitizer to look at (benchmarks/sanitize.py).

What tells most comes first: blocks of the networks at their own numbers of channels, frozen and not and in training,
which start nearly every kernel that there is. Then every operator on channels that fill no vector, where what is out of
bounds is so, and on those that start the rest. Sides are odd, of more than one tile.
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

SIZE = (17, 19)
KINDS = ((torch.float16, "ieee"), (torch.bfloat16, "ieee"), (torch.float32, "tf32"), (torch.float32, "ieee"))
NETS = ("alkdnet", "mlrn", "bsrn", "rlfn")
ODD = 20  # channels; 40 bytes in 16 bits
# Channels for which there are kernels that neither the networks nor ODD start.
OTHERS = (("pixel_norm", 64), *((name, c) for name in ("pixel_norm", "cca_norm") for c in (100, 200)), ("alk_conv", 80))
INCOMPLETE = 75  # the status where the time was over before the last call

Call = tuple[str, str, Callable[[], None]]  # what it is called, the precision of float32, itself


def network(name: str, dtype: torch.dtype, device: str, accuracy: str = "default") -> Callable[[], None]:
    """Of one block, enlarging by four: not frozen, frozen, in training."""

    def run() -> None:
        net = fastsr.create_model(name, scale=4, num_block=1).eval().to(device, dtype)
        image = torch.rand(1, 3, *SIZE, device=device, dtype=dtype)
        with fastsr.backend("cuda"), fastsr.set_gelu(accuracy):
            with torch.no_grad():
                net(image)
                fastsr.freeze(net)(image)
            net(image.requires_grad_()).mean().backward()

    return run


def condensation(dtype: torch.dtype, device: str) -> Callable[[], None]:
    """Of a block that does not hand over packed weights."""

    def run() -> None:
        block = ALKDB(ODD, esa_channels=12).to(device, dtype).requires_grad_(False)
        weights, rest = block.parts()[-1]

        def image(channels: int) -> Tensor:
            return torch.rand(1, channels, *SIZE, device=device, dtype=dtype)

        with fastsr.backend("cuda"):
            ops.alk_condense(image(ODD), [image(ODD // 2) for _ in range(3)], weights, *rest)

    return run


def attentions(channels: int, dtype: torch.dtype, device: str) -> Callable[[], None]:
    """Both of a block at once, without gradients."""

    def run() -> None:
        (x, *weights), (_, shortcut, *rest) = (
            [moved(t, device) for t in build(name, (1, channels, *SIZE), "nhwc", dtype).tensors.values()]
            for name in ("esa_plain", "cca_norm")
        )
        with fastsr.backend("cuda"), torch.no_grad():
            ops.esa_cca(x, shortcut, ops.PlainESAWeights._make(weights), *rest, conv2_padding=1)

    return run


def operator(name: str, channels: int, dtype: torch.dtype, layout: str, device: str) -> Callable[[], None]:
    def run() -> None:
        case = build(name, (1, channels, *SIZE), layout, dtype)
        results(case.function, [moved(t, device) for t in case.tensors.values()], "cuda")

    return run


def calls(device: str) -> Iterator[Call]:
    kinds = [(dtype, precision, f"{str(dtype).removeprefix('torch.')} {precision}") for dtype, precision in KINDS]
    for dtype, precision, kind in kinds:
        for name in NETS:
            yield f"{name} {kind}", precision, network(name, dtype, device)
    for layout in ("nhwc", "channel_slice"):
        for dtype, precision, kind in kinds:
            for name in (*BUILDERS, *MORE):
                yield f"{name} of {ODD} {kind} {layout}", precision, operator(name, ODD, dtype, layout, device)
            if layout == "nhwc":
                yield f"alk_condense of {ODD} {kind}", precision, condensation(dtype, device)
                for channels in (ODD, 100, 200):
                    yield f"esa_cca of {channels} {kind}", precision, attentions(channels, dtype, device)
                for name, channels in OTHERS:
                    call = operator(name, channels, dtype, layout, device)
                    yield f"{name} of {channels} {kind}", precision, call
                for accuracy in ("exact", "fast"):
                    yield f"alkdnet {accuracy} {kind}", precision, network("alkdnet", dtype, device, accuracy)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--until", type=float, default=math.inf, help="time.time() from which on no call begins")
    until = parser.parse_args().until
    every = list(calls("cuda"))
    for number, (name, precision, call) in enumerate(every):
        if time.time() > until:
            print(f"{len(every) - number} of {len(every)} calls were not reached, from {name} on", flush=True)
            return INCOMPLETE
        print(name, flush=True)
        with float32_precision(precision):
            call()
        torch.cuda.synchronize()
    print(f"all {len(every)} calls were made", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
