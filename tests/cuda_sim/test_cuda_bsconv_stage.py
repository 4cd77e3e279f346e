"""BSRN's stage in CUDA C++ against float64: simulated, or on the GPU if there is one."""

from __future__ import annotations

import sys

import kernel_checks as kc
import pytest
import simulator
import torch
from test_cuda_bsconv import DEVICE, DTYPES, FLOAT, HALF, inputs, on_device
from test_cuda_launches import Launches, simulated_only
from test_cuda_tf32 import tf32
from tf32_checks import BEND, activate, bounds, convolve
from torch import Tensor

import fastsr
from fastsr import ops
from fastsr.errors import InputError

pytestmark = pytest.mark.usefixtures("cuda_kernels")


def stage_inputs(
    shape: tuple[int, int, int, int], d: int, dtype: torch.dtype = FLOAT, layout: str = "nhwc"
) -> list[Tensor]:
    c = shape[1]
    x, *rest = inputs(shape, c, dtype, layout, shortcut=False)
    distil = [kc.weight(d, c, 1, 1, seed=7, dtype=dtype), kc.weight(d, seed=8, gain=0.3, dtype=dtype)]
    return [x, *distil, *rest]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("shape", "d"), (((1, 64, 17, 18), 32), ((2, 48, 9, 5), 24), ((1, 20, 1, 17), 7), ((1, 58, 2, 3), 64)), ids=str
)
def test_stage_is_within_twice_the_error_of_pytorch(
    shape: tuple[int, int, int, int], d: int, dtype: torch.dtype
) -> None:
    kc.assert_twice_rule(ops.bsconv_stage, stage_inputs(shape, d, dtype), "cuda")


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
@pytest.mark.parametrize("layout", kc.LAYOUTS)
def test_stage_in_every_layout(layout: str, dtype: torch.dtype) -> None:
    kc.assert_twice_rule(ops.bsconv_stage, stage_inputs((2, 22, 9, 11), 10, dtype, layout), "cuda")


def test_stage_takes_one_launch_or_its_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []
    module = sys.modules["fastsr.ops.bsconv_stage"]
    for place, name in ((module, "pointwise"), (module, "bsconv"), (module, "_call")):
        call = getattr(place, name)
        monkeypatch.setattr(place, name, lambda *a, n=name, c=call, **k: (called.append(n), c(*a, **k))[1])
    with fastsr.backend("cuda"):
        fused = ops.bsconv_stage(*on_device(stage_inputs((1, 16, 5, 6), 64)))
        assert called == ["_call"]
        parts = ops.bsconv_stage(*on_device(stage_inputs((1, 16, 5, 6), 65)))
        assert called[1:] == ["pointwise", "bsconv"]
    torch.testing.assert_close(fused[1], parts[1])


@simulated_only
def test_a_step_takes_one_launch_forward_and_three_backward() -> None:
    leaves = [t.requires_grad_() for t in stage_inputs((1, 16, 9, 17), 8)]
    with fastsr.backend("cuda"):
        with Launches() as forward:
            outputs = ops.bsconv_stage(*leaves)
        assert forward.count == 1
        cotangents = [torch.ones_like(o) for o in outputs]
        with Launches() as backward:
            torch.autograd.grad(outputs, leaves, cotangents)
    assert backward.count == 3


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
def test_repeats_are_bit_equal_whatever_the_order_of_threads(dtype: torch.dtype) -> None:
    tensors = on_device(stage_inputs((2, 40, 18, 17), 20, dtype))
    first = kc.results(ops.bsconv_stage, tensors, "cuda")
    try:
        for simulator.seed in (1, 2):
            again = kc.results(ops.bsconv_stage, tensors, "cuda")
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        simulator.seed = 0


@pytest.mark.parametrize("layout", kc.LAYOUTS[:4])
def test_gradients_in_every_layout(layout: str) -> None:
    """Whatever that of the outputs' gradients is."""
    shape = (2, 22, 9, 11)
    tensors = on_device(stage_inputs(shape, 10, HALF))
    results = []
    for kind in ("nhwc", layout):
        grads = [kc.feature_map((2, c, 9, 11), kind, HALF, seed=c) for c in (10, 22)]
        with fastsr.backend("cuda"):
            results.append(torch.ops.fastsr.bsconv_stage_backward(*on_device(grads), *tensors))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_more_tiles_than_rows_of_partial_sums() -> None:
    kc.assert_twice_rule(ops.bsconv_stage, stage_inputs((257, 8, 2, 3), 4, HALF), "cuda")


def test_float32_weights_beside_a_half_map() -> None:
    """As under autocast: gradients of the weights are float32."""
    x, *w = on_device(stage_inputs((1, 16, 6, 7), 8))
    x, w = x.half().requires_grad_(), [t.requires_grad_() for t in w]
    with fastsr.backend("cuda"), torch.autocast(DEVICE, dtype=HALF):
        outputs = ops.bsconv_stage(x, *w)
        gradients = torch.autograd.grad([y.sum() for y in outputs], (x, *w))
    assert all(t.dtype == HALF for t in (*outputs, gradients[0]))
    assert all(g.dtype == FLOAT and g.isfinite().all() for g in gradients[1:])


@pytest.mark.parametrize(("shape", "d"), (((1, 64, 9, 18), 32), ((2, 20, 5, 3), 7), ((1, 58, 4, 17), 64)), ids=str)
def test_gradients_in_tf32_are_off_by_what_rounding_the_operands_allows(
    shape: tuple[int, int, int, int], d: int
) -> None:
    leaves = [t.requires_grad_() for t in on_device(stage_inputs(shape, d))]
    grads = on_device([kc.feature_map((shape[0], c, *shape[2:]), "nhwc", seed=c) for c in (d, shape[1])])
    found = {}
    for allowed in (True, False):
        with fastsr.backend("cuda"), tf32(allowed):
            found[allowed] = torch.autograd.grad(ops.bsconv_stage(*leaves), leaves, grads)
    x, dw_, db, pw, dw, b = exact = [t.detach().cpu().double().requires_grad_() for t in leaves]
    of_d, of_r = (g.cpu().double() for g in grads)
    pre_d, pre_r = convolve(x, dw_) + db.view(1, -1, 1, 1), convolve(x, pw, dw) + b.view(1, -1, 1, 1) + x
    wanted = torch.autograd.grad((activate(pre_d, "gelu"), activate(pre_r, "gelu")), exact, (of_d, of_r))
    x, dw_, pw, dw, pre_d, pre_r = (t.detach() for t in (x, dw_, pw, dw, pre_d, pre_r))
    _, dx_d, *distil = bounds((x, dw_), pre_d, of_d, "gelu")
    of_pre, dx_r, *refined = bounds((x, pw, dw), pre_r, of_r, "gelu")
    of_shortcut = of_r.abs() * (BEND["gelu"] * of_pre + 2**-20)
    for rounded, plain, w, bound in zip(
        found[True], found[False], wanted, (dx_d + dx_r + of_shortcut, *distil, *refined), strict=True
    ):
        assert ((rounded.cpu() - w).abs() <= bound).all() and not torch.equal(rounded, plain)


@pytest.mark.parametrize("shape", [(0, 16, 4, 4), (2, 16, 0, 4)])
def test_empty_stage(shape: tuple[int, int, int, int]) -> None:
    tensors = on_device([torch.empty(shape), *stage_inputs((1, 16, 1, 1), 8)[1:]])
    distilled, refined, *gradients = kc.results(ops.bsconv_stage, tensors, "cuda")
    assert distilled.shape == (shape[0], 8, *shape[2:]) and refined.shape == shape
    assert all(g.shape == t.shape and not g.any() for g, t in zip(gradients, tensors, strict=True))


def test_opcheck_of_the_stage() -> None:
    tensors = on_device(stage_inputs((2, 10, 3, 5), 12, HALF))
    grads = [torch.randn(2, c, 3, 5, device=DEVICE, dtype=HALF) for c in (12, 10)]
    with fastsr.backend("cuda"):
        leaves = [t.detach().requires_grad_() for t in tensors]
        torch.library.opcheck(torch.ops.fastsr.bsconv_stage.default, leaves)
        torch.library.opcheck(torch.ops.fastsr.bsconv_stage_backward.default, (*grads, *tensors))


def test_second_derivatives_are_refused() -> None:
    leaves = [t.requires_grad_() for t in on_device(stage_inputs((1, 8, 3, 4), 4))]
    with fastsr.backend("cuda"):
        y = sum(o.sum() for o in ops.bsconv_stage(*leaves))
        (dx,) = torch.autograd.grad(y, leaves[0], create_graph=True)
        with pytest.raises(InputError, match="bsconv_stage: the fused backward cannot be differentiated"):
            dx.sum().backward()


@pytest.mark.parametrize("trained", (False, True), ids=("inference", "training"))
def test_stage_compiles_without_breaks(trained: bool) -> None:
    tensors = [t.requires_grad_(trained) for t in on_device(stage_inputs((1, 16, 5, 6), 8))]
    with fastsr.backend("cuda"):
        compiled = torch.compile(ops.bsconv_stage, fullgraph=True, backend="aot_eager")
        results = []
        for run in (compiled, ops.bsconv_stage):
            outputs = run(*tensors)
            gradients = torch.autograd.grad([y.sum() for y in outputs], tensors) if trained else ()
            results.append((*outputs, *gradients))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
