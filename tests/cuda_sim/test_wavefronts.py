"""The counts of wavefronts themselves: kernels whose bank conflicts are known (wavefront_probes.cpp)."""

from __future__ import annotations

import ctypes

import pytest
import torch
from simulator import View
from traffic_counts import Kernel, probe

pytestmark = pytest.mark.usefixtures("host_compiler")

ONE_AFTER_THE_OTHER, BY_LANE, WITH_OTHER_LANES_BETWEEN, IN_BACKGROUND = range(4)


def counts(kernel: Kernel) -> tuple[int, int]:
    return kernel.wavefronts, kernel.conflicts


@pytest.mark.parametrize(
    ("width", "apart", "wavefronts", "conflicts"),
    (
        *((2, 0, 1, 0), (2, 2, 1, 0), (2, 4, 1, 0), (2, 8, 2, 1)),
        *((4, 0, 1, 0), (4, 4, 1, 0), (4, 8, 2, 1), (4, 32, 8, 7), (4, 128, 32, 31), (4, 132, 1, 0)),
        *((8, 0, 2, 0), (8, 8, 2, 0), (8, 16, 4, 2), (8, 128, 32, 30), (8, 136, 2, 0)),
        *((16, 0, 4, 0), (16, 16, 4, 0), (16, 32, 8, 4), (16, 80, 4, 0), (16, 128, 32, 28), (16, 144, 4, 0)),
    ),
)
def test_a_store_and_a_load(width: int, apart: int, wavefronts: int, conflicts: int) -> None:
    values = torch.zeros(32 * width, dtype=torch.uint8)
    kernel = probe("wavefront_probes", "probe_apart", width, ctypes.c_void_p(values.data_ptr()), apart)
    assert counts(kernel) == (2 * wavefronts, 2 * conflicts) and kernel.row_conflicts == 0


@pytest.mark.parametrize(("apart", "wavefronts", "conflicts"), ((16, 4, 0), (144, 4, 0), (32, 8, 4), (128, 32, 28)))
def test_rows_of_matrices(apart: int, wavefronts: int, conflicts: int) -> None:
    kernel = probe("wavefront_probes", "probe_rows", apart)
    assert counts(kernel) == (wavefronts, conflicts) and kernel.row_conflicts == conflicts


@pytest.mark.parametrize(
    ("how", "wavefronts", "conflicts"),
    ((ONE_AFTER_THE_OTHER, 4, 0), (BY_LANE, 8, 4), (WITH_OTHER_LANES_BETWEEN, 16, 12), (IN_BACKGROUND, 16, 12)),
)
def test_neighbours_are_one_access_where_the_compiler_joins_them(how: int, wavefronts: int, conflicts: int) -> None:
    zeros = torch.zeros(1)
    kernel = probe("wavefront_probes", "probe_four", ctypes.c_void_p(zeros.data_ptr()), how)
    assert counts(kernel) == (wavefronts, conflicts)


def test_what_lanes_do_at_different_times_is_no_conflict() -> None:
    assert counts(probe("wavefront_probes", "probe_uneven")) == (4, 0)


@pytest.mark.parametrize(("pitch", "wavefronts", "conflicts"), ((72, 16 + 16, 0), (64, 16 + 128, 112)))
def test_a_tile_whose_pixels_are_not_apart(pitch: int, wavefronts: int, conflicts: int) -> None:
    x = torch.randn(1, 64, 1, 16).half().contiguous(memory_format=torch.channels_last)
    kernel = probe("wavefront_probes", "probe_tile", ctypes.byref(View.of(x)), pitch)
    assert counts(kernel) == (wavefronts, conflicts)
    assert kernel.loads[-1] == 16 * 8
