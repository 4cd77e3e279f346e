"""Fusions for inference at real sizes, and the launches of whole networks. Needs a GPU: `pytest tests/gpu`."""

from __future__ import annotations

from collections.abc import Callable
from unittest.mock import patch

import pytest
import torch
from kernel_checks import assert_graph_replays, assert_twice_rule, feature_map, float32_precision, results, weight
from torch import Tensor, nn
from torch.nn import functional as F

import fastsr
from fastsr import _gpu_order, ops
from fastsr.nn import ALKDB
from fastsr.ops import ALKConvWeights, BlueprintESAWeights, PlainESAWeights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
SIZES = ((16, 48, 48), (1, 181, 317))  # n, h, w
Case = tuple[Callable[..., Tensor | tuple[Tensor, ...]], list[Tensor]]


def weights(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> list[Tensor]:
    return [weight(*s, seed=i, gain=0.3 if len(s) == 1 else 1.0, dtype=dtype) for i, s in enumerate(shapes)]


def esa_cca(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    n, h, w = size
    maps = [feature_map((n, 64, h, w), "nhwc", dtype, seed=seed) for seed in range(2)]
    small = [(16, 16, 1, 1), (16, 1, 3, 3), (16,)] * 4
    shapes = [(16, 64, 1, 1), (16,), *small, (16, 16, 1, 1), (16,), (64, 16, 1, 1), (64,)]
    shapes += [(4, 64, 1, 1), (4,), (64, 4, 1, 1), (64,), (64,), (64,)]

    def run(x: Tensor, shortcut: Tensor, *p: Tensor) -> Tensor:
        return ops.esa_cca(x, shortcut, BlueprintESAWeights(*p[:18]), *p[18:], conv2_padding=1)

    return run, [*maps, *weights(shapes, dtype)]


def alk_condense(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    n, h, w = size
    maps = [feature_map((n, c, h, w), "nhwc", dtype, seed=i) for i, c in enumerate((64, 32, 32, 32))]
    shapes = [(32, 64, 1, 1), (32, 1, 9, 1), (32,), (32, 1, 1, 9), (32,), (32, 1, 3, 3), (32,), (32,), (32,)]
    shapes += [(64, 128, 1, 1), (64,), (16, 64, 1, 1), (16,)]

    def run(x: Tensor, d1: Tensor, d2: Tensor, d3: Tensor, *p: Tensor) -> tuple[Tensor, Tensor]:
        y, reduced = ops.alk_condense(x, (d1, d2, d3), ALKConvWeights(*p[:9]), *p[9:])
        return y, F.conv2d(y, *p[11:]) if reduced is None else reduced

    return run, [*maps, *weights(shapes, dtype)]


def conv_mix_reduce(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    n, h, w = size
    maps = [feature_map((n, 58, h, w), "nhwc", dtype, seed=seed) for seed in range(2)]
    shapes = [(58, 1, 3, 3), (58,), (58, 58, 1, 1), (58,), (58, 58, 1, 1), (58,), (16, 58, 1, 1), (16,)]

    def run(x: Tensor, shortcut: Tensor, *p: Tensor) -> tuple[Tensor, Tensor]:
        y, reduced = ops.conv_mix_reduce(x, shortcut, *p)
        return y, F.conv2d(y, *p[6:]) if reduced is None else reduced

    return run, [*maps, *weights(shapes, dtype)]


def pointwise_reduce(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    """Packed for every call, and not packed."""
    n, h, w = size
    maps = [feature_map((n, 32, h, w), "nhwc", dtype, seed=seed) for seed in range(4)]
    shapes = [(64, 128, 1, 1), (64,), (16, 64, 1, 1), (16,)]

    def run(x1: Tensor, x2: Tensor, x3: Tensor, x4: Tensor, *p: Tensor) -> tuple[Tensor, ...]:
        found: list[Tensor] = []
        for packed in (None, ops.pack_pointwise_reduce(*p, [32] * 4)):
            y, reduced = ops.pointwise_reduce((x1, x2, x3, x4), *p, packed=packed)
            found += [y, F.conv2d(y, *p[2:]) if reduced is None else reduced]
        return tuple(found)

    return run, [*maps, *weights(shapes, dtype)]


def reduced_esa(size: tuple[int, int, int], dtype: torch.dtype) -> Case:
    """esa that begins with conv1 of its map, given in the map's dtype."""
    n, h, w = size
    shapes = [(16, 58, 1, 1), (16,), *[(16, 16, 3, 3), (16,)] * 2, (16, 16, 1, 1), (16,), (58, 16, 1, 1), (58,)]

    def run(x: Tensor, *p: Tensor) -> Tensor:
        reduced = F.conv2d(x, *p[:2]).contiguous(memory_format=torch.channels_last)
        return ops.esa(x, PlainESAWeights(*p), reduced=reduced)

    return run, [feature_map((n, 58, h, w), "nhwc", dtype), *weights(shapes, dtype)]


cases = (esa_cca, alk_condense, conv_mix_reduce, pointwise_reduce, reduced_esa)
by_case = pytest.mark.parametrize("case", cases, ids=lambda case: case.__name__)


@pytest.fixture(autouse=True)
def _needs_kernels() -> None:
    reason = fastsr.can_run("esa", "cuda", torch.empty(1, 64, 16, 16, device="cuda"))
    if reason is not None:
        pytest.skip(reason)


@by_case
@pytest.mark.parametrize("size", SIZES, ids=("patches", "image"))
@pytest.mark.parametrize(
    ("dtype", "precision"), [(FLOAT, "ieee"), (FLOAT, "tf32"), (HALF, "ieee"), (BFLOAT, "ieee")], ids=str
)
def test_twice_rule(case: Callable[..., Case], size: tuple[int, int, int], dtype: torch.dtype, precision: str) -> None:
    with float32_precision(precision):
        assert_twice_rule(*case(size, dtype), "cuda", gradients=False)


@by_case
def test_twenty_runs_are_bit_equal(case: Callable[..., Case]) -> None:
    function, inputs = case(SIZES[1], HALF)
    inputs = [t.cuda() for t in inputs]
    first = results(function, inputs, "cuda", gradients=False)
    for _ in range(19):
        again = results(function, inputs, "cuda", gradients=False)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@by_case
def test_graph_replays_on_changed_inputs(case: Callable[..., Case]) -> None:
    assert_graph_replays(*case(SIZES[1], HALF), "cuda")


def kernels_of(net: nn.Module) -> int:
    """Of what runs where nothing is forced and nothing was measured."""
    x = torch.rand(1, 3, 96, 128, device="cuda", dtype=HALF)
    with torch.no_grad(), patch.object(_gpu_order, "TABLES", {}):
        net(x)
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            net(x)
            torch.cuda.synchronize()
    return sum("Mem" not in e.name and e.device_type == torch.autograd.DeviceType.CUDA for e in profile.events())


@pytest.mark.parametrize(("name", "most"), [("alkdnet", 64), ("mlrn", 35), ("rlfn", 41), ("bsrn", 71)])
def test_launches_of_a_frozen_network(name: str, most: int) -> None:
    """As the simulator counts them, and two for the image's layout."""
    net = fastsr.freeze(fastsr.create_model(name, scale=2).cuda(), HALF)
    assert 0 < kernels_of(net) <= most


def test_launches_of_alkdnet_that_is_not_frozen() -> None:
    """The same: one launch packs all weights."""
    assert 0 < kernels_of(fastsr.create_model("alkdnet", scale=2).cuda().half().eval()) <= 66


def test_parts_that_cannot_be_packed_together_are_refused() -> None:
    parts = [[*given, *beside] for given, beside in ALKDB().cuda().parts()]
    pack, stage, last = torch.ops.fastsr.alk_pack_together, parts[0], parts[-1]
    with torch.no_grad():
        assert [packed.dtype for packed in pack([*stage, *last], [11, 13])] == [torch.uint8] * 2
        with pytest.raises(RuntimeError, match="a part has 10 tensors; pass 9, 11 or 13"):
            pack(stage[:10], [10])
        with pytest.raises(RuntimeError, match="there are 11 weights; pass as many as counts say, 24"):
            pack(stage, [11, 13])
        with pytest.raises(RuntimeError, match="parts differ in dtype"):
            pack([*stage, *(t.half() for t in last)], [11, 13])
        with pytest.raises(RuntimeError, match="a weight is not on the device of x"):
            pack([*stage[:10], stage[10].cpu()], [11])
        with pytest.raises(RuntimeError, match="d_weight has extent"):
            pack([*stage[:9], stage[9][:, :20], stage[10]], [11])
