"""blueprint_block: BSRN's block as one operator, against float64 and against its parts."""

from __future__ import annotations

from collections.abc import Sequence
from unittest.mock import patch

import pytest
import torch
from kernel_checks import LAYOUTS, assert_twice_rule, feature_map, results, weight
from torch import Tensor, nn

import fastsr
from fastsr import ops
from fastsr.errors import InputError
from fastsr.nn import ESDB, BSConvU, PlainESA
from fastsr.reference import BlueprintESAWeights

pytestmark = pytest.mark.usefixtures("cpu_kernels")

NAMES = ("d_weight", "d_bias", "pw_weight", "dw_weight", "dw_bias")
CCA_NAMES = ("du0_weight", "du0_bias", "du2_weight", "du2_bias", "norm_weight", "norm_bias")

# [N, C, H, W], D, E, inner channels of the ESA, and whether there is a norm: several bands and strips, partial vectors
# of every map, the smallest image
SHAPES = (
    ((1, 64, 17, 40), 32, 32, 16, False),
    ((2, 20, 16, 530), 7, 33, 5, True),
    ((1, 5, 30, 258), 3, 2, 20, False),
    ((2, 16, 19, 15), 8, 16, 16, True),
    ((1, 12, 15, 15), 6, 6, 4, False),
)
CONVOLUTIONS = 20
SMALL = ((1, 8, 15, 16), 4, 4, 4, True)


def inputs(shape: Sequence[int], d: int, e: int, f: int, norm: bool, layout: str = "nhwc") -> list[Tensor]:
    c = shape[1]
    stage, last = ((d, c, 1, 1), (d,), (c, c, 1, 1), (c, 1, 3, 3), (c,)), ((e, c, 1, 1), (e, 1, 3, 3), (e,))
    separable, hidden = ((f, f, 1, 1), (f, 1, 3, 3), (f,)), max(1, c // 4)
    esa = ((f, c, 1, 1), (f,), *separable * 4, (f, f, 1, 1), (f,), (c, f, 1, 1), (c,))
    cca = ((hidden, c, 1, 1), (hidden,), (c, hidden, 1, 1), (c,), *([(c,), (c,)] if norm else []))
    shapes = (*stage, *stage, *stage, *last, (c, 3 * d + e, 1, 1), (c,), *esa, *cca)
    return [feature_map(shape, layout), *(weight(*s, seed=i) for i, s in enumerate(shapes))]


def block(x: Tensor, *weights: Tensor, packed: Sequence[Tensor | None] = (None,) * 6) -> Tensor:
    stages = [weights[i : i + 5] for i in (0, 5, 10)]
    esa = BlueprintESAWeights._make(weights[20:38])
    return ops.blueprint_block(
        x,
        stages,  # type: ignore[arg-type]
        weights[15:18],  # type: ignore[arg-type]
        *weights[18:20],
        esa,
        *weights[38:],
        packed=packed,
    )


def packed_weights(weights: Sequence[Tensor]) -> list[Tensor]:
    stages = [ops.pack_bsconv(*weights[i + 2 : i + 5], *weights[i : i + 2]) for i in (0, 5, 10)]
    esa = ops.pack_esa(BlueprintESAWeights._make(weights[20:38]))
    packed = [*stages, ops.pack_bsconv(*weights[15:18]), ops.pack_pointwise(*weights[18:20]), esa]
    assert all(p is not None for p in packed)
    return [p for p in packed if p is not None]


def in_parts(*tensors: Tensor) -> Tensor:
    """The same without any fusion."""
    with (
        patch("fastsr.ops.blueprint_block._fuses", return_value=False),
        patch("fastsr.ops.esa_cca._may_overwrite", return_value=False),
    ):
        return block(*tensors)


@pytest.mark.parametrize("case", range(len(SHAPES)))
def test_twice_rule(cpu_isa: str, case: int) -> None:
    for layout in (LAYOUTS[case % len(LAYOUTS)], LAYOUTS[(case + 2) % len(LAYOUTS)]):
        tensors = inputs(*SHAPES[case], layout=layout)
        assert_twice_rule(block, tensors, gradients=False)


def test_gradients(cpu_isa: str) -> None:
    assert_twice_rule(block, inputs(*SHAPES[0]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", range(len(SHAPES)))
def test_gradients_are_those_of_the_operators(case: int, layout: str) -> None:
    """Called by themselves; each is held to the rule at all sizes in tests of its own."""

    def operators(x: Tensor, *weights: Tensor) -> Tensor:
        maps, r = [], x
        for i in (0, 5, 10):
            distilled, r = ops.bsconv_stage(r, *weights[i : i + 5])
            maps.append(distilled)
        maps.append(ops.bsconv(r, *weights[15:18], activation="gelu"))
        y = ops.esa(ops.pointwise(maps, *weights[18:20]), BlueprintESAWeights._make(weights[20:38]))
        return ops.cca_norm(y, x, *weights[38:])

    tensors = inputs(*SHAPES[case], layout=layout)
    for one, other in zip(results(block, tensors, "cpu"), results(operators, tensors, "cpu"), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("case", range(len(SHAPES)))
def test_bit_equal_to_its_parts(cpu_isa: str, case: int) -> None:
    tensors = inputs(*SHAPES[case])
    y = in_parts(*tensors)
    assert torch.equal(block(*tensors), y)
    assert torch.equal(block(*tensors, packed=packed_weights(tensors[1:])), y)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
def test_results_do_not_depend_on_threads(threads: int) -> None:
    """A tile that goes on from the one above it and one that begins anew compute the same."""
    before = torch.get_num_threads()
    tensors = inputs((2, 8, 61, 300), 4, 4, 4, True)
    y = in_parts(*tensors)
    try:
        torch.set_num_threads(threads)
        for _ in range(5):
            assert torch.equal(block(*tensors), y)
    finally:
        torch.set_num_threads(before)


def test_weights_that_are_not_finite_reach_the_result() -> None:
    x, *weights = inputs((1, 8, 21, 290), 4, 4, 4, False)
    for i in (16, 20, 34, 38):
        spoilt = [w.clone() for w in weights]
        spoilt[i].view(-1)[0] = torch.nan
        assert block(x, *spoilt).isnan().any(1).all(), i


def test_other_dtypes_and_stages_that_differ_take_the_parts() -> None:
    tensors = [t.bfloat16() for t in inputs((1, 16, 15, 17), 8, 8, 4, True)]
    with fastsr.backend("cpu"):
        assert torch.equal(block(*tensors), in_parts(*tensors))
    tensors = inputs((1, 16, 15, 17), 8, 8, 4, True)
    tensors[6:8] = weight(5, 16, 1, 1), weight(5)
    tensors[19] = weight(16, 8 + 5 + 8 + 8, 1, 1)
    assert torch.equal(block(*tensors), in_parts(*tensors))


def test_the_input_is_left_as_it_is() -> None:
    x, *weights = inputs(*SHAPES[3])
    before = x.clone()
    block(x, *weights)
    in_parts(x, *weights)
    assert torch.equal(x, before)


def operands(weights: Sequence[Tensor]) -> tuple[list[Tensor], tuple[object, ...]]:
    """The ESA's weights, and what follows them, as the operators take them."""
    return list(weights[20:38]), (0, *weights[38:], 1e-5)


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_opcheck(layout: str) -> None:
    x, *weights = inputs((2, 5, 15, 17), 2, 3, 4, True, layout)
    esa, rest = operands(weights)
    tests = ("test_schema", "test_faketensor")
    call = torch.ops.fastsr.blueprint_block.default
    torch.library.opcheck(call, (x, weights[:CONVOLUTIONS], esa, *rest), test_utils=tests)
    call = torch.ops.fastsr.blueprint_block_packed.default
    torch.library.opcheck(call, (x, packed_weights(weights), 4, *rest), test_utils=tests)


def test_compiles_in_one_graph() -> None:
    tensors = inputs((1, 16, 15, 19), 8, 8, 4, True)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*tensors), block(*tensors))


def test_an_empty_batch() -> None:
    assert block(*inputs((0, 8, 16, 17), 4, 4, 4, True)).shape == (0, 8, 16, 17)


def test_bad_input_is_named() -> None:
    x, *weights = inputs(*SMALL)
    stages = [tuple(weights[i : i + 5]) for i in (0, 5, 10)]
    last, c5, esa = tuple(weights[15:18]), weights[18:20], BlueprintESAWeights._make(weights[20:38])
    behind = (esa, *weights[38:])
    for i, weight_ in enumerate(weights):
        if i < 15:
            name = f"stages.{i // 5}. {NAMES[i % 5]}"
        else:
            name = f"last {NAMES[i - 13]}" if i < 18 else "c5_" if i < 20 else (*esa._fields, *CCA_NAMES)[i - 20]
        wrong = torch.cat((weight_, weight_)) if (NAMES[i % 5] != "d_weight" or i >= 15) else weight_[:, 1:]
        if i in (15, 20, 38):  # whose number of outputs is free
            wrong = weight_[:, 1:]
        with pytest.raises(InputError, match=f"blueprint_block: {name}"):
            block(x, *weights[:i], wrong, *weights[i + 1 :])
        given = [*weights[:i], wrong, *weights[i + 1 :]]
        esa_weights, rest = operands(given)
        with pytest.raises(RuntimeError):
            torch.ops.fastsr.blueprint_block(x, given[:CONVOLUTIONS], esa_weights, *rest)
    with pytest.raises(InputError, match="stages is 2 of them; pass a sequence of 3"):
        ops.blueprint_block(x, stages[:2], last, *c5, *behind)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"stages\[1\] is 4 of them; pass a sequence of 5: d_weight, "):
        ops.blueprint_block(x, [stages[0], stages[1][:4], stages[2]], last, *c5, *behind)  # type: ignore[list-item,arg-type]
    with pytest.raises(InputError, match="last is a Tensor; pass a sequence of 3: pw_weight, "):
        ops.blueprint_block(x, stages, x, *c5, *behind)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="packed is 4 of them; pass a sequence of 6"):
        ops.blueprint_block(x, stages, last, *c5, *behind, packed=(None,) * 4)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="packed holds something else than tensors"):
        ops.blueprint_block(x, stages, last, *c5, *behind, packed=("weights",) * 6)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"last dw_weight has shape \(4, 1, 5, 5\)"):
        ops.blueprint_block(x, stages, (last[0], weight(4, 1, 5, 5), last[2]), *c5, *behind)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="blueprint_block: x is 14x16 pixels; pass at least 15x15"):
        block(x[:, :, 1:], *weights)
    with pytest.raises(InputError, match="blueprint_block: weights is a tuple; pass PlainESAWeights or"):
        ops.blueprint_block(x, stages, last, *c5, tuple(esa), *weights[38:])  # type: ignore[arg-type]


def test_packed_weights_are_checked_as_others() -> None:
    x, *weights = inputs(*SMALL)
    packed = packed_weights(weights)
    with pytest.raises(InputError, match="blueprint_block: du0_weight is float64"):
        block(x, *weights[:38], weights[38].double(), *weights[39:], packed=packed)
    plain = PlainESA(8, 4).requires_grad_(False).weights()
    stages = [tuple(weights[i : i + 5]) for i in (0, 5, 10)]
    arguments = (x, stages, tuple(weights[15:18]), *weights[18:20], plain, *weights[38:])
    packed[5] = ops.pack_esa(plain)  # type: ignore[call-overload]
    assert torch.equal(ops.blueprint_block(*arguments, packed=packed), ops.blueprint_block(*arguments))


def test_the_kernel_refuses_what_does_not_fit() -> None:
    x, *weights = inputs(*SMALL)
    packed = packed_weights(weights)
    esa, rest = operands(weights)
    call = torch.ops.fastsr.blueprint_block_packed
    with pytest.raises(RuntimeError, match="5 packed weights"):
        call(x, packed[:5], 4, *rest)
    for i in range(6):
        other = packed[5 - i]
        with pytest.raises(RuntimeError, match=r"blueprint_block: (packed|part|the 1x1)"):
            call(x, [*packed[:i], other, *packed[i + 1 :]], 4, *rest)
        with pytest.raises(RuntimeError, match="blueprint_block: packed has"):
            call(x, [*packed[:i], packed[i][:-1], *packed[i + 1 :]], 4, *rest)
    fewer = packed_weights(inputs((1, 5, 15, 16), 4, 4, 4, False)[1:])
    with pytest.raises(RuntimeError, match="packed are weights for 5 channels, and x has 8"):
        call(x, [*packed[:5], fewer[5]], 4, *rest)
    with pytest.raises(RuntimeError, match="part 0 is packed from 5 to 5"):
        call(x, [*fewer[:5], packed[5]], 4, *rest)
    with pytest.raises(
        RuntimeError, match="packed are blueprint weights with 4 inner channels; pass blueprint ones with 8"
    ):
        call(x, packed, 8, *rest)
    with pytest.raises(RuntimeError, match="float32"):
        call(x.half(), packed, 4, *rest)
    with pytest.raises(RuntimeError, match="19 weights; pass 20"):
        torch.ops.fastsr.blueprint_block(x, weights[1:CONVOLUTIONS], esa, *rest)


def test_the_network_s_block() -> None:
    """Frozen, not frozen and with autograd it computes the same; a hook on a part is still called."""
    module = ESDB(16, esa_channels=4).eval()
    x = feature_map((1, 16, 20, 21), "nhwc")
    y = module(x).detach()
    seen: list[int] = []
    with torch.no_grad(), patch("fastsr.ops.blueprint_block", side_effect=ops.blueprint_block) as spy:
        torch.testing.assert_close(module(x), y)
        torch.testing.assert_close(fastsr.freeze(module)(x), y)
        assert spy.call_count == 2
        for part in (module.c4, module.esa, module.cca):
            handle = part.register_forward_hook(lambda *_: seen.append(1))
            torch.testing.assert_close(module(x), y)
            handle.remove()
        assert spy.call_count == 2 and seen == [1, 1, 1]


class Doubling(BSConvU):
    def stage(self, x: Tensor, distil: nn.Conv2d) -> tuple[Tensor, Tensor]:
        distilled, refined = super().stage(x, distil)
        return distilled, 2 * refined


class Wrapper(nn.Module):
    def __init__(self, inner: BSConvU) -> None:
        super().__init__()
        self.inner = inner

    def stage(self, x: Tensor, distil: nn.Conv2d) -> tuple[Tensor, Tensor]:
        return self.inner.stage(x, distil)


def test_parts_that_are_not_the_network_s_own_are_called() -> None:
    module, x = ESDB(16, esa_channels=4).requires_grad_(False), feature_map((1, 16, 20, 21), "nhwc")
    y, first, last = module(x), module.c2_r, module.c4
    module.c2_r = Doubling(16, 16)
    module.c2_r.load_state_dict(first.state_dict())
    assert not torch.allclose(module(x), y)
    module.c2_r = Wrapper(first)  # type: ignore[assignment]
    torch.testing.assert_close(module(x), y)
    module.c2_r = first
    last.forward = lambda x, **_: torch.zeros_like(x[:, :8])  # type: ignore[assignment,method-assign]
    assert not torch.allclose(module(x), y)
    module.c4 = BSConvU(16, 8, padding=0)
    with pytest.raises(InputError, match="maps that differ only in channels"):
        module(x)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_trace_takes_other_dtypes() -> None:
    module, x = ESDB(16, esa_channels=4).requires_grad_(False), feature_map((1, 16, 20, 21), "nhwc")
    traced = torch.jit.trace(module, x).to(torch.bfloat16)
    torch.testing.assert_close(traced(x.bfloat16()).float(), module.float()(x), rtol=0.1, atol=0.1)
