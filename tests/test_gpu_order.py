"""The order of the two kinds of GPU kernels: its table, how it is written from results, and what it changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastsr import _device, _dispatch, _gpu_order
from fastsr.bench import run
from fastsr.bench.cases import make_case
from fastsr.bench.registry import load_registry
from fastsr.cli import main
from fastsr.errors import InputError
from fastsr.tune import run_order


def row(direction: str, size: str, cuda: float, triton: float, name: str = "bsconv", **more: Any) -> dict[str, Any]:
    """As `fastsr bench` writes it; `name` is one of the registry's."""
    peers = {"fastsr cuda": {"ms": cuda}, "fastsr triton": {"ms": triton}, "eager": {"ms": 9.0}}
    empty = run._empty_row(make_case(load_registry(), "ops", name, size, "fp16", "channels_last", direction))
    return {**empty, "peers": peers, **more}


def result(path: Path, rows: list[dict[str, Any]], **environment: Any) -> Path:
    facts = {"device": "a GPU", "date": "2026-01-01", "commit": "abc", "capability": "sm_90", **environment}
    path.write_text(json.dumps({"version": 2, "environment": facts, "rows": rows}))
    return path


def entries(path: Path) -> dict[tuple[Any, ...], str]:
    table = json.loads(path.read_text())
    return {(e["operator"], e["precision"], e["training"], e["pixels"]): e["first"] for e in table["entries"]}


def test_a_result_becomes_a_table(tmp_path: Path) -> None:
    rows = [
        row("forward", "64x48x48", 1.0, 2.0),
        row("forward", "640x360", 3.0, 2.0),
        row("backward", "64x48x48", 5.0, 2.0),  # with its forward 6 to 4
        row("backward", "640x360", 1.0, 1.04, name="esa_plain"),  # not certain
        row("forward", "640x360", 1.0, 9.0, name="esa_plain", noisy=True),
        row("forward", "640x360", 1.0, 9.0, operator="mixer_block"),  # a fusion, of which there is one kind
        row("forward", "640x360", 1.0, 9.0, name="pointwise_c5", peers={"fastsr cuda": {"reason": "no"}}),
    ]
    path = run_order([result(tmp_path / "a.json", rows)], tmp_path / "new" / "sm_90.json")
    batch, image = 64 * 48 * 48, 640 * 360
    want = {
        ("bsconv", "fp16", False, batch): "cuda",
        ("bsconv", "fp16", False, image): "triton",
        ("bsconv", "fp16", True, batch): "triton",
    }
    assert entries(path) == want
    assert json.loads(path.read_text())["origin"] == "fastsr bench: a.json (a GPU, 2026-01-01, abc)"


def test_every_operator_that_is_measured_comes_in(tmp_path: Path) -> None:
    rows = [row("forward", "8x8", 1.0, 2.0, name=name) for name in load_registry().operators]
    found = entries(run_order([result(tmp_path / "a.json", rows)], tmp_path / "t"))
    assert found == {(operator, "fp16", False, 64): "cuda" for operator in _dispatch.OPERATORS}


def test_calls_that_a_table_does_not_tell_apart_are_added_up(tmp_path: Path) -> None:
    rows = [
        row("forward", "8x8", 1.0, 2.0, name="pointwise_c5"),
        row("forward", "8x8", 6.0, 3.0, name="pointwise_trunk"),  # 7 to 5
        row("backward", "8x8", 1.0, 9.0, name="pointwise_c5"),
        row("backward", "8x8", 5.0, 1.0, name="pointwise_trunk"),  # with the forwards 13 to 15
        row("forward", "8x8", 1.0, 2.0, name="esa_plain"),
        row("forward", "8x8", 2.0, 1.0, name="esa_blueprint"),  # the same
    ]
    table = json.loads(run_order([result(tmp_path / "a.json", rows)], tmp_path / "t").read_text())
    assert [(e["operator"], e["training"], e["first"], e["ratio"]) for e in table["entries"]] == [
        ("pointwise", False, "triton", 1.4),
        ("pointwise", True, "cuda", round(15 / 13, 3)),
    ]


def test_the_last_result_counts(tmp_path: Path) -> None:
    files = [result(tmp_path / f"{i}.json", [row("forward", "8x8", i, 2.0)]) for i in (1, 3)]
    assert entries(run_order(files, tmp_path / "t")) == {("bsconv", "fp16", False, 64): "triton"}


def test_what_is_no_answer_is_refused(tmp_path: Path) -> None:
    here = result(tmp_path / "here.json", [row("forward", "8x8", 1.0, 1.0)])
    with pytest.raises(InputError, match=r"here\.json tells 'fastsr cuda' and 'fastsr triton' apart; measure both"):
        run_order([here], tmp_path / "t")
    with pytest.raises(InputError, match=r"cpu\.json is no result of an NVIDIA GPU"):
        run_order([here, result(tmp_path / "cpu.json", [], capability=None)], tmp_path / "t")
    with pytest.raises(InputError, match="of sm_80, sm_90; pass those of one architecture"):
        run_order([here, result(tmp_path / "other.json", [], capability="sm_80")], tmp_path / "t")
    with pytest.raises(InputError, match="there are no results"):
        run_order([])
    with pytest.raises(InputError, match="cannot be written"):
        run_order([result(tmp_path / "b.json", [row("forward", "8x8", 1.0, 2.0)])], here / "t")
    assert not (tmp_path / "t").exists()


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, output = str(result(tmp_path / "a.json", [row("forward", "8x8", 1.0, 2.0)])), str(tmp_path / "sm_90.json")
    assert main(["tune", "--order", file, "--output", output]) == 0
    assert capsys.readouterr().out.strip() == output
    assert main(["tune", "bsconv", "--order", file, "--output", output]) == 2
    assert "leave out bsconv" in capsys.readouterr().err


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Maps are on a GPU for which bsconv was measured at 100 and 10,000 pixels, in float16 and TF32."""
    measured = [
        {"operator": "bsconv", "precision": precision, "training": training, "pixels": pixels, "first": first}
        for precision in ("fp16", "tf32")
        for training, pixels, first in ((False, 100, "triton"), (False, 10_000, "cuda"), (True, 100, "triton"))
    ]
    monkeypatch.setattr(_gpu_order, "TABLES", {"sm_90": _gpu_order.parse({"origin": "a run", "entries": measured})})
    monkeypatch.setattr(_gpu_order, "gpu_architecture", lambda x: "sm_90")
    monkeypatch.setattr(_device, "allows_tf32", lambda x: True)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize(
    ("dtype", "size", "grad", "first"),
    [
        (torch.float16, (1, 4, 10, 99), False, "triton"),  # the geometric mean of 100 and 10,000 is 1,000
        (torch.float16, (2, 4, 10, 51), False, "cuda"),
        (torch.float16, (4, 4, 1000, 1000), False, "cuda"),
        (torch.float16, (4, 4, 1000, 1000), True, "triton"),
        (torch.float32, (1, 4, 1, 1), False, "triton"),
        (torch.float32, (4, 4, 1000, 1000), False, "cuda"),
    ],
)
def test_the_nearest_call_decides(dtype: torch.dtype, size: tuple[int, ...], grad: bool, first: str) -> None:
    x = torch.empty(size, dtype=dtype, device="meta", requires_grad=grad)
    assert _dispatch.first_on_gpu("bsconv", x) == (first, "a run")
    with torch.no_grad():
        assert _dispatch.first_on_gpu("bsconv", x)[0] == (first if not grad else "cuda")


@pytest.mark.usefixtures("table")
def test_what_was_not_measured_keeps_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.empty(1, 4, 100, 100, device="meta")
    for op, dtype in (("bsconv", torch.bfloat16), ("esa", torch.float16)):
        assert _dispatch.first_on_gpu(op, x.to(dtype)) == _dispatch.FIRST_ON_GPU
    monkeypatch.setattr(_gpu_order, "gpu_architecture", lambda x: "sm_80")
    assert _dispatch.first_on_gpu("bsconv", x.half())[1] == "not measured"


@pytest.mark.usefixtures("table")
def test_torch_compile_folds_the_choice() -> None:
    @torch.compile(fullgraph=True, backend="eager", dynamic=True)
    def shifted(x: torch.Tensor) -> torch.Tensor:
        return x + (1 if _dispatch.first_on_gpu("bsconv", x)[0] == "cuda" else -1)

    assert shifted(torch.zeros(1, 1, 10, 10, dtype=torch.float16)).mean() == -1
    assert shifted(torch.zeros(1, 1, 100, 100, dtype=torch.float16)).mean() == 1


def test_tables_in_the_package_can_be_read() -> None:
    for table in _gpu_order.TABLES.values():
        for (op, precision, _), (limits, origin) in table.items():
            assert op in (*_dispatch.OPERATORS, *_dispatch.FUSIONS) and origin
            assert precision in {*_gpu_order.PRECISIONS.values(), "tf32"}
            assert {first for _, first in limits} <= {"cuda", "triton"}
