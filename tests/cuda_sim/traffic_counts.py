"""What simulated kernels do, counted (traffic.cpp): accesses of maps by width, warps' matrix products, wavefronts."""

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
    wavefronts: int  # of shared memory
    conflicts: int  # those of them that bank conflicts add
    row_conflicts: int  # those that they add to loads of matrices

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
        counts = (ctypes.c_int64 * (2 * len(WIDTHS) + 4))()
        name = re.split(r"[<(]", library.fastsr_traffic_of(i, counts).decode())[0].split("::")[-1]
        found.append(Kernel(name, tuple(counts[: len(WIDTHS)]), tuple(counts[len(WIDTHS) : -4]), *counts[-4:]))
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


def probe(library: str, name: str, *arguments: object) -> Kernel:
    """The counts of the kernel that launcher `name` of a library of probes starts."""
    with counted() as found:
        probes = simulator.Library(library).library
        launcher = getattr(probes, name)
        launcher.restype = ctypes.c_char_p
        assert simulator.count is not None
        with simulator.count(probes):
            assert launcher(*arguments) is None
    (kernel,) = found
    return kernel


def share(kernels: list[Kernel]) -> float | None:
    """Accesses of 128 bits among all of maps, if there are any."""
    accesses = sum(k.accesses for k in kernels)
    return sum(k.wide for k in kernels) / accesses if accesses else None


def conflicts(kernels: list[Kernel]) -> float | None:
    """What bank conflicts add, among all wavefronts of shared memory, if there are any."""
    wavefronts = sum(k.wavefronts for k in kernels)
    return sum(k.conflicts for k in kernels) / wavefronts if wavefronts else None
