"""Results as text: a line a row while it runs, a table of the peers, what the machine was like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastsr.bench.results import Result, Row


def milliseconds(value: float) -> str:
    """Three digits that count: 0.0123, 1.23, 123."""
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1) if value >= 1 else 4 if value < 0.1 else 3}f}"


def line(row: Row) -> str:
    """One row, with each peer's time or reason."""
    if "reason" in row:
        return f"{row['id']}: {row['reason']}"
    parts = [row["id"]]
    if row.get("ratio"):
        parts.append(f"{row['ratio']:.2f}x of {row['best_peer']}")
    if row.get("floor_ms"):
        mine = row["peers"].get("fastsr", {}).get("ms")
        share = f", {mine / row['floor_ms']:.1f}x its floor ({row['bound']})" if mine else ""
        parts.append(f"floor {milliseconds(row['floor_ms'])} ms{share}")
    if row.get("noisy"):
        parts.append(f"NOISY ({noise(row)})")
    lines = [" | ".join(parts)]
    for name, found in row["peers"].items():
        lines.append(f"    {name:<36} {peer(found)}")
    return "\n".join(lines)


def noise(row: Mapping[str, Any]) -> str:
    """What the turns and the probe saw, in words."""
    found = row["noise"]
    parts = [f"ratio to {found['doubt']:.1%}"] if "doubt" in found else []
    parts.append(f"probe spread {found['spread']:.1%}")
    if found.get("steal") is not None:
        parts.append(f"steal {found['steal']:.1%}")
    return ", ".join(parts)


def peer(found: Mapping[str, Any]) -> str:
    """The figures of one peer."""
    if "ms" not in found:
        return f"- ({found.get('reason', 'not timed')})"
    parts = [f"{milliseconds(found['ms'])} ms ({milliseconds(found['p20'])} to {milliseconds(found['p80'])})"]
    if "gbs" in found:
        parts.append(f"{found['gbs']:.1f} GB/s" + _share(found, "copy_share", "of copy"))
        parts.append(f"{found['gflops'] / 1e3:.3f} TFLOP/s" + _share(found, "rate_share", "of peak"))
    if "peak_mb" in found:
        parts.append(f"{found['peak_mb']:.0f} MB")
    return ", ".join(parts)


def _share(found: Mapping[str, Any], key: str, of: str) -> str:
    return f" ({found[key]:.0%} {of})" if key in found else ""


def closing(result: Result) -> list[str]:
    """What to know of the whole run: how many rows win and lose, which are noisy, whether it is whole."""
    rows: Sequence[Row] = result["rows"]
    ratios = [row["ratio"] for row in rows if row.get("ratio")]
    failed = [row["id"] for row in rows if "reason" in row]
    said = [f"{len(rows)} rows; fastsr is ahead in {sum(r > 1 for r in ratios)} of {len(ratios)} with a peer"]
    loud = [row["id"] for row in rows if row.get("noisy")]
    if loud:
        said.append(f"the machine was noisy in {len(loud)} rows, whose ratios may be off by more than 5 %")
    if failed:
        said.append(f"{len(failed)} rows could not be measured: {', '.join(failed)}")
    return said
