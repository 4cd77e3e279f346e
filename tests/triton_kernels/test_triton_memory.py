"""The Triton kernels read nothing that was not written, and write nothing beside their outputs."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from kernel_checks import device_of, feature_map, moved, results, weight
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.ops import ALKConvWeights, PlainESAWeights

DEVICE = device_of("triton")

Case = tuple[Callable[..., Tensor], list[Tensor]]


def conv3x3_gelu() -> Case:
    return ops.conv3x3_gelu, [feature_map((1, 5, 5, 9), "nhwc"), weight(7, 5, 3, 3), weight(7)]


def conv_mix() -> Case:
    maps = [feature_map((1, 5, 5, 9), "nhwc", seed=seed) for seed in range(2)]
    shapes = ((5, 1, 3, 3), (5,), (5, 5, 1, 1), (5,), (7, 5, 1, 1), (7,))
    return ops.conv_mix, [*maps, *(weight(*s, seed=i) for i, s in enumerate(shapes))]


def upsample() -> Case:
    inputs = [feature_map((1, 5, 5, 9), "nhwc"), weight(12, 5, 3, 3), weight(12), feature_map((1, 3, 5, 9), "nchw")]
    return lambda *tensors: ops.upsample(*tensors, scale=2, residual="bilinear"), inputs


def esa() -> Case:
    shapes = ((6, 5, 1, 1), (6,), *(((6, 6, 3, 3), (6,)) * 2), (6, 6, 1, 1), (6,), (5, 6, 1, 1), (5,))
    inputs = [feature_map((1, 5, 21, 17), "nhwc"), *(weight(*s, seed=i) for i, s in enumerate(shapes))]
    return lambda x, *weights: ops.esa(x, PlainESAWeights(*weights)), inputs


def alk_conv() -> Case:
    shapes = ((7, 5, 1, 1), (7, 1, 5, 1), (7,), (7, 1, 1, 5), (7,), (7, 1, 3, 3), (7,), (7,), (7,))
    inputs = [feature_map((1, 5, 5, 9), "nhwc"), *(weight(*s, seed=i) for i, s in enumerate(shapes))]
    return lambda x, *weights: ops.alk_conv(x, ALKConvWeights(*weights)), inputs


def cca_norm() -> Case:
    maps = [feature_map((2, 5, 5, 9), "nhwc", seed=seed) for seed in range(2)]
    shapes = ((2, 5, 1, 1), (2,), (5, 2, 1, 1), (5,), (5,), (5,))
    return ops.cca_norm, [*maps, *(weight(*s, seed=i) for i, s in enumerate(shapes))]


CASES = (conv3x3_gelu, conv_mix, upsample, esa, alk_conv, cca_norm)


@pytest.fixture
def poisoned_memory() -> Iterator[Callable[[bool], None]]:
    """Whether fresh memory holds NaN: torch's own switch, which goes with its deterministic mode."""
    before = torch.are_deterministic_algorithms_enabled()
    yield lambda on: torch.use_deterministic_algorithms(on, warn_only=True)
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_nothing_unwritten_is_read(case: Callable[[], Case], poisoned_memory: Callable[[bool], None]) -> None:
    function, inputs = case()
    inputs = [moved(t, DEVICE) for t in inputs]
    poisoned_memory(True)
    assert torch.empty(1, device=DEVICE).isnan()
    poisoned = results(function, inputs, "triton")
    poisoned_memory(False)
    for a, b in zip(poisoned, results(function, inputs, "triton"), strict=True):
        assert a.isfinite().all() and torch.equal(a, b)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_nothing_is_written_beside_the_output(case: Callable[[], Case], monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"fastsr.kernels.{case.__name__}")
    empty_map, buffers = module.empty_map, []

    def guarded(*args: Any) -> Tensor:
        like = empty_map(*args)
        size = like.numel()
        buffers.append(torch.full((3 * size,), torch.nan, dtype=like.dtype, device=like.device))
        return buffers[-1].as_strided(like.shape, like.stride(), size)

    monkeypatch.setattr(module, "empty_map", guarded)
    function, inputs = case()
    with torch.no_grad(), fastsr.backend("triton"):
        y = function(*(moved(t, DEVICE) for t in inputs))
    (buffer,) = buffers
    assert y.isfinite().all() and buffer[: y.numel()].isnan().all() and buffer[2 * y.numel() :].isnan().all()
