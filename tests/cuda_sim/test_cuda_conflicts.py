"""Bank conflicts of the simulated kernels: what they add to the wavefronts of shared memory."""

from __future__ import annotations

import pytest
import torch
from network_cases import CALLS, by_kernel, counts
from test_cuda_launches import simulated_only
from traffic_counts import conflicts

pytestmark = [pytest.mark.usefixtures("cuda_kernels"), simulated_only]

MOST = 0.05  # of a kernel's wavefronts
SLACK = 0.01  # compilers join and repeat loads differently
NUMBERS = {"float16": (torch.float16, False), "TF32": (torch.float32, True)}

PACKED = "weights are packed in the order in which products read them, word by word"
COPIED = "several pixels of 32 channels or fewer are copied at once, into tiles whose pixels are apart for 64"
PAIRS = "in TF32 lanes store pairs of channels to pixels that are apart for loads of one"
REASONS = {
    "bsconv_kernel": f"{PACKED}; {COPIED}; {PAIRS}",
    "bsconv_filters_kernel": f"{PACKED}; {COPIED}; {PAIRS}",
    "bsconv_input_kernel": f"{PACKED}, in the order of memory; {COPIED}",
    "conv3x3_kernel": f"{COPIED}; in 16 bits lanes take eight channels of the staged sums each",
    "upsample_kernel": "pixels are shuffled where the staged sums are read",
    "cca_finish_kernel": "hardly any wavefronts: once a CTA, each lane takes the attention of its eight channels",
}
# Kernels above MOST, with their share.
CONFLICTS: dict[str, dict[str, dict[str, float]]] = {
    "float16": {
        "esa_cca forward": {"cca_finish_kernel": 0.355},
        "conv3x3_gelu of 64 forward": {"conv3x3_kernel": 0.077},
        "conv3x3_gelu of 3 forward": {"conv3x3_kernel": 0.055},
        "bsconv of 3 forward": {"bsconv_kernel": 0.089},
        "upsample forward": {"upsample_kernel": 0.123},
        "conv3x3_gelu of 64 backward": {"conv3x3_kernel": 0.085},
        "bsconv backward": {"bsconv_filters_kernel": 0.053, "bsconv_input_kernel": 0.064},
        "bsconv to 32 backward": {"bsconv_filters_kernel": 0.106, "bsconv_input_kernel": 0.14},
        "bsconv of 3 backward": {"bsconv_filters_kernel": 0.146, "bsconv_input_kernel": 0.095},
        "bsconv_stage backward": {"bsconv_filters_kernel": 0.088, "bsconv_input_kernel": 0.1},
        "upsample backward": {"conv3x3_kernel": 0.105},
    },
    "TF32": {
        "esa_cca forward": {"cca_finish_kernel": 0.355},
        "conv3x3_gelu of 3 forward": {"conv3x3_kernel": 0.056},
        "bsconv forward": {"bsconv_kernel": 0.088},
        "bsconv to 32 forward": {"bsconv_kernel": 0.085},
        "bsconv of 3 forward": {"bsconv_kernel": 0.184},
        "bsconv_stage forward": {"bsconv_kernel": 0.083},
        "upsample forward": {"upsample_kernel": 0.083},
        "bsconv backward": {"bsconv_filters_kernel": 0.126, "bsconv_input_kernel": 0.202},
        "bsconv to 32 backward": {"bsconv_filters_kernel": 0.162, "bsconv_input_kernel": 0.298},
        "bsconv of 3 backward": {"bsconv_filters_kernel": 0.278, "bsconv_input_kernel": 0.237},
        "bsconv_stage backward": {"bsconv_filters_kernel": 0.164, "bsconv_input_kernel": 0.266},
    },
}

calls = pytest.mark.parametrize(("name", "direction"), CALLS)
numbers = pytest.mark.parametrize("number", NUMBERS)


@numbers
@calls
def test_bank_conflicts_add_at_most_5_percent(name: str, direction: str, number: str) -> None:
    found = by_kernel(counts(name, *NUMBERS[number]).kernels(direction), conflicts)
    table = CONFLICTS[number].get(f"{name} {direction}", {})
    most = {kernel: max(MOST, table[kernel] + SLACK) if kernel in table else MOST for kernel in found}
    assert {kernel: share for kernel, share in found.items() if share > most[kernel]} == {}
    assert {kernel: found[kernel] for kernel, share in table.items() if found[kernel] < share - SLACK} == {}


def test_the_table_is_of_calls_that_there_are_and_says_why() -> None:
    assert all(set(table) <= {" ".join(call) for call in CALLS} for table in CONFLICTS.values())
    assert {kernel for table in CONFLICTS.values() for shares in table.values() for kernel in shares} == set(REASONS)


@numbers
@calls
def test_rows_of_matrices_never_conflict(name: str, direction: str, number: str) -> None:
    assert all(kernel.row_conflicts == 0 for kernel in counts(name, *NUMBERS[number]).kernels(direction))
