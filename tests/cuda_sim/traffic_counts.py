"""What simulated kernels do, counted (traffic.cpp): loads and stores of maps by width, and matrix products of warps."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import simulator

WIDTHS = (1, 2, 4, 8, 16)  # bytes


class Kernel(NamedTuple):
    """The counts of a kernel in one call; accesses are a thread's, products a warp's."""

    name: str
    loads: tuple[int, ...]  # by width
    stores: tuple[int, ...]
    products: int

    @property
    def accesses(self) -> int:
        return sum(self.loads) + sum(self.stores)

    @property
    def stored(self) -> int:
        """Bytes."""
        return sum(width * count for width, count in zip(WIDTHS, self.stores, strict=True))

    @property
    def wide(self) -> int:
        """Accesses of 128 bits."""
        return self.loads[-1] + self.stores[-1]


def _counts(library: ctypes.CDLL) -> list[Kernel]:
    library.fastsr_traffic_of.restype = ctypes.c_char_p
    found = []
    for i in range(library.fastsr_traffic_end()):
        counts = (ctypes.c_int64 * (2 * len(WIDTHS) + 1))()
        name = re.split(r"[<(]", library.fastsr_traffic_of(i, counts).decode())[0].split("::")[-1]
        found.append(Kernel(name, tuple(counts[: len(WIDTHS)]), tuple(counts[len(WIDTHS) : -1]), counts[-1]))
    return found


@contextmanager
def counted() -> Iterator[list[Kernel]]:
    """Within it, what simulated kernels do is counted, into the list."""
    found: list[Kernel] = []

    @contextmanager
    def count(library: ctypes.CDLL) -> Iterator[None]:
        library.fastsr_traffic_begin()
        yield
        found.extend(_counts(library))

    simulator.count = count
    try:
        yield found
    finally:
        simulator.count = None


def share(kernels: list[Kernel]) -> float:
    """Accesses of 128 bits among all of maps."""
    return sum(k.wide for k in kernels) / sum(k.accesses for k in kernels)
