"""The memory that the CPU kernels keep: reused, bounded, given back; tensors in it behave like any other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest
import torch
from torch import Tensor

import fastsr
from fastsr import ops

pytestmark = pytest.mark.usefixtures("cpu_kernels")

SHAPE = (1, 64, 128, 128)  # 4 MB in float32
BYTES = 4 * 64 * 128 * 128


def conv(x: Tensor) -> Tensor:
    c = x.shape[1]
    with fastsr.backend("cpu"):
        return ops.conv3x3_gelu(x, torch.full((c, c, 3, 3), 0.01), torch.zeros(c))


def test_a_freed_map_is_kept_for_the_next() -> None:
    x = torch.rand(SHAPE).contiguous(memory_format=torch.channels_last)
    conv(x)
    fastsr.empty_cache()
    y = conv(x)
    address = y.data_ptr()
    del y
    again = conv(x.clone())
    assert again.data_ptr() == address
    assert fastsr.empty_cache() < BYTES
    del again
    assert fastsr.empty_cache() >= BYTES
    assert fastsr.empty_cache() == 0


def test_live_maps_are_never_given_away() -> None:
    x = torch.rand(SHAPE).contiguous(memory_format=torch.channels_last)
    expected = conv(x).clone()
    kept = [conv(x) for _ in range(4)]
    view = conv(x)[:, 3:7, 5:]
    fastsr.empty_cache()
    for _ in range(4):
        conv(torch.full_like(x, torch.nan))
    assert all(torch.equal(y, expected) for y in kept)
    assert torch.equal(view, expected[:, 3:7, 5:])


def test_maps_freed_by_other_threads() -> None:
    x = torch.rand(SHAPE)
    expected = conv(x)
    wrong = []

    def work() -> None:
        for _ in range(6):
            if not torch.equal(conv(x), expected):
                wrong.append(threading.get_ident())

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_kept_map_is_an_ordinary_tensor() -> None:
    y = conv(torch.rand(SHAPE).contiguous(memory_format=torch.channels_last))
    assert y.is_contiguous(memory_format=torch.channels_last) and y.untyped_storage().nbytes() == BYTES
    expected = y.clone()
    assert torch.equal(y.share_memory_(), expected)
    y.mul_(2)
    assert torch.equal(y, 2 * expected)


def run_python(code: str, cache: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FASTSR_CPU_CACHE": cache}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)


KEPT = """
import json, torch, fastsr
from fastsr import ops
x = torch.rand(1, 64, 128, 128)
y = [ops.conv3x3_gelu(x, torch.zeros(64, 64, 3, 3), torch.zeros(64)) for _ in range(3)]
del y
print(json.dumps([fastsr.empty_cache(), fastsr.info()["cpu_cache_problem"]]))
"""


@pytest.mark.parametrize(("cache", "most"), [("0", 0), ("5", 5 << 20), ("512", 512 << 20)])
def test_the_environment_bounds_what_is_kept(cache: str, most: int) -> None:
    kept, problem = json.loads(run_python(KEPT, cache).stdout)
    assert kept <= most and problem is None
    assert kept > 0 or most == 0


@pytest.mark.parametrize("cache", ["many", str(2**43), "9" * 5000])
def test_a_wrong_bound_is_named_and_the_usual_one_used(cache: str) -> None:
    kept, problem = json.loads(run_python(KEPT, cache).stdout)
    assert kept >= 3 * BYTES
    assert problem == "FASTSR_CPU_CACHE is not a whole number of megabytes from 0 to 1000000000; 512 is used"
