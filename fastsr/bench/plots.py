"""Plots of a result: the roofline, and each peer's time against fastsr's."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from fastsr.bench.registry import Peer
from fastsr.bench.results import Result, Row, best_peer
from fastsr.errors import MissingPackageError

try:
    from matplotlib import colormaps
    from matplotlib.figure import Figure
except ImportError as error:
    raise MissingPackageError("plots need matplotlib, which is not installed: pip install matplotlib") from error

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_OURS, _THEIRS, _LIMIT, _LOUD = "#0a6e6e", "#c46a1b", "#555555", "#b00020"
_LEAST_INTENSITY = 0.1
_BAR, _GAP = 0.17, 0.12  # inches of a bar and between the rows of bars


def png(figure: Figure) -> bytes:
    """The figure as a file."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=110, bbox_inches="tight")
    return data.getvalue()


def plots(result: Result) -> Iterator[tuple[str, str, Figure]]:
    """(name, caption, figure) of everything there is to draw."""
    ceilings = result["sessions"][-1]["ceilings"] if result["sessions"] else {}
    for dtype in dict.fromkeys(row["dtype"] for row in result["rows"]):
        rows = [row for row in result["rows"] if row["dtype"] == dtype and _placed(row)]
        if rows and ceilings.get("copy_gbs") and ceilings.get("fma_gflops"):
            yield f"roofline-{dtype}", f"Roofline, {dtype}", roofline(rows, ceilings, dtype)
    for key in dict.fromkeys((row["group"], row["direction"], row["size"], row["dtype"]) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["group"], row["direction"], row["size"], row["dtype"]) == key]
        rows = [row for row in rows if "ms" in row["peers"].get("fastsr", {})]
        if rows:
            group, direction, size, dtype = key
            yield f"bars-{'-'.join(key)}", f"{group}: {direction} at {size}, {dtype}", bars(rows)


def _placed(row: Row) -> bool:
    """Whether there is a rate to show; what has no convolutions to speak of (norms) has none."""
    return "gflops" in row["peers"].get("fastsr", {}) and _intensity(row) >= _LEAST_INTENSITY


def roofline(rows: Sequence[Row], ceilings: dict[str, Any], dtype: str) -> Figure:
    """Rate over arithmetic intensity, fastsr and the best peer of each row under the measured ceilings."""
    figure = Figure(figsize=(9, 6))
    axes: Axes = figure.add_subplot()
    points = [(_intensity(row), row) for row in rows]
    left, right = min(x for x, _ in points) / 2, max(x for x, _ in points) * 2
    copy, fma, matrix = ceilings["copy_gbs"], ceilings["fma_gflops"], ceilings.get(f"matrix_{dtype}_gflops")
    for rate, name in ((fma, "multiply-adds"), (matrix, "matrix units")):
        if rate:
            knee = rate / copy
            xs = [left, min(max(knee, left), right), right]
            axes.plot(xs, [min(copy * x, rate) for x in xs], color=_LIMIT, lw=1.5)
            axes.text(right, rate, f" {name} {rate:.0f} GFLOP/s ", ha="right", va="bottom", color=_LIMIT, fontsize=8)
    axes.text(left, copy * left, f"  copy {copy:.0f} GB/s", rotation=0, va="bottom", color=_LIMIT, fontsize=8)
    for number, (x, row) in enumerate(points, 1):
        mine, best = row["peers"]["fastsr"]["gflops"], best_peer(row)
        if best is not None:
            theirs = row["peers"][best[0]]["gflops"]
            axes.plot([x, x], [theirs, mine], color="#bbbbbb", lw=0.8, zorder=1)
            axes.plot(x, theirs, "o", color=_THEIRS, mfc="none", ms=5, label="best peer")
        axes.plot(x, mine, "o", color=_OURS, ms=5, label="fastsr")
        direction = "" if row["direction"] == "forward" else f" {row['direction']}"
        axes.plot([], [], " ", label=f"{number}  {row['name']} {row['size']}{direction}")
        axes.annotate(str(number), (x, mine), fontsize=7, xytext=(4, 2), textcoords="offset points")
    axes.set(xscale="log", yscale="log", xlim=(left, right), xlabel="FLOP per byte at least moved", ylabel="GFLOP/s")
    _legend(axes)
    axes.grid(True, which="major", alpha=0.3)
    return figure


def _intensity(row: Row) -> float:
    work = row["work"]
    return float(2 * (work["dense_macs"] + work["depthwise_macs"]) / work["bytes"])


def bars(rows: Sequence[Row]) -> Figure:
    """For each row, how many times as long as fastsr each peer takes; fastsr's floor is a mark."""
    peers = list(dict.fromkeys(name for row in rows for name, found in row["peers"].items() if "ms" in found))
    colour = {name: colormaps["tab20"](i % 20) for i, name in enumerate(p for p in peers if not Peer(p).ours)}
    figure = Figure(figsize=(9, 1.2 + sum(_height(row) for row in rows)))
    axes: Axes = figure.add_subplot()
    y, ticks = 0.0, []
    for row in rows:
        mine, top = row["peers"]["fastsr"]["ms"], y
        for name in peers:
            found = row["peers"].get(name, {})
            if "ms" in found:
                times = found["ms"] / mine
                axes.barh(-y, times, height=_BAR, color=colour.get(name, _OURS), label=name)
                axes.text(times, -y, f" {times:.2f}x  {found['ms']:.3g} ms", va="center", fontsize=6)
                y += _BAR
        if row.get("floor_ms"):
            floor = row["floor_ms"] / mine
            axes.plot(
                [floor, floor], [-top + _BAR / 2, -y + _BAR / 2], color=_LOUD, lw=1.2, label="floor by the roofline"
            )
        ticks.append((-(top + y - _BAR) / 2, row["name"] + (" (noisy)" if row.get("noisy") else "")))
        y += _GAP
    axes.axvline(1, color=_OURS, lw=0.8, ls=":")
    axes.set_yticks([tick for tick, _ in ticks], [label for _, label in ticks], fontsize=8)
    axes.set_xlabel("time, fastsr = 1 (longer is slower)")
    axes.set_xlim(
        0, 1.15 * max(f["ms"] / r["peers"]["fastsr"]["ms"] for r in rows for f in r["peers"].values() if "ms" in f)
    )
    axes.set_ylim(-y, _BAR)
    _legend(axes)
    return figure


def _height(row: Row) -> float:
    return _BAR * sum("ms" in found for found in row["peers"].values()) + _GAP


def _legend(axes: Axes) -> None:
    """One entry a label."""
    handles, labels = axes.get_legend_handles_labels()
    found = dict(zip(labels, handles, strict=True))
    axes.legend(found.values(), found.keys(), fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1), borderaxespad=0)
