"""docs/performance.md is what the results say."""

from __future__ import annotations

from pathlib import Path

from fastsr.bench.performance import document, newest
from fastsr.bench.results import load_all

ROOT = Path(__file__).resolve().parents[1]


def result(device: str, date: str, ms: float, best: float, kind: str = "cpu") -> dict:
    environment = {"date": date, "commit": "abc1234", "changed": False, "kind": kind, "device": device, "threads": 2}
    peers = {name: {"ms": v, "p20": v, "p80": v, "runs": 5} for name, v in (("fastsr", ms), ("eager", best))}
    row = {"id": "ops/x/8x8/fp32/channels_last/forward", "group": "ops", "name": "x", "size": "8x8", "dtype": "fp32"}
    row |= {"layout": "channels_last", "direction": "forward", "peers": peers, "ratio": best / ms, "best_peer": "eager"}
    return {"environment": environment, "rows": [row]}


def test_the_page_is_up_to_date() -> None:
    """After new results: make docs-performance."""
    results = [found for _, found in load_all(ROOT / "benchmarks" / "results")]
    assert (ROOT / "docs" / "performance.md").read_text() == document(results)


def test_machines_are_kept_apart_and_the_newest_run_counts() -> None:
    runs = [result("A", "2026-01-03", 1, 2), result("A", "2026-01-02", 5, 2), result("B", "2026-01-04", 3, 9)]
    found = newest(runs, "ms")
    assert {name: [s.row["peers"]["fastsr"]["ms"] for s in rows.values()] for name, rows in found.items()} == {
        "A, 2 threads": [1],
        "B, 2 threads": [3],
    }
    page = document(runs)
    assert "| x 8x8 | fp32, forward | 2026-01-03 abc1234 | 1.00 | 2.00 | - | 2.00 |" in page
    assert page.index("## A, 2 threads") < page.index("2026-01-03") < page.index("## B, 2 threads")
    assert "Nothing has been measured on a GPU yet." in page


def test_a_noisy_run_does_not_replace_a_quiet_one() -> None:
    quiet, loud = result("A", "2026-01-02", 1, 2), result("A", "2026-01-03", 5, 2)
    quiet["rows"][0]["noisy"], loud["rows"][0]["noisy"] = False, True
    assert newest([quiet, loud], "ms")["A, 2 threads"]["ops/x/8x8/fp32/channels_last/forward"].row["ratio"] == 2
    assert "0.40 (noisy)" in document([loud])


def test_a_run_of_unknown_noise_gives_way_to_a_newer_noisy_one() -> None:
    """Results of older forms do not tell; memory does not depend on noise at all."""
    old, loud = result("A", "2026-01-02", 1, 2), result("A", "2026-01-03", 5, 2)
    loud["rows"][0]["noisy"] = True
    row_id = "ops/x/8x8/fp32/channels_last/forward"
    assert newest([old, loud], "ms")["A, 2 threads"][row_id].row is loud["rows"][0]
    old["rows"][0]["noisy"] = False
    for run, peak in ((old, 9.0), (loud, 4.0)):
        run["rows"][0]["peers"]["fastsr"]["peak_mb"] = peak
    assert newest([old, loud], "peak_mb")["A, 2 threads"][row_id].row is loud["rows"][0]


def test_losing_shapes_are_stated() -> None:
    page = document([result("A", "2026-01-03", 4, 2), result("G", "2026-01-03", 1, 2, kind="cuda")])
    assert "fastsr is behind in 1 of 1 rows:\n\n- ops/x/8x8/fp32/channels_last/forward: 0.50 of eager" in page
    assert "fastsr is behind in none of these 1 rows." in page and "GPU yet" not in page
