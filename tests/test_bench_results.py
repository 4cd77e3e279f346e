"""Result files: the schema, old files, runs that were cut off, files that cannot be written."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from fastsr.bench.results import SCHEMA, ResultFile, best_peer, load, load_all, ratio
from fastsr.errors import InputError

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
ENVIRONMENT = {
    "date": "2026-01-02",
    "commit": "abc1234",
    "changed": False,
    "kind": "cpu",
    "device": "A processor",
    "threads": 2,
    "cpu_isa": "avx2",
    "torch": "2.13.0",
}
SESSION = {"date": "2026-01-02", "ceilings": {"copy_gbs": 10.0, "fma_gflops": None}}


def row(name: str, **peers: float) -> dict:
    timed = {peer: {"ms": ms, "p20": ms, "p80": ms, "runs": 5} for peer, ms in peers.items()}
    found = {
        "id": f"ops/{name}/64x64/fp32/channels_last/forward",
        "group": "ops",
        "name": name,
        "size": "64x64",
        "dtype": "fp32",
        "layout": "channels_last",
        "direction": "forward",
        "peers": {**timed, "openvino": {"reason": "openvino is not installed"}},
        "not_asked": [],
    }
    best = best_peer(found)
    return {**found, "best_peer": best[0] if best else None, "ratio": ratio(found)}


def start(path: Path | None, **settings: object) -> ResultFile:
    found = ResultFile(path, ENVIRONMENT, settings)
    found.begin(SESSION)
    return found


def test_what_is_written_obeys_the_schema(tmp_path: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads(SCHEMA.read_text())
    path = tmp_path / "new" / "result.json"
    found = start(path)
    found.add(row("a", fastsr=1.0, eager=2.0))
    found.finish()
    content = json.loads(path.read_text())
    jsonschema.validate(content, schema)
    content["rows"][0]["peers"]["eager"]["reason"] = "timed and failed at once"
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, schema)


@pytest.mark.parametrize("path", [path for path, _ in load_all(RESULTS)], ids=lambda path: path.stem)
def test_results_that_are_kept(path: Path) -> None:
    """Old forms, too, in today's form: every figure is still there."""
    jsonschema = pytest.importorskip("jsonschema")
    found = load(path)
    jsonschema.validate(found, json.loads(SCHEMA.read_text()))
    raw = json.loads(path.read_text())
    if raw.get("version") is None:
        assert [r["peers"].items() <= o["peers"].items() for r, o in zip(found["rows"], raw["rows"], strict=True)]
        ratios = [(r["ratio"], o["ratio"]) for r, o in zip(found["rows"], raw["rows"], strict=True) if "ratio" in o]
        assert all(a == pytest.approx(b) for a, b in ratios)


def test_there_are_results() -> None:
    assert len(list(load_all(RESULTS))) >= 7


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    start(path, seconds=3.0).add(row("a", fastsr=1.0, eager=2.0))
    assert json.loads(path.read_text())["finished"] is False
    again = start(path, seconds=3.0)
    assert again.has(row("a")["id"], ["fastsr", "openvino"])
    assert not again.has(row("a")["id"], ["fastsr", "compile"])
    assert not again.has(row("b")["id"], ["fastsr"])
    again.add(row("a", fastsr=1.0, eager=3.0))
    again.add(row("b", fastsr=1.0, eager=4.0))
    again.finish()
    content = json.loads(path.read_text())
    assert [(r["name"], r["ratio"], r["session"]) for r in content["rows"]] == [("a", 3.0, 1), ("b", 4.0, 1)]
    assert content["finished"] and len(content["sessions"]) == 2


def test_another_run_is_not_continued(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    start(path, seconds=3.0).add(row("a", fastsr=1.0))
    before = path.read_text()
    with pytest.raises(InputError, match="settings"):
        start(path, seconds=4.0)
    with pytest.raises(InputError, match="commit 'abc1234', now 'def'"):
        ResultFile(path, {**ENVIRONMENT, "commit": "def"}, {"seconds": 3.0})
    path.write_text('{"rows": []}')
    with pytest.raises(InputError, match="no result of this version"):
        start(path)
    path.write_text(before)
    assert start(path, seconds=3.0).has(row("a")["id"], ["fastsr"])


def test_a_half_written_file_is_kept_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "result.json"
    path.write_text('{"version": 2, "rows": [')
    start(path).add(row("a", fastsr=1.0))
    assert "cannot be read as JSON" in caplog.text
    assert (tmp_path / "result.json.broken").read_text().startswith('{"version": 2')
    assert len(json.loads(path.read_text())["rows"]) == 1
    with pytest.raises(InputError, match="not whole JSON"):
        load(tmp_path / "result.json.broken")


def test_a_file_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    found = start(tmp_path / "file" / "result.json")
    found.add(row("a", fastsr=1.0))
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "the run goes on" in caplog.text and found.unwritable
    assert len(found.content["rows"]) == 1


def test_a_write_that_fails_leaves_the_last_whole_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    found = start(path)
    found.add(row("a", fastsr=1.0))

    def full(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    found.add(row("b", fastsr=1.0))
    assert [r["name"] for r in json.loads(path.read_text())["rows"]] == ["a"]
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_ratios_are_against_the_best_that_is_not_fastsr() -> None:
    found = row("a", **{"fastsr": 2.0, "fastsr frozen": 1.0, "eager": 6.0, "compile": 4.0})
    assert best_peer(found) == ("compile", 4.0)
    assert ratio(found) == 2.0 and ratio(found, "fastsr frozen") == 4.0
    assert row("a", fastsr=1.0)["ratio"] is None and row("a", eager=1.0)["ratio"] is None
