"""Peers are checked before they are timed, take turns, and a noisy machine is told."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

import fastsr
from fastsr import reference
from fastsr.bench import measure, verify
from fastsr.bench.cases import Case, make_case
from fastsr.bench.measure import BrokenRunnerError, noisy, spread, summary, take_turns, uncertainty
from fastsr.bench.peers import PeerMissing, Runner, make_runner, shifted_depthwise
from fastsr.bench.registry import Peer, load_registry
from fastsr.bench.roofline import Counting

CPU = torch.device("cpu")


def case_of(name: str, size: str = "20x17", direction: str = "forward", group: str = "ops") -> Case:
    return make_case(load_registry(), group, name, size, "fp32", "channels_last", direction)


@pytest.mark.parametrize("direction", ["forward", "backward", "step"])
@pytest.mark.parametrize("peer", ["fastsr", "eager", "eager channels_last", "eager channels_last, forced copies"])
def test_peers_are_right(peer: str, direction: str) -> None:
    for case in (case_of("alk_stage", direction=direction), case_of("cca_norm", direction=direction)):
        runner = make_runner(load_registry().peers[peer], case, CPU)
        assert verify.problem(runner, case, verify.expected(case, CPU), 1e-3) is None


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_half_precision_is_compared_with_the_rounded_weights_in_float32(dtype: str) -> None:
    case = dataclasses.replace(case_of("pixel_norm"), dtype=dtype)
    want = verify.expected(case, CPU)
    assert want[0][0].dtype == torch.float32
    runner = make_runner(load_registry().peers["fastsr"], case, CPU)
    assert verify.problem(runner, case, want, {"fp16": 2e-3, "bf16": 2e-2}[dtype]) is None


def test_networks_train_and_freeze() -> None:
    registry = load_registry()
    step = case_of("mlrn", "2x16x16", "step", "train")
    runner = make_runner(registry.peers["fastsr"], step, CPU)
    assert verify.problem(runner, step, verify.expected(step, CPU), registry.tolerances["train"]["fp32"]) is None
    forward = case_of("mlrn", "16x16", group="models")
    runner = make_runner(registry.peers["fastsr frozen"], forward, CPU)
    assert verify.problem(runner, forward, verify.expected(forward, CPU), 1e-3) is None


def doctored(case: Case, change) -> Runner:
    """An honest runner but for what `change` makes of its result."""
    runner = make_runner(load_registry().peers["eager"], case, CPU)
    honest = runner.run
    runner.run = lambda: change(honest())
    return runner


def _one_wrong_pixel(y: Tensor) -> Tensor:
    y[..., -1, -1] += 0.1 * y.abs().max()
    return y


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_one_wrong_pixel, "wrong: off the reference"),
        (lambda y: y * float("nan"), "wrong: off the reference by nan"),
        (lambda y: y[..., 1:], "instead of"),
        (lambda y: [y, y], "2 results instead of 1"),
    ],
)
def test_a_wrong_result_is_found(change, said: str) -> None:
    case = case_of("pixel_norm")
    found = verify.problem(doctored(case, change), case, verify.expected(case, CPU), 1e-3)
    assert found is not None and said in found


def test_a_result_that_was_kept_is_found() -> None:
    """As from a graph whose capture missed the kernels: right once, and then the same for any input."""
    case, kept = case_of("pixel_norm"), []

    def keep(y: Tensor) -> Tensor:
        kept.append(y.clone())
        return kept[0]

    found = verify.problem(doctored(case, keep), case, verify.expected(case, CPU), 1e-3)
    assert found is not None and "after its inputs changed" in found


@pytest.mark.parametrize(
    ("peer", "case", "said"),
    [
        ("openvino", case_of("pixel_norm", direction="backward"), "runs forward only"),
        ("fastsr triton", case_of("pixel_norm"), "not for cpu"),
        ("fastsr frozen", case_of("pixel_norm"), "not for ops"),
    ],
)
def test_a_peer_says_why_it_cannot(peer: str, case: Case, said: str) -> None:
    with pytest.raises(PeerMissing, match=said):
        make_runner(load_registry().peers[peer], case, CPU)


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(PeerMissing, match=f"{package} is not installed: pip install"):
        make_runner(load_registry().peers[package], case_of("pixel_norm"), CPU)


@pytest.mark.parametrize("package", ["onnxruntime", "openvino"])
def test_other_runtimes_are_right(package: str) -> None:
    pytest.importorskip(package)
    pytest.importorskip("onnxscript")
    case = case_of("conv_mix")
    runner = make_runner(load_registry().peers[package], case, CPU)
    assert verify.problem(runner, case, verify.expected(case, CPU), 1e-3) is None


@pytest.mark.parametrize("kernel", [(9, 1), (1, 9), (3, 3)])
def test_the_hand_tuned_depthwise_is_the_convolution(kernel: tuple[int, int]) -> None:
    x, w, b = torch.randn(2, 5, 11, 13).double(), torch.randn(5, 1, *kernel).double(), torch.randn(5).double()
    torch.testing.assert_close(shifted_depthwise(x, w, b), reference._depthwise(x, w, b))
    torch.testing.assert_close(shifted_depthwise(x, w, None), reference._depthwise(x, w, None))
    torch.testing.assert_close(shifted_depthwise(x, w, b, 2, 0), reference._depthwise(x, w, b, 2, 0))


def test_the_hand_tuned_peer_has_no_depthwise_convolution_left() -> None:
    case = case_of("alk_stage")
    counts = []
    for peer in (Peer("plain"), Peer("shifted", shifted=True)):
        runner = make_runner(peer, case, CPU)
        with runner.context(), torch.inference_mode(False), Counting() as counting:
            runner.run()
        counts.append(counting.depthwise)
    assert counts[0] > 0 and counts[1] == 0
    assert reference._depthwise.__name__ == "_depthwise" and reference.pixel_norm.__name__ == "pixel_norm"


def test_the_forced_copies_are_made() -> None:
    case = case_of("alk_conv")
    contiguous = []
    for name in ("eager channels_last", "eager channels_last, forced copies"):
        runner = make_runner(load_registry().peers[name], case, CPU)
        with runner.context():
            contiguous.append(runner.run().is_contiguous())
    assert contiguous == [False, True]


def test_backends_are_restored() -> None:
    runner = make_runner(load_registry().peers["eager"], case_of("pixel_norm"), CPU)
    with runner.context():
        assert fastsr.current_backend() == "reference"
    assert fastsr.current_backend() == "auto"


def test_peers_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    monkeypatch.setattr(measure, "TURN", 0.0)
    order: list[str] = []
    runners = {name: Runner(lambda name=name: order.append(name), (), nullcontext) for name in "ab"}
    times, noise = take_turns(runners, 0.0, CPU, least=4)
    assert order == ["a", "a", "b", "b"] * (len(order) // 4)  # a run to warm and one that is timed
    assert len(times["a"]) == len(times["b"]) == len(order) // 4 >= 3
    assert noise["spread"] >= 0


def test_one_that_breaks_while_timed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PAUSE", 0.0)

    def fails() -> None:
        raise RuntimeError("out of memory")

    runners = {"good": Runner(lambda: None, (), nullcontext), "bad": Runner(fails, (), nullcontext)}
    with pytest.raises(BrokenRunnerError, match="out of memory") as caught:
        take_turns(runners, 0.0, CPU)
    assert caught.value.name == "bad"


def test_statistics() -> None:
    found = summary([5.0, 1.0, 2.0, 3.0, 4.0])
    assert found == {"ms": 3.0, "p20": 2.0, "p80": 4.0, "runs": 5}
    assert spread([5.0, 1.0, 2.0, 3.0, 4.0]) == pytest.approx(1.0)
    assert uncertainty(found) == pytest.approx(1.5 * 2 / 3 / 5**0.5)


@pytest.mark.parametrize(
    ("seen", "figures", "loud"),
    [
        ({"spread": 0.01, "steal": 0.0}, [{"ms": 1.0, "p20": 0.99, "p80": 1.01, "runs": 5}], False),
        ({"spread": 0.06, "steal": 0.0}, [], True),
        ({"spread": 0.01, "steal": 0.06}, [], True),
        ({"spread": 0.01, "steal": None}, [{"ms": 1.0, "p20": 0.9, "p80": 1.2, "runs": 5}], True),
        ({"spread": 0.01, "steal": None}, [{"ms": 1.0, "p20": 0.9, "p80": 1.2, "runs": 500}], False),
        ({}, [{"reason": "missing"}], False),
    ],
)
def test_a_noisy_machine_is_told(seen, figures, loud: bool) -> None:
    assert noisy(seen, figures) is loud


def test_the_overhead_is_known() -> None:
    assert 0 < measure.overhead_us() < float("inf")
