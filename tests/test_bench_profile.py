"""`fastsr profile`: tables that add up, floors, a trace, a timeline of memory."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import PIL.Image
import pytest
import torch

import fastsr
import fastsr.bench.machine
from fastsr import cli, ops
from fastsr.bench.memory import LiveBytes
from fastsr.bench.profile import floors, memory_timeline, profile, ranges, step_of

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def short_ceilings(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fastsr.bench.machine, "_SECONDS", 0.0)
    root = logging.getLogger()
    handlers = list(root.handlers)
    yield
    root.handlers[:] = handlers


def small(name: str = "mlrn", **settings: int) -> torch.nn.Module:
    return fastsr.create_model(name, num_block=2, **settings).to(memory_format=torch.channels_last)


def image() -> torch.Tensor:
    return torch.rand(1, 3, 24, 24).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_forward_adds_up(backend: str) -> None:
    net = small()
    with fastsr.backend(backend):
        found = profile(net, step_of(net, image(), "fp32", training=False), CPU)
        recomputes = ops.may_free_early(image())
    assert sum(entry.share for entry in found.kernels) == pytest.approx(1)
    assert sum(entry.ms for entry in found.kernels) == pytest.approx(found.ms)
    assert [e.ms for e in found.kernels] == sorted((e.ms for e in found.kernels), reverse=True)
    launches = {entry.name: entry.launches for entry in found.operators}
    assert launches == {"conv3x3_gelu": 2 + recomputes, "mixer_block": 2, "esa": 2, "upsample": 1}
    assert ("aten::gelu" in {entry.name for entry in found.kernels}) is (backend == "reference")


def test_the_fused_backward_is_told(cpu_kernels: None) -> None:
    net = small()
    found = profile(net, step_of(net, image(), "fp32", training=True), CPU)
    launches = {entry.name: entry.launches for entry in found.operators}
    assert launches["esa"] == launches["esa_backward"] == 2
    launches = {entry.name: entry.launches for entry in found.kernels}
    assert launches["fastsr::esa"] == launches["fastsr::esa_backward"] == 2


def test_floors_are_sums_over_the_calls() -> None:
    net = small("alkdnet")
    found = floors(net, (1, 3, 24, 24), {"copy_gbs": 1e9, "fma_gflops": 1.0}, "fp32")
    operators = {name for name in found if "::" not in name}
    assert operators == {
        "bsconv",
        "alk_stage",
        "alk_conv",
        "pointwise",
        "esa_cca",
        "upsample",
    }
    one = 24 * 24 * (64 * (64 + 32 + 27) + (64 * (3 * 13 + 2 + 7 + 1 + 13) + 32 * 13))
    assert found["alk_stage"] == pytest.approx(6 * one / 0.5 / 1e6)
    macs = fastsr.complexity(net, 24, 24).macs
    assert found["aten::convolution"] == pytest.approx(macs / 0.5 / 1e6)
    assert floors(net, (1, 3, 24, 24), {}, "fp32") == {}


def test_ranges_leave_nothing_behind() -> None:
    net = small()
    before = ops.esa
    with ranges(net, nvtx=False):
        assert ops.esa is not before
    assert ops.esa is before and "forward" not in vars(net.block_1)


def test_live_bytes() -> None:
    seen: list[tuple[str, int]] = []
    with LiveBytes(lambda name: seen.append((name, live.now))) as live:
        a = torch.zeros(1000)
        b = a + 1
        view = b[10:]
        del a
        c = view * 2
        del b, view
        d = c.add_(1)
    assert live.peak == 8000 and live.now == 3960 and d is c
    assert [now for _, now in seen] == [4000, 8000, 8000, 7960, 3960]


@pytest.mark.parametrize("training", [False, True])
def test_the_timeline_of_a_network(training: bool) -> None:
    net = small()
    points = memory_timeline(step_of(net, image(), "fp32", training), CPU)
    sizes = [size for _, size in points]
    one = 4 * 58 * 24 * 24 / 2**20
    assert 2 * one <= max(sizes) <= (40 if training else 8) * one
    assert all(size >= 0 for size in sizes)


def test_the_command(capsys, tmp_path: Path) -> None:
    files = {name: tmp_path / "out" / name for name in ("trace.json", "memory.png", "tables.json")}
    arguments = ["--trace", files["trace.json"], "--memory", files["memory.png"], "--json", files["tables.json"]]
    status = cli.main(["profile", "mlrn", "--shape", "20x16", "--device", "cpu", "--train", *map(str, arguments)])
    out = capsys.readouterr().out
    assert status == 0 and "mlrn, training step at 1x20x16, fp32" in out
    assert "mixer_block" in out and "launches" in out and "floor" in out and "peak: " in out
    trace = {event.get("name") for event in json.loads(files["trace.json"].read_text())["traceEvents"]}
    assert {"fastsr.ops.mixer_block", "block_1 (MLRB)"} <= trace
    with PIL.Image.open(files["memory.png"]) as picture:
        assert picture.width > 600
    tables = json.loads(files["tables.json"].read_text())
    assert tables["operators"] and tables["ms"] > 0 and tables["environment"]["kind"] == "cpu"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["mlnr"], "did you mean 'mlrn'"),
        (["mlrn", "--dtype", "fp23"], "did you mean 'fp32'"),
        (["mlrn", "--shape", "9"], "WIDTHxHEIGHT"),
        (["mlrn", "--device", "cuda:77"], "cannot be used here"),
        (["missing.pth", "--device", "cpu"], "missing.pth"),
    ],
)
def test_bad_input(capsys, arguments: list[str], said: str) -> None:
    assert cli.main(["profile", *arguments]) == 2
    assert said in capsys.readouterr().err
