"""Writes docs/performance.md from the results that are kept: python -m fastsr.bench.performance FOLDER FILE.

A section a machine, a row a case, and every figure of a row from one run: the newest on that machine that has the case,
but a noisy one only where no run is known to have been quiet.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from fastsr._files import atomic_write
from fastsr.bench import text
from fastsr.bench.registry import GROUPS, Peer
from fastsr.bench.results import Result, Row, load_all

_TITLES = {"ops": "Operators", "models": "Networks", "train": "Training steps"}
_HEAD = """# Performance

Written by `make docs-performance` from [benchmarks/results](../benchmarks/results); change nothing here by hand. Times
are medians in milliseconds of runs in which all peers took turns; the ratio is the time of the best peer over that of
fastsr. "Eager" and "compile" are the same networks in plain PyTorch. The floor is the least time by the roofline model
under the ceilings of the same run. A row holds one run on one machine, the newest that is known not to be noisy, or
else the newest; runs are named by date and commit. A dash is a peer that was not asked for or has no time; the raw data
say which and why.
"""


class Source(NamedTuple):
    """A row and the run it is from."""

    row: Row
    environment: dict[str, Any]


def machine(environment: dict[str, Any]) -> str:
    """What makes two runs comparable."""
    facts = [environment["device"], f"{environment['threads']} threads"] if environment["kind"] == "cpu" else None
    facts = facts or [environment["device"]]
    return ", ".join(filter(None, [*facts, environment.get("cpu_isa") if environment["kind"] == "cpu" else None]))


def newest(results: Iterable[Result], wanted: str) -> dict[str, dict[str, Source]]:
    """machine -> row id -> the row that counts, of those that have `wanted`, "ms" or "peak_mb", for some peer."""
    found: dict[str, dict[str, Source]] = {}
    for result in sorted(results, key=_time):
        environment = result["environment"]
        rows = found.setdefault(machine(environment), {})
        for row in result["rows"]:
            known = rows.get(row["id"])
            # Older forms do not tell whether the machine was noisy: they are no better than a noisy run.
            quieter = known is not None and row.get("noisy") and known.row.get("noisy") is False
            if wanted == "peak_mb":
                quieter = False  # memory does not depend on who else computes
            if any(wanted in figures for figures in row["peers"].values()) and not quieter:
                rows[row["id"]] = Source(row, environment)
    return {name: rows for name, rows in found.items() if rows}


def _time(result: Result) -> tuple[str, str]:
    return str(result["environment"]["date"]), str(result["environment"].get("time", ""))


def document(results: list[Result]) -> str:
    """The page."""
    parts = [_HEAD]
    times, peaks = newest(results, "ms"), newest(results, "peak_mb")
    for name in sorted({*times, *peaks}):
        parts.append(f"## {name}\n")
        sources = list(times.get(name, {}).values())
        for group in GROUPS:
            chosen = [source for source in sources if source.row["group"] == group]
            if chosen:
                parts.append(f"### {_TITLES[group]}\n\n{_times(chosen)}\n")
        parts.append(_losses(sources))
        if peaks.get(name):
            parts.append(f"### Peak memory above the weights, MB\n\n{_peaks(list(peaks[name].values()))}\n")
    if not any(result["environment"]["kind"] == "cuda" for result in results):
        parts.append("Nothing has been measured on a GPU yet.\n")
    return "\n".join(parts)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _case(source: Source) -> list[str]:
    row, environment = source
    layout = "" if row["layout"] == "channels_last" else f", {row['layout']}"
    return [f"{row['name']} {row['size']}", f"{row['dtype']}{layout}, {row['direction']}", _run(environment)]


def _run(environment: dict[str, Any]) -> str:
    changes = " with changes" if environment["changed"] else ""
    return f"{environment['date']} {environment['commit'] or 'installed'}{changes}"


def _columns(sources: list[Source], figure: str) -> list[str]:
    """Peers that have the figure somewhere, fastsr first."""
    names = {name: None for source in sources for name, found in source.row["peers"].items() if figure in found}
    return sorted(names, key=lambda name: (not Peer(name).ours, name))


def _times(sources: list[Source]) -> str:
    peers = _columns(sources, "ms")
    head = ["case", "", "run", *peers, "floor", "ratio"]
    rows = []
    for source in sorted(sources, key=lambda source: source.row["id"]):
        row = source.row
        cells = [row["peers"].get(name, {}) for name in peers]
        times = [text.milliseconds(found["ms"]) if "ms" in found else "-" for found in cells]
        floor = text.milliseconds(row["floor_ms"]) if row.get("floor_ms") else "-"
        ratio = f"{row['ratio']:.2f}{' (noisy)' if row.get('noisy') else ''}" if row["ratio"] else "-"
        rows.append([*_case(source), *times, floor, ratio])
    return _table(head, rows)


def _peaks(sources: list[Source]) -> str:
    peers = _columns(sources, "peak_mb")
    rows = []
    for source in sorted(sources, key=lambda source: source.row["id"]):
        cells = [source.row["peers"].get(name, {}) for name in peers]
        rows.append([*_case(source), *(f"{found['peak_mb']:.0f}" if "peak_mb" in found else "-" for found in cells)])
    return _table(["case", "", "run", *peers], rows)


def _losses(sources: list[Source]) -> str:
    """Where fastsr is behind; said also if it is nowhere."""
    lost = [source.row for source in sources if source.row["ratio"] and source.row["ratio"] < 1]
    compared = sum(bool(source.row["ratio"]) for source in sources)
    if not lost:
        return f"fastsr is behind in none of these {compared} rows.\n"
    said = [
        f"- {row['id']}: {row['ratio']:.2f} of {row['best_peer']}{' (noisy)' if row.get('noisy') else ''}"
        for row in sorted(lost, key=lambda row: float(row["ratio"]))
    ]
    return f"fastsr is behind in {len(lost)} of {compared} rows:\n\n" + "\n".join(said) + "\n"


def main(folder: str, file: str) -> None:
    atomic_write(Path(file), document([result for _, result in load_all(Path(folder))]).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
