"""Which of a GPU's two kinds of kernels the operators, fusions and blocks call, by table and by size. Without a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import operator_cases
import pytest
import torch
from kernel_checks import feature_map, weight
from pretended_gpu import order, recorded
from torch import Tensor, nn

import fastsr
from fastsr import _cuda, _device, _dispatch, _gpu_order, ops
from fastsr.nn import ALKDB, ESDB, MLRB, RLFB

by_case = pytest.mark.parametrize("name", operator_cases.BUILDERS)


@pytest.fixture
def calls() -> Iterator[list[str]]:
    with recorded() as found:
        yield found


def operator_of(name: str) -> str:
    return name.removesuffix("_blueprint").removesuffix("_plain")


def step(name: str, compiled: bool = False, shape: tuple[int, int, int, int] = (1, 8, 24, 27)) -> None:
    """A forward and a backward, of which both the maps and the weights are recorded."""
    function, tensors, _ = operator_cases.build(name, shape)
    leaves = [t.requires_grad_() for t in tensors.values()]
    if compiled:
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    found = function(*leaves)
    outputs = found if isinstance(found, tuple) else (found,)
    torch.autograd.grad(outputs, leaves, [torch.ones_like(y) for y in outputs], allow_unused=True)


@by_case
@pytest.mark.parametrize("first", ("cuda triton", "triton cuda"))
def test_forward_and_backward_take_what_the_table_says(calls: list[str], name: str, first: str) -> None:
    """Of training one thing, of inference the other."""
    op, (inference, training) = operator_of(name), first.split()
    with order(**{op: first}):
        function, tensors, _ = operator_cases.build(name, (1, 8, 24, 27))
        function(*tensors.values())
        assert calls == [f"{op}.{inference}"]
        calls.clear()
        step(name)
    kept = training == "cuda" and op in ("alk_conv", "alk_stage")
    forward, backward = (f"{op}_kept", f"{op}_kept_backward") if kept else (op, f"{op}_backward")
    assert calls == [forward, backward] if kept else [f"{forward}.{training}", f"{backward}.{training}"]


@pytest.mark.parametrize("name", ("bsconv", "esa_plain", "upsample", "pointwise"))
def test_so_they_do_when_they_are_compiled(calls: list[str], name: str) -> None:
    op = operator_of(name)
    with order(**{op: "cuda triton"}):
        step(name, compiled=True)
    torch.compiler.reset()
    assert calls == [f"{op}.triton", f"{op}_backward.triton"]


def test_a_backward_does_not_look_its_own_pixels_up(calls: list[str]) -> None:
    """The enlarged gradient has more of them than the table's limit, the map fewer."""
    with order(upsample="triton"):
        step("upsample", shape=(1, 8, 80, 80))
    assert calls == ["upsample.triton", "upsample_backward.triton"]


def test_a_backward_keeps_the_backend_that_was_forced_for_its_forward(calls: list[str]) -> None:
    x = torch.zeros(1, 8, 5, 5, requires_grad=True)
    with fastsr.backend("triton"):
        y = ops.pixel_norm(x, torch.ones(8), torch.ones(8))
    y.sum().backward()
    assert calls == ["pixel_norm.triton", "pixel_norm_backward.triton"]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_names_no_backend(cpu_kernels: None, calls: list[str]) -> None:
    """It may be run on another device: the operator itself chooses there."""
    x, w = torch.zeros(1, 8, 5, 5), torch.ones(8)
    torch.jit.trace(lambda x: ops.pixel_norm(x, w, w), (x,), check_trace=False)
    assert calls == []
    ops.pixel_norm(x, w, w)
    assert calls == ["pixel_norm.cuda"]


def test_weights_alone_make_a_call_one_of_training(calls: list[str]) -> None:
    """As those of the first convolution, which takes an image."""
    w, b = weight(8, 3, 3, 3).requires_grad_(), torch.zeros(8)
    with order(conv3x3_gelu="cuda triton"):
        ops.conv3x3_gelu(torch.zeros(1, 3, 5, 5), w, b)
    assert calls == ["conv3x3_gelu.triton"]


@pytest.mark.parametrize("compiled", (False, True))
def test_tf32_has_an_order_of_its_own(calls: list[str], compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_device, "allows_tf32", lambda x: _device._convolutions_in_tf32())
    kinds = (("tf32", "triton"), ("fp32", "cuda"))
    entries = [
        {"operator": "bsconv", "precision": precision, "training": False, "pixels": 1, "first": first}
        for precision, first in kinds
    ]
    monkeypatch.setattr(_gpu_order, "TABLES", {"sm_90": _gpu_order.parse({"origin": "the test", "entries": entries})})
    monkeypatch.setattr(_gpu_order, "gpu_architecture", lambda x: "sm_90")
    function, tensors, _ = operator_cases.build("bsconv", (1, 8, 9, 9))
    conv = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = conv.fp32_precision
    try:
        for precision, first in (("tf32", "triton"), ("ieee", "cuda")):
            conv.fp32_precision = precision
            run = torch.compile(function, fullgraph=True, backend="aot_eager") if compiled else function
            run(*tensors.values())
            torch.compiler.reset()
            assert calls.pop() == f"bsconv.{first}" and not calls
    finally:
        conv.fp32_precision = before


def test_what_was_not_measured_goes_to_cuda_first(calls: list[str]) -> None:
    for name in operator_cases.BUILDERS:
        function, tensors, _ = operator_cases.build(name, (1, 8, 24, 27))
        function(*tensors.values())
        assert calls.pop() == f"{operator_of(name)}.cuda" and not calls


def alk_weights(k: int, taps: int) -> ops.ALKConvWeights:
    shapes = ((k, 4, 1, 1), (k, 1, taps, 1), (k,), (k, 1, 1, taps), (k,), (k, 1, 3, 3), (k,), (k,), (k,))
    return ops.ALKConvWeights(*(torch.zeros(shape) for shape in shapes))


def esa(c: int) -> Tensor:
    case = operator_cases.build("esa_plain", (1, c, 16, 16))
    return case.function(*case.tensors.values())  # type: ignore[return-value]


def cca(c: int) -> Tensor:
    case = operator_cases.build("cca_norm", (1, c, 5, 5))
    return case.function(*case.tensors.values())  # type: ignore[return-value]


def mix(c: int, k: int) -> Tensor:
    x, pointwise = torch.zeros(1, c, 5, 5), torch.zeros(c, c, 1, 1)
    return ops.conv_mix(x, x, None, None, pointwise, torch.zeros(c), torch.zeros(k, c, 1, 1), torch.zeros(k))


def products(maps: int) -> Tensor:
    return ops.pointwise([torch.zeros(1, 2, 5, 5)] * maps, torch.zeros(3, 2 * maps, 1, 1), torch.zeros(3))


def separable(c: int) -> Tensor:
    return ops.bsconv(torch.zeros(1, c, 5, 5), torch.zeros(8, c, 1, 1), torch.zeros(8, 1, 3, 3), torch.zeros(8))


# A call, its operator, what goes first, what takes the call instead, and why.
LARGE: list[tuple[Callable[[], object], str, str, str, str]] = [
    (lambda: ops.alk_conv(torch.zeros(1, 4, 5, 5), alk_weights(129, 5)), "alk_conv", "cuda", "triton", "129 channels"),
    (lambda: ops.alk_conv(torch.zeros(1, 4, 5, 5), alk_weights(4, 33)), "alk_conv", "triton", "cuda", "33 taps"),
    (lambda: ops.alk_conv(torch.zeros(1, 4, 5, 5), alk_weights(4, 35)), "alk_conv", "cuda", "reference", "35 taps"),
    (lambda: separable(65), "bsconv", "cuda", "triton", "65 channels exceed 64"),
    (lambda: cca(257), "cca_norm", "cuda", "triton", "257 channels exceed 256"),
    (lambda: mix(65, 8), "conv_mix", "cuda", "triton", "65 channels exceed 64"),
    (lambda: mix(8, 65), "conv_mix", "cuda", "triton", "65 channels out exceed 64"),
    (
        lambda: mix(129, 8),
        "conv_mix",
        "triton",
        "reference",
        "129 channels exceed 128 in triton; 129 channels exceed 64 in cuda",
    ),
    (lambda: esa(129), "esa", "triton", "cuda", "129 channels exceed 128"),
    (
        lambda: esa(513),
        "esa",
        "cuda",
        "reference",
        "513 channels exceed 512 in cuda; 513 channels exceed 128 in triton",
    ),
    (
        lambda: ops.pixel_norm(torch.zeros(1, 257, 5, 5), torch.zeros(257), torch.zeros(257)),
        *("pixel_norm", "cuda", "triton", "257 channels exceed 256"),
    ),
    (lambda: products(17), "pointwise", "cuda", "triton", "17 inputs exceed 16"),
]


@pytest.mark.parametrize(("call", "op", "first", "taken", "reason"), LARGE)
def test_what_one_kind_cannot_take_the_other_is_tried_for(
    calls: list[str],
    call: Callable[[], object],
    op: str,
    first: str,
    taken: str,
    reason: str,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_dispatch, "_logged", set())
    with order(**{op: first}), caplog.at_level(logging.INFO, "fastsr"):
        call()
        assert calls == ([] if taken == "reference" else [f"{op}.{taken}"])
    where = "on the reference path" if taken == "reference" else f"in {taken}"
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith(f"{op} runs {where}: {reason}")
    with fastsr.backend(first), pytest.raises(fastsr.BackendError, match=f"'{first}' cannot run {op}: {reason[:9]}"):
        call()


def test_a_gpu_without_code_is_told_once_for_all_operators(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_dispatch, "_logged", set())
    monkeypatch.setattr(_cuda, "reason_against", lambda x, dtypes: "the GPU is sm_110")
    with caplog.at_level(logging.INFO, "fastsr"):
        for name in ("bsconv", "pixel_norm", "esa_plain", "bsconv"):
            function, tensors, _ = operator_cases.build(name, (1, 8, 24, 27))
            function(*tensors.values())
    assert calls == ["bsconv.triton", "pixel_norm.triton", "esa.triton", "bsconv.triton"]
    assert [record.getMessage() for record in caplog.records] == ["kernels run in triton: the GPU is sm_110"]


def test_the_operator_itself_asks_for_limits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """In both directions, for who calls it past fastsr.ops."""
    taken: list[str] = []
    monkeypatch.setattr(_cuda, "_run", lambda name, first, args: taken.append("cuda"))
    with recorded():
        for channels in (64, 65):
            x, k = torch.zeros(1, channels, 2, 2), torch.zeros(8, 1, 3, 3)
            arguments = (x, torch.zeros(8, channels, 1, 1), k, torch.zeros(8), None, 0)
            for name, given in (("bsconv", arguments), ("bsconv_backward", (torch.zeros(1, 8, 2, 2), *arguments))):
                _cuda._choosing("bsconv", name, lambda *args: taken.append("triton"))(*given)
    assert taken == ["cuda", "cuda", "triton", "triton"]


def run_block(block: nn.Module) -> None:
    with torch.no_grad():
        block.requires_grad_(False)(feature_map((1, 16, 16, 17), "nhwc"))


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, ["conv_mix_reduce", "esa_reduced"]),
        ({"conv_mix": "cuda"}, ["conv_mix_reduce", "esa_reduced"]),
        ({"conv_mix": "triton"}, ["conv_mix.triton", "esa.cuda"]),
        ({"esa": "triton"}, ["conv_mix.cuda", "esa.triton"]),
        ({"conv_mix_reduce": "triton"}, ["conv_mix.cuda", "esa.cuda"]),
        ({"esa": "triton", "conv_mix_reduce": "cuda"}, ["conv_mix_reduce", "esa_reduced"]),
    ],
)
def test_the_end_of_mlrn_s_block(calls: list[str], table: dict[str, str], expected: list[str]) -> None:
    """A table that lists the fusion decides; what it says of the parts does where it does not."""
    with order(**table):
        run_block(MLRB(16, esa_channels=8))
    assert calls == ["conv3x3_gelu.cuda", "conv3x3_gelu.cuda", *expected]


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, ["pointwise_reduce", "esa_reduced"]),
        ({"pointwise": "triton"}, ["pointwise.triton", "esa.cuda"]),
        ({"esa": "triton"}, ["pointwise.cuda", "esa.triton"]),
        ({"pointwise_reduce": "triton"}, ["pointwise.cuda", "esa.cuda"]),
    ],
)
def test_the_end_of_rlfn_s_block(calls: list[str], table: dict[str, str], expected: list[str]) -> None:
    with order(**table):
        run_block(RLFB(16, esa_channels=8))
    assert calls == ["conv3x3_gelu.cuda"] * 3 + expected


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, ["alk_condense_packed", "esa_cca"]),
        ({"alk_conv": "triton"}, ["alk_conv.triton", "pointwise.cuda", "esa_cca"]),
        ({"pointwise": "triton"}, ["alk_conv.cuda", "pointwise.triton", "esa_cca"]),
        ({"alk_condense": "triton"}, ["alk_conv.cuda", "pointwise.cuda", "esa_cca"]),
        ({"esa": "triton", "cca_norm": "triton"}, ["alk_conv.cuda", "pointwise.cuda", "_triton_esa_cca"]),
        ({"esa": "cuda", "cca_norm": "triton"}, ["alk_condense_packed", "esa_reduced", "cca_norm.triton"]),
        ({"esa_cca": "triton"}, ["alk_condense_packed", "_triton_esa_cca"]),
        ({"esa": "triton", "cca_norm": "triton", "esa_cca": "cuda"}, ["alk_conv.cuda", "pointwise.cuda", "esa_cca"]),
    ],
)
def test_the_end_of_alkdnet_s_block(calls: list[str], table: dict[str, str], expected: list[str]) -> None:
    with order(**table):
        run_block(ALKDB(16, lk_size=5, esa_channels=8))
    assert calls[0] == "alk_pack_together" and calls[1:] == ["alk_stage_packed"] * 3 + expected


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        ({}, ["bsconv_stage"]),
        ({"bsconv": "triton"}, ["pointwise.cuda", "bsconv.triton"]),
        ({"bsconv_stage": "triton"}, ["pointwise.cuda", "bsconv.cuda"]),
        ({"bsconv": "triton", "bsconv_stage": "cuda"}, ["bsconv_stage"]),
    ],
)
def test_bsrn_s_stages(calls: list[str], table: dict[str, str], expected: list[str]) -> None:
    with order(**table):
        run_block(ESDB(16, esa_channels=8))
    assert calls[: 3 * len(expected)] == expected * 3


def test_a_fusion_that_only_cuda_has_is_taken_where_triton_cannot_run(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cuda._triton, "reason_against", lambda x, dtypes: "the test forbids it")
    with order(conv_mix="triton", esa="triton"):
        run_block(MLRB(16, esa_channels=8))
    assert calls[2:] == ["conv_mix_reduce", "esa_reduced"]
