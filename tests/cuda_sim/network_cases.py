"""Every operator's call at the channels that the networks have (64 where nothing else is said), in channels_last."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import kernel_checks as kc
import simulator
import test_cuda_alk as alk
import test_cuda_alk_condense as alk_condense
import test_cuda_bsconv as bsconv
import test_cuda_bsconv_stage as bsconv_stage
import test_cuda_cca_norm as cca_norm
import test_cuda_conv3x3 as conv3x3
import test_cuda_conv_mix as conv_mix
import test_cuda_conv_mix_reduce as conv_mix_reduce
import test_cuda_esa as esa
import test_cuda_esa_cca as esa_cca
import test_cuda_pixel_norm as pixel_norm
import test_cuda_pointwise as pointwise
import test_cuda_pointwise_reduce as pointwise_reduce
import test_cuda_upsample as upsample
import torch
from torch import Tensor
from traffic_counts import Kernel, counted

import fastsr
from fastsr import ops

Size = tuple[int, int]  # H, W


class Case(NamedTuple):
    """`function` of what `tensors` makes; `trained` if it has a backward."""

    function: Callable[..., Tensor | tuple[Tensor, ...]]
    tensors: Callable[[Size, torch.dtype], list[Tensor]]
    trained: bool = True


CASES = {
    "alk_stage": Case(alk.stage, lambda size, dtype: alk.stage_inputs((1, 64, *size), 32, 9, dtype)),
    "alk_conv": Case(alk.conv(), lambda size, dtype: alk.conv_inputs((1, 64, *size), 64, 9, dtype)),
    "alk_condense": Case(
        alk_condense.condense,
        lambda size, dtype: alk_condense.inputs_of((1, 64, *size), 32, 32, 64, 16, 9, dtype),
        trained=False,
    ),
    "pixel_norm": Case(
        pixel_norm.norm,
        lambda size, dtype: [kc.feature_map((1, 64, *size), "nhwc", dtype), *pixel_norm.parameters(64, dtype)],
    ),
    "cca_norm": Case(ops.cca_norm, lambda size, dtype: cca_norm.case((1, 64, *size), dtype=dtype)),
    "esa": Case(esa.function(esa.BLUEPRINT, 1), lambda size, dtype: esa.case((1, 64, *size), 16, esa.BLUEPRINT, dtype)),
    "esa of 58": Case(esa.function(esa.PLAIN, 0), lambda size, dtype: esa.case((1, 58, *size), 16, esa.PLAIN, dtype)),
    "esa_cca": Case(
        esa_cca.function(esa.BLUEPRINT, 1),
        lambda size, dtype: esa_cca.inputs_of((1, 64, *size), 16, esa.BLUEPRINT, dtype=dtype),
        trained=False,
    ),
    "conv_mix of 64": Case(conv_mix.function(), lambda size, dtype: conv_mix.inputs((1, 64, *size), 64, dtype)),
    "conv_mix of 58": Case(conv_mix.function(), lambda size, dtype: conv_mix.inputs((1, 58, *size), 58, dtype)),
    "conv_mix_reduce of 58": Case(
        conv_mix_reduce.function(),
        lambda size, dtype: conv_mix_reduce.reducing((1, 58, *size), 58, 16, dtype),
        trained=False,
    ),
    "conv_mix_reduce of 64": Case(
        conv_mix_reduce.function(),
        lambda size, dtype: conv_mix_reduce.reducing((1, 64, *size), 64, 16, dtype),
        trained=False,
    ),
    "conv3x3_gelu of 64": Case(conv3x3.function(), lambda size, dtype: conv3x3.inputs((1, 64, *size), 64, dtype)),
    "conv3x3_gelu of 58": Case(conv3x3.function(), lambda size, dtype: conv3x3.inputs((1, 58, *size), 58, dtype)),
    "conv3x3_gelu of 52": Case(conv3x3.function(), lambda size, dtype: conv3x3.inputs((1, 52, *size), 52, dtype)),
    "conv3x3_gelu of 3": Case(
        conv3x3.function("none"), lambda size, dtype: conv3x3.inputs((1, 3, *size), 58, dtype, shortcut=False)
    ),
    "bsconv": Case(bsconv.function(), lambda size, dtype: bsconv.inputs((1, 64, *size), 64, dtype)),
    "bsconv to 32": Case(
        bsconv.function(), lambda size, dtype: bsconv.inputs((1, 64, *size), 32, dtype, shortcut=False)
    ),
    "bsconv of 3": Case(
        bsconv.function("none"), lambda size, dtype: bsconv.inputs((1, 3, *size), 64, dtype, shortcut=False)
    ),
    "bsconv_stage": Case(ops.bsconv_stage, lambda size, dtype: bsconv_stage.stage_inputs((1, 64, *size), 32, dtype)),
    "pointwise": Case(
        pointwise.function("none"), lambda size, dtype: pointwise.case((32,) * 4, 64, 1, *size, dtype=dtype)
    ),
    "pointwise of 58": Case(
        pointwise.function("none"), lambda size, dtype: pointwise.case((58,), 58, 1, *size, dtype=dtype)
    ),
    "pointwise_reduce": Case(
        pointwise_reduce.run(),
        lambda size, dtype: pointwise_reduce.reducing((32,) * 4, 64, 16, 1, *size, dtype),
        trained=False,
    ),
    "pointwise_reduce of 52": Case(
        pointwise_reduce.run(),
        lambda size, dtype: pointwise_reduce.reducing((52,), 52, 16, 1, *size, dtype),
        trained=False,
    ),
    "upsample": Case(
        upsample.function(4, "bilinear"),
        lambda size, dtype: upsample.inputs((1, 64, *size), 3, 4, "bilinear", dtype),
    ),
}


CALLS = [(name, "forward") for name in CASES] + [(name, "backward") for name, case in CASES.items() if case.trained]
WHOLE_TILES = (32, 32)  # of every kernel


class Step(NamedTuple):
    """The counts of a forward and a backward; none of the latter where there is none."""

    forward: list[Kernel]
    backward: list[Kernel]
    outputs: int  # bytes

    def kernels(self, direction: str) -> list[Kernel]:
        return self.forward if direction == "forward" else self.backward


def step(case: Case, size: Size, dtype: torch.dtype) -> Step:
    leaves = [x.requires_grad_(case.trained) for x in case.tensors(size, dtype)]
    with fastsr.backend("cuda"), counted() as found:
        y = case.function(*leaves)
        outputs, forward = (y if isinstance(y, tuple) else (y,)), len(found)
        if case.trained:
            torch.autograd.grad(outputs, leaves, [torch.ones_like(o) for o in outputs], allow_unused=True)
    return Step(found[:forward], found[forward:], sum(o.nbytes for o in outputs))


@cache
def counts(name: str, dtype: torch.dtype, tf32: bool = False) -> Step:
    simulator.tf32 = tf32
    try:
        return step(CASES[name], WHOLE_TILES, dtype)
    finally:
        simulator.tf32 = False


def by_kernel(kernels: list[Kernel], share: Callable[[list[Kernel]], float | None]) -> dict[str, float]:
    """Shares by the kernels' names; without those that there is nothing of."""
    found = {name: share([k for k in kernels if k.name == name]) for name in {k.name for k in kernels}}
    return {name: value for name, value in found.items() if value is not None}
