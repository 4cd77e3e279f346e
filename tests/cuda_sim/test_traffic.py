"""The counts themselves: kernels whose accesses and products are known (traffic_probes.cpp)."""

from __future__ import annotations

import ctypes

import pytest
import torch
from simulator import View
from traffic_counts import Kernel, probe, share

pytestmark = pytest.mark.usefixtures("host_compiler")

AS_MAP, BY_NUMBER, BY_VECTOR, IN_BACKGROUND = range(4)


def copy(how: int, step: int = 8) -> Kernel:
    """The counts of copying 32 pixels of eight channels that are `step` channels apart."""
    memory = torch.randn(2, 1, 1, 32, step).half()
    x, y = memory.permute(0, 1, 4, 2, 3)[:, :, :8]
    views = [ctypes.byref(View.of(t)) for t in (x, y)]
    beside = torch.zeros(8)
    kernel = probe("traffic_probes", "probe_copy", *views, ctypes.c_void_p(beside.data_ptr()), how)
    assert torch.equal(x, y) and kernel.name == "copy_kernel" and kernel.products == 0
    return kernel


def by_width(**counts: int) -> tuple[int, ...]:
    return tuple(counts.get(f"of_{width}", 0) for width in (1, 2, 4, 8, 16))


@pytest.mark.parametrize("how", (AS_MAP, BY_VECTOR, IN_BACKGROUND))
def test_accesses_of_128_bits(how: int) -> None:
    kernel = copy(how)
    assert kernel.loads == kernel.stores == by_width(of_16=32) and share([kernel]) == 1


@pytest.mark.parametrize(("step", "width", "accesses"), ((10, 4, 4), (9, 2, 8)))
def test_a_pixel_that_does_not_begin_on_16_bytes(step: int, width: int, accesses: int) -> None:
    kernel = copy(AS_MAP, step)
    assert kernel.loads == kernel.stores == by_width(**{f"of_{width}": 32 * accesses}) and share([kernel]) == 0


def test_numbers_that_pass_through_functions_and_memory_beside_the_maps() -> None:
    kernel = copy(BY_NUMBER)
    assert kernel.loads == kernel.stores == by_width(of_2=32 * 8) and share([kernel]) == 0


def test_products_are_those_of_warps() -> None:
    kernel = probe("traffic_probes", "probe_products")
    assert (kernel.name, kernel.products, kernel.accesses) == ("product_kernel", 2 * 2 * 3, 0)
