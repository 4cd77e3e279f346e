"""`fastsr bench`: small runs from end to end, and what bad input is told."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import pytest
import torch

import fastsr.bench.machine
from fastsr import cli
from fastsr.bench import memory, run
from fastsr.bench.cases import make_case
from fastsr.bench.registry import load_registry

pytestmark = pytest.mark.usefixtures("calm")


@pytest.fixture
def calm(monkeypatch: pytest.MonkeyPatch):
    """No pauses and short ceilings; the root logger as it was."""
    monkeypatch.setattr(fastsr.bench.measure, "PAUSE", 0.0)
    monkeypatch.setattr(fastsr.bench.machine, "_SECONDS", 0.0)
    root = logging.getLogger()
    handlers, threads = list(root.handlers), torch.get_num_threads()
    yield
    root.handlers[:] = handlers
    torch.set_num_threads(threads)


def bench(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = cli.main(["bench", "--device", "cpu", "--quick", "--seconds", "0.01", *map(str, arguments)])
    return status, *capsys.readouterr()


def test_an_operator(capsys, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    status, out, _ = bench(capsys, "ops", "--names", "pixel_norm,bsconv", "--shape", "20x17", "--json", path)
    assert status == 0 and "ops/pixel_norm/20x17/fp32/channels_last/forward" in out and "2 rows" in out
    content = json.loads(path.read_text())
    assert content["finished"] and [r["name"] for r in content["rows"]] == ["pixel_norm", "bsconv"]
    found = content["rows"][0]
    assert found["operator"] == "pixel_norm"
    assert set(found["peers"]) == {"fastsr", "eager", "eager channels_last"}
    mine = found["peers"]["fastsr"]
    assert mine["p20"] <= mine["ms"] <= mine["p80"] and mine["runs"] >= 3
    assert mine["gbs"] == pytest.approx(found["work"]["bytes"] / mine["ms"] / 1e6)
    assert found["ratio"] == found["peers"][found["best_peer"]]["ms"] / mine["ms"]
    assert "openvino" in found["not_asked"]
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(content, json.loads(fastsr.bench.results.SCHEMA.read_text()))


def test_a_run_goes_on_where_it_was_killed(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, measured = tmp_path / "result.json", []
    honest = run.measure

    def killed_at_the_second(case, *rest):
        measured.append(case.name)
        if len(measured) == 2:
            raise KeyboardInterrupt
        return honest(case, *rest)

    monkeypatch.setattr(run, "measure", killed_at_the_second)
    arguments = ("ops", "--names", "pixel_norm,bsconv", "--shape", "20x17", "--peers", "fastsr,eager", "--json", path)
    assert bench(capsys, *arguments)[0] == 130
    assert not json.loads(path.read_text())["finished"]
    assert bench(capsys, *arguments)[0] == 0
    assert measured == ["pixel_norm", "bsconv", "bsconv"]
    assert json.loads(path.read_text())["finished"]


def test_networks_and_training(capsys, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    arguments = ("--names", "mlrn", "--shape", "16x16", "--peers", "fastsr,fastsr frozen,eager", "--json", path)
    assert bench(capsys, "models", "train", *arguments)[0] == 0
    forward, step = json.loads(path.read_text())["rows"]
    assert "ms" in forward["peers"]["fastsr frozen"] and forward["ratio"]
    assert forward["operator"] is None
    assert step["peers"]["fastsr frozen"] == {"reason": "not for train"} and step["ratio"]


def test_a_wrong_peer_gets_no_time(capsys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = run.make_runner

    def doctored(peer, case, device):
        runner = honest(peer, case, device)
        if peer.name == "eager":
            inner = runner.run
            runner.run = lambda: inner() + 1
        return runner

    monkeypatch.setattr(run, "make_runner", doctored)
    path = tmp_path / "result.json"
    assert bench(capsys, "ops", "--names", "pixel_norm", "--shape", "16x16", "--json", path)[0] == 0
    peers = json.loads(path.read_text())["rows"][0]["peers"]
    assert peers["eager"]["reason"].startswith("wrong") and "ms" not in peers["eager"]
    assert "ms" in peers["fastsr"] and "ms" in peers["eager channels_last"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ops", "--names", "alk_stag"], "no operator or network is called 'alk_stag'; did you mean 'alk_stage'?"),
        (["models", "--names", "mlnr"], "no network is called 'mlnr'; did you mean 'mlrn'?"),
        (["op"], "no benchmark is called 'op'; did you mean 'ops'?"),
        (["ops", "--peers", "fastsr,onxruntime"], "did you mean 'onnxruntime'?"),
        (["ops", "--dtype", "fp23"], "did you mean 'fp32'?"),
        (["ops", "--shape", "12"], "WIDTHxHEIGHT"),
        (["ops", "--seconds", "0"], "--seconds is 0; pass a number above 0"),
        (["ops", "--seconds", "nan"], "--seconds is nan; pass a number above 0"),
        (["ops", "--seconds", "inf"], "--seconds is inf; pass a number above 0"),
        (["ops", "--peer-limit", "nan"], "--peer-limit is nan; pass seconds"),
        (["ops", "--threads", "0"], "--threads is 0"),
        (["ops", "--peer-limit", "-1"], "--peer-limit is -1"),
        (["ntire"], "pass their folder as --lr-dir"),
        (["ntire", "ops"], "a measurement of its own"),
    ],
)
def test_bad_input(capsys, arguments: list[str], said: str) -> None:
    status, _, err = bench(capsys, *arguments)
    assert status == 2 and said in err and "Traceback" not in err


def test_a_device_that_is_not_there(capsys) -> None:
    status = cli.main(["bench", "ops", "--device", "cuda:77"])
    assert status == 2 and "the device 'cuda:77' cannot be used here" in capsys.readouterr().err


def test_a_shape_too_big_or_too_small_is_a_row_with_a_reason(capsys, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    sizes = "200000x200000,16x16"
    assert bench(capsys, "ops", "--names", "pixel_norm,esa_plain", "--shape", sizes, "--json", path)[0] == 0
    big, big_esa, small, small_esa = json.loads(path.read_text())["rows"]
    assert "GiB of memory" in big["reason"] and "GiB of memory" in big_esa["reason"]
    assert all(found == {"reason": big["reason"]} for found in big["peers"].values())
    assert "ms" in small["peers"]["fastsr"] and "ms" in small_esa["peers"]["fastsr"]
    path.unlink()
    bench(capsys, "ops", "--names", "esa_plain", "--shape", "3x3", "--json", path)
    assert "at least 15x15" in json.loads(path.read_text())["rows"][0]["reason"]


def test_a_json_that_cannot_be_written(capsys, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    arguments = ("ops", "--names", "pixel_norm", "--shape", "16x16", "--json", tmp_path / "file" / "x.json")
    status, out, err = bench(capsys, *arguments)
    assert status == 2 and "could not be written" in err and "fastsr  " in out


def test_the_list(capsys) -> None:
    status, out, _ = bench(capsys, "--list")
    assert status == 0 and "alk_stage" in out and "openvino" in out and "mlrn" in out


def test_the_memory_that_a_case_needs() -> None:
    """x, the normed map, the permuted copy that layer_norm makes: within a factor of what is counted."""
    case = make_case(load_registry(), "ops", "conv3x3_gelu", "64x64", "fp32", "channels_last", "forward")
    one = 4 * 58 * 64 * 64
    assert 3 * one <= memory.needed_bytes(case) <= 4 * one


def test_the_peak_of_a_process_of_its_own() -> None:
    case = make_case(load_registry(), "ops", "conv3x3_gelu", "512x512", "fp32", "channels_last", "forward")
    found = memory.peak_cpu(load_registry().peers["eager channels_last"], case)
    if "reason" in found:
        pytest.skip(found["reason"])
    one = 4 * 58 * 512 * 512 / 2**20
    assert 0.9 * one <= found["peak_mb"] <= 5 * one


def test_a_peer_that_is_not_ready_in_time_is_a_row_with_the_reason(capsys, tmp_path: Path, monkeypatch) -> None:
    honest = run.make_runner

    def slow(peer, case, device):
        if peer.name == "eager":
            time.sleep(30)
        return honest(peer, case, device)

    monkeypatch.setattr(run, "make_runner", slow)
    path = tmp_path / "result.json"
    arguments = ("ops", "--names", "pixel_norm", "--shape", "16x16", "--peer-limit", "2", "--json", path)
    assert bench(capsys, *arguments)[0] == 0
    peers = json.loads(path.read_text())["rows"][0]["peers"]
    assert peers["eager"] == {"reason": "not ready within 2 s; raise --peer-limit"}
    assert "ms" in peers["fastsr"] and "ms" in peers["eager channels_last"]
