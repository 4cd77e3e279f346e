"""The search of `fastsr tune` on kernels that really run, with a timer that prefers large tiles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernel_checks import device_of, feature_map, moved, weight
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.tune.search import search

pytest.importorskip("triton")
from fastsr.kernels import config

DEVICE = device_of("triton")


def test_real_kernels_run_with_the_tiles_that_are_tried() -> None:
    x, w, b = (moved(t, DEVICE) for t in (feature_map((1, 12, 5, 7), "nhwc"), weight(12), weight(12, seed=1)))
    tried: list[int] = []

    def call() -> Tensor:
        with torch.no_grad(), fastsr.backend("triton"):
            return ops.pixel_norm(x, w, b)

    def time(run: Callable[[], Any]) -> float:
        run()
        tried.append(config.tile("pixel_norm", x, channels=12)["BP"])
        return 1.0 / tried[-1]

    found = search(call, time)
    assert found[("pixel_norm", (("channels", 12),))]["BP"] == 256
    assert {64, 256} <= set(tried)
