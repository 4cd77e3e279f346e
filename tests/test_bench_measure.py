"""Peers are checked before they are timed, take turns, and a noisy machine is told."""

from __future__ import annotations

import dataclasses
import itertools
import signal
import time
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

import fastsr
from fastsr import reference
from fastsr.bench import measure, verify
from fastsr.bench.cases import Case, make_case
from fastsr.bench.limit import TooSlow, limited
from fastsr.bench.measure import BrokenRunnerError, disagreement, doubt, noisy, spread, summary, take_turns
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
    names = ("fastsr", "eager")
    runners = {name: Runner(lambda name=name: order.append(name), (), nullcontext) for name in names}
    times, noise = take_turns(runners, 0.0, CPU, least=4)
    assert order == ["fastsr", "fastsr", "eager", "eager"] * (len(order) // 4)  # a run to warm and one that is timed
    assert len(times["fastsr"]) == len(times["eager"]) == len(order) // 4 == 4
    assert noise["spread"] >= 0


def test_who_is_far_behind_in_long_turns_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    lasts = {"fastsr": 0.01, "eager": 0.02, "compile": 0.025, "openvino": 0.06}
    runners = {
        name: Runner(lambda seconds=seconds: time.sleep(seconds), (), nullcontext) for name, seconds in lasts.items()
    }
    times, _ = take_turns(runners, 0.001, CPU, least=5)
    assert {name: len(turns) for name, turns in times.items()} == {
        "fastsr": 5,
        "eager": 5,
        "compile": 5,
        "openvino": 3,
    }


def test_turns_go_on_until_the_ratio_is_known_or_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "PAUSE", 0.0)
    runners = {name: Runner(lambda: None, (), nullcontext) for name in ("fastsr", "eager")}
    doubts = itertools.chain([1.0] * 8, itertools.repeat(0.0))
    monkeypatch.setattr(measure, "doubt", lambda times: next(doubts))
    monkeypatch.setattr(measure, "PATIENCE", 1e9)
    assert len(take_turns(runners, 1e-6, CPU)[0]["fastsr"]) == 9
    monkeypatch.setattr(measure, "doubt", lambda times: 1.0)
    monkeypatch.setattr(measure, "PATIENCE", 3)
    assert len(take_turns(runners, 1e-6, CPU)[0]["fastsr"]) == 5
    monkeypatch.setattr(measure, "PATIENCE", 1e9)
    assert len(take_turns(runners, 1e-6, CPU, longest=1e-6)[0]["fastsr"]) == 5


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


def _ratios(random: np.random.Generator, turns: int, noise: float, outliers: float) -> list[float]:
    """Logarithms of the ratio turn by turn: noise, and now and then a turn that something else has disturbed."""
    disturbed = random.random(turns) < outliers
    return list(noise * random.standard_normal(turns) + np.where(disturbed, random.exponential(0.3, turns), 0.0))


@pytest.mark.parametrize("turns", [3, 5, 8, 15])
@pytest.mark.parametrize("outliers", [0.0, 0.1])
def test_two_runs_differ_by_what_is_said(turns: int, outliers: float) -> None:
    """Of many pairs of runs, the medians of nine in ten at least are as near to each other as the first run says."""
    random, told, quiet = np.random.default_rng(turns), 0, []
    for _ in range(500):
        one, two = (_ratios(random, turns, 0.02, outliers) for _ in range(2))
        told += abs(float(np.median(one) - np.median(two))) <= disagreement(one)
        quiet.append(disagreement(one) <= 0.05)
    assert told / 500 >= 0.9
    if outliers == 0 and turns >= 8:
        assert np.mean(quiet) > 0.8  # a calm machine is not called noisy


def test_the_quantiles_are_students() -> None:
    for freedom, exact in ((2, 4.303), (10, 2.228), (11, 2.201), (20, 2.086), (60, 2.000)):
        assert measure._student(freedom) == pytest.approx(exact, abs=0.015)


def test_doubt_is_about_fastsr_and_the_best_peer() -> None:
    steady, wild = [[1.0], [1.01], [0.99], [1.0], [1.0]], [[9.0], [2.0], [7.0], [3.0], [9.0]]
    drifting = [[value * factor for value in turn] for factor, turn in zip((1, 2, 3, 4, 5), steady, strict=True)]
    assert doubt({"fastsr": steady, "eager": steady, "openvino": wild}) < 0.05
    assert doubt({"fastsr": drifting, "eager": drifting}) < 1e-9  # both slow down together: their ratio is known
    assert doubt({"fastsr": drifting}) > 0.5
    assert doubt({"fastsr": wild, "eager": steady}) > 0.5
    assert doubt({"fastsr cuda": wild, "fastsr triton": steady}) > 0.5
    assert doubt({"fastsr cuda": drifting, "fastsr triton": drifting}) < 1e-9
    assert doubt({"fastsr": steady[:2], "eager": steady[:2]}) == float("inf") and doubt({}) == 0.0


@pytest.mark.parametrize(
    ("seen", "loud"),
    [
        ({"spread": 20.0, "steal": 0.0, "doubt": 0.01}, False),
        ({"spread": 0.01, "steal": None, "doubt": 0.06}, True),
        ({"spread": 0.01, "steal": 0.06, "doubt": 0.01}, True),
        ({}, False),
    ],
)
def test_a_noisy_machine_is_told(seen, loud: bool) -> None:
    assert noisy(seen) is loud


def test_a_limit_of_time() -> None:
    with limited(5.0):
        pass
    begin = time.monotonic()
    with pytest.raises(TooSlow, match=r"not ready within 0\.05 s"), limited(0.05):
        try:
            time.sleep(5)
        except Exception:  # as a compiler would
            time.sleep(5)
    with pytest.raises(TooSlow), limited(0.05):
        try:
            time.sleep(5)
        except BaseException as error:
            raise RuntimeError("wrapped") from error
    assert time.monotonic() - begin < 4
    with pytest.raises(ValueError, match="mine"), limited(5.0):
        raise ValueError("mine")
    assert signal.getsignal(signal.SIGALRM) in (signal.SIG_DFL, None)


def test_the_overhead_is_known() -> None:
    assert 0 < measure.overhead_us() < float("inf")
