"""The weights of many ALKConvs, packed by one launch: bit for bit what each packs alone, and read where they may be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import kernel_checks as kc
import pytest
import simulator
import torch
from test_cuda_alk import weights
from test_cuda_launches import launches
from torch import Tensor, nn
from torch.nn.utils import parametrize

import fastsr
from fastsr import ops
from fastsr.nn import ALKDB, ALKConv
from fastsr.ops import ALKConvWeights, ALKPart, alk_together, pack_alk_together
from fastsr.ops.alk_condense import pack_alk_condense

pytestmark = pytest.mark.usefixtures("cuda_kernels")

FLOAT, HALF, BFLOAT = torch.float32, torch.float16, torch.bfloat16
DTYPES = (FLOAT, HALF, BFLOAT)
DEVICE = kc.device_of("cuda")
simulated_only = pytest.mark.skipif(DEVICE == "cuda", reason="it is the simulator that counts")
MOST = 40  # csrc/cuda/alk_together.h


def part(c: int, taps: int, dtype: torch.dtype, k: int | None = None, more: tuple[int, ...] = ()) -> ALKPart:
    """`more`: distilled channels; or those of a distilled map, of the condensed one and inside the ESA."""
    k = k or c
    shapes: tuple[tuple[int, ...], ...] = ()
    if len(more) == 1:
        shapes = ((more[0], c, 1, 1), (more[0],))
    elif more:
        d, outputs, inner = more
        shapes = ((outputs, 3 * d + k, 1, 1), (outputs,), (inner, outputs, 1, 1), (inner,))
    rest = (kc.weight(*shape, seed=30 + i, dtype=dtype) for i, shape in enumerate(shapes))
    moved = [kc.moved(t, DEVICE) for t in (*weights(c, k, taps, dtype), *rest)]
    return ALKConvWeights(*moved[:9]), tuple(moved[9:])


def parts_of(c: int, dtype: torch.dtype) -> list[ALKPart]:
    """Every kind, for maps of `c` channels: several taps, odd channels out."""
    stages = [part(c, taps, dtype, more=(c // 2 + 1,)) for taps in (1, 9, 13, 21, 33)]
    plain = [part(c, 3, dtype, k=k) for k in (5, 80)]
    return [*stages, *plain, part(c, 7, dtype, k=29, more=(9, 61, 12)), part(c, 9, dtype, k=16, more=(40, 33, 32))]


def alone(weights: ALKConvWeights, rest: tuple[Tensor, ...]) -> Tensor:
    packed = pack_alk_condense(weights, *rest) if len(rest) == 4 else ops.pack_alk_conv(weights, *rest)
    assert packed is not None
    return packed


def map_for(c: int, dtype: torch.dtype = FLOAT) -> Tensor:
    return kc.moved(kc.feature_map((1, c, 16, 17), "nhwc", dtype), DEVICE)


@contextmanager
def inference() -> Iterator[None]:
    with fastsr.backend("cuda"), torch.no_grad():
        yield


def assert_packs_like_each_alone(x: Tensor, parts: list[ALKPart]) -> None:
    with inference():
        found = pack_alk_together(x, parts)
        for packed, given in zip(found, parts, strict=True):
            assert packed is not None and torch.equal(packed, alone(*given))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", (3, 40, 64))
def test_packed_together_is_packed_alone(c: int, dtype: torch.dtype) -> None:
    assert_packs_like_each_alone(map_for(c, dtype), parts_of(c, dtype))


@pytest.mark.parametrize("dtype", (FLOAT, HALF), ids=str)
def test_more_parts_than_a_launch_takes(dtype: torch.dtype) -> None:
    parts = [part(12, taps, dtype, more=more) for more in ((6,), (), (6, 12, 5)) for taps in (3, 9)]
    many = [parts[i % len(parts)] for i in range(2 * MOST + 1)]
    before = simulator.launches
    with inference():
        found = pack_alk_together(map_for(12, dtype), many)
    if DEVICE != "cuda":
        assert simulator.launches - before == 3
    with inference():
        expected = [alone(*given) for given in parts]
    for i, packed in enumerate(found):
        assert packed is not None and torch.equal(packed, expected[i % len(parts)])


@simulated_only
@pytest.mark.usefixtures("threads_in_random_order")
def test_in_any_order_of_threads() -> None:
    assert_packs_like_each_alone(map_for(12), parts_of(12, FLOAT))


def test_weights_that_are_not_contiguous() -> None:
    given, rest = part(12, 9, FLOAT, more=(6,))
    strided = given._replace(pw_weight=given.pw_weight.transpose(0, 1).contiguous().transpose(0, 1))
    assert not strided.pw_weight.is_contiguous()
    with inference():
        (packed,) = pack_alk_together(map_for(12), [(strided, rest)])
        assert packed is not None and torch.equal(packed, alone(given, rest))


def test_nothing_is_packed_that_no_operator_would_read() -> None:
    x, given = map_for(12), part(12, 9, FLOAT, more=(6,))
    for_half = part(12, 9, HALF, more=(6,))
    with fastsr.backend("cuda"):
        assert pack_alk_together(x, []) == []
        assert pack_alk_together(x.clone().requires_grad_(), [given]) == [None]
        recorded = given[0]._replace(norm_bias=given[0].norm_bias.clone().requires_grad_())
        assert pack_alk_together(x, [given, (recorded, given[1])]) == [None, None]
        with torch.autocast(DEVICE, dtype=HALF):
            assert pack_alk_together(x.half(), [given]) == [None]
        assert pack_alk_together(x.half(), [given]) == [None]
        # Too many taps or channels, channels that do not fit: these are refused or left to others where they are used.
        wrong = [
            part(12, 35, FLOAT),
            part(12, 3, FLOAT, k=129),
            part(12, 11, FLOAT, more=(6, 12, 5)),
            part(13, 9, FLOAT),
        ]
        found = pack_alk_together(x, [*wrong, given, for_half])
        assert [packed is None for packed in found] == [True, True, True, True, False, True]
    with fastsr.backend("reference"):
        assert pack_alk_together(x, [given]) == [None]
    if DEVICE != "cuda":
        assert pack_alk_together(x, [given]) == [None]


def test_wrong_parts_are_named() -> None:
    given, beside = part(12, 9, FLOAT, more=(6,))
    with pytest.raises(fastsr.InputError, match="1 tensors stand beside a convolution; pass none, 2 or 4"):
        pack_alk_together(map_for(12), [(given, beside[:1])])
    with pytest.raises(fastsr.InputError, match=r"pass a tensor \[N, C, H, W\]"):
        pack_alk_together(None, [(given, beside)])  # type: ignore[arg-type]


def test_the_fake() -> None:
    with fastsr.backend("cuda"):
        for c, dtype in ((3, FLOAT), (40, HALF), (64, BFLOAT)):
            parts = [(*given, *rest) for given, rest in parts_of(c, dtype)]
            arguments = ([t for tensors in parts for t in tensors], [len(tensors) for tensors in parts])
            checks = ("test_schema", "test_faketensor")
            torch.library.opcheck(torch.ops.fastsr.alk_pack_together.default, arguments, test_utils=checks)


# ---- blocks and networks


def block_of(dtype: torch.dtype = FLOAT, channels: int = 16) -> ALKDB:
    torch.manual_seed(0)
    return ALKDB(channels, lk_size=5, esa_channels=8).to(DEVICE, dtype).requires_grad_(False)


def network_of(dtype: torch.dtype = FLOAT, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    settings = {"num_feat": 16, "esa_channels": 8, "num_block": 2} | options
    return fastsr.create_model("alkdnet", scale=2, **settings).eval().to(DEVICE, dtype)


def image(dtype: torch.dtype = FLOAT) -> Tensor:
    return kc.moved(kc.feature_map((1, 3, 16, 17), "nhwc").sigmoid().to(dtype), DEVICE)


class Calls:
    """How many parts were packed by each launch, and the operators that read them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parts: list[int] = []
        monkeypatch.setattr("fastsr.nn.together.ops.pack_alk_together", self._pack)

    def _pack(self, x: Tensor, parts: list[ALKPart]) -> list[Tensor | None]:
        packed = alk_together.pack_alk_together(x, parts)
        if any(t is not None for t in packed):
            self.parts.append(len(packed))
        return packed


def without(function: Callable[[], Tensor], monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """The result where every operator packs by itself."""
    with monkeypatch.context() as patch:
        patch.setattr("fastsr.nn.together.ops.pack_alk_together", lambda x, parts: [None] * len(parts))
        return function()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_network_computes_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, calls = network_of(dtype), image(dtype), Calls(monkeypatch)
    with inference():
        assert torch.equal(net(x), without(lambda: net(x), monkeypatch))
    assert calls.parts == [9]


def test_weights_are_packed_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, calls = network_of(), image(), Calls(monkeypatch)
    with inference():
        before = net(x)
        net.B2.c2_r.small_conv.weight.data.mul_(2)  # moves no version
        after = net(x)
        assert not torch.equal(before, after) and torch.equal(after, without(lambda: net(x), monkeypatch))
    assert calls.parts == [9, 9]


def test_weights_of_functional_call_are_packed() -> None:
    net, x = network_of(num_block=1), image()
    others = {name: 0.9 * value for name, value in net.state_dict().items()}
    with inference():
        found = torch.func.functional_call(net, others, (x,))
        net.load_state_dict(others)
        assert torch.equal(found, net(x))


def test_a_block_by_itself_packs_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    block, x, calls = block_of(), map_for(16), Calls(monkeypatch)
    with inference():
        assert torch.equal(block(x), without(lambda: block(x), monkeypatch))
    assert calls.parts == [4]


def test_with_autograd_each_packs_for_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    net, calls = network_of(num_block=1), Calls(monkeypatch)
    with fastsr.backend("cuda"):
        net(image()).sum().backward()
    assert calls.parts == [] and net.B1.c1_r.pw.weight.grad is not None
    net.requires_grad_(False)
    with fastsr.backend("cuda"):
        net(image())
    assert calls.parts == [5]


def test_a_frozen_network_packs_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    net, calls = network_of(num_block=1), Calls(monkeypatch)
    with inference():
        fastsr.freeze(net)(image())
    assert calls.parts == []


# Channels, taps, and launches of a block, not frozen and frozen: one packs the convolutions' weights, another c5's.
# c5 and conv1 are one operator up to 64 channels.
APART = ((16, 11, 10, 8), (72, 5, 11, 10))


@pytest.mark.parametrize(("channels", "taps", "unfrozen", "frozen"), APART)
def test_a_block_whose_fourth_convolution_is_on_its_own(channels: int, taps: int, unfrozen: int, frozen: int) -> None:
    torch.manual_seed(0)
    block = ALKDB(channels, lk_size=taps, esa_channels=8).to(DEVICE).requires_grad_(False)
    x = map_for(channels)
    with inference():
        counts, before = [launches(block, "forced", channels=channels)] if DEVICE != "cuda" else [unfrozen], block(x)
        block.pack()
        counts.append(launches(block, "forced", channels=channels) if DEVICE != "cuda" else frozen)
        assert torch.equal(block(x), before)
        seen: list[Tensor] = []
        block.c4.register_forward_hook(lambda module, given, y: seen.append(y))
        assert torch.equal(block(x), before) and len(seen) == 1
    assert counts == [unfrozen, frozen]
    with torch.no_grad(), fastsr.backend("reference"):
        plain, exact = block(x), block.double()(x.double())
    assert (before.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max()


def test_autocast_is_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    net, calls = network_of(num_block=1), Calls(monkeypatch)
    with inference(), torch.autocast(DEVICE, dtype=HALF):
        assert torch.equal(net(image()), without(lambda: net(image()), monkeypatch))
    assert calls.parts == []


# Where a hook sits in the first of two blocks and what is packed together then.
HOOKS = {
    "B1": [5, 4],  # the second block and c2; then the first one by itself
    "B1.esa": [5],
    "B1.c4": [5],
    "c2": [8],
}


@pytest.mark.parametrize("path", HOOKS)
def test_hooks_see_what_they_would(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x, calls = network_of(), image(), Calls(monkeypatch)
    seen: list[tuple[Any, ...]] = []
    net.get_submodule(path).register_forward_hook(
        lambda module, given, options, y: seen.append((given, options, y)), with_kwargs=True
    )
    with inference():
        y = net(x)
        assert calls.parts == HOOKS[path]
        assert torch.equal(y, without(lambda: net(x), monkeypatch))
    (given, options, output), (given_before, options_before, output_before) = seen
    assert options.keys() == options_before.keys() and len(given) == len(given_before)
    assert torch.equal(given[0], given_before[0]) and torch.equal(output, output_before)


def test_parts_of_ones_own_are_called_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(ALKDB):
        def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(x) + 1

    class OwnConv(ALKConv):
        def stage(self, x: Tensor, distil: nn.Conv2d) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            return super().stage(x, distil)

    net, x, calls = network_of(num_block=3), image(), Calls(monkeypatch)
    net.B1.__class__ = Own
    net.B2.c1_r.__class__ = OwnConv
    net.B3.forward = lambda x: ALKDB.forward(net.B3, x)
    with inference():
        assert torch.equal(net(x), without(lambda: net(x), monkeypatch))
    assert calls.parts == [1, 4, 4]  # c2, the first and the third block


def test_a_parametrization_is_looked_up_once() -> None:
    class Counted(nn.Module):
        calls = 0

        def forward(self, w: Tensor) -> Tensor:
            Counted.calls += 1
            return w

    block = block_of()
    parametrize.register_parametrization(block.c1_r.pw, "weight", Counted())
    Counted.calls = 0
    with inference():
        block(map_for(16))
    assert Counted.calls == 1


def test_a_network_compiles_in_one_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = network_of(num_block=1).requires_grad_(False), image()
    with inference():
        expected = net(x)
        torch.compiler.reset()
        graphs: list[Any] = []

        def look(graph: Any, inputs: Any) -> Any:
            graphs.append(graph)
            return graph.forward

        assert torch.equal(torch.compile(net, fullgraph=True, backend=look)(x), expected)
        assert "alk_pack_together" in graphs[0].code
        torch.compiler.reset()
        assert torch.equal(torch.compile(net, fullgraph=True, backend="aot_eager")(x), expected)
        torch.compiler.reset()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_a_trace_packs_what_it_is_given() -> None:
    net, x = network_of(num_block=1).requires_grad_(False), image()
    with inference():
        traced = torch.jit.trace(net, x, check_trace=False)
        assert "alk_pack_together" in str(traced.inlined_graph)
        net.B1.c1_r.pw.weight.data.mul_(2)
        assert torch.equal(traced(x), net(x))
