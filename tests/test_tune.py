"""`fastsr tune`: the search with a timer that knows the answer, the table that it writes, and what it refuses."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastsr.cli import main
from fastsr.tune import run, table
from fastsr.tune.search import LIMITS, agree, candidates, search

pytest.importorskip("triton")
from fastsr.kernels import config

X = torch.ones(1, 64, 2, 2)


class Machine:
    """Launches one kernel and times it: the closer to `best`, the faster; tiles in `broken` have wrong results."""

    def __init__(self, best: dict[str, int], broken: tuple[int, ...] = (), refused: tuple[int, ...] = ()) -> None:
        self.best, self.broken, self.refused = best, broken, refused
        self.tile: dict[str, int] = {}
        self.timed: list[dict[str, int]] = []

    def call(self) -> Tensor:
        self.tile = config.tile("pixel_norm", X, channels=64)
        if self.tile["BP"] in self.refused:
            raise RuntimeError("PassManager::run failed")
        return X + 1.0 if self.tile["BP"] in self.broken else X

    def time(self, call: Callable[[], Any]) -> float:
        call()
        self.timed.append(self.tile)
        return 1.0 + config.distance(self.best, self.tile)


USE = ("pixel_norm", (("channels", 64),))


def test_finds_a_distant_optimum() -> None:
    machine = Machine({"BP": 128, "num_warps": 8})
    assert search(machine.call, machine.time) == {USE: {"BP": 128, "num_warps": 8}}
    assert len({tuple(t.items()) for t in machine.timed}) == len(machine.timed), "a tile was timed twice"
    assert config.tile("pixel_norm", X, channels=64) == {"BP": 32, "num_warps": 4}, "the tables were not put back"


def test_keeps_a_tile_that_nothing_beats() -> None:
    machine = Machine({"BP": 32, "num_warps": 4})
    assert search(machine.call, machine.time) == {}


def test_less_than_the_noise_is_no_gain() -> None:
    machine = Machine({})
    assert search(machine.call, lambda call: machine.time(call) - (0.01 if machine.tile["BP"] == 64 else 0)) == {}


def test_a_faster_tile_with_other_results_or_that_does_not_compile_is_not_taken() -> None:
    machine = Machine({"BP": 64}, broken=(64,))
    assert search(machine.call, machine.time) == {}
    machine = Machine({"BP": 16}, refused=(16,))
    assert search(machine.call, machine.time) == {}


def test_other_errors_are_not_swallowed() -> None:
    machine = Machine({"BP": 64})

    def call() -> Tensor:
        if machine.call() is not None and machine.tile["BP"] == 64:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        return X

    with pytest.raises(RuntimeError, match="illegal memory access"):
        search(call, machine.time)


def test_candidates_stay_within_the_limits() -> None:
    for kernel, entries in config.table(config.DEFAULT)["kernels"].items():
        for entry in entries:
            found = candidates(kernel, entry["tile"])
            assert found and entry["tile"] not in found, kernel
            for tile in found:
                assert all(LIMITS[k][0] <= v <= LIMITS[k][1] for k, v in tile.items() if k in LIMITS), (kernel, tile)


def test_agreement_sees_nan_and_large_differences_only() -> None:
    x = torch.randn(100)
    assert agree((x, [x]), (x + 1e-7, [x]))
    assert not agree(x, x + 0.01)
    assert not agree(torch.full_like(x, torch.nan), x)


def test_the_table_is_what_the_kernels_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found tiles are in front, other shapes of the kernel behind, other kernels come from the default table."""
    (tmp_path / "default.json").write_text((config.FOLDER / "default.json").read_text())
    monkeypatch.setitem(sys.modules, "cv2", None)  # a machine for kernels need not have it
    monkeypatch.delitem(sys.modules, "fastsr.imageio", raising=False)
    monkeypatch.setattr(config, "FOLDER", tmp_path)
    config.table.cache_clear()
    try:
        found = {USE: {"BP": 64, "num_warps": 8}, ("sum_partials", (("rows", 7),)): {"BR": 8, "BM": 64}}
        run.write(tmp_path / "sm_99.json", "sm_99", "a GPU", found)
        written = json.loads((tmp_path / "sm_99.json").read_text())
        assert written["kernels"].keys() == {"sum_partials", "pixel_norm"} and "a GPU" in written["origin"]
        nearest = dict(config.nearest("sm_99", *USE))
        assert nearest == {"BP": 64, "num_warps": 8}
        assert dict(config.nearest("sm_99", "pixel_norm", (("channels", 256),)))["BP"] == 8
        run.write(tmp_path / "sm_99.json", "sm_99", "a GPU", {USE: {"BP": 16, "num_warps": 4}})
        again = json.loads((tmp_path / "sm_99.json").read_text())["kernels"]
        assert again["sum_partials"] == written["kernels"]["sum_partials"]
        assert [e["tile"]["BP"] for e in again["pixel_norm"] if e["shape"] == {"channels": 64}] == [16]
    finally:
        config.table.cache_clear()
        config.nearest.cache_clear()


def test_the_tables_that_ship_have_the_form_that_is_written() -> None:
    for file in sorted(config.FOLDER.glob("*.json")):
        content = json.loads(file.read_text())
        assert file.read_text() == table.text(content["origin"], content["kernels"]), file.name


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune"]) == 2
    assert capsys.readouterr().err == (
        "fastsr: error: tuning measures on a GPU, and PyTorch finds none here; run it on the machine to tune for\n"
    )


def test_an_unknown_operator(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", "conv5x5"]) == 2
    assert "no operator is called 'conv5x5'; there are alk_conv" in capsys.readouterr().err


def test_every_operator_has_workloads_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the reference path and small maps: shapes, arguments and gradients fit one another."""
    import fastsr
    from fastsr._dispatch import OPERATORS
    from fastsr.tune import workloads

    monkeypatch.setattr(workloads, "IMAGE", (1, 17, 18))
    monkeypatch.setattr(workloads, "PATCHES", (2, 16, 16))
    monkeypatch.setattr(fastsr, "backend", lambda _: torch.enable_grad())
    assert workloads.CALLS.keys() == set(OPERATORS)
    for operator in OPERATORS:
        calls = list(workloads.workloads(operator, torch.float32, torch.device("cpu")))
        assert len(calls) >= 2
        for _, call in calls:
            assert agree(call(), call())
